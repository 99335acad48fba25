"""What a producer pays: the time of a single call, while the writer records what came before."""

from __future__ import annotations

import mmap
import time
from collections import defaultdict
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pytest

import shmstore
from benchmarks.conftest import Scale
from benchmarks.report import Report, Result
from shmstore.bench.harness import warm_up
from shmstore.bench.processes import Companion, await_standby
from shmstore.bench.streams import MIB, Adc, columns

pytestmark = pytest.mark.timeout(1800)  # seconds; slow machines are welcome

_KIB = 1024
#: A reader that has not seen everything by then, in seconds, never will.
_FOLLOW_S = 60.0
_STANDBY_S = 10.0


def _await_room(producer: shmstore.Producer, size: int) -> None:
    """Wait, off the clock, until so many bytes of the ring are free: no call must wait for space."""
    while (stats := producer.stats()).ring_bytes - stats.ring_bytes_used < size:
        time.sleep(0.001)


def _percentile(seconds: list[float], percent: float) -> float:
    return float(np.percentile(seconds, percent)) * 1e6


def test_loan(report: Report, scale: Scale, output: Path) -> None:
    """Loan to seal, the slot left as it is: the smallest slot against larger ones, sizes in turn."""
    sizes = scale.pick([_KIB, 64 * _KIB, MIB, 16 * MIB, 64 * MIB], [_KIB, 64 * _KIB, MIB])
    calls = scale.pick(20, 3)
    figures: dict[int, list[float]] = defaultdict(list)
    ring = 3 * sizes[-1]

    def measure() -> None:
        seconds: dict[int, list[float]] = defaultdict(list)
        warm_up(output, calls * (sum(sizes) + 4 * len(sizes) * sizes[0]) + ring)
        with (
            shmstore.HDF5Storage(output_dir=output, compression="none", ring_bytes=ring) as storage,
            storage.producer("adc", Adc().schema) as producer,
        ):
            for _ in range(calls):
                for size in sizes:
                    _await_room(producer, 2 * sizes[-1])
                    # All sizes alike: right after others, with the code in the cache and the writer awake.
                    for _ in range(4):
                        with producer.loan(sizes[0] // 2):
                            pass
                    began = time.perf_counter()
                    with producer.loan(size // 2):
                        pass
                    seconds[size].append(time.perf_counter() - began)
        storage.path.unlink()
        for size in sizes:
            figures[size].append(_percentile(seconds[size], 50))

    report.repeat(measure)
    for size in (sizes[0], sizes[-1]):
        report.judge(f"{_loan_of(size)}, p50", "µs", figures[size], at_most=15)
    small = median(figures[sizes[0]])
    for size in sizes[1:]:
        figure = median(figures[size])
        report.add(
            Result(
                f"{_loan_of(size)}, p50",
                figure,
                "µs",
                _loan_of(sizes[0]),
                small,
                figure / small,
                "within 20 µs",
                abs(figure - small) <= 20,
            )
        )


def _loan_of(size: int) -> str:
    return f"loan … seal, {size // MIB} MiB" if size >= MIB else f"loan … seal, {size // _KIB} KiB"


def test_put(report: Report, scale: Scale, output: Path) -> None:
    """Put of 1 MiB into a ring that never fills, against memcpy between two other places; each in turn."""
    calls = scale.pick(192, 8)
    ring = scale.pick(256, 32) * MIB
    batches = Adc().batches()
    sources = [columns(batch)["adc"] for batch in batches]
    # Of each round, by percentile.
    puts: dict[int, list[float]] = defaultdict(list)
    copies: dict[int, list[float]] = defaultdict(list)
    # A copy has as much room as a put, mapped and touched in the same way.
    room = np.frombuffer(mmap.mmap(-1, ring, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE), np.int16)
    room = room.reshape(-1, MIB // 2)

    def measure() -> None:
        put_s, copy_s = [], []
        warm_up(output, calls * MIB + ring)
        with (
            shmstore.HDF5Storage(output_dir=output, compression="none", ring_bytes=ring) as storage,
            storage.producer("adc", Adc().schema) as producer,
        ):
            producer.put(batches[0])
            for number in range(calls):
                # Each of the two copies a batch that the other has not just brought into the cache.
                batch, source = batches[number % 16], sources[16 + number % 16]
                target = room[number]
                _await_room(producer, 8 * MIB)
                began = time.perf_counter()
                producer.put(batch)
                put_s.append(time.perf_counter() - began)
                began = time.perf_counter()
                np.copyto(target, source)
                copy_s.append(time.perf_counter() - began)
        storage.path.unlink()
        for percent in (50, 99):
            puts[percent].append(_percentile(put_s, percent))
            copies[percent].append(_percentile(copy_s, percent))

    report.repeat(measure)
    report.judge("put of 1 MiB, p50", "µs", puts[50], "memcpy p50", copies[50], at_most=1.2, plus=15)
    report.judge("put of 1 MiB, p99", "µs", puts[99], "put p50", puts[50], at_most=3)
    report.judge("put of 1 MiB, p99", "µs", puts[99], "memcpy p99", copies[99])


def test_live_reader(report: Report, scale: Scale, output: Path) -> None:
    """From before a put until the rows are in the memory of another process, which follows the live file.

    Batches of one chunk each, compressed as by default, every 7 ms: 37 MB/s.
    """
    rows, count, pace_s = 32 * _KIB, scale.pick(600, 20), 0.007
    schema = pa.schema([("clock_ns", pa.int64())])
    clock = np.arange(rows)
    batch = pa.record_batch([pa.array(clock)], schema)
    figures: dict[int, list[float]] = defaultdict(list)

    def measure() -> None:
        warm_up(output, count * batch.nbytes)
        with (
            shmstore.HDF5Storage(output_dir=output, commit_interval_ms=50, chunk_rows=rows) as storage,
            storage.producer("clock", schema) as producer,
        ):
            producer.put(batch)
            storage.flush()
            await_standby({storage.writer_pid}, scale.pick(_STANDBY_S, 0.0))
            reader = Companion(_follow, storage.path, rows, count)
            try:
                began = time.perf_counter()
                for number in range(count):
                    time.sleep(max(0.0, began + number * pace_s - time.perf_counter()))
                    clock[0] = time.perf_counter_ns()
                    producer.put(batch)  # whose memory the clock is
                seen_s = reader.answer()
            finally:
                reader.end()
        storage.path.unlink()
        for percent in (50, 99):
            figures[percent].append(_percentile(seen_s, percent) / 1e3)

    report.repeat(measure)
    report.judge("sealed to seen in the live file, p50", "ms", figures[50])
    report.judge("sealed to seen in the live file, p99", "ms", figures[99], at_most=100)


def _follow(path: Path, rows: int, count: int, pipe: Connection) -> None:
    """Read what is new in a live file, every 2 ms; tell how long ago each chunk's first row was made."""
    seen_s: list[float] = []
    with shmstore.open(path) as recording:
        clock = recording["clock"]
        _firsts(clock, 0, rows)  # with all that has to be imported for it
        pipe.send("ready")
        deadline = time.monotonic() + _FOLLOW_S
        while len(seen_s) < count and time.monotonic() < deadline:
            made_ns = _firsts(clock, 1 + len(seen_s), rows)
            now_ns = time.perf_counter_ns()  # CLOCK_MONOTONIC, one for all processes
            seen_s += [(now_ns - one) / 1e9 for one in made_ns]
            time.sleep(0.002)
    if len(seen_s) != count:
        raise RuntimeError(f"{len(seen_s)} of {count} chunks were seen")
    pipe.send(seen_s)


def _firsts(clock: shmstore.Instrument, chunk: int, rows: int) -> list[int]:
    """Read all rows from a chunk on; return the first of each chunk."""
    first_ns: list[int] = clock.read(start=chunk * rows).column(0).to_numpy()[::rows].tolist()
    return first_ns
