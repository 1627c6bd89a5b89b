"""[policy] in front of the real ssh: groups of access.toml that change while the relay serves, and what is told of a refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from tests.e2e.helpers import alice, audited
from tests.support.keys import USER_PRESENT, USER_VERIFIED, SoftwareSecurityKey, make_key
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

STUB = "git-upload-pack 'stub/emit/10/0'"


async def test_a_rule_for_a_group_holds_as_soon_as_the_group_changes(
    make_relay: Callable[..., RelayProcess], sshd: Sshd, tmp_path: Path
) -> None:
    policy = {"rsa_bits": 3072, "rule": [{"who": ["@staff"], "verify_required": True}]}
    rule = {"repositories": "**", "who": ["*"], "allow": "write"}
    relay = make_relay(sshd, config={"policy": policy}, access={"groups": {"staff": ["bob"]}, "rule": [rule]})
    assert relay.ssh().run(STUB).returncode == 0
    relay.write_access({"groups": {"staff": ["alice", "bob"]}, "rule": [rule]})

    def refused() -> CompletedProcess[bytes] | None:
        tried = relay.ssh().run(STUB)
        return tried if tried.returncode == 255 else None  # 128: the file was read half written

    done = wait_until(refused, message="the new group is in force")
    assert done is not None and done.stderr.endswith(b": Permission denied (publickey).\r\n")
    [line] = audited(relay, 0, event="auth_failed")
    assert (line["reason"], line["key"]) == ("key_type", relay.key.fingerprint)
    assert line["detail"].startswith("alice: the key is of type ssh-ed25519, policy.rule#1 allows sk-ecdsa-")
    relay.wait_for_log(r"a connection from 127\.0\.0\.1 as alice \(SHA256:.{43}\) is refused: the key is of type ssh-ed25519")
    token = SoftwareSecurityKey()
    relay.add_key("alice@token", token.line)
    token.flags = USER_PRESENT | USER_VERIFIED
    async with alice(relay, token) as connection:
        assert (await run(connection, STUB)).exit_status == 0
    old = make_key(tmp_path, "carol", "rsa")
    relay.add_key("carol", old.line)
    assert relay.ssh(key=old).run(STUB).returncode == 255
    assert [relay.metric("relay_auth_failures_total", reason=reason) for reason in ("key_type", "key_size")] == [1, 1]
