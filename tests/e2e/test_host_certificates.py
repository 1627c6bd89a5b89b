"""Host certificates with the real ssh: @cert-authority in known_hosts, renewal by a reload, and one that has run out."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from tests.support.certificates import PAST, Ca
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

COMMAND = "git-upload-pack 'stub/exit/5'"


def trusting(relay: RelayProcess, ca: Ca) -> subprocess.CompletedProcess[bytes]:
    """The real ssh, which knows the CA and no key of the relay."""
    relay.known_hosts.write_text(f"@cert-authority [127.0.0.1]:{relay.port} {ca.key.host_line}\n")
    return relay.ssh("UpdateHostKeys=no").run(COMMAND, b"", "-v")


def knowing(relay: RelayProcess) -> subprocess.CompletedProcess[bytes]:
    """The real ssh, which knows the plain key, and asks for the keys that the relay announces."""
    relay.known_hosts.write_text(f"[127.0.0.1]:{relay.port} {relay.host_key_line}\n")
    return relay.ssh("UpdateHostKeys=yes").run(COMMAND, b"", "-v")


def test_a_client_that_knows_the_ca_alone(sshd: Sshd, tmp_path: Path) -> None:
    ca, stranger = Ca(tmp_path), Ca(tmp_path, "stranger")
    relay = RelayProcess(sshd, tmp_path / "relay")
    certificate = relay.folder / "host-cert.pub"
    relay.write_config({"host_certificates": [certificate.name]})

    def signed(name: str, validity: str = "always:forever") -> None:
        certificate.write_text(ca.sign(relay.host_key, "relay", principals=[name], validity=validity, host=True).read_text())

    signed("127.0.0.1", "20200101:20990101")
    with relay:
        done = trusting(relay, ca)
        assert done.returncode == 5, done.stderr
        assert b"Server host certificate: ssh-ed25519-cert-v01@openssh.com" in done.stderr
        assert knowing(relay).returncode == 5, "whoever has pinned the plain key sees nothing of it"
        assert "cert" not in relay.known_hosts.read_text(), "no certificate is announced"
        assert relay.metric("relay_host_certificate_valid_before_seconds", key_type="ssh-ed25519") > 4e9
        assert trusting(relay, stranger).returncode == 255

        signed("elsewhere")
        relay.signal(signal.SIGHUP)
        wait_until(lambda: b"name is not a listed principal" in trusting(relay, ca).stderr, message="the new workers have the new one")
        assert trusting(relay, ca).returncode == 255

        signed("127.0.0.1", PAST)
        relay.signal(signal.SIGHUP)
        relay.wait_for_log("the certificate of the ssh-ed25519 key ran out at 2020-01-0.*, so it is not offered")
        wait_until(lambda: b"-cert-v01" not in server_keys(trusting(relay, ca).stderr), message="the new workers offer none")
        assert trusting(relay, ca).returncode == 255
        assert knowing(relay).returncode == 5

        certificate.write_text("damaged\n")
        relay.signal(signal.SIGHUP)
        relay.wait_for_log("host_certificates: .*host-cert.pub: is no certificate")
        assert knowing(relay).returncode == 5, "the old workers serve on"


def server_keys(said: bytes) -> bytes:
    return b"\n".join(line for line in said.splitlines() if b"Server host" in line)
