"""[limits]: settings that must fit one another, and networks that are exempt."""

from __future__ import annotations

from collections.abc import Iterator

from relay.address import parse_network
from relay.config import Config
from relay.config.toml import Problems
from relay.text import quoted


def check_limits(config: Config, problems: Problems) -> None:
    """Settings that must fit one another."""
    limits = config.limits
    for text in limits.exempt:
        try:
            parse_network(text)
        except ValueError as error:
            problems.add("limits.exempt", f"{quoted(text)} {error}")
    if limits.penalty_seconds > limits.penalty_max_seconds:
        problems.add(
            "limits.penalty_seconds",
            f"is {limits.penalty_seconds:g}, must be at most penalty_max_seconds ({limits.penalty_max_seconds:g})",
        )


def exempt_remarks(config: Config) -> Iterator[str]:
    """Networks that exempt everybody, or nobody whom another one does not exempt already."""
    networks = list(map(parse_network, config.limits.exempt))
    for number, (text, network) in enumerate(zip(config.limits.exempt, networks, strict=True)):
        others = [other for at, other in enumerate(networks) if at != number and other.version == network.version]
        if network.prefixlen == 0:
            yield f"{quoted(text)} is everybody, so no limit by source and no penalty is left"
        elif (wider := next((one for one in others if one != network and one.supernet_of(network)), None)) is not None:  # type: ignore[arg-type]
            yield f"{quoted(text)} has no effect beside {wider}"
