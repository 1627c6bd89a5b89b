"""Patterns for names of repositories and refs: `*` matches within one path segment, `**` across segments, everything else itself.

Matching takes time proportional to the lengths of pattern and name, whatever the stars and whatever name a client makes up: where a part
between two stars fits first is as good as any later place, so the regular expression never backtracks (atomic groups).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from relay.git.names import BadName, check_repository_shape, check_repository_size, fold, ref_shape_fault, ref_size_fault
from relay.git.namespaces import PLACEHOLDER, placeholder_fault
from relay.text import has_control, quoted

PATTERN_CHARACTERS = 1024
PLACES_A_STEP = 1000  # the state of more patterns is so many integers long that a segment of a name costs more
CHARACTERS_A_STEP = 16  # likewise of a segment that is compared
SEGMENTS_REMEMBERED = 10_000  # segments of names whose matches with wildcard segments are cached

# Special in shell globs, regular expressions or templates, but not here: such a pattern would match nothing that its author meant.
# The few names with one of these characters are matched by * in its place.
_FOREIGN = re.compile(r"""[?\[\]{}|^$\\<>"]""")


def glob_fault(pattern: str, *, folded: bool = False, placeholder: bool = False) -> str | None:
    """Why `pattern` can match no canonical repository name, and what is allowed; None for a valid pattern.

    With `folded` names are folded by relay.git.names.fold before they are matched. With `placeholder` a segment may be {identity}.
    """
    if placeholder:
        if (fault := placeholder_fault(pattern)) is not None:
            return fault
        pattern = pattern.replace(PLACEHOLDER, "*")
    if pattern.endswith(".git"):
        return "must leave .git away: names are matched without it"
    if (fault := _fault(pattern, placeholder)) is not None:
        return fault
    if pattern.startswith("!"):
        return "must not begin with !: a pattern excludes nothing, a rule with deny does"
    if pattern.strip() != pattern:
        return "must have no space at its ends"
    try:
        check_repository_shape(_example(pattern, "x"))
        check_repository_size(_example(pattern, ""))
    except BadName as bad:
        return f"can match no repository: {bad}"
    return _unfolded(pattern) if folded else None


def ref_glob_fault(pattern: str, *, folded: bool = False, placeholder: bool = False) -> str | None:
    """Why `pattern` can match no full name of a ref, and what is allowed; None for a valid pattern. `folded`, `placeholder` as above."""
    if placeholder:
        if (fault := placeholder_fault(pattern)) is not None:
            return fault
        pattern = pattern.replace(PLACEHOLDER, "*")
    if (fault := _fault(pattern, placeholder)) is not None:
        return fault
    if not pattern.startswith(("refs/", "**/")) and pattern != "**":
        return "must be the whole name, as in refs/heads/main or refs/tags/**"
    if pattern.startswith("**"):
        pattern = "refs/" + pattern
    shape, size = ref_shape_fault(_example(pattern, "x")), ref_size_fault(_example(pattern, ""))
    if (fault := shape or size) is not None:
        return f"can match no ref: {fault}"
    return _unfolded(pattern) if folded else None


def _unfolded(pattern: str) -> str | None:
    if (as_names_are := fold(pattern)) == pattern:
        return None
    return f"must be {quoted(as_names_are)}: with ignore_case names are folded, to lower case and composed, before they are matched"


def _fault(pattern: str, placeholder: bool) -> str | None:
    segments = pattern.split("/")
    if not 0 < len(pattern) <= PATTERN_CHARACTERS:
        return f"must have 1 to {PATTERN_CHARACTERS} characters"
    if has_control(pattern):
        return "must have no control characters"
    if not pattern.isprintable():
        return "must have printable characters only"
    if "" in segments:
        return "must have no slash at its ends and no two in a row"
    if "." in segments or ".." in segments:
        return "must have no segment . or .."
    if any("**" in segment and segment != "**" for segment in segments):
        return "must have ** alone between slashes, as in team/**"
    if foreign := _FOREIGN.search(pattern):
        special = ", ** (across segments) and {identity}" if placeholder else " and ** (across segments)"
        return f"must not have {foreign[0]} in it: only * (within a segment){special} are special; alternatives are patterns each"
    return None


def _example(pattern: str, filler: str) -> str:
    """A name that matches, with `filler` for each star. If this name is not valid, no name that matches is."""
    segments = pattern.split("/")
    names = [segment.replace("*", filler) for segment in segments if segment != "**"]
    return "/".join([*names, filler or "x"] if segments[-1] == "**" else names)


def compile_glob(pattern: str) -> re.Pattern[str]:
    """A regular expression for `fullmatch`. `a/**` matches everything below a, `**/a` an a at any depth, `**` every repository."""
    groups: list[list[str]] = [[]]  # runs of segments between **
    for segment in pattern.split("/"):
        if segment != "**":
            groups[-1].append(_segment(segment))
        elif groups[-1] or len(groups) == 1:
            groups.append([])  # several ** in a row mean the same as one
    if len(groups) == 1:
        return re.compile("/".join(groups[0]))
    first, *middle, last = groups
    text = "".join(segment + "/" for segment in first)
    text += "".join("(?>(?:[^/]+/)*?" + "".join(segment + "/" for segment in group) + ")" for group in middle)
    # the part after the last ** has a fixed number of segments, so it fits only at the end
    text += "(?:[^/]+/)*?" + "/".join(last) if last else "(?:[^/]+/)*+[^/]+"
    return re.compile(text)


def _segment(segment: str) -> str:
    first, *rest = segment.split("*")
    if not rest:
        return re.escape(first)
    *middle, last = rest
    # the lookahead makes the last part match at the end of the segment
    return re.escape(first) + "".join(f"(?>[^/]*?{re.escape(part)})" for part in middle if part) + f"(?>[^/]*?{re.escape(last)}(?=/|\\Z))"


class TooManySteps(Exception):
    """Matching was given up, because the names and the patterns together cost more than was allowed."""


class Globs:
    """Finds which of many patterns match a name, in one step for each segment of the name.

    A bit of the state stands for a segment of a pattern that may match next (shift-and, as in agrep), so patterns are not tried one by one.
    `steps` counts segments of names, comparisons with wildcard segments (`a*b`), whose results are cached, and patterns that matched. A
    step takes about 0.1 µs.
    """

    def __init__(self, patterns: Sequence[str], steps_most: float = math.inf) -> None:
        self.steps = 0
        self._steps_most = steps_most
        self._literal: dict[str, int] = {}  # segment -> bits of its places
        self._wild: dict[str, int] = {}  # the same for segments such as a*b
        self._any = 0  # places that match any segment
        self._stay = 0  # places of **, which match any number of segments
        self._skip = 0  # of these the ones that also match none
        self._start = 0
        self._ends: dict[int, int] = {}  # the place after a pattern's last segment -> the pattern's number
        self._seen: dict[str, int] = {}
        place = 0
        for number, pattern in enumerate(patterns):
            segments = pattern.split("/")
            self._start |= 1 << place
            for at, segment in enumerate(segments):
                bit = 1 << place
                if segment == "**":
                    if segments[at + 1 : at + 2] == ["**"]:
                        continue  # several ** in a row mean the same as one
                    self._stay |= bit
                    if at < len(segments) - 1:
                        self._skip |= bit
                    else:
                        self._any |= bit
                elif segment == "*":
                    self._any |= bit
                else:
                    kind = self._wild if "*" in segment else self._literal
                    kind[segment] = kind.get(segment, 0) | bit
                place += 1
            self._ends[place] = number
            place += 1
        self._segment_steps = 1 + place // PLACES_A_STEP
        self._start |= (self._start & self._skip) << 1
        self._final = sum(1 << place for place in self._ends)
        self._compiled = [(re.compile(_segment(text)), bits) for text, bits in self._wild.items()]
        self._one_of_them = re.compile("|".join(f"(?:{_segment(text)})" for text in self._wild))
        self._wilds = sum(self._wild.values())

    def matches(self, name: str) -> list[int]:
        """The numbers of the patterns that match, in order. Raises TooManySteps when all calls so far took more than `steps_most`."""
        state = self._start
        for segment in name.split("/"):
            self.steps += self._segment_steps
            if self.steps > self._steps_most:
                raise TooManySteps
            taken = state & (self._any | self._literal.get(segment, 0))
            if state & self._wilds:
                taken |= state & self._wild_places(segment)
            state = (taken << 1) | (state & self._stay)
            state |= (state & self._skip) << 1
            if not state:
                return []
        final = state & self._final
        found = []
        while final:
            lowest = final & -final
            found.append(self._ends[lowest.bit_length() - 1])
            final ^= lowest
        self.steps += len(found) * self._segment_steps
        return found

    def _wild_places(self, segment: str) -> int:
        places = self._seen.get(segment)
        if places is None:
            if len(self._seen) >= SEGMENTS_REMEMBERED:
                self._seen.clear()
            self.steps += len(self._compiled) * (1 + len(segment) // CHARACTERS_A_STEP)
            places = 0
            if self._one_of_them.fullmatch(segment):  # usually none matches, and one call shows that
                places = sum(bits for text, bits in self._compiled if text.fullmatch(segment))
            self._seen[segment] = places
        return places
