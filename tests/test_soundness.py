"""What holds together passes, what does not is refused; whatever way the quick look takes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from shmstore.soundness import check_array, check_batch

#: Below and above the number of rows from which on the quick look is taken.
SIZES = [3, 1023, 1024, 3000]
TEXTS = [pa.string(), pa.large_string()]
CODES = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]


def text(rows: int, type_: pa.DataType, chars: bytes, far: int = 0) -> pa.Array:
    """Text in which every row but the last is ``x``, and the last ``chars``."""
    wide = np.int64 if pa.types.is_large_string(type_) else np.int32
    own = np.arange(rows + 1, dtype=wide)
    own[-1] = rows - 1 + len(chars)
    if far:
        own[far] = 2**30
    buffers = [None, pa.py_buffer(own), pa.py_buffer(b"x" * (rows - 1) + chars)]
    return pa.Array.from_buffers(type_, rows, buffers)


def codes(rows: int, type_: pa.DataType, labels: int, last: int, null: bool = False) -> pa.Array:
    """Codes that are 0 but for the last, among so many labels."""
    own = np.zeros(rows, type_.to_pandas_dtype())
    own[-1:] = np.array([last]).astype(own.dtype)
    valid = None
    if null:
        bits = np.ones(rows, np.bool_)
        bits[-1] = False
        valid = pa.py_buffer(np.packbits(bits, bitorder="little"))
    dictionary = pa.array([str(number) for number in range(labels)])
    buffers = [valid, pa.py_buffer(own)]
    return pa.DictionaryArray.from_buffers(pa.dictionary(type_, pa.string()), rows, buffers, dictionary)


def refuse(array: pa.Array) -> None:
    with pytest.raises(pa.ArrowInvalid):
        array.validate(full=True)
    with pytest.raises(pa.ArrowInvalid):
        check_array(array)
    with pytest.raises(pa.ArrowInvalid):
        check_batch(pa.record_batch([pa.nulls(len(array)), array], ["sound", "not"]))


def accept(array: pa.Array) -> None:
    array.validate(full=True)
    check_array(array)
    check_batch(pa.record_batch({"c": array}))


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("type_", TEXTS, ids=str)
@pytest.mark.parametrize("chars", [b"", b"y", b"\x7f\0", "Grüße 温度".encode()])
def test_text_passes(rows: int, type_: pa.DataType, chars: bytes) -> None:
    accept(text(rows, type_, chars))
    accept(text(rows + 5, type_, chars)[5:])


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("type_", TEXTS, ids=str)
@pytest.mark.parametrize("chars", [b"\x80", b"\xff\xfe", "ü".encode()[:1], b"\xed\xa0\x80"])
def test_what_is_no_utf8_is_refused(rows: int, type_: pa.DataType, chars: bytes) -> None:
    refuse(text(rows, type_, chars))
    refuse(text(rows + 5, type_, chars)[5:])


@pytest.mark.parametrize("type_", TEXTS, ids=str)
def test_half_a_letter_at_the_border_of_two_texts_is_refused(type_: pa.DataType) -> None:
    letters = text(3000, type_, "üü".encode()[:3])  # the last ends amid its second letter
    refuse(letters)


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("type_", TEXTS, ids=str)
def test_what_lies_outside_a_slice_does_not_matter(rows: int, type_: pa.DataType) -> None:
    accept(text(rows + 1, type_, b"\xff")[:rows])


@pytest.mark.parametrize("rows", SIZES)
def test_what_lies_under_a_null_is_no_text(rows: int) -> None:
    broken = text(rows, pa.string(), b"\xff")
    bits = np.ones(rows, np.bool_)
    bits[-1] = False
    valid = pa.py_buffer(np.packbits(bits, bitorder="little"))
    accept(pa.Array.from_buffers(broken.type, rows, [valid, *broken.buffers()[1:]]))


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("type_", TEXTS, ids=str)
@pytest.mark.parametrize("place", [1, -2])
def test_offsets_beyond_the_text_are_refused(rows: int, type_: pa.DataType, place: int) -> None:
    refuse(text(rows, type_, b"y", place))


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("type_", TEXTS, ids=str)
@pytest.mark.parametrize("missing", [1, 2])
def test_buffers_that_are_missing_are_refused(rows: int, type_: pa.DataType, missing: int) -> None:
    buffers = text(rows, type_, b"y").buffers()
    buffers[missing] = None
    try:
        array = pa.Array.from_buffers(type_, rows, buffers)
    except pa.ArrowInvalid:
        return  # newer Arrow does not even make it
    refuse(array)


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("type_", CODES, ids=str)
def test_codes_within_the_dictionary_pass(rows: int, type_: pa.DataType) -> None:
    accept(codes(rows, type_, 3, 2))
    accept(codes(rows + 5, type_, 3, 0)[5:])
    accept(codes(rows + 1, type_, 3, 3)[:rows])


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("type_", CODES, ids=str)
@pytest.mark.parametrize("code", [3, 100, -1])
def test_codes_beyond_it_are_refused(rows: int, type_: pa.DataType, code: int) -> None:
    refuse(codes(rows, type_, 3, code))
    refuse(codes(rows + 5, type_, 3, code)[5:])


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("labels", [0, 3])
def test_what_stands_under_a_null_is_no_code(rows: int, labels: int) -> None:
    accept(codes(rows, pa.int8(), max(labels, 1), 100, null=True))
    nothing = codes(rows, pa.int8(), labels, 100, null=True)
    if not labels:
        refuse(nothing)  # all others are 0, of which there is no label
    everything = pa.DictionaryArray.from_buffers(
        nothing.type, rows, [pa.py_buffer(bytes(rows)), nothing.buffers()[1]], nothing.dictionary
    )
    accept(everything)


@pytest.mark.parametrize("rows", SIZES)
def test_a_dictionary_that_is_broken_itself_is_refused(rows: int) -> None:
    own = pa.array(np.zeros(rows, np.int8)).buffers()
    labels = text(3, pa.string(), b"\xff")
    refuse(pa.DictionaryArray.from_buffers(pa.dictionary(pa.int8(), pa.string()), rows, own, labels))
    inner = codes(3, pa.int8(), 3, 5)
    refuse(pa.DictionaryArray.from_buffers(pa.dictionary(pa.int8(), inner.type), rows, own, inner))


@pytest.mark.parametrize("rows", SIZES)
def test_what_lies_within_other_types_is_looked_at(rows: int) -> None:
    for inner in (text(rows, pa.string(), b"\xff"), codes(rows, pa.int8(), 3, 5)):
        refuse(pa.Array.from_buffers(pa.struct([("a", inner.type)]), rows, [None], children=[inner]))
        refuse(pa.ExtensionArray.from_storage(pa.opaque(inner.type, "t", "v"), inner))
        offsets = pa.py_buffer(np.array([0, rows], np.int32))
        refuse(pa.Array.from_buffers(pa.list_(inner.type), 1, [None, offsets], children=[inner]))


@pytest.mark.parametrize("rows", SIZES)
def test_every_column_of_a_batch_is_looked_at(rows: int) -> None:
    good, bad = text(rows, pa.string(), b"y"), text(rows, pa.string(), b"\xff")
    check_batch(pa.record_batch([good] * 3, list("abc")))
    for place in range(3):
        with pytest.raises(pa.ArrowInvalid):
            check_batch(
                pa.record_batch([bad if number == place else good for number in range(3)], list("abc"))
            )


def test_nothing_is_sound() -> None:
    for type_ in (*TEXTS, pa.dictionary(pa.int8(), pa.string())):
        accept(pa.array([], type_))
    check_batch(pa.record_batch([], pa.schema([])))
