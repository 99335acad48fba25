"""Batches into slot bodies and back, whatever carries them, and what is refused."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shmstore.batch import BatchWriter, PlainLayout, batches_of, read_ipc
from shmstore.errors import BrokenError, UnsupportedTypeError
from shmstore.layout import plan

SCHEMA = pa.schema(
    [
        ("n", pa.int64()),
        ("s", pa.string()),
        ("frame", pa.list_(pa.int16(), 4)),
        ("tensor", pa.fixed_shape_tensor(pa.float32(), [2, 2])),
    ]
)


def batch_of(rows: int) -> pa.RecordBatch:
    numbers = np.arange(rows)
    tensors = pa.ExtensionArray.from_storage(
        SCHEMA.field("tensor").type,
        pa.FixedSizeListArray.from_arrays(pa.array(np.arange(rows * 4, dtype="f4")), 4),
    )
    return pa.record_batch(
        [
            pa.array(numbers),
            pa.array([None if row % 7 == 0 else f"row {row}" for row in range(rows)]),
            pa.FixedSizeListArray.from_arrays(pa.array(np.arange(rows * 4, dtype="i2")), 4),
            tensors,
        ],
        schema=SCHEMA,
    )


@pytest.fixture
def memory() -> Iterator[memoryview]:
    """Memory that is no Python object's own, as a ring's is."""
    with mmap.mmap(-1, 8 << 20) as mapped, memoryview(mapped) as view:
        yield view


# -- IPC -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 100, 50_000])  # small bodies and large ones go different ways
def test_a_batch_comes_back_from_its_body(memory: memoryview, rows: int) -> None:
    batch = batch_of(rows)
    writer = BatchWriter(SCHEMA)
    size = writer.size(batch)
    with memory[64 : 64 + size] as body:
        skip = writer.write(batch, body)
    assert bytes(memory[64 + size : 128 + size]) == bytes(64)  # nothing beyond
    with memory[64 : 64 + size].toreadonly() as body:
        found = read_ipc(body, skip, SCHEMA, rows)
        assert found.equals(batch)
        del found


def test_a_slice_takes_its_own_rows_only() -> None:
    writer = BatchWriter(SCHEMA)
    assert writer.size(batch_of(50_000).slice(10, 5)) < 4096


@pytest.mark.parametrize("rows", [200, 20_000])
def test_what_is_read_looks_at_the_body_itself(memory: memoryview, rows: int) -> None:
    batch = pa.record_batch({"n": pa.array(np.arange(rows))})
    writer = BatchWriter(batch.schema)
    size = writer.size(batch)
    with memory[:size] as body:
        skip = writer.write(batch, body)
    body = memory[:size].toreadonly()
    found = read_ipc(body, skip, batch.schema, rows)
    start = np.frombuffer(memory, np.uint8).ctypes.data
    assert start <= found.column(0).buffers()[1].address < start + size
    with pytest.raises(BufferError):
        body.release()
    del found
    body.release()


@pytest.mark.parametrize("garbage", [b"", b"\xff" * 8, bytes(64), b"\xff\xff\xff\xff\x10\0\0\0" + b"x" * 100])
def test_a_body_without_a_batch_is_refused(garbage: bytes) -> None:
    with pytest.raises(BrokenError, match="no readable record batch"):
        read_ipc(memoryview(garbage), 0, SCHEMA, 1)


def test_a_cut_body_and_a_wrong_count_are_refused() -> None:
    batch = batch_of(100)
    data = memoryview(batch.serialize())
    assert read_ipc(data, 0, SCHEMA, 100).equals(batch)
    with pytest.raises(BrokenError):
        read_ipc(data[:-200], 0, SCHEMA, 100)
    with pytest.raises(BrokenError, match="header says 99 rows, its batch 100"):
        read_ipc(data, 0, SCHEMA, 99)


def test_a_body_that_follows_another_schema_is_refused() -> None:
    data = memoryview(pa.record_batch({"n": [1, 2]}).serialize())
    with pytest.raises(BrokenError):
        read_ipc(data, 0, SCHEMA, 2)


# -- plain bodies ----------------------------------------------------------------------------------------


def plain_layout(*types: pa.DataType) -> PlainLayout:
    schema = pa.schema([(f"c{index}", type_) for index, type_ in enumerate(types)])
    return PlainLayout(plan(schema, lambda _: "vlen"))


@pytest.mark.parametrize("rows", [0, 1, 3, 1000])
def test_columns_lie_apart_and_aligned(memory: memoryview, rows: int) -> None:
    plain = plain_layout(pa.int8(), pa.list_(pa.int16(), 5), pa.bool_(), pa.binary(3), pa.timestamp("ns"))
    size = plain.size(rows)
    body = memory[:size]
    shapes = []
    for number, (_, array) in enumerate(plain.arrays(body, rows)):
        assert array.flags.writeable
        assert not rows or array.ctypes.data % 64 == 0
        array.view(np.uint8)[...] = number + 1
        shapes.append(array.shape)
    assert shapes == [(rows,), (rows, 5), (rows,), (rows,), (rows,)]
    for number, (_, array) in enumerate(plain.arrays(body.toreadonly(), rows)):
        assert not array.flags.writeable or not rows
        assert (array.view(np.uint8) == number + 1).all()  # none reaches into another
    assert bytes(memory[size : size + 64]) == bytes(64)
    del array


def test_the_body_must_have_room_for_the_rows() -> None:
    plain = plain_layout(pa.int64(), pa.int8())
    plain.check(memoryview(bytes(plain.size(100))), 100)
    with pytest.raises(BrokenError, match="100 rows"):
        plain.check(memoryview(bytes(plain.size(100) - 1)), 100)


@pytest.mark.parametrize("type_", [pa.string(), pa.binary()])
def test_a_column_without_fixed_width_cannot_be_loaned(type_: pa.DataType) -> None:
    with pytest.raises(UnsupportedTypeError, match=r"'c1' .* cannot be loaned: use put"):
        plain_layout(pa.int8(), type_)


# -- whatever carries Arrow data -------------------------------------------------------------------------


class OneArray:
    """What polars' or nanoarrow's objects are to us: nothing but the protocol."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return self._batch.__arrow_c_array__(requested_schema)


class OneStream:
    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


def stream_bytes(*batches: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as stream:
        for batch in batches:
            stream.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


BATCHES = [batch_of(5), batch_of(3)]
TABLE = pa.Table.from_batches(BATCHES)


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (BATCHES[0], [5]),
        (TABLE, [5, 3]),
        (TABLE.to_reader(), [5, 3]),
        (OneArray(BATCHES[1]), [3]),
        (OneStream(TABLE), [5, 3]),
        (stream_bytes(*BATCHES), [5, 3]),
        (bytearray(stream_bytes(*BATCHES)), [5, 3]),
        (memoryview(stream_bytes(*BATCHES)), [5, 3]),
        (pa.py_buffer(stream_bytes(*BATCHES)), [5, 3]),
        (stream_bytes(), []),
        (SCHEMA.empty_table(), [0]),
    ],
)
def test_whatever_carries_arrow_data_gives_its_batches(data: Any, rows: list[int]) -> None:
    found = list(batches_of(data))
    assert [batch.num_rows for batch in found] == rows
    assert all(batch.schema.equals(SCHEMA) for batch in found)
    assert pa.Table.from_batches(found, SCHEMA).equals(
        TABLE.slice(0, sum(rows)) if 5 in rows else TABLE[:0]
    ) or (rows == [3] and found[0].equals(BATCHES[1]))


@pytest.mark.parametrize("data", [[1, 2], {"a": [1]}, "text", None, 3, np.zeros(3)])
def test_what_carries_none_is_refused_by_its_type(data: Any) -> None:
    with pytest.raises(TypeError, match=type(data).__name__):
        list(batches_of(data))


def test_a_damaged_stream_gives_what_came_before_the_damage() -> None:
    whole = stream_bytes(*BATCHES)
    given = batches_of(whole[: len(whole) - 300])
    assert next(given).equals(BATCHES[0])
    with pytest.raises(ValueError, match="no whole Arrow IPC stream"):
        next(given)


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\xff" * 100, stream_bytes()[:-100]])
def test_bytes_that_are_no_stream_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no whole Arrow IPC stream"):
        list(batches_of(data))
