"""`relay check --explain IDENTITY SERVICE REPOSITORY`: what the relay would answer, and which key, rule, route and upstream decide.

Keys, access and routes are asked as a session asks them; nothing is asked of a git host.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from relay.access import check
from relay.access.open import explain_access, open_access
from relay.backends.decision import Deciding
from relay.config.load import Loaded
from relay.errors import ConfigError, Denied, Malformed, NotGit, Undecided
from relay.git.command import parse
from relay.keys import identity_fault
from relay.keys.open import explain_policy, keys_of, open_policy
from relay.model import Command, Grant, Identity, Route
from relay.routes.open import explain_routes, open_routes
from relay.text import client_text, counted, quoted

ADDRESS, SESSION = "127.0.0.1", "relay-check"  # of the questions
SHOWN_KEYS = 5


async def explain(loaded: Loaded, who: str, service: str, repository: str) -> int:
    """Prints one line for each thing that decides. Returns 0 for yes and 1 for no; raises ConfigError when that cannot be found out."""
    if (fault := identity_fault(who)) is not None:
        raise ConfigError([f"--explain: the identity {fault}"])
    command = _command(loaded, service, repository)
    identity = Identity(name=who, fingerprint="SHA256:-")
    _print("command", f"{command.service} of {command.repository}, which needs {command.needs}")
    for line in _keys(loaded, who):
        _print("keys", line)
    config, base = loaded.config, loaded.base
    access = open_access(config.access, base, upstreams=config.upstreams, folded=config.folds)
    try:
        for line in await explain_policy(open_policy(config.policy, access.groups), config.keys, base, who):
            _print("policy", line)
    except Undecided as error:
        raise ConfigError([f"--explain: {error.why}: {error}"]) from None
    routes = open_routes(config.routes, base, config.upstreams, ignoring=config.ignoring)
    asked = [command]

    def became(now: Command, moved_from: str) -> None:
        asked.append(now)
        if moved_from and not any(one.repository == now.repository for one in asked[:-1]):
            _print("moved", f"{moved_from} is {now.repository} now: access and routes are asked about that name")

    deciding = Deciding(
        config.ignoring,
        config.folds,
        lambda named: check(access, identity, named, ADDRESS, SESSION),
        lambda named: routes.find(named, identity),
        became,
    )
    try:
        decision = await deciding.decide(command)
    except Denied as error:
        _explain_backends(loaded, who, asked[-1])
        _print("answer", f"no: {error}; the client reads: {error.message}")
        return 1
    except Undecided as error:
        raise ConfigError([f"--explain: {error.why}: {error}"]) from None
    finally:
        await access.close()
        await routes.close()
    _explain_backends(loaded, who, decision.command)
    return _answer(loaded, who, decision.command, decision.grant, decision.route)


def _command(loaded: Loaded, service: str, repository: str) -> Command:
    """As a client's command line would be parsed; an LFS service has its operation behind it: "git-lfs-authenticate upload"."""
    name, _, operation = service.partition(" ")
    try:
        return parse(f"{name} {shlex.quote(repository)} {operation}".rstrip(), None, loaded.config.names.strip)
    except (Malformed, NotGit) as error:
        raise ConfigError([f"--explain: {error.message.removeprefix('relay: ')}"]) from None


def _keys(loaded: Loaded, who: str) -> Iterator[str]:
    found = keys_of(loaded.config.keys, loaded.base, who)
    if found is None:
        yield f"{loaded.where('keys')}: this backend answers for a key, and lists none"
    elif not found:
        yield f"{loaded.where('keys')}: {quoted(who)} has no key"
    else:
        more = f", and {len(found) - SHOWN_KEYS} more" if len(found) > SHOWN_KEYS else ""
        yield f"{loaded.where('keys')}: {quoted(who)} has {counted(len(found), 'key')}: {', '.join(found[:SHOWN_KEYS])}{more}"
    if loaded.config.certificates.ca_keys:
        yield f"{loaded.where('certificates')}: a certificate of one of the CAs may name {quoted(who)}, too"


def _explain_backends(loaded: Loaded, who: str, command: Command) -> None:
    config, base = loaded.config, loaded.base
    for line in explain_access(config.access, base, who, command, folded=config.folds) or [f"{loaded.where('access')}: was asked"]:
        _print("access", line)
    about = explain_routes(config.routes, base, who, command, config.upstreams, config.ignoring)
    for line in about or [f"{loaded.where('routes')}: was asked"]:
        _print("routes", line)


def _answer(loaded: Loaded, who: str, command: Command, grant: Grant, route: Route) -> int:
    for name in route.upstreams(command.needs):
        upstream = loaded.config.upstreams[name]
        by = "a certificate" if upstream.user_certificate is not None else upstream.private_key
        where = loaded.in_upstream(name)("addresses")
        _print("upstream", f"{where}: {name}, {', '.join(upstream.addresses)}: {command.line(route.path)} as {upstream.user} with {by}")
    for text in dict.fromkeys((loaded.config.notice, route.notice or "")):
        if text and not command.service.startswith("git-lfs-"):
            _print("notice", f"the client reads: relay: notice: {client_text(text)}")
    if command.needs == "write" and route.read_only is not None:
        _print("answer", f"no: the route is read-only: {route.read_only}")
        return 1
    if refused := [f"{', '.join(rule.refs)} ({', '.join(rule.changes)})" for rule in grant.refs if not rule.write]:
        _print("refs", f"refused unless a rule before allows them: {'; '.join(refused)}")
    if keys_of(loaded.config.keys, loaded.base, who) == [] and not loaded.config.certificates.ca_keys:
        _print("answer", f"no: {quoted(who)} has no key to log in with; with one it might {command.needs} {command.repository}")
        return 1
    _print("answer", f"yes: {quoted(who)} may {command.needs} {command.repository}")
    return 0


def _print(what: str, line: str) -> None:
    print(f"{what:<9}{line}")  # noqa: T201 - the command's output
