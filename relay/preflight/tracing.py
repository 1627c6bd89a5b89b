"""[tracing]: the collector's URL and secrets, and whether OpenTelemetry's SDK is installed."""

from __future__ import annotations

import ssl
from importlib.util import find_spec

from relay.address import url_fault
from relay.backends.token import Token
from relay.config.load import Loaded
from relay.config.toml import Problems

TRACING_NEEDS = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")  # parents first


def check_tracing(loaded: Loaded, problems: Problems) -> None:
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
