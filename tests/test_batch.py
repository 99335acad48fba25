"""Batches into slot bodies and back, of every type, whatever carries them, and what is refused."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shmstore.batch import BatchWriter, PlainLayout, batches_of, has_dictionaries, read_ipc, read_stream
from shmstore.errors import BrokenError, UnsupportedTypeError
from shmstore.planning import plan
from shmstore.ring import Kind, Ring

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


def test_large_batches_of_numbers_come_back_one_after_the_other(memory: memoryview) -> None:
    """The second and later ones of a size are copied into what the first became."""
    schema = pa.schema([("n", pa.int64()), ("b", pa.uint8()), ("f", pa.float32()), ("t", pa.timestamp("us"))])
    rng = np.random.default_rng(1)
    quick = []
    writer = BatchWriter(schema)
    for turn, rows in enumerate(
        [30_000, 30_000, 30_000, 30_000, 20_001, 20_001, 20_001, 30_000, 30_000, 30_000]
    ):
        numbers = rng.integers(-(2**40), 2**40, rows + 10)
        null = pa.array(numbers, mask=numbers == numbers[7]) if turn in (3, 6) else pa.array(numbers)
        columns = [
            null,
            pa.array(numbers.astype(np.uint8)),
            pa.array(numbers.astype(np.float32)),
            pa.array(numbers).cast(pa.timestamp("us")),
        ]
        batch = pa.RecordBatch.from_arrays(columns, schema=schema).slice(turn, rows)
        assert writer.message(batch) is None
        pieces = writer.pieces(batch)
        quick.append(pieces is not None)
        memory[:] = b"\xaa" * len(memory)
        if pieces is None:
            body = memory[: writer.size(batch)]
            skip = writer.write(batch, body)
        else:
            body, skip = memory[: pieces.size], pieces.skip
            pieces.copy(body)
        found = read_ipc(body, skip, schema, rows)
        assert found.equals(batch)
        values = found.column(0).buffers()[1].address
        address = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
        assert pieces is None or (values - address) % 64 == 0
        del found
    assert quick[:5] == [False, False, True, False, False]
    assert not quick[6]
    assert quick[-1]


def test_a_large_batch_of_many_small_columns_is_one_message() -> None:
    columns = {str(number): np.arange(1000, dtype=np.int32) + number for number in range(64)}
    batch = pa.record_batch(columns)
    message = BatchWriter(batch.schema).message(batch)
    assert message is not None
    assert message.nbytes > batch.nbytes > 128 * 1024
    assert read_ipc(message.toreadonly(), 0, batch.schema, 1000).equals(batch)


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


# -- every type, through a ring ---------------------------------------------------------------------------

ROWS = 24
NUMBERS = np.arange(ROWS)
CODES = pa.array([None if row % 5 == 4 else row % 3 for row in range(ROWS)], pa.int8())
LABELS = pa.array(["low", None, "high"])
OFFSETS = pa.array([0, 2, 2, 6, 9, 9, 14, 24], pa.int32())
UNION_CODES = pa.array(NUMBERS % 2 * 3 + 2, pa.int8())
NULLS = pa.array(NUMBERS % 4 == 1)


def some(type_: pa.DataType, *values: Any) -> pa.Array:
    """An array of 24 rows that repeats the values, with nulls between."""
    return pa.array([None if row % 4 == 3 else values[row % len(values)] for row in range(ROWS)], type_)


def union(mode: str, *children: pa.Array) -> pa.Array:
    fields = [pa.field(f"f{index}", child.type) for index, child in enumerate(children)]
    type_ = pa.union(fields, mode, [2, 5])
    own = [UNION_CODES] + ([pa.array(NUMBERS // 2, pa.int32())] if mode == "dense" else [])
    buffers = [None, *(part.buffers()[1] for part in own)]
    return pa.Array.from_buffers(type_, ROWS, buffers, 0, 0, list(children))


TEXTS = some(pa.string(), "", "Grüße", "a text of more than twelve bytes")
RUNS = pa.RunEndEncodedArray.from_arrays(pa.array([3, 4, 11, 24], pa.int16()), TEXTS[:4])
DICTIONARY = pa.DictionaryArray.from_arrays(CODES, LABELS, ordered=True)
NESTED_DICTIONARY = pa.DictionaryArray.from_arrays(
    CODES, pa.ListArray.from_arrays(pa.array([0, 2, 2, 3], pa.int32()), DICTIONARY)
)
UUIDS = pa.ExtensionArray.from_storage(pa.uuid(), some(pa.binary(16), bytes(16), b"0123456789abcdef"))
EVERY = {
    "null": pa.nulls(ROWS),
    "bool": some(pa.bool_(), True, False),
    **{str(type_): some(type_, 0, 1, 127) for type_ in (pa.int8(), pa.uint8(), pa.int16(), pa.uint16())},
    **{str(type_): some(type_, 0, 1, 2**31 - 1) for type_ in (pa.int32(), pa.uint32())},
    **{str(type_): some(type_, 0, 1, 2**63 - 1) for type_ in (pa.int64(), pa.uint64())},
    **{str(type_): some(type_, -0.0, float("inf"), 1.5) for type_ in (pa.float32(), pa.float64())},
    "halffloat": pa.array(NUMBERS.astype("f2")),
    **{
        str(type_): some(type_, Decimal("-12.50"), Decimal("0.01"))
        for type_ in (pa.decimal32(9, 2), pa.decimal64(18, 2), pa.decimal128(38, 2), pa.decimal256(76, 2))
    },
    **{str(type_): TEXTS.cast(type_) for type_ in (pa.string(), pa.large_string(), pa.string_view())},
    "binary": some(pa.binary(), b"", b"\0\xff", b"x" * 20),
    "large_binary": some(pa.large_binary(), b"", b"\0\xff"),
    "binary_view": some(pa.binary(), b"", b"\0\xff", b"x" * 20).cast(pa.binary_view()),
    "fixed_size_binary": some(pa.binary(3), b"abc", b"\0\0\0"),
    "fixed_size_binary of nothing": pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(0), ROWS, [None, pa.py_buffer(b"")]
    ),
    **{
        str(type_): pa.array(NUMBERS.astype(f"i{type_.bit_width // 8}")).view(type_)
        for type_ in (
            *(pa.date32(), pa.date64(), pa.time32("ms"), pa.time64("ns"), pa.duration("us")),
            *(pa.timestamp("s"), pa.timestamp("ns", "Europe/Berlin")),
        )
        if type_ != pa.date64()
    },
    "date64": pa.array(NUMBERS * 86_400_000).view(pa.date64()),
    "month_day_nano": some(
        pa.month_day_nano_interval(), pa.MonthDayNano([1, -2, 3]), pa.MonthDayNano([0, 0, 0])
    ),
    "list": pa.ListArray.from_arrays(OFFSETS, TEXTS),
    "large_list": pa.LargeListArray.from_arrays(OFFSETS.cast(pa.int64()), TEXTS),
    "list_view": pa.ListViewArray.from_arrays(
        pa.array([9, 0, 3], pa.int32()), pa.array([2, 9, 0], pa.int32()), TEXTS
    ),
    "large_list_view": pa.LargeListViewArray.from_arrays(pa.array([9, 0, 3]), pa.array([2, 9, 0]), TEXTS),
    "fixed_size_list": pa.FixedSizeListArray.from_arrays(TEXTS, 4),
    "fixed_size_list of nothing": pa.array([[], None] * 12, pa.list_(pa.string(), 0)),
    "struct": pa.StructArray.from_arrays([TEXTS, pa.array(NUMBERS)], ["a", "a"], mask=NULLS),
    "struct of nothing": pa.array([{}, None] * 12, pa.struct([])),
    "map": pa.MapArray.from_arrays(OFFSETS, pa.array([str(row) for row in range(ROWS)]), TEXTS),
    "sparse_union": union("sparse", TEXTS, pa.array(NUMBERS)),
    "dense_union": union("dense", TEXTS, pa.array(NUMBERS)),
    "run_end_encoded": RUNS,
    "uuid": UUIDS,
    "json": pa.ExtensionArray.from_storage(pa.json_(), TEXTS),
    "bool8": pa.ExtensionArray.from_storage(pa.bool8(), pa.array(NUMBERS % 2, pa.int8())),
    "opaque": pa.ExtensionArray.from_storage(pa.opaque(pa.string(), "t", "v"), TEXTS),
    "list of dense_union": pa.ListArray.from_arrays(OFFSETS, union("dense", TEXTS, pa.array(NUMBERS))),
    "list of run_end_encoded": pa.ListArray.from_arrays(OFFSETS, RUNS),
    "list of list_view of uuid": pa.ListArray.from_arrays(
        pa.array([0, 1, 3], pa.int32()),
        pa.ListViewArray.from_arrays(pa.array([9, 0, 3], pa.int32()), pa.array([2, 9, 0], pa.int32()), UUIDS),
    ),
}
WITH_DICTIONARIES = {
    "dictionary": DICTIONARY,
    "dictionary of numbers": pa.DictionaryArray.from_arrays(
        CODES.cast(pa.uint64()), pa.array([1.5, 2.5, -0.0])
    ),
    "dictionary of nothing": pa.DictionaryArray.from_arrays(pa.nulls(ROWS, pa.int32()), LABELS[:0]),
    "dictionary of lists of dictionaries": NESTED_DICTIONARY,
    "list of dictionary": pa.ListArray.from_arrays(OFFSETS, DICTIONARY),
    "struct of dictionary": pa.StructArray.from_arrays([DICTIONARY, TEXTS], ["d", "t"], mask=NULLS),
    "map to dictionary": pa.MapArray.from_arrays(OFFSETS, pa.array(NUMBERS), DICTIONARY),
    "fixed_size_list of dictionary": pa.FixedSizeListArray.from_arrays(DICTIONARY, 2),
    "union of dictionaries": union("dense", DICTIONARY, NESTED_DICTIONARY),
    "run_end_encoded dictionary": pa.RunEndEncodedArray.from_arrays(
        pa.array([3, 24], pa.int32()), DICTIONARY[3:5]
    ),
    "dictionary of run_end_encoded": pa.DictionaryArray.from_arrays(CODES, RUNS[2:6]),
    "extension over dictionary": pa.ExtensionArray.from_storage(
        pa.opaque(DICTIONARY.type, "t", "v"), DICTIONARY
    ),
}


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    ring = Ring.create(tmp_path / "ring", 1 << 20, 0)
    ring.claim(1)
    yield ring
    ring.close()


def copied(batch: pa.RecordBatch) -> pa.RecordBatch:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return pa.ipc.open_stream(sink.getvalue()).read_next_batch()


def through(ring: Ring, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Put a batch into a slot and take it out: a copy, so that the slot can be released."""
    writer = BatchWriter(batch.schema)
    batch = writer.compact(batch)
    size = writer.size(batch)
    body = ring.reserve(size)
    assert body is not None
    skip = writer.write(batch, body)
    body.release()
    ring.seal(Kind.STREAM if writer.streams else Kind.IPC, size, batch.num_rows, 0, skip)
    slot = ring.borrow()
    assert slot is not None
    if slot.kind == Kind.STREAM:
        found = read_stream(slot.body, batch.schema, slot.rows)
    else:
        found = read_ipc(slot.body, slot.skip, batch.schema, slot.rows)
    copy = copied(found)
    del found
    ring.release(slot)
    return copy


@pytest.mark.parametrize("name", [*EVERY, *WITH_DICTIONARIES])
def test_every_type_travels_exactly(ring: Ring, name: str) -> None:
    array = {**EVERY, **WITH_DICTIONARIES}[name]
    field = pa.field("c", array.type, metadata={"unit": "m"})
    whole = pa.record_batch([array], schema=pa.schema([field], metadata={"k": "v"}))
    for batch in (whole, whole[:0], whole[2:], whole[1:-1], whole[3:5][1:]):
        found = through(ring, batch)
        found.validate(full=True)
        assert found.schema.equals(batch.schema, check_metadata=True)
        assert found.num_rows == batch.num_rows
        assert found.equals(batch)
        assert found.column(0).null_count == batch.column(0).null_count


def test_columns_of_every_type_travel_together(ring: Ring) -> None:
    arrays = [array for array in (*EVERY.values(), *WITH_DICTIONARIES.values()) if len(array) == ROWS]
    batch = pa.record_batch(arrays, [""] * len(arrays))
    assert through(ring, batch).equals(batch)


def test_rows_without_columns_travel(ring: Ring) -> None:
    assert through(ring, pa.record_batch([], schema=pa.schema([]))).num_columns == 0


@pytest.mark.parametrize("name", EVERY)
def test_types_without_dictionaries_are_told_from_those_with(name: str) -> None:
    assert not has_dictionaries(pa.schema([("c", EVERY[name].type)]))


@pytest.mark.parametrize("name", WITH_DICTIONARIES)
def test_a_dictionary_is_found_at_any_depth(name: str) -> None:
    assert has_dictionaries(pa.schema([("n", pa.int8()), ("c", WITH_DICTIONARIES[name].type)]))


def test_each_batch_brings_its_own_dictionary(ring: Ring) -> None:
    for labels in (["a", "b"], ["b", "a"], ["c"]):
        batch = pa.record_batch({"c": pa.array(labels).dictionary_encode()})
        assert through(ring, batch).equals(batch)


@pytest.mark.parametrize("nested", [False, True])
def test_a_slice_leaves_the_texts_of_its_parent_behind(nested: bool) -> None:
    texts = pa.array([f"a text that no view holds itself, {row}" for row in range(20_000)], pa.string_view())
    if nested:
        texts = pa.ListArray.from_arrays(pa.array(range(20_001), pa.int32()), texts)
    batch = pa.record_batch({"n": pa.array(range(20_000)), "c": texts})
    writer = BatchWriter(batch.schema)
    assert writer.size(writer.compact(batch.slice(10, 5))) < 2048
    assert writer.compact(batch).equals(batch)


# -- bodies of kind STREAM -------------------------------------------------------------------------------


def stream_body(array: pa.Array) -> tuple[pa.RecordBatch, bytearray]:
    batch = pa.record_batch({"c": array})
    writer = BatchWriter(batch.schema)
    body = bytearray(writer.size(batch))
    assert writer.write(batch, memoryview(body)) == 0
    return batch, body


def test_what_is_read_from_a_stream_looks_at_the_body_itself(memory: memoryview) -> None:
    batch, data = stream_body(DICTIONARY)
    memory[: len(data)] = data
    body = memory[: len(data)].toreadonly()
    found = read_stream(body, batch.schema, ROWS)
    start = np.frombuffer(memory, np.uint8).ctypes.data
    for part in (found.column(0).indices, found.column(0).dictionary):
        assert start <= part.buffers()[1].address < start + len(data)
    del part
    with pytest.raises(BufferError):
        body.release()
    del found
    body.release()


def test_a_stream_of_another_schema_or_count_is_refused() -> None:
    batch, body = stream_body(DICTIONARY)
    with pytest.raises(BrokenError, match="another schema"):
        read_stream(memoryview(body), SCHEMA, ROWS)
    with pytest.raises(BrokenError, match="header says 9 rows, its batch 24"):
        read_stream(memoryview(body), batch.schema, 9)


def test_a_stream_that_ends_before_its_batch_is_refused() -> None:
    batch, body = stream_body(DICTIONARY)
    schema_only = batch.schema.serialize().size
    for length in (0, 7, schema_only, len(body) - 8):
        with pytest.raises(BrokenError, match="no readable record batch"):
            read_stream(memoryview(body)[:length], batch.schema, ROWS)


@pytest.mark.parametrize("rows", [10, 20_000])  # few codes and many are looked at in different ways
@pytest.mark.parametrize("code", [-1, 3, 2**31 - 1])
def test_a_code_beyond_its_dictionary_is_refused(rows: int, code: int) -> None:
    codes = np.zeros(rows, np.int32)
    codes[rows // 2] = code
    array = pa.DictionaryArray.from_arrays(pa.array(codes), LABELS, safe=False)
    batch, body = stream_body(array)
    with pytest.raises(BrokenError):
        read_stream(memoryview(body), batch.schema, rows)


@pytest.mark.parametrize("rows", [10, 20_000])
def test_what_stands_under_a_null_is_no_code(rows: int) -> None:
    codes = np.full(rows, 99, np.int32)
    validity = pa.py_buffer(bytes(-(-rows // 8)))
    indices = pa.Array.from_buffers(pa.int32(), rows, [validity, pa.py_buffer(codes)])
    array = pa.DictionaryArray.from_arrays(indices, LABELS, safe=False)
    batch, body = stream_body(array)
    assert read_stream(memoryview(body), batch.schema, rows).column(0).null_count == rows


@pytest.mark.parametrize("rows", [10, 20_000])
def test_labels_that_are_no_text_are_refused(rows: int) -> None:
    labels = pa.array([b"\xff\xfe", b"ok"]).view(pa.string())
    batch, body = stream_body(pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), labels))
    with pytest.raises(BrokenError, match="no readable record batch"):
        read_stream(memoryview(body), batch.schema, rows)


@pytest.mark.parametrize("name", WITH_DICTIONARIES)
def test_damage_anywhere_is_refused_or_harmless(name: str) -> None:
    batch, body = stream_body(WITH_DICTIONARIES[name])
    random = np.random.default_rng(7)
    for _ in range(100):
        damaged = bytearray(body)
        for place in random.integers(0, len(body), 3):
            damaged[place] = random.integers(0, 256)
        try:
            found = read_stream(memoryview(damaged), batch.schema, ROWS)
        except BrokenError:
            continue
        found.validate(full=True)


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
