"""Nulls of any type: as many as asked for, null, of that very type, and sound."""

from __future__ import annotations

import pyarrow as pa
import pytest

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
    firm = pa.field("b", inner, nullable=False)
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


@pytest.mark.parametrize("leaf", LEAVES, ids=str)
@pytest.mark.parametrize("kind", list(wrapped(pa.int8())))
@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_so_many_nulls_of_that_type(count: int, kind: str, leaf: pa.DataType) -> None:
    for type_ in (wrapped(leaf)[kind], *wrapped(wrapped(leaf)[kind]).values()):
        found = nulls(count, type_)
        found.validate(full=True)
        assert len(found) == count
        assert found.type.equals(type_, check_metadata=True)
        assert found.to_pylist() == [None] * count


@pytest.mark.parametrize("kind", ["list", "fixed_size_list", "struct", "map", "dictionary"])
def test_they_are_null_and_not_merely_empty(kind: str) -> None:
    found = nulls(9, wrapped(pa.run_end_encoded(pa.int32(), pa.string()))[kind])
    assert found.null_count == 9
    assert not any(found.is_valid().to_pylist())


def test_they_can_be_cut_joined_and_sent() -> None:
    type_ = pa.struct([(str(number), inner) for number, inner in enumerate(wrapped(LEAVES[-3]).values())])
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
