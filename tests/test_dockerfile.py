"""The Dockerfile, tested without building it; `make image-test` builds it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay import __version__

ROOT = Path(__file__).parents[1]


def instructions() -> Iterator[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            yield name, rest.strip()


ALL = list(instructions())
FINAL = ALL[max(number for number, (name, _) in enumerate(ALL) if name == "FROM") :]


def test_every_stage_starts_from_the_pinned_base_or_from_nothing() -> None:
    assert ALL[0][0] == "ARG"
    name, _, base = ALL[0][1].partition("=")
    assert name == "BASE"
    pinned = r"[a-z0-9./-]+:[a-z]*-?[0-9]+[.0-9-]*[.-][a-z0-9.-]+@sha256:[0-9a-f]{64}"
    assert re.fullmatch(pinned, base), f"{base} is not pinned by a tag with a version, and a digest"
    assert {rest.split()[0] for name, rest in ALL if name == "FROM"} == {"${BASE}", "scratch"}


def test_the_image_says_what_it_is_who_it_runs_as_and_how_to_ask_it() -> None:
    final = dict(FINAL)
    uid, gid = final["USER"].split(":")
    assert int(uid) > 0
    assert int(gid) > 0
    assert final["STOPSIGNAL"] == "SIGTERM"
    assert final["HEALTHCHECK"].endswith('CMD ["relay", "health", "--live", "-c", "/etc/relay/relay.toml"]')
    assert final["ENTRYPOINT"] == '["relay"]'
    assert final["CMD"] == '["serve", "-c", "/etc/relay/relay.toml"]'
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', final["LABEL"]))
    assert set(labels) == {"title", "description", "licenses", "version", "revision"}
    assert ("ARG", f"VERSION={__version__}") in FINAL
    assert labels["version"] == "${VERSION}"


def test_folders_that_the_relay_writes_to_are_its_own() -> None:
    text = (ROOT / "Dockerfile").read_text()
    for folder in ("/run/relay", "/var/lib/relay", "/var/cache/relay"):
        for command in ("mkdir -p", "chown 65532:65532", "chmod 0700"):
            assert re.search(rf"{command} [^&]*{folder}\b", text), (command, folder)


def test_what_is_copied_is_there_and_not_ignored() -> None:
    copied = [source for name, rest in ALL if name == "COPY" and "--from=" not in rest for source in rest.split()[:-1]]
    assert copied
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, f".dockerignore keeps {source} from the build"


@pytest.mark.parametrize("file", ["Dockerfile", "scripts/image-test"])
def test_no_address_of_a_mirror_or_an_index_is_in_it(file: str) -> None:
    assert "://" not in (ROOT / file).read_text()
