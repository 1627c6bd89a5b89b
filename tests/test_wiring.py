"""The parts of one worker, put together."""

from __future__ import annotations

import msgspec
import pytest

from relay.config.load import Loaded
from relay.errors import ConfigError
from relay.events import Observer
from relay.preflight import load_all
from relay.wiring import build
from tests.support.relay_process import RelayProcess


async def test_every_problem_of_the_configuration_is_reported(relay: RelayProcess) -> None:
    loaded = load_all(relay.config_file)
    upstreams = {name: msgspec.structs.replace(loaded.config.upstreams["main"], host_keys=["junk"]) for name in ("one", "two")}
    config = msgspec.structs.replace(loaded.config, host_keys=["gone", "relay.toml"], upstreams=upstreams)
    with pytest.raises(ConfigError) as raised:
        build(Loaded(loaded.path, config), Observer())
    for problem, name in zip(raised.value.problems, ["gone", "relay.toml", "upstreams.one", "upstreams.two"], strict=True):
        assert name in problem.partition(":")[2], problem
