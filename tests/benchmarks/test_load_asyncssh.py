"""The fall-back load generator's options; its loads are tested with those of go_load in test_clients."""

from __future__ import annotations

import pytest

from benchmarks.load_asyncssh import main


def test_a_load_without_bounds_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sessions", "-address", "127.0.0.1:1", "-user", "u", "-key", "k"])
    assert "bounds the load" in capsys.readouterr().err
