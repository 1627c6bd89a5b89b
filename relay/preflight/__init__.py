"""Reads the configuration and checks everything that `relay serve` would use; reports all problems at once, one line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from relay.access.open import open_access, review_access
from relay.config import HttpAccessSettings
from relay.config.load import Loaded, read_config
from relay.config.toml import Places, Problems, below
from relay.errors import ConfigError
from relay.keys.open import identities, left_out, no_keys_warning, open_certificates, open_keys, unread_files
from relay.packs.review import review_packs
from relay.preflight.files import check_audit, check_operators_socket, check_places
from relay.preflight.host_keys import check_host_keys, host_certificates
from relay.preflight.limits import check_limits, exempt_remarks
from relay.preflight.listening import check_listening
from relay.preflight.placeholders import with_placeholders
from relay.preflight.policy import check_policy, policy_remarks
from relay.preflight.texts import check_texts
from relay.preflight.tracing import check_tracing
from relay.preflight.upstreams import check_upstreams
from relay.routes.open import open_routes, review_routes
from relay.shared import open_shared
from relay.ssh import asyncssh_pins
from relay.text import plain


def check(loaded: Loaded) -> list[str]:
    """Checks everything that the configuration refers to: keys, access, routes, host keys, addresses, permissions. One line a problem."""
    return _check(loaded, Problems(loaded.places or Places(loaded.path)))


def load_all(path: Path, *, operators_socket: bool = True) -> Loaded:
    """`load_config` and `check` together: a configuration that `relay serve` can start with; the demo opens no socket for operators.

    Raises ConfigError with the problems of both, without those that only follow from another problem.
    """
    loaded, problems = read_config(path)
    if lines := _check(loaded, problems, operators_socket):
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
    warnings += policy_remarks(loaded, known)
    warnings += (f"{loaded.where('host_certificates')}: {text}" for text in host_certificates(loaded)[2])
    warnings += (f"{loaded.where('limits.exempt')}: {text}" for text in exempt_remarks(config))
    warnings += (f"{loaded.where(below('packs', field))}: {text}" for field, text in review_packs(config.packs, base))
    if remark := asyncssh_pins.look().remark:
        warnings.append(remark)
    return [plain(line) for line in warnings]


def _check(loaded: Loaded, problems: Problems, operators_socket: bool = True) -> list[str]:
    if fault := asyncssh_pins.look().fault:
        problems.take([fault])
    check_listening(loaded.config, problems)
    check_texts(loaded.config, problems)
    check_host_keys(loaded, problems)
    check_audit(loaded, problems)
    if operators_socket:
        check_operators_socket(loaded, problems)
    check_limits(loaded.config, problems)
    check_places(loaded, problems)
    check_upstreams(loaded, problems)
    check_tracing(loaded, problems)
    config, base = loaded.config, loaded.base
    _take("shared", config.shared, lambda: open_shared(config.shared, config.limits, config.keys, base), problems)
    _take("keys", config.keys, lambda: open_keys(config.keys, base), problems)
    _take("certificates", config.certificates, lambda: open_certificates(config.certificates, base, config.user), problems)
    _take("access", config.access, lambda: open_access(config.access, base, folded=config.folds), problems)
    _take("policy", config.policy, lambda: check_policy(loaded), problems)
    _take("routes", config.routes, lambda: open_routes(config.routes, base, config.upstreams, ignoring=config.ignoring), problems)
    return with_placeholders(loaded, problems.lines)


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
