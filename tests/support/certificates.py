"""A certificate authority for tests: the real ssh-keygen signs user certificates and writes revocation lists.

ca = Ca(folder, "users")                                   # ca.key, ca.fingerprint
ca.sign(alice, "alice", principals=["git"], serial=7)      # the path of the certificate
ca.revoke(folder / "krl", "serial: 7", "id: bob")          # a KRL, made or updated
"""

from __future__ import annotations

import base64
import itertools
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.keys import Key, KeyKind, make_key

ALWAYS = "always:forever"
PAST = "20200101:20200102"
FUTURE = "20990101:20990102"

_numbers = itertools.count()


class Ca:
    """One CA's key pair; each certificate is in a folder of its own."""

    def __init__(self, folder: Path, name: str = "ca", kind: KeyKind = "ed25519") -> None:
        self.folder = folder / f"{name}-signed"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.key = make_key(folder, name, kind)

    @property
    def fingerprint(self) -> str:
        return self.key.fingerprint

    def sign(
        self,
        key: Key,
        key_id: str = "alice",
        *,
        principals: Sequence[str] = ("git",),
        serial: int = 0,
        validity: str = ALWAYS,
        options: Sequence[str] = (),
        host: bool = False,
        algorithm: str = "",
    ) -> Path:
        """A certificate of `key`, alone in a new folder; `options` are those of ssh-keygen -O."""
        public = self.folder / f"{next(_numbers)}.pub"
        shutil.copy(key.public, public)
        command = ["ssh-keygen", "-q", "-s", str(self.key.private), "-I", key_id, "-z", str(serial), "-V", validity]
        command += ["-n", ",".join(principals)] if principals else []
        command += ["-h"] if host else []
        command += ["-t", algorithm] if algorithm else []
        for option in options:
            command += ["-O", option]
        subprocess.run([*command, str(public)], check=True, capture_output=True)
        return public.with_name(f"{public.stem}-cert.pub")

    def revoke(self, krl: Path, *specification: str, files: Sequence[Path] = (), update: bool = False) -> Path:
        """Replaces the list by a rename: `specification` as in ssh-keygen(1), or keys and certificates in `files`."""
        new = krl.with_name(krl.name + ".new")
        if update:
            shutil.copy(krl, new)
        arguments = list(map(str, files))
        if specification:
            given = krl.with_name(krl.name + ".specification")
            given.write_text("".join(f"{line}\n" for line in specification))
            arguments.append(str(given))
        command = ["ssh-keygen", "-q", "-k", "-f", str(new), "-s", str(self.key.public), *(["-u"] if update else []), *arguments]
        subprocess.run(command, check=True, capture_output=True)
        new.replace(krl)
        return krl


def blob(path: Path) -> bytes:
    """The decoded blob of a public key or a certificate."""
    return base64.b64decode(path.read_text().split()[1])


def revoked_by_openssh(krl: Path, path: Path) -> bool:
    """Whether ssh-keygen -Q finds this key or certificate revoked."""
    done = subprocess.run(["ssh-keygen", "-Q", "-f", str(krl), str(path)], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert ("REVOKED" in done.stdout) == (done.returncode == 1), done.stdout
    return done.returncode == 1
