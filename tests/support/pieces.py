"""A stream cut at arbitrary places, for parsers whose result must not depend on the cuts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import strategies as st

cuts = st.lists(st.integers(0, 1 << 20), max_size=12)


def pieces(data: bytes, places: Sequence[int]) -> list[bytes]:
    """`data` cut at each of the places (modulo its length), in order."""
    ends = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]
