"""Valid names of repositories and refs, and the folding of names for git hosts that ignore case; pure."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

REPOSITORY_BYTES: Final = 1_024  # of UTF-8, of the canonical name
COMPONENT_BYTES: Final = 255  # between two slashes of a ref: NAME_MAX of the file systems that git keeps refs on
REF_BYTES: Final = 4_095  # of a whole ref name: PATH_MAX without its NUL

# C0, DEL, C1, the line and paragraph separators, and the bidirectional controls, which make one name look like another.
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
SURROGATE: Final = re.compile(r"[\ud800-\udfff]")  # surrogateescape decodes bytes that are not UTF-8 to these

# git-check-ref-format(1): each rule with its explanation
_REF_RULES: Final = tuple(
    (re.compile(wrong), what)
    for wrong, what in (
        (r"[\x00-\x1f\x7f]", "git allows no control character in a ref"),
        (r" ", "git allows no space in a ref"),
        (r"[~^:?*\[\\]", "git allows none of ~ ^ : ? * [ \\ in a ref"),
        (r"//|/\Z", "git allows no empty component in a ref"),
        (r"/\.", "git allows no component of a ref that begins with a dot"),
        (r"\.\.", "git allows no two dots in a row in a ref"),
        (r"@\{", "git allows no @{ in a ref"),
        (r"\.lock(?:/|\Z)", "git allows no component of a ref that ends in .lock"),
        (r"\.\Z", "git allows no ref that ends in a dot"),
    )
)
_ANY_REF_RULE: Final = re.compile("|".join(rule.pattern for rule, _ in _REF_RULES))
# Unicode's Default_Ignorable_Code_Point (UAX 44), as far as file names can have them: HFS+ ignores these
_IGNORABLE: Final = re.compile(
    r"[\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)


class BadName(ValueError):
    """Not a canonical repository name; `message` is a clause that a client may read."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def check_repository(name: str) -> None:
    """Raises BadName unless `name` is a canonical repository name."""
    check_repository_shape(name)
    check_repository_size(name)


def check_repository_shape(name: str) -> None:
    """`check_repository` without the check of the length."""
    if SURROGATE.search(name):
        raise BadName("the repository name is not valid UTF-8")
    if CONTROL.search(name):
        raise BadName("the repository name holds a control character")
    if not name:
        raise BadName("the repository name is empty, a path such as team/app.git is expected")
    if "\\" in name:
        raise BadName("a backslash is not allowed in a repository name")
    for segment in name.split("/"):
        if segment in ("", ".", "..", ".git"):
            raise BadName("empty, '.', '..' and '.git' segments are not allowed in a repository name")
        if segment[0] in "-~":
            raise BadName("no segment of a repository name may begin with '-' or '~'")
    if name.endswith(".git"):
        raise BadName("a repository name ends in .git at most once")


def check_repository_size(name: str) -> None:
    if len(name.encode()) > REPOSITORY_BYTES:
        raise BadName(f"the repository name is too long, at most {REPOSITORY_BYTES:,} bytes are allowed")


def ref_shape_fault(name: str) -> str | None:
    """Why no ref with this name can be pushed to, apart from its length; None for a valid name."""
    if not name.startswith("refs/") or len(name) == len("refs/"):
        return "a ref has its whole name, as in refs/heads/main"
    if _ANY_REF_RULE.search(name) is None:
        return None
    return next(what for rule, what in _REF_RULES if rule.search(name))


def ref_size_fault(name: str) -> str | None:
    """Why the name is too long: git stores a ref as a file."""
    if 4 * len(name) <= COMPONENT_BYTES:  # the usual case; no character has more than four bytes
        return None
    data = name.encode("utf-8", "surrogateescape")
    if len(data) > REF_BYTES:
        return f"a ref has at most {REF_BYTES:,} bytes"
    if max(map(len, data.split(b"/"))) > COMPONENT_BYTES:
        return f"a component of a ref has at most {COMPONENT_BYTES} bytes"
    return None


def fold(name: str) -> str:
    """One name for all names that a file system or product which ignores case may take for the same; fold(fold(x)) == fold(x).

    Coarser than any of them, because names that are the same to the git host must be the same to the access rules: canonical caseless
    matching (Unicode 3.13, D145), composed (NFC), without the characters that HFS+ ignores, and without the dots and spaces that NTFS drops
    at the end of a segment.
    """
    while True:
        plain = _IGNORABLE.sub("", unicodedata.normalize("NFD", name))
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", plain.casefold()))
        folded = "/".join(segment if segment in (".", "..") else segment.rstrip(". ") for segment in folded.split("/"))
        if folded == name:
            return folded
        name = folded
