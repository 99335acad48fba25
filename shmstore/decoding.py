"""Items of streams back into Arrow arrays: the inverse of `shmstore.encoding`.

What comes from a file is not trusted: every offset, code and count is checked before it is used, and what
does not hold together is an error, never a wrong value. What is returned owns or keeps alive the memory
it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from shmstore.buffers import Items, bitmap, from_cells
from shmstore.decimals import from_text
from shmstore.errors import ShmStoreError
from shmstore.layout import Node, Stream
from shmstore.nulls import nulls
from shmstore.planning import is_list, is_text, list_item, plain_dtype

#: Arrow addresses the items of one list or string array with 31 bits.
_ADDRESSABLE = 2**31 - 1


class TooLongError(ShmStoreError):
    """So many rows do not fit one Arrow array of their type: ask for fewer."""


class Source(Protocol):
    """Where items come from."""

    def items(self, stream: Stream, start: int, stop: int) -> Items:
        """Return the items from ``start`` to ``stop``, all of which must be there."""

    def mask(self, stream: Stream, start: int, stop: int) -> Items | None:
        """Return a mask's items; ``None`` if the mask was never needed."""

    def all_items(self, stream: Stream) -> Items:
        """Return all items that there are."""


def decode(node: Node, type_: pa.DataType, source: Source, start: int, stop: int) -> pa.Array:
    """Return items ``start`` to ``stop`` of a node as an Arrow array.

    Parameters
    ----------
    node
        What is read.
    type_
        The Arrow type to return.
    source
        Gives the items.
    start, stop
        Counted in the node's own space.

    Raises
    ------
    ValueError
        The items do not hold together.
    TooLongError
        More than one Arrow array can hold.
    """
    if isinstance(type_, pa.BaseExtensionType):
        if node.kind in ("plain", "bool"):  # tensors: their levels are not the storage type's
            return _decode_plain(node, type_, source, start, stop)
        storage = decode(node, type_.storage_type, source, start, stop)
        return pa.ExtensionArray.from_storage(type_, storage)
    array = _DECODERS.get(node.kind, _decode_fixed_strings)(node, type_, source, start, stop)
    return array if array.type == type_ else array.cast(type_)


def _mask(node: Node, source: Source, start: int, stop: int) -> pa.Buffer | None:
    return bitmap(source.mask(node.stream("validity"), start, stop))


# -- values of a fixed size ------------------------------------------------------------------------------


def _decode_plain(node: Node, type_: pa.DataType, source: Source, start: int, stop: int) -> pa.Array:
    stream, *masks = node.streams
    values = np.ascontiguousarray(source.items(stream, start, stop))
    valid = [source.mask(mask, start, stop) for mask in masks]
    bitmaps = [bitmap(mask) for mask in valid]
    if values.dtype.kind == "i" and any(bits is not None for bits in bitmaps):
        # Zero under nulls, as Arrow's users leave it: not all of them keep away from what is there (NaT).
        values = np.where(_present(masks, valid).reshape(values.shape), values, values.dtype.type(0))
    leaf = _leaf(type_)
    if not _stored_as(leaf, stream.dtype):
        raise ValueError(f"it is stored as {stream.dtype}, the schema says {type_}")
    if pa.types.is_boolean(leaf):
        values = np.packbits(values.reshape(-1), bitorder="little")
    data = pa.py_buffer(values.reshape(-1).view(np.uint8))
    return _nest(type_, bitmaps, data, stop - start)


def _present(masks: list[Stream], valid: list[Items | None]) -> Items:
    """Return which innermost items are neither null nor below a null, flat; some mask is there.

    Parameters
    ----------
    masks
        The mask of each level of fixed-size lists, outermost first.
    valid
        What they hold; ``None``: nothing is null at that level.
    """
    present: Items | None = None
    for stream, mask in zip(masks, valid, strict=True):
        if present is not None and stream.item_shape:
            present = np.repeat(present, stream.item_shape[-1])
        if mask is not None:
            present = mask.reshape(-1) if present is None else present & mask.reshape(-1)
    return np.ones(0, np.bool_) if present is None else present


def _leaf(type_: pa.DataType) -> pa.DataType:
    while True:
        if isinstance(type_, pa.BaseExtensionType):
            type_ = type_.storage_type
        elif pa.types.is_fixed_size_list(type_):
            type_ = type_.value_type
        else:
            return type_


def _stored_as(leaf: pa.DataType, dtype: str) -> bool:
    spelled = plain_dtype(leaf)
    # The physical form of day-time intervals is an integer; in the file they are two.
    return spelled is not None and (spelled[0] == dtype or (leaf == pa.int64() and dtype.startswith("{")))


def _nest(type_: pa.DataType, bitmaps: list[pa.Buffer | None], data: pa.Buffer, count: int) -> pa.Array:
    """Wrap values into fixed-size lists, one for each level, and extension types wherever they stand."""
    if isinstance(type_, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(type_, _nest(type_.storage_type, bitmaps, data, count))
    if pa.types.is_fixed_size_list(type_):
        values = _nest(type_.value_type, bitmaps[1:], data, count * type_.list_size)
        return pa.Array.from_buffers(type_, count, bitmaps[:1], children=[values])
    needed = (count + 7) // 8 if pa.types.is_boolean(type_) else count * type_.bit_width // 8
    if len(bitmaps) != 1 or data.size != needed:
        raise ValueError(f"{data.size} bytes do not make {count} values of type {type_}")
    return pa.Array.from_buffers(type_, count, [bitmaps[0], data])


def _decode_presence(node: Node, type_: pa.DataType, source: Source, start: int, stop: int) -> pa.Array:
    count = stop - start
    if pa.types.is_null(type_):
        return pa.nulls(count)
    valid = bitmap(source.items(node.streams[0], start, stop))
    if pa.types.is_struct(type_):
        return pa.Array.from_buffers(type_, count, [valid])
    if pa.types.is_fixed_size_list(type_):
        return pa.Array.from_buffers(type_, count, [valid], children=[nulls(0, type_.value_type)])
    return pa.Array.from_buffers(type_, count, [valid, pa.py_buffer(b"")])


def _decode_decimal(node: Node, type_: pa.DataType, source: Source, start: int, stop: int) -> pa.Array:
    cells = source.items(node.streams[0], start, stop)
    valid = source.mask(node.stream("validity"), start, stop)
    text = from_cells(cells, valid, padded=True).cast(pa.large_string())
    return from_text(text, node.type)


# -- strings and bytes -----------------------------------------------------------------------------------


def _decode_packed(node: Node, type_: pa.DataType, source: Source, start: int, stop: int) -> pa.Array:
    offsets = _ascending(source.items(node.stream("offsets"), start, stop + 1))
    chars = np.ascontiguousarray(source.items(node.stream("chars"), int(offsets[0]), int(offsets[-1])))
    _require_addressable(type_, chars.size)
    buffers = [_mask(node, source, start, stop), pa.py_buffer(offsets - offsets[0]), pa.py_buffer(chars)]
    return pa.Array.from_buffers(pa.large_binary(), stop - start, buffers)


def _decode_vlen(node: Node, type_: pa.DataType, source: Source, start: int, stop: int) -> pa.Array:
    values = [bytes(value) for value in source.items(node.streams[0], start, stop)]
    _require_addressable(type_, sum(map(len, values)))
    valid = source.mask(node.stream("validity"), start, stop)
    if valid is None:
        return pa.array(values, pa.large_binary())
    pairs = zip(values, valid.tolist(), strict=True)
    return pa.array([value if there else None for value, there in pairs], pa.large_binary())


def _decode_fixed_strings(node: Node, type_: pa.DataType, source: Source, start: int, stop: int) -> pa.Array:
    cells = source.items(node.streams[0], start, stop)
    _require_addressable(type_, cells.nbytes)
    valid = source.mask(node.stream("validity"), start, stop)
    return from_cells(cells, valid, padded=is_text(type_))


def _require_addressable(type_: pa.DataType, count: int) -> None:
    if count > _ADDRESSABLE and not pa.types.is_large_string(type_) and not pa.types.is_large_binary(type_):
        raise TooLongError(f"{count} bytes are more than one {type_} array holds")


# -- lists -----------------------------------------------------------------------------------------------


def _ascending(offsets: Items) -> Items:
    offsets = offsets.astype(np.int64)
    if len(offsets) and (offsets[0] < 0 or (np.diff(offsets) < 0).any()):
        raise ValueError("its offsets do not ascend")
    return offsets


def _decode_list(node: Node, type_: pa.DataType, source: Source, start: int, stop: int) -> pa.Array:
    offsets = _ascending(source.items(node.stream("offsets"), start, stop + 1))
    (child,) = node.children
    if not is_list(type_):
        raise ValueError(f"it is stored as lists, the schema says {type_}")
    large = pa.types.is_large_list(type_) or pa.types.is_large_list_view(type_)
    if offsets[-1] - offsets[0] > _ADDRESSABLE and not large:
        raise TooLongError(f"{offsets[-1] - offsets[0]} items are more than one {type_} array holds")
    values = decode(child, list_item(type_).type, source, int(offsets[0]), int(offsets[-1]))
    local = (offsets - offsets[0]).astype(np.int64 if large else np.int32)
    buffers = [_mask(node, source, start, stop), pa.py_buffer(local)]
    if pa.types.is_list_view(type_) or pa.types.is_large_list_view(type_):
        buffers = [buffers[0], pa.py_buffer(local[:-1].copy()), pa.py_buffer(np.diff(local))]
    return pa.Array.from_buffers(type_, stop - start, buffers, children=[values])


def _decode_fixed_list(node: Node, type_: pa.DataType, source: Source, start: int, stop: int) -> pa.Array:
    size = type_.list_size
    values = decode(node.children[0], type_.value_type, source, start * size, stop * size)
    return pa.Array.from_buffers(type_, stop - start, [_mask(node, source, start, stop)], children=[values])


# -- structs, unions, dictionaries, runs -----------------------------------------------------------------


def _decode_struct(node: Node, type_: pa.DataType, source: Source, start: int, stop: int) -> pa.Array:
    children = _members(node, type_, [(start, stop)] * len(node.children), source)
    return pa.Array.from_buffers(type_, stop - start, [_mask(node, source, start, stop)], children=children)


def _members(node: Node, type_: pa.DataType, ranges: list[tuple[int, int]], source: Source) -> list[pa.Array]:
    if type_.num_fields != len(node.children):
        raise ValueError(
            f"it is stored with {len(node.children)} members, the schema says {type_.num_fields}"
        )
    return [
        decode(child, type_.field(number).type, source, *ranges[number])
        for number, child in enumerate(node.children)
    ]


def _decode_sparse_union(node: Node, type_: pa.DataType, source: Source, start: int, stop: int) -> pa.Array:
    types = _types(node, type_, source, start, stop)
    children = _members(node, type_, [(start, stop)] * len(node.children), source)
    return pa.Array.from_buffers(type_, stop - start, [None, pa.py_buffer(types)], children=children)


def _types(node: Node, type_: pa.DataType, source: Source, start: int, stop: int) -> Items:
    types = np.ascontiguousarray(source.items(node.stream("types"), start, stop))
    if not np.isin(types, type_.type_codes).all():
        raise ValueError(f"its type codes are not all among {type_.type_codes}")
    return types


def _decode_dense_union(node: Node, type_: pa.DataType, source: Source, start: int, stop: int) -> pa.Array:
    types = _types(node, type_, source, start, stop)
    offsets = source.items(node.stream("offsets"), start, stop).astype(np.int64)
    local = np.zeros(len(offsets), np.int32)
    ranges = []
    for code in type_.type_codes:
        own = types == code
        picked = offsets[own]
        if not len(picked):
            ranges.append((0, 0))
            continue
        if picked[0] < 0 or (np.diff(picked) != 1).any():
            raise ValueError("its offsets do not go on one by one")
        local[own] = picked - picked[0]
        ranges.append((int(picked[0]), int(picked[-1]) + 1))
    children = _members(node, type_, ranges, source)
    buffers = [None, pa.py_buffer(types), pa.py_buffer(local)]
    return pa.Array.from_buffers(type_, stop - start, buffers, children=children)


def _decode_dictionary(node: Node, type_: pa.DataType, source: Source, start: int, stop: int) -> pa.Array:
    first, count = _dictionary_at(node, source, start, stop)
    dictionary = decode(node.children[0], type_.value_type, source, first, first + count)
    codes = source.items(node.streams[0], start, stop).astype(np.int64) - first
    valid = source.mask(node.stream("validity"), start, stop)
    if valid is not None:
        codes = np.where(valid, codes, 0)
    outside = (codes < 0) | (codes >= count)
    if (outside if valid is None else outside & valid).any():
        raise ValueError(f"its codes are not all among the {count} labels that belong to them")
    wide = np.dtype(type_.index_type.to_pandas_dtype())
    if len(codes) and codes.max() > np.iinfo(wide).max:
        raise ValueError(f"its codes are more than an index of type {type_.index_type} can count")
    indices = pa.py_buffer(codes.astype(wide))
    return pa.DictionaryArray.from_buffers(type_, stop - start, [bitmap(valid), indices], dictionary)


def _dictionary_at(node: Node, source: Source, start: int, stop: int) -> tuple[int, int]:
    """Return first category and number of categories of the one dictionary of a range of items."""
    segments = source.all_items(node.stream("segments")).astype(np.int64)
    place = int(np.searchsorted(segments[:, 1], start, side="right")) - 1
    if place < 0:
        if stop > start:
            raise ValueError("it has codes, but no dictionary")
        return 0, 0
    if place + 1 < len(segments) and segments[place + 1, 1] < stop:
        raise ValueError("its dictionary changes where no batch ends")
    return int(segments[place, 2]), int(segments[place, 3])


def _decode_run_ends(node: Node, type_: pa.DataType, source: Source, start: int, stop: int) -> pa.Array:
    first, ends = runs_between(node, source, start, stop)
    local = np.minimum(ends, stop) - start
    wide = np.dtype(type_.run_end_type.to_pandas_dtype())
    if len(local) and local[-1] > np.iinfo(wide).max:
        raise TooLongError(f"{stop - start} items are more than one {type_} array holds")
    values = decode(node.children[0], type_.value_type, source, first, first + len(ends))
    run_ends = pa.array(local.astype(wide), type_.run_end_type)
    return pa.Array.from_buffers(type_, stop - start, [None], children=[run_ends, values])


def runs_between(node: Node, source: Source, start: int, stop: int) -> tuple[int, Items]:
    """Return the first run that reaches into a range of items, and the ends of all that do."""
    ends = _ascending(source.all_items(node.streams[0])) if stop > start else np.empty(0, np.int64)
    first = int(np.searchsorted(ends, start, side="right"))
    last = int(np.searchsorted(ends, stop, side="left"))
    if stop > start and last >= len(ends):
        raise ValueError(f"its runs end before item {stop}")
    return first, ends[first : last + 1] if stop > start else ends


_DECODERS: dict[str, Callable[[Node, Any, Source, int, int], pa.Array]] = {
    "plain": _decode_plain,
    "bool": _decode_plain,
    "presence": _decode_presence,
    "vlen": _decode_vlen,
    "packed": _decode_packed,
    "decimal": _decode_decimal,
    "struct": _decode_struct,
    "list": _decode_list,
    "fixed_list": _decode_fixed_list,
    "dictionary": _decode_dictionary,
    "sparse_union": _decode_sparse_union,
    "dense_union": _decode_dense_union,
    "run_ends": _decode_run_ends,
}
