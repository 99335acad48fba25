"""Types by what their bytes are: there and back over the same buffers, whatever the values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from intervals import DAY_TIME_INTERVAL, MONTH_INTERVAL

from shmstore.physical import empty_batch, physical_schema, physical_type, retyped
from shmstore.validity import check_full

LEAVES = [
    (pa.time32("s"), pa.int32()),
    (pa.time32("ms"), pa.int32()),
    (pa.time64("ns"), pa.int64()),
    (pa.date64(), pa.int64()),
    (MONTH_INTERVAL, pa.int32()),
    (DAY_TIME_INTERVAL, pa.int64()),
    (pa.decimal32(5, 2), pa.binary(4)),
    (pa.decimal64(5, 2), pa.binary(8)),
    (pa.decimal128(5, 2), pa.binary(16)),
    (pa.decimal256(5, -2), pa.binary(32)),
]
SAME = [
    *(
        pa.bool_(),
        pa.int8(),
        pa.float16(),
        pa.date32(),
        pa.timestamp("ns", "UTC"),
        pa.duration("s"),
    ),
    *(pa.string(), pa.binary_view(), pa.binary(7), pa.month_day_nano_interval(), pa.struct([]), pa.uuid()),
    *(pa.fixed_shape_tensor(pa.int8(), [2]), pa.list_(pa.int8()), pa.dictionary(pa.int8(), pa.string())),
]


def nested(leaf: pa.DataType) -> list[pa.DataType]:
    """Return the leaf within every type that can hold another."""
    item = pa.field("item", leaf, nullable=False, metadata={"k": "v"})
    return [
        *(
            pa.list_(item),
            pa.large_list(item),
            pa.list_view(item),
            pa.large_list_view(item),
            pa.list_(item, 2),
        ),
        pa.struct([("a", pa.int8()), item]),
        pa.map_(pa.field("key", leaf, nullable=False), pa.field("value", leaf), keys_sorted=True),
        pa.sparse_union([item, pa.field("b", pa.bool_())], [7, 3]),
        pa.dense_union([item], [5]),
        pa.dictionary(pa.uint16(), leaf, ordered=True),
        pa.run_end_encoded(pa.int16(), leaf),
        pa.list_(pa.struct([pa.field("deep", pa.list_(item))])),
    ]


@pytest.mark.parametrize(("type_", "physical"), LEAVES, ids=str)
def test_a_leaf_has_the_type_of_its_bytes_wherever_it_stands(
    type_: pa.DataType, physical: pa.DataType
) -> None:
    assert physical_type(type_) == physical
    for whole, expected in zip(nested(type_), nested(physical), strict=True):
        assert physical_type(whole).equals(expected, check_metadata=True)
    assert physical_type(pa.opaque(type_, "odd", "nobody")) == physical


@pytest.mark.parametrize("type_", SAME, ids=str)
def test_all_other_types_are_themselves(type_: pa.DataType) -> None:
    assert physical_type(type_) == type_
    for whole in nested(type_):
        assert physical_type(whole).equals(whole, check_metadata=True)
        schema = pa.schema([("c", whole)])
        assert physical_schema(schema) is schema  # which is how it is seen that there is nothing to do


def test_a_schema_keeps_names_metadata_and_what_may_be_null() -> None:
    schema = pa.schema(
        [pa.field("t", pa.time32("s"), nullable=False, metadata={"u": "s"}), ("n", pa.int8())], {"a": "b"}
    )
    expected = pa.schema(
        [pa.field("t", pa.int32(), nullable=False, metadata={"u": "s"}), ("n", pa.int8())], {"a": "b"}
    )
    assert physical_schema(schema).equals(expected, check_metadata=True)
    plain = pa.schema([("n", pa.int8())])
    assert physical_schema(plain) is plain


VALUES: list[tuple[pa.DataType, Any]] = [
    (pa.time32("s"), np.array([-1, 86_400, 2**31 - 1, 0], "<i4")),
    (pa.time64("ns"), np.array([-1, 2**63 - 1, 5, 0], "<i8")),
    (pa.date64(), np.array([1, -1, 86_400_000, 0], "<i8")),
    (pa.decimal32(2, 1), np.array([10**9, -(2**31), 5, 0], "<i4")),
    (MONTH_INTERVAL, np.array([14, -1, 2**31 - 1, 0], "<i4")),
    (DAY_TIME_INTERVAL, np.array([14, -1, 2**63 - 1, 0], "<i8")),
]


@pytest.mark.parametrize(("type_", "raw"), VALUES, ids=str)
def test_any_bytes_go_there_and_back_without_a_copy(type_: pa.DataType, raw: Any) -> None:
    physical = pa.schema([("c", physical_type(type_)), ("n", pa.int8())])
    logical = pa.schema([("c", type_), ("n", pa.int8())])
    bitmap = pa.py_buffer(b"\x0d")
    column = pa.Array.from_buffers(physical.types[0], 4, [bitmap, pa.py_buffer(raw)])
    batch = pa.record_batch([column, pa.array([1, 2, 3, 4], pa.int8())], schema=physical)
    for part in (batch, batch.slice(1, 2)):
        there = retyped(part, logical)
        assert there.schema == logical
        back = retyped(there, physical)
        assert back.equals(part)
        address = back.column(0).buffers()[1].address + back.column(0).offset * raw.itemsize
        assert address == part.column(0).buffers()[1].address + part.column(0).offset * raw.itemsize
        back.validate(full=True)


@pytest.mark.parametrize(
    "leaf", [pa.int8(), pa.string(), pa.time32("s"), MONTH_INTERVAL, pa.decimal64(3, 1)], ids=str
)
def test_an_empty_batch_of_any_type_can_be_had(leaf: pa.DataType) -> None:
    for type_ in [leaf, *nested(leaf)]:
        schema = pa.schema([pa.field("c", type_, metadata={"k": "v"})], {"a": "b"})
        batch = empty_batch(schema)
        assert batch.num_rows == 0
        assert batch.schema.equals(schema, check_metadata=True)
        again = retyped(retyped(batch, physical_schema(schema)), schema)
        assert (again.num_rows, again.schema) == (0, schema)


def test_a_batch_that_has_the_schema_already_is_left_alone() -> None:
    """Arrow's import would leave the item's offset and drop its buffers."""
    items = pa.array(["ab", "cd"]).slice(1, 0)
    lists = pa.Array.from_buffers(pa.list_(pa.utf8()), 1, [None, pa.py_buffer(bytes(8))], children=[items])
    batch = pa.record_batch({"a": lists})
    assert retyped(batch, batch.schema) is batch
    assert check_full(batch) is None
