from __future__ import annotations

import json

import pyarrow as pa
import pytest

from shmstore.schema import first_difference, to_json

SCHEMA = pa.schema(
    [("time", pa.timestamp("ns", "UTC")), ("x", pa.list_(pa.float32(), 3)), ("s", pa.string())]
)


def test_json_says_names_types_nullability_and_metadata() -> None:
    schema = pa.schema(
        [
            pa.field("a", pa.int8(), nullable=False, metadata={"units": "mm"}),
            pa.field('ü"', pa.list_(pa.float32(), 3)),
        ],
        metadata={"origin": "ü"},
    )
    text = to_json(schema)
    assert "ü" in text  # readable, not escaped
    assert json.loads(text) == {
        "fields": [
            {"name": "a", "type": "int8", "nullable": False, "metadata": {"units": "mm"}},
            {"name": 'ü"', "type": "fixed_size_list<item: float>[3]", "nullable": True},
        ],
        "metadata": {"origin": "ü"},
    }


def test_metadata_that_is_no_text_does_not_stop_it() -> None:
    assert json.loads(to_json(pa.schema([("a", pa.int8())], metadata={b"\xff": b"\xfe"})))["metadata"]


def test_equal_columns_have_no_difference_whatever_their_metadata() -> None:
    assert first_difference(SCHEMA, SCHEMA) is None
    assert first_difference(SCHEMA, SCHEMA.with_metadata({"a": "b"})) is None
    assert first_difference(SCHEMA, pa.schema(list(SCHEMA))) is None
    assert first_difference(pa.schema([]), pa.schema([])) is None


@pytest.mark.parametrize(
    ("found", "difference"),
    [
        (SCHEMA.remove(2), "column 's' (string) is missing"),
        (SCHEMA.append(pa.field("t", pa.int8())), "column 't' (int8) is not expected"),
        (SCHEMA.set(1, pa.field("y", SCHEMA.field(1).type)), "column 1 is 'y', expected 'x'"),
        (SCHEMA.set(2, pa.field("s", pa.large_string())), "column 's' is large_string, expected string"),
        (
            SCHEMA.set(0, pa.field("time", pa.timestamp("ns"))),
            "column 'time' is timestamp[ns], expected timestamp[ns, tz=UTC]",
        ),
        (pa.schema([SCHEMA.field(1), SCHEMA.field(0)]), "column 0 is 'x', expected 'time'"),
    ],
)
def test_the_first_difference_is_named(found: pa.Schema, difference: str) -> None:
    assert first_difference(SCHEMA, found) == difference


def test_nulls_may_not_come_where_none_are_expected() -> None:
    strict = pa.schema([pa.field("a", pa.int8(), nullable=False)])
    loose = pa.schema([pa.field("a", pa.int8())])
    assert first_difference(strict, loose) == "column 'a' is nullable, expected not null"
    assert first_difference(loose, strict) is None
