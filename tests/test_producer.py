"""The producer against a session made by hand: what it does on its own account, with nobody to help it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import shmstore
from shmstore.config import StorageConfig
from shmstore.producer import Producer
from shmstore.queue import DescriptorQueue
from shmstore.ring import Ring
from shmstore.session import Session, State

SCHEMA = pa.schema([("x", pa.int64())])
ROWS = pa.record_batch({"x": list(range(100))})


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """A recording whose writer has died without a word: the page says "recording", nobody holds the lock."""
    session = Session.create(tmp_path)
    session.state = State.RECORDING
    yield session
    session.remove()
    session.close()


def producer_of(session: Session, on_full: str) -> Producer:
    Ring.create(session.ring_path(1), 4096, 1).close()
    DescriptorQueue.create(session.queue_path(1)).close()
    config = StorageConfig().instrument("a", on_full=on_full)
    return Producer(session.folder, 1, config, SCHEMA, 0)


def put_often(producer: Producer, batch: pa.RecordBatch) -> None:
    for _ in range(100):
        producer.put(batch)


@pytest.mark.parametrize("on_full", ["block", "raise", "drop_newest"])
def test_a_full_ring_with_a_dead_writer_is_broken_under_every_policy(session: Session, on_full: str) -> None:
    with producer_of(session, on_full) as producer:
        with pytest.raises(shmstore.BrokenError, match="writer has died"):
            put_often(producer, ROWS)
        stats = producer.stats()
    assert 0 < stats.sealed < 100 * 100
    assert (stats.dropped, stats.rejected) == (0, 100)
    assert stats.accepted == stats.sealed + stats.rejected


def test_a_batch_without_rows_does_not_wait_for_a_dead_writer(session: Session) -> None:
    with (
        producer_of(session, "block") as producer,
        pytest.raises(shmstore.BrokenError, match="writer has died"),
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
