"""Reads the configuration and checks everything that `relay serve` would use; reports all problems at once, one line each."""

from __future__ import annotations

import os
import re
import ssl
import stat
from collections.abc import Callable, Collection, Iterator
from importlib.util import find_spec
from pathlib import Path

import asyncssh
import msgspec

from relay.access.open import access_groups, open_access, review_access
from relay.address import SYSTEMD, format_address, is_example, parse_address, parse_network, url_fault
from relay.backends.token import Token
from relay.config import (
    Config,
    FileAccessSettings,
    FileKeysSettings,
    FileRoutesSettings,
    HttpAccessSettings,
    UpstreamSettings,
    UserCertificateSettings,
)
from relay.config.load import Loaded, read_config
from relay.config.placeholders import placeholders
from relay.config.toml import Places, Problems, below
from relay.config.trust import path_fault
from relay.errors import ConfigError
from relay.git.command import strip_fault
from relay.keys import HostCertificate, Membership, identity_fault
from relay.keys.open import (
    identities,
    left_out,
    no_keys_warning,
    open_certificates,
    open_host_certificates,
    open_keys,
    open_policy,
    review_policy,
    unread_files,
)
from relay.openssh.private_key import read_private_key
from relay.openssh.public_key import PublicKey
from relay.packs.review import review_packs
from relay.routes.open import open_routes, review_routes
from relay.shared import open_shared
from relay.ssh import asyncssh_pins
from relay.text import client_text_fault, has_control, plain, quoted
from relay.upstream.hostkeys import read_host_keys
from relay.upstream.user_certificate import template_fault

HOST_RSA_BITS = {"modern": 3072, "compatible": 2048}  # by algorithms.profile
TRACING_NEEDS = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")  # parents first
SOCKET_PATH_BYTES = 107  # sun_path of unix(7) without its NUL

_UPSTREAM_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # the name is a label of metrics


def check(loaded: Loaded) -> list[str]:
    """Checks everything that the configuration refers to: keys, access, routes, host keys, addresses, permissions. One line a problem."""
    return _check(loaded, Problems(loaded.places or Places(loaded.path)))


def load_all(path: Path) -> Loaded:
    """`load_config` and `check` together: a configuration that `relay serve` can start with.

    Raises ConfigError with the problems of both, without those that only follow from another problem.
    """
    loaded, problems = read_config(path)
    if lines := _check(loaded, problems):
        raise ConfigError(lines)
    return loaded


def remarks(loaded: Loaded) -> list[str]:
    """Warnings of `relay check`, one line each: settings that are valid but probably not intended."""
    config, base = loaded.config, loaded.base
    warnings = [*unread_files(config.keys, base), *(f"{line}; this line is left out" for line in left_out(config.keys, base))]
    known = None if config.certificates.ca_keys else identities(config.keys, base)  # a CA may certify any identity
    if not config.certificates.ca_keys and (none := no_keys_warning(config.keys, base)) is not None:
        warnings.append(none)
        known = None  # further warnings would only repeat this one
    routes = review_routes(config.routes, base, config.upstreams)
    routed, moved = (None, ()) if routes is None else (routes.patterns, routes.moved)
    warnings += review_access(config.access, base, known, routed, moved)
    if routes is not None:
        warnings += routes.remarks
        if not isinstance(config.access, HttpAccessSettings):  # which may answer with a route itself
            warnings += (f"{loaded.where(below('upstreams', name))}: no route leads there" for name in routes.unused)
    warnings += _policy_remarks(loaded, known)
    warnings += (f"{loaded.where('host_certificates')}: {text}" for text in _host_certificates(loaded)[2])
    warnings += (f"{loaded.where('limits.exempt')}: {text}" for text in _exempt_remarks(config))
    warnings += (f"{loaded.where(below('packs', field))}: {text}" for field, text in review_packs(config.packs, base))
    if remark := asyncssh_pins.look().remark:
        warnings.append(remark)
    return [plain(line) for line in warnings]


def _exempt_remarks(config: Config) -> Iterator[str]:
    """Networks that exempt everybody, or nobody whom another one does not exempt already."""
    networks = list(map(parse_network, config.limits.exempt))
    for number, (text, network) in enumerate(zip(config.limits.exempt, networks, strict=True)):
        others = [other for at, other in enumerate(networks) if at != number and other.version == network.version]
        if network.prefixlen == 0:
            yield f"{quoted(text)} is everybody, so no limit by source and no penalty is left"
        elif (wider := next((one for one in others if one != network and one.supernet_of(network)), None)) is not None:  # type: ignore[arg-type]
            yield f"{quoted(text)} has no effect beside {wider}"


def _policy_remarks(loaded: Loaded, known: Collection[str] | None) -> Iterator[str]:
    config, base = loaded.config, loaded.base
    policy = open_policy(config.policy, _no_groups)
    found = review_policy(policy, config.keys, base, known, access_groups(config.access, base))
    return (f"{loaded.where(key)}: {text}" for key, text in found)


def _check(loaded: Loaded, problems: Problems) -> list[str]:
    if fault := asyncssh_pins.look().fault:
        problems.take([fault])
    _check_listening(loaded.config, problems)
    _check_host_keys(loaded, problems)
    _check_files(loaded, problems)
    _check_limits(loaded.config, problems)
    _check_places(loaded, problems)
    if not loaded.config.upstreams:
        problems.add("upstreams", "is empty, must have at least one git host: [upstreams.NAME]")
    for name, upstream in loaded.config.upstreams.items():
        _check_upstream(loaded, below("upstreams", name), name, upstream, problems)
    _check_tracing(loaded, problems)
    config, base = loaded.config, loaded.base
    _take("shared", config.shared, lambda: open_shared(config.shared, config.limits, config.keys, base), problems)
    _take("keys", config.keys, lambda: open_keys(config.keys, base), problems)
    _take("certificates", config.certificates, lambda: open_certificates(config.certificates, base, config.user), problems)
    _take("access", config.access, lambda: open_access(config.access, base, folded=config.folds), problems)
    _take("policy", config.policy, lambda: _check_policy(loaded), problems)
    _take("routes", config.routes, lambda: open_routes(config.routes, base, config.upstreams, ignoring=config.ignoring), problems)
    return _with_placeholders(loaded, problems.lines)


def _with_placeholders(loaded: Loaded, lines: list[str]) -> list[str]:
    """The problems, with one line for each place that an example left to its reader, instead of what only follows from that."""
    left = [plain(line) for line in placeholders(_own_files(loaded))]
    places = tuple(line.partition(": ")[0] + ":" for line in left)
    return left + [line for line in lines if not line.startswith(places)] if left else lines


def _own_files(loaded: Loaded) -> Iterator[Path]:
    """The files that a site writes by hand."""
    config = loaded.config
    yield loaded.path
    for upstream in config.upstreams.values():
        if upstream.known_hosts is not None:
            yield loaded.resolve(upstream.known_hosts)
    if isinstance(config.keys, FileKeysSettings):
        yield loaded.resolve(config.keys.path)
    if isinstance(config.access, FileAccessSettings):
        yield loaded.resolve(config.access.path)
    if isinstance(config.routes, FileRoutesSettings):
        yield loaded.resolve(config.routes.path)


def _check_policy(loaded: Loaded) -> None:
    """Raises ConfigError with the problems of [policy], and with those groups that its rules name and the file of access does not have."""
    config, base = loaded.config, loaded.base
    groups = access_groups(config.access, base)
    open_policy(config.policy, None if isinstance(config.access, HttpAccessSettings) else _no_groups)
    faults = [
        f"policy.rule#{number}.{field}: {quoted(who)} is no group of {base / config.access.path}"
        for number, rule in enumerate(config.policy.rule, 1)
        for field, names in (("who", rule.who), ("exempt", rule.exempt))
        for who in names
        if isinstance(config.access, FileAccessSettings) and groups is not None and who.startswith("@") and who[1:] not in groups
    ]
    if faults:
        raise ConfigError(faults)


async def _no_groups(identity: str) -> Membership:
    return Membership((), ())


def _check_listening(config: Config, problems: Problems) -> None:
    """The addresses that clients and operators connect to, and the PROXY protocol."""
    taken: dict[tuple[str, int], str] = {}
    for text in config.listen:
        if text != SYSTEMD:
            _check_listen("listen", text, f", or {quoted(SYSTEMD)}", taken, problems)
    if len(set(config.listen)) < len(config.listen):
        problems.add("listen", "names an address twice, must name each once")
    _check_listen("admin.listen", config.admin.listen, "", taken, problems)
    if re.search(r"[{}]", config.greeting.replace("{identity}", "")):
        problems.add("greeting", "has braces besides {identity}, which is the only placeholder that is allowed")
    if has_control(config.banner.replace("\n", "").replace("\t", "")):
        problems.add("banner", "has control characters besides tabs and line ends, must have none")
    if config.notice and (fault := client_text_fault(config.notice)) is not None:
        problems.add("notice", fault)
    for text in config.names.strip:
        if (fault := strip_fault(text)) is not None:
            problems.add("names.strip", f"{quoted(text)} {fault}")
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


def _check_host_keys(loaded: Loaded, problems: Problems) -> None:
    """Each key readable and long enough; at most one of each type, because clients choose host keys by type."""
    profile = loaded.config.algorithms.profile
    first: dict[str, str] = {}
    names = loaded.config.host_keys
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            problems.add("host_keys", f"{quoted(name)} is listed twice, must be listed once")
        if (key := _private_key(loaded, "host_keys", name, problems)) is None:
            continue
        public = PublicKey(key.get_algorithm(), key.public_data, "")
        if public.type == "ssh-rsa" and public.bits < (least := HOST_RSA_BITS[profile]):
            problems.add("host_keys", f"{name} is an RSA key of {public.bits} bits, must have {least} with profile = {quoted(profile)}")
        if (other := first.setdefault(public.type, name)) != name:
            problems.add("host_keys", f"{name} is a second {public.type} key beside {other}, allowed is one of each type")
    for fault in _host_certificates(loaded)[1]:
        problems.add("host_certificates", fault)


def _host_certificates(loaded: Loaded) -> tuple[list[HostCertificate], list[str], list[str]]:
    """Also the warnings; nothing while a host key cannot be read, which is a problem of its own."""
    blobs = []
    for name in loaded.config.host_keys:
        try:
            blobs.append(read_private_key(loaded.resolve(name)).public_data)
        except ValueError:
            return [], [], []
    return open_host_certificates(loaded.config.host_certificates, loaded.base, blobs)


def _private_key(loaded: Loaded, key: str, name: str, problems: Problems) -> asyncssh.SSHKey | None:
    if "PRIVATE KEY" in name:  # must not appear in an error as the name of a missing file
        problems.add(key, "is a private key itself, must be the path of the file that holds it")
        return None
    try:
        return read_private_key(loaded.resolve(name))
    except ValueError as error:
        problems.add(key, str(error))
        return None


def _check_upstream(loaded: Loaded, key: str, name: str, upstream: UpstreamSettings, problems: Problems) -> None:
    if not _UPSTREAM_NAME.fullmatch(name):
        problems.add(key, "has a name that is not allowed, must be 1 to 64 letters, digits, dots, hyphens or underscores")
    seen: set[tuple[str, int]] = set()
    for text in upstream.addresses:
        try:
            address = parse_address(text)
        except ValueError as error:
            problems.add(f"{key}.addresses", f"{quoted(text)} {error}")
            continue
        if is_example(address[0]):
            problems.add(f"{key}.addresses", f"{quoted(text)} is an example, must be the host:port of your git host")
        if address in seen:
            problems.add(f"{key}.addresses", f"{quoted(format_address(*address))} is listed twice, must be listed once")
        seen.add(address)
    if upstream.idle_connections > upstream.connections_max:
        problems.add(
            f"{key}.idle_connections", f"is {upstream.idle_connections}, must be at most connections_max ({upstream.connections_max})"
        )
    if upstream.user_certificate is None:
        _private_key(loaded, f"{key}.private_key", upstream.private_key, problems)
    else:
        _check_user_certificate(loaded, f"{key}.user_certificate", upstream.user_certificate, problems)
    if not any(problems.about(f"{key}.{field}") for field in ("host_keys", "known_hosts", "addresses")):
        problems.take(read_host_keys(upstream, lambda field: problems.where(f"{key}.{field}"), loaded.base)[1])


def _check_user_certificate(loaded: Loaded, key: str, settings: UserCertificateSettings, problems: Problems) -> None:
    if _private_key(loaded, f"{key}.ca_key", settings.ca_key, problems) is not None:
        for name in loaded.config.host_keys:
            if loaded.resolve(name).resolve() == loaded.resolve(settings.ca_key).resolve():
                problems.add(f"{key}.ca_key", f"{settings.ca_key} is a host key too, must be a key of its own")
    for field in ("key_id", "user"):
        if (fault := template_fault(getattr(settings, field))) is not None:
            problems.add(f"{key}.{field}", fault)
    for template in settings.principals:
        if (fault := template_fault(template)) is not None:
            problems.add(f"{key}.principals", f"{quoted(template)} {fault}")
    if (fault := identity_fault(settings.check_identity)) is not None:
        problems.add(f"{key}.check_identity", f"{quoted(settings.check_identity)} {fault}")


def _check_files(loaded: Loaded, problems: Problems) -> None:
    """The files that the relay writes: audit and operators' socket."""
    if (audit := loaded.config.log.audit) != "-":
        path = loaded.resolve(audit)
        if path.is_dir():
            problems.add("log.audit", f'{path} is a folder, must be a file or "-" for stdout')
        elif path.exists() and not os.access(path, os.W_OK):
            problems.add("log.audit", f'{path} may not be written, must be a writable file or "-" for stdout')
        elif not path.exists():
            _check_folder("log.audit", path, problems)
    socket = loaded.resolve(loaded.config.admin.sessions_socket)
    if len(os.fsencode(socket)) > SOCKET_PATH_BYTES:
        problems.add("admin.sessions_socket", f"{socket} is longer than the {SOCKET_PATH_BYTES} bytes that a socket's path may have")
    elif socket.exists() and not stat.S_ISSOCK(socket.stat().st_mode):
        problems.add("admin.sessions_socket", f"{socket} is there and is no socket, must be a path that is free")
    else:
        _check_folder("admin.sessions_socket", socket, problems)


def _check_tracing(loaded: Loaded, problems: Problems) -> None:
    settings = loaded.config.tracing
    if settings is None:
        return
    if not all(find_spec(name) for name in TRACING_NEEDS):
        problems.add("tracing", "needs OpenTelemetry's SDK, which is not installed: pip install 'git-ssh-relay[tracing]'")
    if (fault := url_fault(settings.url, settings.plain_http)) is not None:
        problems.add("tracing.url", fault)
    if settings.token_file is not None:
        for line in Token(loaded.resolve(settings.token_file), "tracing.token_file").problems:
            problems.add("tracing.token_file", line.partition(": ")[2])
    if settings.ca_file is not None:
        try:
            ssl.create_default_context(cafile=loaded.resolve(settings.ca_file))
        except OSError as error:
            why = error.strerror or error
            problems.add("tracing.ca_file", f"{loaded.resolve(settings.ca_file)} cannot be read ({why}), must be certificates in PEM")


def _check_folder(key: str, path: Path, problems: Problems) -> None:
    folder = path.parent
    if not folder.is_dir():
        problems.add(key, f"{path} lies in a folder that is missing, must lie in a folder that the relay may write to")
    elif not os.access(folder, os.W_OK | os.X_OK):
        problems.add(key, f"{path} lies in a folder that may not be written, must lie in a folder that the relay may write to")


def _check_places(loaded: Loaded, problems: Problems) -> None:
    """Other users must not be able to write or replace the configuration and the files of rules."""
    config = loaded.config
    rules = [
        loaded.resolve(part.path) for part in (config.access, config.routes) if isinstance(part, FileAccessSettings | FileRoutesSettings)
    ]
    faults: dict[str, None] = {}
    for path in (loaded.path, *rules):
        try:
            fault = path_fault(path, private_group=True)
        except OSError:
            continue  # reported where the file is read
        if fault is not None and not (fault.startswith(f"{path} may be written") and path.stat().st_mode & stat.S_IWOTH):
            faults[fault] = None  # a world-writable file is reported where it is read
    problems.take(f"{loaded.path}: {fault}" for fault in faults)


def _check_limits(config: Config, problems: Problems) -> None:
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


def _take(key: str, settings: msgspec.Struct, start: Callable[[], object], problems: Problems) -> None:
    """Opens a backend and takes over its problems; skipped when its settings have problems already."""
    if problems.about(key):
        return
    try:
        start()
    except ConfigError as error:
        # a problem begins with a setting's name, or with a file's: routes.toml is not a setting of [routes]
        names = tuple(f"{key}.{field}{end}" for field in settings.__struct_fields__ for end in ".:#")
        for line in error.problems:
            name, colon, text = line.partition(": ")
            problems.take([problems.where(name) + colon + text if line.startswith(names) else line])
