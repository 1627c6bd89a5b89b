"""The parts of one worker, put together from its configuration; needs no process, so the demo and other programs may use it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import asyncssh

from relay.access.open import open_access
from relay.config.load import Loaded
from relay.errors import ConfigError
from relay.events import Observer, SessionRecord
from relay.keys.open import open_certificates, open_host_certificates, open_keys, open_policy
from relay.packs.store import open_store
from relay.routes.open import open_routes
from relay.server import Server
from relay.shared import open_shared
from relay.ssh import asyncssh_pins
from relay.upstream.colleagues import Colleagues
from relay.upstream.gate import Visit
from relay.upstream.identities import IdentityPools
from relay.upstream.line import Line
from relay.upstream.open import open_pool
from relay.upstream.pool import Pool

_log = logging.getLogger("relay.server")


def build(
    loaded: Loaded, observer: Observer, colleagues: Colleagues | None = None, begins: Callable[[SessionRecord], str] | None = None
) -> Server:
    """Makes the server of one worker. `begins` writes to the audit that a session begins, and returns why it cannot; None: it need not be.

    Raises ConfigError with every problem of what cannot be read.
    """
    if remark := asyncssh_pins.settle():
        _log.warning("the direct path for AES-GCM is off: %s", remark)
    config, base = loaded.config, loaded.base
    problems: list[str] = []
    host_keys = []
    for name in config.host_keys:
        try:
            host_keys.append(asyncssh.read_private_key(base / name))
        except (OSError, asyncssh.KeyImportError) as error:
            problems.append(f"{loaded.where('host_keys')}: {base / name}: {error}")
    certificates, faults, remarks = open_host_certificates(config.host_certificates, base, [key.public_data for key in host_keys])
    problems += (f"{loaded.where('host_certificates')}: {fault}" for fault in faults)
    for remark in remarks:
        _log.warning("host_certificates: %s", remark)
    pools: dict[str, Pool | IdentityPools] = {}
    limits = config.limits
    line: Line[Visit] = Line(limits.leases_per_identity, limits.leases_per_repository, limits.waiting)
    for name, upstream in config.upstreams.items():
        try:
            pools[name] = open_pool(name, upstream, loaded.in_upstream(name), base, observer, colleagues, line)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    shared = open_shared(config.shared, config.limits, config.keys, base, observer)
    keys = open_keys(config.keys, base, observer, shared.answers if shared is not None else None)
    access = open_access(config.access, base, observer, upstreams=config.upstreams, folded=config.folds)
    return Server(
        config,
        host_keys,
        keys,
        open_certificates(config.certificates, base, config.user, keys.conditions),
        open_policy(config.policy, access.groups),
        access,
        open_routes(config.routes, base, config.upstreams, observer, ignoring=config.ignoring),
        pools,
        observer,
        shared,
        open_store(config.packs, base),
        begins,
        certificates,
    )
