"""Names and options that meet: two recordings, two producers of one instrument, ids and keys of any kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from processes.ledger import check_instrument
from processes.rows import SCHEMA, batch

import shmstore


@contextmanager
def refused(error: type[Exception], message: str) -> Iterator[None]:
    """Expect an error whose message is one line, and says that."""
    with pytest.raises(error, match=message) as caught:
        yield
    assert isinstance(caught.value, shmstore.ShmStoreError)
    assert "\n" not in str(caught.value)


def test_two_recordings_in_one_second_get_files_of_their_own(output_dir: Path) -> None:
    with (
        shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as one,
        shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as two,
    ):
        assert one.path != two.path
        assert one.name != two.name
        one.write_batch("x", batch(1, 0, 5))
        two.write_batch("x", batch(2, 0, 6))
    with shmstore.open(one.path) as recording:
        check_instrument(recording["x"], {1: [5]})
    with shmstore.open(two.path) as recording:
        check_instrument(recording["x"], {2: [6]})


def test_two_recordings_of_one_name(output_dir: Path) -> None:
    name = f"twin-{os.getpid()}"
    with shmstore.HDF5Storage(output_dir=output_dir, name=name) as storage:
        with refused(shmstore.ConfigError, f"'{name}' is running, .* choose another name"):
            shmstore.HDF5Storage(output_dir=output_dir, name=name).start()
        storage.write_batch("x", batch(1, 0, 5))
    assert shmstore.read(storage.path, "x").num_rows == 5


def test_producers_of_an_instrument_must_agree(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        storage.producer("x", SCHEMA, compression="zstd").put(batch(1, 0, 10))
        storage.producer("x", SCHEMA, compression="zstd", on_full="raise").put(batch(2, 0, 10))
        with refused(shmstore.ConfigError, "'x' is recorded with options .*all its producers must agree"):
            storage.producer("x", SCHEMA, compression="none")
    with shmstore.open(storage.path) as recording:
        check_instrument(recording["x"], {1: [10], 2: [10]})


def test_a_producer_that_came_to_nothing_leaves_nothing(output_dir: Path) -> None:
    odd = pa.schema([("odd", pa.dictionary(pa.int8(), pa.dictionary(pa.int8(), pa.string())))])
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        session = Path("/dev/shm", f"shmstore-{storage.name}")
        before = sorted(session.iterdir())
        for _ in range(3):
            with refused(shmstore.UnsupportedTypeError, "'odd'"):
                storage.producer("x", odd, compression="none")
            with refused(shmstore.ConfigError, "'valu'"):
                storage.producer("x", SCHEMA, compression="none", columns={"valu": {"compression": "none"}})
        assert sorted(session.iterdir()) == before
        assert (storage.stats().producers, storage.stats().ring_bytes) == (0, 0)
        storage.producer("x", SCHEMA, columns={"value": {"compression": "none"}}).put(batch(1, 0, 10))
    with shmstore.open(storage.path) as recording:
        check_instrument(recording["x"], {1: [10]})
        assert recording.accounting
        assert len(recording.accounting["producers"]) == 1


def test_metadata_may_come_before_the_options(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        storage.set_instrument_metadata("x", "gain", 4)
        storage.producer("x", SCHEMA, strings="fixed:40").put(batch(1, 0, 10))
    with shmstore.open(storage.path) as recording:
        check_instrument(recording["x"], {1: [10]})
        assert recording["x"].metadata == {"gain": 4}
        assert recording["x"].layout
        assert recording["x"].layout.columns[4].encoding == "fixed:40"


def test_a_forgotten_producer_gives_its_ring_back(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        for sequence in range(5):
            storage.producer("x", SCHEMA).put(batch(sequence, 0, 10))
        storage.flush()
    with shmstore.open(storage.path) as recording:
        check_instrument(recording["x"], {number: [10] for number in range(5)})


def test_ids_that_look_like_something_else(output_dir: Path) -> None:
    names = ["", "..", ".", "a/b", "/", "metadata", "_shmstore", "%41", "ä ö", "x\ny"]
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="64KiB") as storage:
        for number, name in enumerate(names):
            storage.write_batch(name, batch(number, 0, number + 1))
            storage.set_instrument_metadata(name, "number", number)
    with shmstore.open(storage.path) as recording:
        assert recording.instruments == names
        for number, name in enumerate(names):
            check_instrument(recording[name], {number: [number + 1]})
            assert recording[name].metadata == {"number": number}


def test_metadata_that_cannot_be_kept(output_dir: Path) -> None:
    wrong: list[tuple[str, Any]] = [
        ("", 1),
        ("a\0b", 1),
        ("key", "a\0b"),
        ("key", {"a": ["b\0"]}),
        ("key", object()),
        ("_json_keys", 1),
        ("k" * 2000, 1),
    ]
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        storage.set_metadata("before", 1)
        storage.write_batch("x", batch(1, 0, 10))
        for key, value in wrong:
            with refused(shmstore.InvalidValueError, "metadata"):
                storage.set_metadata(key, value)
            with refused(shmstore.InvalidValueError, "metadata"):
                storage.set_instrument_metadata("x", key, value)
        with refused(shmstore.InvalidValueError, "'instrument_id' of 'x' belongs to shmstore"):
            storage.set_instrument_metadata("x", "instrument_id", "y")
        storage.set_metadata("instrument_id", "free here")
    with shmstore.open(storage.path) as recording:
        assert recording.instruments == ["x"]
        assert recording.metadata == {"before": 1, "instrument_id": "free here"}
        check_instrument(recording["x"], {1: [10]})
