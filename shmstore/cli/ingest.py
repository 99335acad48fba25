"""``shmstore ingest``: Arrow, Parquet and CSV files, and a stream on standard input, into one recording."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from shmstore.cli.exits import LOSS, WRONG_CALL, exit_code
from shmstore.cli.interrupt import Interrupt
from shmstore.cli.live import TICK_S, LiveView
from shmstore.cli.options import add_report_options, add_storage_options, load_config
from shmstore.cli.record import close
from shmstore.cli.screen import Screen
from shmstore.cli.summary import Outcome, show
from shmstore.errors import (
    BatchTooLargeError,
    ConfigError,
    InvalidValueError,
    SchemaMismatchError,
    ShmStoreError,
    UnsupportedTypeError,
)

if TYPE_CHECKING:
    from shmstore.config import StorageConfig
    from shmstore.sources.files import Source
    from shmstore.sources.pacing import Pace
    from shmstore.storage import HDF5Storage

#: What makes one input unfit, and leaves the recording as it was.
_REFUSALS = (BatchTooLargeError, ConfigError, InvalidValueError, SchemaMismatchError, UnsupportedTypeError)


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "ingest",
        help="record files: Arrow IPC, Parquet, CSV; or an Arrow IPC stream on standard input",
        description="Record files one after the other, each as an instrument named after it. Memory stays "
        "constant, however large they are. The format is found by content, CSV by its suffix.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a file, or - for standard input")
    parser.add_argument("--instrument", metavar="NAME", help="record all of them as this one instrument")
    parser.add_argument(
        "--rate", metavar="R", help="so many bytes a second (50MB/s), or a speed of replay (2x)"
    )
    parser.add_argument(
        "--time-column", metavar="NAME", help="column that tells the time of a replay (default speed: 1x)"
    )
    add_storage_options(parser)
    add_report_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    screen = Screen(as_json=options.json, quiet=options.quiet)
    config = load_config(options)
    new_pace = _pace(options.rate, options.time_column)
    with Interrupt() as interrupt:
        ingestion = Ingestion(screen, config, interrupt.asked, options.instrument)
        try:
            for path in options.files:
                if not interrupt.asked():
                    ingestion.take(path, new_pace)
        except ShmStoreError as error:
            ingestion.fail(error)
        except BaseException:
            ingestion.abort()
            raise
        outcome = ingestion.finish(interrupt.signal_name)
    if outcome is None:
        for problem in ingestion.problems:
            screen.error(problem)
        document = {"path": None, "exit_code": ingestion.exit_code, "problems": ingestion.problems}
        screen.document(document)
    else:
        show(screen, outcome)
        screen.document(outcome.to_dict())
    return ingestion.exit_code


class Ingestion:
    """One recording that takes inputs, begun by the first that can be read.

    Parameters
    ----------
    screen
        Where progress is shown.
    config
        Of the recording.
    stopped
        Whether to end early.
    instrument_id
        Of everything; by default each input has its own, named after it.

    Attributes
    ----------
    problems : list of str
        What went wrong, one line each.
    exit_code : int
        What it comes to.
    """

    def __init__(
        self, screen: Screen, config: StorageConfig, stopped: Callable[[], bool], instrument_id: str | None
    ) -> None:
        self.problems: list[str] = []
        self.exit_code = 0
        self._broken = False
        self._screen = screen
        self._config = config
        self._stopped = stopped
        self._instrument_id = instrument_id
        self._storage: HDF5Storage | None = None
        self._inputs: list[dict[str, Any]] = []
        self._start_s = time.monotonic()

    def take(self, path: str, new_pace: Callable[[], Pace | None]) -> None:
        """Record an input; what is wrong with it goes to ``problems``.

        Raises
        ------
        ShmStoreError
            The recording itself failed.
        """
        from shmstore.sources.files import InputError, open_source

        entry: dict[str, Any] = {"input": path, "rows": 0, "error": None}
        self._inputs.append(entry)
        try:
            with open_source(path, self._stopped) as source:
                entry.update(kind=source.kind, instrument=self._name_of(source))
                self._check(source, entry["instrument"], new_pace())
                self._record(source, entry, new_pace())
        except InputError as error:
            entry["error"] = str(error)
        except _REFUSALS as error:
            entry["error"] = f"{path}: {error}"
        if entry["error"] and not self._stopped():
            recorded = f"; {entry['rows']} rows before that were recorded" if entry["rows"] else ""
            self.problems.append(entry["error"] + recorded)

    def fail(self, error: ShmStoreError) -> None:
        """Take note that the recording itself failed."""
        self.problems.append(str(error))
        self.exit_code = exit_code(error)
        self._broken = True

    def abort(self) -> None:
        """End without a complete file."""
        if self._storage is not None:
            self._storage.abort()

    def finish(self, interrupted: str | None = None) -> Outcome | None:
        """Close the recording.

        Parameters
        ----------
        interrupted
            Name of the signal that ended it before the end of its inputs.

        Returns
        -------
        Outcome or None
            None if no input could be opened, and hence no file was made.
        """
        rows = sum(entry["rows"] for entry in self._inputs)
        if interrupted:
            self.problems.append(f"interrupted: the inputs were not recorded to their end, {rows} rows were")
        # An input of which nothing could be used is a wrong call; half of one is a loss.
        code = LOSS if rows or interrupted else WRONG_CALL
        if self.problems:
            self.exit_code = self.exit_code or code
        if self._storage is None:
            return None
        outcome = Outcome(self._storage.path, time.monotonic() - self._start_s, self._stats)
        outcome.problems, outcome.exit_code = self.problems, self.exit_code
        outcome.interrupted = interrupted
        outcome.details["inputs"] = self._inputs
        close(self._storage, outcome, broken=self._broken)
        self.exit_code = outcome.exit_code
        return outcome

    def _check(self, source: Source, instrument_id: str, pace: Pace | None) -> None:
        """Find what cannot be recorded before there is a file."""
        from shmstore.names import instrument_link
        from shmstore.planning import plan
        from shmstore.sources.pacing import ReplayPace, check_time_column

        instrument_link(instrument_id)
        resolved = self._config.instrument(instrument_id)
        plan(source.schema, lambda name: resolved.column(name).strings)
        if isinstance(pace, ReplayPace):
            check_time_column(source.schema, pace.column)

    def _record(self, source: Source, entry: dict[str, Any], pace: Pace | None) -> None:
        from shmstore.sources.pacing import paced

        storage = self._started()
        producer = storage.producer(entry["instrument"], source.schema)
        try:
            with Progress(self._screen, source, entry, storage) as progress:
                for batch in paced(source.batches(), pace, self._stopped):
                    producer.put(batch)
                    entry["rows"] += batch.num_rows
                    progress.update()
        finally:
            producer.close()

    def _started(self) -> HDF5Storage:
        if self._storage is None:
            from shmstore.storage import HDF5Storage

            storage = HDF5Storage(self._config)
            storage.start()
            self._storage = storage
            self._stats = storage.stats()
            self._start_s = time.monotonic()
        return self._storage

    def _name_of(self, source: Source) -> str:
        if self._instrument_id is not None:
            return self._instrument_id
        return _unique(source.stem, {entry["instrument"] for entry in self._inputs if "instrument" in entry})


class Progress:
    """How far an input is: a bar in a terminal, else a line a second.

    Parameters
    ----------
    screen
        Where it is shown.
    source
        The input.
    entry
        Its record; ``"rows"`` are counted there.
    storage
        The recording.
    """

    def __init__(self, screen: Screen, source: Source, entry: dict[str, Any], storage: HDF5Storage) -> None:
        self._source = source
        self._entry = entry
        self._storage = storage
        self._due_s = 0.0
        title = f"{source.name} ({source.kind}) into {storage.path}"
        self._view: Any = _bar(screen, source) if screen.animated else LiveView(screen, title)
        self._task: Any = None

    def __enter__(self) -> Self:
        """Begin."""
        self._start_s = time.monotonic()
        self._view.__enter__()
        if not isinstance(self._view, LiveView):
            self._task = self._view.add_task(
                self._entry["instrument"], total=self._source.size_bytes, rows=0, rate=0.0
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the end."""
        if error is None:
            self._due_s = 0.0
            self.update()
        self._view.__exit__(kind, error, trace)

    def update(self) -> None:
        """Show how far it is; cheap when it was shown just before."""
        now_s = time.monotonic()
        if now_s < self._due_s:
            return
        self._due_s = now_s + TICK_S
        if isinstance(self._view, LiveView):
            self._view.update(self._storage.stats())
            return
        rows = self._entry["rows"]
        rate = rows / max(now_s - self._start_s, 1e-9)
        self._view.update(self._task, completed=self._source.position_bytes, rows=rows, rate=rate)


def _bar(screen: Screen, source: Source) -> Any:
    from rich import progress

    columns = [
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TextColumn("{task.fields[rows]:,} rows, {task.fields[rate]:,.0f}/s"),
    ]
    if source.size_bytes is not None:
        columns.append(progress.TimeRemainingColumn())
    return progress.Progress(*columns, console=screen.console)


def _pace(rate: str | None, time_column: str | None) -> Callable[[], Pace | None]:
    """Return what makes a fresh pace for each input; raises `ConfigError` for a rate that means nothing."""
    from shmstore.sources.pacing import BytesPace, ReplayPace, parse_rate

    value = 1.0 if rate is None else parse_rate(rate)
    if time_column is not None and isinstance(value, int):
        raise ConfigError(f"--time-column goes with a speed such as --rate 2x, not with {rate!r}")
    if time_column is not None:
        return lambda: ReplayPace(time_column, value)
    if rate is None:
        return lambda: None
    if isinstance(value, float):
        raise ConfigError(f"--rate {rate} needs --time-column NAME: the column that tells the time")
    return lambda: BytesPace(value)


def _unique(name: str, taken: Collection[str]) -> str:
    if name not in taken:
        return name
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"
