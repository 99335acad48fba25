"""The crew: producer processes that live through many recordings, and put the sample into each.

A process is started once, since that takes longer than a short recording. It is told by JSON what to do, and
joins each recording by name. Knows nothing of what is tuned.
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import multiprocessing.connection
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from shmstore.client import connect
from shmstore.errors import BrokenError, ShmStoreError
from shmstore.producer import Producer
from shmstore.sources.acquisition import signals_blocked
from shmstore.sources.pacing import BytesPace
from shmstore.tuning.sample import mapped_batches

_START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 5.0
#: How often who waits for a crew is asked whether to stop, in seconds.
_TICK_S = 0.1
#: How often a producer that waits for its time looks for commits: what a latency is exact to.
_LOOK_S = 0.001
#: How long after its last batch a producer waits for the last commit, in seconds.
_LAST_COMMIT_S = 2.0
_MOST_REPORT_BYTES = 64 << 20


class Stopped(Exception):
    """Somebody asked for an end while a recording was on its way."""


@dataclass(frozen=True, slots=True)
class Order:
    """What each producer of a recording is to do.

    Attributes
    ----------
    name : str
        The recording, as `shmstore.connect` takes it.
    shm_dir : str
        Where its shared memory is.
    instrument_id : str
        What they produce for.
    seconds : float
        How long they put.
    most_bytes : int
        Bytes after which each ends, however early.
    bytes_per_s : float or None
        The pace of each; None: as fast as there is room.
    """

    name: str
    shm_dir: str
    instrument_id: str
    seconds: float
    most_bytes: int
    bytes_per_s: float | None = None


@dataclass(slots=True)
class Report:
    """What a producer has done.

    Attributes
    ----------
    nbytes, batches : int
        What it put.
    seconds : float
        From the word to begin to the return of the last put.
    wait_s : float
        How much of that it waited for room in its ring.
    dropped : int
        Rows dropped, by policy.
    late_s : float
        How far the last batch was behind its time; 0 without a pace.
    latencies_s : list of float
        For each batch with a pace, the time from its seal to its commit, in seconds.
    error : str or None
        What went wrong.
    """

    nbytes: int = 0
    batches: int = 0
    seconds: float = 0.0
    wait_s: float = 0.0
    dropped: int = 0
    late_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    error: str | None = None


class Crew:
    """Producer processes. A context manager: leaving it ends every process, whatever happened.

    Parameters
    ----------
    sample
        The Arrow IPC stream that they put, again and again.
    members
        How many.
    stopped
        Asked ten times a second while something is waited for; once true, `Stopped` is raised.
    """

    def __init__(self, sample: Path, members: int, stopped: Callable[[], bool] = lambda: False) -> None:
        self._sample = sample
        self._count = members
        self._stopped = stopped
        self._members: list[tuple[BaseProcess, Connection]] = []

    def __enter__(self) -> Self:
        """Start the processes; takes about a second, and is not waited for."""
        context = multiprocessing.get_context("spawn")  # Arrow has threads: a fork is unsafe
        # Ctrl-C goes to the whole process group: it is for us alone.
        with signals_blocked():
            for number in range(self._count):
                ours, theirs = multiprocessing.Pipe()
                process = context.Process(
                    target=_serve,
                    args=(theirs, str(self._sample), number / self._count),
                    name=f"shmstore tune {number}",
                    daemon=True,
                )
                process.start()
                theirs.close()  # or the end of the process would not end the pipe
                self._members.append((process, ours))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes."""
        for _, line in self._members:
            line.close()  # which they take for the end
        for process, _ in self._members:
            process.join(_END_TIMEOUT_S if kind is None else 0.2)
            if process.is_alive():
                process.kill()
                process.join(_END_TIMEOUT_S)
            process.close()
        self._members = []

    def prepare(self, order: Order) -> None:
        """Have every producer join a recording, with its ring mapped; returns once all are ready.

        Raises
        ------
        Stopped
            Somebody asked for an end.
        BrokenError
            A producer failed; the message says how.
        """
        word = json.dumps({slot: getattr(order, slot) for slot in Order.__slots__}).encode()
        for _, line in self._members:
            _tell(line, word)
        self._hear(lambda: None, _START_TIMEOUT_S)

    def run(self, tick: Callable[[], None] = lambda: None) -> list[Report]:
        """Let all begin at once; return when each has put its last batch. Raises as `prepare`.

        Parameters
        ----------
        tick
            Called about ten times a second meanwhile.
        """
        for _, line in self._members:
            _tell(line, b"go")
        return [Report(**json.loads(word)) for word in self._hear(tick, math.inf)]

    def _hear(self, tick: Callable[[], None], timeout_s: float) -> list[bytes]:
        """Wait for a word of each."""
        heard: dict[int, bytes] = {}
        waiting = {id(line): number for number, (_, line) in enumerate(self._members)}
        deadline_s = time.monotonic() + timeout_s
        while waiting:
            if self._stopped():
                raise Stopped
            if time.monotonic() > deadline_s:
                raise BrokenError(f"a producer process did not answer within {timeout_s:g} s: try again")
            lines = [self._members[number][1] for number in waiting.values()]
            for line in multiprocessing.connection.wait(lines, _TICK_S):
                number = waiting.pop(id(line))
                try:
                    heard[number] = line.recv_bytes(_MOST_REPORT_BYTES)  # type: ignore[union-attr]
                except (EOFError, OSError):
                    raise BrokenError(f"producer process {number} died: see its messages above") from None
                if error := json.loads(heard[number]).get("error"):
                    raise BrokenError(f"producer process {number}: {error}")
            tick()
        return [heard[number] for number in sorted(heard)]


def _tell(line: Connection, word: bytes) -> None:
    try:
        line.send_bytes(word)
    except OSError:
        raise BrokenError("a producer process died: see its messages above") from None


def _serve(line: Connection, sample: str, part: float) -> None:
    """Be a member: the whole life of its process."""
    try:
        batches = mapped_batches(Path(sample))
        # Each begins elsewhere: the same rows from two producers would meet in one chunk, and compress away.
        start = round(part * len(batches))
        batches = batches[start:] + batches[:start]
        while True:
            order = Order(**json.loads(line.recv_bytes()))
            try:
                _produce(line, order, batches)
            except ShmStoreError as problem:
                line.send_bytes(json.dumps({"error": str(problem)}).encode())
    except (EOFError, ConnectionError):
        return  # the other side wants nothing more


def _produce(line: Connection, order: Order, batches: Sequence[pa.RecordBatch]) -> None:
    with connect(order.name, order.shm_dir) as client:
        producer = client.producer(order.instrument_id, batches[0].schema)
        producer.stats()  # maps the ring
        line.send_bytes(b"{}")
        line.recv_bytes()
        began_s = time.monotonic()
        report = _Shift(producer, order, began_s).work(line, batches)
        counts = producer.stats()
        report.wait_s, report.dropped = counts.wait_ns / 1e9, counts.dropped
        producer.close()
        line.send_bytes(json.dumps({slot: getattr(report, slot) for slot in Report.__slots__}).encode())


class _Shift:
    """A producer at work in one recording."""

    def __init__(self, producer: Producer, order: Order, began_s: float) -> None:
        self._producer = producer
        self._order = order
        self._began_s = began_s
        self._report = Report()
        #: Of what is not committed yet, where it ends in the ring, and when it was sealed.
        self._open: deque[tuple[int, float]] = deque()

    def work(self, line: Connection, batches: Sequence[pa.RecordBatch]) -> Report:
        """Put the batches round and round until time or bytes are used up, or the other side is gone."""
        order, report = self._order, self._report
        look_s = self._began_s + _TICK_S
        for due_s, batch in self._due(batches):
            if order.bytes_per_s is not None:
                self._await(due_s)
            now_s = time.monotonic()
            if now_s > look_s:
                look_s = now_s + _TICK_S
                if line.poll():
                    raise EOFError  # nobody says anything meanwhile
            if now_s - self._began_s >= order.seconds or report.nbytes >= order.most_bytes:
                break
            self._producer.put(batch)
            report.nbytes += batch.nbytes
            report.batches += 1
            if order.bytes_per_s is not None:
                counts = self._producer.stats()
                end = counts.released_bytes + counts.ring_bytes_used
                self._open.append((end, time.monotonic()))
                report.late_s = max(0.0, time.monotonic() - self._began_s - due_s)
                self._note(counts.released_bytes)
        report.seconds = time.monotonic() - self._began_s
        until_s = time.monotonic() + _LAST_COMMIT_S
        while self._open and time.monotonic() < until_s:
            time.sleep(_LOOK_S)
            self._note(self._producer.stats().released_bytes)
        # What waits longer waits at least so long.
        report.latencies_s += [time.monotonic() - sealed_s for _, sealed_s in self._open]
        return report

    def _due(self, batches: Sequence[pa.RecordBatch]) -> Iterator[tuple[float, pa.RecordBatch]]:
        if self._order.bytes_per_s is None:
            yield from ((0.0, batch) for batch in itertools.cycle(batches))
            return
        pace = BytesPace(self._order.bytes_per_s)
        for batch in itertools.cycle(batches):
            yield from pace.pieces(batch)

    def _await(self, due_s: float) -> None:
        """Sleep until then, with an eye on what is committed."""
        while (ahead_s := min(due_s, self._order.seconds) - (time.monotonic() - self._began_s)) > 0:
            time.sleep(min(ahead_s, _LOOK_S if self._open else _TICK_S))
            if self._open:
                self._note(self._producer.stats().released_bytes)

    def _note(self, released_bytes: int) -> None:
        now_s = time.monotonic()
        while self._open and self._open[0][0] <= released_bytes:
            self._report.latencies_s.append(now_s - self._open.popleft()[1])
