"""Certificates of host keys: what is refused, by the real ssh-keygen's files, and what is warned of."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.keys.host_certificate import host_certificate_remarks, read_host_certificate, read_host_certificates
from tests.support.certificates import FUTURE, PAST, Ca, blob
from tests.support.keys import KEY_KINDS, Key, KeyKind, make_key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def ca(folder: Path) -> Ca:
    return Ca(folder)


@pytest.fixture(scope="module")
def key(folder: Path) -> Key:
    return make_key(folder, "host")


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_a_certificate_of_each_kind_of_key(folder: Path, ca: Ca, kind: KeyKind) -> None:
    key = make_key(folder / kind, "host", kind)
    path = ca.sign(key, "relay", principals=["git.example.com", "relay"], validity="20300102Z:20300103Z", host=True)
    found = read_host_certificate(path)
    assert (found.blob, found.key) == (blob(path), blob(key.public))
    assert (found.principals, found.valid_after, found.valid_before) == (("git.example.com", "relay"), 1_893_542_400, 1_893_628_800)
    assert found.key_type == key.line.split()[0]
    assert read_host_certificate(ca.sign(key, host=True)).valid_before is None


def test_what_is_refused(folder: Path, ca: Ca, key: Key) -> None:
    good, stranger = ca.sign(key, host=True), make_key(folder, "stranger")
    paths = {
        "missing": folder / "none",
        "a user's": ca.sign(key),
        "a plain key": key.public,
        "a private key": key.private,
        "no key": folder / "text",
        "cut off": folder / "cut",
        "another signature": folder / "changed",
        "of another key": ca.sign(stranger, host=True),
        "a second one": ca.sign(key, "second", host=True),
    }
    paths["no key"].write_text("hello\n")
    kind, data = good.read_text().split()[:2]
    paths["cut off"].write_text(f"{kind} {data[:400]}\n")
    paths["another signature"].write_text(f"{kind} {data[:-8]}AAAA{data[-4:]}\n")
    found, problems = read_host_certificates([good, *paths.values()], [blob(key.public)])
    assert [one.blob for one in found] == [blob(good)]
    expected = [
        "cannot be read (No such file or directory), must be a host certificate",
        "the certificate is a user's, must be a host's",
        'a certificate of type "ssh-ed25519" is not supported',
        "is a private key, must be a public key",
        "is no certificate, must be a host certificate",
        "is cut off or damaged",
        "the signature of its CA is wrong",
        "is of a ssh-ed25519 key that is not among host_keys",
        "is a second certificate of the same ssh-ed25519 key",
    ]
    assert len(problems) == len(expected)
    for path, problem, text in zip(paths.values(), problems, expected, strict=True):
        assert problem.startswith(f"{path}: ") and text in problem


def test_what_is_warned_of(ca: Ca, key: Key) -> None:
    def told(validity: str, now: float, principals: tuple[str, ...] = ("relay",)) -> list[str]:
        return list(
            host_certificate_remarks([read_host_certificate(ca.sign(key, principals=principals, validity=validity, host=True))], now)
        )

    week = "20300101Z:20300111Z"
    begins = 1_893_456_000
    assert told(week, begins + 86_400) == []
    assert told(week, begins + 9.5 * 86_400) == ["the certificate of the ssh-ed25519 key runs out at 2030-01-11T00:00:00Z, in 12 hours"]
    assert told("always:forever", begins) == []
    [line] = told(PAST, begins)
    assert "ran out at 2020-01-0" in line and line.endswith(", so it is not offered")
    [line] = told(FUTURE, begins)
    assert "is not valid before 20" in line
    [line] = told(week, begins + 1, ())
    assert "lists no principal (ssh-keygen -n HOST)" in line
