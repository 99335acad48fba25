"""Nulls of any type: as many as asked for, null, of that very type, and sound."""

from __future__ import annotations

import pyarrow as pa
import pytest

from shmstore.compaction import types_in
from shmstore.nulls import nulls

LEAVES = [
    *(pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.date64(), pa.time32("s")),
    *(pa.timestamp("ns", "UTC"), pa.duration("s"), pa.month_day_nano_interval(), pa.decimal32(5, 2)),
    *(pa.decimal256(40, 3), pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view()),
    *(pa.binary(0), pa.binary(3), pa.uuid(), pa.bool8(), pa.json_()),
    pa.fixed_shape_tensor(pa.int16(), (2, 3)),
    pa.opaque(pa.run_end_encoded(pa.int32(), pa.string()), "t", "v"),
    pa.dictionary(pa.uint8(), pa.string(), ordered=True),
    pa.dictionary(pa.int64(), pa.run_end_encoded(pa.int16(), pa.dictionary(pa.int8(), pa.string_view()))),
    pa.run_end_encoded(pa.int16(), pa.string()),
    pa.run_end_encoded(pa.int64(), pa.uuid()),
    pa.run_end_encoded(pa.int32(), pa.struct([("a", pa.run_end_encoded(pa.int32(), pa.int8()))])),
]
NOTED = {"unit": "m"}


def wrapped(inner: pa.DataType) -> dict[str, pa.DataType]:
    field = pa.field("item", inner, metadata=NOTED)
    firm = pa.field("b", inner, nullable=pa.types.is_null(inner))
    return {
        "itself": inner,
        "list": pa.list_(field),
        "large_list": pa.large_list(field),
        "list_view": pa.list_view(field),
        "large_list_view": pa.large_list_view(field),
        "fixed_size_list": pa.list_(field, 3),
        "fixed_size_list of nothing": pa.list_(field, 0),
        "struct": pa.struct([field, firm]),
        "map": pa.map_(pa.string(), field, keys_sorted=True),
        "sparse_union": pa.sparse_union([field, pa.field("c", pa.int8())], [4, 9]),
        "dense_union": pa.dense_union([field, pa.field("c", pa.int8())], [4, 9]),
        "run_end_encoded": pa.run_end_encoded(pa.int32(), inner),
        "dictionary": pa.dictionary(pa.int16(), inner),
        "opaque": pa.opaque(inner, "t", "v"),
    }


def is_refused(type_: pa.DataType) -> bool:
    """Say whether Arrow itself cannot handle a type, so that no column may have it."""
    if isinstance(type_, pa.BaseExtensionType):
        return isinstance(type_.storage_type, pa.BaseExtensionType)
    if pa.types.is_run_end_encoded(type_):
        return bool(pa.types.is_run_end_encoded(type_.value_type))
    if pa.types.is_dictionary(type_):
        return isinstance(type_.value_type, pa.BaseExtensionType) or pa.types.is_dictionary(type_.value_type)
    return False


def all_null(array: pa.Array) -> bool:
    """Say whether all items are null; Arrow does not see it in run ends and unions."""
    if isinstance(array.type, pa.BaseExtensionType):
        return all_null(array.storage)
    if pa.types.is_run_end_encoded(array.type):
        return all_null(array.values) and (array.run_ends.to_pylist() or [0])[-1] == len(array)
    if pa.types.is_union(array.type):
        return set(array.type_codes.to_pylist()) <= {4} and all_null(array.field(0))
    return bool(array.null_count == len(array))


@pytest.mark.parametrize("leaf", LEAVES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 9])
def test_so_many_nulls_of_that_type(count: int, leaf: pa.DataType) -> None:
    types = [inner for outer in wrapped(leaf).values() for inner in (outer, *wrapped(outer).values())]
    for type_ in types:
        if any(map(is_refused, types_in(type_))):
            continue
        found = nulls(count, type_)
        found.validate(full=True)
        assert len(found) == count
        assert found.type.equals(type_, check_metadata=True)
        assert all_null(found)


@pytest.mark.parametrize("kind", ["list", "fixed_size_list", "struct", "map", "dictionary"])
def test_they_are_null_and_not_merely_empty(kind: str) -> None:
    found = nulls(9, wrapped(pa.run_end_encoded(pa.int32(), pa.string()))[kind])
    assert found.null_count == 9
    assert not any(found.is_valid().to_pylist())


def test_they_can_be_cut_joined_and_sent() -> None:
    inner = wrapped(pa.dictionary(pa.int8(), pa.string_view()))
    type_ = pa.struct([(name, inner[name]) for name in inner if name != "dictionary"])
    found = pa.concat_arrays([nulls(5, type_)[2:], nulls(4, type_)[1:2]])
    found.validate(full=True)
    assert found.to_pylist() == [None] * 4
    sink = pa.BufferOutputStream()
    batch = pa.record_batch({"c": nulls(5, type_)[1:4]})
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    assert pa.ipc.open_stream(sink.getvalue()).read_all()["c"].to_pylist() == [None] * 3


@pytest.mark.parametrize("mode", ["sparse", "dense"])
def test_a_union_holds_nulls_of_its_first_type(mode: str) -> None:
    found = nulls(3, pa.union([pa.field("a", pa.int8()), pa.field("b", pa.string())], mode, [7, 3]))
    assert found.type_codes.to_pylist() == [7, 7, 7]
    assert found.field(0).null_count == len(found.field(0)) > 0
