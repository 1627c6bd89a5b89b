"""Patterns over names of repositories and refs: `*` within one path segment, `**` across segments; everything else stands for itself.

Matching takes time in proportion to pattern times name, whatever stars a pattern has and whatever name a client makes up: the
first place where a part between two stars fits is as good as any later one, so the regular expression never goes back (atomic groups).
"""

from __future__ import annotations

import re

from relay.model import printable

PATTERN_CHARACTERS = 1024


def glob_fault(pattern: str) -> str | None:
    """What keeps `pattern` from ever matching a canonical repository name, and what is allowed; None for a good one."""
    if pattern.endswith(".git"):
        return "must leave .git away: names are matched without it"
    return _fault(pattern)


def ref_glob_fault(pattern: str) -> str | None:
    """What keeps `pattern` from ever matching a ref's full name, and what is allowed; None for a good one."""
    if (fault := _fault(pattern)) is not None:
        return fault
    if not pattern.startswith(("refs/", "**/")) and pattern != "**":
        return "must be the whole name, as in refs/heads/main or refs/tags/**"
    return None


def _fault(pattern: str) -> str | None:
    segments = pattern.split("/")
    if not 0 < len(pattern) <= PATTERN_CHARACTERS:
        return f"must have 1 to {PATTERN_CHARACTERS} characters"
    if printable(pattern, PATTERN_CHARACTERS) != pattern:
        return "must have no control characters"
    if "" in segments:
        return "must have no slash at its ends and no two in a row"
    if "." in segments or ".." in segments:
        return "must have no segment . or .."
    if any("**" in segment and segment != "**" for segment in segments):
        return "must have ** alone between slashes, as in team/**"
    return None


def compile_glob(pattern: str) -> re.Pattern[str]:
    """For `fullmatch`. `a/**` means what lies below a, `**/a` an a at any depth, `**` every repository."""
    groups: list[list[str]] = [[]]  # runs of segments between **
    for segment in pattern.split("/"):
        if segment != "**":
            groups[-1].append(_segment(segment))
        elif groups[-1] or len(groups) == 1:
            groups.append([])  # a run of ** means what one means
    if len(groups) == 1:
        return re.compile("/".join(groups[0]))
    first, *middle, last = groups
    text = "".join(segment + "/" for segment in first)
    text += "".join("(?>(?:[^/]+/)*?" + "".join(segment + "/" for segment in group) + ")" for group in middle)
    # what is left after the last ** is fixed in its number of segments, so it fits in one place only: at the end
    text += "(?:[^/]+/)*?" + "/".join(last) if last else "(?:[^/]+/)*+[^/]+"
    return re.compile(text)


def _segment(segment: str) -> str:
    first, *rest = segment.split("*")
    if not rest:
        return re.escape(first)
    *middle, last = rest
    # the lookahead ties the last part to the end of the segment
    return re.escape(first) + "".join(f"(?>[^/]*?{re.escape(part)})" for part in middle if part) + f"(?>[^/]*?{re.escape(last)}(?=/|\\Z))"
