"""Strings as users choose to store them, and what each way cannot take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import pyarrow as pa
import pytest

import shmstore

WORDS = ["", "a", "käse", "日本語", None, "twelve bytes", "", None, " trailing ", "z"]
SCHEMA = pa.schema([("word", pa.string()), ("large", pa.large_string()), ("blob", pa.binary())])


def words(rows: list[str | None] = WORDS) -> pa.RecordBatch:
    blobs = [None if word is None else word.encode() + b"\xff\0" for word in rows]
    columns = [pa.array(rows, pa.string()), pa.array(rows, pa.large_string()), pa.array(blobs, pa.binary())]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


@pytest.mark.parametrize("strings", ["vlen", "packed"])
def test_what_was_put_comes_back(output_dir: Path, strings: str) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB", strings=strings) as storage:
        producer = storage.producer("x", SCHEMA, chunk_rows=7)
        for _ in range(30):
            producer.put(words())
    assert shmstore.read(storage.path, "x").equals(pa.Table.from_batches([words()] * 30))


def test_columns_may_differ(output_dir: Path) -> None:
    columns = {"word": {"strings": "fixed:12"}, "blob": {"strings": "packed"}}
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        producer = storage.producer("x", SCHEMA, columns=columns)
        producer.put(words())
        producer.put(words(WORDS[:3]))
    expected = pa.Table.from_batches([words(), words(WORDS[:3])])
    assert shmstore.read(storage.path, "x").equals(expected)
    with h5py.File(storage.path) as file:
        info = h5py.check_string_dtype(file["x/word"].dtype)
        assert (info.encoding, info.length) == ("utf-8", 12)
        texts = [word or "" for word in WORDS + WORDS[:3]]
        assert file["x/word"].asstr()[:].tolist() == texts
        assert h5py.check_string_dtype(file["x/large"].dtype).length is None
        assert file["x/large"].asstr()[:].tolist() == texts
        assert bytes(file["x/blob/CHARS"][:]) == b"".join(
            word.encode() + b"\xff\0" for word in WORDS + WORDS[:3] if word is not None
        )


@pytest.mark.parametrize("strings", ["vlen", "fixed:20"])
def test_a_nul_is_refused_with_the_way_that_takes_it(output_dir: Path, strings: str) -> None:
    schema = pa.schema([("word", pa.string())])

    def rows(*values: Any) -> pa.RecordBatch:
        return pa.record_batch([pa.array(values, pa.string())], schema=schema)

    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB", strings=strings) as storage:
        producer = storage.producer("x", schema)
        producer.put(rows("before"))
        with pytest.raises(
            shmstore.InvalidValueError, match=r"column 'word' .*NUL.*strings='packed'"
        ) as caught:
            producer.put(rows("fine", "a\0b"))
        assert "\n" not in str(caught.value)
        producer.put(rows("after"))
        storage.producer("y", schema, strings="packed").put(rows("fine", "a\0b"))
        assert storage.stats().rejected == 2
    assert shmstore.read(storage.path, "x")["word"].to_pylist() == ["before", "after"]
    assert shmstore.read(storage.path, "y")["word"].to_pylist() == ["fine", "a\0b"]


def test_a_string_longer_than_its_place_is_refused(output_dir: Path) -> None:
    schema = pa.schema([("word", pa.string())])
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB", strings="fixed:4") as storage:
        producer = storage.producer("x", schema)
        producer.put(pa.record_batch({"word": ["four", "ää"]}))  # bytes count, not characters
        with pytest.raises(
            shmstore.InvalidValueError, match=r"column 'word' .*5 bytes.*fixed:4.*enlarge"
        ) as caught:
            producer.put(pa.record_batch({"word": ["ok", "käse"]}))
        assert "\n" not in str(caught.value)
        producer.put(pa.record_batch({"word": ["end"]}))
    assert shmstore.read(storage.path, "x")["word"].to_pylist() == ["four", "ää", "end"]
    assert storage.final_stats.rejected == 2


def test_a_way_that_is_none(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        for strings in ("fixed", "fixed:0", "fixed:x", "short"):
            with pytest.raises(shmstore.ConfigError, match="'vlen', 'packed' or 'fixed:N'") as caught:
                storage.producer("x", SCHEMA, strings=strings)
            assert "\n" not in str(caught.value)
    assert storage.state == "complete"
