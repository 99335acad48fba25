"""What becomes of each Arrow type, and that the file's own document brings the same layout back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from shmstore.errors import ConfigError, IncompleteFileError, UnsupportedTypeError
from shmstore.layout import LAYOUT_VERSION, Layout, Stream, fixed_width, plan

SCHEMA = pa.schema(
    [
        ("i", pa.uint16()),
        ("x", pa.float32()),
        ("b", pa.bool_()),
        ("t", pa.timestamp("us", "Europe/Zurich")),
        ("s", pa.string()),
        ("m", pa.list_(pa.list_(pa.int8(), 3), 2)),
        ("image", pa.fixed_shape_tensor(pa.float64(), [4, 5])),
        ("i", pa.int64()),
    ]
)


def strings(how: str) -> Callable[[str], str]:
    return lambda _: how


@pytest.mark.parametrize(
    ("type_", "dtype", "item_shape"),
    [
        (pa.int8(), "|i1", ()),
        (pa.uint64(), "<u8", ()),
        (pa.float16(), "<f2", ()),
        (pa.float64(), "<f8", ()),
        (pa.bool_(), "|b1", ()),
        (pa.date32(), "<i4", ()),
        (pa.date64(), "<i8", ()),
        (pa.time32("ms"), "<i4", ()),
        (pa.time64("ns"), "<i8", ()),
        (pa.timestamp("s"), "<i8", ()),
        (pa.duration("us"), "<i8", ()),
        (pa.binary(7), "|V7", ()),
        (pa.list_(pa.int16(), 5), "<i2", (5,)),
        (pa.list_(pa.list_(pa.bool_(), 3), 2), "|b1", (2, 3)),
        (pa.fixed_shape_tensor(pa.uint16(), [480, 640]), "<u2", (480, 640)),
    ],
)
def test_a_fixed_width_column_is_one_dataset_at_its_own_name(
    type_: pa.DataType, dtype: str, item_shape: tuple[int, ...]
) -> None:
    (column,) = plan(pa.schema([("c", type_)]), strings("vlen")).columns
    values = column.streams[0]
    assert (values.role, values.path, values.dtype, values.item_shape) == ("values", "c", dtype, item_shape)
    assert values.item_bytes == np.dtype(dtype).itemsize * math.prod(item_shape)
    assert (values.lazy, values.lead) == (False, 0)
    assert all(stream.lazy and stream.fill == 1 for stream in column.streams[1:])


def test_every_level_of_nesting_has_its_mask() -> None:
    (column,) = plan(pa.schema([("m", pa.list_(pa.list_(pa.int8(), 3), 2))]), strings("vlen")).columns
    assert [(stream.role, stream.item_shape) for stream in column.streams[1:]] == [
        ("validity", ()),
        ("validity-1", (2,)),
        ("validity-2", (2, 3)),
    ]
    assert len({stream.path for stream in column.streams}) == 4


@pytest.mark.parametrize(
    ("how", "type_", "dtypes"),
    [
        ("vlen", pa.string(), ["utf8", "|b1"]),
        ("vlen", pa.large_binary(), ["bytes", "|b1"]),
        ("packed", pa.string_view(), ["<u8", "|u1", "|b1"]),
        ("packed", pa.binary(), ["<u8", "|u1", "|b1"]),
        ("fixed:9", pa.large_string(), ["utf8:9", "|b1"]),
        ("fixed:9", pa.binary_view(), ["|V9", "|b1"]),
    ],
)
def test_strings_are_stored_as_told(how: str, type_: pa.DataType, dtypes: list[str]) -> None:
    (column,) = plan(pa.schema([("s", type_)]), strings(how)).columns
    assert column.encoding == how
    assert [stream.dtype for stream in column.streams] == dtypes
    assert column.is_group == (how == "packed")
    if how == "packed":
        assert [stream.path for stream in column.streams] == ["s/OFFSETS", "s/CHARS", "s/MASK"]
        assert column.stream("offsets").lead == 1
        assert column.attributes == {"CLASS": "STRING_VALUES"}


def test_each_column_may_store_its_strings_its_own_way() -> None:
    schema = pa.schema([("a", pa.string()), ("b", pa.string())])
    layout = plan(schema, {"a": "packed", "b": "fixed:3"}.__getitem__)
    assert [column.encoding for column in layout.columns] == ["packed", "fixed:3"]


def test_times_carry_the_attributes_by_which_others_decode_them() -> None:
    schema = pa.schema(
        [
            ("t", pa.timestamp("ms", "UTC")),
            ("d", pa.date32()),
            ("e", pa.date64()),
            ("u", pa.duration("ns")),
            ("v", pa.time32("s")),
        ]
    )
    columns = plan(schema, strings("vlen")).columns
    t, d, e, u, v = (dict(column.streams[0].attributes) for column in columns)
    assert t["units"] == "milliseconds since 1970-01-01"
    assert (t["calendar"], t["timezone"]) == ("proleptic_gregorian", "UTC")
    assert d["units"] == "days since 1970-01-01"
    assert e["units"] == "milliseconds since 1970-01-01"
    assert (u, v) == ({"units": "nanoseconds"}, {"units": "seconds"})


def test_a_missing_value_reads_as_nan_or_not_a_time() -> None:
    schema = pa.schema(
        [("x", pa.float32()), ("t", pa.timestamp("ns")), ("d", pa.date32()), ("i", pa.int32())]
    )
    fills = [column.streams[0].fill for column in plan(schema, strings("vlen")).columns]
    assert math.isnan(fills[0] or 0)
    assert np.isnat(np.int64(fills[1] or 0).view("M8[ns]"))
    assert fills[2:] == [-(2**31), None]


@pytest.mark.parametrize(
    "type_",
    [
        pa.null(),
        pa.list_(pa.int8()),
        pa.large_list(pa.int8()),
        pa.struct([("a", pa.int8())]),
        pa.map_(pa.string(), pa.int8()),
        pa.dictionary(pa.int8(), pa.string()),
        pa.decimal128(10, 2),
        pa.month_day_nano_interval(),
        pa.list_(pa.string(), 2),
        pa.list_(pa.int8(), 0),
        pa.binary(0),
        pa.fixed_shape_tensor(pa.int8(), [2, 0]),
        pa.list_(pa.fixed_shape_tensor(pa.int8(), [2]), 2),
        pa.run_end_encoded(pa.int32(), pa.int8()),
        pa.dense_union([pa.field("a", pa.int8())]),
    ],
    ids=str,
)
def test_a_type_that_cannot_be_recorded_is_refused_by_name(type_: pa.DataType) -> None:
    schema = pa.schema([("fine", pa.int8()), ("wrong one", type_)])
    with pytest.raises(UnsupportedTypeError, match="'wrong one'") as caught:
        plan(schema, strings("vlen"))
    assert "cast it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_doubled_and_reserved_column_names_get_places_of_their_own() -> None:
    schema = pa.schema([(name, pa.int8()) for name in ("x", "x", "schema", "_arrow", "", "a/b", "x")])
    layout = plan(schema, strings("vlen"))
    paths = [column.path for column in layout.columns]
    assert len(set(paths)) == 7
    assert paths[0] == "x"
    assert not {"schema", "_arrow"} & set(paths)
    assert not any("/" in path for path in paths)
    assert [column.name for column in layout.columns] == schema.names
    everything = [stream.path for column in layout.columns for stream in column.streams]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("how", ["vlen", "packed", "fixed:12"])
def test_the_document_brings_the_layout_back(how: str) -> None:
    layout = plan(SCHEMA, strings(how))
    again = Layout.from_json(layout.to_json(), SCHEMA)
    assert again.to_json() == layout.to_json()
    for before, after in zip(layout.columns, again.columns, strict=True):
        assert (before.index, before.name, before.path) == (after.index, after.name, after.path)
        assert before.encoding == after.encoding
        for old, new in zip(before.streams, after.streams, strict=True):
            assert (old.role, old.path, old.dtype, old.item_shape) == (
                new.role,
                new.path,
                new.dtype,
                new.item_shape,
            )
            assert (old.lazy, old.lead, old.item_bytes) == (new.lazy, new.lead, new.item_bytes)


@pytest.mark.parametrize(
    "document",
    [
        "",
        "nonsense",
        "[]",
        "{}",
        '{"version": 1}',
        '{"version": 1, "columns": [{"name": "i"}]}',
        '{"version": 1, "columns": [{"name": "i", "path": "i", "encoding": "plain", "streams": []}]}',
        '{"version": "new", "columns": []}',
        '{"version": 1, "columns": [3]}',
    ],
)
def test_a_damaged_document_is_said_to_be_that(document: str) -> None:
    with pytest.raises(IncompleteFileError, match=r"_arrow/layout"):
        Layout.from_json(document, pa.schema([("i", pa.int8())]))


def test_a_document_of_another_version_or_schema_is_refused() -> None:
    layout = plan(SCHEMA, strings("vlen"))
    newer = json.dumps(json.loads(layout.to_json()) | {"version": LAYOUT_VERSION + 1})
    with pytest.raises(IncompleteFileError, match="update shmstore"):
        Layout.from_json(newer, SCHEMA)
    with pytest.raises(IncompleteFileError, match="different columns"):
        Layout.from_json(layout.to_json(), SCHEMA.remove(0))


def test_a_role_that_is_not_there_is_named() -> None:
    (column,) = plan(pa.schema([("i", pa.int8())]), strings("vlen")).columns
    with pytest.raises(IncompleteFileError, match="'i' has no chars"):
        column.stream("chars")


def test_items_of_variable_length_count_as_references() -> None:
    stream = Stream("values", "s", "utf8")
    assert (stream.variable, stream.item_bytes, stream.numpy_dtype) == (True, 16, np.dtype(object))
    assert Stream("values", "s", "utf8:5").numpy_dtype == np.dtype("S5")


@pytest.mark.parametrize("wrong", ["fixed", "fixed:", "fixed:0", "fixed:-1", "fixed:1e3", "utf8", ""])
def test_a_strange_way_to_store_strings_is_refused(wrong: str) -> None:
    assert fixed_width("fixed:17") == 17
    with pytest.raises(ConfigError, match="'packed'"):
        fixed_width(wrong)
