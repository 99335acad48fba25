"""Full validation: nulls where none may be, at any depth and for every type, and what Arrow refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore.validity import check_full

NOT_NULL = pa.field("x", pa.int8(), nullable=False)
RECORD = pa.struct([NOT_NULL])
FULL, HOLLOW = {"x": 1}, {"x": None}


def batch_of(array: pa.Array, *, nullable: bool = True) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([array], schema=pa.schema([pa.field("a", array.type, nullable)]))


def forbidden(place: str, row: int) -> str:
    return f"column 'a'{place} is declared not null, and is null in row {row}"


def codes(*values: int) -> pa.Array:
    return pa.array(values, pa.int8())


def places(*values: int) -> pa.Array:
    return pa.array(values, pa.int32())


#: Arrays that hold a record without its `x`, where it is, and in which row.
BROKEN: list[tuple[Any, str, int]] = [
    (pa.array([FULL, None, HOLLOW], RECORD), ", field 'x'", 2),
    (pa.array([[FULL], None, [], [FULL, HOLLOW]], pa.list_(RECORD)), ", item, field 'x'", 3),
    (pa.array([[FULL], None, [], [FULL, HOLLOW]], pa.large_list(RECORD)), ", item, field 'x'", 3),
    (pa.array([[FULL], None, [], [FULL, HOLLOW]], pa.list_view(RECORD)), ", item, field 'x'", 3),
    (pa.array([[FULL], None, [], [FULL, HOLLOW]], pa.large_list_view(RECORD)), ", item, field 'x'", 3),
    (pa.array([[FULL, FULL], None, [FULL, HOLLOW]], pa.list_(RECORD, 2)), ", item, field 'x'", 2),
    (pa.array([[1], [2, None]], pa.list_(NOT_NULL)), ", item", 1),
    (pa.array([[[1], [2]], [[None]]], pa.list_(pa.list_(NOT_NULL, 1))), ", item, item", 1),
    (
        pa.array([[("k", 1)], None, [("k", 2), ("l", None)]], pa.map_(pa.string(), NOT_NULL)),
        ", value",
        2,
    ),
    (
        pa.MapArray.from_arrays(places(0, 1, 2), pa.array([FULL, HOLLOW], RECORD), codes(1, 2)),
        ", key, field 'x'",
        1,
    ),
    (
        pa.DictionaryArray.from_arrays(pa.array([0, None, 2], pa.uint8()), pa.array([FULL, HOLLOW, HOLLOW])),
        "",
        -1,  # the inferred dictionary promises nothing
    ),
    (
        pa.DictionaryArray.from_arrays(
            pa.array([0, None, 2], pa.uint8()), pa.array([FULL, HOLLOW, HOLLOW], RECORD)
        ),
        ", dictionary value, field 'x'",
        2,
    ),
    (
        pa.RunEndEncodedArray.from_arrays(places(2, 3), pa.array([FULL, HOLLOW], RECORD)),
        ", run value, field 'x'",
        2,
    ),
    (
        pa.UnionArray.from_sparse(
            codes(0, 1, 1),
            [pa.array([FULL, HOLLOW, HOLLOW], RECORD), pa.array([HOLLOW, FULL, HOLLOW], RECORD)],
            ["u", "v"],
        ),
        ", child 'v', field 'x'",
        2,
    ),
    (
        pa.UnionArray.from_dense(
            codes(5, 7, 5),
            places(1, 0, 1),
            [pa.array([HOLLOW, FULL], RECORD), pa.array([HOLLOW], RECORD)],
            ["u", "v"],
            [5, 7],
        ),
        ", child 'v', field 'x'",
        1,
    ),
    (
        pa.ExtensionArray.from_storage(pa.opaque(RECORD, "kind", "vendor"), pa.array([FULL, HOLLOW], RECORD)),
        ", field 'x'",
        1,
    ),
]


@pytest.mark.parametrize(("array", "place", "row"), BROKEN, ids=lambda item: str(getattr(item, "type", "")))
def test_a_null_in_a_field_that_is_not_nullable_is_found_at_any_depth(
    array: pa.Array, place: str, row: int
) -> None:
    expected = None if row < 0 else forbidden(place, row)
    assert check_full(batch_of(array)) == expected
    for start in range(len(array)):  # slices count from their own first row, and do not see what is before
        part = array[start:]
        assert check_full(batch_of(part)) == (forbidden(place, row - start) if row >= start else None)
    assert check_full(batch_of(array[: max(row, 0)])) is None
    assert check_full(batch_of(pa.StructArray.from_arrays([array], ["s"]))) == (
        None if row < 0 else forbidden(f", field 's'{place}", row)
    )


DICTIONARY_WITH_NULL = pa.DictionaryArray.from_arrays(codes(0, 1, 0), pa.array(["x", None]))
UNION_WITH_NULL = pa.UnionArray.from_dense(codes(0, 1, 1), places(0, 0, 1), [codes(1), pa.array(["x", None])])


@pytest.mark.parametrize(
    ("array", "row"),
    [
        (codes(1, 2), -1),
        (pa.array([1, None]), 1),
        (pa.array(["x", None], pa.string_view()), 1),
        (pa.array([[1], None], pa.list_view(pa.int8())), 1),
        (pa.nulls(2, pa.month_day_nano_interval()), 0),
        (pa.nulls(2, pa.uuid()), 0),
        (DICTIONARY_WITH_NULL, 1),
        (DICTIONARY_WITH_NULL[2:], -1),
        (DICTIONARY_WITH_NULL[1:], 0),
        (pa.array(["x", None]).dictionary_encode(), 1),
        (UNION_WITH_NULL, 2),
        (UNION_WITH_NULL[:2], -1),
        (UNION_WITH_NULL[1:], 1),
        (pa.UnionArray.from_sparse(codes(0, 1), [pa.nulls(2), pa.array(["x", None])]), 0),
        (pa.UnionArray.from_sparse(codes(1, 1, 0), [codes(1, 2, 3), pa.array(["x", None, None])]), 1),
        (
            pa.UnionArray.from_sparse(
                codes(0, 0, 1),
                [
                    pa.ExtensionArray.from_storage(
                        pa.opaque(DICTIONARY_WITH_NULL.type, "kind", "vendor"), DICTIONARY_WITH_NULL
                    ),
                    codes(1, 2, 3),
                ],
            ),
            1,
        ),
        (pa.RunEndEncodedArray.from_arrays(places(2, 3), pa.array(["x", None])), 2),
        (pa.RunEndEncodedArray.from_arrays(places(2, 3), pa.array(["x", None]))[1:], 1),
        (pa.RunEndEncodedArray.from_arrays(places(2, 3), pa.array(["x", None]))[:2], -1),
    ],
)
def test_a_column_that_is_not_nullable_has_no_null_of_any_kind(array: pa.Array, row: int) -> None:
    assert check_full(batch_of(array, nullable=False)) == (None if row < 0 else forbidden("", row))
    assert check_full(batch_of(array)) is None


def test_what_a_null_parent_hides_does_not_count() -> None:
    hollow = pa.array([None, None, 1], pa.int8())
    hidden = pa.StructArray.from_arrays([hollow], fields=[NOT_NULL], mask=pa.array([True, True, False]))
    assert check_full(batch_of(hidden)) is None
    assert check_full(batch_of(pa.ListArray.from_arrays(places(2, 3), hollow, pa.list_(NOT_NULL)))) is None
    nulled = pa.ListArray.from_buffers(
        pa.list_(NOT_NULL), 2, [pa.py_buffer(b"\2"), places(0, 2, 3).buffers()[1]], children=[hollow]
    )
    assert nulled.to_pylist() == [None, [1]]
    assert check_full(batch_of(nulled)) is None
    assert check_full(batch_of(nulled, nullable=False)) == forbidden("", 0)


def test_items_that_nothing_refers_to_do_not_count() -> None:
    items = pa.array([None, 1, 2, None], pa.int8())
    views = pa.ListViewArray.from_arrays(places(1, 1, 2), places(2, 1, 0), items, pa.list_view(NOT_NULL))
    assert check_full(batch_of(views)) is None
    views = pa.ListViewArray.from_arrays(places(1, 1, 2), places(2, 1, 2), items, pa.list_view(NOT_NULL))
    assert check_full(batch_of(views)) == forbidden(", item", 2)
    unused = pa.DictionaryArray.from_arrays(codes(0, 0), pa.array([FULL, HOLLOW], RECORD))
    assert check_full(batch_of(unused)) is None


def test_views_that_all_show_the_same_items_cost_no_more_than_these() -> None:
    count = 20_000  # one by one they would have 400 million items
    items = pa.array(np.arange(count) % 100, pa.int8())
    views = pa.ListViewArray.from_arrays(
        pa.array(np.zeros(count), pa.int32()),
        pa.array(np.full(count, count), pa.int32()),
        items,
        pa.list_view(NOT_NULL),
    )
    assert check_full(batch_of(views)) is None


def test_what_arrow_refuses_is_named_with_its_column() -> None:
    text = pa.Array.from_buffers(pa.string(), 1, [None, places(0, 2).buffers()[1], pa.py_buffer(b"\xff\xff")])
    found = check_full(batch_of(text))
    assert found is not None
    assert found.startswith("column 'a' is not valid Arrow: ")
    assert "UTF8" in found
    assert found.isprintable()
    index = pa.DictionaryArray.from_arrays(codes(0, 9), pa.array(["x"]), safe=False)
    assert "column 'a' is not valid Arrow" in (check_full(batch_of(index)) or "")
    offsets = pa.Array.from_buffers(
        pa.list_(pa.int8()), 2, [None, places(0, 2, 1).buffers()[1]], children=[codes(1, 2)]
    )
    assert "not valid Arrow" in (check_full(batch_of(offsets)) or "")
    union = pa.Array.from_buffers(
        pa.sparse_union([pa.field("x", pa.int8())]), 1, [None, codes(5).buffers()[1]], children=[codes(1)]
    )
    assert "not valid Arrow" in (check_full(batch_of(union)) or "")


def test_a_batch_without_columns_or_rows_is_right() -> None:
    assert check_full(pa.record_batch({"a": [1]}).select([])) is None
    assert check_full(batch_of(pa.array([], pa.list_(RECORD)), nullable=False)) is None


def test_the_first_column_that_is_wrong_is_named() -> None:
    schema = pa.schema([pa.field(name, pa.int8(), nullable=False) for name in ("a", "n" * 4096, "c")])
    batch = pa.RecordBatch.from_arrays(
        [codes(1), pa.nulls(1, pa.int8()), pa.nulls(1, pa.int8())], schema=schema
    )
    found = check_full(batch)
    assert found is not None
    assert "(4096 characters) is declared not null" in found
    assert len(found) < 200


# -------------------------------------------------------------------- against an answer worked out slowly


def fields(types: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.Field]:
    return st.builds(lambda type_, nullable: pa.field("f", type_, nullable), types, st.booleans())


def nested(types: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    inner = fields(types)
    return st.one_of(
        st.lists(inner, min_size=1, max_size=2).map(
            lambda given: pa.struct([field.with_name(f"f{i}") for i, field in enumerate(given)])
        ),
        inner.map(pa.list_),
        inner.map(pa.large_list),
        inner.map(pa.list_view),
        inner.map(lambda field: pa.list_(field, 2)),
        inner.map(lambda field: pa.map_(pa.int8(), field)),
    )


TYPES = st.recursive(st.just(pa.int8()), nested, max_leaves=4)


def values(type_: pa.DataType) -> st.SearchStrategy[Any]:
    # Rarely null, so that deeper nulls are reached too.
    return st.integers(0, 7).flatmap(lambda number: present(type_) if number else st.none())


def present(type_: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_struct(type_):
        return st.fixed_dictionaries({field.name: values(field.type) for field in type_.fields})
    if pa.types.is_map(type_):
        return st.lists(st.tuples(st.integers(0, 9), values(type_.item_type)), max_size=3)
    if pa.types.is_fixed_size_list(type_):
        return st.lists(values(type_.value_type), min_size=2, max_size=2)
    if hasattr(type_, "value_type"):
        return st.lists(values(type_.value_type), max_size=3)
    return st.integers(-9, 9)


def is_wrong(field: pa.Field, value: Any) -> bool:
    type_ = field.type
    if value is None:
        return not field.nullable
    if pa.types.is_struct(type_):
        return any(is_wrong(inner, value[inner.name]) for inner in type_.fields)
    if pa.types.is_map(type_):
        return any(is_wrong(type_.item_field, item) for _, item in value)
    if hasattr(type_, "value_field"):
        return any(is_wrong(type_.value_field, item) for item in value)
    return False


@st.composite
def columns(draw: st.DrawFn) -> tuple[pa.Field, list[Any], int]:
    field = draw(fields(TYPES))
    rows = draw(st.lists(values(field.type), max_size=6))
    return field.with_name("a"), rows, draw(st.integers(0, len(rows)))


@settings(max_examples=200, deadline=None)
@given(columns())
def test_a_violation_is_found_exactly_where_one_is(column: tuple[pa.Field, list[Any], int]) -> None:
    field, rows, start = column
    array = pa.array(rows, field.type)[start:]
    found = check_full(pa.RecordBatch.from_arrays([array], schema=pa.schema([field])))
    wrong = [row for row, value in enumerate(rows[start:]) if is_wrong(field, value)]
    if found is None:
        assert not wrong
    else:
        assert found.startswith("column 'a'")
        assert int(found.rpartition(" ")[2]) in wrong
