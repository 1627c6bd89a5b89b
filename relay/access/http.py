"""An HTTP authority answers what an identity may do: POST /access returns read or write, and the route if the authority knows it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import msgspec

from relay import config
from relay.backends.http import HttpClient
from relay.errors import Denied, Undecided
from relay.git.globs import ref_glob_fault
from relay.model import AccessLevel, Command, Grant, Identity, Operation, RefRule, Service, route_faults
from relay.text import quoted


class Ask(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The question whether this identity may run this command; `needs` is the access that the command needs."""

    identity: str
    key: str  # SHA256:..., of the key that proved the identity
    service: Service
    repository: str  # canonical: no leading or trailing slash, no .git suffix
    needs: AccessLevel
    client_address: str
    session_id: str
    operation: Operation | None = None  # of the LFS services


class HttpAccess:
    """One HTTP request a question."""

    source = "http"

    def __init__(self, settings: config.HttpAccessSettings, base: Path, upstreams: Collection[str] | None = None) -> None:
        self._client = HttpClient("access", settings, base)
        self._upstreams = frozenset(upstreams) if upstreams is not None else None

    async def check(self, identity: Identity, command: Command, client_address: str, session_id: str) -> Grant:
        ask = Ask(
            identity=identity.name,
            key=identity.fingerprint,
            service=command.service,
            repository=command.repository,
            needs=command.needs,
            operation=command.operation,
            client_address=client_address,
            session_id=session_id,
        )
        grant = await self._client.ask(Grant, "POST", "/access", body=ask, explained=True)
        if command.needs == "write" and grant.access != "write":
            raise Denied(f"{self._client.name}: {identity.name} may only read {command.repository}")
        if grant.route is not None and (faults := route_faults(grant.route, self._upstreams)):
            raise Undecided(f"{self._client.name}: the route: {faults[0]}", "invalid")
        for number, rule in enumerate(grant.refs, 1):
            if (fault := _rule_fault(rule)) is not None:
                raise Undecided(f"{self._client.name}: rule {number} for refs: {fault}", "invalid")
        return grant

    async def close(self) -> None:
        await self._client.close()


def _rule_fault(rule: RefRule) -> str | None:
    """Why a rule could never decide anything. Such an answer is refused: without the rule it might allow what the authority denies."""
    if not rule.refs or not rule.changes:
        return "must name a ref and a change"
    faults = ((pattern, ref_glob_fault(pattern)) for pattern in rule.refs)
    return next((f"{quoted(pattern)} {fault}" for pattern, fault in faults if fault is not None), None)
