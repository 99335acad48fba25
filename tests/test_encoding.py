"""Arrow arrays into items and back: exactly, for every type, with nulls anywhere and slices of any kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shmstore.encoding import Items, check, decode, encode
from shmstore.errors import IncompleteFileError, InvalidValueError
from shmstore.layout import Column, plan

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


def column_of(type_: pa.DataType, how: str = "vlen") -> Column:
    return plan(pa.schema([("c", type_)]), lambda _: how).columns[0]


def there_and_back(column: Column, array: pa.Array) -> pa.Array:
    items: dict[str, Items] = dict(encode(column, array))
    for stream in column.streams:
        if stream.role in items:
            values = items[stream.role]
            expected = np.dtype(object) if stream.variable else stream.numpy_dtype
            assert values.dtype == expected
            assert values.shape[1:] == stream.item_shape
            assert stream.role == "chars" or len(values) == len(array)
            assert values.flags.c_contiguous
    if column.streams[0].dtype == "utf8":  # HDF5 takes text and gives bytes
        items["values"] = np.array([text.encode() for text in items["values"]], dtype=object)
    if "offsets" in items:
        items["offsets"] = np.concatenate([np.zeros(1, np.uint64), items["offsets"]])
    return decode(column, array.type, items, len(array))


def assert_exact(found: pa.Array, expected: pa.Array) -> None:
    """Equal to the bit where there is a value, and null where there is none."""
    assert found.type == expected.type
    assert len(found) == len(expected)
    assert found.null_count == expected.null_count
    assert found.is_null().equals(expected.is_null())
    storage, wanted = (
        array.storage if isinstance(array, pa.ExtensionArray) else array for array in (found, expected)
    )
    assert bits(storage) == bits(wanted)


def bits(array: pa.Array) -> Any:
    """Values such that NaNs with other payloads, and zeros of other signs, differ."""
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        inner = bits(array.values.slice(array.offset * size, len(array) * size))
        return [
            inner[row * size : (row + 1) * size] if ok else None
            for row, ok in enumerate(array.is_valid().to_pylist())
        ]
    if pa.types.is_floating(array.type):
        array = array.view({16: pa.uint16(), 32: pa.uint32(), 64: pa.uint64()}[array.type.bit_width])
    elif pa.types.is_temporal(array.type):
        array = array.view({32: pa.int32(), 64: pa.int64()}[array.type.bit_width])
    return array.to_pylist()


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
    assert_exact(there_and_back(column_of(type_), array), array)


@pytest.mark.parametrize(("how", "type_"), STRINGS, ids=str)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_strings_and_bytes_come_back(how: str, type_: pa.DataType, data: st.DataObject) -> None:
    blob = how.startswith("fixed:") and "binary" in str(type_)
    array = data.draw(arrays(type_, 4 if blob else None))
    column = column_of(type_, how)
    check(column, array)
    assert_exact(there_and_back(column, array), array)


def test_nothing_and_nothing_but_nulls_come_back_for_every_type() -> None:
    for how, type_ in [*(("vlen", type_) for type_ in PLAIN + NESTED), *STRINGS]:
        column = column_of(type_, how)
        for array in (pa.nulls(0, type_), pa.nulls(5, type_), pa.nulls(9, type_).slice(3, 4)):
            check(column, array)  # nothing of these is ever refused
            assert_exact(there_and_back(column, array), array)


# -- values as others see them ---------------------------------------------------------------------------


def test_nulls_are_nan_not_a_time_or_zero_for_a_plain_reader() -> None:
    garbage = pa.py_buffer(np.array([1, 2, 3], np.int64))
    bitmap = pa.py_buffer(b"\x05")
    for type_, hidden in (
        (pa.int64(), 0),
        (pa.timestamp("ns"), -(2**63)),
        (pa.uint64(), 0),
    ):
        items = encode(column_of(type_), pa.Array.from_buffers(type_, 3, [bitmap, garbage]))
        assert items["values"].tolist() == [1, hidden, 3]
        assert items["validity"].tolist() == [True, False, True]
    values = encode(column_of(pa.float64()), pa.array([1.0, None, 3.0]))["values"]
    assert np.isnan(values).tolist() == [False, True, False]
    assert encode(column_of(pa.bool_()), pa.array([True, None]))["values"].tolist() == [True, False]


def test_a_null_list_hides_its_items_for_a_plain_reader() -> None:
    type_ = pa.list_(pa.float32(), 2)
    array = pa.Array.from_buffers(
        type_, 3, [pa.py_buffer(b"\x05")], children=[pa.array([1, 2, 3, 4, None, 6], pa.float32())]
    )
    items = encode(column_of(type_), array)
    assert np.isnan(items["values"]).tolist() == [[False, False], [True, True], [True, False]]
    assert items["validity"].tolist() == [True, False, True]
    assert items["validity-1"].tolist() == [[True, True], [True, True], [False, True]]


def test_special_floats_keep_their_bits_beside_nulls() -> None:
    raw = np.array([0x7FF8000000000123, 0xFFF0000000000001, 1 << 63, 0x7FF0000000000000, 1], np.uint64)
    array = pa.concat_arrays([pa.array(raw).view(pa.float64()), pa.array([None], pa.float64())])
    values = encode(column_of(pa.float64()), array)["values"]
    assert values.view(np.uint64)[:5].tolist() == raw.tolist()


def test_without_nulls_nothing_is_copied_and_no_mask_made() -> None:
    array = pa.array(np.arange(100), pa.int64()).slice(10, 50)
    items = encode(column_of(pa.int64()), array)
    assert set(items) == {"values"}
    assert items["values"].ctypes.data == array.buffers()[1].address + 80
    frames = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(60, dtype="u2")), 6).slice(2, 5)
    items = encode(column_of(frames.type), frames)
    assert items["values"].shape == (5, 6)
    assert items["values"].ctypes.data == frames.values.buffers()[1].address + 24
    text = pa.array(["ab", "cde", "", "f"], pa.large_string()).slice(1, 3)
    items = encode(column_of(text.type, "packed"), text)
    assert items["chars"].tobytes() == b"cdef"
    assert items["chars"].ctypes.data == text.buffers()[2].address + 2


def test_offsets_go_on_where_the_column_stands() -> None:
    column = column_of(pa.string(), "packed")
    items = encode(column, pa.array(["ab", None, "cde"]), chars_before=10)
    assert items["offsets"].tolist() == [12, 12, 15]
    assert items["chars"].tobytes() == b"abcde"


def test_bytes_under_a_null_are_neither_stored_nor_held_against_the_batch() -> None:
    """Arrow allows anything there; a slice of somebody's computation often has it."""
    hidden = pa.Array.from_buffers(
        pa.string(),
        3,
        [pa.py_buffer(b"\x05"), pa.py_buffer(np.array([0, 1, 8, 9], "i4")), pa.py_buffer(b"aHIDDEN\0b")],
    )
    assert hidden.to_pylist() == ["a", None, "b"]
    items = encode(column_of(pa.string(), "packed"), hidden)
    assert items["chars"].tobytes() == b"ab"
    for how in ("packed", "vlen", "fixed:2"):
        column = column_of(pa.string(), how)
        check(column, hidden)
        assert there_and_back(column, hidden).to_pylist() == ["a", None, "b"]


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
    assert there_and_back(packed, array).equals(array)


def test_a_nul_in_bytes_is_data() -> None:
    array = pa.array([b"\0\0", b"a\0", b"\0b"])
    for how in ("vlen", "packed", "fixed:2"):
        check(column_of(pa.binary(), how), array)
        assert there_and_back(column_of(pa.binary(), how), array).equals(array)


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
        encode(column, array)


def test_bytes_shorter_than_their_place_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="takes exactly 4"):
        check(column_of(pa.binary(), "fixed:4"), pa.array([b"abcd", b"abc"]))


@pytest.mark.parametrize(
    "damage",
    [
        {"offsets": np.array([0, 2, 1], np.uint64)},
        {"offsets": np.array([0, 2], np.uint64)},
        {"offsets": np.array([0, 2, 2**63], np.uint64)},
        {"chars": np.zeros(1, np.uint8)},
        {"chars": np.frombuffer(b"\xff\xfe\xfd", np.uint8)},
    ],
)
def test_damaged_strings_are_said_to_be_that(damage: dict[str, Items]) -> None:
    items: dict[str, Items] = {
        "offsets": np.array([0, 2, 3], np.uint64),
        "chars": np.frombuffer(b"abc", np.uint8),
    }
    column = column_of(pa.string(), "packed")
    assert decode(column, pa.string(), items, 2).to_pylist() == ["ab", "c"]
    with pytest.raises(IncompleteFileError, match="'c' is damaged"):
        decode(column, pa.string(), items | damage, 2)


def test_too_few_values_are_said_to_be_that() -> None:
    with pytest.raises(IncompleteFileError, match="'c' is damaged"):
        decode(column_of(pa.int64()), pa.int64(), {"values": np.zeros(2, np.int64)}, 3)
    with pytest.raises(IncompleteFileError, match="'c' is damaged"):
        decode(column_of(pa.int64()), pa.int64(), {}, 3)
    with pytest.raises(IncompleteFileError, match="'c' is damaged"):
        decode(column_of(pa.bool_()), pa.bool_(), {"values": np.zeros(2, np.bool_)}, 3)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
@example(8, 8, 8)
def test_masks_of_any_slice_are_right(rows: int, start: int, stop: int) -> None:
    values = [None if row % 3 == 0 else row for row in range(rows)]
    array = pa.array(values, pa.int32())[start:stop]
    assert there_and_back(column_of(pa.int32()), array).to_pylist() == values[start:stop]
