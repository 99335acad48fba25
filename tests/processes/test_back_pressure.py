"""A writer that cannot keep up: what a full ring means under each policy, and that every row is counted."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from processes.ledger import check_instrument
from processes.rows import SCHEMA, batch

import shmstore

RING_BYTES = 64 * 1024
ROWS = 100


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process for as long as the block takes."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def recording(folder: Path, policy: str) -> Iterator[tuple[shmstore.HDF5Storage, shmstore.Producer]]:
    """Record, with one producer that has put one batch and all of whose batches are in the file."""
    with shmstore.HDF5Storage(output_dir=folder, ring_bytes=RING_BYTES, on_full=policy) as storage:
        producer = storage.producer("x", SCHEMA)
        producer.put(batch(1, 0, ROWS))
        storage.flush()
        yield storage, producer


def fill(producer: shmstore.Producer, first: int = 1) -> int:
    """Put until the ring is full; return how many batches went in. The policy must raise or wait."""
    for sequence in range(first, 10_000):
        try:
            producer.put(batch(1, sequence, ROWS), timeout=0.05)
        except shmstore.RingFullError:
            return sequence - first
    raise AssertionError("the ring is never full")


def accounts(path: Path) -> dict[str, Any]:
    with shmstore.open(path) as found:
        assert found.state == "complete"
        assert found.accounting
        assert found.accounting["ok"]
        (account,) = found.accounting["producers"]
        return dict(account)


@pytest.mark.parametrize("policy", ["block", "raise"])
def test_a_full_ring_is_an_error_and_what_was_put_is_recorded(output_dir: Path, policy: str) -> None:
    with recording(output_dir, policy) as (storage, producer):
        with stopped(storage.writer_pid):
            put = fill(producer)
            assert put > 3
            with pytest.raises(shmstore.RingFullError, match=r"'x' stayed full .*ring_bytes") as caught:
                producer.put(batch(9, 0, 70), timeout=0.01)
            assert "\n" not in str(caught.value)
            assert isinstance(caught.value, TimeoutError)
            counts = producer.stats()
            assert (counts.rejected, counts.dropped) == (ROWS + 70, 0)
            assert counts.sealed == (1 + put) * ROWS
            assert counts.accepted == counts.sealed + counts.rejected
        storage.flush()
        producer.put(batch(1, 1 + put, ROWS))
    account = accounts(storage.path)
    assert (account["committed"], account["rejected"], account["dropped"]) == ((2 + put) * ROWS, ROWS + 70, 0)
    assert account["accepted"] == (3 + put) * ROWS + 70
    assert (storage.final_stats.rejected, storage.final_stats.in_flight) == (ROWS + 70, 0)
    with shmstore.open(storage.path) as found:
        check_instrument(found["x"], {1: [ROWS] * (2 + put)})


def test_block_waits_until_the_writer_goes_on(output_dir: Path) -> None:
    with recording(output_dir, "block") as (storage, producer):
        with stopped(storage.writer_pid):
            put = fill(producer)
            done: list[Any] = []
            waiting = threading.Thread(
                target=lambda: done.append(producer.put(batch(1, 1 + put, ROWS), timeout=60))
            )
            waiting.start()
            waiting.join(0.2)
            assert waiting.is_alive()
        waiting.join(60)
        assert done == [1 + put]
        assert producer.stats().waits >= 2
        assert producer.stats().wait_ns > 0
    with shmstore.open(storage.path) as found:
        check_instrument(found["x"], {1: [ROWS] * (2 + put)})


def test_drop_newest_drops_and_counts(output_dir: Path) -> None:
    with recording(output_dir, "drop_newest") as (storage, producer):
        recorded, dropped = [0], 0
        with stopped(storage.writer_pid):
            for sequence in range(1, 60):
                if producer.put(batch(1, sequence, ROWS)) is None:
                    dropped += 1
                else:
                    recorded.append(sequence)
            assert dropped > 20
            assert len(recorded) > 3
            assert producer.stats().dropped == dropped * ROWS
        storage.flush()
        assert producer.put(batch(1, 60, ROWS)) is not None
        recorded.append(60)
        counts = storage.stats()
        assert (counts.dropped, counts.rejected) == (dropped * ROWS, 0)
    account = accounts(storage.path)
    assert (account["dropped"], account["rejected"]) == (dropped * ROWS, 0)
    assert account["committed"] == len(recorded) * ROWS
    assert account["accepted"] == account["committed"] + account["dropped"]
    assert storage.final_stats.dropped == dropped * ROWS
    table = shmstore.read(storage.path, "x")
    assert table["sequence"].to_pylist() == [sequence for sequence in recorded for _ in range(ROWS)]


def test_a_full_ring_holds_up_nobody_else(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes=RING_BYTES, on_full="raise") as storage:
        full, free = storage.producer("x", SCHEMA), storage.producer("y", SCHEMA, ring_bytes="1MiB")
        with stopped(storage.writer_pid):
            put = fill(full, 0)
            for sequence in range(50):
                free.put(batch(2, sequence, ROWS))
    with shmstore.open(storage.path) as found:
        check_instrument(found["x"], {1: [ROWS] * put})
        check_instrument(found["y"], {2: [ROWS] * 50})


def test_slices_that_were_sealed_before_the_ring_was_full_are_counted_and_recorded(output_dir: Path) -> None:
    large = 5000  # several rings full
    with recording(output_dir, "raise") as (storage, producer), stopped(storage.writer_pid):
        with pytest.raises(shmstore.RingFullError):
            producer.put(batch(1, 1, large))
        counts = producer.stats()
        assert 0 < counts.rejected < large
        assert counts.accepted == ROWS + large == counts.sealed + counts.rejected
    account = accounts(storage.path)
    assert account["committed"] + account["rejected"] == account["accepted"] == ROWS + large
    table = shmstore.read(storage.path, "x")
    whole = pa.Table.from_batches([batch(1, 0, ROWS), batch(1, 1, large)])
    assert table.equals(whole.slice(0, account["committed"]))


def test_rows_that_are_kept_waiting_for_company_make_way_for_one_that_needs_their_place(
    output_dir: Path,
) -> None:
    """Where nothing but the producer presses: no row more, no second flush."""
    few, many = (pa.table({"n": pa.array([range(count)], pa.list_(pa.int32()))}) for count in (500, 15_900))
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes=RING_BYTES, auto_flush_interval_secs=0) as it:
        producer = it.producer("x", few.schema)
        producer.put(few)
        time.sleep(0.3)  # the writer has looked at it, and sees no reason to do more
        producer.put(many, timeout=20)
    assert shmstore.read(it.path, "x").equals(pa.concat_tables([few, many]))


def test_a_ring_that_is_always_full_never_stands_still(output_dir: Path) -> None:
    """What is taken while a commit is on its way is not forgotten when it ends."""
    schema = pa.schema([("n", pa.int32())])
    rows = [1 + number * 7919 % 6000 for number in range(1500)]
    numbers = pa.array(range(6000), pa.int32())
    with shmstore.HDF5Storage(
        output_dir=output_dir, ring_bytes=37_000, auto_flush_interval_secs=0, compression="none"
    ) as storage:
        producers = [storage.producer(name, schema, chunk_rows=5000) for name in ("x", "y")]
        for count in rows:
            for producer in producers:
                producer.put(pa.record_batch([numbers[:count]], schema), timeout=20)
    for name in ("x", "y"):
        assert shmstore.read(storage.path, name).num_rows == sum(rows)
