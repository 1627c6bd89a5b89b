"""docs/backends.md: its configurations are valid, its numbers and names are those of the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from relay import config
from relay.access.file import load as load_access
from relay.access.open import open_access
from relay.access.redis import GROUPS
from relay.backends.redis import FOLDERS, VALUE_BYTES
from relay.config.toml import TomlFault, decode
from relay.errors import Denied, Undecided, Why
from relay.git.push_commands import LIST_MOST_BYTES
from relay.git.refs import NOT_ALLOWED, WITH_ANOTHER, RefJudge
from relay.model import Command, Identity, RefUpdate
from relay.routes.file import load as load_routes

PAGE = (Path(__file__).parents[1] / "docs" / "backends.md").read_text()
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
EXAMPLES = [block for block in BLOCKS if not block.startswith(("# access.toml", "# routes.toml"))]


@pytest.mark.parametrize("text", EXAMPLES[1:])
def test_an_example_is_a_configuration(text: str) -> None:
    faults: list[TomlFault] = []
    decode(config.Config, {"upstreams": {"main": {"addresses": ["a:22"]}}, **tomllib.loads(text)}, faults)
    assert faults == []


async def test_the_rules_for_refs_mean_what_is_written_beside_them(tmp_path: Path) -> None:
    text, moves, own = [block for block in BLOCKS if block not in EXAMPLES]
    (tmp_path / "access.toml").write_text(text)
    access = open_access(config.FileAccessSettings(), tmp_path)
    push = Command(service="git-receive-pack", repository="team/app")

    async def may(who: str, ref: str, old: str = "1", new: str = "2") -> bool:
        grant = await access.check(Identity(name=who, fingerprint=""), push, "", "")
        return RefJudge(grant.refs).allows(RefUpdate(ref=ref, old=old, new=new))

    assert await may("bob", "refs/heads/topic") and await may("bob", "refs/tags/v1", old="0")
    assert not await may("bob", "refs/heads/main") and not await may("bob", "refs/heads/release/1/2")
    assert await may("alice", "refs/heads/main")
    assert not await may("alice", "refs/tags/v1") and not await may("alice", "refs/tags/v1", new="0")
    with pytest.raises(Denied):
        await may("dave", "refs/heads/topic")
    await access.close()
    (tmp_path / "routes.toml").write_text(moves)
    assert load_routes(tmp_path / "routes.toml", ["main"])[1] == []
    (tmp_path / "own.toml").write_text("[groups]\ncore = []\n" + own)
    assert load_access(tmp_path / "own.toml")[1] == []
    for said in (f"{LIST_MOST_BYTES >> 20} MiB", f"at most {VALUE_BYTES:,} bytes", NOT_ALLOWED, WITH_ANOTHER):
        assert said in PAGE


def test_the_cache_is_shown_with_its_defaults() -> None:
    shown: dict[str, Any] = tomllib.loads(EXAMPLES[0])["keys"]["cache"]
    assert shown == msgspec.structs.asdict(config.CacheSettings())


def test_defaults_that_are_shown_are_the_structs() -> None:
    kinds: dict[str, type[msgspec.Struct]] = {
        "file": config.FileKeysSettings,
        "http": config.HttpKeysSettings,
        "redis": config.RedisKeysSettings,
        "exec": config.ExecKeysSettings,
    }
    for text in EXAMPLES[1:]:
        for table in tomllib.loads(text).values():
            if "source" not in table:
                continue
            kind = kinds[table["source"]]
            fields = {field.name: field.default for field in msgspec.structs.fields(kind)}
            for name in {"timeout_seconds", "connections", "processes", "prefix"} & set(table):
                assert table[name] == fields[name], (kind, name)


def test_certificates_are_shown_with_their_defaults() -> None:
    [shown] = [table["certificates"] for text in EXAMPLES if "certificates" in (table := tomllib.loads(text))]
    defaults = config.CertificatesSettings()
    assert (shown["identity"], shown["principals"]) == (defaults.identity, defaults.principals)
    assert set(shown) == set(msgspec.structs.asdict(defaults))


def test_the_example_authority_has_sixty_lines() -> None:
    lines = (Path(__file__).parents[1] / "docs" / "example_authority.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 60


def test_reasons_messages_and_limits_are_the_code_s() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == set(get_args(Why))
    assert Undecided.message in PAGE
    assert f"at most {GROUPS:,}" in PAGE and f"{FOLDERS} deep" in PAGE
