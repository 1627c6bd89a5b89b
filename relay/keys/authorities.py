"""Which certificates are accepted: the files of CA keys and the file of revoked keys, both read again when changed.

While a changed file of CA keys has a fault, keys that are new in it are not trusted, and keys that were removed from it are no longer
trusted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import asyncssh
from asyncssh.public_key import decode_ssh_public_key

from relay import config
from relay.backends.watched import LOOK_SECONDS, Tell, Watched, stamp_file
from relay.errors import ConfigError
from relay.keys import Judged, KeyConditions, KeyFacts, KeyOptions, NotAccepted, SpokenFor, identity_fault
from relay.keys.certificate import Certificate, check_claims, check_principals, parse_certificate
from relay.keys.revoked import RevocationFile
from relay.keys.trusted_file import read_whole
from relay.model import Certified, Identity
from relay.openssh.krl import Krl
from relay.openssh.public_key import CLIENT_SIGNATURES, CLIENT_SIGNATURES_ON_THE_WIRE, fingerprint, parse_line, public_key
from relay.text import plain, printable, quoted

CA_FILE_BYTES = 1 << 20  # of one file of CA keys


class Authorities:
    """Judges certificates; stores no result."""

    def __init__(
        self,
        settings: config.CertificatesSettings,
        base: Path,
        user: str,
        conditions: KeyConditions | None = None,
        *,
        look_seconds: float = LOOK_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._by_key_id = settings.identity == "key_id"
        self._principals = settings.principals or ([user] if self._by_key_id else [])
        self._user = user
        self._conditions = conditions
        self._clock = clock
        self._revokes = settings.revoked is not None
        self.checks_keys = self._revokes or conditions is not None
        paths = [base / name for name in settings.ca_keys]
        revoked = None if settings.revoked is None else base / settings.revoked
        trusted, list_ = CaKeyFiles(paths), None if revoked is None else RevocationFile(revoked)
        self._trusted = Watched(
            "CAs of certificates",
            lambda: [stamp_file(path) for path in paths],
            lambda _: trusted.read(),
            look_seconds=look_seconds,
            in_parts=True,
        )
        self._revoked = Watched(
            "revoked keys",
            lambda: None if revoked is None else stamp_file(revoked),
            lambda _: (Krl(), []) if list_ is None else list_.read(),
            look_seconds=look_seconds,
            in_parts=True,
        )
        if problems := self._trusted.problems + self._revoked.problems:
            raise ConfigError(problems)

    def watch(self, tell: Tell) -> None:
        self._trusted.watch("certificates", tell)
        self._revoked.watch("revoked", tell)

    async def close(self) -> None:
        await self._trusted.close()
        await self._revoked.close()

    async def check_key(self, blob: bytes, fingerprint: str, address: str) -> KeyOptions:
        if self._revokes and (await self._revoked.current()).revokes_key(blob):
            raise NotAccepted("the key is revoked", "revoked")
        return KeyOptions() if self._conditions is None else await self._conditions.check(fingerprint, address)

    async def judge(self, blob: bytes, address: str) -> Judged:
        certificate = parse_certificate(blob)
        try:
            spoken_for = None  # identities for which the keys backend lets this CA sign
            if certificate.ca not in await self._trusted.current():
                spoken_for = [] if self._conditions is None else await self._conditions.authorities(fingerprint(certificate.ca), address)
                if not spoken_for:
                    raise NotAccepted("its CA is not trusted")
            key = verified(certificate)
            await self._check_revoked(certificate, key)
            check_claims(certificate, address, self._clock())
            facts, options = facts_of(certificate), certificate.options
            if spoken_for is not None:
                line = self._fitting(spoken_for, certificate)
                # each of the two may ask for the PIN, and the touch is left out only if both permit it
                verify = options.verify_required or line.options.verify_required
                no_touch = options.no_touch_required and line.options.no_touch_required
                return Judged(key, certified_as(line.identity, certificate, key), facts, KeyOptions(verify, no_touch))
            check_principals(certificate, self._principals)
            return Judged(key, self._identity(certificate, key), facts, options)
        except NotAccepted as no:
            raise NotAccepted(f"{certificate}: {no}", no.reason, fingerprint(certificate.key)) from None

    async def _check_revoked(self, certificate: Certificate, key: asyncssh.SSHKey) -> None:
        if not self._revokes:
            return
        revoked = await self._revoked.current()
        if revoked.revokes_key(certificate.ca):
            raise NotAccepted("the key of its CA is revoked", "revoked")
        if revoked.revokes_key(key.public_data):
            raise NotAccepted("its key is revoked", "revoked")
        if revoked.revokes_certificate(certificate.ca, certificate.serial, certificate.key_id):
            raise NotAccepted("it is revoked", "revoked")

    def _identity(self, certificate: Certificate, key: asyncssh.SSHKey) -> Identity:
        name = certificate.key_id if self._by_key_id else self._first_principal(certificate)
        return certified_as(_utf8(name), certificate, key)

    def _fitting(self, spoken_for: list[SpokenFor], certificate: Certificate) -> SpokenFor:
        """The one identity with a cert-authority line whose principals the certificate lists, with the strictest options of its lines."""
        fitting: list[SpokenFor] = []
        for line in spoken_for:
            try:
                check_principals(certificate, line.principals or [self._user])
            except NotAccepted as error:
                no = error
            else:
                fitting.append(line)
        if not fitting:
            raise no
        names = sorted({line.identity for line in fitting})
        if len(names) > 1:
            raise NotAccepted(f"it fits the cert-authority lines of {', '.join(names)}, must fit those of one")
        verify = any(line.options.verify_required for line in fitting)
        no_touch = all(line.options.no_touch_required for line in fitting)
        return fitting[0]._replace(options=KeyOptions(verify, no_touch))

    def _first_principal(self, certificate: Certificate) -> bytes:
        """The first principal that names an identity: the CA allows its bearer to be any of them."""
        needed = {name.encode() for name in self._principals}
        for name in certificate.principals:
            if name not in needed:
                return name
        raise NotAccepted("it lists no principal that names an identity")


def certified_as(name: str, certificate: Certificate, key: asyncssh.SSHKey) -> Identity:
    """The identity `name`, proven by the certificate's key. Raises NotAccepted when the name cannot be an identity."""
    if (fault := identity_fault(name)) is not None:
        raise NotAccepted(f"the identity {quoted(name)} {fault}")
    told = Certified(ca=fingerprint(certificate.ca), key_id=printable(_utf8(certificate.key_id)), serial=certificate.serial)
    return Identity(name=name, fingerprint=key.get_fingerprint(), method="certificate", certificate=told)


def _utf8(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise NotAccepted("it holds a name that is not UTF-8") from None


def verified(certificate: Certificate) -> asyncssh.SSHKey:
    """The certificate's key, after the CA's signature was verified. Raises NotAccepted, also for a weak signature algorithm."""
    if certificate.signature_algorithm not in CLIENT_SIGNATURES_ON_THE_WIRE:
        shown = printable(certificate.signature_algorithm.decode("ascii", "replace"), 60)
        raise NotAccepted(f"its CA signed with {shown or 'nothing'}, allowed are {', '.join(CLIENT_SIGNATURES)}")
    try:
        ca, key = decode_ssh_public_key(certificate.ca), decode_ssh_public_key(certificate.key)
        valid = ca.verify(certificate.signed, certificate.signature)
    except Exception:  # noqa: BLE001 - hostile keys and signatures make asyncssh and cryptography raise anything
        raise NotAccepted("it holds a key that cannot be used") from None
    if not valid:
        raise NotAccepted("the signature of its CA is wrong")
    key.set_touch_required(False)  # relay.keys.policy judges touch and PIN, by the flags of the signature
    return key


def facts_of(certificate: Certificate) -> KeyFacts:
    """The types and sizes of the certified key and of the CA's."""
    key, ca = public_key(certificate.key), public_key(certificate.ca)
    return KeyFacts(key.type, key.bits, ca.type, ca.bits)


class CaKeyFiles:
    """Reads the files of CA keys, and remembers what each held, for the next read that finds a fault."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._held: dict[Path, dict[bytes, str]] = {}  # by file

    def read(self) -> tuple[Mapping[bytes, str], list[str]]:
        """Blob to fingerprint, and one line for each problem."""
        found: dict[bytes, str] = {}
        problems: list[str] = []
        first = not self._held
        for path in self._paths:
            held, faults = _read_ca_file(path)
            before = self._held.get(path, {})
            if held is None:
                held = before
            elif faults and not first:
                held = {blob: name for blob, name in held.items() if blob in before}
            self._held[path] = held
            found |= held
            problems += map(plain, faults)
        return found, problems


def read_cas(paths: list[Path]) -> tuple[Mapping[bytes, str], list[str]]:
    """Blob to fingerprint, and one line for each problem."""
    return CaKeyFiles(paths).read()


def _read_ca_file(path: Path) -> tuple[dict[bytes, str] | None, list[str]]:
    """Blob to fingerprint, None if the file cannot be read, and one line for each problem."""
    data, fault = read_whole(str(path), "a file of CAs' public keys", CA_FILE_BYTES)
    if data is None:
        return None, [fault or ""]
    found: dict[bytes, str] = {}
    problems: list[str] = []
    lines = [(number, line.strip()) for number, line in enumerate(data.decode("utf-8-sig", "replace").split("\n"), 1)]
    keys = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not keys:
        problems.append(f"{path}: holds no key, must be a file of CAs' public keys")
    for number, line in keys:
        try:
            blob = parse_line(line).blob
            if decode_ssh_public_key(blob).public_data != blob:
                raise ValueError("the key is not written as ssh-keygen writes it, must be copied whole from a .pub file")
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
        else:
            found[blob] = fingerprint(blob)
    return found, problems if fault is None else [fault]
