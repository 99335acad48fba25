"""The producer against a session made by hand: what it does on its own account, with nobody to help it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from children import Child

import shmstore
from shmstore.batch import read_ipc
from shmstore.config import StorageConfig
from shmstore.producer import Producer
from shmstore.queue import DescriptorQueue
from shmstore.ring import Ring
from shmstore.session import Session, State, session_folder

SCHEMA = pa.schema([("x", pa.int64())])
ROWS = pa.record_batch({"x": list(range(100))})


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """A recording whose writer has died: the page says "recording", and its owner, we, could replace it."""
    session = Session.create(tmp_path)
    session.state = State.RECORDING
    yield session
    session.remove()
    session.close()


@pytest.fixture
def abandoned(tmp_path: Path) -> Iterator[Session]:
    """A recording whose owner was killed, and whose writer has died without a word too."""
    with Child(
        "from shmstore.session import Session, State",
        f"session = Session.create(Path({str(tmp_path)!r}), 'run')",
        "session.state = State.RECORDING",
        "session.recording_path = Path('/data/night.h5')",
        "say('ready')",
        "wait()",
    ) as owner:
        assert owner.hear() == "ready"
    session = Session.attach(session_folder(tmp_path, "run"))
    yield session
    session.remove()
    session.close()


def producer_of(session: Session, on_full: str) -> Producer:
    Ring.create(session.ring_path(1), 4096, 1).close()
    DescriptorQueue.create(session.queue_path(1)).close()
    config = StorageConfig().instrument("a", on_full=on_full)
    return Producer(session.folder, 1, config, SCHEMA, 0)


def put_often(producer: Producer, batch: pa.RecordBatch, timeout: float | None = None) -> None:
    for _ in range(100):
        producer.put(batch, timeout)


@pytest.mark.parametrize(("on_full", "timeout"), [("block", 0.05), ("raise", None)], ids=["block", "raise"])
def test_a_full_ring_is_full_as_long_as_the_writer_may_come_back(
    session: Session, on_full: str, timeout: float | None
) -> None:
    with producer_of(session, on_full) as producer:
        with pytest.raises(shmstore.RingFullError):
            put_often(producer, ROWS, timeout)
        stats = producer.stats()
    assert 0 < stats.sealed < 100 * 100
    assert (stats.dropped, stats.rejected) == (0, 100)


def test_a_slot_is_announced_to_a_writer_that_may_sleep_and_to_no_other(session: Session) -> None:
    with producer_of(session, "raise") as producer:
        queue = DescriptorQueue.attach(session.queue_path(1))
        producer.put(ROWS.slice(0, 1))
        assert [(told.sequence, told.rows) for told in queue.receive()] == [(0, 1)]
        session.awake = True
        producer.put(ROWS.slice(0, 2))
        with producer.loan(3) as loan:
            loan["x"] = 0
        assert queue.receive() == []
        session.awake = False
        with producer.loan(4) as loan:
            loan["x"] = 0
        assert [(told.sequence, told.rows) for told in queue.receive()] == [(3, 4)]
        queue.close()


def test_a_writer_is_woken_once_a_sleep(session: Session) -> None:
    with producer_of(session, "raise") as producer:
        queue = DescriptorQueue.attach(session.queue_path(1))
        for number in range(3):
            producer.put(ROWS.slice(0, 1))
            with producer.loan(1) as loan:
                loan["x"] = 0
            assert [told.sequence for told in queue.receive()] == [2 * number]
            session.awake = True  # it has heard that
            session.awake = False
        queue.close()


def test_a_full_ring_is_announced_whatever_the_writer_says(session: Session) -> None:
    """It may wait for a commit that nothing else makes pressing."""
    session.awake = True
    with producer_of(session, "block") as producer:
        queue = DescriptorQueue.attach(session.queue_path(1))
        with pytest.raises(shmstore.RingFullError):
            put_often(producer, ROWS, 0.05)
        assert len(queue.receive()) == 1
        queue.close()


@pytest.mark.parametrize("rows", [0, 1, 100, 20_000, 40_000])
@pytest.mark.parametrize(
    "column",
    [
        pa.array([7], pa.int16()),
        pa.array([None, True, False]),
        pa.array([[1, 2, 3], None], pa.list_(pa.int8(), 3)),
        pa.array([b"abc", None], pa.binary(3)),
    ],
    ids=str,
)
def test_a_batch_of_any_size_lies_in_its_slot_as_it_was_put(
    session: Session, rows: int, column: pa.Array
) -> None:
    batch = pa.record_batch({"x": column.take(pa.array(np.arange(rows) % len(column)))})
    Ring.create(session.ring_path(1), 1 << 20, 1).close()
    DescriptorQueue.create(session.queue_path(1)).close()
    config = StorageConfig().instrument("a")
    with Producer(session.folder, 1, config, batch.schema, 0) as producer:
        producer.put(batch.slice(rows // 3))
        ring = Ring.attach(session.ring_path(1))
        slot = ring.borrow()
        assert slot is not None
        assert read_ipc(slot.body, slot.skip, batch.schema, slot.rows).equals(batch.slice(rows // 3))
        ring.release(slot)
        ring.close()


def test_a_full_ring_drops_as_long_as_the_writer_may_come_back(session: Session) -> None:
    with producer_of(session, "drop_newest") as producer:
        put_often(producer, ROWS)
        stats = producer.stats()
    assert stats.dropped > 0
    assert stats.sealed + stats.dropped == stats.accepted == 100 * 100


@pytest.mark.parametrize("on_full", ["block", "raise", "drop_newest"])
def test_a_full_ring_with_nobody_left_is_broken_under_every_policy(abandoned: Session, on_full: str) -> None:
    with producer_of(abandoned, on_full) as producer:
        with pytest.raises(shmstore.BrokenError, match=r"have died.*`shmstore recover /data/night.h5`"):
            put_often(producer, ROWS)
        stats = producer.stats()
    assert 0 < stats.sealed < 100 * 100
    assert (stats.dropped, stats.rejected) == (0, 100)
    assert stats.accepted == stats.sealed + stats.rejected


def test_a_batch_without_rows_does_not_wait_when_nobody_is_left(abandoned: Session) -> None:
    with (
        producer_of(abandoned, "block") as producer,
        pytest.raises(shmstore.BrokenError, match="have died"),
    ):
        put_often(producer, ROWS.slice(0, 0))


@pytest.mark.parametrize("rows", [10, 100_000])
def test_columns_declared_free_of_nulls_fit_nullable_ones_at_any_size(tmp_path: Path, rows: int) -> None:
    strict = pa.schema(
        [pa.field("x", pa.int64(), nullable=False, metadata={"unit": "s"})], metadata={"a": "b"}
    )
    with shmstore.HDF5Storage(output_dir=tmp_path) as storage:
        storage.producer("a", SCHEMA).put(pa.record_batch([pa.array(range(rows), pa.int64())], schema=strict))
    table = shmstore.read(storage.path, "a")
    assert table.schema.equals(SCHEMA, check_metadata=True)
    assert table["x"].to_pylist() == list(range(rows))


# -- cutting ---------------------------------------------------------------------------------------------

LABELLED = pa.schema([("c", pa.dictionary(pa.int16(), pa.string()))])
CAPACITY = 64 * 1024


def labelled(rows: int, label_bytes: int) -> pa.RecordBatch:
    """Return rows whose dictionary has so many bytes, in labels of 100."""
    labels = [f"{number:0100}" for number in range(label_bytes // 100)]
    codes = pa.array(np.arange(rows) % len(labels), pa.int16())
    return pa.record_batch([pa.DictionaryArray.from_arrays(codes, labels)], schema=LABELLED)


@pytest.mark.parametrize("label_bytes", [1_000, 6_000, 12_000, 25_000])
@pytest.mark.parametrize("rows", [0, 1, 100, 20_000, 100_000])
def test_slices_carry_all_rows_and_few_copies_of_a_large_dictionary(
    tmp_path: Path, label_bytes: int, rows: int
) -> None:
    batch = labelled(rows, label_bytes)
    sizes = []
    with shmstore.HDF5Storage(output_dir=tmp_path, ring_bytes=CAPACITY) as storage:
        producer = storage.producer("a", LABELLED)
        producer.put(batch)
        stats = producer.stats()
        sizes.append(stats.sealed_bytes)
    table = shmstore.read(storage.path, "a")
    assert table.num_rows == rows
    assert table["c"].to_pylist() == batch["c"].to_pylist()
    # Each slot is at most half labels, unless they alone take most of the ring.
    assert stats.sealed_bytes < 2 * rows + 3 * label_bytes + 2 * rows * 2 + stats.batches * 2048
    assert stats.batches <= 1 + (2 * rows) // (label_bytes // 2)
    with shmstore.open(storage.path) as recording:
        assert recording["a"].read()["c"].num_chunks <= 1  # the dictionary was written once


def test_a_dictionary_larger_than_the_ring_is_said_to_be_that(tmp_path: Path) -> None:
    with shmstore.HDF5Storage(output_dir=tmp_path, ring_bytes=CAPACITY) as storage:
        producer = storage.producer("a", LABELLED)
        with pytest.raises(
            shmstore.BatchTooLargeError, match=r"the dictionary of 'a' has .*ring_bytes to at least (\d+)"
        ) as caught:
            producer.put(labelled(10_000, 100_000))
        assert (producer.stats().rejected, producer.stats().sealed) == (10_000, 0)
        needed = int(str(caught.value).rpartition(" ")[2])
        larger = storage.producer("a", LABELLED, ring_bytes=needed)
        larger.put(labelled(10_000, 100_000))
    assert shmstore.read(storage.path, "a").num_rows == 10_000


def test_only_the_labels_that_there_are_travel_with_a_slice(tmp_path: Path) -> None:
    """Of a slice of a longer text column nothing else goes into the ring either."""
    schema = pa.schema([("s", pa.string_view()), ("l", pa.list_(pa.string()))])
    words = pa.array([f"{number:050}" for number in range(10_000)])
    lists = pa.ListArray.from_arrays(pa.array(range(10_001), pa.int32()), words)
    batch = pa.record_batch([words.cast(pa.string_view()), lists], schema=schema)
    with shmstore.HDF5Storage(output_dir=tmp_path, ring_bytes=CAPACITY) as storage:
        producer = storage.producer("a", schema, strings="packed")
        producer.put(batch.slice(5_000, 10))
        assert producer.stats().sealed_bytes < 10 * 200 + 2048
        producer.put(batch)
    table = shmstore.read(storage.path, "a")
    expected = pa.Table.from_batches([batch.slice(5_000, 10), batch])
    assert table.to_pylist() == expected.to_pylist()
