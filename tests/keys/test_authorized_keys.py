"""Options in front of a key, as in sshd(8) and gitolite: each is honoured, ignored, or refuses the line."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.keys import KeyOptions, NotAccepted
from relay.keys.authorized_keys import HONOURED, MEANINGLESS, VALUED, AuthorizedKey, matches, read_line
from relay.openssh.public_key import LINE_BYTES
from tests.support.keys import Key, make_key

NO = "no-port-forwarding,no-X11-forwarding,no-agent-forwarding,no-pty"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("key"), "alice")


def read(key: Key, options: str) -> AuthorizedKey:
    line = read_line(f"{options} {key.line}")
    assert line.fingerprint == key.fingerprint
    return line._replace(fingerprint="")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("", AuthorizedKey("")),
        ("restrict", AuthorizedKey("")),
        ("Restrict,PTY", AuthorizedKey("")),
        (f'{NO},no-user-rc,environment="A=b c",permitopen="*:80",permitopen="*:81",permitlisten="1"', AuthorizedKey("")),
        ('tunnel="0",no-touch-required', AuthorizedKey("", options=KeyOptions(no_touch_required=True))),
        ("verify-required,restrict", AuthorizedKey("", options=KeyOptions(verify_required=True))),
        ('identity="alice"', AuthorizedKey("", "alice")),
        (f'command="/home/git/gitolite/src/gitolite-shell alice",{NO}', AuthorizedKey("", "alice")),
        (f'command="/usr/share/gitolite3/gitolite-shell alice@example.com",{NO},no-user-rc', AuthorizedKey("", "alice@example.com")),
        ('command="gl-auth-command alice"', AuthorizedKey("", "alice")),
        ('command="gitolite-shell alice",identity="alice"', AuthorizedKey("", "alice")),
        (
            'from="192.0.2.0/24,10.*,!10.9.9.9,2001:db8::/32"',
            AuthorizedKey("", None, None, ("192.0.2.0/24", "10.*", "!10.9.9.9", "2001:db8::/32")),
        ),
        ('expiry-time="20300102Z"', AuthorizedKey("", None, 1_893_542_400)),
        ('expiry-time="203001020304Z"', AuthorizedKey("", None, 1_893_553_440)),
        ('expiry-time="20300102030405Z"', AuthorizedKey("", None, 1_893_553_445)),
        ("cert-authority", AuthorizedKey("", authority=True)),
        ('cert-authority,principals="alice,relay-users"\t', AuthorizedKey("", authority=True, principals=("alice", "relay-users"))),
        ('identity="a \\"b\\", c"', AuthorizedKey("", 'a "b", c')),
    ],
)
def test_accepted_lines_and_options(key: Key, options: str, line: AuthorizedKey) -> None:
    assert read(key, options) == line


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ('command="id"', 'forces the command "id", which a relay cannot run'),
        ('command="gitolite-shell"', "which a relay cannot run"),
        ('command="gitolite-shell alice bob"', "which a relay cannot run"),
        ('command="gitolite-shell alice; id"', "which a relay cannot run"),
        ('command="x-gitolite-shell alice"', "which a relay cannot run"),
        ('command="/usr/local/bin/gitea --config=/etc/app.ini serv key-7"', "names a key and not a person; must have identity="),
        ('command="/opt/gitlab/gitlab-shell key-7"', "names a key and not a person"),
        ('command="gitolite-shell alice",identity="bob"', 'is "bob" by identity= and "alice" by command=, must be one'),
        ('command="gitolite-shell @all"', 'the identity "@all" must not be'),
        ('identity=""', 'the identity "" is empty'),
        ('identity="a/b"', "must have printable characters only"),
        ("verify-reqired,restrict", 'has the option "verify-reqired", which the relay cannot see to; allowed are cert-authority, command,'),
        ('verify-required="yes"', "has the option verify-required with a value"),
        ("no-such-thing,restrict", 'has the option "no-such-thing"'),
        ('from="*.example.com"', 'has "*.example.com" in from=, must be an address, a network, or a pattern'),
        ('from="192.0.2.1,!evil.example.com"', 'has "!evil.example.com" in from='),
        ('from="192.0.2.7/24"', 'has "192.0.2.7/24" in from=, must be a network'),
        ('from="192.0.2.*/24"', "must be a network"),
        ('from=""', 'has "" in from='),
        ("from", "has the option from without a value"),
        ('restrict="yes"', "has the option restrict with a value"),
        ('from="10.0.0.1",from="10.0.0.2"', "has the option from twice"),
        ('expiry-time="2030"', 'has the expiry-time "2030", must be YYYYMMDD'),
        ('expiry-time="20301301"', "must be YYYYMMDD"),
        ('expiry-time="2030010203z5"', "must be YYYYMMDD"),
        ('expiry-time="٢٠٣٠٠١٠٢"', "must be YYYYMMDD"),
        ('principals="alice"', "has principals= without cert-authority"),
        ('cert-authority,principals=","', "has principals= without a name"),
        ('identity="alice', "has options in front of the key that cannot be read"),
        ('identity="alice"x', "has options in front of the key that cannot be read"),
        ("restrict,", "has options in front of the key that cannot be read"),
        ('restrict, identity="alice"', "has options in front of the key that cannot be read"),
        ("identity=alice", "has options in front of the key that cannot be read"),
        ("host.example.com", "has something in front of the key (options or a host name)"),
        ("x" * LINE_BYTES, f"allowed are {LINE_BYTES}"),
    ],
)
def test_refused_lines_and_options(key: Key, options: str, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(key, options)
    assert text in str(caught.value)
    assert key.line.split()[1] not in str(caught.value)


def test_a_line_of_options_without_a_key() -> None:
    certificate = "cert-authority ssh-ed25519-cert-v01@openssh.com A"
    for text in ("restrict", 'identity="alice"', 'identity="alice" ', 'identity="alice" ssh-ed25519', certificate):
        with pytest.raises(ValueError, match="must"):
            read_line(text)


def test_every_option_is_of_one_kind() -> None:
    assert MEANINGLESS.isdisjoint(HONOURED)
    assert {"cert-authority", "no-touch-required", "verify-required"} == set(HONOURED) - VALUED


def test_local_time(key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Etc/GMT-3")  # three hours east
    time.tzset()
    try:
        assert read(key, 'expiry-time="20300102"').expires == 1_893_542_400 - 3 * 3600
    finally:
        monkeypatch.undo()
        time.tzset()


def test_conditions_are_checked() -> None:
    line = AuthorizedKey("", None, 1000.0, ("192.0.2.0/24",))
    line.check("192.0.2.7", 1000)
    with pytest.raises(NotAccepted, match="the key's expiry-time was 1970-01-01T00:16:40Z") as caught:
        line.check("192.0.2.7", 1000.5)
    assert caught.value.reason == "expired"
    with pytest.raises(NotAccepted, match=r'the key may not be used from 192\.0\.3\.7 \(from="192\.0\.2\.0/24"\)') as caught:
        line.check("192.0.3.7", 0)
    assert caught.value.reason == "source_address"


@pytest.mark.parametrize(
    ("patterns", "inside", "outside"),
    [
        (("10.*",), ["10.1.2.3", "::ffff:10.1.2.3"], ["110.1.2.3", "2001:db8::10.1.2.3"]),
        (("192.0.2.?",), ["192.0.2.7"], ["192.0.2.77"]),
        (("*", "!192.0.2.0/24"), ["192.0.3.7", "::1"], ["192.0.2.7", "::ffff:192.0.2.7", "unknown", ""]),
        (("!192.0.2.7",), [], ["192.0.2.7", "192.0.2.8"]),
        (("2001:DB8:*",), ["2001:db8::7"], ["2001:db9::7"]),
        (("2001:db8::/32", "::1"), ["2001:db8:1::7", "::1"], ["::2", "127.0.0.1"]),
    ],
)
def test_patterns(patterns: tuple[str, ...], inside: list[str], outside: list[str]) -> None:
    assert [address for address in inside + outside if matches(address, patterns)] == inside


@given(st.text(max_size=80))
def test_any_line_is_read_or_refused_in_words(text: str) -> None:
    for candidate in (text, f"{text} ssh-ed25519 AAAA", f'from="{text}" ssh-ed25519 AAAA', f'expiry-time="{text}" ssh-ed25519 AAAA'):
        try:
            read_line(candidate)
        except ValueError as error:
            assert 0 < len(str(error)) < 700


def test_sshd_reads_the_same_lines(key: Key, tmp_path: Path) -> None:
    """The accepted lines are valid for sshd: ssh-keygen, which parses authorized_keys as sshd does, finds the key in each."""
    for options in (f'command="gitolite-shell alice",{NO}', 'from="10.*,!10.9.9.9"', 'cert-authority,principals="a,b"', "restrict,pty"):
        (tmp_path / "authorized_keys").write_text(f"{options} {key.line}\n")
        done = subprocess.run(["ssh-keygen", "-l", "-f", tmp_path / "authorized_keys"], capture_output=True, text=True, check=True)
        assert key.fingerprint in done.stdout
