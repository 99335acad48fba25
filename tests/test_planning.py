"""What becomes of each Arrow type: its datasets, their types, and where they lie."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from intervals import DAY_TIME_INTERVAL, MONTH_INTERVAL

from shmstore.errors import ConfigError, UnsupportedTypeError
from shmstore.layout import Column, Link, Node, Stream
from shmstore.planning import child_types, fixed_width, list_item, plan, storage_type

NESTED_DICTIONARY = pa.dictionary(pa.int8(), pa.dictionary(pa.int8(), pa.string()))


def strings(how: str) -> Callable[[str], str]:
    return lambda _: how


def column_of(type_: pa.DataType, how: str = "vlen") -> Column:
    return plan(pa.schema([("c", type_)]), strings(how)).columns[0]


def places(node: Node) -> dict[str, tuple[str, str, str]]:
    """Return role, type and space of every dataset of a node and all within, by path."""
    streams = [stream for inner in node.walk() for stream in inner.streams]
    return {stream.path: (stream.role, stream.dtype, stream.space) for stream in streams}


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
    assert column.node.is_group == (how == "packed")
    if how == "packed":
        assert [stream.path for stream in column.streams] == ["s/OFFSETS", "s/CHARS", "s/MASK"]
        assert column.node.stream("offsets").lead == 1
        assert column.node.attributes == {"CLASS": "STRING_VALUES"}


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
    ("type_", "dtype", "attributes"),
    [
        (MONTH_INTERVAL, "<i4", {"units": "months"}),
        (DAY_TIME_INTERVAL, "{days:<i4,milliseconds:<i4}", {}),
        (pa.month_day_nano_interval(), "{months:<i4,days:<i4,nanoseconds:<i8}", {}),
    ],
    ids=["months", "day-time", "month-day-nano"],
)
def test_intervals_are_numbers_or_compounds(
    type_: pa.DataType, dtype: str, attributes: dict[str, str]
) -> None:
    for shape, one in (((), type_), ((3,), pa.list_(type_, 3))):
        values = column_of(one).streams[0]
        assert (values.dtype, values.item_shape, values.attributes) == (dtype, shape, attributes)


@pytest.mark.parametrize(
    ("type_", "short"),
    [
        (pa.decimal32(9, 2), "decimal32(9, 2)"),
        (pa.decimal64(10, -3), "decimal64(10, -3)"),
        (pa.decimal128(38, 38), "decimal128(38, 38)"),
        (pa.decimal256(76, 0), "decimal256(76, 0)"),
    ],
)
def test_decimals_are_text_that_holds_the_longest(type_: pa.DataType, short: str) -> None:
    node = column_of(type_).node
    assert (node.kind, node.type) == ("decimal", short)
    values, mask = node.streams
    assert values.attributes == {"precision": type_.precision, "scale": type_.scale}
    assert values.dtype.startswith("ascii:")
    largest = 2 ** (type_.bit_width - 1)
    assert values.item_bytes >= len(f"-{largest}E-{type_.scale}")
    assert (mask.role, mask.path, mask.lazy) == ("validity", "_arrow/validity/0", True)


@pytest.mark.parametrize(
    "type_",
    [
        pa.null(),
        pa.struct([]),
        pa.binary(0),
        pa.list_(pa.int8(), 0),
        pa.fixed_shape_tensor(pa.int8(), [2, 0]),
    ],
    ids=str,
)
def test_what_has_no_values_says_whether_it_is_there(type_: pa.DataType) -> None:
    node = column_of(type_).node
    assert (node.kind, node.children) == ("presence", ())
    assert node.streams == (Stream("validity", "c", "|b1"),)


@pytest.mark.parametrize(
    "type_",
    [
        pa.list_(pa.int16()),
        pa.large_list(pa.int16()),
        pa.list_view(pa.int16()),
        pa.large_list_view(pa.int16()),
    ],
    ids=str,
)
def test_lists_are_offsets_and_values(type_: pa.DataType) -> None:
    node = column_of(type_).node
    assert (node.kind, node.path) == ("list", "c")
    assert node.attributes == {"CLASS": "LIST_COLUMN", "KIND": "OFFSETS"}
    assert places(node) == {
        "c/OFFSETS": ("offsets", "<u8", ""),
        "c/MASK": ("validity", "|b1", ""),
        "c/VALUES": ("values", "<i2", "c/VALUES"),
        "_arrow/validity/0": ("validity", "|b1", "c/VALUES"),
    }
    assert node.stream("offsets").lead == 1
    assert [stream.lazy for stream in node.streams] == [False, True]


def test_a_map_is_a_list_of_keys_and_values() -> None:
    node = column_of(pa.map_(pa.string(), pa.float32())).node
    assert node.kind == "list"
    (entries,) = node.children
    assert (entries.kind, entries.path) == ("struct", "c/VALUES")
    assert [(child.name, child.path, child.kind) for child in entries.children] == [
        ("key", "c/VALUES/key", "packed"),
        ("value", "c/VALUES/value", "plain"),
    ]
    assert {stream.space for child in entries.children for stream in child.streams} == {
        "c/VALUES",
        "c/VALUES/key/CHARS",
    }


def test_members_of_a_struct_lie_below_it_by_their_names() -> None:
    members = [("a", pa.int8()), ("a", pa.int8()), ("x/y", pa.string()), ("TYPES", pa.bool_())]
    node = column_of(pa.struct(members), "fixed:3").node
    assert (node.kind, node.is_group, node.attributes) == ("struct", True, {})
    assert [child.name for child in node.children] == ["a", "a", "x/y", "TYPES"]
    paths = [child.path for child in node.children]
    assert paths[0] == "c/a"
    assert len(set(paths)) == 4
    assert all(path.startswith("c/") and path.count("/") == 1 for path in paths)
    assert "c/TYPES" not in paths
    assert [child.kind for child in node.children] == ["plain", "plain", "fixed:3", "bool"]
    everything = [stream.path for inner in node.walk() for stream in inner.streams]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("how", ["vlen", "fixed:5", "packed"])
def test_strings_below_lists_and_unions_are_packed_whatever_is_asked(how: str) -> None:
    text = pa.field("s", pa.string())
    for type_ in (
        pa.list_(text),
        pa.list_(text, 2),
        pa.map_(pa.string(), pa.binary()),
        pa.sparse_union([text]),
        pa.dense_union([text]),
        pa.run_end_encoded(pa.int16(), pa.string()),
        pa.list_(pa.struct([text])),
    ):
        leaves = [node for node in column_of(type_, how).node.walk() if not node.children]
        assert leaves
        assert {node.kind for node in leaves} == {"packed"}
    labels = column_of(pa.dictionary(pa.int8(), pa.string()), how).node.children[0]
    assert labels.kind == how


def test_fixed_size_lists_of_what_is_no_number_have_values_below() -> None:
    node = column_of(pa.list_(pa.string(), 3)).node
    assert (node.kind, node.attributes) == ("fixed_list", {"CLASS": "FIXED_LIST", "SIZE": 3})
    assert [(stream.role, stream.path) for stream in node.streams] == [("validity", "c/MASK")]
    assert node.children[0].path == "c/VALUES"


@pytest.mark.parametrize(
    ("index", "dtype"),
    [
        (pa.int8(), "<i4"),
        (pa.uint16(), "<i4"),
        (pa.int32(), "<i4"),
        (pa.uint32(), "<i8"),
        (pa.int64(), "<i8"),
        (pa.uint64(), "<i8"),
    ],
    ids=str,
)
def test_dictionaries_are_codes_that_lead_to_their_labels(index: pa.DataType, dtype: str) -> None:
    node = column_of(pa.dictionary(index, pa.string(), ordered=True)).node
    values, segments, _mask = node.streams
    assert (node.kind, values.dtype, values.fill) == ("dictionary", dtype, -1)
    assert values.attributes == {"CATEGORIES": Link("CATEGORIES/c")}
    assert (segments.role, segments.dtype, segments.item_shape) == ("segments", "<u8", (4,))
    assert segments.path.startswith("_arrow/dictionaries/")
    (labels,) = node.children
    assert labels.path == "CATEGORIES/c"
    assert labels.streams[0].attributes == {"ordered": True}


def test_labels_of_any_column_have_a_place_of_their_own() -> None:
    type_ = pa.dictionary(pa.int8(), pa.list_(pa.int8()))
    schema = pa.schema(
        [
            ("a", type_),
            ("a", type_),
            ("b", pa.struct([("c", type_)])),
            ("b.c", type_),
            ("d", pa.dictionary(pa.int8(), pa.struct([("c", type_)]))),
        ]
    )
    layout = plan(schema, strings("vlen"))
    nodes = [node for column in layout.columns for node in column.node.walk() if node.kind == "dictionary"]
    labels = [node.children[0] for node in nodes]
    assert len(labels) == len({node.path for node in labels}) == 6
    assert all(node.path.startswith("CATEGORIES/") and node.path.count("/") == 1 for node in labels)
    assert all(dict(node.attributes)["ordered"] is False for node in labels if node.kind == "list")
    everything = [stream.path for column in layout.columns for stream in column.streams]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize(
    "type_",
    [NESTED_DICTIONARY, pa.list_(NESTED_DICTIONARY), pa.struct([("a", pa.int8()), ("b", NESTED_DICTIONARY)])],
    ids=str,
)
def test_a_type_that_cannot_be_recorded_is_refused_by_name(type_: pa.DataType) -> None:
    schema = pa.schema([("fine", pa.int8()), ("wrong one", type_)])
    with pytest.raises(UnsupportedTypeError, match="'wrong one'") as caught:
        plan(schema, strings("vlen"))
    assert "\n" not in str(caught.value)


def test_unions_have_types_and_a_place_for_each_member() -> None:
    members = [pa.field("n", pa.int8()), pa.field("OFFSETS", pa.float64())]
    sparse = column_of(pa.sparse_union(members, [5, 7])).node
    dense = column_of(pa.dense_union(members, [5, 7])).node
    for node in (sparse, dense):
        assert (node.codes, node.attributes) == ((5, 7), {"CLASS": "UNION"})
        assert node.stream("types").dtype == "|i1"
        assert node.children[0].path == "c/n"
        assert node.children[1].path not in ("c/OFFSETS", "c/TYPES")
        assert all(stream.role != "validity" for stream in node.streams)
    assert (sparse.kind, dense.kind) == ("sparse_union", "dense_union")
    assert [child.space for child in sparse.children] == ["", ""]
    assert [child.space for child in dense.children] == [child.path for child in dense.children]
    assert (dense.stream("offsets").dtype, dense.stream("offsets").lead) == ("<u8", 0)


def test_runs_are_ends_and_values() -> None:
    node = column_of(pa.run_end_encoded(pa.int16(), pa.float64())).node
    assert (node.kind, node.attributes) == ("run_ends", {"CLASS": "RUN_ENDS"})
    assert places(node) == {
        "c/RUN_ENDS": ("run_ends", "<u8", "c/VALUES"),
        "c/VALUES": ("values", "<f8", "c/VALUES"),
        "_arrow/validity/0": ("validity", "|b1", "c/VALUES"),
    }


@pytest.mark.parametrize(
    ("type_", "kind"),
    [
        (pa.uuid(), "plain"),
        (pa.json_(pa.string()), "packed"),
        (pa.bool8(), "plain"),
        (pa.opaque(pa.list_(pa.int8()), "odd", "nobody"), "list"),
        (pa.list_(pa.uuid()), "list"),
        (pa.list_(pa.fixed_shape_tensor(pa.int8(), [2]), 2), "plain"),
    ],
    ids=str,
)
def test_extension_types_are_what_they_are_stored_as(type_: pa.DataType, kind: str) -> None:
    node = column_of(type_, "packed").node
    assert node.kind == kind
    assert node.type == str(storage_type(type_)).partition("<")[0]


def test_a_list_within_a_fixed_list_of_tensors_keeps_their_shape() -> None:
    tensor = pa.fixed_shape_tensor(pa.int8(), [2, 3])
    values, *masks = column_of(pa.list_(tensor, 4)).streams
    assert values.item_shape == (4, 2, 3)
    assert [mask.item_shape for mask in masks] == [(), (4,), (4, 6)]


def test_types_within_come_in_the_order_of_the_children() -> None:
    for type_ in (
        pa.list_(pa.int8()),
        pa.list_(pa.string(), 2),
        pa.map_(pa.int8(), pa.string()),
        pa.struct([("a", pa.int8()), ("b", pa.string())]),
        pa.dense_union([pa.field("a", pa.int8())]),
        pa.dictionary(pa.int8(), pa.float32()),
        pa.run_end_encoded(pa.int16(), pa.bool_()),
        pa.opaque(pa.list_(pa.int8()), "odd", "nobody"),
    ):
        node = column_of(type_).node
        names = [str(storage_type(inner)).partition("<")[0] for inner in child_types(type_)]
        assert [child.type for child in node.children] == names
    assert list_item(pa.map_(pa.int8(), pa.string())).type == pa.struct(
        [pa.field("key", pa.int8(), nullable=False), ("value", pa.string())]
    )


def test_doubled_and_reserved_column_names_get_places_of_their_own() -> None:
    schema = pa.schema([(name, pa.int8()) for name in ("x", "x", "schema", "_arrow", "", "CATEGORIES", "x")])
    layout = plan(schema, strings("vlen"))
    paths = [column.path for column in layout.columns]
    assert len(set(paths)) == 7
    assert paths[0] == "x"
    assert not {"schema", "_arrow", "CATEGORIES"} & set(paths)
    assert not any("/" in path for path in paths)
    assert [column.name for column in layout.columns] == schema.names
    everything = [stream.path for column in layout.columns for stream in column.streams]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("wrong", ["fixed", "fixed:", "fixed:0", "fixed:-1", "fixed:1e3", "utf8", ""])
def test_a_strange_way_to_store_strings_is_refused(wrong: str) -> None:
    assert fixed_width("fixed:17") == 17
    with pytest.raises(ConfigError, match="'packed'"):
        fixed_width(wrong)
