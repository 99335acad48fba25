"""What the real storage records, read back: after the end, and while several producers go on."""

from __future__ import annotations

import time
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest

from shmstore import reader
from shmstore.inspection import describe
from shmstore.storage import HDF5Storage

ROWS = 5000


def numbered(first: int, rows: int) -> pa.RecordBatch:
    """Return rows whose columns all follow from their number; every seventh has two nulls."""
    numbers = np.arange(first, first + rows)
    holes = numbers % 7 == 3
    images = np.broadcast_to(numbers.astype(np.uint16)[:, None, None], (rows, 2, 3)).copy()
    words = [None if hole else f"w{n}" for n, hole in zip(numbers, holes, strict=True)]
    columns = {
        "number": pa.array(numbers),
        "holed": pa.array(numbers, mask=holes),
        "word": pa.array(words, pa.string()),
        "frame": pa.FixedShapeTensorArray.from_numpy_ndarray(images),
        "even": pa.array(numbers % 2 == 0),
    }
    schema = pa.schema(
        [pa.field(name, array.type, metadata={"units": "1"}) for name, array in columns.items()],
        {"by": "test"},
    )
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=schema)


@pytest.mark.parametrize(
    ("compression", "strings"),
    [("none", "vlen"), ("gzip", "packed"), ("zstd", "fixed:12"), ("blosc:lz4", "packed")],
)
def test_what_was_put_is_what_is_read(output_dir: Path, compression: str, strings: str) -> None:
    batches = [numbered(first, 500) for first in range(0, ROWS, 500)]
    with HDF5Storage(output_dir=output_dir, compression=compression) as storage:
        producer = storage.producer("x", batches[0].schema, strings=strings)
        for batch in batches:
            producer.put(batch)
        storage.set_metadata("operator", {"name": "ä", "shifts": [1, "b"]})
        storage.set_instrument_metadata("x", "gain", 4)
    with reader.open(storage.path) as recording:
        assert (recording.state, recording.metadata) == (
            "complete",
            {"operator": {"name": "ä", "shifts": [1, "b"]}},
        )
        assert recording.accounting
        assert recording["x"].metadata == {"gain": 4}
        assert recording["x"].read().equals(pa.Table.from_batches(batches), check_metadata=True)
    report = describe(storage.path)
    assert report.instruments[0].problem is None
    assert report.instruments[0].rows == ROWS


@pytest.mark.parametrize("strings", ["vlen", "packed"])
def test_a_live_reader_sees_rows_grow_and_only_what_was_put(output_dir: Path, strings: str) -> None:
    rows, stage = 20_000, 5_000
    expected = pa.Table.from_batches([numbered(0, rows)])
    with HDF5Storage(output_dir=output_dir, auto_flush_interval_secs=0.2) as storage:
        producer = storage.producer("x", expected.schema, strings=strings, chunk_rows=64)
        seen = [0]
        with reader.open(storage.path) as recording:
            x = recording["x"]
            for start in range(0, rows, stage):
                for first in range(start, start + stage, 100):
                    producer.put(numbered(first, 100))
                deadline = time.monotonic() + 10
                while seen[-1] < start + stage and time.monotonic() < deadline:
                    table = x.read()
                    assert table.equals(expected.slice(0, table.num_rows))
                    assert table.num_rows >= seen[-1]
                    seen.append(table.num_rows)
                assert seen[-1] == start + stage
            assert x.read().equals(expected, check_metadata=True)


def test_a_mask_that_is_made_late_hides_no_null(output_dir: Path) -> None:
    plain = pa.record_batch({"v": pa.array(range(100), pa.int64())})
    holed = pa.record_batch({"v": pa.array([1, None] * 50, pa.int64())})
    with HDF5Storage(output_dir=output_dir, auto_flush_interval_secs=0.2) as storage:
        producer = storage.producer("x", plain.schema, chunk_rows=64)
        producer.put(plain)
        storage.flush()
        with reader.open(storage.path) as recording:
            x = recording["x"]
            assert x.read().equals(pa.Table.from_batches([plain]))
            expected = pa.Table.from_batches([plain, *[holed, plain, plain] * 20])
            for _ in range(20):
                for batch in (holed, plain, plain):
                    producer.put(batch)
                found = x.read()
                assert found.num_rows >= 100
                assert found.equals(expected.slice(0, found.num_rows))
            deadline = time.monotonic() + 10
            while x.num_rows < expected.num_rows and time.monotonic() < deadline:
                time.sleep(0.05)
            assert x.read().equals(expected)


def test_h5py_finds_the_paths_that_an_instrument_names(output_dir: Path) -> None:
    with HDF5Storage(output_dir=output_dir) as storage:
        storage.write_batch("a/b", numbered(0, 50))
    with reader.open(storage.path) as recording, h5py.File(storage.path) as file:
        paths = recording["a/b"].datasets("holed")
        assert file[paths["values"]].shape == (50,)
        assert file[paths["validity"]][:].tolist() == [number % 7 != 3 for number in range(50)]
