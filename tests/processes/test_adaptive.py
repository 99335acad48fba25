"""Adaptive compression in real recordings: a codec that cannot keep up, and then can."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest

import shmstore
from shmstore import HDF5Storage, Producer, StorageStats

DEADLINE_S = 60.0
ROWS = 1 << 20
CHUNK_ROWS = 1 << 18
SCHEMA = pa.schema([("eased", pa.uint8()), ("plain", pa.uint8())])
#: Words, on which the cheapest level of gzip takes longest: with one thread a fifth of what a `put` takes.
WORDS = np.random.default_rng(5).choice(["alpha", "beta", "gamma", "delta3", "error", "warning"], ROWS // 4)
TEXT = np.frombuffer(" ".join(WORDS).encode(), np.uint8)[:ROWS]


def storage_in(folder: Path) -> HDF5Storage:
    return HDF5Storage(
        output_dir=folder,
        compression="adaptive",
        compression_level=9,
        codec_threads=1,
        ring_bytes=8 * 2 * ROWS,
        chunk_rows=CHUNK_ROWS,
        instruments={"x": {"columns": {"plain": {"compression": "none"}}}},
    )


def text_of(number: int) -> np.ndarray:
    return np.roll(TEXT, number)


def put(producer: Producer, number: int) -> None:
    values = pa.array(text_of(number))
    producer.put(pa.RecordBatch.from_arrays([values, values], schema=SCHEMA), timeout=DEADLINE_S)


def put_until(
    storage: HDF5Storage, producer: Producer, first: int, reached: Callable[[StorageStats], bool]
) -> int:
    """Put without a pause until the counts say so; return the number of the next batch."""
    end, number = time.monotonic() + DEADLINE_S, first
    while not reached(storage.stats()):
        assert time.monotonic() < end, storage.stats()
        for _ in range(8):
            put(producer, number)
            number += 1
    return number


def wait_until(storage: HDF5Storage, reached: Callable[[StorageStats], bool]) -> StorageStats:
    end = time.monotonic() + DEADLINE_S
    while not reached(stats := storage.stats()):
        assert time.monotonic() < end, stats
        time.sleep(0.05)
    return stats


def kill_writer(storage: HDF5Storage, restarts: int) -> None:
    os.kill(storage.writer_pid, signal.SIGKILL)
    wait_until(storage, lambda stats: stats.writer_restarts == restarts)


def masks_of(dataset: h5py.Dataset) -> list[int]:
    found: list[int] = []
    dataset.id.chunk_iter(lambda info: found.append(info.filter_mask))
    return found


def check(path: Path, batches: int) -> None:
    """Read it through plain h5py, and have it verified."""
    with h5py.File(path) as file:
        for name in ("eased", "plain"):
            column = file["x"][name]
            assert column.shape == (batches * ROWS,)
            for number in range(batches):
                read = column[number * ROWS : (number + 1) * ROWS]
                assert np.array_equal(read, text_of(number)), (name, number)
    report = shmstore.verify(path)
    assert report.ok, str(report)


def test_it_steps_down_and_up_and_all_of_it_is_read_back(
    output_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with storage_in(output_dir) as storage:
        producer = storage.producer("x", SCHEMA)
        put(producer, 0)
        storage.flush()
        assert storage.stats().steps_down == 0
        after = put_until(storage, producer, 1, lambda stats: stats.chunks_stored > 0)
        stats = wait_until(storage, lambda stats: stats.steps_up > 0)
        assert (stats.steps_down, stats.steps_below) == (3, 3 - stats.steps_up)  # gzip 9, 3, 1, none
        assert stats.chunks_cheaper > 0
        assert (stats.instruments["x"].steps_down, stats.instruments["x"].chunks_stored) == (
            3,
            stats.chunks_stored,
        )
        # One by one there is always room: nothing more is stored, and the cheapest level is left behind.
        stored, cheaper = stats.chunks_stored, stats.chunks_cheaper
        put(producer, after)
        stats = wait_until(storage, lambda stats: stats.rows_written == stats.committed == (after + 1) * ROWS)
        assert stats.chunks_stored == stored
        assert stats.chunks_cheaper > cheaper or stats.steps_below == 0
        stats = wait_until(storage, lambda stats: stats.steps_below == 0)
        put(producer, after + 1)
    check(storage.path, after + 2)
    said = [line for line in capfd.readouterr().err.splitlines() if "codec threads" in line]
    assert len(said) == 1
    assert said[0].startswith("shmstore writer: codec threads cannot keep up with 'x': its chunks are")
    final = storage.final_stats
    assert (final.chunks_stored, final.steps_up) == (stored, 3)
    assert final.chunks_cheaper == stats.chunks_cheaper
    with h5py.File(storage.path) as file:
        masks = masks_of(file["x/eased"])
        assert sorted(set(masks)) == [0, 1]
        assert masks[:4] == masks[-4:] == [0] * 4
        assert masks.count(1) == stored
        assert file["x/eased"].id.get_storage_size() > masks.count(1) * CHUNK_ROWS
        account = json.loads(file["_shmstore"].attrs["accounting"])
    assert account["compression"]["x"] == {
        name: getattr(final, name) for name in ("steps_down", "steps_up", "chunks_cheaper", "chunks_stored")
    }


def test_a_writer_that_is_replaced_begins_at_the_top(output_dir: Path) -> None:
    with storage_in(output_dir) as storage:
        producer = storage.producer("x", SCHEMA)
        after = put_until(storage, producer, 0, lambda stats: stats.chunks_stored > 0)
        kill_writer(storage, 1)  # with full rings
        after = put_until(storage, producer, after, lambda stats: stats.steps_below == 3)
        storage.flush()
        before = storage.stats()
        assert before.steps_down > 3  # those of the writer before are among them
        kill_writer(storage, 2)  # with empty ones
        put(producer, after)
        storage.flush()
        stats = storage.stats()
        assert stats.steps_below == 0
        assert (stats.steps_down, stats.steps_up) == (before.steps_down, before.steps_down)
        assert (stats.chunks_cheaper, stats.chunks_stored) == (before.chunks_cheaper, before.chunks_stored)
    check(storage.path, after + 1)
    with h5py.File(storage.path) as file:
        assert 0 < masks_of(file["x/eased"]).count(1) <= stats.chunks_stored
    with shmstore.open(storage.path) as recording:
        assert recording.state == "complete"


def test_what_nobody_asked_for_is_not_in_the_account(output_dir: Path) -> None:
    with HDF5Storage(output_dir=output_dir) as storage:
        put(storage.producer("x", SCHEMA), 0)
    with shmstore.open(storage.path) as recording:
        assert recording.accounting is not None
        assert "compression" not in recording.accounting
    assert storage.final_stats.steps_down == 0
