"""A layout is what the file's own document says, and that brings the same layout back."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from shmstore.errors import IncompleteFileError
from shmstore.layout import (
    KINDS,
    LAYOUT_VERSION,
    Column,
    Layout,
    Link,
    Node,
    Stream,
    stream_from_dict,
    stream_to_dict,
)
from shmstore.planning import plan

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
        ("none", pa.null()),
        ("money", pa.decimal128(10, 2)),
        ("tree", pa.struct([("leaf", pa.list_(pa.string())), ("pair", pa.list_(pa.binary(), 2))])),
        ("label", pa.dictionary(pa.int8(), pa.string())),
        ("dense", pa.dense_union([pa.field("a", pa.int8()), pa.field("b", pa.string())], [3, 1])),
        ("sparse", pa.sparse_union([pa.field("a", pa.month_day_nano_interval())])),
        ("runs", pa.run_end_encoded(pa.int16(), pa.float64())),
    ]
)


def known(node: Node) -> object:
    """Return what the file tells of a node: not fill values, attributes and spaces."""
    streams = [(s.role, s.path, s.dtype, s.item_shape, s.lazy, s.lead, s.item_bytes) for s in node.streams]
    children = [known(child) for child in node.children]
    return node.kind, node.name, node.type, node.path, node.codes, streams, children


@pytest.mark.parametrize("how", ["vlen", "packed", "fixed:12"])
def test_the_document_brings_the_layout_back(how: str) -> None:
    layout = plan(SCHEMA, lambda _: how)
    again = Layout.from_json(layout.to_json(), SCHEMA)
    assert again.to_json() == layout.to_json()
    assert {node.kind for column in layout.columns for node in column.node.walk()} >= KINDS - {"vlen"}
    for before, after in zip(layout.columns, again.columns, strict=True):
        assert (before.index, before.name, before.path) == (after.index, after.name, after.path)
        assert before.encoding == after.encoding
        assert known(before.node) == known(after.node)
        assert [stream.path for stream in before.streams] == [stream.path for stream in after.streams]


@pytest.mark.parametrize(
    "document",
    [
        "",
        "nonsense",
        "[]",
        "{}",
        '{"version": 1}',
        '{"version": 1, "columns": [{"name": "i"}]}',
        '{"version": 1, "columns": [{"name": "i", "node": {"kind": "plain", "path": "i", "streams": []}}]}',
        '{"version": 1, "columns": [{"name": "i", "node": []}]}',
        '{"version": 1, "columns": ' + "[" * 100_000,
        '{"version": "new", "columns": []}',
        '{"version": 1, "columns": [3]}',
    ],
)
def test_a_damaged_document_is_said_to_be_that(document: str) -> None:
    with pytest.raises(IncompleteFileError, match=r"_arrow/layout"):
        Layout.from_json(document, pa.schema([("i", pa.int8())]))


def test_a_document_of_another_version_or_schema_is_refused() -> None:
    layout = plan(SCHEMA, lambda _: "vlen")
    newer = json.dumps(json.loads(layout.to_json()) | {"version": LAYOUT_VERSION + 1})
    with pytest.raises(IncompleteFileError, match="update shmstore"):
        Layout.from_json(newer, SCHEMA)
    with pytest.raises(IncompleteFileError, match="different columns"):
        Layout.from_json(layout.to_json(), SCHEMA.remove(0))


def changed(path: list[str | int], value: object) -> str:
    """Return the document with one entry changed."""
    document = json.loads(plan(SCHEMA, lambda _: "packed").to_json())
    place = document["columns"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    "path", [[0, "node", "kind"], [10, "node", "children", 0, "children", 0, "kind"]], ids=["flat", "nested"]
)
def test_a_kind_that_is_unknown_here_is_named(path: list[str | int]) -> None:
    name = SCHEMA.names[int(path[0])]
    with pytest.raises(IncompleteFileError, match=f"column '{name}' is stored as 'nova', .*update shmstore"):
        Layout.from_json(changed(path, "nova"), SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ([0, "node", "streams", 0, "dtype"], "no type"),
        ([0, "node", "streams", 0, "dtype"], "ascii:many"),
        ([0, "node", "streams", 0, "dtype"], "{days:<i4,oops}"),
        ([0, "node", "streams", 0, "item_shape"], 3),
        ([0, "node", "streams", 0, "item_shape"], ["x"]),
        ([0, "node", "streams", 0, "lead"], None),
        ([0, "node", "streams", 0], {}),
        ([0, "node", "children"], None),
        ([0, "node", "children"], [7]),
        ([12, "node", "codes"], "ab"),
    ],
)
def test_one_damaged_entry_is_said_to_be_that(path: list[str | int], value: object) -> None:
    with pytest.raises(IncompleteFileError, match=r"_arrow/layout is damaged"):
        Layout.from_json(changed(path, value), SCHEMA)


def test_a_role_that_is_not_there_is_named() -> None:
    (column,) = plan(pa.schema([("i", pa.int8())]), lambda _: "vlen").columns
    with pytest.raises(IncompleteFileError, match="'i' has no chars"):
        column.node.stream("chars")


def test_a_column_has_the_streams_of_all_its_nodes_outermost_first() -> None:
    leaf = Node("plain", "x", "int8", "c/x", (Stream("values", "c/x", "|i1"),))
    outer = Node("struct", "c", "struct", "c", (Stream("validity", "m", "|b1"),), (leaf,))
    column = Column(3, "c", outer)
    assert [stream.path for stream in column.streams] == ["m", "c/x"]
    assert list(outer.walk()) == [outer, leaf]
    assert (outer.is_group, leaf.is_group) == (True, False)
    assert (column.path, column.encoding) == ("c", "struct")


def test_items_of_variable_length_count_as_references() -> None:
    stream = Stream("values", "s", "utf8")
    assert (stream.variable, stream.item_bytes, stream.numpy_dtype) == (True, 16, np.dtype(object))
    assert Stream("values", "s", "utf8:5").numpy_dtype == np.dtype("S5")
    assert Stream("values", "s", "ascii:7", (2,)).item_bytes == 14
    assert Stream("values", "s", "{a:<i4,b:<i8}").numpy_dtype == np.dtype([("a", "<i4"), ("b", "<i8")])


@pytest.mark.parametrize("how", ["vlen", "packed", "fixed:12"])
def test_a_stream_is_told_whole_as_the_journal_has_it(how: str) -> None:
    """Unlike in the file's own document: fill values, attributes and spaces too."""
    layout = plan(SCHEMA, lambda _: how)
    streams = [stream for column in layout.columns for stream in column.streams]
    for stream in streams:
        again = stream_from_dict(json.loads(json.dumps(stream_to_dict(stream))))
        if stream.fill != stream.fill:  # NaN, which equals nothing
            assert again.fill != again.fill
            assert repr(again) == repr(stream)
        else:
            assert again == stream
        assert again.numpy_dtype == stream.numpy_dtype
        assert type(again.item_shape) is tuple
    attributes = [value for stream in streams for value in stream.attributes.values()]
    assert any(isinstance(value, Link) for value in attributes)
    assert any(isinstance(value, str) for value in attributes)
    assert {stream.lead for stream in streams} == {0, 1}
    assert any(stream.lazy for stream in streams)
