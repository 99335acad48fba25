"""Items that do not hold together: an error, never a wrong value; whatever the kind, whatever the damage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from properties import arrow_types, arrow_values
from properties.exactness import tokens
from stored_items import StoredItems, physical

from shmstore import decoding
from shmstore.decoding import TooLongError, decode
from shmstore.layout import KINDS, Node

PAIR = pa.struct([("n", pa.int16()), ("s", pa.string())])


def union(mode: str) -> pa.Array:
    types, children = (
        pa.array([4, 9, 4, 9], pa.int8()),
        [pa.array([1, 2, 3, 4]), pa.array(["a", "b", "c", "d"])],
    )
    if mode == "sparse":
        return pa.UnionArray.from_sparse(types, children, ["n", "s"], [4, 9])
    return pa.UnionArray.from_dense(types, pa.array([0, 0, 1, 1], pa.int32()), children, ["n", "s"], [4, 9])


#: One array of four items for each kind.
ARRAYS: dict[str, pa.Array] = {
    "plain": pa.array([[1, None], None, [3, 4], [5, 6]], pa.list_(pa.int32(), 2)),
    "bool": pa.array([True, None, False, True]),
    "presence": pa.array([{}, None, {}, {}], pa.struct([])),
    "vlen": pa.array(["a", None, "", "dé"]),
    "packed": pa.array(["a", None, "", "dé"]),
    "fixed:3": pa.array(["a", None, "", "dé"]),
    "decimal": pa.array(["1.50", None, "-2.25", "0.00"]).cast(pa.decimal128(9, 2)),
    "struct": pa.array([{"n": 1, "s": "a"}, None, {"n": None, "s": "c"}, {"n": 4, "s": None}], PAIR),
    "list": pa.array([[1, 2], None, [], [None]], pa.list_(pa.int16())),
    "fixed_list": pa.array([["a", "b"], None, ["c", None], ["d", "e"]], pa.list_(pa.string(), 2)),
    "dictionary": pa.DictionaryArray.from_arrays(pa.array([1, None, 0, 1], pa.int8()), ["x", "y"]),
    "sparse_union": union("sparse"),
    "dense_union": union("dense"),
    "run_ends": pa.RunEndEncodedArray.from_arrays(
        pa.array([2, 3, 4], pa.int16()), pa.array(["a", None, "c"])
    ),
}
LIST_VIEW = pa.array([[1, 2], None, [], [None]], pa.list_view(pa.int16()))
MAP = pa.array([[("k", 1)], None, [], [("l", None), ("m", 3)]], pa.map_(pa.string(), pa.int8()))


def test_every_kind_is_here() -> None:
    assert {kind.partition(":")[0] for kind in ARRAYS} == KINDS | {"fixed"}
    for kind in ARRAYS:
        assert stored(kind).column.encoding == kind


def stored(kind: str, array: pa.Array | None = None) -> StoredItems:
    array = ARRAYS[kind] if array is None else array
    strings = kind if kind in ("vlen", "packed") or ":" in kind else "packed"
    made = StoredItems(array.type, strings)
    made.append(array)
    return made


@pytest.mark.parametrize("kind", ARRAYS)
def test_any_rows_can_be_read(kind: str) -> None:
    source, expected = stored(kind), tokens(physical(ARRAYS[kind]))
    for start in range(5):
        for stop in range(start, 5):
            found = source.read(start, stop)
            found.validate(full=True)
            assert tokens(found) == expected[start:stop]


def spoil(draw: st.DrawFn, items: Any) -> Any:
    """Return items that are cut, or of which some are any bytes."""
    if items.dtype == object:
        return items[: draw(st.integers(0, len(items)))]
    raw = bytearray(items.tobytes())
    if draw(st.booleans()) or not raw:
        return items[: draw(st.integers(0, max(0, len(items) - 1)))]
    for _ in range(draw(st.integers(1, 3))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    if items.dtype == np.bool_:  # HDF5 converts what it reads into 0 and 1
        raw = bytearray(byte % 2 for byte in raw)
    return np.frombuffer(bytes(raw), items.dtype).reshape(items.shape)


@pytest.mark.parametrize("kind", [*ARRAYS, "list view", "map"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_rubbish_is_an_error_or_at_least_sound(kind: str, data: st.DataObject) -> None:
    source = stored(kind) if kind in ARRAYS else stored("list", {"map": MAP, "list view": LIST_VIEW}[kind])
    path = data.draw(st.sampled_from(sorted(source.items_by_path)))
    source.items_by_path[path] = data.draw(st.composite(spoil)(source.items_by_path[path]))
    start = data.draw(st.integers(0, 3))
    stop = data.draw(st.integers(start, 4))
    try:
        found = source.read(start, stop)
    except (ValueError, TooLongError):
        return
    found.validate(full=True)
    assert len(found) == stop - start
    tokens(found)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_rubbish_in_nested_types_is_an_error_or_at_least_sound(data: st.DataObject) -> None:
    type_ = data.draw(arrow_types.types(2))
    batches = data.draw(arrow_values.batches(pa.schema([("c", type_)]), 1))
    array = batches[0].column(0)
    source = StoredItems(type_, "packed")
    source.append(array)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(sorted(source.items_by_path)))
        source.items_by_path[path] = data.draw(st.composite(spoil)(source.items_by_path[path]))
    try:
        found = source.read(0, len(array))
    except (ValueError, TooLongError):
        return
    found.validate(full=True)
    assert len(found) == len(array)


# -- each check by itself --------------------------------------------------------------------------------


def u8(*values: int) -> Any:
    return np.array(values, np.uint64)


def segments_of(*rows: tuple[int, int, int, int]) -> Any:
    return np.array(rows, np.uint64)


DAMAGES: dict[str, tuple[str, str, Any, str]] = {
    "text offsets fall": ("packed", "c/OFFSETS", u8(0, 3, 1, 1, 4), "do not ascend"),
    "text offsets beyond": ("packed", "c/OFFSETS", u8(0, 1, 1, 1, 99), "items, not"),
    "text offsets are negative": ("packed", "c/OFFSETS", u8(*[2**63] * 5), "do not ascend"),
    "text is cut": ("packed", "c/CHARS", np.zeros(2, np.uint8), "items, not"),
    "text is no UTF-8": ("packed", "c/CHARS", np.full(4, 0xFF, np.uint8), "UTF8"),
    "a cell is no UTF-8": ("fixed:3", "c", np.full(4, b"\xff", "S3"), "UTF8"),
    "a string is no UTF-8": ("vlen", "c", np.array([b"\xff"] * 4, object), "UTF8"),
    "no decimal": ("decimal", "c", np.full(4, b"1.2.3", "S47"), "no decimal of 16 bytes"),
    "no decimal at all": ("decimal", "c", np.full(4, b"", "S47"), "no decimal of 16 bytes"),
    "a decimal too fine": ("decimal", "c", np.full(4, b"1.234", "S47"), "no decimal of 16 bytes"),
    "a decimal too large": ("decimal", "c", np.full(4, b"1E+44", "S47"), "no decimal of 16 bytes"),
    "list offsets fall": ("list", "c/OFFSETS", u8(0, 2, 1, 2, 3), "do not ascend"),
    "list offsets beyond": ("list", "c/OFFSETS", u8(0, 2, 2, 2, 4), "items, not"),
    "list values are cut": ("list", "c/VALUES", np.zeros(2, np.int16), "items, not"),
    "a type code of nobody": ("dense_union", "c/TYPES", np.array([4, 9, 5, 9], np.int8), "type codes"),
    "a negative type code": ("sparse_union", "c/TYPES", np.array([4, 9, -1, 9], np.int8), "type codes"),
    "union offsets skip": ("dense_union", "c/OFFSETS", u8(0, 0, 2, 1), "one by one"),
    "union offsets double": ("dense_union", "c/OFFSETS", u8(1, 0, 1, 1), "one by one"),
    "union offsets beyond": ("dense_union", "c/OFFSETS", u8(7, 0, 8, 1), "items, not"),
    "union offsets are negative": ("dense_union", "c/OFFSETS", u8(2**64 - 1, 0, 0, 1), "one by one"),
    "a code too large": ("dictionary", "c", np.array([1, -1, 2, 1], np.int32), "among the 2 labels"),
    "a code too small": ("dictionary", "c", np.array([1, -1, -1, 1], np.int32), "among the 2 labels"),
    "no dictionary": ("dictionary", "segments", segments_of((0, 1, 0, 2)), "no dictionary"),
    "a dictionary that changes within": (
        "dictionary", "segments", segments_of((0, 0, 0, 2), (2, 2, 0, 2)), "where no batch ends",
    ),
    "a dictionary beyond": ("dictionary", "segments", segments_of((0, 0, 0, 3)), "items, not"),
    "a dictionary before": ("dictionary", "segments", segments_of((0, 0, 2**64 - 1, 2)), "items, not"),
    "runs fall": ("run_ends", "c/RUN_ENDS", u8(3, 2, 4), "do not ascend"),
    "runs end early": ("run_ends", "c/RUN_ENDS", u8(1, 2, 3), "runs end before item 4"),
    "runs without values": ("run_ends", "c/VALUES/OFFSETS", u8(0, 1), "items, not"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_said_to_be_that(damage: str) -> None:
    kind, where, items, words = DAMAGES[damage]
    source = stored(kind)
    paths = [stream.path for stream in source.column.streams if where in (stream.path, stream.role)]
    source.items_by_path[paths[0]] = items
    with pytest.raises(ValueError, match=words):
        source.read(0, 4)


def test_more_labels_than_an_index_can_count_are_an_error() -> None:
    source = stored("dictionary", pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.int8()), ["x", "y"]))
    chars = np.zeros(300, np.uint8)
    (segments,) = (stream.path for stream in source.column.streams if stream.role == "segments")
    source.items_by_path |= {
        segments: segments_of((0, 0, 0, 300)),
        "CATEGORIES/c/OFFSETS": np.arange(301, dtype=np.uint64),
        "CATEGORIES/c/CHARS": chars,
        "c": np.array([200, 0], np.int32),
    }
    with pytest.raises(ValueError, match="int8"):
        source.read(0, 2)


def without_a_child(node: Node) -> Node:
    return dataclasses.replace(node, children=node.children[:-1])


def without_a_mask(node: Node) -> Node:
    return dataclasses.replace(node, streams=node.streams[:-1])


@pytest.mark.parametrize(
    ("kind", "type_", "change"),
    [
        ("struct", PAIR, without_a_child),
        ("sparse_union", ARRAYS["sparse_union"].type, without_a_child),
        ("dense_union", ARRAYS["dense_union"].type, without_a_child),
        ("list", pa.int32(), lambda node: node),
        ("plain", pa.int32(), lambda node: node),
        ("plain", pa.list_(pa.int32(), 3), lambda node: node),
        ("plain", pa.list_(pa.int64(), 2), lambda node: node),
        ("plain", ARRAYS["plain"].type, without_a_mask),
        ("bool", pa.int8(), lambda node: node),
    ],
)
def test_a_layout_that_does_not_go_with_the_schema_is_an_error(
    kind: str, type_: pa.DataType, change: Callable[[Node], Node]
) -> None:
    source = stored(kind)
    with pytest.raises(ValueError, match=r"."):
        decode(change(source.column.node), type_, source, 0, 4)


# -- more than one array holds ---------------------------------------------------------------------------


def test_what_one_array_cannot_hold_is_said_so_that_fewer_rows_can_be_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoding, "_ADDRESSABLE", 3)  # instead of 2 GiB
    for kind in ("packed", "vlen", "fixed:3", "list"):
        source = stored(kind)
        with pytest.raises(TooLongError, match=r"more than one .* array holds"):
            source.read(0, 4) if kind != "list" else stored("list", pa.array([[1, 2], [3, 4]])).read(0, 2)
        assert source.read(0, 1).to_pylist() == ARRAYS[kind].to_pylist()[:1]
    large = pa.array(["a", None, "", "long"], pa.large_string())
    assert stored("packed", large).read(0, 4).equals(large)


def test_more_rows_than_a_narrow_run_end_counts() -> None:
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([30_000], pa.int16()), pa.array([1]))
    source = StoredItems(runs.type)
    source.append(runs)
    source.append(runs)
    with pytest.raises(TooLongError, match="60000 items"):
        source.read(0, 60_000)
    assert len(source.read(20_000, 50_000)) == 30_000
