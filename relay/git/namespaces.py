"""{identity} in patterns and paths: stands for the name of the identity that asks, as one whole segment; pure.

A name is compared as it is, character by character, so it can match no other identity's folder. An identity whose name cannot be a segment
of a repository's name, or might be taken for another one, has no namespace: {identity} then matches nothing.
"""

from __future__ import annotations

import re
from typing import Final

from relay.git.names import BadName, check_repository, fold, ref_shape_fault, ref_size_fault
from relay.text import is_shown

PLACEHOLDER: Final = "{identity}"

# * is special in patterns, and braces in templates; sh and NTFS know the others as something else than a part of a name
_SPECIAL: Final = re.compile(r"""[*?{}\[\]|<>"'`$&;:\\\\/]""")


def namespace(identity: str, *, folded: bool = False) -> str | None:
    """The segment that {identity} stands for; None if this identity has none.

    With `folded` names are folded before they are compared: only a name that folding leaves as it is has a namespace, since "Alice" and
    "alice" would have the same one.
    """
    if _SPECIAL.search(identity) or not is_shown(identity) or identity.endswith(".git"):
        return None
    if folded and fold(identity) != identity:
        return None
    try:
        check_repository(identity)
    except BadName:
        return None
    return identity


def ref_namespace(identity: str, *, folded: bool = False) -> str | None:
    """The component of a ref's name that {identity} stands for; None if this identity has none. `folded` as above."""
    if folded and fold(identity) != identity:
        return None
    name = f"refs/heads/{identity}/x"
    if _SPECIAL.search(identity) or ref_shape_fault(name) is not None or ref_size_fault(name) is not None:
        return None
    return identity


def has_placeholder(pattern: str) -> bool:
    return PLACEHOLDER in pattern


def anybodys(pattern: str) -> str:
    """The pattern with * for {identity}: what it matches for all identities together."""
    return pattern.replace(PLACEHOLDER, "*")


def own(pattern: str, identity: str, *, folded: bool = False) -> str | None:
    """The pattern as it is for one identity; None if it has a placeholder and this identity no namespace."""
    if not has_placeholder(pattern):
        return pattern
    name = namespace(identity, folded=folded)
    return None if name is None else pattern.replace(PLACEHOLDER, name)


def own_ref(pattern: str, identity: str, *, folded: bool = False) -> str | None:
    """As `own`, for a pattern of refs."""
    if not has_placeholder(pattern):
        return pattern
    name = ref_namespace(identity, folded=folded)
    return None if name is None else pattern.replace(PLACEHOLDER, name)


def placeholder_fault(pattern: str) -> str | None:
    """Why {identity} does not stand alone between slashes: beside other text the names of two identities could make one segment."""
    if any(PLACEHOLDER in segment and segment != PLACEHOLDER for segment in pattern.split("/")):
        return f"must have {PLACEHOLDER} alone between slashes, as in users/{PLACEHOLDER}/**"
    return None
