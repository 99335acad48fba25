"""Arrays of nulls of any type; pyarrow's own are not sound where run ends lie within another type."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from shmstore.buffers import bitmap


def nulls(count: int, type_: pa.DataType) -> pa.Array:
    """Return ``count`` nulls; a union, which has none, holds nulls of its first type.

    Examples
    --------
    >>> nulls(2, pa.struct([("a", pa.run_end_encoded(pa.int32(), pa.string()))])).to_pylist()
    [None, None]
    """
    if isinstance(type_, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(type_, nulls(count, type_.storage_type))
    none = bitmap(np.zeros(count, np.bool_))
    if pa.types.is_run_end_encoded(type_):
        runs = min(count, 1)
        within = [pa.array([count] * runs, type_.run_end_type), nulls(runs, type_.value_type)]
        return pa.Array.from_buffers(type_, count, [None], children=within)
    if pa.types.is_struct(type_):
        members = [nulls(count, type_.field(n).type) for n in range(type_.num_fields)]
        return pa.Array.from_buffers(type_, count, [none], children=members)
    if pa.types.is_fixed_size_list(type_):
        items = nulls(count * type_.list_size, type_.value_type)
        return pa.Array.from_buffers(type_, count, [none], children=[items])
    if pa.types.is_union(type_) and type_.num_fields:
        return _unions(count, type_)
    if pa.types.is_dictionary(type_):
        indices = pa.nulls(count, type_.index_type)
        return pa.DictionaryArray.from_buffers(type_, count, indices.buffers(), nulls(0, type_.value_type))
    if _is_list(type_):
        item = pa.struct([type_.key_field, type_.item_field]) if pa.types.is_map(type_) else type_.value_type
        large = pa.types.is_large_list(type_) or pa.types.is_large_list_view(type_)
        offsets = pa.py_buffer(np.zeros(count + 1, np.int64 if large else np.int32))
        views = pa.types.is_list_view(type_) or pa.types.is_large_list_view(type_)
        buffers = [none, offsets, offsets] if views else [none, offsets]
        return pa.Array.from_buffers(type_, count, buffers, children=[nulls(0, item)])
    return pa.nulls(count, type_)


def _unions(count: int, type_: pa.DataType) -> pa.Array:
    first, *rest = (type_.field(n).type for n in range(type_.num_fields))
    types = pa.py_buffer(np.full(count, type_.type_codes[0], np.int8))
    if type_.mode == "sparse":
        within = [nulls(count, member) for member in (first, *rest)]
        return pa.Array.from_buffers(type_, count, [None, types], children=within)
    within = [nulls(min(count, 1), first), *(nulls(0, member) for member in rest)]
    offsets = pa.py_buffer(np.zeros(count, np.int32))
    return pa.Array.from_buffers(type_, count, [None, types, offsets], children=within)


def _is_list(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(type_)
        or pa.types.is_large_list(type_)
        or pa.types.is_list_view(type_)
        or pa.types.is_large_list_view(type_)
        or pa.types.is_map(type_)
    )
