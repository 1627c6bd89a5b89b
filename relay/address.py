"""Parsing of addresses (host:port, [v6]:port), networks and URLs in settings; no I/O."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

REMEMBERED = 1_024  # texts whose address is remembered: a login asks five times for its client's
SYSTEMD = "systemd"  # as an address of `listen`: the sockets that systemd passes

_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?")
_PORT = re.compile(r"[0-9]{1,5}")
_EXAMPLES = re.compile(r"(^|\.)(example\.(com|net|org)|example|invalid)\.?$", re.IGNORECASE)  # RFC 2606, RFC 6761


def parse_address(text: str, *, any_port: bool = False) -> tuple[str, int]:
    """(host, port); the host is a name, an IPv4 address, or an IPv6 address without its brackets.

    Port 0, by which the system chooses one, is allowed with `any_port`. Raises ValueError with what is wrong and what is allowed.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError("must be host:port or [v6]:port")
    number = int(port) if _PORT.fullmatch(port) else -1
    if not (0 if any_port else 1) <= number <= 65_535:
        raise ValueError("must end with a port from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1])), number
        except ValueError:
            raise ValueError("must have an IPv6 address between the brackets: [v6]:port") from None
    if ":" in host:
        raise ValueError("must have brackets around an IPv6 address: [v6]:port")
    if re.fullmatch(r"[0-9.]+", host):
        try:
            return str(ipaddress.IPv4Address(host)), number
        except ValueError:
            raise ValueError("must have four numbers from 0 to 255 in an IPv4 address") from None
    if not _HOST.fullmatch(host):
        raise ValueError("must be host:port with a host name of letters, digits, dots and hyphens, or an IP address")
    return host, number


def format_address(host: str, port: int) -> str:
    """The inverse of `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_network(text: str) -> Network:
    """An address or a network in CIDR notation, one of IPv4-mapped addresses (::ffff:0:0/96 and smaller) as the IPv4 network that it is.

    Made for comparison with what `real_address` returns. Raises ValueError with what is wrong and what is allowed.
    """
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        pass
    else:
        first = unmapped(network.network_address)
        if isinstance(first, ipaddress.IPv4Address) and isinstance(network, ipaddress.IPv6Network):
            return ipaddress.IPv4Network((first, network.prefixlen - 96))
        return network
    try:
        wider = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("must be an IP address or a network such as 10.0.0.0/8 or 2001:db8::/32") from None
    raise ValueError(f"has bits set beyond its prefix, must be {wider} or a single address")


def unmapped(address: Address) -> Address:
    """The IPv4 address that an IPv4-mapped IPv6 address stands for; any other address itself."""
    return (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped) or address


@lru_cache(REMEMBERED)
def real_address(text: str) -> Address | None:
    """The address that `text` names, in the form in which it is compared with networks: IPv4-mapped as IPv4, without a zone (%eth0).

    None for a text that is no address, such as a Unix socket's peer.
    """
    try:
        return unmapped(ipaddress.ip_address(text.partition("%")[0]))
    except ValueError:
        return None


@lru_cache(REMEMBERED)
def plain_address(text: str) -> str:
    """The one form in which an address is counted and written: that of `real_address`, as short as can be. Any other text is returned."""
    address = real_address(text)
    return text if address is None else str(address)


def is_example(host: str) -> bool:
    """Whether the name is reserved for examples, so that it cannot be a git host."""
    return _EXAMPLES.search(host) is not None


def url_fault(url: str, plain_http: bool) -> str | None:
    """Why the relay may not send to `url`, and what is allowed; None for a good one. `plain_http` allows http:// to another machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"is not a URL ({error}), must be https://HOST[:PORT][/PATH]"
    if not host or parts.query or parts.fragment or not url.isprintable() or " " in url:
        return "must be https://HOST[:PORT][/PATH] and nothing else"
    if "@" in parts.netloc:
        return "has a user or a password in it, must not: the log shows URLs; use token_file"
    if parts.scheme == "http" and not plain_http and not _loopback(host):
        return "is http:// to another machine, must be https://, or plain_http = true on a network that is nobody else's"
    return None


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
