"""The real git pushes through a relay with ref rules: an allowed push is carried, and no byte of a refused push reaches the git host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relay.git.pktline import PktLines, Special, pkt_line
from relay.git.push_commands import LIST_MOST_BYTES
from tests.e2e.helpers import alice, audited
from tests.support.clients import CLIENTS, Client, Missing
from tests.support.gitrepo import commit, git, make_repo, refs, rev_list, rev_parse
from tests.support.keys import make_key
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

ACCESS: dict[str, Any] = {
    "rule": [
        {"repositories": "git/**", "who": ["alice", "bob"], "allow": "write"},
        {"repositories": "git/**", "who": ["bob"], "allow": "write", "refs": ["refs/heads/main", "refs/heads/release/**"]},
        {"repositories": "git/**", "who": ["*"], "deny": "write", "refs": ["refs/tags/**"], "changes": ["update", "delete"]},
        {"repositories": "git/**", "who": ["alice"], "deny": "write", "refs": ["refs/heads/keep"], "changes": ["delete"]},
        {"repositories": "git/**", "who": ["carol"], "allow": "read"},
        {"repositories": "git/**", "who": ["carol"], "allow": "write", "refs": ["refs/heads/docs/*"]},
        {"repositories": "git/*costly*", "who": ["*"], "deny": "write", "refs": [f"refs/heads/**/*x*y{n}" for n in range(1000)]},
        {"repositories": "free/**", "who": ["*"], "allow": "write"},
    ]
}
REFUSED = b"! [remote rejected] %s -> %s (not allowed by access rules)"
WITH = b"! [remote rejected] %s -> %s (not pushed: another ref of this push was refused)"


@pytest.fixture(scope="module")
def relay(sshd: Sshd) -> Iterator[RelayProcess]:
    with RelayProcess(sshd, access=ACCESS) as process:
        for name in ("bob", "carol"):
            process.add_key(name, make_key(process.folder / name, name).line)
        yield process


@pytest.fixture
def env(relay: RelayProcess, tmp_path: Path) -> dict[str, str]:
    return relay.git_env(tmp_path / "home")


@pytest.fixture
def bare(sshd: Sshd, request: pytest.FixtureRequest) -> Path:
    name = request.node.name.translate({ord("["): "-", ord("]"): ""})
    return make_repo(sshd.root / f"git/{name}.git")


@pytest.fixture
def work(relay: RelayProcess, bare: Path, env: dict[str, str], tmp_path: Path) -> Path:
    """A clone with one commit more."""
    git("clone", "-q", relay.url(f"git/{bare.stem}"), tmp_path / "work", env=env)
    commit(tmp_path / "work", env)
    return tmp_path / "work"


def push(work: Path, env: dict[str, str], *arguments: str, fails: bool | None = False) -> bytes:
    """`fails`: None if the whole session is refused."""
    done = git("push", "origin", *arguments, cwd=work, env=env, check=False)
    assert done.returncode == (128 if fails is None else 1 if fails else 0), done.stderr.decode()
    return done.stderr


def of(relay: RelayProcess, who: str, home: Path) -> dict[str, str]:
    """An environment in which git logs in as another person."""
    return relay.git_env(home, replace(relay.key, private=relay.folder / who / who))


def refused(relay: RelayProcess, since: int) -> dict[str, Any]:
    [line] = audited(relay, since, event="command_rejected")
    assert (line["result"], line["reason"]) == ("policy", "ref_denied")
    return line


def test_what_no_rule_names_is_pushed(relay: RelayProcess, bare: Path, work: Path, env: dict[str, str]) -> None:
    push(work, env, "HEAD:topic", "HEAD:refs/tags/v1", "HEAD:refs/notes/x")
    assert refs(bare, env).keys() == {"refs/heads/main", "refs/heads/topic", "refs/tags/v1", "refs/notes/x"}
    assert rev_parse(bare, env, "topic") == rev_parse(work, env)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_protected_branch_is_refused(relay: RelayProcess, bare: Path, work: Path, tmp_path: Path, version: int) -> None:
    env = relay.git_env(tmp_path / "home", protocol=version)
    before, since = refs(bare, env), len(relay.audit_lines())
    rejected = relay.metric("relay_commands_rejected_total", reason="ref")
    said = push(work, env, "HEAD:main", fails=True)
    assert REFUSED % (b"HEAD", b"main") in said
    assert b"error: failed to push some refs to" in said
    for other in (b"disconnect", b"hung up", b"fatal", b"died", b"Broken pipe"):
        assert other not in said
    assert refs(bare, env) == before
    line = refused(relay, since)
    assert (line["detail"], line["exit_status"]) == ("update refs/heads/main: not allowed by access rules", 0)
    assert (line["kind"], line["git_version"], line["refs_more"], line["refs_truncated"]) == ("push", int(version == 1), 0, False)
    assert line["refs"] == [{"ref": "refs/heads/main", "old": rev_parse(bare, env, "main"), "new": rev_parse(work, env)}]
    wait_until(lambda: relay.metric("relay_commands_rejected_total", reason="ref") == rejected + 1)


@pytest.mark.parametrize("atomic", [False, True])
def test_one_refused_is_all_refused(relay: RelayProcess, bare: Path, work: Path, env: dict[str, str], atomic: bool) -> None:
    before = refs(bare, env)
    said = push(work, env, *(["--atomic"] if atomic else []), "HEAD:topic", "HEAD:main", fails=True)
    assert REFUSED % (b"HEAD", b"main") in said
    assert (b"! [remote rejected] HEAD -> topic (atomic push failure)" if atomic else WITH % (b"HEAD", b"topic")) in said
    assert refs(bare, env) == before
    push(work, env, *(["--atomic"] if atomic else []), "HEAD:topic")
    assert refs(bare, env).keys() == {"refs/heads/main", "refs/heads/topic"}


def test_a_push_too_costly_to_judge_is_refused_and_a_smaller_one_passes(
    relay: RelayProcess, bare: Path, work: Path, env: dict[str, str]
) -> None:
    before, since = refs(bare, env), len(relay.audit_lines())
    names = ["/".join(f"{which}.{depth}" for depth in range(70)) for which in range(40)]
    said = push(work, env, *(f"HEAD:refs/heads/{name}" for name in names), fails=True)
    assert b"! [remote rejected] HEAD -> %s (too many refs for the access rules, push fewer at once)" % names[-1].encode() in said
    assert WITH % (b"HEAD", names[0].encode()) in said
    assert refs(bare, env) == before
    [line] = audited(relay, since, event="command_rejected")
    assert (line["result"], line["reason"]) == ("policy", "ref_too_many")
    push(work, env, *(f"HEAD:refs/heads/{name}" for name in names[:20]))
    assert len(refs(bare, env)) == len(before) + 20


def test_who_is_named_may(relay: RelayProcess, bare: Path, work: Path, tmp_path: Path) -> None:
    env = of(relay, "bob", tmp_path / "bob")
    push(work, env, "HEAD:main", "HEAD:release/1/2", "HEAD:topic")
    assert set(refs(bare, env).values()) == {rev_parse(work, env)}


def test_deleting_has_rules_of_its_own(relay: RelayProcess, bare: Path, work: Path, env: dict[str, str]) -> None:
    push(work, env, "HEAD:keep", "HEAD:gone")
    before, since = refs(bare, env), len(relay.audit_lines())
    said = push(work, env, "--delete", "keep", "gone", fails=True)
    assert b"! [remote rejected] keep (not allowed by access rules)" in said
    assert b"! [remote rejected] gone (not pushed: another ref of this push was refused)" in said
    assert refs(bare, env) == before
    assert [one["new"] for one in refused(relay, since)["refs"]] == ["0" * 40] * 2
    commit(work, env, "more")
    push(work, env, "HEAD:keep", ":gone")
    assert refs(bare, env).keys() == {"refs/heads/main", "refs/heads/keep"}


def test_a_tag_that_is_there_stays_what_it_is(relay: RelayProcess, bare: Path, work: Path, env: dict[str, str]) -> None:
    git("tag", "-a", "-m", "release", "v1", cwd=work, env=env)
    push(work, env, "v1")
    before = refs(bare, env)
    git("tag", "-f", "-a", "-m", "another", "v1", cwd=work, env=env)
    assert REFUSED % (b"v1", b"v1") in push(work, env, "--force", "v1", fails=True)
    assert b"! [remote rejected] v1 (not allowed by access rules)" in push(work, env, "--delete", "v1", fails=True)
    assert refs(bare, env) == before


def test_whether_it_is_forced_makes_no_difference(relay: RelayProcess, bare: Path, work: Path, env: dict[str, str]) -> None:
    push(work, env, "HEAD:topic")
    git("commit", "--amend", "-q", "-m", "rewritten", cwd=work, env=env)
    push(work, env, "--force", "HEAD:topic")
    assert rev_parse(bare, env, "topic") == rev_parse(work, env)
    before = refs(bare, env)
    assert REFUSED % (b"HEAD", b"main") in push(work, env, "--force", "HEAD:main", fails=True)
    assert refs(bare, env) == before


def test_one_who_may_only_push_to_some_refs(relay: RelayProcess, bare: Path, work: Path, tmp_path: Path) -> None:
    env = of(relay, "carol", tmp_path / "carol")
    before = refs(bare, env)
    assert REFUSED % (b"HEAD", b"topic") in push(work, env, "HEAD:topic", fails=True)
    assert refs(bare, env) == before
    push(work, env, "HEAD:docs/typo")
    assert refs(bare, env).keys() == {"refs/heads/main", "refs/heads/docs/typo"}


def test_a_repository_of_sha256(relay: RelayProcess, sshd: Sshd, env: dict[str, str], tmp_path: Path) -> None:
    bare, work = sshd.root / "git/sha256.git", tmp_path / "work"
    git("init", "-q", "--bare", "--object-format=sha256", "--initial-branch=main", bare, env=env)
    git("init", "-q", "--object-format=sha256", "--initial-branch=main", work, env=env)
    git("remote", "add", "origin", relay.url("git/sha256"), cwd=work, env=env)
    commit(work, env)
    assert REFUSED % (b"main", b"main") in push(work, env, "main", fails=True)
    assert refs(bare, env) == {}
    push(work, env, "main:topic")
    assert refs(bare, env) == {"refs/heads/topic": rev_parse(work, env)}
    [line] = audited(relay, 0, repository="git/sha256", event="session", kind="push")
    assert [len(line["refs"][0][which]) for which in ("old", "new")] == [64, 64]


def test_a_signed_push_is_judged_by_its_certificate(bare: Path, work: Path, env: dict[str, str], tmp_path: Path) -> None:
    signer = make_key(tmp_path / "signer", "signer")
    git("config", "receive.certNonceSeed", "seed", cwd=bare, env=env)
    for name, value in (("gpg.format", "ssh"), ("user.signingKey", str(signer.private))):
        git("config", name, value, cwd=work, env=env)
    before = refs(bare, env)
    said = push(work, env, "--signed", "HEAD:topic", "HEAD:main", fails=True)
    assert REFUSED % (b"HEAD", b"main") in said and WITH % (b"HEAD", b"topic") in said
    assert refs(bare, env) == before
    push(work, env, "--signed", "HEAD:topic")
    assert refs(bare, env).keys() == {"refs/heads/main", "refs/heads/topic"}


def test_push_options_come_after_the_list(relay: RelayProcess, bare: Path, work: Path, env: dict[str, str]) -> None:
    git("config", "receive.advertisePushOptions", "true", cwd=bare, env=env)
    hook = bare / "hooks/pre-receive"
    hook.write_text('#!/bin/sh\necho "option $GIT_PUSH_OPTION_0 of $GIT_PUSH_OPTION_COUNT"\n')
    hook.chmod(0o755)
    before = refs(bare, env)
    said = push(work, env, "-o", "ci.skip", "HEAD:main", fails=True)
    assert REFUSED % (b"HEAD", b"main") in said and b"remote:" not in said
    assert refs(bare, env) == before
    assert b"remote: option ci.skip of 1" in push(work, env, "-o", "ci.skip", "HEAD:topic")
    assert rev_parse(bare, env, "topic") == rev_parse(work, env)


def test_a_push_from_a_shallow_clone(relay: RelayProcess, bare: Path, env: dict[str, str], tmp_path: Path) -> None:
    work = tmp_path / "shallow"
    git("clone", "-q", "--depth=1", relay.url(f"git/{bare.stem}"), work, env=env)
    commit(work, env)
    before = refs(bare, env)
    assert REFUSED % (b"HEAD", b"main") in push(work, env, "HEAD:main", fails=True)
    assert refs(bare, env) == before
    push(work, env, "HEAD:topic")
    assert rev_parse(bare, env, "topic") == rev_parse(work, env)


def test_a_big_push_is_refused_and_costs_no_memory(relay: RelayProcess, sshd: Sshd, bare: Path, work: Path, env: dict[str, str]) -> None:
    """The relay reads and drops the pack, because git reads the report only after it; the git host's connection serves on."""
    for number in range(4):
        commit(work, env, f"big-{number}", os.urandom(25_000_000))
    before, logins, since = refs(bare, env), sshd.logins(), len(relay.audit_lines())
    objects = rev_list(bare, env)
    rss = relay.rss()
    said = push(work, env, "HEAD:main", fails=True)
    assert REFUSED % (b"HEAD", b"main") in said
    assert refs(bare, env) == before and rev_list(bare, env) == objects
    assert not list(bare.glob("objects/tmp_*")) and not list(bare.glob("objects/pack/tmp_*"))
    assert relay.rss() - rss < 30_000_000
    [line] = audited(relay, since, event="command_rejected")
    assert line["seconds"] > 0
    for _ in range(3):
        assert git("ls-remote", relay.url(f"git/{bare.stem}"), env=env).stdout
    assert sshd.logins() == logins, "the connection was not given back"


def test_thousands_of_refs(relay: RelayProcess, bare: Path, work: Path, env: dict[str, str]) -> None:
    """The report is larger than any pipe, and the list larger than any packet."""
    before = refs(bare, env)
    head = rev_parse(work, env)
    names = "".join(f"create refs/heads/many/a-rather-long-name-{number:05d} {head}\n" for number in range(3000))
    git("update-ref", "--stdin", cwd=work, env=env, stdin=names.encode())
    said = push(work, env, "refs/heads/many/*", "HEAD:main", fails=True)
    assert said.count(b"[remote rejected]") == 3001 and said.count(b"(not allowed by access rules)") == 1
    assert refs(bare, env) == before
    since = len(relay.audit_lines())
    push(work, env, "refs/heads/many/*")
    assert len(refs(bare, env)) == 3001
    [line] = audited(relay, since, event="session")
    assert len(line["refs"]) + line["refs_more"] == 3000 and line["refs_more"] > 2900 and not line["refs_truncated"]


# -- without rules: the relay only reads along -------------------------------------------------------------------------------


def test_the_audit_lists_what_was_pushed(relay: RelayProcess, sshd: Sshd, env: dict[str, str], tmp_path: Path) -> None:
    bare = make_repo(sshd.root / "free/pushed.git")
    work = tmp_path / "work"
    git("clone", "-q", relay.url("free/pushed"), work, env=env)
    old, new, since = rev_parse(work, env), commit(work, env), len(relay.audit_lines())
    git("push", "origin", "HEAD:main", "HEAD:refs/tags/v1", cwd=work, env=env)
    [line] = audited(relay, since, event="session", service="git-receive-pack")
    assert sorted(one["ref"] for one in line["refs"]) == ["refs/heads/main", "refs/tags/v1"]
    assert {"ref": "refs/heads/main", "old": old, "new": new} in line["refs"]
    assert {"ref": "refs/tags/v1", "old": "0" * 40, "new": new} in line["refs"]
    assert rev_parse(bare, env, "main") == new
    since = len(relay.audit_lines())
    git("push", "origin", "HEAD:main", cwd=work, env=env)
    [line] = audited(relay, since, event="session")
    assert (line["kind"], line["refs"]) == ("list", [])


@pytest.mark.parametrize("version", [0, 1, 2])
def test_the_audit_tells_clone_fetch_and_list(relay: RelayProcess, sshd: Sshd, tmp_path: Path, version: int) -> None:
    env = relay.git_env(tmp_path / "home", protocol=version)
    bare = make_repo(sshd.root / f"free/kinds-{version}.git")
    url, work = relay.url(f"free/{bare.stem}"), tmp_path / "work"

    def kind(*arguments: str | Path, cwd: Path | None = None) -> tuple[str, int | None]:
        since = len(relay.audit_lines())
        git(*arguments, cwd=cwd, env=env)
        [line] = audited(relay, since, event="session")
        return line["kind"], line["git_version"]

    assert kind("ls-remote", url) == ("list", version)
    assert kind("clone", "-q", url, work) == ("clone", version)
    assert kind("clone", "-q", "--depth=1", url, tmp_path / "shallow") == ("clone", version)
    assert kind("fetch", "origin", cwd=work) == ("list", version)
    git("clone", "-q", bare, tmp_path / "other", env=env)
    commit(tmp_path / "other", env)
    git("push", "-q", "origin", "HEAD:main", cwd=tmp_path / "other", env=env)
    assert kind("fetch", "origin", cwd=work) == ("fetch", version)
    assert kind("fetch", "--unshallow", "origin", cwd=tmp_path / "shallow") == ("fetch", version)


# -- other clients -----------------------------------------------------------------------------------------------------------

A, B = "a" * 40, "b" * 40
CAPABILITIES = b"\0 report-status side-band-64k object-format=sha1 agent=test"
LIST = pkt_line(f"{A} {B} refs/heads/main".encode() + CAPABILITIES) + b"0000"


def advertised(stdout: bytes) -> tuple[list[bytes], bytes]:
    """The packets up to the first flush-pkt, and what follows them."""
    packets, found = PktLines(), list[bytes]()
    packets.feed(stdout)
    while isinstance(packet := packets.take(), bytes):
        found.append(packet)
    assert packet is Special.FLUSH
    return found, stdout[len(stdout) - packets.waiting :]


async def test_a_client_that_does_not_wait_for_the_refs_gets_them_before_the_report(relay: RelayProcess, bare: Path) -> None:
    async with alice(relay) as connection:
        heard = await run(connection, f"git-receive-pack 'git/{bare.stem}'", LIST + b"PACK" + bytes(100_000))
    told, report = advertised(heard.stdout)
    assert any(packet.startswith(b"refs/heads/main", 41) for packet in told)
    [band], rest = advertised(report)
    assert advertised(band[1:])[0] == [b"unpack ok\n", b"ng refs/heads/main not allowed by access rules\n"]
    assert (rest, heard.stderr, heard.exit_status) == (b"", b"", 0)


async def test_a_client_that_keeps_its_output_open_and_goes(relay: RelayProcess, bare: Path) -> None:
    since = len(relay.audit_lines())
    async with alice(relay) as connection:
        process = await connection.create_process(f"git-receive-pack 'git/{bare.stem}'", encoding=None)
        process.stdin.write(LIST + b"PACK")
        heard = b""
        while b"not allowed" not in heard:
            heard += await process.stdout.read(65_536)
        process.channel.close()
        await process.wait_closed()
    refused(relay, since)


@pytest.mark.parametrize(
    ("sent", "said", "reason"),
    [
        (LIST.replace(b"report-status", b"report-nothin"), b"relay: the push was refused by access rules\n", "ref_denied"),
        (b"SSH-2.0-what\r\n", b"relay: the push was refused by access rules: it cannot be read\n", "ref_malformed"),
        (LIST[:-4] + b"0001", b"relay: the push was refused by access rules: it cannot be read\n", "ref_malformed"),
        (LIST[:-4], b"relay: the push was refused by access rules: it cannot be read\n", "ref_malformed"),
        (
            pkt_line(f"{A} {B} refs/heads/topic".encode()) * (LIST_MOST_BYTES // 98 + 1),
            b"relay: the push was refused by access rules: too many refs\n",
            "ref_too_many",
        ),
    ],
    ids=["no report", "garbage", "delim", "no end", "too many"],
)
async def test_one_that_gets_no_report_reads_why(
    relay: RelayProcess, bare: Path, env: dict[str, str], sent: bytes, said: bytes, reason: str
) -> None:
    before, since = refs(bare, env), len(relay.audit_lines())
    async with alice(relay) as connection:
        heard = await run(connection, f"git-receive-pack 'git/{bare.stem}'", sent)
    assert (heard.stderr, heard.exit_status) == (said, 128)
    assert advertised(heard.stdout)[1] == b""
    [line] = audited(relay, since, event="command_rejected")
    assert line["reason"] == reason
    assert refs(bare, env) == before


@pytest.fixture(scope="module")
def compatible(sshd: Sshd) -> Iterator[RelayProcess]:
    """A relay with `algorithms = "compatible"`, for every client."""
    with RelayProcess(sshd, access=ACCESS, config={"algorithms": {"profile": "compatible"}}) as process:
        yield process


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_every_client_is_told(compatible: RelayProcess, bare: Path, env: dict[str, str], tmp_path: Path, client: Client) -> None:
    """Also clients that disconnect without waiting for the exit status, or never send EOF."""
    home, work = tmp_path / "client", tmp_path / "work"
    try:
        with_it = client.at(compatible, home)
    except Missing as missing:
        pytest.skip(str(missing))
    with_it.clone(compatible.url(f"git/{bare.stem}"), work)
    commit(work, env, "big", os.urandom(3_000_000))  # more than any client's window
    before, since = refs(bare, env), len(compatible.audit_lines())
    done = with_it.push(work, "main", check=False)
    assert b"not allowed by access rules" in done.stdout + done.stderr
    assert refs(bare, env) == before
    refused(compatible, since)
    git("branch", "topic", cwd=work, env=env)
    with_it.push(work, "topic")
    assert refs(bare, env).keys() == {"refs/heads/main", "refs/heads/topic"}


def test_a_git_host_that_ignores_case(sshd: Sshd, tmp_path: Path) -> None:
    """The test has no such file system: it checks that the host gets the folded name for any spelling, and that rules match that name."""
    rules = [
        {"repositories": "**", "who": ["alice"], "allow": "write"},
        {"repositories": "case/secret", "who": ["alice"], "deny": "write"},
        {"repositories": "case/**", "who": ["bob"], "allow": "write", "refs": ["refs/heads/main"]},
    ]
    for name in ("app", "secret"):
        make_repo(sshd.root / f"case/{name}.git")
    with RelayProcess(sshd, config={"upstreams": {"main": {"ignore_case": True}}}, access={"rule": rules}) as relay:
        env = relay.git_env(tmp_path / "home")
        for name in ("CASE/App", "Case/SECRET.GIT"):
            git("clone", "-q", relay.url(name), tmp_path / name, env=env)
            commit(tmp_path / name, env)
        assert b"relay: you may read case/secret, not write it" in push(tmp_path / "Case/SECRET.GIT", env, "HEAD:topic", fails=None)
        assert REFUSED % (b"HEAD", b"MAIN") in push(tmp_path / "CASE/App", env, "HEAD:refs/heads/MAIN", fails=True)
        push(tmp_path / "CASE/App", env, "HEAD:topic")
        names = {line.get("repository") for line in relay.audit_lines() if line.get("repository")}
        assert names == {"case/app", "case/secret"}
