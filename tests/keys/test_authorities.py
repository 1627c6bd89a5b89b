"""Certificates of trusted CAs: identities, signatures, revocation, and changes of the files."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from relay import config
from relay.errors import ConfigError
from relay.keys import NotAccepted
from relay.keys.authorities import Authorities, read_cas
from relay.keys.file import FileKeys
from relay.keys.open import open_certificates
from relay.model import Certified, Identity
from tests.support.certificates import PAST, Ca, blob
from tests.support.keys import KEY_KINDS, Key, KeyKind, make_key
from tests.support.wait import wait_until_async

HERE = "192.0.2.7"


@pytest.fixture
def ca(tmp_path: Path) -> Ca:
    return Ca(tmp_path, "ca")


@pytest.fixture
def alice(tmp_path: Path) -> Key:
    return make_key(tmp_path, "alice")


def opened(folder: Path, look_seconds: float = 0, **settings: Any) -> Authorities:
    return Authorities(config.CertificatesSettings(**{"ca_keys": ["ca.pub"], **settings}), folder, "git", look_seconds=look_seconds)


async def refusal(authorities: Authorities, certificate: Path) -> tuple[str, str]:
    """The error's text without the certificate's own line, and the reason."""
    with pytest.raises(NotAccepted) as caught:
        await authorities.judge(blob(certificate), HERE)
    return str(caught.value).partition(": ")[2], caught.value.reason


async def name(authorities: Authorities, certificate: Path) -> str:
    return (await authorities.judge(blob(certificate), HERE))[1].name


@pytest.mark.parametrize("kind", KEY_KINDS)
async def test_a_certificate_of_a_ca_of_each_kind(tmp_path: Path, alice: Key, kind: KeyKind) -> None:
    ca = Ca(tmp_path, "ca", kind)
    authorities = opened(tmp_path)
    key, identity, _, _ = await authorities.judge(blob(ca.sign(alice, "alice@example.com", serial=7)), HERE)
    assert key.public_data == blob(alice.public)
    assert identity == Identity(
        name="alice@example.com",
        fingerprint=alice.fingerprint,
        method="certificate",
        certificate=Certified(ca=ca.fingerprint, key_id="alice@example.com", serial=7),
    )
    await authorities.close()


async def test_without_a_ca_nobody_is_trusted(tmp_path: Path, ca: Ca, alice: Key) -> None:
    authorities = opened(tmp_path, ca_keys=[])
    assert not authorities.checks_keys
    certificate = ca.sign(alice, serial=7)
    with pytest.raises(NotAccepted) as caught:
        await authorities.judge(blob(certificate), HERE)
    assert str(caught.value) == f"ID alice (serial 7) CA {ca.fingerprint}: its CA is not trusted"
    assert (caught.value.reason, caught.value.fingerprint) == ("certificate", alice.fingerprint)


async def test_another_ca_and_a_signature_that_is_not_the_ca_s(tmp_path: Path, ca: Ca, alice: Key) -> None:
    authorities = opened(tmp_path)
    assert (await refusal(authorities, Ca(tmp_path, "other").sign(alice)))[0] == "its CA is not trusted"
    good = blob(ca.sign(alice, "alice"))
    for changed in (good.replace(b"\x00\x00\x00\x05alice", b"\x00\x00\x00\x05admin"), good[:-1] + bytes([good[-1] ^ 1])):
        assert changed != good
        with pytest.raises(NotAccepted, match="the signature of its CA is wrong"):
            await authorities.judge(changed, HERE)
    await authorities.judge(good, HERE)
    await authorities.close()


async def test_sha1_is_no_signature(tmp_path: Path, alice: Key) -> None:
    ca = Ca(tmp_path, "ca", "rsa")
    authorities = opened(tmp_path)
    for algorithm in ("rsa-sha2-256", "rsa-sha2-512"):
        assert await name(authorities, ca.sign(alice, algorithm=algorithm)) == "alice"
    text, reason = await refusal(authorities, ca.sign(alice, algorithm="ssh-rsa"))
    assert text.startswith("its CA signed with ssh-rsa, allowed are ssh-ed25519, ") and reason == "certificate"
    await authorities.close()


@pytest.mark.parametrize(
    ("settings", "principals", "expected"),
    [
        ({}, ["git"], "id"),
        ({}, ["alice", "git"], "id"),
        ({"principals": ["relay-users"]}, ["relay-users"], "id"),
        ({"identity": "principal"}, ["alice"], "alice"),
        ({"identity": "principal"}, ["alice", "alice@example.com"], "alice"),
        ({"identity": "principal", "principals": ["git", "relay"]}, ["git", "alice", "relay"], "alice"),
    ],
)
async def test_identities_by_key_id_and_by_principal(
    tmp_path: Path, ca: Ca, alice: Key, settings: dict[str, Any], principals: list[str], expected: str
) -> None:
    authorities = opened(tmp_path, **settings)
    assert await name(authorities, ca.sign(alice, "id", principals=principals)) == expected
    await authorities.close()


@pytest.mark.parametrize(
    ("settings", "key_id", "principals", "text"),
    [
        ({}, "id", ["root"], "lists the principals root, needed is git"),
        ({}, "id", [], "lists no principal"),
        ({"principals": ["relay-users"]}, "id", ["git"], "needed is relay-users"),
        ({"identity": "principal"}, "id", [], "lists no principal"),
        ({"identity": "principal", "principals": ["git"]}, "id", ["git"], "lists no principal that names an identity"),
        ({"identity": "principal", "principals": ["git"]}, "id", ["alice"], "needed is git"),
        ({"identity": "principal"}, "id", ["@core"], 'the identity "@core" must not be'),
        ({}, "*", ["git"], 'the identity "*" must not be'),
        ({}, "a/b", ["git"], 'the identity "a/b" must have'),
        ({}, "a\nb", ["git"], 'the identity "a?b" must have'),
        ({}, "", ["git"], 'the identity "" is empty'),
        ({}, "\udcff", ["git"], "is not UTF-8"),
    ],
)
async def test_certificates_without_a_valid_identity_are_refused(
    tmp_path: Path, ca: Ca, alice: Key, settings: dict[str, Any], key_id: str, principals: list[str], text: str
) -> None:
    authorities = opened(tmp_path, **settings)
    assert text in (await refusal(authorities, ca.sign(alice, key_id, principals=principals)))[0]
    await authorities.close()


async def test_the_claims_of_a_certificate_are_checked(tmp_path: Path, ca: Ca, alice: Key) -> None:
    now = 1_767_225_605.0
    settings = config.CertificatesSettings(ca_keys=["ca.pub"])
    authorities = Authorities(settings, tmp_path, "git", clock=lambda: now)
    certificate = ca.sign(alice, validity="20260101000000Z:20260101000010Z")
    assert await name(authorities, certificate) == "alice"
    now += 5
    assert (await refusal(authorities, certificate))[1] == "expired"
    await authorities.close()


# -- CAs of lines ------------------------------------------------------------------------------------------------------------


async def test_a_cert_authority_line_is_for_its_identity_alone(tmp_path: Path, ca: Ca, alice: Key) -> None:
    desk = Ca(tmp_path, "desk")
    (tmp_path / "authorized_keys").write_text(
        f'identity="alice",cert-authority {desk.key.line}\n'
        f'identity="bob",cert-authority,principals="bob,robert" {desk.key.line}\n'
        f'identity="carol",cert-authority,principals="robert",from="192.0.3.0/24" {desk.key.line}\n'
        f'identity="mallory",cert-authority,principals="root" {ca.key.line}\n'
    )
    keys = FileKeys(tmp_path / "authorized_keys")
    settings = config.CertificatesSettings(
        ca_keys=["ca.pub"], identity="principal", revoked=desk.revoke(tmp_path / "krl", "serial: 9").name
    )
    authorities = Authorities(settings, tmp_path, "git", keys)
    assert await name(authorities, desk.sign(alice, "x", principals=["git"])) == "alice"
    assert await name(authorities, desk.sign(alice, "x", principals=["robert"])) == "bob"
    assert (await refusal(authorities, desk.sign(alice, principals=["root"])))[0].startswith("the certificate lists the principals root")
    assert "lists no principal" in (await refusal(authorities, desk.sign(alice, principals=[])))[0]
    text, _ = await refusal(authorities, desk.sign(alice, principals=["git", "bob"]))
    assert text == "it fits the cert-authority lines of alice, bob, must fit those of one"
    assert (await refusal(authorities, desk.sign(alice, serial=9)))[1] == "revoked"
    assert (await refusal(authorities, desk.sign(alice, validity=PAST)))[1] == "expired"
    assert await name(authorities, ca.sign(alice, principals=["root"])) == "root", "a CA of everybody asks no line"
    assert (await refusal(authorities, Ca(tmp_path, "third").sign(alice)))[0] == "its CA is not trusted"
    await authorities.close()
    await keys.close()


async def test_the_options_of_a_cert_authority_line_apply_to_its_certificates(tmp_path: Path, alice: Key) -> None:
    desk = Ca(tmp_path, "desk")
    (tmp_path / "authorized_keys").write_text(f'identity="alice",cert-authority,from="192.0.3.0/24" {desk.key.line}\n')
    keys = FileKeys(tmp_path / "authorized_keys")
    authorities = Authorities(config.CertificatesSettings(), tmp_path, "git", keys)
    assert (await refusal(authorities, desk.sign(alice)))[1] == "source_address"
    assert (await authorities.judge(blob(desk.sign(alice)), "192.0.3.7"))[1].name == "alice"
    assert authorities.checks_keys
    await authorities.close()
    await keys.close()


@pytest.mark.parametrize(
    ("line", "certificate", "verify", "no_touch"),
    [
        ("", [], False, False),
        (",verify-required", [], True, False),
        ("", ["verify-required"], True, False),
        (",no-touch-required", [], False, False),
        ("", ["no-touch-required"], False, False),
        (",no-touch-required", ["no-touch-required"], False, True),
    ],
)
async def test_line_and_certificate_may_each_ask_for_the_pin_and_must_both_permit_to_leave_the_touch_out(
    tmp_path: Path, alice: Key, line: str, certificate: list[str], verify: bool, no_touch: bool
) -> None:
    """As sshd merges them (sshauthopt_merge)."""
    desk = Ca(tmp_path, "desk", "rsa")
    (tmp_path / "authorized_keys").write_text(f'identity="alice",cert-authority{line} {desk.key.line}\n')
    keys = FileKeys(tmp_path / "authorized_keys")
    authorities = Authorities(config.CertificatesSettings(), tmp_path, "git", keys)
    judged = await authorities.judge(blob(desk.sign(alice, options=certificate)), HERE)
    assert judged.options == (verify, no_touch)
    assert judged.facts == ("ssh-ed25519", 256, "ssh-rsa", 2048)
    await authorities.close()
    await keys.close()


async def test_a_trusted_cas_certificate_permits_by_itself_to_leave_the_touch_out(tmp_path: Path, ca: Ca, alice: Key) -> None:
    authorities = opened(tmp_path)
    assert (await authorities.judge(blob(ca.sign(alice, options=["no-touch-required"])), HERE)).options == (False, True)
    assert (await authorities.judge(blob(ca.sign(alice, options=["verify-required"])), HERE)).options == (True, False)
    await authorities.close()


# -- revoked -----------------------------------------------------------------------------------------------------------------


async def test_each_way_of_being_revoked(tmp_path: Path, ca: Ca, alice: Key) -> None:
    other, bob = Ca(tmp_path, "other"), make_key(tmp_path, "bob")
    ca.revoke(tmp_path / "krl", "serial: 7", "id: mallory", f"key: {bob.line}", f"sha256: {other.key.line}")
    authorities = opened(tmp_path, ca_keys=["ca.pub", "other.pub"], revoked="krl")
    assert authorities.checks_keys
    for certificate, text in (
        (ca.sign(alice, serial=7), "it is revoked"),
        (ca.sign(alice, "mallory"), "it is revoked"),
        (ca.sign(bob), "its key is revoked"),
        (other.sign(alice), "the key of its CA is revoked"),
    ):
        assert await refusal(authorities, certificate) == (text, "revoked")
    assert await name(authorities, ca.sign(alice, serial=8)) == "alice"
    with pytest.raises(NotAccepted, match="the key is revoked"):
        await authorities.check_key(blob(bob.public), bob.fingerprint, HERE)
    await authorities.check_key(blob(alice.public), alice.fingerprint, HERE)
    await authorities.close()


async def test_a_revocation_takes_effect_without_a_signal(tmp_path: Path, ca: Ca, alice: Key) -> None:
    certificate = ca.sign(alice, serial=7)
    authorities = opened(tmp_path, revoked=ca.revoke(tmp_path / "krl").name)
    assert await name(authorities, certificate) == "alice"
    ca.revoke(tmp_path / "krl", "serial: 7", update=True)
    assert (await refusal(authorities, certificate))[1] == "revoked"
    await authorities.close()


async def test_a_faulty_revocation_list_leaves_the_old_one_in_force_and_is_logged(
    tmp_path: Path, ca: Ca, alice: Key, caplog: pytest.LogCaptureFixture
) -> None:
    krl = ca.revoke(tmp_path / "krl", "serial: 7")
    certificate, good = ca.sign(alice, serial=7), krl.read_bytes()
    authorities = opened(tmp_path, revoked="krl")
    for content in (good[:-1], b"", b"SSHKRL\n\x00"):
        krl.write_bytes(content)
        assert (await refusal(authorities, certificate))[1] == "revoked"
        assert "revoked keys: a change is not accepted, what was read before stays in force" in caplog.messages[-1]
    krl.unlink()
    assert (await refusal(authorities, certificate))[1] == "revoked"
    assert "cannot be read" in caplog.messages[-1]
    ca.revoke(krl, "serial: 8")
    assert await name(authorities, certificate) == "alice"
    await authorities.close()


async def test_a_ca_that_is_added_and_removed(tmp_path: Path, ca: Ca, alice: Key) -> None:
    second = Ca(tmp_path, "second")
    authorities = opened(tmp_path)
    assert (await refusal(authorities, second.sign(alice)))[0] == "its CA is not trusted"
    (tmp_path / "ca.pub").write_text(f"# both, while the CA changes\n{ca.key.line}\n{second.key.line}\n")
    assert await name(authorities, second.sign(alice)) == await name(authorities, ca.sign(alice)) == "alice"
    (tmp_path / "ca.pub").write_text(f"{second.key.line}\n")
    assert (await refusal(authorities, ca.sign(alice)))[0] == "its CA is not trusted"
    await authorities.close()


@pytest.mark.parametrize("fault", ["nonsense", "ssh-ed25519 AAAA", "ssh-dss AAAAB3NzaC1kc3MAAAABAQ=="])
async def test_a_removed_ca_is_not_trusted_even_if_the_file_has_a_fault(tmp_path: Path, ca: Ca, alice: Key, fault: str) -> None:
    second, third = Ca(tmp_path, "second"), Ca(tmp_path, "third")
    (tmp_path / "ca.pub").write_text(f"{ca.key.line}\n{second.key.line}\n")
    authorities = opened(tmp_path)
    (tmp_path / "ca.pub").write_text(f"{second.key.line}\n{fault}\n{third.key.line}\n")
    assert (await refusal(authorities, ca.sign(alice)))[0] == "its CA is not trusted"
    assert await name(authorities, second.sign(alice)) == "alice"
    assert (await refusal(authorities, third.sign(alice)))[0] == "its CA is not trusted"
    (tmp_path / "ca.pub").unlink()
    assert await name(authorities, second.sign(alice)) == "alice"
    await authorities.close()


async def test_a_key_added_to_a_faulty_revocation_list_is_revoked(tmp_path: Path, ca: Ca, alice: Key) -> None:
    bob = make_key(tmp_path, "bob")
    (tmp_path / "revoked").write_text(f"{alice.line}\n")
    authorities = opened(tmp_path, revoked="revoked")
    (tmp_path / "revoked").write_text(f"{bob.line}\nnonsense\n")
    for key in (alice, bob):
        with pytest.raises(NotAccepted):
            await authorities.check_key(blob(key.public), key.fingerprint, HERE)
    (tmp_path / "revoked").write_text(f"{bob.line}\n")
    await authorities.check_key(blob(alice.public), alice.fingerprint, HERE)
    await authorities.close()


async def test_a_fault_in_either_file_is_reported_without_any_client(tmp_path: Path, ca: Ca) -> None:
    (tmp_path / "revoked").write_text("# none\n")
    authorities = opened(tmp_path, revoked="revoked")
    told: dict[str, list[str]] = {}
    authorities.watch(told.__setitem__)
    (tmp_path / "revoked").write_text("nonsense\n")
    (tmp_path / "ca.pub").write_text("nonsense\n")
    await wait_until_async(lambda: bool(told.get("revoked")) and bool(told.get("certificates")))
    await authorities.close()


def test_unreadable_files_stop_the_start_with_every_problem(tmp_path: Path, ca: Ca, alice: Key) -> None:
    (tmp_path / "krl").write_bytes(b"SSHKRL\n\x00")
    (tmp_path / "empty.pub").write_text("# none\n")
    (tmp_path / "certificate.pub").write_text(ca.sign(alice).read_text())
    e, n = (3).to_bytes(1, "big"), b"\x00\x00" + b"\xff" * 256  # a leading zero too many
    rsa = b"".join(len(field).to_bytes(4, "big") + field for field in (b"ssh-rsa", e, n))
    (tmp_path / "odd.pub").write_text(f"ssh-rsa {base64.b64encode(rsa).decode()}\n")
    settings = config.CertificatesSettings(ca_keys=["none.pub", "empty.pub", "certificate.pub", "odd.pub"], revoked="krl")
    with pytest.raises(ConfigError) as caught:
        open_certificates(settings, tmp_path, "git")
    problems = caught.value.problems
    assert problems[0] == f"{tmp_path}/none.pub: cannot be read (No such file or directory), must be a file of CAs' public keys"
    assert problems[1] == f"{tmp_path}/empty.pub: holds no key, must be a file of CAs' public keys"
    assert problems[2].startswith(f'{tmp_path}/certificate.pub:1: is a certificate ("ssh-ed25519-cert-v01@openssh.com"), must be a plain')
    assert problems[3].startswith(f"{tmp_path}/odd.pub:1: the key is not written as ssh-keygen writes it")
    assert problems[4].startswith(f"{tmp_path}/krl: is cut off, must be")
    assert len(problems) == 5


def test_cas_of_several_files(tmp_path: Path, ca: Ca) -> None:
    other = Ca(tmp_path, "other", "ecdsa")
    assert read_cas([ca.key.public, other.key.public]) == (
        {blob(ca.key.public): ca.fingerprint, blob(other.key.public): other.fingerprint},
        [],
    )
