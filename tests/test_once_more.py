"""scripts/once_more.py with real makes and pytests: which tests it runs again and names, and its exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "once_more.py"
MAKEFILE = f"""
test:
\t@{sys.executable} -m pytest -q t $(PYTEST_ARGS)
other:
\t@{sys.executable} -m pytest -q t/test_other.py $(PYTEST_ARGS)
"""
FLAKY = """
from pathlib import Path
def once(name):
    there = Path(name).exists()
    Path(name).touch()
    return there
"""
IMPORT = "import pytest\n"
GROUPED = f"{IMPORT}@pytest.mark.xdist_group('some')\n"
MANY_IDS = """import pytest\n@pytest.mark.parametrize('x', ['a b', 'c@d', '[e]', 'f\\n', "g'h"])\n"""
WORKERS = MAKEFILE.replace(" t $", " -n 1 --dist loadgroup t $")  # slow to start, so used only where needed


@pytest.fixture
def project(tmp_path: Path) -> Path:
    tmp_path /= "a folder"
    tmp_path.mkdir()
    (tmp_path / "Makefile").write_text(MAKEFILE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = xdist_group\n")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "test_good.py").write_text("def test_good(): pass\n")
    (tmp_path / "t" / "test_other.py").write_text("def test_other(): pass\n")
    return tmp_path


def once_more(project: Path, *targets: str) -> tuple[int, list[str]]:
    """Runs the script; returns its status and lines."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "MAKE", "MFLAGS"))}
    env |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin"}  # other plugins take five times as long as the rest
    arguments = [sys.executable, str(SCRIPT), *(targets or ("test",))]
    done = subprocess.run(arguments, cwd=project, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout)
    assert "once_more.py" not in done.stdout, "no traceback of its own"
    return done.returncode, done.stdout.splitlines()


def named(lines: list[str]) -> list[str]:
    """The script's lines between pytest's output and its closing line."""
    told: list[str] = []
    for line in reversed(lines[:-1]):
        if not line.startswith("once-more: "):
            break
        told.insert(0, line.removeprefix("once-more: "))
    return told


def test_when_all_pass_the_closing_line_is_the_last_and_nothing_is_named(project: Path) -> None:
    status, lines = once_more(project)
    assert (status, named(lines)) == (0, [])
    assert lines[-1].startswith("2 passed in ")
    assert sum("passed in" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def test_it(): assert once('it')", "test_it"),
        (f"{MANY_IDS}def test_it(x): assert x != 'c@d' or once('it')", "test_it[c@d]"),
        (f"{GROUPED}def test_it(): assert once('it')", "test_it"),
        (f"{GROUPED}{MANY_IDS.removeprefix(IMPORT)}def test_it(x): assert x != 'c@d' or once('it')", "test_it[c@d]"),
        ("import pytest\n@pytest.fixture\ndef f():\n  yield\n  assert once('it')\ndef test_it(f): pass", "test_it"),
        ("import pytest\n@pytest.fixture(scope='module')\ndef f(): assert once('it')\ndef test_it(f): pass", "test_it"),
    ],
    ids=["plain", "parametrized", "of a group", "parametrized of a group", "teardown", "setup"],
)
def test_a_test_that_fails_once_is_named_before_the_closing_line(project: Path, code: str, test: str) -> None:
    (project / "t" / "test_flaky.py").write_text(FLAKY + code + "\n")
    if "xdist" in code:
        (project / "Makefile").write_text(WORKERS)
    status, lines = once_more(project)
    assert (status, named(lines)) == (0, [f"test: passed only when run once more: t/test_flaky.py::{test}"])
    assert " passed" in lines[-1] and " in " in lines[-1] and "failed" not in lines[-1]


@pytest.mark.parametrize("group", ["", GROUPED], ids=["plain", "of a group"])
def test_a_test_that_fails_twice_fails_the_run(project: Path, group: str) -> None:
    if group:
        (project / "Makefile").write_text(WORKERS)
    (project / "t" / "test_bad.py").write_text(f"{FLAKY}{group}def test_bad(): assert False\ndef test_it(): assert once('it')\n")
    status, lines = once_more(project)
    told = ["test: passed only when run once more: t/test_bad.py::test_it", "test: failed twice: t/test_bad.py::test_bad"]
    assert (status, named(lines)) == (1, told)
    assert lines[-1].startswith("1 failed, 1 passed")


def test_a_test_that_is_not_found_the_second_time_fails_the_run(project: Path) -> None:
    code = "import pytest, os\n@pytest.mark.parametrize('x', [os.path.exists('seen')])\ndef test_it(x):\n  open('seen', 'w')\n  assert 0\n"
    (project / "t" / "test_vanishes.py").write_text(code)
    status, lines = once_more(project)
    assert status == 1
    assert "test: failed twice: t/test_vanishes.py::test_it[False]" in named(lines)


@pytest.mark.parametrize(
    ("makefile", "code", "says"),
    [
        (WORKERS, "import nothing_such\n", "not all tests ran: t/test_more.py could not be collected"),
        (MAKEFILE.replace("t $(", "nowhere $("), "", "ended with status "),
        (MAKEFILE.replace("t $(", "t -k nothing $("), "", "ended with status 5"),
        (MAKEFILE.replace("t $(", "--no-such-option t $("), "", "ended with status 4"),
        ("test:\n\t@exit 1\n", "", "failed, and no test did"),
        ("test: missing\n", "", "did not get as far as its tests"),
        (MAKEFILE, "".join(f"def test_{number}(): assert 0\n" for number in range(25)), "25 tests failed, too many to run once more"),
        (MAKEFILE.replace("t $(", "-x t $("), "import os, pytest\ndef test_x(): pytest.exit('enough', 2)\n", "ended with status"),
    ],
    ids=["collection", "no folder", "no tests", "usage", "no pytest", "no make", "many", "interrupted"],
)
def test_what_is_no_failed_test_is_not_run_once_more(project: Path, makefile: str, code: str, says: str) -> None:
    (project / "Makefile").write_text(makefile)
    (project / "t" / "test_more.py").write_text(code)
    status, lines = once_more(project)
    assert status == 1
    (told,) = named(lines)
    assert told.startswith(f"test: {says}")
    assert not any("once more, alone" in line for line in lines)


def test_each_target_decides_and_all_run_to_the_end(project: Path) -> None:
    (project / "t" / "test_other.py").write_text(f"{FLAKY}def test_other(): assert once('a')\ndef test_bad(): assert 0\n")
    status, lines = once_more(project, "other", "test")
    told = [
        "other: passed only when run once more: t/test_other.py::test_other",
        "other: failed twice: t/test_other.py::test_bad",
        "test: failed twice: t/test_other.py::test_bad",
    ]
    assert (status, named(lines)) == (1, told)

    (project / "t" / "test_other.py").write_text(FLAKY + "def test_other(): assert once('b')\n")
    status, lines = once_more(project, "other", "test")
    assert (status, named(lines)) == (0, ["other: passed only when run once more: t/test_other.py::test_other"])
    assert lines[-1].startswith("2 passed in")


def test_what_failed_in_an_earlier_run_is_not_run_once_more(project: Path) -> None:
    bad = project / "t" / "test_bad.py"
    bad.write_text("def test_bad(): assert 0\n")
    assert once_more(project)[0] == 1
    bad.unlink()
    (project / "t" / "test_flaky.py").write_text(FLAKY + "def test_it(): assert once('it')\n")
    status, lines = once_more(project)
    assert (status, named(lines)) == (0, ["test: passed only when run once more: t/test_flaky.py::test_it"])
