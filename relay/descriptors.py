"""The process's limit of file descriptors: raised as far as it may be, and divided, so that clients never take those of git hosts.

A listener that finds no descriptor left cannot even refuse: libuv closes such connections without a word to anybody. So the limit
of connections is kept below it.
"""

from __future__ import annotations

import logging
import resource

import msgspec

from relay.config import Config, Limits, Upstream
from relay.farewell import FAREWELLS_MOST

# Clients that are turned away; listeners, log, the audit, the loop, programs and backends that are asked for keys, access or routes.
OWN_DESCRIPTORS = FAREWELLS_MOST + 64

_log = logging.getLogger("relay.descriptors")


def raise_limit() -> int:
    """Takes the soft limit to the hard one (getrlimit(2)); what it is then."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def connections_most(upstream: Upstream) -> int:
    """To all addresses and of all identities together, a worker."""
    certificate = upstream.user_certificate
    each = upstream.connections_max if certificate is None else certificate.connections_max * certificate.identities_max
    return each * len(upstream.addresses)


def fitted(config: Config, limit: int) -> Config:
    """`config` with as many client connections as are left by all connections to git hosts; at least one. Says so when those are fewer."""
    wanted = config.limits.connections
    git_hosts = sum(connections_most(upstream) for upstream in config.upstreams.values())
    room = max(1, limit - OWN_DESCRIPTORS - min(git_hosts, limit // 2))
    if room >= wanted:
        return config
    # the default is what nobody asked for: only somebody who did is warned
    level = logging.INFO if wanted == Limits().connections else logging.WARNING
    _log.log(level, "%d connections at most, not %d: no more than %d file descriptors may be open", room, wanted, limit)
    return msgspec.structs.replace(config, limits=msgspec.structs.replace(config.limits, connections=room))
