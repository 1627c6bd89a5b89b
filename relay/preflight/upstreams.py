"""[upstreams]: addresses, keys and certificates for the git hosts."""

from __future__ import annotations

import re

from relay.address import format_address, is_example, parse_address
from relay.config import UpstreamSettings, UserCertificateSettings
from relay.config.load import Loaded
from relay.config.toml import Problems, below
from relay.keys import identity_fault
from relay.preflight.private_key import private_key
from relay.text import quoted
from relay.upstream.hostkeys import read_host_keys
from relay.upstream.user_certificate import template_fault

_UPSTREAM_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # the name is a label of metrics


def check_upstreams(loaded: Loaded, problems: Problems) -> None:
    """At least one, and each of them."""
    if not loaded.config.upstreams:
        problems.add("upstreams", "is empty, must have at least one git host: [upstreams.NAME]")
    for name, upstream in loaded.config.upstreams.items():
        _check_upstream(loaded, below("upstreams", name), name, upstream, problems)


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
        private_key(loaded, f"{key}.private_key", upstream.private_key, problems)
    else:
        _check_user_certificate(loaded, f"{key}.user_certificate", upstream.user_certificate, problems)
    if not any(problems.about(f"{key}.{field}") for field in ("host_keys", "known_hosts", "addresses")):
        problems.take(read_host_keys(upstream, lambda field: problems.where(f"{key}.{field}"), loaded.base)[1])


def _check_user_certificate(loaded: Loaded, key: str, settings: UserCertificateSettings, problems: Problems) -> None:
    if private_key(loaded, f"{key}.ca_key", settings.ca_key, problems) is not None:
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
