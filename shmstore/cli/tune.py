"""``shmstore tune``: measure which settings suit some data and a disk, explain the choice, write it down."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from shmstore.cli.exits import LOSS, exit_code
from shmstore.cli.info import plain_table
from shmstore.cli.interrupt import Interrupt
from shmstore.cli.options import add_report_options, assignment, settings_given
from shmstore.cli.screen import Screen, require
from shmstore.errors import ConfigError, ShmStoreError

if TYPE_CHECKING:
    from shmstore.config import StorageConfig
    from shmstore.tuning.tuner import Check, Tuner, Tuning

_FRAME_S = 0.1
#: What a tuning of one machine is worth on another; and settings that would make no sense here.
_REFUSED = {
    "output_dir": "name the folder with --output",
    "filename": "recordings made here are removed",
    "name": "recordings made here are removed",
}
_SHORTEST_BUDGET_S = 1.0


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "tune",
        help="find the settings that suit your data, rate and disk",
        description="Measure codecs, chunk sizes, threads, ring size and commit budget on your own data and "
        "disk, choose, say why, and write a shmstore.toml. Codecs are measured alone first; those worth it "
        "are recorded for real, by producer processes, and from the best one setting after the other is "
        "varied. What is recorded on the way is removed.",
    )
    parser.add_argument(
        "--data", required=True, metavar="FILE", help="Arrow IPC, Parquet or CSV; the first 64 MiB are used"
    )
    parser.add_argument("--instrument", metavar="ID", help="set what is found for this instrument alone")
    parser.add_argument(
        "--rate",
        type=_rate,
        metavar="R",
        help="must be held, all producers together: MB/s, or such as 1.5GB/s",
    )
    parser.add_argument(
        "--producers", type=_count, default=1, metavar="N", help="processes that put (default: 1)"
    )
    parser.add_argument(
        "--goal",
        choices=("rate", "size", "latency"),
        help="fastest, smallest file, or shortest from seal to commit; the last two among what holds the "
        "rate (default: size with --rate, else rate)",
    )
    parser.add_argument(
        "--output",
        "-o",
        default=".",
        metavar="DIR",
        help="folder on the disk to be tuned for (default: this one)",
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=60.0, metavar="BUDGET", help="how long it may take (default: 60)"
    )
    parser.add_argument(
        "--config", default="shmstore.toml", metavar="OUT.toml", help="file to write (default: shmstore.toml)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite that file")
    parser.add_argument("--plot", metavar="OUT.png", help="draw what was measured")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        type=assignment,
        help="a setting that stays as you say, such as compression=gzip or strings=packed; may be repeated",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="then record at --rate with what was found, and say whether it holds",
    )
    parser.add_argument(
        "--check-only",
        action="store_true",
        help="check the file that --config names as it is; measure nothing else",
    )
    parser.add_argument(
        "--check-seconds",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="how long the check takes (default: 10)",
    )
    add_report_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from shmstore.sources.files import open_source
    from shmstore.tuning.tuner import Stopped, Tuner

    screen = Screen(as_json=options.json, quiet=options.quiet)
    require("psutil", "cli")
    if options.plot and not options.check_only:
        require("matplotlib", "plot")
    fixed = _checked(options)
    config = _existing(options)
    result = _Result(options)
    with Interrupt() as interrupt, _Progress(screen, interrupt.asked, _budget(options)) as progress:
        try:
            with (
                open_source(options.data, progress.asked) as source,
                Tuner(
                    source,
                    Path(options.output),
                    options.producers,
                    options.instrument,
                    fixed,
                    progress.tell,
                    progress.asked,
                ) as tuner,
            ):
                if config is None:
                    result.tuning = _tune(tuner, options, fixed)
                    config = _load(options.config)
                if options.check or options.check_only:
                    result.check = tuner.check(config, options.rate, options.check_seconds)
        except Stopped:
            written = f"{options.config} is written" if result.tuning else "nothing was written"
            result.problems.append(f"interrupted by {interrupt.signal_name}: {written}")
            result.exit_code = LOSS
    if result.tuning is not None and options.plot:
        result.draw(options.plot)
    result.judge()
    result.show(screen)
    screen.document(result.to_dict())
    return result.exit_code


def _checked(options: argparse.Namespace) -> dict[str, Any]:
    """Refuse what does not go together; return the settings that stay."""
    from shmstore.config import StorageConfig
    from shmstore.names import instrument_link

    if (options.check or options.check_only) and options.rate is None:
        raise ConfigError("a check needs a rate to hold: name it with --rate, in MB/s")
    if options.instrument is not None:
        instrument_link(options.instrument)
    fixed = settings_given(options.set)
    for name, remedy in _REFUSED.items():
        if name in fixed:
            raise ConfigError(f"--set {name}: {remedy}")
    StorageConfig(**fixed)
    return fixed


def _existing(options: argparse.Namespace) -> StorageConfig | None:
    """Return the configuration that is only to be checked; refuse one that would be overwritten."""
    if options.check_only:
        return _load(options.config)
    if Path(options.config).exists() and not options.force:
        raise ConfigError(
            f"{options.config} exists and is not overwritten: name another file with --config, or say --force"
        )
    return None


def _load(path: str) -> StorageConfig:
    from shmstore.config import StorageConfig

    return StorageConfig.load(path)


def _tune(tuner: Tuner, options: argparse.Namespace, fixed: Mapping[str, Any]) -> Tuning:
    """Tune, and write the configuration."""
    from shmstore.tuning.configuration import configuration, write_configuration
    from shmstore.tuning.goal import Goal

    goal = Goal(options.goal or ("rate" if options.rate is None else "size"), options.rate)
    tuning = tuner.tune(goal, options.seconds)
    head = _head(tuning, options)
    text = configuration(
        head, tuning.chosen.point, tuning.choices, Path(options.output), fixed, options.instrument
    )
    write_configuration(Path(options.config), text, replace=options.force)
    return tuning


def _head(tuning: Tuning, options: argparse.Namespace) -> list[str]:
    """Return the paragraphs at the top of the file."""
    from shmstore.tuning.goal import amount

    sample, goal = tuning.sample, tuning.goal
    part = "all" if sample.whole else "the first part"
    wanted = {
        "rate": "the fastest recording",
        "size": "the smallest file",
        "latency": "the shortest latency",
    }[goal.kind]
    if options.rate is not None:
        wanted += f" that holds {amount(options.rate)} MB/s"
    made = (
        f"Made by `shmstore tune` on {time.strftime('%Y-%m-%d')} from {part} of {sample.name} "
        f"({sample.nbytes / 1e6:,.1f} MB), with {tuning.producers} "
        f"producer{'s' * (tuning.producers > 1)}, on {len(os.sched_getaffinity(0))} cores and the disk of "
        f"{options.output}. Measure again when one of these changes."
    )
    defaults = f" (with the defaults {goal.shown(tuning.default)})" if tuning.default else ""
    came_to = (
        f"Wanted: {wanted}. Recorded: {goal.shown(tuning.chosen)}{defaults}. The figures here are "
        f"{goal.legend}, from {len(tuning.figures)} recordings in {tuning.seconds:.0f} s; "
        f"{tuning.disk_sentence()}."
    )
    shortfall = tuning.shortfall()
    slow = [f"Warning: {shortfall}."] if shortfall else []
    return [made, came_to, *slow, *(f"Note: {note}." for note in tuning.notes)]


@dataclass(slots=True)
class _Result:
    """What the command has to say at its end."""

    options: argparse.Namespace
    tuning: Tuning | None = None
    check: Check | None = None
    plot: str | None = None
    problems: list[str] = field(default_factory=list)
    exit_code: int = 0

    def draw(self, path: str) -> None:
        from shmstore.tuning.picture import draw

        try:
            if self.tuning is not None:
                self.plot = str(draw(self.tuning, Path(path)))
        except ShmStoreError as error:  # what was measured is worth more than its picture
            self.problems.append(str(error))
            self.exit_code = exit_code(error)

    def judge(self) -> None:
        """Turn what does not hold into problems."""
        if self.check is not None and not self.check.holds:
            again = f"shmstore tune --rate {self.options.rate:g} looks for what does"
            remedy = self.tuning.recommendation(self.options.rate) if self.tuning else again
            self.problems.append(f"{self.options.config} {self.check.sentence()}; {remedy}")
        elif self.check is None and self.tuning is not None and self.options.rate is not None:
            shortfall = self.tuning.shortfall()
            self.problems += [shortfall] if shortfall else []
        elif self.tuning is not None and self.options.rate is not None:
            shortfall = self.tuning.shortfall()  # it holds, and barely
            self.tuning.notes.extend([shortfall] if shortfall else [])
        if self.problems:
            self.exit_code = self.exit_code or LOSS

    def show(self, screen: Screen) -> None:
        if not screen.as_json and self.tuning is not None:
            _show_tuning(screen, self.tuning)
        if self.check is not None and self.check.holds:
            screen.line(f"{self.options.config} {self.check.sentence()}")
        for problem in self.problems:
            screen.error(problem)
        if not screen.as_json:
            for written in (self.plot, self.options.config if self.tuning else None):
                if written:
                    screen.result_line(written)

    def to_dict(self) -> dict[str, Any]:
        tuning, options = self.tuning, self.options
        document: dict[str, Any] = {
            "exit_code": self.exit_code,
            "problems": self.problems,
            "config": options.config if tuning is not None else None,
            "plot": self.plot,
            "cores": len(os.sched_getaffinity(0)),
            "output": options.output,
            "producers": options.producers,
            "rate_mb_s": options.rate,
            "check": self.check.to_dict() if self.check else None,
        }
        if tuning is not None:
            front = {id(figures) for figures in tuning.front}
            alone = {id(figures) for figures in tuning.alone_front}
            document |= {
                "goal": tuning.goal.kind,
                "paced_mb_s": tuning.goal.asked_mb_s if tuning.goal.kind == "latency" else None,
                "holds": tuning.holds if options.rate is not None else None,
                "seconds": round(tuning.seconds, 1),
                "disk_mb_s": round(tuning.disk_mb_s, 1),
                "sample": tuning.sample.to_dict(),
                "codecs": [{**each.to_dict(), "front": id(each) in alone} for each in tuning.alone],
                "recordings": [{**each.to_dict(), "front": id(each) in front} for each in tuning.figures],
                "chosen": tuning.chosen.to_dict(),
                "reasons": {name: choice.reason for name, choice in tuning.choices.items()},
                "notes": tuning.notes,
            }
        return document


def _show_tuning(screen: Screen, tuning: Tuning) -> None:
    screen.table(_alone_table(tuning))
    screen.table(_recordings_table(tuning))
    screen.line(f"figures: {tuning.goal.legend}; {tuning.disk_sentence()}")
    for setting, choice in tuning.choices.items():
        screen.line(f"{setting}: {choice.reason}")
    for note in tuning.notes:
        screen.line(f"note: {note}")
    screen.line()


def _alone_table(tuning: Tuning) -> Any:
    table = _table("codecs alone, one thread: what no other beats", ("codec", "chunk", "MB/s", "size"))
    for each in tuning.alone_front:
        fast = "" if each.point.codec.name == "none" else f"{each.mb_s:,.0f}"
        table.add_row(
            str(each.point.codec), each.point.shown("chunk_bytes"), fast, f"{100 * each.size:.1f} %"
        )
    return table


def _recordings_table(tuning: Tuning) -> Any:
    from shmstore.tuning.goal import amount
    from shmstore.tuning.search import SETTINGS

    paced = tuning.goal.kind == "latency"
    headings = [
        "codec",
        "chunk",
        "threads",
        "ring",
        "commit",
        "every",
        "MB/s",
        "size",
        *(["p99 ms"] if paced else []),
    ]
    title = f"the best of {len(tuning.figures)} recordings, close included: what no other beats"
    if paced and tuning.goal.asked_mb_s is not None:
        title = f"the best of {len(tuning.figures)} recordings at {amount(tuning.goal.asked_mb_s)} MB/s"
    table = _table(title, (*headings, ""))
    rows = [*tuning.front]
    for figures in (tuning.chosen, tuning.default):
        if figures is not None and not any(figures is row for row in rows):
            rows.append(figures)
    order = ("chunk_bytes", *(name for name in SETTINGS if name != "chunk_bytes"))
    for row in rows:
        marks = (("chosen", row is tuning.chosen), ("where it began", row is tuning.default))
        cells = [str(row.point.codec), *(row.point.shown(name) for name in order)]
        cells += [f"{row.mb_s:,.0f}", f"{100 * row.size:.1f} %"]
        if paced:
            cells.append("" if row.p99_ms is None else amount(row.p99_ms))
        bold = "bold" if row is tuning.chosen else ""
        table.add_row(*cells, ", ".join(mark for mark, holds in marks if holds), style=bold)
    return table


def _table(title: str, headings: Sequence[str]) -> Any:
    table = plain_table(title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 or not heading else "right", no_wrap=True)
    return table


class _Progress:
    """How far it is: in a terminal a bar with the time left and what it is at, else a line for each step."""

    def __init__(self, screen: Screen, asked: Callable[[], bool], seconds: float) -> None:
        self._screen = screen
        self._asked = asked
        self._seconds = seconds
        self._start_s = time.monotonic()
        self._due_s = 0.0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if self._screen.animated:
            from rich import progress
            from rich.table import Column

            whole = Column(no_wrap=True, min_width=16)
            self._bar = progress.Progress(
                progress.BarColumn(bar_width=16, table_column=whole),
                progress.TextColumn("{task.fields[left]:>5} s left", table_column=whole),
                progress.TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=1)),
                console=self._screen.console,
                auto_refresh=False,
                transient=True,
                expand=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self._seconds, left="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tell(self, text: str) -> None:
        """Say what comes now."""
        if self._bar is None:
            self._screen.line(f"{time.monotonic() - self._start_s:6.1f} s  {text}")
            return
        self._due_s = 0.0
        self._bar.update(self._task, description=text)
        self.asked()

    def asked(self) -> bool:
        """Whether to stop; moves the bar on the way."""
        now_s = time.monotonic()
        if self._bar is not None and now_s >= self._due_s:
            self._due_s = now_s + _FRAME_S
            passed_s = now_s - self._start_s
            left = f"{max(0.0, self._seconds - passed_s):.0f}"
            self._bar.update(self._task, completed=min(passed_s, self._seconds), left=left, refresh=True)
        return self._asked()


def _budget(options: argparse.Namespace) -> float:
    tuning = 0.0 if options.check_only else options.seconds
    return float(tuning + (options.check_seconds if options.check or options.check_only else 0.0))


def _rate(text: str) -> float:
    """Parse a rate into MB/s: a number of them, or one with a unit."""
    from shmstore.sources.pacing import parse_rate

    try:
        rate = float(text)
    except ValueError:
        try:
            parsed = parse_rate(text)
        except ConfigError:
            parsed = 1.0
        rate = 0.0 if isinstance(parsed, float) else parsed / 1e6
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of MB/s, or such as 1.5GB/s")
    return rate


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not _SHORTEST_BUDGET_S <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds from 1 to 86400")
    return value


def _count(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= value <= 256:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of processes from 1 to 256")
    return value
