"""Arrow's buffers as numpy arrays, and back: bits, fixed-size values, offsets, text in cells of one width.

Pure functions over memory. What they return are views where nothing has to change.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Items = npt.NDArray[Any]


def fixed_items(array: pa.Array, dtype: np.dtype[Any]) -> Items:
    """Return the values of a fixed-width array, ``(len(array),)``; a view over its memory."""
    data = array.buffers()[1]
    if data is None or not len(array):
        return np.empty(len(array), dtype)
    return np.frombuffer(data, dtype, len(array), array.offset * dtype.itemsize)


def boolean_items(array: pa.BooleanArray) -> Items:
    """Return the values of a boolean array, ``(len(array),)``."""
    return _bits(array.buffers()[1], array.offset, len(array))


def validity(array: pa.Array) -> Items:
    """Return what is not null, ``(len(array),)``; for arrays with a bitmap, or without nulls."""
    if pa.types.is_null(array.type):
        return np.zeros(len(array), np.bool_)
    bitmap = array.buffers()[0]
    if bitmap is None:
        return np.ones(len(array), np.bool_)
    return _bits(bitmap, array.offset, len(array))


def bitmap(valid: Items | None) -> pa.Buffer | None:
    """Return Arrow's bitmap of a mask; ``None`` if nothing is null."""
    if valid is None or valid.all():
        return None
    return pa.py_buffer(np.packbits(valid.reshape(-1), bitorder="little"))


def offsets_of(array: pa.Array) -> Items:
    """Return the ``len(array) + 1`` offsets of a list, map or text array, in its own width; a view."""
    type_ = array.type
    large = (
        pa.types.is_large_list(type_) or pa.types.is_large_binary(type_) or pa.types.is_large_string(type_)
    )
    dtype = np.dtype(np.int64 if large else np.int32)
    data = array.buffers()[1]
    if data is None or not len(array):
        return np.zeros(1, dtype)
    return np.frombuffer(data, dtype, len(array) + 1, array.offset * dtype.itemsize)


def own_items(array: pa.Array, number: int, dtype: type[np.signedinteger[Any]]) -> Items:
    """Return the items of one of an array's own buffers, cut as the array is (its properties are not)."""
    buffer, size = array.buffers()[number], np.dtype(dtype).itemsize
    if buffer is None or not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(buffer, dtype, len(array), array.offset * size)


def large_binary(array: pa.Array) -> pa.LargeBinaryArray:
    """Return text or bytes of any spelling as large binary; a view where the offsets are wide already."""
    if pa.types.is_large_string(array.type):
        return array.view(pa.large_binary())
    return array if array.type == pa.large_binary() else array.cast(pa.large_binary())


def used_chars(flat: pa.Array) -> Items:
    """Return the bytes of text or binary between the first and the last offset, as a view."""
    data = flat.buffers()[2]
    if not len(flat) or data is None:
        return np.empty(0, np.uint8)
    offsets = offsets_of(flat)
    return np.frombuffer(data, np.uint8, int(offsets[-1] - offsets[0]), int(offsets[0]))


def to_cells(flat: pa.LargeBinaryArray, width: int) -> Items:
    """Return byte strings in cells of ``width`` bytes, NUL-padded, as ``(len(flat),)`` of ``S<width>``.

    A null is empty. Nothing may be longer than ``width``, nor anything lie under nulls that is.
    """
    cells = np.zeros((len(flat), width), np.uint8)
    lengths = np.diff(offsets_of(flat)) if len(flat) else np.empty(0, np.int64)
    filled = np.arange(width) < lengths[:, None]
    cells[filled] = used_chars(flat)
    if flat.null_count:
        cells[~validity(flat)] = 0
    return cells.view(f"S{width}").reshape(len(flat))


def from_cells(cells: Items, valid: Items | None, *, padded: bool) -> pa.LargeBinaryArray:
    """Return the byte strings in cells of one width.

    Parameters
    ----------
    cells
        ``(rows,)`` of a type of fixed width.
    valid
        What is not null; ``None``: nothing is.
    padded
        Whether NULs at the end of a cell are no part of it.
    """
    width = cells.dtype.itemsize
    chars = np.ascontiguousarray(cells).view(np.uint8).reshape(len(cells), width)
    if padded:
        used = np.maximum.accumulate((chars != 0)[:, ::-1], axis=1)[:, ::-1]
        lengths = used.sum(axis=1)
        chars = chars[used]
    else:
        lengths = np.full(len(cells), width)
    offsets = np.zeros(len(cells) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    buffers = [bitmap(valid), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(chars).reshape(-1))]
    return pa.Array.from_buffers(pa.large_binary(), len(cells), buffers)


def _bits(bitmap: pa.Buffer | None, offset: int, length: int) -> Items:
    if bitmap is None or not length:
        return np.zeros(length, np.bool_)
    first = offset // 8
    octets = np.frombuffer(bitmap, np.uint8, (offset + length + 7) // 8 - first, first)
    bits = np.unpackbits(octets, bitorder="little")[offset - 8 * first :][:length]
    return bits.view(np.bool_)
