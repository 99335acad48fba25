"""What a producer pays: the time of a single call, while the writer records what came before."""

from __future__ import annotations

import mmap
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

import shmstore
from benchmarks.conftest import Scale
from benchmarks.report import Report, Result
from shmstore.bench.harness import warm_up
from shmstore.bench.streams import MIB, Adc, columns

pytestmark = pytest.mark.timeout(1800)  # seconds; slow machines are welcome

_KIB = 1024


def _await_room(producer: shmstore.Producer, size: int) -> None:
    """Wait, off the clock, until so many bytes of the ring are free: no call must wait for space."""
    while (stats := producer.stats()).ring_bytes - stats.ring_bytes_used < size:
        time.sleep(0.001)


def _percentile(seconds: list[float], percent: float) -> float:
    return float(np.percentile(seconds, percent)) * 1e6


def test_loan(report: Report, scale: Scale, output: Path) -> None:
    """Loan to seal, the slot left as it is: the smallest slot against the largest, sizes in turn."""
    sizes = scale.pick([64 * _KIB, MIB, 16 * MIB, 64 * MIB], [64 * _KIB, MIB])
    calls = scale.pick(20, 3)
    seconds: dict[int, list[float]] = defaultdict(list)
    ring = 3 * sizes[-1]

    def measure() -> None:
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

    report.repeat(measure)
    small = _percentile(seconds[sizes[0]], 50)
    for size in sizes[1:]:
        figure = _percentile(seconds[size], 50)
        report.add(
            Result(
                f"loan … seal, {size // MIB} MiB, p50",
                figure,
                "µs",
                "loan … seal, 64 KiB",
                small,
                figure / small,
                "within 20 µs",
                abs(figure - small) <= 20,
            )
        )


def test_put(report: Report, scale: Scale, output: Path) -> None:
    """Put of 1 MiB into a ring that never fills, against memcpy between two other places; each in turn."""
    calls = scale.pick(192, 8)
    ring = scale.pick(256, 32) * MIB
    batches = Adc().batches()
    sources = [columns(batch)["adc"] for batch in batches]
    puts: list[float] = []
    copies: list[float] = []
    # A copy has as much room as a put, mapped and touched in the same way.
    room = np.frombuffer(mmap.mmap(-1, ring, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE), np.int16)

    def measure() -> None:
        warm_up(output, calls * MIB + ring)
        with (
            shmstore.HDF5Storage(output_dir=output, compression="none", ring_bytes=ring) as storage,
            storage.producer("adc", Adc().schema) as producer,
        ):
            producer.put(batches[0])
            for number in range(calls):
                # Each of the two copies a batch that the other has not just brought into the cache.
                batch, source = batches[number % 16], sources[16 + number % 16]
                target = room[number * len(source) : (number + 1) * len(source)]
                _await_room(producer, 8 * MIB)
                began = time.perf_counter()
                producer.put(batch)
                puts.append(time.perf_counter() - began)
                began = time.perf_counter()
                np.copyto(target, source)
                copies.append(time.perf_counter() - began)
        storage.path.unlink()

    report.repeat(measure)
    for percent in (50, 99):
        put, copy = _percentile(puts, percent), _percentile(copies, percent)
        report.add(Result(f"put of 1 MiB, p{percent}", put, "µs", f"memcpy p{percent}", copy, put / copy))
