"""A configuration with the files that it names, for the tests of what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from relay.errors import ConfigError
from relay.preflight import load_all
from tests.support.keys import make_key
from tests.support.problems import unplaced
from tests.support.toml import merge, toml_text


class Setup:
    """A folder with a valid configuration, which tests change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "relay.toml"
        self.host = make_key(folder, "host_ed25519")
        self.upstream = make_key(folder, "upstream_ed25519")
        self.far = make_key(folder / "far", "host")
        self.alice = make_key(folder / "far", "alice")
        (folder / "keys").mkdir()
        (folder / "keys" / "alice.pub").write_text(self.alice.line)
        (folder / "access.toml").write_text(toml_text({"rule": [{"repositories": "**", "who": ["*"], "allow": "read"}]}))
        (folder / "routes.toml").write_text(toml_text({"route": [{"repositories": "**", "upstream": "main", "path": "{repository}"}]}))
        self.table: dict[str, Any] = {"upstreams": {"main": {"addresses": ["10.0.0.5:22"], "host_keys": [self.far.host_line]}}}

    def write(self, changes: dict[str, Any]) -> None:
        self.path.write_text(toml_text(merge(self.table, changes)))

    def problems(self, **changes: Any) -> list[str]:
        """The problems without the folder's name and without line numbers, which tests/config/test_toml.py tests."""
        self.write(changes)
        try:
            load_all(self.path)
        except ConfigError as error:
            return [unplaced(line.replace(f"{self.folder}/", "")) for line in error.problems]
        return []
