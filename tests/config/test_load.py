"""The configuration file: loaded, or refused with every problem in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.config.load import load_config
from relay.errors import ConfigError

UPSTREAM = '[upstreams.main]\naddresses = ["192.0.2.1:22"]\n'


def test_relative_paths_start_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(UPSTREAM)
    loaded = load_config(path)
    assert (loaded.path, loaded.base) == (path, tmp_path)
    assert loaded.resolve("keys") == tmp_path / "keys"
    assert loaded.resolve("/etc/keys") == Path("/etc/keys")


def test_files_that_the_configuration_names_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text('host_keys = ["gone"]\n' + UPSTREAM)
    assert load_config(path).config.host_keys == ["gone"]


def test_all_problems_of_the_file_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text('workers = -1\nlistten = ["127.0.0.1:2222"]\n' + UPSTREAM)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(caught.value.problems) == 2
