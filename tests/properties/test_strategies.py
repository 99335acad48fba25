"""The strategies draw everything that they promise, and what they draw is sound by Arrow's own account."""

from __future__ import annotations

import io
import itertools
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from properties import arrow_types, arrow_values
from properties.exactness import difference, table_tokens, tokens

QUIETLY = settings(
    max_examples=200, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
LOOKING = settings(QUIETLY, max_examples=4000, derandomize=False, phases=[Phase.generate])

Batches = list[pa.RecordBatch]


def drawn(strategy: st.SearchStrategy[Any], wanted: Callable[[Any], bool]) -> Any:
    """Return an example, or fail; the same one on each run."""
    return find(strategy, wanted, settings=LOOKING, random=random.Random(1))


@st.composite
def columns(draw: st.DrawFn, type_: pa.DataType) -> pa.Array:
    return draw(arrow_values.arrays(type_, draw(st.integers(0, 5))))


@st.composite
def recordings(draw: st.DrawFn, nul: bool = True) -> tuple[pa.Schema, Batches]:
    schema = draw(arrow_types.schemas())
    return schema, draw(arrow_values.batches(schema, nul=nul))


# -- types and fields ----------------------------------------------------------------------------------------


def test_each_type_is_drawn_by_itself_and_in_another() -> None:
    outer, inner = set(), set()

    @settings(QUIETLY, max_examples=2000)
    @given(arrow_types.types(2))
    def draw(type_: pa.DataType) -> None:
        first, *others = map(arrow_types.kind, arrow_types.walk(type_))
        outer.add(first)
        inner.update(others)

    draw()
    every = {*arrow_types.LEAVES, *arrow_types.NESTED}
    assert (every - outer, every - inner) == (set(), set())


def test_types_are_nested_as_deeply_as_asked_for() -> None:
    deepest = drawn(arrow_types.types(), lambda type_: arrow_types.nesting(type_) >= arrow_types.DEPTH)
    assert deepest
    assert arrow_types.nesting(drawn(arrow_types.types(0), lambda _: True)) == 0


@pytest.mark.parametrize(
    "wanted",
    [
        lambda schema: not schema.names,
        lambda schema: len(set(schema.names)) < len(schema.names),
        lambda schema: any(len(name.encode()) > 4000 for name in schema.names),
        lambda schema: any("/" in name for name in schema.names),
        lambda schema: any(field.metadata for field in schema) and schema.metadata,
        lambda schema: any(
            field.metadata and len(field.metadata) < len(list(pairs(field))) for field in schema
        ),
        lambda schema: any(b"ARROW:extension:name" in (field.metadata or {}) for field in schema),
        lambda schema: any(not field.nullable for field in schema),
    ],
    ids=["none", "doubled", "long", "slash", "metadata", "doubled key", "unregistered", "not null"],
)
def test_schemas_have_columns_of_every_sort(wanted: Callable[[pa.Schema], bool]) -> None:
    drawn(arrow_types.schemas(1), wanted)


def pairs(field: pa.Field) -> list[Any]:
    """Return the metadata of a field with doubled keys, which only its text shows."""
    lines = pa.schema([field]).to_string(truncate_metadata=False).splitlines()
    return [line for line in lines if line.startswith("  ") and ": '" in line]


def test_names_are_odd_and_still_text_that_a_file_can_hold() -> None:
    found = set()

    @settings(QUIETLY, max_examples=1000)
    @given(arrow_types.names())
    def draw(name: str) -> None:
        assert len(name.encode()) <= arrow_types.LONGEST_NAME
        assert "\0" not in name
        found.add(name)

    draw()
    assert {*arrow_types.ODD_NAMES} <= found


# -- values --------------------------------------------------------------------------------------------------


@QUIETLY
@given(recordings(), st.booleans())
def test_batches_are_valid_and_go_through_arrow_itself(
    recording: tuple[pa.Schema, Batches], deltas: bool
) -> None:
    schema, batches = recording
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=deltas)
    with pa.ipc.new_stream(sink, schema, options=options) as stream:
        for batch in batches:
            batch.validate(full=True)
            assert batch.schema.equals(schema, check_metadata=True)
            stream.write_batch(batch)
    found = pa.ipc.open_stream(sink.getvalue()).read_all()
    rows = sum(batch.num_rows for batch in batches)
    assert difference(found, schema, rows, table_tokens(batches, range(len(schema)))) is None


@QUIETLY
@given(recordings(nul=False))
def test_text_has_no_nul_where_none_is_wanted(recording: tuple[pa.Schema, Batches]) -> None:
    schema, batches = recording
    texts = ("string", "large_string", "string_view")
    for index, field in enumerate(schema):
        if str(field.type) in texts:
            (found,) = table_tokens(batches, [index])
            assert not any(b"\0" in value for value in found if value is not None)


NEST = pa.list_(pa.struct([("a", pa.list_(pa.int8()))]))


@pytest.mark.parametrize(
    "wanted",
    [
        lambda lists: None in lists,
        lambda lists: () in lists,
        lambda lists: any(None in items for items in lists if items),
        lambda lists: any(item == (None,) for items in lists if items for item in items),
        lambda lists: any(item == ((None,),) for items in lists if items for item in items),
        lambda lists: any(item == ((),) for items in lists if items for item in items),
    ],
    ids=["null list", "empty list", "null struct", "null inner list", "null number", "empty inner list"],
)
def test_nulls_and_empty_lists_are_at_every_level(wanted: Callable[[Any], bool]) -> None:
    drawn(columns(NEST), lambda array: wanted(tokens(array)))


def bounds(array: pa.Array) -> list[int]:
    """Return the offsets of a list array."""
    ends = np.frombuffer(array.buffers()[1].to_pybytes(), np.int32)
    return [int(end) for end in ends[array.offset : array.offset + len(array) + 1]]


def null_list_has_items(array: pa.Array) -> bool:
    ends = bounds(array)
    return any(
        token is None and stop > start
        for token, (start, stop) in zip(tokens(array), itertools.pairwise(ends), strict=False)
    )


def number_lies_under_null(array: pa.Array) -> bool:
    data = array.buffers()[1].to_pybytes()[array.offset : array.offset + len(array)]
    return any(token is None and octet for token, octet in zip(tokens(array), data, strict=True))


def starts(array: pa.Array) -> list[tuple[int, int]]:
    """Return where each list view that is there and not empty begins and ends."""
    buffers = [np.frombuffer(buffer.to_pybytes(), np.int32) for buffer in array.buffers()[1:3]]
    places, sizes = (part[array.offset : array.offset + len(array)].tolist() for part in buffers)
    return [
        (place, place + size)
        for token, place, size in zip(tokens(array), places, sizes, strict=True)
        if token
    ]


def dense_places(array: pa.Array) -> list[int]:
    places = np.frombuffer(array.buffers()[2].to_pybytes(), np.int32)
    return [int(place) for place in places[array.offset : array.offset + len(array)]]


DENSE = pa.dense_union([pa.field("a", pa.int8())])
LABELLED = pa.dictionary(pa.int8(), pa.int8())


@pytest.mark.parametrize(
    ("type_", "wanted"),
    [
        (pa.int8(), lambda array: array.offset > 0 and len(array)),
        (pa.int8(), number_lies_under_null),
        (pa.int8(), lambda array: len(array) and array.null_count == 0 and array.buffers()[0] is not None),
        (pa.list_(pa.int8()), lambda array: len(array) and bounds(array)[0] > 0 and not array.offset),
        (pa.list_(pa.int8()), null_list_has_items),
        (pa.list_(pa.int8()), lambda array: array.values.offset > 0 and len(array.values)),
        (pa.list_view(pa.int8()), lambda array: sorted(starts(array)) != starts(array)),
        (
            pa.list_view(pa.int8()),
            lambda array: any(one[1] > two[0] for one, two in itertools.pairwise(sorted(starts(array)))),
        ),
        (DENSE, lambda array: len(array) and dense_places(array)[0] > 0 and not array.offset),
        (DENSE, lambda array: len(set(dense_places(array))) < len(array)),
        (
            LABELLED,
            lambda array: (
                len(array) and len({token[0] for token in tokens(array) if token}) < len(array.dictionary)
            ),
        ),
        (LABELLED, lambda array: len(set(tokens(array.dictionary))) < len(array.dictionary)),
        (LABELLED, lambda array: any(token and token[1][token[0]] is None for token in tokens(array))),
        (LABELLED, lambda array: None in tokens(array)),
        (pa.run_end_encoded(pa.int16(), pa.int8()), lambda array: array.offset and len(array) > 2),
        (pa.string(), lambda array: b"" in tokens(array) and None in tokens(array)),
        (pa.string(), lambda array: any(b"\0" in token for token in tokens(array) if token)),
        (pa.string_view(), lambda array: any(len(token) > 12 for token in tokens(array) if token)),
        (pa.float64(), lambda array: struct.pack("<d", -0.0) in tokens(array)),
        (pa.float64(), lambda array: struct.pack("<Q", 0x7FF0000000000001) in tokens(array)),
        (pa.float16(), lambda array: struct.pack("<e", float("-inf")) in tokens(array)),
        (pa.int64(), lambda array: struct.pack("<q", -(2**63)) in tokens(array)),
        (pa.timestamp("s"), lambda array: struct.pack("<q", 2**63 - 1) in tokens(array)),
        (
            pa.decimal128(38, 2),
            lambda array: (1 - 10**38).to_bytes(16, "little", signed=True) in tokens(array),
        ),
    ],
)
def test_values_are_laid_out_in_every_way(type_: pa.DataType, wanted: Callable[[pa.Array], bool]) -> None:
    found = drawn(columns(type_), lambda array: bool(wanted(array)))
    found.validate(full=True)


def dictionaries(batches: Batches) -> list[list[Any]]:
    return [tokens(batch.column(0).dictionary) for batch in batches if batch.num_rows]


@pytest.mark.parametrize(
    "wanted",
    [
        lambda one, two: len(one) > 1 and one == two,
        lambda one, two: len(one) < len(two) and two[: len(one)] == one,
        lambda one, two: len(one) > 1 and len(two) > 1 and one[0] != two[0],
    ],
    ids=["the same", "delta", "replacement"],
)
def test_dictionaries_change_between_batches(wanted: Callable[[Any, Any], bool]) -> None:
    schema = pa.schema([("a", LABELLED)])
    drawn(
        arrow_values.batches(schema),
        lambda batches: any(wanted(one, two) for one, two in itertools.pairwise(dictionaries(batches))),
    )


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["a"], lambda batches: batches[0].num_rows == 0),
        (["a"], lambda batches: batches[0].num_rows > 100),
        (["a"], lambda batches: len(batches) == 5),
        ([], lambda batches: batches[0].num_rows > 0),
    ],
    ids=["no rows", "many rows", "many batches", "no columns"],
)
def test_batches_have_any_size(names: list[str], wanted: Callable[[Batches], bool]) -> None:
    drawn(arrow_values.batches(pa.schema([(name, pa.int8()) for name in names])), wanted)


# -- what counts as the same ---------------------------------------------------------------------------------


def table(array: pa.Array) -> pa.Table:
    return pa.table({"a": array})


def bits(*numbers: int) -> pa.Array:
    return pa.Array.from_buffers(
        pa.float64(), len(numbers), [None, pa.py_buffer(struct.pack(f"<{len(numbers)}Q", *numbers))]
    )


def labelled(indices: list[int | None], labels: list[int | None]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int8()), pa.array(labels, pa.int8()))


def labelled_records(type_: pa.DataType) -> pa.Array:
    """Return a dictionary of structs with an extension type, whose other types pyarrow forgets to compare."""
    identity = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)], pa.binary(16)))
    records = pa.StructArray.from_arrays([identity, pa.array([1], type_)], ["u", "x"])
    return pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), records)


def union(codes: list[int]) -> pa.Array:
    members = [pa.array([1, 1], pa.int8()), pa.array([1, 1], pa.int8())]
    return pa.UnionArray.from_sparse(pa.array(codes, pa.int8()), members, ["a", "b"], [3, 4])


LIST = pa.list_(pa.int8())


@pytest.mark.parametrize(
    ("put", "read"),
    [
        (pa.array([1, None], pa.int8()), pa.array([1, 0], pa.int8())),
        (pa.array([1, 2], pa.int8()), pa.array([2, 1], pa.int8())),
        (pa.array([0.0]), pa.array([-0.0])),
        (bits(0x7FF8000000000000), bits(0x7FF8000000000001)),
        (pa.array([""]), pa.array([None], pa.string())),
        (pa.array(["a"]), pa.array(["a\0"])),
        (pa.array([[]], LIST), pa.array([None], LIST)),
        (pa.array([[None]], LIST), pa.array([[0]], LIST)),
        (pa.array([[1], [2]], LIST), pa.array([[1, 2], []], LIST)),
        (pa.array([{"a": None}]), pa.array([None], pa.struct([("a", pa.null())]))),
        (labelled([0], [1]), labelled([0], [1, 2])),
        (labelled([0], [1, 1]), labelled([1], [1, 1])),
        (labelled([None], [None]), labelled([0], [None])),
        (union([3, 4]), union([4, 3])),
        (pa.array([1]), pa.array([1], pa.int32())),
        (labelled_records(pa.int8()), labelled_records(pa.uint8())),
    ],
)
def test_tables_that_differ_are_told_apart(put: pa.Array, read: pa.Array) -> None:
    expected = table_tokens(table(put).to_batches(), [0])
    assert difference(table(put), table(put).schema, len(put), expected) is None
    assert difference(table(read), table(put).schema, len(put), expected) is not None


def test_metadata_and_rows_count_too() -> None:
    found = table(pa.array([1]))
    schema = found.schema
    expected = [tokens(pa.array([1]))]
    assert difference(found, schema, 1, expected) is None
    assert difference(found, schema.with_metadata({"k": "v"}), 1, expected) is not None
    assert difference(found, schema.set(0, schema.field(0).with_nullable(False)), 1, expected) is not None
    assert difference(found, schema, 2, [expected[0] * 2]) is not None


def test_layout_does_not_count() -> None:
    array = pa.array([[1], None, [2, 3]], LIST)
    padded = pa.concat_arrays([pa.array([[9, 9]], LIST), array, array]).slice(1, 3)
    found = pa.table({"a": pa.chunked_array([padded.slice(0, 1), padded.slice(1)])})
    assert difference(found, found.schema, 3, [tokens(array)]) is None
    short, long = pa.array([1, 3], pa.int16()), pa.array([1, 2, 5], pa.int16())
    one = pa.RunEndEncodedArray.from_arrays(short, pa.array([7, 8]))
    other = pa.RunEndEncodedArray.from_arrays(long, pa.array([7, 8, 8])).slice(0, 3)
    assert tokens(one) == tokens(other)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, None, -3], pa.int16()),
        pa.array([True, None, False]),
        pa.array(["a", None, "longer than twelve"], pa.string_view()),
        pa.array([b"", None, b"b"], pa.large_binary()),
        pa.array([[1, None], None, []], pa.large_list(pa.int16())),
        pa.array([[1, 2], None, [3, None]], pa.list_(pa.int16(), 2)),
        pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": ""}]),
        pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int16())),
    ],
    ids=lambda array: str(array.type),
)
def test_tokens_say_what_pyarrow_says(values: pa.Array) -> None:
    """A check of the yardstick: by another way than the buffers, sliced and whole."""

    def plain(token: Any, type_: pa.DataType) -> Any:
        if token is None or isinstance(token, bool):
            return token
        if pa.types.is_integer(type_):
            return int.from_bytes(token, "little", signed=True)
        if pa.types.is_string(type_) or pa.types.is_string_view(type_):
            return token.decode()
        if pa.types.is_struct(type_):
            return {
                field.name: plain(part, field.type) for field, part in zip(type_.fields, token, strict=True)
            }
        if pa.types.is_map(type_):
            return [(plain(key, type_.key_type), plain(item, type_.item_type)) for key, item in token]
        return [plain(item, type_.value_type) for item in token] if isinstance(token, tuple) else token

    for array in (values, values.slice(1), values.slice(2), values.slice(0, 0)):
        assert [plain(token, values.type) for token in tokens(array)] == array.to_pylist()
