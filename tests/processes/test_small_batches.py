"""Many small batches: taken together, and still each by itself to whoever counts."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from processes.programs import TIMEOUT_S

import shmstore
from shmstore import HDF5Storage
from shmstore.ring import Kind

SCHEMA = pa.schema([("row", pa.int64()), ("value", pa.float64())])


def batch(start: int, rows: int, null_at: int | None = None) -> pa.RecordBatch:
    """Rows that know their number; perhaps with a null in place of one value."""
    row = np.arange(start, start + rows)
    values = pa.array(row / 8, mask=row == null_at)
    return pa.RecordBatch.from_arrays([pa.array(row), values], schema=SCHEMA)


def check(path: Path, rows: int, nulls: list[int]) -> None:
    with shmstore.open(path) as recording:
        assert recording.state == "complete"
        table = recording["x"].read()
    assert np.array_equal(table["row"].to_numpy(), np.arange(rows))
    values = table["value"].combine_chunks()
    assert np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False)).tolist() == nulls
    expected = np.arange(rows) / 8
    expected[nulls] = np.nan
    assert np.array_equal(values.to_numpy(zero_copy_only=False), expected, equal_nan=True)


@pytest.mark.parametrize("rows", [1, 7, 100])
@pytest.mark.parametrize("chunk_rows", [None, 256])
def test_small_batches_of_all_kinds_come_out_in_order(
    output_dir: Path, rows: int, chunk_rows: int | None
) -> None:
    """Runs of equal ones, some with nulls, some of another size, some lent."""
    with HDF5Storage(
        output_dir=output_dir, ring_bytes="256KiB", chunk_rows=chunk_rows, auto_flush_interval_secs=0.2
    ) as storage:
        producer = storage.producer("x", SCHEMA)
        total, nulls = 0, []
        for number in range(4000):
            if number % 500 < 400:
                size, null_at = rows, None
            else:
                size = rows + number % 3
                null_at = total if number % 5 == 0 else None
            if 1000 <= number < 1500:
                with producer.loan(size) as loan:
                    loan["row"] = np.arange(total, total + size)
                    loan["value"] = np.arange(total, total + size) / 8
            else:
                producer.put(batch(total, size, null_at))
                nulls += [null_at] if null_at is not None else []
            total += size
        assert producer.stats().batches == 4000
    check(storage.path, total, nulls)
    stats = storage.final_stats
    assert (stats.accepted, stats.committed, stats.batches_written) == (total, total, 4000)


def test_a_writer_that_is_killed_amid_small_batches_doubles_and_loses_none(output_dir: Path) -> None:
    with HDF5Storage(output_dir=output_dir, ring_bytes="1MiB", commit_interval_ms=5) as storage:
        producer = storage.producer("x", SCHEMA)
        put = 0
        for turn in range(4):
            for _ in range(3000):
                producer.put(batch(put, 3))
                put += 3
            if turn < 3:
                writer = storage.writer_pid
                os.kill(writer, signal.SIGKILL)
                deadline = time.monotonic() + TIMEOUT_S
                while storage.writer_pid == writer:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
    check(storage.path, put, [])
    stats = storage.final_stats
    assert (stats.committed, stats.batches_written, stats.writer_restarts) == (put, 12_000, 3)


def test_one_that_is_damaged_among_many_is_kept_aside_alone(output_dir: Path) -> None:
    """Its header is right, and so is its length; what it holds is no batch."""
    storage = HDF5Storage(output_dir=output_dir, filename="daq.h5", ring_bytes="4MiB").start()
    producer = storage.producer("x", SCHEMA)
    message = batch(0, 10).serialize()
    for number in range(3000):
        if number in (1500, 1501, 2700):
            ring = producer._attach().ring
            room = ring.reserve(message.size)
            assert room is not None
            room[:] = b"\x55" * message.size
            room.release()
            ring.seal(Kind.IPC, message.size, 10, 0)
        else:
            producer.put(batch(number * 10, 10))
    producer.close()
    with pytest.raises(shmstore.IncompleteFileError):
        storage.close()
    kept = sorted((output_dir / "daq.h5.quarantine").iterdir())
    assert [path.name.rpartition("-")[2] for path in kept] == ["001500.slot", "001501.slot", "002700.slot"]
    assert all(path.read_bytes() == b"\x55" * message.size for path in kept)
    stats = storage.final_stats
    assert (stats.committed, stats.quarantined, stats.batches_written) == (29_970, 30, 3000)
    with shmstore.open(storage.path) as recording:
        rows = recording["x"].read()["row"].to_numpy()
    expected = np.arange(30_000).reshape(3000, 10)
    assert np.array_equal(rows, np.delete(expected, [1500, 1501, 2700], axis=0).ravel())
