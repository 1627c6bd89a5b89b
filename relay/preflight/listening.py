"""The addresses that clients and operators connect to, and the PROXY protocol."""

from __future__ import annotations

from relay.address import SYSTEMD, parse_address, parse_network
from relay.config import Config
from relay.config.toml import Problems
from relay.text import quoted


def check_listening(config: Config, problems: Problems) -> None:
    """`listen`, `admin.listen` and [proxy_protocol]; no address twice."""
    taken: dict[tuple[str, int], str] = {}
    for text in config.listen:
        if text != SYSTEMD:
            _check_listen("listen", text, f", or {quoted(SYSTEMD)}", taken, problems)
    if len(set(config.listen)) < len(config.listen):
        problems.add("listen", "names an address twice, must name each once")
    _check_listen("admin.listen", config.admin.listen, "", taken, problems)
    for text in config.proxy_protocol.trusted:
        try:
            parse_network(text)
        except ValueError as error:
            problems.add("proxy_protocol.trusted", f"{quoted(text)} {error}")
    if config.proxy_protocol.mode != "off" and not config.proxy_protocol.trusted:
        problems.add(
            "proxy_protocol.trusted",
            f"is empty though mode is {quoted(config.proxy_protocol.mode)}, must name the load balancers' addresses or networks",
        )


def _check_listen(key: str, text: str, also: str, taken: dict[tuple[str, int], str], problems: Problems) -> None:
    try:
        host, port = parse_address(text, any_port=True)
    except ValueError as error:
        problems.add(key, f"{quoted(text)} {error}{also}")
        return
    if port and taken.setdefault((host, port), key) != key:
        problems.add(key, f"{quoted(text)} is taken by {taken[host, port]}, must be another port")
