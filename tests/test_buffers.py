"""Arrow's buffers as numpy arrays: the right bits of any slice, as views wherever nothing has to change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shmstore import buffers

TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()]


@settings(deadline=None)
@given(
    values=st.lists(st.none() | st.booleans(), max_size=40), start=st.integers(0, 40), stop=st.integers(0, 40)
)
@example([None] * 8, 0, 8)
@example([True] * 17, 8, 16)
def test_bits_of_any_slice(values: list[bool | None], start: int, stop: int) -> None:
    array = pa.array(values, pa.bool_())[start:stop]
    expected = values[start:stop]
    valid = buffers.validity(array)
    assert valid.tolist() == [value is not None for value in expected]
    assert buffers.boolean_items(array)[valid].tolist() == [value for value in expected if value is not None]
    again = buffers.bitmap(valid)
    assert (again is None) == (None not in expected)
    rebuilt = pa.Array.from_buffers(pa.int8(), len(array), [again, pa.py_buffer(bytes(len(array)))])
    assert rebuilt.is_valid().to_pylist() == valid.tolist()


def test_a_mask_of_nothing_and_of_nulls() -> None:
    assert buffers.validity(pa.nulls(3)).tolist() == [False] * 3
    assert buffers.bitmap(None) is None
    nested = buffers.bitmap(np.array([[True, False], [True, True]]))
    assert nested is not None
    assert nested.to_pybytes() == b"\x0d"


def test_fixed_values_are_a_view() -> None:
    array = pa.array(range(10), pa.int16()).slice(3, 4)
    items = buffers.fixed_items(array, np.dtype("<i2"))
    assert items.tolist() == [3, 4, 5, 6]
    assert items.ctypes.data == array.buffers()[1].address + 6
    assert buffers.fixed_items(array.slice(0, 0), np.dtype("<i2")).shape == (0,)


@pytest.mark.parametrize(
    "type_", [pa.list_(pa.int8()), pa.large_list(pa.int8()), pa.map_(pa.int8(), pa.int8())], ids=str
)
def test_offsets_of_a_slice_are_a_view(type_: pa.DataType) -> None:
    values: Any = [[(1, 1)], [], [(2, 2), (3, 3)]] if pa.types.is_map(type_) else [[1], [], [2, 3]]
    array = pa.array(values, type_).slice(1)
    found = buffers.offsets_of(array)
    assert found.tolist() == [1, 1, 3]
    assert found.ctypes.data == array.buffers()[1].address + found.itemsize
    assert buffers.offsets_of(array.slice(0, 0)).tolist() == [0]


@pytest.mark.parametrize("type_", TEXTS, ids=str)
def test_text_of_any_spelling_is_large_binary(type_: pa.DataType) -> None:
    array = pa.array(["ab", None, "", "a text that is too long for a view"], type_).slice(1)
    flat = buffers.large_binary(array)
    assert flat.type == pa.large_binary()
    assert flat.to_pylist() == [None, b"", b"a text that is too long for a view"]
    assert buffers.used_chars(flat).tobytes() == b"a text that is too long for a view"
    assert buffers.used_chars(flat.slice(0, 0)).size == 0
    if "large" in str(type_):
        assert flat.buffers()[2].address == array.buffers()[2].address


@settings(deadline=None)
@given(st.lists(st.none() | st.binary(max_size=5), max_size=20), st.integers(0, 5))
def test_cells_come_back(values: list[bytes | None], start: int) -> None:
    values = [value if value is None else value.rstrip(b"\0") for value in values]
    flat = pa.array(values, pa.large_binary()).slice(start)
    cells = buffers.to_cells(flat, 5)
    assert cells.dtype == np.dtype("S5")
    assert cells.tolist() == [value or b"" for value in values[start:]]
    assert buffers.from_cells(cells, buffers.validity(flat), padded=True).equals(flat)


def test_cells_keep_their_nuls_where_these_are_data() -> None:
    cells = np.array([b"\0\0", b"a\0", b"\0b"], "|V2")
    assert buffers.from_cells(cells, None, padded=False).to_pylist() == [b"\0\0", b"a\0", b"\0b"]
    assert buffers.from_cells(cells, None, padded=True).to_pylist() == [b"", b"a", b"\0b"]
