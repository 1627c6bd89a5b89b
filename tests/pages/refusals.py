"""The table of git hosts' refusals in docs/upstreams.md."""

from __future__ import annotations

from relay.git.host_words import REFUSALS

READS = {
    "not_found": "`relay: repository not found, or you may not do this`",
    "unsupported": "`relay: the git host does not have this command`",
    "refused": "`relay: the git host refused the command; ...`",
}


def refusals() -> str:
    rows = [f"| {one.host} | `{one.words}` | {READS[one.verdict]} |" for one in REFUSALS]
    return "\n".join(["| git host | says (`*`: anything) | the client reads |", "| --- | --- | --- |", *rows])
