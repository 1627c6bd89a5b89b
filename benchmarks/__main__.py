"""`python -m benchmarks`: measure, print as it goes, write the report; the status tells failures, never timings."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks import results as store
from benchmarks.contenders import REPOSITORY_ROOT, Peer
from benchmarks.processes import MeasureError
from benchmarks.results import Results
from benchmarks.scenarios import SCENARIOS
from benchmarks.sizes import SIZES
from benchmarks.suite import OWN, Plan, run
from benchmarks.targets import targets

FULL_REPORT = REPOSITORY_ROOT / "benchmarks" / "report"
OTHER_REPORTS = REPOSITORY_ROOT / "build" / "benchmarks"
PLAIN_WIDTH = 140  # of a log or a pipe, which has no terminal's width
STYLES = {"met": "green", "missed": "red", "not measured": "dim"}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure git over SSH: direct, through sshd, through Go, through the relay."
    )
    parser.add_argument(
        "--quick", action="store_const", dest="sizes", const="quick", default="full", help="about eight minutes; the same as --sizes quick"
    )
    parser.add_argument("--sizes", choices=sorted(SIZES), help="how much to do (default: full)")
    parser.add_argument(
        "--only", type=_names(SCENARIOS), default=tuple(SCENARIOS), metavar="A,B", help=f"scenarios: {', '.join(SCENARIOS)}"
    )
    parser.add_argument("--contenders", type=_names(OWN), default=OWN, metavar="A,B", help=f"of the suite's own: {', '.join(OWN)}")
    parser.add_argument(
        "--peer", type=_peer, action="append", default=[], metavar="NAME=[USER@]HOST:PORT", help="also measure what already runs there"
    )
    parser.add_argument("--client-key", type=Path, help="private key that peers know (default: a fresh one)")
    parser.add_argument(
        "--authorize", type=Path, action="append", default=[], metavar="PUB", help="public key with which a peer logs in upstream"
    )
    parser.add_argument("--upstream-port", type=int, default=0, help="fixed port of the git host, for peers (default: a free one)")
    parser.add_argument("--current-user", action="store_true", help="create no account: the git host logs in as who runs this")
    parser.add_argument("--work", type=Path, help="folder for repositories and clones (default: memory where there is room)")
    parser.add_argument("--out", type=Path, help="folder of the report (default: benchmarks/report, below build/benchmarks unless full)")
    parser.add_argument(
        "--check-targets", action="store_true", help="measure nothing: tell the targets by the report in --out; status 1 unless all are met"
    )
    return parser.parse_args(argv)


def _names(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """A comma-separated choice of names, returned in the order of measurement."""
    allowed = tuple(known)

    def parse_names(text: str) -> tuple[str, ...]:
        chosen = [name.strip() for name in text.split(",") if name.strip()]
        if unknown := [name for name in chosen if name not in allowed]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(allowed)}")
        return tuple(name for name in allowed if name in chosen)

    return parse_names


def _peer(text: str) -> Peer:
    try:
        return Peer.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    out: Path = options.out or (FULL_REPORT if options.sizes == "full" else OTHER_REPORTS / f"report-{options.sizes}")
    if options.check_targets:
        try:
            results = store.read(out)
        except FileNotFoundError:
            console.print(f"{out} holds no report: run `make bench` first", markup=False)
            return 1
        console.print(verdicts(results))
        return 0 if all(one.verdict == "met" for one in targets(results)) else 1
    plan = Plan(
        sizes=SIZES[options.sizes],
        scenarios=options.only,
        contenders=options.contenders,
        peers=tuple(options.peer),
        client_key=options.client_key,
        authorized=tuple(path.read_text().strip() for path in options.authorize),
        upstream_port=options.upstream_port,
        plain_user=not options.current_user,
        work=options.work,
        floor=True,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM cleans up as Ctrl-C does
    try:
        results = run(plan, SCENARIOS, console)
    except KeyboardInterrupt:
        console.print("stopped; everything that was started is gone, no report was written")
        return 130
    except MeasureError as error:
        console.print(f"cannot measure: {error}", style="red", markup=False)
        return 1
    report.write(results, out)
    console.print(verdicts(results))
    console.print(f"{results.seconds:.0f} s; the report is {out / report.FILE}", highlight=False)
    for one in results.failures:
        console.print(f"failed: {one.contender} in {one.scenario}, {one.case}: {one.message}", style="red", markup=False)
    return 1 if results.failures else 0


def verdicts(results: Results) -> Table:
    """The table of the issue's targets with this run's verdicts."""
    table = Table("the relay's", "measured", "target", "", title="targets", title_justify="left")
    for one in targets(results):
        table.add_row(one.what, one.measured_text, one.limit_text, one.verdict, style=STYLES[one.verdict])
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
