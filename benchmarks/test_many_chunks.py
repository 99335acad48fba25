"""A long recording of small chunks: what the millionth costs against the first, in time and in memory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import shmstore
from benchmarks.conftest import Scale
from benchmarks.report import Report
from shmstore.bench.harness import warm_up
from shmstore.bench.processes import await_standby, memory_of
from shmstore.bench.streams import MIB, Adc

pytestmark = pytest.mark.timeout(1800)  # seconds; slow machines are welcome

_CHUNK_BYTES, _PARTS, _STANDBY_S = 4096, 10, 10.0


def test_million_chunks(report: Report, scale: Scale, output: Path) -> None:
    """1,000,000 uncompressed chunks of 4 KiB, one each put: the last tenth against the first."""
    stream, each = Adc(batch_bytes=_CHUNK_BYTES), scale.pick(100_000, 200)
    batches = stream.batches()
    seconds: list[list[float]] = []
    memory: list[list[float]] = []

    def measure() -> None:
        warm_up(output, _PARTS * each * _CHUNK_BYTES)
        seconds.append([])
        memory.append([])
        with (
            shmstore.HDF5Storage(
                output_dir=output, compression="none", chunk_rows=_CHUNK_BYTES // 2
            ) as storage,
            storage.producer("adc", stream.schema) as producer,
        ):
            await_standby({storage.writer_pid}, scale.pick(_STANDBY_S, 0.0))
            producer.put(batches[0])
            storage.flush()
            for _ in range(_PARTS):
                began = time.perf_counter()
                for number in range(each):
                    producer.put(batches[number % len(batches)])
                storage.flush()  # until the last of them is in the file
                seconds[-1].append(time.perf_counter() - began)
                memory[-1].append(memory_of(storage.writer_pid)["RssAnon"] / MIB)
        chunks = storage.final_stats.chunks_written
        storage.path.unlink()
        if chunks != 1 + _PARTS * each:
            raise RuntimeError(f"{chunks} chunks were written: batches and chunks are not the same")

    report.repeat(measure)
    first, second, last = f"first {each:,}", f"{2 * each:,}", f"last of {_PARTS * each:,}"
    report.judge(
        f"4 KiB chunks, {last}",
        "µs/chunk",
        [parts[-1] / each * 1e6 for parts in seconds],
        first,
        [parts[0] / each * 1e6 for parts in seconds],
        at_most=1.1,
    )
    report.judge(
        f"writer's private memory, {last}",
        "MiB",
        [parts[-1] for parts in memory],
        second,
        [parts[1] for parts in memory],
        at_most=1.05,
    )
