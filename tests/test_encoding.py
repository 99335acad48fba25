"""Arrow arrays into items and back: exactly, for every type, with nulls anywhere and slices of any kind."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from properties import arrow_types, arrow_values
from properties.exactness import tokens
from stored_items import StoredItems, column_of, intake_of, physical

from shmstore.dictionaries import Dictionaries
from shmstore.encoding import Intake, check, encode
from shmstore.errors import InvalidValueError

PLAIN = [
    pa.int8(),
    pa.int16(),
    pa.int32(),
    pa.int64(),
    pa.uint8(),
    pa.uint16(),
    pa.uint32(),
    pa.uint64(),
    pa.float16(),
    pa.float32(),
    pa.float64(),
    pa.bool_(),
    pa.date32(),
    pa.date64(),
    pa.time32("s"),
    pa.time64("ns"),
    pa.timestamp("ns"),
    pa.timestamp("ms", "UTC"),
    pa.duration("us"),
    pa.binary(3),
]
NESTED = [
    *(
        pa.list_(type_, 3)
        for type_ in (pa.int16(), pa.float64(), pa.bool_(), pa.timestamp("s"), pa.binary(2))
    ),
    pa.list_(pa.list_(pa.int8(), 2), 3),
    pa.list_(pa.list_(pa.list_(pa.float32(), 2), 1), 2),
    pa.fixed_shape_tensor(pa.uint16(), [2, 3]),
    pa.fixed_shape_tensor(pa.float32(), [2, 2, 2], dim_names=["a", "b", "c"], permutation=[2, 0, 1]),
]
STRINGS = [
    *((how, type_) for how in ("vlen", "packed") for type_ in (pa.string(), pa.large_string(), pa.binary())),
    *((how, type_) for how in ("vlen", "packed") for type_ in (pa.large_binary(), pa.string_view())),
    ("packed", pa.binary_view()),
    ("fixed:24", pa.string()),
    ("fixed:24", pa.large_string()),
    ("fixed:4", pa.binary()),
    ("fixed:4", pa.large_binary()),
]


MASK = "_arrow/validity/0"


def there_and_back(type_: pa.DataType, how: str, *arrays: pa.Array) -> list[pa.Array]:
    """Take arrays in one after the other, and return each as it is read."""
    stored, ends = StoredItems(type_, how), [0]
    for array in arrays:
        stored.append(array)
        ends.append(ends[-1] + len(array))
    return [stored.read(start, stop) for start, stop in itertools.pairwise(ends)]


def assert_exact(type_: pa.DataType, how: str, *arrays: pa.Array) -> None:
    """Equal to the bit where there is a value, and null where there is none."""
    for found, array in zip(there_and_back(type_, how, *arrays), arrays, strict=True):
        expected = physical(array)
        found.validate(full=True)
        assert found.type.equals(expected.type, check_metadata=True)
        assert tokens(found) == tokens(expected)


@st.composite
def arrays(draw: st.DrawFn, type_: pa.DataType, fixed_bytes: int | None = None) -> pa.Array:
    """An array of the type as it could come: any bits, any nulls, perhaps a slice of a larger one."""
    rows = draw(st.integers(0, 20))
    array = _array(draw, type_, rows, fixed_bytes)
    start = draw(st.integers(0, rows))
    return array.slice(start, draw(st.integers(0, rows - start)))


def _array(draw: st.DrawFn, type_: pa.DataType, rows: int, fixed_bytes: int | None) -> pa.Array:
    if isinstance(type_, pa.FixedShapeTensorType):
        return pa.ExtensionArray.from_storage(type_, _array(draw, type_.storage_type, rows, None))
    mask = draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=rows, max_size=rows)))
    bitmap = None if mask is None else pa.py_buffer(np.packbits(np.array(mask, bool), bitorder="little"))
    if pa.types.is_fixed_size_list(type_):
        inner = _array(draw, type_.value_type, rows * type_.list_size, None)
        return pa.Array.from_buffers(type_, rows, [bitmap], children=[inner])
    if not (pa.types.is_primitive(type_) or pa.types.is_fixed_size_binary(type_)):
        width = fixed_bytes
        texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
        blobs = st.binary(min_size=width or 0, max_size=8 if width is None else width)
        of_text = pa.types.is_string(type_) or pa.types.is_large_string(type_) or type_ == pa.string_view()
        values = draw(st.lists(texts if of_text else blobs, min_size=rows, max_size=rows))
        return pa.array(
            [value if mask is None or mask[row] else None for row, value in enumerate(values)], type_
        )
    size = (rows * type_.bit_width + 7) // 8
    raw = draw(st.binary(min_size=size, max_size=size))
    return pa.Array.from_buffers(type_, rows, [bitmap, pa.py_buffer(raw)])


@pytest.mark.parametrize("type_", PLAIN + NESTED, ids=str)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_fixed_width_values_come_back_to_the_bit(type_: pa.DataType, data: st.DataObject) -> None:
    array = data.draw(arrays(type_))
    assert_exact(type_, "vlen", array, array.slice(1))


@pytest.mark.parametrize(("how", "type_"), STRINGS, ids=str)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_strings_and_bytes_come_back(how: str, type_: pa.DataType, data: st.DataObject) -> None:
    blob = how.startswith("fixed:") and "binary" in str(type_)
    array = data.draw(arrays(type_, 4 if blob else None))
    column = column_of(type_, how)
    check(column, array)
    assert_exact(type_, how, array, array.slice(1))


@pytest.mark.parametrize("kind", [*arrow_types.LEAVES, *arrow_types.NESTED])
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_batches_of_every_kind_of_type_come_back(kind: str, data: st.DataObject) -> None:
    """Dictionaries stay, grow or change between the batches; all else goes on where it stood."""
    if kind in arrow_types.LEAVES:
        type_ = data.draw(arrow_types.LEAVES[kind])
    else:
        type_ = data.draw(arrow_types.NESTED[kind](arrow_types.types(1)))
    batches = data.draw(arrow_values.batches(pa.schema([("c", type_)]), 3))
    assert_exact(type_, "packed", *[batch.column(0) for batch in batches])


def test_nothing_and_nothing_but_nulls_come_back_for_every_type() -> None:
    for how, type_ in [*(("vlen", type_) for type_ in PLAIN + NESTED), *STRINGS]:
        column = column_of(type_, how)
        for array in (pa.nulls(0, type_), pa.nulls(5, type_), pa.nulls(9, type_).slice(3, 4)):
            check(column, physical(array))  # nothing of these is ever refused
            assert_exact(type_, how, array)


# -- values as others see them ---------------------------------------------------------------------------


def test_nulls_are_nan_not_a_time_or_zero_for_a_plain_reader() -> None:
    garbage = pa.py_buffer(np.array([1, 2, 3], np.int64))
    bitmap = pa.py_buffer(b"\x05")
    for type_, hidden in (
        (pa.int64(), 0),
        (pa.timestamp("ns"), -(2**63)),
        (pa.uint64(), 0),
    ):
        items = intake_of(column_of(type_), pa.Array.from_buffers(type_, 3, [bitmap, garbage]))
        assert items["c"].tolist() == [1, hidden, 3]
        assert items[MASK].tolist() == [True, False, True]
    values = intake_of(column_of(pa.float64()), pa.array([1.0, None, 3.0]))["c"]
    assert np.isnan(values).tolist() == [False, True, False]
    assert intake_of(column_of(pa.bool_()), pa.array([True, None]))["c"].tolist() == [True, False]


def test_a_null_list_hides_its_items_for_a_plain_reader() -> None:
    type_ = pa.list_(pa.float32(), 2)
    array = pa.Array.from_buffers(
        type_, 3, [pa.py_buffer(b"\x05")], children=[pa.array([1, 2, 3, 4, None, 6], pa.float32())]
    )
    items = intake_of(column_of(type_), array)
    assert np.isnan(items["c"]).tolist() == [[False, False], [True, True], [True, False]]
    assert items[MASK].tolist() == [True, False, True]
    assert items[f"{MASK}_1"].tolist() == [[True, True], [True, True], [False, True]]


def test_special_floats_keep_their_bits_beside_nulls() -> None:
    raw = np.array([0x7FF8000000000123, 0xFFF0000000000001, 1 << 63, 0x7FF0000000000000, 1], np.uint64)
    array = pa.concat_arrays([pa.array(raw).view(pa.float64()), pa.array([None], pa.float64())])
    values = intake_of(column_of(pa.float64()), array)["c"]
    assert values.view(np.uint64)[:5].tolist() == raw.tolist()


def test_without_nulls_nothing_is_copied_and_no_mask_made() -> None:
    array = pa.array(np.arange(100), pa.int64()).slice(10, 50)
    items = intake_of(column_of(pa.int64()), array)
    assert set(items) == {"c"}
    assert items["c"].ctypes.data == array.buffers()[1].address + 80
    frames = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(60, dtype="u2")), 6).slice(2, 5)
    items = intake_of(column_of(frames.type), frames)
    assert items["c"].shape == (5, 6)
    assert items["c"].ctypes.data == frames.values.buffers()[1].address + 24
    text = pa.array(["ab", "cde", "", "f"], pa.large_string()).slice(1, 3)
    items = intake_of(column_of(text.type, "packed"), text)
    assert items["c/CHARS"].tobytes() == b"cdef"
    assert items["c/CHARS"].ctypes.data == text.buffers()[2].address + 2


def test_values_of_lists_structs_and_codes_are_not_copied_either() -> None:
    numbers = pa.array(np.arange(20), pa.int64())
    address = numbers.buffers()[1].address
    for type_, array, path, first in (
        (pa.list_(pa.int64()), pa.ListArray.from_arrays([3, 5, 9], numbers), "c/VALUES", 3),
        (pa.struct([("a", pa.int64())]), pa.StructArray.from_arrays([numbers], ["a"]).slice(4), "c/a", 4),
    ):
        assert intake_of(column_of(type_), array)[path].ctypes.data == address + 8 * first
    views = pa.ListViewArray.from_arrays([5, 7], [2, 3], numbers)  # they lie one behind the other
    assert intake_of(column_of(views.type), views)["c/VALUES"].ctypes.data == address + 40
    codes = pa.array([1, 0, 1], pa.int32())
    labels = pa.DictionaryArray.from_arrays(codes, ["x", "y"])
    assert intake_of(column_of(labels.type), labels)["c"].ctypes.data == codes.buffers()[1].address


def test_offsets_go_on_where_the_column_stands() -> None:
    node = column_of(pa.string(), "packed").node
    intake = Intake(3, {"c/CHARS": 10})
    encode(node, pa.array(["ab", None, "cde"]), intake)
    assert intake.items["c/OFFSETS"].tolist() == [12, 12, 15]
    assert intake.items["c/CHARS"].tobytes() == b"abcde"
    assert intake.counts == {"": 3, "c/CHARS": 5}
    intake = Intake(2, {"c/VALUES": 100})
    encode(column_of(pa.list_(pa.int8())).node, pa.array([[1, 2], [3]], pa.list_(pa.int8())), intake)
    assert intake.items["c/OFFSETS"].tolist() == [102, 103]


def test_items_under_null_lists_are_nobodys() -> None:
    offsets, values = pa.py_buffer(np.array([0, 2, 4, 5], "i4")), pa.array([1, 2, 3, 4, 5], pa.int8())
    hidden = pa.Array.from_buffers(
        pa.list_(pa.int8()), 3, [pa.py_buffer(b"\x05"), offsets], children=[values]
    )
    items = intake_of(column_of(hidden.type), hidden)
    assert items["c/OFFSETS"].tolist() == [2, 2, 3]
    assert items["c/VALUES"].tolist() == [1, 2, 5]
    assert items["c/MASK"].tolist() == [True, False, True]


def test_list_views_that_overlap_are_written_out() -> None:
    views = pa.ListViewArray.from_arrays([2, 0, 1], [2, 2, 0], pa.array([1, 2, 3, 4], pa.int8()))
    items = intake_of(column_of(views.type), views)
    assert items["c/VALUES"].tolist() == [3, 4, 1, 2]
    assert items["c/OFFSETS"].tolist() == [2, 4, 4]


def test_decimals_are_text() -> None:
    values = pa.array(["-12.50", None, "0.01"]).cast(pa.decimal128(10, 2))
    items = intake_of(column_of(values.type), values)
    assert items["c"].tolist() == [b"-12.50", b"", b"0.01"]


def test_a_dense_union_keeps_only_what_is_picked() -> None:
    union = pa.UnionArray.from_dense(
        pa.array([1, 0, 1], pa.int8()),
        pa.array([2, 1, 0], pa.int32()),
        [pa.array([10, 11, 12]), pa.array(["x", "y", "z"])],
    )
    items = intake_of(column_of(union.type), union)
    assert items["c/TYPES"].tolist() == [1, 0, 1]
    assert items["c/OFFSETS"].tolist() == [0, 0, 1]
    assert items["c/0"].tolist() == [11]
    assert items["c/1/CHARS"].tobytes() == b"zx"


def test_runs_are_cut_to_the_slice_and_counted_over_the_column() -> None:
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([3, 5, 9], pa.int16()), pa.array(["a", "b", "c"]))
    intake = Intake(5, {"": 100, "c/VALUES": 7})
    encode(column_of(runs.type).node, runs.slice(2, 5), intake)
    assert intake.items["c/RUN_ENDS"].tolist() == [101, 103, 105]
    assert intake.items["c/VALUES/OFFSETS"].tolist() == [1, 2, 3]
    assert intake.counts["c/VALUES"] == 3


# -- dictionaries ----------------------------------------------------------------------------------------


def labelled(labels: list[str | None], *codes: int | None) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8()), pa.array(labels, pa.string()))


DICTIONARY = pa.dictionary(pa.int8(), pa.string())


def test_a_dictionary_is_written_once_grows_in_place_and_is_found_again() -> None:
    stored = StoredItems(DICTIONARY, "packed")
    for array in (
        labelled(["a", "b"], 0, 1),
        labelled(["a", "b"], None, 1),
        labelled(["a", "b", "c"], 2),  # grown: one label more
        labelled(["x"], 0, 0),
        labelled(["a", "b", "c"], 1),  # known
        labelled(["a", "b"], 0),  # known too
    ):
        stored.append(array)
    items = stored.items_by_path
    assert items["CATEGORIES/c/CHARS"].tobytes() == b"abcx"
    assert items["c"].tolist() == [0, 1, -1, 1, 2, 3, 3, 1, 0]
    (segments,) = (items[stream.path] for stream in stored.column.streams if stream.role == "segments")
    assert segments.tolist() == [[0, 0, 0, 2], [4, 4, 0, 3], [5, 5, 3, 1], [7, 7, 0, 3], [8, 8, 0, 2]]


def test_a_batch_that_is_not_taken_leaves_its_dictionary_unknown() -> None:
    column = column_of(DICTIONARY, "packed")
    known = {"c": Dictionaries()}
    for accepted, chars in ((False, b"ab"), (True, b"ab"), (False, None)):
        intake = Intake(1, {}, known)
        encode(column.node, labelled(["a", "b"], 0), intake)
        found = intake.items.get("CATEGORIES/c/CHARS")
        assert (found if found is None else found.tobytes()) == chars
        if accepted:
            intake.accept()


def test_codes_of_any_index_type_are_wide_enough_for_all_dictionaries() -> None:
    labels = [[f"{first + number}" for number in range(100)] for first in range(0, 1000, 100)]
    assert_exact(DICTIONARY, "packed", *[labelled(list(part), 99, None, 0) for part in labels])


def test_bytes_under_a_null_are_neither_stored_nor_held_against_the_batch() -> None:
    """Arrow allows anything there; a slice of somebody's computation often has it."""
    hidden = pa.Array.from_buffers(
        pa.string(),
        3,
        [pa.py_buffer(b"\x05"), pa.py_buffer(np.array([0, 1, 8, 9], "i4")), pa.py_buffer(b"aHIDDEN\0b")],
    )
    assert hidden.to_pylist() == ["a", None, "b"]
    items = intake_of(column_of(pa.string(), "packed"), hidden)
    assert items["c/CHARS"].tobytes() == b"ab"
    for how in ("packed", "vlen", "fixed:2"):
        check(column_of(pa.string(), how), hidden)
        (found,) = there_and_back(pa.string(), how, hidden)
        assert found.to_pylist() == ["a", None, "b"]


# -- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["vlen", "fixed:10"])
@pytest.mark.parametrize("value", ["\0", "a\0", "a\0b"])
def test_a_nul_is_refused_where_it_would_end_the_string(how: str, value: str) -> None:
    array = pa.array(["fine", value, None])
    with pytest.raises(InvalidValueError, match="'c' holds a string with a NUL") as caught:
        check(column_of(pa.string(), how), array)
    assert "strings='packed'" in str(caught.value)
    check(column_of(pa.string(), how), array.slice(0, 1))
    packed = column_of(pa.string(), "packed")
    check(packed, array)
    assert there_and_back(pa.string(), "packed", array)[0].equals(array)


def test_a_nul_in_bytes_is_data() -> None:
    array = pa.array([b"\0\0", b"a\0", b"\0b"])
    for how in ("vlen", "packed", "fixed:2"):
        check(column_of(pa.binary(), how), array)
        assert there_and_back(pa.binary(), how, array)[0].equals(array)


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.string_view(), pa.binary()])
def test_a_value_longer_than_its_place_is_refused(type_: pa.DataType) -> None:
    column = column_of(type_, "fixed:4")
    array = pa.array(["üü", "abcd", None, "abcde"], type_)
    with pytest.raises(InvalidValueError, match="5 bytes, longer than its fixed:4"):
        check(column, array)
    check(column, array.slice(0, 3))
    with pytest.raises(InvalidValueError, match="longer"):
        check(column_of(type_, "fixed:3"), array.slice(0, 1))  # bytes count, not characters
    with pytest.raises(InvalidValueError, match="longer"):
        encode(column.node, array, Intake(len(array), {}))


def test_bytes_shorter_than_their_place_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="takes exactly 4"):
        check(column_of(pa.binary(), "fixed:4"), pa.array([b"abcd", b"abc"]))


WITHIN: list[tuple[Any, Any]] = [
    (pa.struct([("a", pa.string())]), lambda text: pa.StructArray.from_arrays([text], ["a"])),
    (
        pa.dictionary(pa.int8(), pa.string()),
        lambda text: pa.DictionaryArray.from_arrays(pa.array(range(len(text)), pa.int8()), text),
    ),
    (
        pa.opaque(pa.string(), "odd", "nobody"),
        lambda text: pa.ExtensionArray.from_storage(pa.opaque(pa.string(), "odd", "nobody"), text),
    ),
]


@pytest.mark.parametrize(("type_", "wrap"), WITHIN, ids=["struct", "dictionary", "extension"])
def test_strings_within_are_looked_at_too(type_: pa.DataType, wrap: Any) -> None:
    for how, text in (("vlen", "a\0b"), ("fixed:4", "abcde")):
        with pytest.raises(InvalidValueError, match="'c' holds a"):
            check(column_of(type_, how), wrap(pa.array([text])))
        check(column_of(type_, "packed"), wrap(pa.array([text])))
    check(column_of(type_, "fixed:4"), wrap(pa.array(["abcd"])))


@pytest.mark.parametrize(
    "array",
    [
        pa.Array.from_buffers(
            pa.list_(pa.int8()),
            2,
            [None, pa.py_buffer(np.array([0, 5, 2], "i4"))],
            children=[pa.array([1, 2, 3], "int8")],
        ),
        pa.DictionaryArray.from_arrays(pa.array([0, 7], pa.int8()), pa.array(["a"]), safe=False),
        pa.DictionaryArray.from_arrays(pa.array([0, -1] * 5000, pa.int8()), pa.array(["a"]), safe=False),
        pa.Array.from_buffers(
            pa.struct([("s", pa.string())]),
            1,
            [None],
            children=[
                pa.Array.from_buffers(
                    pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], "i4")), pa.py_buffer(b"\xff")]
                )
            ],
        ),
        pa.Array.from_buffers(
            pa.dense_union([pa.field("a", pa.int8())]),
            1,
            [None, pa.py_buffer(b"\0"), pa.py_buffer(np.array([3], "i4"))],
            children=[pa.array([1], pa.int8())],
        ),
    ],
    ids=["list", "code", "many codes", "text", "union"],
)
def test_an_array_that_is_damaged_is_refused(array: pa.Array) -> None:
    with pytest.raises(InvalidValueError, match="column 'c' is damaged") as caught:
        check(column_of(array.type, "packed"), array)
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
@example(8, 8, 8)
def test_masks_of_any_slice_are_right(rows: int, start: int, stop: int) -> None:
    values = [None if row % 3 == 0 else row for row in range(rows)]
    array = pa.array(values, pa.int32())[start:stop]
    assert there_and_back(pa.int32(), "vlen", array)[0].to_pylist() == values[start:stop]
