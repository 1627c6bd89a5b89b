"""Requests of protocol version 2 and their normal form: which fetch requests are equal, and which answers may not be kept."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.git.pktline import pkt_line
from relay.git.v2_request import BadRequest, Fetch, Refs, Request, fetch_of, probe, read_request
from tests.git.transcripts import load, names
from tests.support.gitrepo import git_env, make_repo, rev_parse

A, B = "a" * 40, "b" * 40
LONG = "c" * 64


def raw(command: str, arguments: list[str], capabilities: list[str] | None = None) -> bytes:
    keys = [f"command={command}", *(["agent=git/2.39.5", "object-format=sha1"] if capabilities is None else capabilities)]
    lines = [pkt_line(key.encode() + b"\n") for key in keys]
    return b"".join([*lines, b"0001", *(pkt_line(line.encode() + b"\n") for line in arguments), b"0000"])


def fetch(*arguments: str, capabilities: list[str] | None = None) -> Fetch:
    found = fetch_of(read_request(raw("fetch", list(arguments), capabilities)))
    assert found is not None
    return found


CLONE = ("thin-pack", "no-progress", "include-tag", "ofs-delta", f"want {A}", f"want {B}", "done")


def key(request: Fetch, tags: bytes | None = b"tags", upstream: str = "main", path: str = "/app.git", identity: str = "") -> bytes | None:
    return request.key(upstream, path, identity, tags)


# -- parsing ---------------------------------------------------------------------------------------------------------------------------


def test_a_request_is_taken_apart() -> None:
    request = read_request(raw("ls-refs", ["peel", "ref-prefix refs/heads/"]))
    assert request.command == b"ls-refs"
    assert request.capabilities == (b"agent=git/2.39.5", b"object-format=sha1")
    assert request.arguments == (b"peel", b"ref-prefix refs/heads/")
    assert fetch_of(request) is None and not request.sideband_all


def test_a_newline_is_not_needed() -> None:
    plain = pkt_line(b"command=fetch") + b"0001" + pkt_line(b"want " + A.encode()) + pkt_line(b"done") + b"0000"
    assert read_request(plain).arguments == (b"want " + A.encode(), b"done")


def test_a_request_without_arguments_needs_no_delim() -> None:
    assert read_request(pkt_line(b"command=bundle-uri") + b"0000").arguments == ()


def test_a_flush_alone_is_the_end() -> None:
    assert read_request(b"0000") == Request(b"0000")


@pytest.mark.parametrize(
    "data",
    [
        b"00010000",
        pkt_line(b"agent=x") + b"0000",
        pkt_line(b"command=ls-refs") * 2 + b"0000",
        pkt_line(b"command=push") + b"0000",
        pkt_line(b"command=ls-refs") + b"000100010000",
        pkt_line(b"command=ls-refs") + b"00020000",
        pkt_line(b"command=fetch") + b"0001" + pkt_line(b"done") + b"0000",
        pkt_line(b"command=fetch") + b"0000",
        b"00zz",
    ],
)
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequest):
        read_request(data)


def test_a_fetch_that_only_waits_for_done_has_an_answer() -> None:
    assert read_request(raw("fetch", [f"have {A}", "wait-for-done"])).command == b"fetch"


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    for candidate in (data, b"".join(pkt_line(part) for part in data.split(b"\r")) + b"0000"):
        try:
            fetch_of(read_request(candidate))
        except BadRequest as error:
            assert str(error).isprintable()


# -- answers that may be kept ----------------------------------------------------------------------------------------------------------

KEPT = {
    "a clone": CLONE,
    "depth 1": (*CLONE, "deepen 1"),
    "depth 50": (*CLONE, "deepen 50"),
    "relative": (*CLONE, "deepen 1", "deepen-relative"),
    "since": (*CLONE, "deepen-since 1700000000"),
    "without blobs": (*CLONE, "filter blob:none"),
    "without big blobs": (*CLONE, "filter blob:limit=1048576"),
    "without trees": (*CLONE, "filter tree:0"),
    "commits only": (*CLONE, "filter object:type=commit"),
    "a plain want": (f"want {A}", "done"),
    "upper case": (f"want {A.upper()}", "done"),
}


@pytest.mark.parametrize("name", KEPT)
def test_an_answer_that_depends_on_objects_only_may_be_kept(name: str) -> None:
    found = fetch(*KEPT[name])
    assert found.not_kept == "" and found.done and found.wants <= {A.encode(), B.encode()}
    assert key(found) is not None


NOT_KEPT = {
    "no done": (CLONE[:-1], None, "no_done"),
    "a have": ((*CLONE, f"have {A}"), None, "have"),
    "a shallow": ((*CLONE, f"shallow {A}"), None, "shallow"),
    "a shallow that is none": ((*CLONE, "shallow x"), None, "shallow"),
    "want-ref": ((*CLONE, "want-ref refs/heads/main"), None, "not_known"),
    "want-ref alone": (("want-ref refs/heads/main", "done"), None, "not_known"),
    "deepen-not": ((*CLONE, "deepen-not v1"), None, "not_known"),
    "packfile-uris": ((*CLONE, "packfile-uris https"), None, "not_known"),
    "sideband-all": ((*CLONE, "sideband-all"), None, "not_known"),
    "wait-for-done": ((*CLONE, "wait-for-done"), None, "not_known"),
    "an unknown argument": ((*CLONE, "surprise"), None, "not_known"),
    "an empty argument": ((*CLONE, ""), None, "not_known"),
    "an unknown value": ((*CLONE, "thin-pack please"), None, "not_known"),
    "a word with a space": ((*CLONE, "ofs-delta "), None, "not_known"),
    "done with a value": ((*CLONE, "done now"), None, "not_known"),
    "no-progress with a value": ((*CLONE, "no-progress 1"), None, "not_known"),
    "a filter by a path in a ref": ((*CLONE, "filter sparse:oid=main:spec"), None, "not_known"),
    "a filter that combines": ((*CLONE, "filter combine:tree:0+sparse:oid=main"), None, "not_known"),
    "two filters": ((*CLONE, "filter blob:none", "filter tree:0"), None, "repeated"),
    "two depths": ((*CLONE, "deepen 1", "deepen 2"), None, "repeated"),
    "a depth that is no number": ((*CLONE, "deepen x"), None, "not_known"),
    "a depth of 0": ((*CLONE, "deepen 0"), None, "not_known"),
    "a depth without a number": ((*CLONE, "deepen"), None, "not_known"),
    "a time that is no number": ((*CLONE, "deepen-since yesterday"), None, "not_known"),
    "a want that is no id": ((*CLONE, "want main"), None, "not_known"),
    "a want with more behind it": ((*CLONE, f"want {A} thin-pack"), None, "not_known"),
    "a want of another length": ((*CLONE, f"want {LONG}"), None, "not_known"),
    "a server-option": (CLONE, ["server-option=x"], "not_known"),
    "an unknown capability": (CLONE, ["surprise"], "not_known"),
    "an unknown object-format": (CLONE, ["object-format=md5"], "not_known"),
    "two object-formats": (CLONE, ["object-format=sha1", "object-format=sha1"], "repeated"),
    "wants of sha1 for sha256": (CLONE, ["object-format=sha256"], "not_known"),
}


@pytest.mark.parametrize("name", NOT_KEPT)
def test_an_answer_that_depends_on_more_is_not_kept(name: str) -> None:
    arguments, capabilities, why = NOT_KEPT[name]
    found = fetch(*arguments, capabilities=capabilities)
    assert found.not_kept == why and key(found) is None


RECORDED = {
    "git-clone": "",
    "git-clone-depth-1": "",
    "git-clone-depth-50": "",
    "git-clone-since": "",
    "git-clone-blob-none": "",
    "git-clone-tree-0": "",
    "git-clone-single-branch": "",
    "git-clone-sha256": "",
    "git-clone-session-id": "",
    "git-fetch-sha": "",
    "jgit-clone": "",
    "jgit-clone-depth-1": "",
    "gogit-clone": "",
    "gogit-clone-depth-1": "",
    "dulwich-clone": "",
    "dulwich-clone-depth-1": "",
    "git-clone-blob-none_2": "",
    "git-clone-exclude": "not_known",
    "git-clone-want-ref": "not_known",
    "git-clone-sideband-all": "not_known",
    "git-fetch-haves": "no_done",
    "git-fetch-deepen_2": "no_done",
    "git-fetch-negotiate-only": "not_known",
    "probe": "have",
}


def requests(name: str) -> list[Request]:
    data, found = load(name).said(by_client=True), []
    while data:
        place = 0
        while (length := int(data[place : place + 4], 16)) != 0:
            place += max(length, 4)
        found.append(read_request(data[: place + 4]))
        data = data[place + 4 :]
    return found


@pytest.mark.parametrize("name", RECORDED)
def test_what_real_clients_ask_for(name: str) -> None:
    assert name in names()
    first = next(found for request in requests(name) if (found := fetch_of(request)) is not None)
    assert first.not_kept == RECORDED[name]


# -- the key ---------------------------------------------------------------------------------------------------------------------------


def test_the_order_of_arguments_and_what_changes_nothing_are_left_out() -> None:
    first = key(fetch(*CLONE, "deepen 1"))
    for seed in range(20):
        lines = [*CLONE, "deepen 1", f"want {A}"]
        random.Random(seed).shuffle(lines)
        assert key(fetch(*lines)) == first
    assert key(fetch(*(line for line in CLONE if line != "no-progress"), "deepen 1")) == first
    others = ["object-format=sha1", "agent=JGit/6.10", "session-id=1"]
    assert key(fetch(*CLONE, "deepen 1", capabilities=others)) == first
    assert key(fetch(*CLONE, "deepen 1", capabilities=[])) == first  # sha1 is the default object-format
    assert key(fetch(*(line.replace(A, A.upper()) for line in CLONE), "deepen 1")) == first


def test_everything_else_belongs_to_it() -> None:
    plain = fetch(*CLONE)
    keys = [
        key(plain),
        key(plain, upstream="other"),
        key(plain, path="/other.git"),
        key(plain, identity="alice"),
        key(plain, tags=b"moved"),
        key(plain, upstream="main/app", path=".git"),
        *(
            key(fetch(*(line for line in CLONE if line != left)))
            for left in ("thin-pack", "include-tag", "ofs-delta", f"want {A}", f"want {B}")
        ),
        *(
            key(fetch(*CLONE, more))
            for more in ("deepen 1", "deepen 2", "deepen-since 1", "deepen-relative", "filter blob:none", "filter tree:0")
        ),
        key(fetch(f"want {LONG}", "done", capabilities=["object-format=sha256"])),
    ]
    assert None not in keys and len(set(keys)) == len(keys)


def test_tags_belong_to_it_only_where_the_pack_may_hold_tags_that_nobody_asked_for() -> None:
    assert key(fetch(*CLONE), tags=None) is None
    without = fetch(*(line for line in CLONE if line != "include-tag"))
    assert key(without, tags=None) is not None
    assert key(without, tags=None) == key(without, tags=b"moved")


# -- refs ------------------------------------------------------------------------------------------------------------------------------


def refs(*lines: str, prefixes: tuple[str, ...] = ()) -> Refs:
    request = read_request(raw("ls-refs", ["peel", "symrefs", *(f"ref-prefix {prefix}" for prefix in prefixes)]))
    return Refs(request, b"".join(pkt_line(line.encode() + b"\n") for line in lines) + b"0000")


HEAD = f"{A} HEAD symref-target:refs/heads/main"
TAG = f"{B} refs/tags/v1 peeled:{A}"


def test_wants_are_looked_for_among_what_refs_point_to() -> None:
    some = refs(HEAD, TAG, "unborn refs/heads/x symref-target:refs/heads/y")
    assert some.offers([A.encode(), B.encode()]) and some.offers([])
    assert not some.offers([A.encode(), b"d" * 40])
    assert not refs(TAG).offers([A.encode()])  # the ref points to the tag, not to the peeled object


@pytest.mark.parametrize(
    ("prefixes", "known"),
    [
        ((), True),
        (("refs/heads/", "HEAD", "refs/tags/"), True),
        (("refs/",), True),
        (("",), True),
        (("refs/heads/", "HEAD"), False),
        (("refs/tags/v1",), False),
    ],
)
def test_tags_are_known_when_the_client_asked_for_all_of_them(prefixes: tuple[str, ...], known: bool) -> None:
    assert (refs(HEAD, TAG, prefixes=prefixes).tags_digest() is not None) == known


def test_the_digest_of_tags_changes_with_tags_alone() -> None:
    first = refs(HEAD, TAG).tags_digest()
    assert refs(f"{B} HEAD", TAG, f"{A} refs/heads/refs/tags/x").tags_digest() == first
    assert refs(f"{B} refs/tags/v1").tags_digest() == first
    for other in (
        refs(HEAD),
        refs(f"{A} refs/tags/v1"),
        refs(f"{B} refs/tags/v2"),
        refs(TAG, f"{A} refs/tags/v2"),
    ):
        assert other.tags_digest() != first
    one, two = f"{A} refs/tags/a", f"{B} refs/tags/b"
    assert refs(one, two).tags_digest() == refs(two, one).tags_digest()


# -- the probe ---------------------------------------------------------------------------------------------------------------------------


def test_the_probe_asks_for_each_want_as_if_it_were_there() -> None:
    request = read_request(probe(fetch(*CLONE, "deepen 1")))
    assert request.capabilities == ()
    assert request.arguments == (
        f"want {A}".encode(),
        f"have {A}".encode(),
        f"want {B}".encode(),
        f"have {B}".encode(),
        b"no-progress",
        b"done",
    )
    sha256 = read_request(probe(fetch(f"want {LONG}", "done", capabilities=["object-format=sha256"])))
    assert sha256.capabilities == (b"object-format=sha256",)


# -- git-upload-pack's own parsing of requests, as the reason why some are refused or not kept -----------------------------------------


def answer(repository: Path, *requests: bytes) -> bytes:
    """git-upload-pack's output after its advertisement."""
    env = {**git_env(repository.parent / "home"), "GIT_PROTOCOL": "version=2"}
    done = subprocess.run(["git-upload-pack", str(repository)], input=b"".join(requests), capture_output=True, env=env, check=True)
    return done.stdout.partition(b"0000")[2]


def test_git_gives_no_answer_to_a_fetch_without_wants(tmp_path: Path) -> None:
    repository = make_repo(tmp_path / "app.git")
    nothing, listed = pkt_line(b"command=fetch") + b"0001" + pkt_line(b"done") + b"0000", raw("ls-refs", ["ref-prefix refs/heads/"], [])
    assert answer(repository, nothing, listed) == answer(repository, listed) != b""
    with pytest.raises(BadRequest, match="no answer"):
        read_request(nothing)


def test_git_takes_the_last_of_two_depths_and_so_their_order_counts(tmp_path: Path) -> None:
    repository = make_repo(tmp_path / "app.git")
    tip = rev_parse(repository, git_env(tmp_path / "home"), "main")

    def edge(*depths: int) -> bytes:
        lines = [f"want {tip}", "no-progress", *(f"deepen {depth}" for depth in depths), "done"]
        return answer(repository, raw("fetch", lines, [])).partition(b"0001")[0]

    assert edge(2, 1) == edge(1) != edge(2) == edge(1, 2)
    assert fetch(f"want {tip}", "deepen 1", "deepen 2", "done").not_kept == "repeated"


def test_git_takes_a_want_with_more_behind_it(tmp_path: Path) -> None:
    """So the relay decides by the known form of a request, not by what the git host accepts."""
    repository = make_repo(tmp_path / "app.git")
    tip = rev_parse(repository, git_env(tmp_path / "home"), "main")
    assert b"PACK" in answer(repository, raw("fetch", [f"want {tip} x", "no-progress", "done"], []))
    assert fetch(f"want {tip} x", "done").not_kept == "not_known"
