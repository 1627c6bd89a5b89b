"""What relay/ssh/ and relay/connection.py replace in asyncssh, or whose private state they keep: the digest of each source that was read.

One table for tests/ssh/test_asyncssh_pins.py, which fails when asyncssh changes, and for start-up, which must not serve on assumptions
that nobody has checked. There are four cases:

1. The version and the files are those that were read: the relay serves.
2. Another version, no pin changed: the relay serves the way of RELAY_WIRE=0, since no pin sees a new kind of message or a new default.
3. A pin of WIRE changed: the same. Nothing of WIRE is relied upon when the direct path is off.
4. A pin of NEEDED changed: the relay does not start. Limits before the login, windows and authentication may have failed without a word.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import asyncssh

from relay.errors import ConfigError
from relay.ssh import wire

READ = "2.24.1"  # the version whose sources were read
LISTED = 4  # names in a message

# By module, class and name below `asyncssh`. One that the test reports: read the change, mend relay/ssh/, then write the new digest here.
WIRE: dict[str, str] = {
    "connection.SSHConnection._process_kexinit": "439bdf2fc55e6737",
    "connection.SSHConnection._recv_data": "fc4e0735191bb0fd",
    "connection.SSHConnection._recv_packet": "b3daa22e9763eee9",
    "connection.SSHConnection._recv_version": "05573b0ac8886bf3",
    "connection.SSHConnection._send_global_request": "7e8d49474edb9099",
    "connection.SSHConnection._send_kexinit": "275ddc818b59f44b",
    "connection.SSHConnection.send_packet": "fb9da7bec6dd395a",
    "connection.SSHServerConnection.send_server_host_keys": "420c0eba48118f66",
    "crypto.cipher.GCMCipher.__init__": "8dbe9e768f4ecf7a",
    "crypto.cipher.GCMCipher._update_iv": "bce250a8d9dc82b6",
    "crypto.cipher.GCMCipher.encrypt_and_sign": "adb87dbdb4f9039a",
    "crypto.cipher.GCMCipher.verify_and_decrypt": "c09eb5b36d0f6a92",
    "encryption.GCMEncryption.__init__": "96f0b31f70afef1a",
    "encryption.GCMEncryption.decrypt_packet": "6feb840baa1102a4",
    "encryption.GCMEncryption.encrypt_packet": "6a59190103eaab06",
    "kex.get_kex": "41e9fe4b9bb2d89f",
}

NEEDED: dict[str, str] = {
    "auth.Auth.__init__": "ce8a307848f87ff6",
    "auth.Auth.cancel": "10c87ba4959741bd",
    "auth.Auth.create_task": "4ca65e68c5093a3b",
    "auth.ServerAuth.__init__": "ff793e0163031a9d",
    "auth.ServerAuth.send_packet": "522c94e5b2df8160",
    "auth._ServerPublicKeyAuth._start": "f736fe6663fc3aec",
    "auth.get_supported_server_auth_methods": "8484ed020351243a",
    "auth.lookup_server_auth": "50d9f6f25ca1d685",
    "channel.SSHChannel.__init__": "c9834d9302839e71",
    "channel.SSHChannel._accept_data": "33121e9e185c9850",
    "channel.SSHChannel._cleanup": "5d0b2593194bbf4b",
    "channel.SSHChannel._close_send": "5dcbc60194d9a29b",
    "channel.SSHChannel._deliver_data": "bd94ccbaa59ab510",
    "channel.SSHChannel._discard_recv": "24cf487dbe2fdff0",
    "channel.SSHChannel._finish_open_request": "0186fdd53941c6cf",
    "channel.SSHChannel._flush_recv_buf": "22d7ff2363a4d38d",
    "channel.SSHChannel._flush_send_buf": "3f11e9dc27c58b18",
    "channel.SSHChannel._packet_handlers": "9796b19dc0a3be88",
    "channel.SSHChannel._pause_resume_writing": "b05e507ca9fdeec9",
    "channel.SSHChannel._process_close": "65c1f876b753b91a",
    "channel.SSHChannel._process_data": "342490795c4b893c",
    "channel.SSHChannel._process_eof": "ac67e77d1f8a61bc",
    "channel.SSHChannel._process_extended_data": "e4e69e0e1f37e977",
    "channel.SSHChannel._process_request": "fd623107926d0ef1",
    "channel.SSHChannel._process_response": "4bbcccedbcb3bdec",
    "channel.SSHChannel._process_window_adjust": "7a2e4c4998e0b496",
    "channel.SSHChannel._report_response": "b1278076178741d3",
    "channel.SSHChannel._send_request": "75abdd7bb8060e74",
    "channel.SSHChannel._service_next_request": "386db1498a953902",
    "channel.SSHChannel._start_reading": "4f7bb9c5f1fc6b29",
    "channel.SSHChannel.close": "2d0f6c05f1998289",
    "channel.SSHChannel.is_closing": "b8e7a8ccb3724763",
    "channel.SSHChannel.logger": "00a362bfd093bcdf",
    "channel.SSHChannel.pause_reading": "ff124e389999452f",
    "channel.SSHChannel.process_connection_close": "a9a665f08780e013",
    "channel.SSHChannel.process_open": "6a3a551a99b6d76b",
    "channel.SSHChannel.process_open_confirmation": "83e189367ef9b251",
    "channel.SSHChannel.resume_reading": "01729f283974c6ea",
    "channel.SSHChannel.write": "1045e20008469933",
    "channel.SSHChannel.write_eof": "0466daebc7aaca21",
    "channel.SSHServerChannel.__init__": "00e69c3de18ffa1d",
    "channel.SSHServerChannel._packet_handlers": "9796b19dc0a3be88",
    "channel.SSHServerChannel._process_env_request": "c6847fe6051100fa",
    "channel.SSHServerChannel._process_exec_request": "be64cc45db37b0b5",
    "channel.SSHServerChannel._process_shell_request": "e2c7b9aa560ce084",
    "channel.SSHServerChannel._process_subsystem_request": "8169245ec89aebe8",
    "channel.SSHServerChannel._start_session": "4ef1112382d829bb",
    "channel.SSHServerChannel.write_stderr": "0a5946e1fc45ed63",
    "connection.SSHConnection.__init__": "41da2e469f2a3964",
    "connection.SSHConnection._cancel_login_timer": "46e328157eab7b1e",
    "connection.SSHConnection._choose_alg": "539a102decdbce87",
    "connection.SSHConnection._cleanup": "ea4cd2aed57194e5",
    "connection.SSHConnection._finish_recv_packet": "e12d96db58b3524e",
    "connection.SSHConnection._finish_userauth": "bd2146536318273d",
    "connection.SSHConnection._force_close": "264b4367525f4f86",
    "connection.SSHConnection._get_next_conn": "f8ed61715e178306",
    "connection.SSHConnection._keepalive_timer_callback": "6d8aa6656cfc6003",
    "connection.SSHConnection._login_timer_callback": "fc3cf4a0305863dc",
    "connection.SSHConnection._make_global_request": "5f4b41f0c38aeb65",
    "connection.SSHConnection._make_keepalive_request": "2f98f19daa4aa9b3",
    "connection.SSHConnection._packet_handlers": "1563c48a01ae8c55",
    "connection.SSHConnection._process_channel_open": "0a1ae759cb6aab2b",
    "connection.SSHConnection._process_global_request": "ab927889d3844db5",
    "connection.SSHConnection._process_newkeys": "a0331fe3cfd09d0b",
    "connection.SSHConnection._process_userauth_request": "9d1a0e42d15a1526",
    "connection.SSHConnection._process_userauth_success": "02fe4fc8335c6d81",
    "connection.SSHConnection._reap_task": "d6d88bdf86f70401",
    "connection.SSHConnection._recv_pkthdr": "7adc4d88fe20593c",
    "connection.SSHConnection._reset_keepalive_timer": "7a9157707c514524",
    "connection.SSHConnection._send": "c6698a37eb80f574",
    "connection.SSHConnection._send_deferred_packets": "c5ef8240853eb331",
    "connection.SSHConnection._send_disconnect": "225d909cfce74f89",
    "connection.SSHConnection._send_version": "ef838b54b482aa55",
    "connection.SSHConnection._set_keepalive_timer": "23a054202a1cb32b",
    "connection.SSHConnection._update_recv_pktlen": "2a85e726b648a8c5",
    "connection.SSHConnection.add_channel": "81a9f117d0719c8d",
    "connection.SSHConnection.connection_made": "e7b867af0f590a2c",
    "connection.SSHConnection.create_task": "a9bff2bae35cd56f",
    "connection.SSHConnection.data_received": "b2d14a83b2604db6",
    "connection.SSHConnection.internal_error": "ceabee464f7cf474",
    "connection.SSHConnection.logger": "e357252c32db756a",
    "connection.SSHConnection.pause_writing": "a69ec7dae4f504a2",
    "connection.SSHConnection.resume_writing": "a324675672f6b924",
    "connection.SSHConnection.send_newkeys": "0b41234420373618",
    "connection.SSHConnection.send_userauth_failure": "30f1eb63d0cb74c9",
    "connection.SSHConnection.send_userauth_success": "812e749ee2432e4b",
    "connection.SSHConnection.set_keepalive": "3208fb416939c4e0",
    "connection.SSHServerConnection.__init__": "1609a442fc4f5151",
    "connection.SSHServerConnection._cleanup": "c67135a4127b3029",
    "connection.SSHServerConnection._connection_made": "39041a4108e9474f",
    "connection.SSHServerConnection._validate_client_certificate": "a49c71b2c2c1f917",
    "connection.SSHServerConnection._validate_client_public_key": "6a630986a3798084",
    "connection.SSHServerConnection._validate_openssh_certificate": "056062c844e4c716",
    "connection.SSHServerConnection._validate_x509_certificate_chain": "dbbce07a889e2a79",
    "connection.SSHServerConnection.choose_server_host_key": "bba591c6ea86a53b",
    "connection.SSHServerConnection.reload_config": "d78b0be8399d5491",
    "connection.SSHServerConnection.validate_public_key": "eb5e224339282892",
    "kex.Kex.__init__": "bcb125db5b1778cb",
    "kex_dh._KexDHBase.__init__": "d3138c86066fcbbf",
    "kex_dh._KexDHBase._compute_server_shared": "ce7965974cf6eb4a",
    "kex_dh._KexDHBase._parse_client_key": "2707ad1318014479",
    "kex_dh._KexDHBase._perform_init": "d78cb6aa423d2522",
    "kex_dh._KexDHBase._perform_reply": "cf86e9e34ac9a4da",
    "kex_dh._KexDHBase._process_init": "ed2e047c5201e077",
    "kex_dh._KexECDH._compute_server_shared": "825fd353ff3eecd6",
    "kex_dh._KexHybridECDH._compute_server_shared": "c27d7fd79604d0f3",
    "packet.SSHPacketHandler.logger": "56f76d5552b26ba1",
    "packet.SSHPacketHandler.process_packet": "490a59d971d0ce03",
    "packet.SSHPacketLogger.log_received_packet": "38e8df0c0c53ac0a",
    "packet.SSHPacketLogger.log_sent_packet": "d21306e3c6b2b2f5",
    "public_key.SSHLocalKeyPair.__init__": "2697dc67a89ee577",
    "public_key.SSHLocalKeyPair.sign": "e4a58df66d047c66",
}

FILES: dict[str, str] = {  # that hold them
    "auth.py": "4313e7ec3dd6389a",
    "channel.py": "d918ecd3d2b9eeeb",
    "connection.py": "8fd28630b87c21d6",
    "crypto/cipher.py": "f9ecb119995986b3",
    "encryption.py": "51d6e8c7d43ed572",
    "kex.py": "a6e8b452025827ab",
    "kex_dh.py": "207d78e7a2e62334",
    "packet.py": "397997befab90e6d",
    "public_key.py": "6acf6ef9fae7936e",
}


class Findings(NamedTuple):
    """Which pins changed in the asyncssh that is installed."""

    version: str
    wire: list[str]
    needed: list[str]

    @property
    def fault(self) -> str | None:
        """Why the relay must not serve with it."""
        if not self.needed:
            return None
        what = _listed(self.needed)
        return f"asyncssh {self.version}: the relay was written for {READ} and relies on {what}: changed; install {READ}"

    @property
    def remark(self) -> str | None:
        """Why the relay serves with it, but without the direct path."""
        if self.wire:
            why = f"{_listed(self.wire)} changed"
        elif self.version != READ:
            why = "another version, though no function changed that the relay relies on"
        else:
            return None
        what = f"the relay was written for {READ} ({why})"
        return f"asyncssh {self.version}: {what}; served as with RELAY_WIRE=0, which costs more CPU time"


def pinned(name: str) -> Any:
    """The function, property or table of a pin. Raises AttributeError or ImportError when asyncssh has it no more."""
    parts = name.split(".")
    modules = list(takewhile(str.islower, parts[:-1]))
    found: Any = import_module(".".join(("asyncssh", *modules)))
    for part in parts[len(modules) :]:
        found = getattr(found, part)
    return found


def digest(thing: Any) -> str:
    """Of a function's or property's source; of a table of handlers: of the messages and the names of their handlers."""
    if isinstance(thing, Mapping):
        source = repr(sorted((key, function.__qualname__) for key, function in thing.items()))
    else:
        function: Any = getattr(thing, "fget", thing)
        source = inspect.getsource(function)
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def changed(pins: Mapping[str, str]) -> Iterator[str]:
    """Names whose source is not the one that was read, or cannot be found."""
    for name, read in pins.items():
        try:
            found = digest(pinned(name))
        except (AttributeError, ImportError, OSError, TypeError):
            found = ""
        if found != read:
            yield name


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def as_read(version: str) -> bool:
    """Whether version and files are those that were read. It takes a hundredth of the time of `changed`, which reads each function."""
    folder = Path(asyncssh.__file__).parent
    try:
        return version == READ and all(file_digest(folder / name) == read for name, read in FILES.items())
    except OSError:
        return False


def look(version: str = asyncssh.__version__) -> Findings:
    if as_read(version):
        return Findings(version, [], [])
    return Findings(version, list(changed(WIRE)), list(changed(NEEDED)))


def settle(findings: Findings | None = None) -> str | None:
    """Before the first connection of a process: turns the direct path off if it must be.

    Returns the warning to log, None when there is none or the path was off already. Raises ConfigError when the relay must not serve.
    """
    findings = findings or look()
    if findings.fault is not None:
        raise ConfigError([findings.fault])
    if findings.remark is None or not wire.ENABLED:
        return None
    wire.ENABLED = False
    return findings.remark


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
