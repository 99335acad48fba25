"""Items of an array picked one by one, into a new array: of any type, and exactly.

Arrow's own ``take`` rebuilds what is run-end encoded with its builders, which know no extension types and
change dictionaries, and knows no string views within other types. So whatever has these within is taken apart
here; all else is Arrow's.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from shmstore.buffers import Items, bitmap, fixed_items, offsets_of, own_items, validity
from shmstore.compaction import types_in


def gather(array: pa.Array, indices: Items) -> pa.Array:
    """Return the items at ``indices``, in that order.

    Parameters
    ----------
    array
        What is picked from.
    indices
        ``(n,)`` of int64, within the array.
    """
    if isinstance(array, pa.ExtensionArray):
        return pa.ExtensionArray.from_storage(array.type, gather(array.storage, indices))
    type_ = array.type
    if not any(pa.types.is_run_end_encoded(inner) or _is_view(inner) for inner in types_in(type_)):
        return array.take(pa.array(indices))
    if _is_view(type_):
        return _gather_views(array, indices)
    if pa.types.is_dictionary(type_):
        picked = array.indices.take(pa.array(indices))
        return pa.DictionaryArray.from_buffers(type_, len(picked), picked.buffers(), array.dictionary)
    if pa.types.is_run_end_encoded(type_):
        return _gather_runs(array, indices)
    if pa.types.is_union(type_):
        return _gather_unions(array, indices)
    valid = bitmap(validity(array)[indices]) if array.null_count else None
    if pa.types.is_struct(type_):
        children = [gather(array.field(number), indices) for number in range(type_.num_fields)]
        return pa.Array.from_buffers(type_, len(indices), [valid], children=children)
    if pa.types.is_fixed_size_list(type_):
        size = type_.list_size
        items = ((indices + array.offset)[:, None] * size + np.arange(size)).reshape(-1)
        values = gather(array.values, items)
        return pa.Array.from_buffers(type_, len(indices), [valid], children=[values])
    return _gather_lists(array, indices, valid)


def _is_view(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(type_) or pa.types.is_binary_view(type_))


def _gather_views(array: pa.Array, indices: Items) -> pa.Array:
    valid = bitmap(validity(array)[indices]) if array.null_count else None
    views = fixed_items(array, np.dtype("V16"))[indices]
    buffers = [valid, pa.py_buffer(views), *array.buffers()[2:]]
    return pa.Array.from_buffers(array.type, len(indices), buffers)


def _is_strange(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_run_end_encoded(type_) or pa.types.is_string_view(type_) or pa.types.is_binary_view(type_)
    )


def gather_ranges(values: pa.Array, starts: Items, lengths: Items, offsets: Items) -> pa.Array:
    """Return the items of many ranges, one after the other; a slice of ``values`` if they lie so already.

    Parameters
    ----------
    values
        What is picked from.
    starts, lengths
        ``(n,)``: the ranges.
    offsets
        ``(n + 1,)``: where they begin and end in the result.
    """
    total = int(offsets[-1])
    if not total:
        return values.slice(0, 0)
    used = lengths > 0
    shift = starts[used] - offsets[:-1][used]
    if (shift == shift[0]).all():
        return values.slice(int(shift[0]), total)
    return gather(values, np.arange(total) + np.repeat(shift, lengths[used]))


def _gather_runs(array: pa.RunEndEncodedArray, indices: Items) -> pa.Array:
    type_ = array.type
    wide = np.dtype(type_.run_end_type.to_pandas_dtype())
    runs = np.searchsorted(fixed_items(array.run_ends, wide), indices + array.offset, side="right")
    last = np.append(np.diff(runs) != 0, True) if len(runs) else np.zeros(0, np.bool_)
    ends = pa.array((np.flatnonzero(last) + 1).astype(wide), type_.run_end_type)
    values = gather(array.values, runs[last])
    return pa.Array.from_buffers(type_, len(indices), [None], children=[ends, values])


def _gather_unions(array: pa.UnionArray, indices: Items) -> pa.Array:
    type_ = array.type
    types = own_items(array, 1, np.int8)[indices]
    if type_.mode == "sparse":
        children = [gather(array.field(number), indices) for number in range(type_.num_fields)]
        return pa.Array.from_buffers(type_, len(indices), [None, pa.py_buffer(types)], children=children)
    places = own_items(array, 2, np.int32)[indices].astype(np.int64)
    offsets = np.zeros(len(indices), np.int32)
    children = []
    for number, code in enumerate(type_.type_codes):
        own = types == code
        offsets[own] = np.arange(own.sum())
        children.append(gather(array.field(number), places[own]))
    buffers = [None, pa.py_buffer(types), pa.py_buffer(offsets)]
    return pa.Array.from_buffers(type_, len(indices), buffers, children=children)


def _gather_lists(array: pa.Array, indices: Items, valid: pa.Buffer | None) -> pa.Array:
    type_ = array.type
    starts, lengths = (ranges[indices] for ranges in list_ranges(array))
    offsets = np.zeros(len(indices) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    values = gather_ranges(array.values, starts, lengths, offsets)
    if pa.types.is_map(type_) and values.offset:
        # Arrow's maps look past the offset of their entries.
        entries = [values.field(number) for number in range(2)]
        values = pa.Array.from_buffers(values.type, len(values), [None], children=entries)
    large = pa.types.is_large_list(type_) or pa.types.is_large_list_view(type_)
    wide = np.int64 if large else np.int32
    if pa.types.is_list_view(type_) or pa.types.is_large_list_view(type_):
        places = [pa.py_buffer(offsets[:-1].astype(wide)), pa.py_buffer(lengths.astype(wide))]
    else:
        places = [pa.py_buffer(offsets.astype(wide))]
    return pa.Array.from_buffers(type_, len(indices), [valid, *places], children=[values])


def list_ranges(array: pa.Array) -> tuple[Items, Items]:
    """Return where each list of an array begins in its values, and its length, as int64; a null's is 0."""
    type_ = array.type
    if pa.types.is_list_view(type_) or pa.types.is_large_list_view(type_):
        wide = np.int64 if pa.types.is_large_list_view(type_) else np.int32
        starts, lengths = (own_items(array, number, wide).astype(np.int64) for number in (1, 2))
    else:
        offsets = offsets_of(array).astype(np.int64)
        starts, lengths = offsets[:-1], np.diff(offsets)
    return starts, np.where(validity(array), lengths, 0) if array.null_count else lengths
