"""`relay check --connect`: asks keys, access and routes one harmless question each, and logs in to every address of every git host."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import asyncssh

from relay.access import Access
from relay.access.open import open_access
from relay.address import format_address, parse_address
from relay.config import UpstreamSettings
from relay.config.load import Loaded
from relay.errors import Denied, Malformed, Unavailable, Undecided
from relay.git.command import canonical
from relay.keys import Keys
from relay.keys.open import open_keys
from relay.model import Command, Identity
from relay.process import native_parts
from relay.routes import Routes
from relay.routes.open import open_routes, review_routes
from relay.shared import open_shared
from relay.text import quoted
from relay.upstream.case_probe import ignores_case
from relay.upstream.hostkeys import read_host_keys
from relay.upstream.libssh2 import Connection, Login, loaded_library
from relay.upstream.open import read_login

PROBE_NAME = "relay-check"  # identity and repository of the questions; it need not exist, any answer is fine


def sealer() -> str:
    """What encrypts and decrypts clients' packets by AES-GCM, in the words of the supervisor's log."""
    return native_parts.slow() or "relay_gcm"


async def connect_all(loaded: Loaded, say: Callable[[str], None], repositories: Sequence[str] = ()) -> list[str]:
    """Calls `say` with a line for each backend and address that works; returns a line for each that does not.

    `repositories` are names of existing ones, used to find out whether their git hosts ignore case.
    """
    known: dict[str, tuple[str, int, Login]] = {}
    say(f"libssh2 {loaded_library()}; {sealer()}")
    problems = await _ask_all(loaded, say)
    for name, upstream in loaded.config.upstreams.items():
        where = loaded.in_upstream(name)
        pinned, faults = read_host_keys(upstream, where, loaded.base)
        problems += faults
        login = read_login(upstream, where, loaded.base, pinned, problems)
        if login is None:
            continue
        who = login.user
        if (certificate := upstream.user_certificate) is not None:
            who += f" with a certificate for {certificate.check_identity}"
        for address in upstream.addresses:
            host, port = parse_address(address)
            started = time.monotonic()
            try:
                async with asyncio.timeout(upstream.connect_seconds):
                    connection = await Connection.dial(host, port, login, upstream.keepalive_seconds)
            except Unavailable as error:
                problems.append(f"{where('addresses')}: {error}{_cure(error, upstream, login.user, loaded)}")
            except TimeoutError:
                problems.append(f"{where('addresses')}: {format_address(host, port)}: no login within {upstream.connect_seconds:g} s")
            else:
                connection.close()
                known.setdefault(name, (host, port, login))
                say(f"upstream {name}: logged in to {address} as {who} in {(time.monotonic() - started) * 1000:.0f} ms")
    await _compare_case(loaded, repositories, known, say, problems)
    return problems


async def _compare_case(
    loaded: Loaded,
    repositories: Sequence[str],
    known: Mapping[str, tuple[str, int, Login]],
    say: Callable[[str], None],
    problems: list[str],
) -> None:
    """Compares `ignore_case` of each git host that the relay could log in to with its behaviour, by an existing repository."""
    config, base = loaded.config, loaded.base
    look = review_routes(config.routes, base, config.upstreams)
    names = [*repositories, *(pattern for pattern in (look.patterns if look is not None else ()) if "*" not in pattern)]
    routes = open_routes(config.routes, base, config.upstreams, ignoring=config.ignoring)
    tested: set[str] = set()
    for repository in names:
        try:
            command = Command(service="git-receive-pack", repository=canonical(repository))
            route = await routes.find(command, Identity(name=PROBE_NAME, fingerprint=""))
        except (Denied, Malformed, Undecided) as error:
            if repository in repositories:
                problems.append(f"{loaded.where('routes')}: {quoted(repository)}: {error}")
            continue
        name = route.upstream
        if name in tested or name not in known:
            continue
        host, port, login = known[name]
        upstream = config.upstreams[name]
        dial = partial(Connection.dial, host, port, login, upstream.keepalive_seconds)
        try:
            async with asyncio.timeout(upstream.connect_seconds):
                ignores = await ignores_case(dial, route.path)
        except (TimeoutError, Unavailable) as error:
            say(f"upstream {name}: whether it ignores case is not known: {error or 'no answer in time'}")
            continue
        if ignores is None:
            continue
        tested.add(name)
        if ignores and not upstream.ignore_case:
            why = f"{quoted(route.path)} is found there in another case too, so whoever spells it so passes the rules about it"
            problems.append(f"{loaded.in_upstream(name)('ignore_case')}: is false, must be true: {why}")
        else:
            say(f"upstream {name}: {'ignores' if ignores else 'does not ignore'} case")
    await routes.close()
    for name in known:
        if name not in tested:
            say(f"upstream {name}: whether it ignores case is not known; name a repository that is there: --repository NAME")


def _cure(error: Unavailable, upstream: UpstreamSettings, user: str, loaded: Loaded) -> str:
    """A remedy to append to the error, for the operator of the git host; empty when the error itself suffices."""
    if error.reason == "host_key":
        return "; pin what is offered only if the git host itself says the same: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"
    if error.reason != "auth":
        return ""
    if (certificate := upstream.user_certificate) is not None:
        ca = shlex.quote(str(loaded.resolve(certificate.ca_key)))
        return f"; TrustedUserCAKeys there must list what this prints: ssh-keygen -y -f {ca}; and one of its principals must be allowed"
    key = shlex.quote(str(loaded.resolve(upstream.private_key)))
    return f"; authorized_keys of {user} there must have what this prints: ssh-keygen -y -f {key}"


async def _ask_all(loaded: Loaded, say: Callable[[str], None]) -> list[str]:
    """Asks the backends as the relay does, about a new key that has no owner."""
    config, base = loaded.config, loaded.base
    key = asyncssh.generate_private_key("ssh-ed25519")
    identity = Identity(name=PROBE_NAME, fingerprint=key.get_fingerprint())
    command = Command(service="git-upload-pack", repository=PROBE_NAME)
    keys, access = open_keys(config.keys, base), open_access(config.access, base, upstreams=config.upstreams, folded=config.folds)
    routes = open_routes(config.routes, base, config.upstreams, ignoring=config.ignoring)
    line = " ".join(key.export_public_key("openssh").decode().split()[:2])
    questions: list[tuple[str, Keys | Access | Routes, Awaitable[object]]] = [
        ("keys", keys, keys.owner(identity.fingerprint, line)),
        ("access", access, access.check(identity, command, "127.0.0.1", PROBE_NAME)),
        ("routes", routes, routes.find(command, identity)),
    ]
    problems = []
    for question, backend, answer in questions:
        started = time.monotonic()
        try:
            decision = "yes" if await answer is not None else "no"
        except Denied:
            decision = "no"
        except Undecided as error:
            problems.append(f"{loaded.where(question)}: {error.why}: {error}")
            continue
        finally:
            await backend.close()
        if question == "keys" and decision == "yes":
            problems.append(f"{loaded.where('keys')}: a key that was made just now has an owner, must be nobody's")
            continue
        say(f"{question} {backend.source}: answered in {(time.monotonic() - started) * 1000:.0f} ms")
    if (shared := open_shared(config.shared, config.limits, config.keys, base)) is not None:
        started = time.monotonic()
        try:
            await shared.check()
        except Undecided as error:
            problems.append(f"{loaded.where('shared')}: {error.why}: {error}")
        else:
            say(f"shared redis: answered in {(time.monotonic() - started) * 1000:.0f} ms")
    return problems
