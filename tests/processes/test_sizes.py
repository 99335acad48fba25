"""Batches of every size, from no rows at all to more than the ring holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from processes.ledger import check_instrument
from processes.rows import SCHEMA, batch

import shmstore
from shmstore.ring import SLOT_HEADER_BYTES

MIB = 2**20
IMAGE = pa.schema([("row", pa.int64()), ("pixels", pa.list_(pa.uint16(), 512 * 1024))])


def images(first: int, rows: int) -> pa.RecordBatch:
    """Return rows of 1 MiB each."""
    numbers = np.arange(first, first + rows)
    pixels = (np.arange(rows * 512 * 1024) * 31 + first * 7).astype(np.uint16)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(pixels), 512 * 1024)
    return pa.RecordBatch.from_arrays([pa.array(numbers), lists], schema=IMAGE)


def test_five_thousand_batches_of_one_row(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        producer = storage.producer("x", SCHEMA)
        for sequence in range(5000):
            assert producer.put(batch(1, sequence, 1)) == sequence
    with shmstore.open(storage.path) as recording:
        check_instrument(recording["x"], {1: [1] * 5000})
    assert storage.final_stats.batches_written == 5000


def test_a_batch_of_100_mb_goes_through_a_ring_of_8(output_dir: Path) -> None:
    whole = images(0, 100)
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes=8 * MIB, compression="none") as storage:
        producer = storage.producer("x", IMAGE)
        producer.put(whole)
        assert producer.stats().batches >= 13
        producer.put(images(100, 1))
        assert producer.stats().accepted == 101
    table = shmstore.read(storage.path, "x")
    assert table.equals(pa.Table.from_batches([whole, images(100, 1)]))


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_row_that_just_fills_the_ring(output_dir: Path, more: int) -> None:
    # One row is not cut: it fits if its message fits beside the slot's header.
    schema = pa.schema([("bytes", pa.binary())])

    def row(size: int) -> pa.RecordBatch:
        return pa.record_batch([pa.array([b"x" * size], pa.binary())], schema=schema)

    ring_bytes = 64 * 1024
    around = pa.ipc.get_record_batch_size(row(1024)) - 1024
    size = ring_bytes - SLOT_HEADER_BYTES - around + more * 64
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes=ring_bytes) as storage:
        producer = storage.producer("x", schema)
        producer.put(row(10))
        if more > 0:
            with pytest.raises(shmstore.BatchTooLargeError, match=r"'x'.*ring_bytes"):
                producer.put(row(size))
        else:
            producer.put(row(size))
        producer.put(row(20))
    lengths = [len(value) for value in shmstore.read(storage.path, "x")["bytes"].to_pylist()]
    assert lengths == ([10, 20] if more > 0 else [10, size, 20])


def test_a_row_larger_than_the_ring_is_refused_and_recording_goes_on(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes=MIB) as storage:
        producer = storage.producer("x", IMAGE)
        with pytest.raises(
            shmstore.BatchTooLargeError, match=r"one row of 'x' has .* set ring_bytes"
        ) as caught:
            producer.put(images(0, 3))
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, ValueError)
        with pytest.raises(shmstore.BatchTooLargeError, match=r"'x'.*ring_bytes") as caught:
            producer.loan(3)
        assert "\n" not in str(caught.value)
        assert producer.stats().rejected == 3
        storage.write_batch("y", batch(1, 0, 10))
    with shmstore.open(storage.path) as recording:
        assert recording.state == "complete"
        assert recording["x"].num_rows == 0
        check_instrument(recording["y"], {1: [10]})
        assert recording.accounting
        assert sum(account["rejected"] for account in recording.accounting["producers"]) == 3


def test_the_remedy_that_the_error_names_helps(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir) as storage:
        with pytest.raises(shmstore.BatchTooLargeError) as caught:
            storage.producer("x", IMAGE, ring_bytes=MIB).put(images(0, 1))
        enough = int(str(caught.value).rsplit(" ", 1)[1])
        storage.producer("x", IMAGE, ring_bytes=enough).put(images(0, 5))
    assert shmstore.read(storage.path, "x").num_rows == 5


def test_batches_without_rows(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        producer = storage.producer("x", SCHEMA)
        producer.put(batch(1, 0, 0))
        producer.put(batch(1, 1, 3))
        producer.put(pa.Table.from_batches([], SCHEMA))
        producer.put(batch(1, 2, 0))
        storage.producer("empty", SCHEMA).put(batch(1, 0, 0))
        storage.producer("silent", SCHEMA)
        storage.producer("unknown")
    with shmstore.open(storage.path) as recording:
        check_instrument(recording["x"], {1: [0, 3, 0]})
        for name in ("empty", "silent"):
            assert recording[name].read().equals(SCHEMA.empty_table())
        assert recording["unknown"].num_rows == 0


def test_a_schema_without_columns(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        storage.write_batch("x", pa.record_batch([], schema=pa.schema([])))
    with shmstore.open(storage.path) as recording:
        assert recording["x"].num_rows == 0
