"""What an operator sees of packs: `relay packs` after real clones, and the metrics while the folder cannot be used and after it was
mended."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.commands.test_packs import ask
from tests.e2e.packing import Runs, packs, results, served
from tests.support.gitrepo import git, make_repo
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

FORMS = {"full": (), "depth 1": ("--depth=1",), "filter blob:none": ("--filter=blob:none", "--bare")}


def listed(relay: RelayProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ask(relay, "--json").stdout.splitlines()]


def test_an_operator_sees_what_is_kept_and_removes_it(
    make_sshd: Callable[..., Sshd], make_relay: Callable[..., RelayProcess], tmp_path: Path
) -> None:
    sshd = make_sshd()
    runs = Runs(sshd, tmp_path / "runs")
    relay = make_relay(sshd, config={"workers": 2, **packs(tmp_path / "entries", first=True)})
    for name in ("app", "lib"):
        make_repo(sshd.root / "team" / f"{name}.git", commits=3)
    env = relay.git_env(tmp_path / "home")

    def clone(repository: str, number: int, *options: str) -> None:
        git("clone", "--quiet", *options, relay.url(repository), tmp_path / f"{repository}{number}{''.join(options)}", env=env)

    for number in range(3):
        for options in FORMS.values():
            clone("team/app", number, *options)
    clone("team/lib", 0)
    assert runs.count == len(FORMS) + 1
    assert results(relay) == {"filled": len(FORMS) + 1, "hit": 2 * len(FORMS)}

    def uses() -> dict[tuple[str, str], int]:
        return {(one["repository"], one["asked"]): one["uses"] for one in listed(relay)}

    expected = {**{("team/app", form): 2 for form in FORMS}, ("team/lib", "full"): 0}
    wait_until(lambda: uses() == expected, message="uses are written at most once a second, and when the last reader has ended")
    kept = listed(relay)
    assert all(one["upstream"] == "main" and one["state"] == "kept" and one["identity"] is None for one in kept)
    written = sum(one["bytes"] for one in kept)
    wait_until(lambda: relay.metric("relay_packs_bytes_total", direction="in") == written, message="the fills have ended")
    whole = written + 4096 * len(kept)
    wait_until(lambda: relay.metric("relay_packs_disk_bytes") == whole, message="the workers have looked through the folder")

    done = ask(relay, "--clear", "team/app")
    assert done.stdout.startswith(f"{len(FORMS)} answers of team/app were removed: ")
    assert re.search(rf"operator .* \(uid \d+\): removed {len(FORMS)} kept answers of team/app: ", relay.log_text())
    before = len(relay.audit_lines())
    clone("team/app", 9)
    clone("team/lib", 9)
    assert served(relay, before, 2) == ["cache", "cache"], "who begins a fill reads it from its file, too"
    assert runs.count == len(FORMS) + 2, "the one of team/app was made again, that of team/lib was kept"


def test_an_unusable_folder_is_a_metric_that_goes_back_by_itself(
    make_relay: Callable[..., RelayProcess], sshd: Sshd, tmp_path: Path
) -> None:
    folder = tmp_path / "entries"
    relay = make_relay(sshd, config={"workers": 2, **packs(folder)})
    assert relay.metric("relay_packs_unusable") == 0
    folder.chmod(0o755)
    wait_until(lambda: relay.metric("relay_packs_unusable") == 1)
    relay.wait_for_log(rf"packs: nothing is kept: {re.escape(str(folder))} has the mode 0755, must have 0700")
    folder.chmod(0o700)
    wait_until(lambda: relay.metric("relay_packs_unusable") == 0)
    relay.wait_for_log("packs: .* is used again")
