"""Reads the configuration file, and checks types, bounds and unknown keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from relay.config import Config
from relay.config.toml import Places, Problems, below, read
from relay.errors import ConfigError


@dataclass(frozen=True)
class Loaded:
    """A configuration, and the path of its file."""

    path: Path
    config: Config
    places: Places | None = dataclasses.field(default=None, repr=False, compare=False)  # None in a worker, which reads no file

    @property
    def base(self) -> Path:
        """The folder to which paths in the configuration are relative."""
        return self.path.parent

    def resolve(self, path: str) -> Path:
        return self.base / path

    def where(self, key: str) -> str:
        """As a problem of a setting begins: `relay.toml:12: admin.listen`."""
        return (self.places or Places(self.path)).where(key)

    def in_upstream(self, name: str) -> Callable[[str], str]:
        """`where` for the keys of one git host."""
        return lambda key: self.where(f"{below('upstreams', name)}.{key}")


def load_config(path: Path) -> Loaded:
    """Checks the file alone. Raises ConfigError with every problem found."""
    loaded, problems = read_config(path)
    if problems.lines:
        raise ConfigError(problems.lines)
    return loaded


def read_config(path: Path) -> tuple[Loaded, Problems]:
    config, problems = read(path, Config)
    return Loaded(path, config, problems.places), problems
