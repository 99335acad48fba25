"""Every kind of column, recorded by shmstore and read by a reader that knows the document alone."""

from __future__ import annotations

import decimal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from interop.plain_live import read_live
from interop.plain_reader import read_instrument

import shmstore

INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
FLOATS = (pa.float16(), pa.float32(), pa.float64())
UNITS = ("s", "ms", "us", "ns")
TIMES = (
    *(pa.date32(), pa.date64(), pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")),
    *(pa.timestamp(unit, zone) for unit in UNITS for zone in (None, "Europe/Berlin")),
    *(pa.duration(unit) for unit in UNITS),
)
STRINGS = (
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),
)
DECIMALS = (
    *(pa.decimal32(5, 2), pa.decimal64(18, 0), pa.decimal128(38, 10), pa.decimal256(76, 30)),
    pa.decimal128(5, -3),
)
POINT = pa.struct([("x", pa.int16()), ("label", pa.string())])
UNION = [pa.field("number", pa.int32()), pa.field("text", pa.string()), pa.field("point", POINT)]
CODES = [5, 0, 127]
LABEL = pa.dictionary(pa.int8(), pa.string())
RUNS = pa.run_end_encoded(pa.int32(), pa.string())

#: What is recorded, by kind: the types of an instrument's columns.
KINDS: dict[str, tuple[pa.DataType, ...]] = {
    "integer": INTEGERS,
    "float": FLOATS,
    "bool": (pa.bool_(), pa.list_(pa.bool_(), 3), pa.bool8()),
    "time": TIMES,
    "interval": (pa.month_day_nano_interval(), pa.list_(pa.month_day_nano_interval(), 2)),
    "fixed-size binary": (pa.binary(3), pa.uuid(), pa.list_(pa.binary(2), 2)),
    "n-dimensional": (
        pa.list_(pa.int32(), 2),
        pa.list_(pa.list_(pa.float32(), 3), 2),
        pa.fixed_shape_tensor(pa.uint8(), [2, 3]),
        pa.list_(pa.fixed_shape_tensor(pa.uint8(), [2, 3]), 2),
    ),
    "presence": (pa.null(), pa.struct([]), pa.binary(0), pa.list_(pa.int8(), 0), pa.list_(pa.null())),
    "vlen": STRINGS,
    "packed": STRINGS,
    "fixed": (pa.string(), pa.large_string(), pa.struct([("text", pa.string())])),
    "decimal": (*DECIMALS, pa.list_(pa.decimal128(5, 2))),
    "struct": (POINT, pa.struct([("inner", POINT), ("frame", pa.list_(pa.int8(), 4)), ("on", pa.bool_())])),
    "list": (
        *(pa.list_(pa.int16()), pa.large_list(pa.float64()), pa.list_(pa.string()), pa.list_(pa.bool_())),
        *(pa.list_view(pa.int16()), pa.large_list_view(pa.binary()), pa.list_(pa.timestamp("ns"))),
        *(pa.list_(pa.list_(pa.int8())), pa.list_(POINT), pa.list_(pa.list_(pa.int8(), 2))),
    ),
    "map": (pa.map_(pa.string(), pa.int32()), pa.map_(pa.int8(), POINT), pa.list_(pa.map_(pa.int8(), RUNS))),
    "fixed_list": (pa.list_(pa.string(), 2), pa.list_(POINT, 3), pa.list_(pa.list_(pa.int8()), 2)),
    "dictionary": (
        *(LABEL, pa.dictionary(pa.uint64(), pa.float64(), ordered=True), pa.dictionary(pa.int16(), POINT)),
        *(pa.list_(LABEL), pa.struct([("a", LABEL), ("b", LABEL)]), pa.list_(LABEL, 2)),
        *(pa.dictionary(pa.int8(), pa.list_(pa.int8())), pa.dictionary(pa.int8(), pa.struct([("a", LABEL)]))),
    ),
    "sparse union": (pa.sparse_union(UNION, CODES), pa.list_(pa.sparse_union(UNION))),
    "dense union": (pa.dense_union(UNION, CODES), pa.struct([("u", pa.dense_union(UNION))])),
    "run ends": (RUNS, pa.run_end_encoded(pa.int16(), pa.float64()), pa.list_(RUNS)),
    "depths": (
        pa.list_(pa.struct([("m", pa.map_(pa.string(), pa.dense_union([pa.field("l", pa.list_(LABEL))])))])),
        pa.struct([("r", pa.run_end_encoded(pa.int32(), pa.struct([("l", pa.list_(POINT))])))]),
    ),
}
OPTIONS = {"packed": {"strings": "packed"}, "fixed": {"strings": "fixed:12"}}


def build(type_: pa.DataType, rows: int, rng: np.random.Generator, *, nulls: bool = True) -> pa.Array:
    """Return an array of any type, with nulls at every level."""
    if isinstance(type_, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(type_, build(type_.storage_type, rows, rng, nulls=nulls))
    null = pa.array(rng.random(rows) < 0.25 * nulls)
    if pa.types.is_dictionary(type_):
        labels = build(type_.value_type, 5, rng)
        codes = pa.array(rng.integers(0, 5, rows), type_.index_type, mask=null.to_numpy(False))
        return pa.DictionaryArray.from_arrays(codes, labels, ordered=type_.ordered)
    if pa.types.is_union(type_):
        return build_union(type_, rows, rng)
    if pa.types.is_run_end_encoded(type_):
        lengths = rng.integers(1, 4, rows)
        ends = np.minimum(np.cumsum(lengths), rows)[: np.searchsorted(np.cumsum(lengths), rows) + 1]
        ends = ends if rows else ends[:0]
        return pa.RunEndEncodedArray.from_arrays(
            pa.array(ends, type_.run_end_type), build(type_.value_type, len(ends), rng), type_
        )
    if type_ in (pa.struct([]), pa.list_(pa.int8(), 0)):  # which from_arrays cannot make
        return pa.array(
            [None if n else {} if pa.types.is_struct(type_) else [] for n in null.to_pylist()], type_
        )
    if pa.types.is_struct(type_):
        fields = [type_.field(n) for n in range(type_.num_fields)]
        children = [build(field.type, rows, rng, nulls=field.nullable) for field in fields]
        return pa.StructArray.from_arrays(children, fields=fields, mask=null)
    if pa.types.is_fixed_size_list(type_):
        values = build(type_.value_type, rows * type_.list_size, rng)
        return pa.FixedSizeListArray.from_arrays(values, type=type_, mask=null)
    if pa.types.is_nested(type_):
        return build_list(type_, null, rng)
    values = [
        None if n else value for n, value in zip(null.to_pylist(), leaves(type_, rows, rng), strict=True)
    ]
    return pa.array(values, type_)


def build_list(type_: pa.DataType, null: pa.Array, rng: np.random.Generator) -> pa.Array:
    rows = len(null)
    sizes = rng.integers(0, 4, rows)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    if pa.types.is_map(type_):
        keys = build(type_.key_type, int(ends[-1]), rng, nulls=False)
        items = build(type_.item_type, int(ends[-1]), rng)
        offsets = pa.array(ends, pa.int32(), mask=np.append(null.to_numpy(False), False))
        return pa.MapArray.from_arrays(offsets, keys, items, type_)
    values = build(type_.value_type, int(ends[-1]) + 3, rng)
    if pa.types.is_list_view(type_) or pa.types.is_large_list_view(type_):
        starts = rng.permutation(np.maximum(0, ends[:-1] - 1))  # out of order, overlapping
        make = pa.ListViewArray if pa.types.is_list_view(type_) else pa.LargeListViewArray
        wide = pa.int32() if pa.types.is_list_view(type_) else pa.int64()
        return make.from_arrays(pa.array(starts, wide), pa.array(sizes, wide), values, type_, mask=null)
    make, wide = (pa.ListArray, pa.int32()) if pa.types.is_list(type_) else (pa.LargeListArray, pa.int64())
    return make.from_arrays(pa.array(ends + 2, wide), values, type_, mask=null)  # nulls own items too


def build_union(type_: pa.DataType, rows: int, rng: np.random.Generator) -> pa.Array:
    fields = [type_.field(n) for n in range(type_.num_fields)]
    names = [field.name for field in fields]
    which = rng.integers(0, len(fields), rows)
    types = pa.array(np.array(type_.type_codes)[which], pa.int8())
    if type_.mode == "sparse":
        children = [build(field.type, rows, rng) for field in fields]
        return pa.UnionArray.from_sparse(types, children, names, type_.type_codes)
    # A child's items in order, but with gaps.
    places = [2 * int((which[:row] == child).sum()) + 1 for row, child in enumerate(which)]
    children = [build(field.type, 2 * rows + 1, rng) for field in fields]
    return pa.UnionArray.from_dense(types, pa.array(places, pa.int32()), children, names, type_.type_codes)


def leaves(type_: pa.DataType, rows: int, rng: np.random.Generator) -> list[Any]:
    """Return values of a type that holds no other."""
    if pa.types.is_null(type_):
        return [None] * rows
    if pa.types.is_boolean(type_):
        return list((rng.random(rows) < 0.5).tolist())
    if pa.types.is_decimal(type_):
        digits = [int(rng.integers(-99999, 99999)) for _ in range(rows)]
        return [decimal.Decimal(number).scaleb(-type_.scale) for number in digits]
    if pa.types.is_integer(type_):
        limits = np.iinfo(type_.to_pandas_dtype())
        numbers = rng.integers(limits.min, limits.max, rows, limits.dtype, endpoint=True)
        return list(numbers.tolist())
    if pa.types.is_floating(type_):
        return list(rng.normal(size=rows).astype(type_.to_pandas_dtype()).tolist())
    if pa.types.is_interval(type_):
        return [pa.MonthDayNano([int(n) for n in rng.integers(-99, 99, 3)]) for _ in range(rows)]
    if pa.types.is_temporal(type_):
        return list((rng.integers(0, 86_400, rows) * (86_400_000 if type_ == pa.date64() else 1)).tolist())
    if pa.types.is_fixed_size_binary(type_):
        return [rng.bytes(type_.byte_width) for _ in range(rows)]
    words = ["", "a", "Grüße", "a longer text, in UTF-8"[: int(rng.integers(12))], "🙂"]
    texts = [words[n] for n in rng.integers(0, len(words), rows)]
    binary = str(type_).endswith(("binary", "binary_view"))
    return [text.encode() + b"\0\xff" for text in texts] if binary else list(texts)


def plainly(array: pa.Array) -> list[Any]:
    """Return values as the plain reader gives them: times as integers, of extension types the storage."""
    type_ = array.type
    if isinstance(array, pa.ExtensionArray):
        return plainly(array.storage)
    if isinstance(array, (pa.ListArray, pa.FixedSizeListArray)) and not isinstance(array, pa.MapArray):
        flat = plainly(array.values)
        if isinstance(array, pa.ListArray):
            ends = array.offsets.to_pylist()
        else:
            ends = [(array.offset + row) * type_.list_size for row in range(len(array) + 1)]
        valid = array.is_valid().to_pylist()
        return [flat[a:b] if there else None for a, b, there in zip(ends, ends[1:], valid, strict=False)]
    if pa.types.is_temporal(type_) and not pa.types.is_interval(type_):
        return list(array.cast(f"int{type_.bit_width}").to_pylist())
    return list(array.to_pylist())


def batches_of(kind: str) -> list[pa.RecordBatch]:
    """Return batches of one schema: of two sets of dictionaries, in slices, with no rows, and once more."""
    rng = np.random.default_rng(1)
    schema = pa.schema([(f"{n}", type_) for n, type_ in enumerate(KINDS[kind])])
    first, second = (
        pa.record_batch([build(field.type, rows, rng) for field in schema], schema=schema)
        for rows in (23, 40)
    )
    return [first.slice(0, 5), second, first.slice(7, 11), first.slice(3, 0), first, second.slice(30)]


def record(folder: Path, batches: list[pa.RecordBatch], **options: Any) -> Path:
    """Record batches, in chunks much smaller than they are."""
    with shmstore.HDF5Storage(output_dir=folder) as storage:
        producer = storage.producer("camera_1", batches[0].schema, chunk_rows=8, **options)
        for batch in batches:
            producer.put(batch)
    return storage.path


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_comes_back(kind: str, tmp_path: Path) -> None:
    batches = batches_of(kind)
    path = record(tmp_path, batches, **OPTIONS.get(kind, {}))
    types = batches[0].schema.types
    put = [[value for batch in batches for value in plainly(batch.column(n))] for n in range(len(types))]
    rows = len(put[0])
    with h5py.File(path) as file:
        for start, stop in ((0, None), (0, 1), (4, 6), (9, 41), (60, rows), (70, 70)):
            found = read_instrument(file, "camera_1", start, stop)
            assert list(found) == batches[0].schema.names
            for type_, values, expected in zip(types, found.values(), put, strict=True):
                assert values == expected[start:stop], (type_, start, stop)


NAMES = [
    "",
    ".",
    "a/b",
    "100%",
    "schema",
    "_arrow",
    "CATEGORIES",
    "tab\there",
    "🙂",
    "x" * 300,
    "x" * 300 + "y",
]


def test_names_of_any_kind_come_back(tmp_path: Path) -> None:
    fields = [*NAMES, "TYPES", "OFFSETS", "VALUES", "MASK"]
    numbers = pa.array([1, None, 3])
    record_of = pa.StructArray.from_arrays([numbers] * len(fields), fields)
    union = pa.UnionArray.from_sparse(pa.array([0, 7, 14], pa.int8()), [numbers] * len(fields), fields)
    columns = dict.fromkeys(NAMES, numbers) | {"struct": record_of, "union": union}
    path = record(tmp_path, [pa.record_batch(columns)])
    with h5py.File(path) as file:
        found = read_instrument(file, "camera_1")
    assert found == {name: array.to_pylist() for name, array in columns.items()}


def test_a_doubled_name_gives_way_to_its_path(tmp_path: Path) -> None:
    path = record(tmp_path, [pa.record_batch([pa.array([1]), pa.array([2])], ["a", "a"])])
    with h5py.File(path) as file:
        assert read_instrument(file, "camera_1") == {"a": [1], "a%~2": [2]}


def test_columns_that_came_later_or_grew_wider(tmp_path: Path) -> None:
    with shmstore.HDF5Storage(output_dir=tmp_path) as storage:
        producer = storage.producer("camera_1", schema_policy="evolve", chunk_rows=2)
        producer.put(pa.record_batch({"a": pa.array([1, None, 3], pa.int8())}))
        producer.put(pa.record_batch({"a": pa.array([2**40]), "b": pa.array([["x"]])}))
    with h5py.File(storage.path) as file:
        table = read_instrument(file, "camera_1")
    assert table == {"a": [1, None, 3, 2**40], "b": [None, None, None, ["x"]]}


def test_a_table_without_rows(tmp_path: Path) -> None:
    types = [types[0] for types in KINDS.values()]
    columns = {str(n): build(type_, 0, np.random.default_rng()) for n, type_ in enumerate(types)}
    with h5py.File(record(tmp_path, [pa.record_batch(columns)])) as file:
        assert read_instrument(file, "camera_1") == {name: [] for name in columns}


def test_a_live_file_is_followed(tmp_path: Path) -> None:
    """One column of each kind; at any moment the rows are a beginning of those that were put."""
    rng = np.random.default_rng(2)
    schema = pa.schema([(str(number), types[-1]) for number, types in enumerate(KINDS.values())])
    batches = [
        pa.record_batch([build(field.type, rows, rng) for field in schema], schema=schema)
        for rows in (30, 3, 100, 17)
    ]
    put: list[list[Any]] = [[] for _ in schema]

    def note(batch: pa.RecordBatch) -> None:
        for values, column in zip(put, batch.columns, strict=True):
            values.extend(plainly(column))

    with shmstore.HDF5Storage(output_dir=tmp_path, auto_flush_interval_secs=0.05) as storage:
        producer = storage.producer("camera_1", schema, chunk_rows=8)
        for batch in batches:
            producer.put(batch)
            note(batch)
            storage.flush()
            flushed = len(put[0])
            producer.put(batch.slice(0, 9))
            note(batch.slice(0, 9))
            table = read_live(storage.path, "camera_1")
            rows = len(table["0"])
            assert flushed <= rows <= flushed + 9
            assert list(table.values()) == [values[:rows] for values in put]


def test_the_reader_needs_h5py_alone() -> None:
    script = "import sys, interop.plain_reader; print({'shmstore', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"
