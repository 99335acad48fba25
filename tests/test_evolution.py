"""Evolving schemas: what is accepted, what holds then, and what becomes of the batches."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shmstore.errors import IncompleteFileError, SchemaMismatchError
from shmstore.evolution import (
    Evolution,
    PastSchema,
    evolve,
    history_from_json,
    history_to_json,
    project,
)

INTEGERS = [getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = [pa.float16(), pa.float32(), pa.float64()]


def of(*fields: Any, metadata: dict[str, str] | None = None) -> pa.Schema:
    return pa.schema(list(fields), metadata=metadata)


def limits(type_: pa.DataType) -> tuple[int, int]:
    info = np.iinfo(type_.to_pandas_dtype())
    return int(info.min), int(info.max)


@pytest.mark.parametrize(("one", "two"), list(itertools.product(INTEGERS, INTEGERS)), ids=str)
def test_integers_get_the_smallest_type_that_holds_both(one: pa.DataType, two: pa.DataType) -> None:
    low = min(limits(one)[0], limits(two)[0])
    high = max(limits(one)[1], limits(two)[1])
    holding = [type_ for type_ in INTEGERS if limits(type_)[0] <= low and limits(type_)[1] >= high]
    if not holding:
        with pytest.raises(SchemaMismatchError, match="no integer type holds both"):
            evolve(of(("a", one)), of(("a", two)))
        return
    smallest = min(holding, key=lambda type_: int(type_.bit_width))
    evolution = evolve(of(("a", one)), of(("a", two)))
    assert evolution.schema == of(("a", smallest))
    assert evolution.widened == (() if smallest == one else (0,))
    assert evolution.changed == (smallest != one)
    for type_ in (one, two):
        batch = pa.record_batch([pa.array([*limits(type_), None], type_)], names=["a"])
        assert project(batch, evolution.schema).column(0).to_pylist() == [*limits(type_), None]


@pytest.mark.parametrize(("one", "two"), list(itertools.product(FLOATS, FLOATS)), ids=str)
def test_floats_get_the_larger(one: pa.DataType, two: pa.DataType) -> None:
    evolution = evolve(of(("a", one)), of(("a", two)))
    larger = max(one, two, key=lambda type_: int(type_.bit_width))
    assert evolution.schema.types == [larger]
    batch = pa.record_batch(
        [pa.array(np.array([-0.0, 1.5, np.inf], two.to_pandas_dtype()), two)], names=["a"]
    )
    projected = project(batch, evolution.schema).column(0)
    assert projected.type == larger
    assert str(projected.to_pylist()) == "[-0.0, 1.5, inf]"


def test_the_same_columns_change_nothing_whatever_their_order_and_metadata() -> None:
    current = of(("a", pa.int32()), pa.field("b", pa.string(), nullable=False), metadata={"k": "v"})
    for found in (
        current,
        of(current.field(1), current.field(0)),
        of(current.field(0).with_metadata({"x": "y"}), current.field(1), metadata={"k": "w"}),
        of(pa.field("a", pa.int8(), nullable=False), current.field(1)),
        of(current.field(1)),  # what is left out is null
    ):
        evolution = evolve(current, found)
        assert not evolution.changed
        assert evolution.schema.equals(current, check_metadata=True)


def test_new_columns_are_appended_and_bring_their_metadata() -> None:
    current = of(("a", pa.int8()), metadata={"k": "v"})
    new = pa.field("n", pa.list_(pa.string()), metadata={"units": "mm"})
    evolution = evolve(current, of(new, ("a", pa.int8()), ("m", pa.null()), metadata={"k": "w"}))
    assert evolution == Evolution(of(("a", pa.int8()), new, ("m", pa.null())), added=(1, 2))
    assert evolution.schema.metadata == {b"k": b"v"}
    assert evolution.schema.field("n").metadata == {b"units": b"mm"}


def test_a_column_may_become_nullable_and_keeps_its_metadata_when_it_becomes_wider() -> None:
    current = of(pa.field("a", pa.int8(), nullable=False, metadata={"units": "V"}))
    evolution = evolve(current, of(("a", pa.int16())))
    assert evolution.schema.equals(
        of(pa.field("a", pa.int16(), metadata={"units": "V"})), check_metadata=True
    )
    assert (evolution.added, evolution.widened, evolution.loosened) == ((), (0,), (0,))
    only = evolve(current, of(("a", pa.int8())))
    assert (only.widened, only.loosened, only.changed) == ((), (0,), True)


def test_doubled_names_are_matched_by_occurrence() -> None:
    current = of(("a", pa.int8()), ("b", pa.int8()), ("a", pa.string()))
    found = of(("a", pa.int16()), ("a", pa.string()), ("a", pa.bool_()), ("b", pa.int8()))
    evolution = evolve(current, found)
    assert evolution.schema == of(("a", pa.int16()), ("b", pa.int8()), ("a", pa.string()), ("a", pa.bool_()))
    assert (evolution.added, evolution.widened) == ((3,), (0,))
    batch = pa.record_batch([pa.array([1], pa.int8()), pa.array(["x"])], names=["a", "a"])
    assert [column.to_pylist() for column in project(batch, evolution.schema).columns] == [
        [1],
        [None],
        ["x"],
        [None],
    ]


UNREGISTERED = pa.field("a", pa.int8(), metadata={"ARROW:extension:name": "vendor.code"})
REFUSED = [
    (of(("a", pa.int8())), of(("a", pa.string())), "column 'a' is string, expected int8; integers of any"),
    (
        of(("a", pa.float32())),
        of(("a", pa.int8())),
        "column 'a' is int8, expected float; floats of any width",
    ),
    (of(("a", pa.int64())), of(("a", pa.uint64())), "column 'a' is uint64, expected int64; no integer type"),
    (of(("a", pa.string())), of(("a", pa.large_string())), "is large_string, expected string; only columns"),
    (
        of(("a", pa.struct([("x", pa.int8())]))),
        of(("a", pa.struct([("x", pa.int16())]))),
        "column 'a', field 'x' is int16, expected int8; only columns of integers or of floats may change",
    ),
    (of(UNREGISTERED), of(("a", pa.int16())), "column 'a' is int16, expected int8"),
    (
        of(pa.field("a", pa.int8(), nullable=False)),
        of(("b", pa.int8())),
        "column 'a' is missing and declared not null; only a nullable column may be left out",
    ),
    (
        of(("a", pa.int8())),
        of(pa.field("b", pa.int8(), nullable=False)),
        "column 'b' is new and declared not null; only a nullable column may be added",
    ),
    (of(pa.field("n" * 4096, pa.int8(), nullable=False)), of(), "…' (4096 characters) is missing"),
]


@pytest.mark.parametrize(("current", "found", "message"), REFUSED, ids=lambda item: str(item)[:50])
def test_what_is_refused_says_what_would_be_accepted(
    current: pa.Schema, found: pa.Schema, message: str
) -> None:
    with pytest.raises(SchemaMismatchError) as caught:
        evolve(current, found)
    text = str(caught.value)
    assert message in text
    assert text.endswith("; cast the batch, or use schema_policy='new'")
    assert text.isprintable()
    assert len(text) < 500


# ----------------------------------------------------------------------------------------------- project


def test_a_batch_of_this_very_schema_comes_back_itself() -> None:
    batch = pa.record_batch({"a": [1, 2]})
    assert project(batch, batch.schema) is batch
    assert project(batch, of(("a", pa.int64()))) is batch


def test_what_needs_no_cast_is_not_copied() -> None:
    batch = pa.record_batch({"a": np.arange(3), "b": ["x", "y", "z"]})
    schema = of(("b", pa.string()), ("c", pa.int8()), ("a", pa.int64()), metadata={"k": "v"})
    projected = project(batch, schema)
    assert projected.schema.equals(schema, check_metadata=True)
    assert projected.to_pydict() == {"b": ["x", "y", "z"], "c": [None] * 3, "a": [0, 1, 2]}
    assert projected.column(2).buffers()[1].address == batch.column(0).buffers()[1].address


@pytest.mark.parametrize(
    "type_",
    [
        pa.null(),
        pa.bool_(),
        pa.decimal256(50, 3),
        pa.string_view(),
        pa.binary(3),
        pa.month_day_nano_interval(),
        pa.list_(pa.string()),
        pa.list_view(pa.int8()),
        pa.list_(pa.struct([("x", pa.string())]), 2),
        pa.struct([pa.field("x", pa.int8(), nullable=False)]),
        pa.map_(pa.string(), pa.int8()),
        pa.dictionary(pa.int8(), pa.string()),
        pa.sparse_union([pa.field("x", pa.int8()), pa.field("y", pa.string())]),
        pa.dense_union([pa.field("x", pa.int8()), pa.field("y", pa.string())]),
        pa.run_end_encoded(pa.int16(), pa.string()),
        pa.fixed_shape_tensor(pa.int8(), [2, 2]),
        pa.uuid(),
        pa.opaque(pa.int8(), "kind", "vendor"),
    ],
    ids=str,
)
def test_a_missing_column_of_any_type_is_null(type_: pa.DataType) -> None:
    batch = pa.record_batch({"a": [1, 2, 3]})
    projected = project(batch, of(("a", pa.int64()), ("b", type_)))
    projected.validate(full=True)
    assert projected.column(1).type == type_
    assert projected.column(1).to_pylist() == [None] * 3


def test_batches_without_columns_or_rows_keep_their_number_of_rows() -> None:
    bare = pa.record_batch({"a": [1, 2]}).select([])
    assert project(bare, of(("a", pa.int8()))).to_pydict() == {"a": [None, None]}
    assert project(bare, of(metadata={"k": "v"})).num_rows == 2
    empty = pa.record_batch([pa.array([], pa.int8())], names=["a"])
    assert project(empty, of(("a", pa.int16()), ("b", pa.string()))).num_rows == 0


@pytest.mark.parametrize(
    ("batch", "schema", "message"),
    [
        (pa.record_batch({"a": [1]}), of(("a", pa.int8())), "column 'a' is int64, expected int8; evolve"),
        (pa.record_batch({"a": [1], "b": [1]}), of(("a", pa.int64())), "column 'b' .int64. is not expected"),
        (pa.record_batch({"a": [1]}), of(pa.field("a", pa.int64(), nullable=False)), "is nullable, expected"),
        (pa.record_batch({"a": ["x"]}), of(("a", pa.int64())), "column 'a' is string, expected int64"),
        (
            pa.record_batch({"a": [1]}),
            of(("a", pa.int64()), pa.field("b", pa.int8(), nullable=False)),
            "column 'b' is missing and declared not null",
        ),
    ],
)
def test_a_batch_that_the_schema_cannot_hold_is_refused(
    batch: pa.RecordBatch, schema: pa.Schema, message: str
) -> None:
    with pytest.raises(SchemaMismatchError, match=message):
        project(batch, schema)


def test_steps_of_evolution_end_at_one_schema_that_holds_every_batch() -> None:
    batches = [
        pa.record_batch([pa.array([1], pa.uint8())], names=["a"]),
        pa.record_batch([pa.array([-1], pa.int8()), pa.array(["x"])], names=["a", "b"]),
        pa.record_batch([pa.array(["y"]), pa.array([0.5], pa.float16())], names=["b", "c"]),
        pa.record_batch([pa.array([2**20], pa.uint32()), pa.array([0.1])], names=["a", "c"]),
    ]
    schema = batches[0].schema
    for batch in batches[1:]:
        schema = evolve(schema, batch.schema).schema
    assert schema == of(("a", pa.int64()), ("b", pa.string()), ("c", pa.float64()))
    table = pa.Table.from_batches([project(batch, schema) for batch in batches])
    assert table.to_pydict() == {
        "a": [1, -1, None, 2**20],
        "b": [None, "x", "y", None],
        "c": [None, None, 0.5, 0.1],
    }


# ----------------------------------------------------------------------------------------------- history


def test_history_comes_back() -> None:
    history = [
        PastSchema.of(0, of(("ü", pa.int8()), metadata={"k": "v"})),
        PastSchema.of(10, of(pa.field("a", pa.int8(), nullable=False), ("b", pa.list_(pa.int8())))),
    ]
    text = history_to_json(history)
    assert history_from_json(text) == history
    assert json.loads(text)[1]["row"] == 10
    assert json.loads(text)[1]["schema"]["fields"][0] == {"name": "a", "type": "int8", "nullable": False}
    assert history_from_json(history_to_json([])) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '[{"row": 1}]',
        '[{"row": -1, "schema": {"fields": []}}]',
        '[{"row": true, "schema": {"fields": []}}]',
        '[{"row": 1.5, "schema": {"fields": []}}]',
        '[{"row": 1, "schema": []}]',
        '[{"row": 1, "schema": {}}]',
        '[{"row": 2, "schema": {"fields": []}}, {"row": 1, "schema": {"fields": []}}]',
        "[" * 100_000,
    ],
    ids=lambda text: text[:40],
)
def test_a_damaged_history_is_named(text: str) -> None:
    with pytest.raises(IncompleteFileError, match="the history of the schema is damaged"):
        history_from_json(text)
