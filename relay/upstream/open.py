"""Makes the connections to one upstream from its settings: one pool for all, or one for each identity."""

from __future__ import annotations

from pathlib import Path

from relay.address import parse_address
from relay.config import UpstreamSettings
from relay.errors import ConfigError
from relay.events import Observer
from relay.openssh.private_key import read_private_key
from relay.upstream.colleagues import Colleagues
from relay.upstream.gate import Visit
from relay.upstream.hostkeys import HostKeys, Where, read_host_keys
from relay.upstream.identities import IdentityPools
from relay.upstream.libssh2 import Login
from relay.upstream.line import Line
from relay.upstream.member import MemberLimits
from relay.upstream.pool import Pool
from relay.upstream.refusals import Refusals
from relay.upstream.user_certificate import Signer


def open_pool(
    name: str,
    upstream: UpstreamSettings,
    where: Where,
    base: Path,
    observer: Observer,
    colleagues: Colleagues | None = None,
    line: Line[Visit] | None = None,
) -> Pool | IdentityPools:
    """`where` names the place of a setting, for problems; relative paths start at `base`. Upstreams of one worker share a `line`.

    Raises ConfigError with every problem found.
    """
    host_keys, problems = read_host_keys(upstream, where, base)
    addresses = [parse_address(address) for address in upstream.addresses]
    limits = MemberLimits(
        connections_max=upstream.connections_max,
        idle_connections=min(upstream.idle_connections, upstream.connections_max),
        idle_seconds=upstream.idle_seconds,
        connect_seconds=upstream.connect_seconds,
        keepalive_seconds=upstream.keepalive_seconds,
        wait_seconds=upstream.wait_seconds,
        notice_seconds=upstream.notice_seconds,
        policy=upstream.policy,
        health_seconds=upstream.health_seconds,
        health_fall=upstream.health_fall,
        health_rise=upstream.health_rise,
        replay_budget=upstream.replay_budget,
    )
    if (settings := upstream.user_certificate) is None:
        login = read_login(upstream, where, base, host_keys, problems)
        if login is None or problems:
            raise ConfigError(problems)
        return Pool(name, addresses, login, limits, observer, colleagues, refusals=Refusals(upstream.refused_seconds), line=line)
    signer = _signer(upstream, where, base, host_keys, problems)
    if signer is None or problems:
        raise ConfigError(problems)
    return IdentityPools(name, addresses, signer.login, limits, settings, observer, colleagues, line=line)


def read_login(upstream: UpstreamSettings, where: Where, base: Path, host_keys: HostKeys, problems: list[str]) -> Login | None:
    """The Login of `relay check --connect`, and of sessions unless each identity has its own; None with a line in `problems`."""
    if upstream.user_certificate is not None:
        signer = _signer(upstream, where, base, host_keys, problems)
        return None if signer is None else signer.login(upstream.user_certificate.check_identity)
    try:
        private_key = (base / upstream.private_key).read_bytes()
    except OSError as error:
        problems.append(f"{where('private_key')}: {error}")
        return None
    return Login(user=upstream.user, private_key=private_key, host_keys=host_keys, algorithms=upstream.algorithms)


def _signer(upstream: UpstreamSettings, where: Where, base: Path, host_keys: HostKeys, problems: list[str]) -> Signer | None:
    settings = upstream.user_certificate
    assert settings is not None
    try:
        return Signer(settings, read_private_key(base / settings.ca_key), upstream.user, host_keys, algorithms=upstream.algorithms)
    except ValueError as error:
        problems.append(f"{where('user_certificate.ca_key')}: {error}")
        return None
