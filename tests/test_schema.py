from __future__ import annotations

import json

import pyarrow as pa
import pytest

from shmstore.schema import first_difference, quoted, spelled, to_json

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


def struct(*fields: tuple[str, pa.DataType] | pa.Field) -> pa.DataType:
    return pa.struct(list(fields))


NOT_NULL = pa.field("x", pa.int8(), nullable=False)
NULLABLE = pa.field("x", pa.int8())
#: Two types, and what is said when the second comes in place of the first in the column 'a'.
NESTED = [
    (struct(("x", pa.int32())), struct(("x", pa.int64())), ", field 'x' is int64, expected int32"),
    (struct(NOT_NULL), struct(NULLABLE), ", field 'x' is nullable, expected not null"),
    (struct(NULLABLE), struct(NOT_NULL), ", field 'x' is not null, expected nullable"),
    (struct(NULLABLE), struct(), ", field 'x' (int8) is missing"),
    (struct(), struct(NULLABLE), ", field 'x' (int8) is not expected"),
    (struct(NULLABLE), struct(("y", pa.int8())), ", field 0 is 'y', expected 'x'"),
    (pa.list_(pa.int8()), pa.list_(pa.int16()), ", item is int16, expected int8"),
    (pa.list_(NULLABLE), pa.list_(NOT_NULL), ", item is not null, expected nullable"),
    (pa.large_list(pa.int8()), pa.large_list(pa.int16()), ", item is int16, expected int8"),
    (pa.list_view(pa.int8()), pa.list_view(pa.int16()), ", item is int16, expected int8"),
    (pa.large_list_view(pa.int8()), pa.large_list_view(pa.int16()), ", item is int16, expected int8"),
    (pa.list_(pa.int8(), 2), pa.list_(pa.int16(), 2), ", item is int16, expected int8"),
    (pa.list_(pa.int8(), 2), pa.list_(pa.int8(), 3), " has 3 items, expected 2"),
    (pa.list_(pa.int8()), pa.large_list(pa.int8()), " is large_list<item: int8>, expected list<item: int8>"),
    (pa.map_(pa.int8(), pa.int8()), pa.map_(pa.int16(), pa.int8()), ", key is int16, expected int8"),
    (pa.map_(pa.int8(), pa.int8()), pa.map_(pa.int8(), pa.int16()), ", value is int16, expected int8"),
    (
        pa.map_(pa.int8(), pa.int8()),
        pa.map_(pa.int8(), pa.field("value", pa.int8(), nullable=False)),
        ", value is not null, expected nullable",
    ),
    (
        pa.map_(pa.int8(), pa.int8()),
        pa.map_(pa.int8(), pa.int8(), keys_sorted=True),
        " has sorted keys, expected unsorted ones",
    ),
    (
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int16(), pa.string()),
        ", dictionary index is int16, expected int8",
    ),
    (
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int8(), pa.binary()),
        ", dictionary value is binary, expected string",
    ),
    (
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int8(), pa.string(), ordered=True),
        " is an ordered dictionary, expected an unordered one",
    ),
    (
        pa.run_end_encoded(pa.int16(), pa.int8()),
        pa.run_end_encoded(pa.int32(), pa.int8()),
        ", run end is int32, expected int16",
    ),
    (
        pa.run_end_encoded(pa.int16(), pa.int8()),
        pa.run_end_encoded(pa.int16(), pa.bool_()),
        ", run value is bool, expected int8",
    ),
    (pa.dense_union([NULLABLE]), pa.dense_union([NOT_NULL]), ", child 'x' is not null, expected nullable"),
    (pa.sparse_union([NULLABLE]), pa.sparse_union([]), ", child 'x' (int8) is missing"),
    (
        pa.sparse_union([NULLABLE], [5]),
        pa.sparse_union([NULLABLE], [6]),
        " has the type codes [6], expected [5]",
    ),
    (
        pa.sparse_union([NULLABLE]),
        pa.dense_union([NULLABLE]),
        " is dense_union<x: int8=0>, expected sparse_union<x: int8=0>",
    ),
    (pa.uuid(), pa.binary(16), " is fixed_size_binary[16], expected extension<arrow.uuid>"),
    (
        pa.fixed_shape_tensor(pa.int8(), [2]),
        pa.fixed_shape_tensor(pa.int8(), [3]),
        (
            " is extension<arrow.fixed_shape_tensor[value_type=int8, shape=[3]]>, expected "
            "extension<arrow.fixed_shape_tensor[value_type=int8, shape=[2]]>"
        ),
    ),
    (
        pa.list_(struct(("m", pa.map_(pa.string(), pa.list_(pa.int8()))))),
        pa.list_(struct(("m", pa.map_(pa.string(), pa.list_(pa.int16()))))),
        ", item, field 'm', value, item is int16, expected int8",
    ),
]


@pytest.mark.parametrize(("expected", "found", "difference"), NESTED, ids=lambda item: str(item)[:40])
def test_the_first_difference_is_found_inside_a_type(
    expected: pa.DataType, found: pa.DataType, difference: str
) -> None:
    assert first_difference(pa.schema([("a", expected)]), pa.schema([("a", found)])) == (
        f"column 'a'{difference}"
    )
    for same in (expected, found):
        assert first_difference(pa.schema([("a", same)]), pa.schema([("a", same)])) is None


def test_names_that_arrow_gives_the_items_of_lists_do_not_count() -> None:
    one, two = (pa.schema([("a", pa.list_(pa.field(name, pa.int8())))]) for name in ("item", "element"))
    assert first_difference(one, two) is None


def test_a_doubled_or_empty_name_is_told_by_its_position() -> None:
    expected = pa.schema([("a", pa.int8()), ("a", pa.int8()), ("", pa.int8())])
    found = expected.set(1, pa.field("a", pa.int16()))
    assert first_difference(expected, found) == "column 'a' at position 1 is int16, expected int8"
    found = expected.set(2, pa.field("", pa.int16()))
    assert first_difference(expected, found) == "column '' at position 2 is int16, expected int8"


def deep(type_: pa.DataType, levels: int) -> pa.DataType:
    for level in range(levels):
        type_ = pa.struct([(f"{level}{'n' * 4096}", type_)])
    return type_


@pytest.mark.parametrize(
    ("expected", "found", "shown"),
    [
        (pa.schema([("n" * 4096, pa.int8())]), pa.schema([("n" * 4095 + "m", pa.int8())]), "nm', expected …"),
        (pa.schema([("\n\0" * 2048, pa.int8())]), pa.schema([]), "is missing"),
        (pa.schema([("a", deep(pa.int8(), 50))]), pa.schema([("a", deep(pa.int16(), 50))]), "is int16, ex"),
        (pa.schema([("a", deep(pa.int8(), 50))]), pa.schema([("a", pa.int8())]), "is int8, expected struct<"),
        (
            pa.schema([("a", pa.timestamp("s", "z" * 4096))]),
            pa.schema([("a", pa.timestamp("s", "z" * 4096 + "y"))]),
            "zzzzzy]",
        ),
        (pa.schema([]), pa.schema([("a", deep(pa.int8(), 50))]), "…) is not expected"),
        (
            pa.schema([("a", pa.int8())]),
            pa.schema([("a", pa.struct([("b\nc", pa.int8())]))]),
            r"<b\nc: int8>",
        ),
    ],
)
def test_huge_schemas_make_one_short_line(expected: pa.Schema, found: pa.Schema, shown: str) -> None:
    difference = first_difference(expected, found)
    assert difference is not None
    assert shown in difference
    assert len(difference) < 1000
    assert difference.isprintable()


def test_types_that_are_spelled_alike_are_not_said_to_be_expected() -> None:
    class Opaque(pa.ExtensionType):  # type: ignore[misc]
        def __init__(self, kind: int) -> None:
            self.kind = kind
            super().__init__(pa.int8(), "test.opaque")

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Opaque) and other.kind == self.kind

        def __hash__(self) -> int:
            return hash(self.kind)

        def __arrow_ext_serialize__(self) -> bytes:
            return bytes([self.kind])

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Opaque:
            return cls(serialized[0])

    one, two = (pa.schema([("a", Opaque(kind))]) for kind in (1, 2))
    assert (first_difference(one, two) or "").startswith("column 'a' is another extension<")
    assert first_difference(one, one) is None


def test_places_and_names_are_cut_in_their_middle_and_end() -> None:
    assert spelled([f"level {number}" for number in range(20)]) == (
        "level 0, level 1, level 2, level 3, … (12 levels), level 16, level 17, level 18, level 19"
    )
    assert quoted("n" * 78) == repr("n" * 78)
    assert quoted("n" * 79).endswith("…' (79 characters)")
