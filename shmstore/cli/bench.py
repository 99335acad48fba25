"""``shmstore bench``: how fast this machine could go, how fast shmstore goes, and the alternatives."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from shmstore.cli.exits import LOSS, file_exit_code
from shmstore.cli.info import plain_table
from shmstore.cli.interrupt import Interrupt
from shmstore.cli.options import assignment, positive, settings_given
from shmstore.cli.screen import DependencyError, Screen, require
from shmstore.errors import ShmStoreError, storage_error

if TYPE_CHECKING:
    from shmstore.bench.cases import Case
    from shmstore.bench.results import Change

_ROUNDS = 5
_FAIL_BELOW = 0.9


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "bench",
        help="measure shmstore, this machine's limits and the alternatives, in the same run",
        description="Measure cases: a stream of data, a codec, producers. Each is held against what this "
        "machine can do at most and against other ways to write the same data, in turn. Nothing else should "
        "run meanwhile. `shmstore bench compare A.json B.json` holds two results against each other.",
    )
    parser.add_argument(
        "-k",
        dest="patterns",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only cases with this in their name, or with a name like this (adc/*); may be repeated",
    )
    parser.add_argument("--list", action="store_true", help="list the cases and measure nothing")
    parser.add_argument(
        "--data", metavar="FILE", help="in place of the cases: your own data, from Arrow IPC, Parquet or CSV"
    )
    parser.add_argument(
        "--codec",
        action="append",
        default=[],
        metavar="CODEC",
        help="with --data: codec to be measured; may be repeated (default: six of them)",
    )
    parser.add_argument(
        "--producers",
        type=positive,
        default=1,
        metavar="N",
        help="with --data: processes that produce (default: 1)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        type=assignment,
        help="any setting of the storage, such as ring_bytes=8MiB, for all cases; may be repeated",
    )
    parser.add_argument(
        "--rounds",
        type=positive,
        default=_ROUNDS,
        metavar="N",
        help=f"rounds of each run (default: {_ROUNDS})",
    )
    parser.add_argument(
        "--output",
        "-o",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="where files are written; may be repeated (default: /dev/shm: no disk in the figures)",
    )
    parser.add_argument("--no-peers", action="store_true", help="leave the alternatives out")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny amounts, one round: does it run, not how fast"
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write bench.html (one page, self-contained), PNGs and JSON there",
    )
    _add_json(parser)
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress and no tables")
    parser.set_defaults(run=run, usage_error=parser.error)

    modes = parser.add_subparsers(metavar="compare", title="two results")
    compare = modes.add_parser(
        "compare",
        help="hold a result against an earlier one",
        description="Hold a result against an earlier one, case by case. Exit codes: 0 no case became slower "
        "or larger than the ratio says; 1 one did; 2 wrong call or input.",
    )
    compare.add_argument("before", type=Path, metavar="A.json")
    compare.add_argument("after", type=Path, metavar="B.json")
    compare.add_argument(
        "--fail-below",
        type=float,
        default=_FAIL_BELOW,
        metavar="RATIO",
        help="a regression is a case whose MB/s after ÷ before, or whose bytes in the file before ÷ after, "
        f"are below this (default: {_FAIL_BELOW})",
    )
    _add_json(compare)
    compare.set_defaults(run=run_compare, usage_error=compare.error)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the result as one JSON document to FILE, or to standard output without one",
    )


def run(options: argparse.Namespace) -> int:
    """Measure; return the exit code."""
    if options.data is None and (options.codec or options.producers > 1):
        options.usage_error("--codec and --producers go with --data only: the cases have their own")
    screen = Screen(as_json=options.json == "-", quiet=options.quiet)
    require("psutil", "bench")
    cases = _cases(options)
    if options.list:
        _list(screen, cases)
        return 0
    if not options.no_peers:
        _require_peers()
    if options.report is not None:
        require("matplotlib", "bench")
    found, interrupted = _measure(screen, options, cases)
    from shmstore.bench.results import document, doubts

    result = document(found, smoke=options.smoke)
    if found and not screen.as_json:
        screen.table(_summary(found, judge=not options.smoke))
        if doubts(result):
            screen.line(doubts(result))
    _deliver(screen, options.json, result)
    if options.report is not None and found:
        from shmstore.bench.page import write

        page = write(result, options.report)
        if not screen.as_json:
            screen.result_line(str(page))
    if interrupted:
        Screen.error(
            f"interrupted: {len(found)} of {len(cases) * len(_outputs(options))} cases were measured"
        )
        return LOSS
    return 0


def run_compare(options: argparse.Namespace) -> int:
    """Hold two results against each other; return the exit code."""
    from shmstore.bench.results import changes, doubts, load

    if not options.fail_below >= 0:
        options.usage_error("--fail-below takes a ratio such as 0.9")
    screen = Screen(as_json=options.json == "-")
    try:
        before, after = load(options.before), load(options.after)
        found = changes(before, after)
    except ShmStoreError as error:
        screen.error(str(error))
        return file_exit_code(error)
    worse = [change for change in found if change.is_worse_than(options.fail_below)]
    if not screen.as_json:
        screen.table(_change_table(found, options.fail_below))
    for path, document in ((options.before, before), (options.after, after)):
        if doubts(document):
            Screen.warning(f"{path}: {doubts(document)}")
    result = {
        "fail_below": options.fail_below,
        "regressions": [change.case for change in worse],
        "cases": [
            {"case": one.case, "before_mb_per_s": one.before, "after_mb_per_s": one.after}
            | {"rate": one.rate, "size": one.size, "machine": one.machine}
            for one in found
        ],
    }
    _deliver(screen, options.json, result)
    for change in worse:
        what = (
            f"{change.rate:.2f} of the rate"
            if change.rate < options.fail_below
            else f"1/{change.size:.2f} bytes"
        )
        Screen.error(f"{change.case}: {what} before, asked for at least {options.fail_below:g}")
    return LOSS if worse else 0


def _cases(options: argparse.Namespace) -> list[Case]:
    from shmstore.bench.cases import CASES, DATA_CODECS, data_cases, select

    settings = settings_given(options.set)
    if options.data is not None:
        cases = data_cases(options.data, options.codec or DATA_CODECS, options.producers)
    else:
        cases = list(CASES)
    cases = select([case.with_settings(**settings) for case in cases], options.patterns)
    for case in cases:
        _ = case.config  # what is wrong in it is told before anything is measured
    return cases


def _require_peers() -> None:
    from shmstore.bench.peers import missing_packages

    missing = missing_packages()
    if missing:
        raise DependencyError(
            f"the peers need {' and '.join(missing)}, which is not installed: pip install 'shmstore[bench]', "
            "or leave them out with --no-peers"
        )


def _outputs(options: argparse.Namespace) -> list[Path]:
    from shmstore.bench.runner import SHARED_MEMORY

    return options.output or [SHARED_MEMORY]


def _measure(
    screen: Screen, options: argparse.Namespace, cases: list[Case]
) -> tuple[list[dict[str, Any]], bool]:
    """Return what was found, and whether it was interrupted."""
    from shmstore.bench.runner import Plan, measure

    found: list[dict[str, Any]] = []
    outputs = _outputs(options)
    try:
        with Interrupt() as interrupt, Progress(screen, len(outputs), interrupt.asked) as progress:
            for output in outputs:
                plan = Plan(output, options.rounds, peers=not options.no_peers, smoke=options.smoke)
                for result in measure(cases, plan, progress.update):
                    found.append(result)
                    progress.show(_case_table(result))
                progress.next()
    except KeyboardInterrupt:
        return found, True
    return found, False


def _deliver(screen: Screen, target: str | None, result: Mapping[str, Any]) -> None:
    if target is None or target == "-":
        screen.document(result)
        return
    try:
        Path(target).write_text(json.dumps(result, indent=2, default=str) + "\n")
    except OSError as error:
        raise storage_error(error, "write the results", target) from None


class Progress:
    """How far it is: a bar in a terminal, else a line a case; finished cases appear above. A context manager.

    Parameters
    ----------
    screen
        Where it is shown.
    passes
        How often all cases are measured.
    stopped
        Whether to end early.
    """

    def __init__(self, screen: Screen, passes: int, stopped: Callable[[], bool]) -> None:
        self._screen = screen
        self._passes = passes
        self._stopped = stopped
        self._done = 0
        self._case = ""
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        """Begin."""
        if self._screen.animated:
            from rich import progress

            self._bar = progress.Progress(
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.description}"),
                console=self._screen.console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the moving part away."""
        if self._bar is not None:
            self._bar.stop()

    def update(self, case: Case, what: str, share: float) -> None:
        """Show what begins, and which share of this pass is done; raises `KeyboardInterrupt` to end early."""
        if self._stopped():
            raise KeyboardInterrupt
        share = (self._done + share) / self._passes
        if self._bar is not None:
            self._bar.update(self._task, completed=share, description=f"{case.name}: {what}")
        elif case.name != self._case:
            self._screen.line(f"{share:4.0%}  {case.name}")
        self._case = case.name

    def next(self) -> None:
        """Take note that one pass is done."""
        self._done += 1
        self._case = ""

    def show(self, table: Any) -> None:
        """Show what a case came to."""
        if not self._screen.as_json:
            self._screen.table(table)


def _list(screen: Screen, cases: Iterable[Case]) -> None:
    from shmstore.bench.streams import total_bytes

    cases = list(cases)
    screen.document([case.to_dict() for case in cases])
    if screen.as_json:
        return
    table = plain_table("")
    for heading in ("case", "stream", "codec", "producers", "MB", "settings", "asked, of"):
        table.add_column(heading, justify="right" if heading in {"producers", "MB"} else "left", no_wrap=True)
    for case in cases:
        settings = [f"{name}={value}" for name, value in case.settings]
        if case.chunk_bytes:
            settings.append(f"chunk_bytes={case.chunk_bytes}")
        table.add_row(
            case.name,
            str(case.stream),
            str(case.parsed_codec),
            f"{case.producers}" + (" shared" if case.shared else ""),
            f"{total_bytes(case.stream, case.batches) / 1e6:,.0f}",
            ", ".join(settings),
            ", ".join(f"{least:g} × {label}" for label, least in case.bounds),
        )
    screen.table(table)


def _case_table(case: Mapping[str, Any]) -> Any:
    where = f" on {case['filesystem']}" if case["filesystem"] else ""
    table = plain_table(
        f"{case['name']}{where}: {case['stream_bytes'] / 1e6:,.0f} MB, {case['rounds']} round(s)"
    )
    for heading in ("", "codec", "MB/s", "shmstore ×", "B/B", "processor s/GB"):
        table.add_column(heading, justify="left" if heading in {"", "codec"} else "right", no_wrap=True)
    for run in case["runs"]:
        ours = run["kind"] == "shmstore"
        table.add_row(
            run["label"],
            run["codec"],
            f"{run['mb_per_s']:,.0f}",
            "" if ours else f"{run['ratio']:.2f}",
            f"{run['stored_share']:.3f}" if "stored_share" in run else "",
            " + ".join(f"{seconds:.2f}" for seconds in run["cpu_s_per_gb"].values()),
            style="bold" if ours else "dim" if run["kind"] == "limit" else None,
        )
    return table


def _summary(found: Iterable[Mapping[str, Any]], *, judge: bool) -> Any:
    from shmstore.bench.results import best_peer, run_of

    table = plain_table("all cases")
    headings = ("case", "on", "MB/s", "of the limit", "fastest peer as small", "×", "put p50", "p99", "asked")
    for heading in headings:
        left = heading in {"case", "on", "fastest peer as small", "asked"}
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for case in found:
        judged = case["judged"] if judge else []
        ours, limit, peer = case["runs"][0], run_of(case, "machine limit"), best_peer(case)
        missed = [f"{one['against']} ≥ {one['at_least']:g}" for one in judged if not one["met"]]
        put = case["latency"]["put_us"]
        table.add_row(
            case["name"],
            case["filesystem"],
            f"{ours['mb_per_s']:,.0f}",
            f"{limit['ratio']:.2f}" if limit else "",
            f"{peer['label']} {peer['mb_per_s']:,.0f}" if peer else "",
            f"{peer['ratio']:.2f}" if peer else "",
            f"{put['p50']:,.0f} µs",
            f"{put['p99']:,.0f} µs",
            ("below: " + ", ".join(missed)) if missed else "met" if judged else "",
        )
    return table


def _change_table(changes: Iterable[Change], fail_below: float) -> Any:
    table = plain_table("after against before")
    for heading in ("case", "MB/s before", "after", "rate ×", "bytes ×", "machine ×", ""):
        table.add_column(heading, justify="left" if heading in {"case", ""} else "right", no_wrap=True)
    for change in changes:
        table.add_row(
            change.case,
            f"{change.before:,.0f}",
            f"{change.after:,.0f}",
            f"{change.rate:.3f}",
            f"{1 / change.size:.3f}",
            "" if change.machine is None else f"{change.machine:.3f}",
            "worse" if change.is_worse_than(fail_below) else "",
        )
    return table
