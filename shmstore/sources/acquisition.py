"""Acquisition processes: started together, read on a schedule, ended together, and accounted for one by one.

A *station* is one process with its producers and its schedule. This module knows how to start, stop and watch
stations; what they read is theirs, and where it is recorded is the producers'.

Between the two sides goes one ``multiprocessing`` pipe per station with short byte strings (never a pickle):
*ready*, *go*, *stop*, and the report as JSON. Whichever side dies, the other one sees the end of the pipe.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from shmstore.errors import ShmStoreError
from shmstore.sources.schedule import Schedule

if TYPE_CHECKING:
    from shmstore.producer import Producer

_READY, _GO, _STOP = b"ready", b"go", b"stop"
#: Importing pyarrow takes 0.3 s on an idle core; a loaded machine with a cold disk may need a hundred times
#: as long.
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 20.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Makes ready in the new process and returns what is called at each tick.
Prepare = Callable[[Mapping[str, "Producer"]], Callable[[], None]]


@dataclass(frozen=True)
class Station:
    """What one acquisition process does.

    Attributes
    ----------
    name : str
        For people.
    rate_hz : float
        Readings a second.
    schemas : mapping of str to pyarrow.Schema
        The instruments that it feeds.
    prepare : Callable
        A function of a module: gets the producers by instrument in the new process, returns what reads once.
    metadata : mapping of str to mapping
        Metadata of the instruments.
    """

    name: str
    rate_hz: float
    schemas: Mapping[str, Any]
    prepare: Prepare
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StationReport:
    """How a station did.

    Attributes
    ----------
    name : str
        The station.
    pid : int
        Its process.
    ticks, late, missed : int
        Readings made; of these, begun too late; readings left out. See
        :class:`~shmstore.sources.schedule.Schedule`.
    error : str or None
        Why it ended before it was asked to; None if it did not.
    """

    name: str
    pid: int
    ticks: int = 0
    late: int = 0
    missed: int = 0
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain, JSON-ready values."""
        return asdict(self)


class Acquisition:
    """Several stations at work. A context manager: leaving it ends every process, whatever happened.

    Parameters
    ----------
    stations
        What to run, each in a process of its own (started afresh, not forked).
    producer
        Makes the producer of an instrument, as :meth:`HDF5Storage.producer` does. The acquisition owns them.
    """

    def __init__(self, stations: Sequence[Station], producer: Callable[[str, Any], Producer]) -> None:
        self._members = [_Member(station, producer) for station in stations]

    def __enter__(self) -> Self:
        """Return itself; nothing is started yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill what still runs."""
        for member in self._members:
            member.close()

    @property
    def pids(self) -> dict[str, int]:
        """The process of each station that was started."""
        return {member.station.name: member.pid for member in self._members if member.pid}

    @property
    def running(self) -> int:
        """How many stations are at work."""
        return sum(member.alive for member in self._members)

    def start(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Start the processes, wait until each is ready, then let all begin at once.

        Blocks for about a second, at most for a minute. A station that fails while it prepares does not keep
        the others from starting: its report says why.

        Parameters
        ----------
        stopped
            Asked several times a second; when true, the wait ends at once.
        """
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        # Ctrl-C goes to the whole process group: it is for us alone. A blocked signal stays so across exec.
        with signals_blocked():
            for member in self._members:
                member.start()
        waiting = list(self._members)
        while waiting and time.monotonic() < deadline_s and not stopped():
            self.wait(0.1, waiting)
            waiting = [member for member in waiting if not member.ready and member.alive]
        for member in waiting:
            member.fail(f"not ready after {_START_TIMEOUT_S:g} s")
        for member in self._members:
            member.send(_GO)

    def wait(self, timeout_s: float, members: Sequence[_Member] | None = None) -> None:
        """Block for ``timeout_s``, or less if a station has something to tell."""
        lines = {member.line: member for member in members or self._members if member.alive}
        if not lines:
            time.sleep(timeout_s)
        for line in multiprocessing.connection.wait(list(lines), timeout_s) if lines else ():
            lines[line].listen()  # type: ignore[index]  # only Connections were waited for

    def stop(self) -> list[StationReport]:
        """Ask every station to end, and return how each did. Blocks until all have ended, at most 20 s."""
        deadline_s = time.monotonic() + _STOP_TIMEOUT_S
        for member in self._members:
            member.send(_STOP)
        while self.running and time.monotonic() < deadline_s:
            self.wait(min(0.1, deadline_s - time.monotonic()))
        for member in self._members:
            if member.alive:
                member.fail(f"did not end within {_STOP_TIMEOUT_S:g} s")
            member.close()
        return self.reports()

    def reports(self) -> list[StationReport]:
        """Return what is known of each station so far."""
        return [member.report for member in self._members]


class _Member:
    """A station and its process, seen from this side."""

    def __init__(self, station: Station, producer: Callable[[str, Any], Producer]) -> None:
        self.station = station
        self.report = StationReport(station.name, 0)
        self.ready = False
        self._ended = False
        self.line, self._far_line = multiprocessing.Pipe()
        self._producers = {name: producer(name, schema) for name, schema in station.schemas.items()}
        self._process: BaseProcess | None = None

    @property
    def pid(self) -> int:
        return (self._process.pid or 0) if self._process else 0

    @property
    def alive(self) -> bool:
        return self._process is not None and not self._ended

    def start(self) -> None:
        work = (self._far_line, self.station.prepare, self.station.rate_hz, self._producers)
        self._process = multiprocessing.get_context("spawn").Process(
            target=_run, args=work, name=f"shmstore {self.station.name}", daemon=True
        )
        self._process.start()
        self._far_line.close()  # or the end of the process would not end the pipe
        self.report = StationReport(self.station.name, self.pid)

    def send(self, word: bytes) -> None:
        if self.alive:
            try:
                self.line.send_bytes(word)
            except OSError:
                self.listen()

    def listen(self) -> None:
        """Take in what the process says; its silence at the end, too."""
        try:
            said = self.line.recv_bytes(maxlength=1 << 16)
        except (EOFError, OSError):
            self.fail(self._how_it_died())
            return
        if said == _READY:
            self.ready = True
            return
        self._ended = True
        self.report = StationReport(self.station.name, self.pid, **json.loads(said))

    def fail(self, why: str) -> None:
        self._ended = True
        self.report = StationReport(self.station.name, self.pid, error=why)

    def close(self) -> None:
        if self._process is not None:
            self.line.close()
            self._process.join(_STOP_TIMEOUT_S if self.report.error is None else 1.0)
            if self._process.is_alive():
                self._process.kill()
                self._process.join(_STOP_TIMEOUT_S)
            self._process.close()
            self._process = None
        self.line.close()
        self._far_line.close()
        for producer in self._producers.values():
            producer.close()
        self._producers = {}

    def _how_it_died(self) -> str:
        if self._process is None:
            return "was not started"
        self._process.join(1.0)
        code = self._process.exitcode
        if code is None:
            return "closed its pipe without a report"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"


def _run(line: Connection, prepare: Prepare, rate_hz: float, producers: Mapping[str, Producer]) -> None:
    """Be a station: the whole life of its process."""
    schedule = Schedule(rate_hz, line)
    error = None
    try:
        read = prepare(producers)
        line.send_bytes(_READY)
        if line.recv_bytes() == _GO:
            for _ in schedule:
                read()
    except (EOFError, ConnectionError):
        error = "the recording's owner went away"
    except ShmStoreError as problem:
        error = str(problem)
    except Exception as problem:  # noqa: BLE001 (whatever a reading raises is this station's report)
        error = f"{type(problem).__name__}: {problem}"
    for producer in producers.values():
        try:
            producer.close()
        except ShmStoreError as problem:
            error = error or str(problem)
    report = {"ticks": schedule.ticks, "late": schedule.late, "missed": schedule.missed, "error": error}
    try:
        line.send_bytes(json.dumps(report).encode())
    except OSError:
        raise SystemExit(1) from None  # nobody is left to tell


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Have what is started within this context not take the signals of a terminal."""
    # Its first start unblocks both signals in this thread: have that behind us.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
