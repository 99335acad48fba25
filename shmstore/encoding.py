"""Arrow arrays into the items of streams, and back. Pure functions over memory; no files, no rings.

`encode` borrows: where nothing has to change, its results are views over the array's own memory (the ring, in
the writer). `decode` is its exact inverse; what it returns owns or keeps alive the memory it needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shmstore.errors import IncompleteFileError, InvalidValueError
from shmstore.layout import Column, fixed_width, is_text

Items = npt.NDArray[Any]


def encode(column: Column, array: pa.Array, chars_before: int = 0) -> dict[str, Items]:
    """Turn an array into items, by role.

    Parameters
    ----------
    column
        Where the array goes.
    array
        Its values, ``n`` of them, already known to be of the column's type.
    chars_before
        For packed columns: bytes already in ``chars``.

    Returns
    -------
    dict of str to ndarray
        For each role an array ``(items, *item_shape)``, C-contiguous. Validity is present only if there are
        nulls; each item of it is ``True`` where a value is. Views over ``array`` where possible: they borrow
        its memory.

    Raises
    ------
    InvalidValueError
        A string is longer than its ``fixed:N``, or cannot be stored without loss.
    """
    if column.encoding == "packed":
        return _encode_packed(array, chars_before)
    validity = {} if not array.null_count else {"validity": _validity(array)}
    if column.encoding == "vlen":
        return {"values": _objects(column, array)} | validity
    if column.encoding.startswith("fixed:"):
        return {"values": _fixed_strings(column, array)} | validity
    return _encode_plain(column, array)


def check(column: Column, array: pa.Array) -> None:
    """Refuse what `encode` could not store exactly; run by the producer, so that the caller gets the error.

    Raises
    ------
    InvalidValueError
        The array is damaged: offsets that lead nowhere, text that is no UTF-8. A value is too long for
        ``fixed:N``, or holds a NUL where the encoding ends strings with one.
    """
    if column.encoding in ("plain", "bool"):
        return
    try:
        array.validate(full=True)  # 2 to 5 GB/s
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise InvalidValueError(
            f"column {column.name!r} is damaged: {reason}: check what made the batch, or give raw bytes the "
            "type binary"
        ) from None
    if column.encoding != "packed":
        flat = _large_binary(array)
        text = is_text(array.type)
        if text and _has_nul(flat):
            raise InvalidValueError(
                f"column {column.name!r} holds a string with a NUL character, which "
                f"{column.encoding!r} cannot store: "
                "set strings='packed' for it"
            )
        if column.encoding.startswith("fixed:") and len(flat):
            width = fixed_width(column.encoding)
            lengths = pc.min_max(pc.binary_length(flat))
            longest, shortest = lengths["max"].as_py() or 0, lengths["min"].as_py()
            if longest > width:
                raise InvalidValueError(
                    f"column {column.name!r} holds a value of {longest} bytes, longer than its "
                    f"{column.encoding}: "
                    "enlarge it, or set strings='packed'"
                )
            if not text and shortest is not None and shortest < width:
                raise InvalidValueError(
                    f"column {column.name!r} holds a value of {shortest} bytes, but binary "
                    f"{column.encoding} takes exactly "
                    f"{width}: set strings='packed'"
                )


def decode(column: Column, type_: pa.DataType, items: Mapping[str, Items], rows: int) -> pa.Array:
    """Turn items back into the array that was put.

    Parameters
    ----------
    column
        Where the items came from.
    type_
        The Arrow type to return.
    items
        By role, as `encode` made them (native strings as the bytes that HDF5 gives back), for ``rows``
        rows; for packed columns ``offsets`` has ``rows + 1``
        items and ``chars`` holds the bytes from ``offsets[0]`` to ``offsets[-1]``. A missing validity means:
        no nulls.
    rows
        Number of rows.

    Raises
    ------
    IncompleteFileError
        The items do not hold together; the message names the column.
    """
    try:
        if column.encoding == "packed":
            array = _decode_packed(items, rows)
        elif column.encoding == "vlen":
            array = _from_bytes([bytes(value) for value in items["values"]], items.get("validity"))
        elif column.encoding.startswith("fixed:"):
            array = _from_bytes(items["values"].tolist(), items.get("validity"))
        else:
            array = _decode_plain(type_, items, rows)
        if array.type != type_:
            array = array.cast(type_)
        array.validate()
    except (pa.ArrowException, ValueError, KeyError, IndexError) as error:
        raise IncompleteFileError(f"column {column.name!r} is damaged: {error}") from None
    return array


# -- plain: numbers, times, fixed-size lists of them ---------------------------------------------------------


def _encode_plain(column: Column, array: pa.Array) -> dict[str, Items]:
    stream = column.streams[0]
    items: dict[str, Items] = {}
    rows = len(array)
    level = 0
    shape: tuple[int, ...] = (rows,)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    present: Items | None = None
    while True:
        if array.null_count:
            mask = _validity(array).reshape(shape)
            role = f"validity-{level}" if level else "validity"
            items[role] = mask
            present = mask if present is None else present[..., None] & mask
        elif present is not None and level:
            present = np.broadcast_to(present[..., None], shape)
        if not isinstance(array, pa.FixedSizeListArray):
            break
        size = array.type.list_size
        level, shape = level + 1, (*shape, size)
        array = array.values.slice(array.offset * size, len(array) * size)
    values = _unpack_bits(array) if column.encoding == "bool" else _fixed_items(array, stream.numpy_dtype)
    values = values.reshape(shape)
    if present is not None and not present.all():
        fill = (
            np.zeros((), stream.numpy_dtype)
            if stream.fill is None
            else np.asarray(stream.fill, stream.numpy_dtype)
        )
        values = np.where(present, values, fill)
    return {"values": values.reshape(rows, *stream.item_shape)} | items


def _decode_plain(type_: pa.DataType, items: Mapping[str, Items], rows: int) -> pa.Array:
    values = np.ascontiguousarray(items["values"])
    storage = type_.storage_type if isinstance(type_, pa.FixedShapeTensorType) else type_
    levels: list[pa.DataType] = []
    leaf = storage
    while pa.types.is_fixed_size_list(leaf):
        levels.append(leaf)
        leaf = leaf.value_type
    count = rows * math.prod(level.list_size for level in levels)
    if values.nbytes < count * max(leaf.bit_width // 8, 1):  # a bool is a byte here, a bit in Arrow
        raise ValueError(f"{values.nbytes} bytes do not make {rows} rows")
    data = np.packbits(values.reshape(-1), bitorder="little") if pa.types.is_boolean(leaf) else values
    array = pa.Array.from_buffers(
        leaf, count, [_bitmap(items.get(_role(len(levels)))), pa.py_buffer(data.reshape(-1).view("u1"))]
    )
    for level in reversed(range(len(levels))):
        count //= levels[level].list_size
        bitmap = _bitmap(items.get(_role(level)))
        array = pa.Array.from_buffers(levels[level], count, [bitmap], children=[array])
    return pa.ExtensionArray.from_storage(type_, array) if storage is not type_ else array


def _role(level: int) -> str:
    return f"validity-{level}" if level else "validity"


# -- strings and bytes ---------------------------------------------------------------------------------------


def _encode_packed(array: pa.Array, chars_before: int) -> dict[str, Items]:
    flat = _large_binary(array)
    validity = {} if not flat.null_count else {"validity": _validity(flat)}
    offsets = (
        np.frombuffer(flat.buffers()[1], np.int64, len(flat) + 1, flat.offset * 8)
        if len(flat)
        else np.zeros(1, np.int64)
    )
    chars = _used_chars(flat)
    if flat.null_count and _has_bytes_under_nulls(offsets, validity["validity"]):
        flat = flat.take(
            pa.array(np.arange(len(flat)))
        )  # a null owns no bytes: copy without what lies under it
        offsets, chars = np.frombuffer(flat.buffers()[1], np.int64, len(flat) + 1), _used_chars(flat)
    ends = offsets[1:].astype(np.uint64) + np.uint64(chars_before) - np.uint64(offsets[0])
    return {"offsets": ends, "chars": chars} | validity


def _decode_packed(items: Mapping[str, Items], rows: int) -> pa.Array:
    offsets = items["offsets"].astype(np.int64)
    if len(offsets) != rows + 1 or (rows and (np.diff(offsets) < 0).any()):
        raise ValueError("its offsets do not ascend")
    offsets -= offsets[0]
    chars = np.ascontiguousarray(items["chars"])
    if offsets[-1] > chars.size:
        raise ValueError(f"its offsets end at byte {offsets[-1]} of {chars.size}")
    buffers = [_bitmap(items.get("validity")), pa.py_buffer(offsets), pa.py_buffer(chars)]
    return pa.Array.from_buffers(pa.large_binary(), rows, buffers)


def _fixed_strings(column: Column, array: pa.Array) -> Items:
    check(column, array)
    flat = pc.fill_null(_large_binary(array), b"") if array.null_count else _large_binary(array)
    return np.array(flat.to_pylist(), dtype=column.streams[0].numpy_dtype).reshape(len(array))


def _from_bytes(values: list[bytes], valid: Items | None) -> pa.Array:
    if valid is not None:
        return pa.array(
            [v if ok else None for v, ok in zip(values, valid.tolist(), strict=True)], pa.large_binary()
        )
    return pa.array(values, pa.large_binary())


def _objects(column: Column, array: pa.Array) -> Items:
    """Return an object array of str (UTF-8) or of uint8 arrays (bytes), as h5py wants them."""
    objects = np.empty(len(array), dtype=object)
    if column.streams[0].dtype == "utf8":
        objects[:] = [value or "" for value in array.to_pylist()]
        return objects
    for row, value in enumerate(array.to_pylist()):
        objects[row] = np.frombuffer(value or b"", np.uint8)
    return objects


def _large_binary(array: pa.Array) -> pa.LargeBinaryArray:
    if pa.types.is_large_string(array.type):
        return array.view(pa.large_binary())
    return array if array.type == pa.large_binary() else array.cast(pa.large_binary())


def _used_chars(flat: pa.LargeBinaryArray) -> Items:
    """Return the bytes between the first and the last offset, as a view."""
    data = flat.buffers()[2]
    if not len(flat) or data is None:
        return np.empty(0, np.uint8)
    offsets = np.frombuffer(flat.buffers()[1], np.int64, len(flat) + 1, flat.offset * 8)
    return np.frombuffer(data, np.uint8, int(offsets[-1] - offsets[0]), int(offsets[0]))


def _has_nul(flat: pa.LargeBinaryArray) -> bool:
    if _used_chars(flat).all():
        return False
    # Some byte is 0, but perhaps one under a null, which is nobody's.
    return bool(pc.any(pc.match_substring(flat, "\0")).as_py())


def _has_bytes_under_nulls(offsets: Items, valid: Items) -> bool:
    return bool((np.diff(offsets)[~valid] != 0).any())


# -- buffers -------------------------------------------------------------------------------------------------


def _fixed_items(array: pa.Array, dtype: np.dtype[Any]) -> Items:
    """Return the values buffer as numpy sees it; a view over the array's memory."""
    data = array.buffers()[1]
    if data is None or not len(array):
        return np.empty(len(array), dtype)
    return np.frombuffer(data, dtype, len(array), array.offset * dtype.itemsize)


def _unpack_bits(array: pa.BooleanArray) -> Items:
    return _bits(array.buffers()[1], array.offset, len(array))


def _validity(array: pa.Array) -> Items:
    bitmap = array.buffers()[0]
    if bitmap is None:
        return np.ones(len(array), np.bool_)
    return _bits(bitmap, array.offset, len(array))


def _bits(bitmap: pa.Buffer | None, offset: int, length: int) -> Items:
    if bitmap is None or not length:
        return np.zeros(length, np.bool_)
    first = offset // 8
    octets = np.frombuffer(bitmap, np.uint8, (offset + length + 7) // 8 - first, first)
    bits = np.unpackbits(octets, bitorder="little")[offset - 8 * first :][:length]
    return bits.view(np.bool_)


def _bitmap(valid: Items | None) -> pa.Buffer | None:
    if valid is None or valid.all():
        return None
    return pa.py_buffer(np.packbits(valid.reshape(-1), bitorder="little"))
