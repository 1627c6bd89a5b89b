"""The relay's host keys, and their certificates."""

from __future__ import annotations

from relay.config.load import Loaded
from relay.config.toml import Problems
from relay.keys import HostCertificate
from relay.keys.open import open_host_certificates
from relay.openssh.private_key import read_private_key
from relay.openssh.public_key import PublicKey
from relay.preflight.private_key import private_key
from relay.text import quoted

HOST_RSA_BITS = {"modern": 3072, "compatible": 2048}  # by algorithms.profile


def check_host_keys(loaded: Loaded, problems: Problems) -> None:
    """Each key readable and long enough; at most one of each type, because clients choose host keys by type."""
    profile = loaded.config.algorithms.profile
    first: dict[str, str] = {}
    names = loaded.config.host_keys
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            problems.add("host_keys", f"{quoted(name)} is listed twice, must be listed once")
        if (key := private_key(loaded, "host_keys", name, problems)) is None:
            continue
        public = PublicKey(key.get_algorithm(), key.public_data, "")
        if public.type == "ssh-rsa" and public.bits < (least := HOST_RSA_BITS[profile]):
            problems.add("host_keys", f"{name} is an RSA key of {public.bits} bits, must have {least} with profile = {quoted(profile)}")
        if (other := first.setdefault(public.type, name)) != name:
            problems.add("host_keys", f"{name} is a second {public.type} key beside {other}, allowed is one of each type")
    for fault in host_certificates(loaded)[1]:
        problems.add("host_certificates", fault)


def host_certificates(loaded: Loaded) -> tuple[list[HostCertificate], list[str], list[str]]:
    """Also the warnings; nothing while a host key cannot be read, which is a problem of its own."""
    blobs = []
    for name in loaded.config.host_keys:
        try:
            blobs.append(read_private_key(loaded.resolve(name)).public_data)
        except ValueError:
            return [], [], []
    return open_host_certificates(loaded.config.host_certificates, loaded.base, blobs)
