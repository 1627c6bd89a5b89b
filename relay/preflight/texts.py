"""The texts that clients read, and the prefixes that are taken off names of repositories."""

from __future__ import annotations

import re

from relay.config import Config
from relay.config.toml import Problems
from relay.git.command import strip_fault
from relay.text import client_text_fault, has_control, quoted


def check_texts(config: Config, problems: Problems) -> None:
    """`greeting`, `banner`, `notice` and `names.strip`."""
    if re.search(r"[{}]", config.greeting.replace("{identity}", "")):
        problems.add("greeting", "has braces besides {identity}, which is the only placeholder that is allowed")
    if has_control(config.banner.replace("\n", "").replace("\t", "")):
        problems.add("banner", "has control characters besides tabs and line ends, must have none")
    if config.notice and (fault := client_text_fault(config.notice)) is not None:
        problems.add("notice", fault)
    for text in config.names.strip:
        if (fault := strip_fault(text)) is not None:
            problems.add("names.strip", f"{quoted(text)} {fault}")
