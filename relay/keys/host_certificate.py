"""Certificates of host keys (OpenSSH's PROTOCOL.certkeys), with which clients that trust the CA know the relay."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from relay.keys import HostCertificate, NotAccepted, when
from relay.keys.authorities import verified
from relay.keys.certificate import FOREVER, HOST, parse_certificate
from relay.keys.trusted_file import read_trusted
from relay.openssh.public_key import public_key
from relay.text import counted, printable

FILE_BYTES: Final = 64 * 1024
WHAT: Final = "a host certificate as ssh-keygen -s CA -h writes it (KEY-cert.pub)"
SHORT: Final = 0.1  # of its time: less left is a warning of `relay check`


def read_host_certificate(path: Path) -> HostCertificate:
    """Raises ValueError with what is wrong, and what is allowed, behind the file's name."""
    data, fault = read_trusted(str(path), WHAT, FILE_BYTES)
    if fault is not None:
        raise ValueError(fault)
    words = data.decode("utf-8", "replace").split()
    try:
        blob = base64.b64decode(words[1], validate=True) if len(words) > 1 else b""
    except (binascii.Error, ValueError):
        blob = b""
    if not blob:
        raise ValueError(f"{path}: is no certificate, must be {WHAT}")
    try:
        certificate = parse_certificate(blob)
        if certificate.kind != HOST:
            raise NotAccepted("the certificate is a user's, must be a host's: ssh-keygen -s CA -h")
        verified(certificate)
    except NotAccepted as no:
        raise ValueError(f"{path}: {no}") from None
    return HostCertificate(
        blob,
        certificate.key,
        public_key(certificate.key).type,
        tuple(printable(name.decode("utf-8", "replace"), 255) for name in certificate.principals),
        certificate.valid_after,
        None if certificate.valid_before == FOREVER else certificate.valid_before,
    )


def read_host_certificates(paths: Sequence[Path], host_keys: Collection[bytes]) -> tuple[list[HostCertificate], list[str]]:
    """Those that can be read, and one line for each problem. `host_keys` are the blobs of the keys that they must be of."""
    found: list[HostCertificate] = []
    problems: list[str] = []
    for path in paths:
        try:
            certificate = read_host_certificate(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        if certificate.key not in host_keys:
            problems.append(f"{path}: is of a {certificate.key_type} key that is not among host_keys, must be of one of them")
        elif any(other.key == certificate.key for other in found):
            problems.append(f"{path}: is a second certificate of the same {certificate.key_type} key, allowed is one")
        else:
            found.append(certificate)
    return found, problems


def host_certificate_remarks(certificates: Sequence[HostCertificate], now: float | None = None) -> Iterator[str]:
    """Warnings: not valid now, soon no longer, or of no name."""
    now = time.time() if now is None else now
    for one in certificates:
        what = f"the certificate of the {one.key_type} key"
        if (fault := one.fault(now)) is not None:
            yield f"{what} {fault}, so it is not offered"
        elif one.valid_before is not None and one.valid_before - now < SHORT * (one.valid_before - one.valid_after):
            hours = max(1, round((one.valid_before - now) / 3600))
            yield f"{what} runs out at {when(one.valid_before)}, in {counted(hours, 'hour')}"
        if not one.principals:
            yield f"{what} lists no principal (ssh-keygen -n HOST): older clients take it for any host, newer ones for none"
