"""What a batch drags along that none of its rows shows, and how to leave it behind.

Arrow cuts nearly everything to the rows of a slice when it serializes one. The texts behind string and binary
views it does not: 100 rows of a parent with 46 MB of text travel with all 46 MB. Here such columns get texts
of their own, at any depth. Knows nothing of slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

#: A view is 16 bytes; up to 12 bytes of text stand in the view itself.
_VIEW_WORDS, _INLINE_BYTES = 4, 12
#: Views find their text by a signed 32-bit offset: more than this cannot stand in one piece.
_ONE_PIECE = 2**31 - 1


def types_in(type_: pa.DataType) -> Iterator[pa.DataType]:
    """Give a type and all types that it is made of: items, fields, storage, dictionary values."""
    yield type_
    if isinstance(type_, pa.BaseExtensionType):
        yield from types_in(type_.storage_type)
    elif pa.types.is_dictionary(type_):
        yield from types_in(type_.value_type)
    else:
        for index in range(type_.num_fields):
            yield from types_in(type_.field(index).type)


def has_views(type_: pa.DataType) -> bool:
    """Say whether a type holds string or binary views, at any depth."""
    return any(_is_view(found) for found in types_in(type_))


def compact(array: pa.Array) -> pa.Array:
    """Return an equal array of the same type whose views bring no more than twice the text that they show.

    What need not be changed is shared with ``array``. A copy is made only of views with too much behind them.
    """
    type_ = array.type
    if not has_views(type_):
        return array
    if isinstance(type_, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(type_, compact(array.storage))
    if _is_view(type_):
        return _compact_views(array)
    if pa.types.is_dictionary(type_):
        values = compact(array.dictionary)
        return pa.DictionaryArray.from_arrays(array.indices, values, ordered=type_.ordered, safe=False)
    rebuild = next(rebuild for is_kind, rebuild in _REBUILDERS if is_kind(type_))
    own, children = rebuild(array)
    children = [compact(child) for child in children]
    buffers = [_validity(array), *(pa.py_buffer(np.ascontiguousarray(values)) for values in own)]
    return pa.Array.from_buffers(type_, len(array), buffers, array.null_count, 0, children)


def _is_view(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(type_) or pa.types.is_binary_view(type_))


def _compact_views(array: pa.Array) -> pa.Array:
    _, views, *texts = array.buffers()
    brought = sum(text.size for text in texts if text is not None)
    if not brought or not views:
        return array
    first, end = array.offset, array.offset + len(array)
    lengths = np.frombuffer(views, np.int32)[first * _VIEW_WORDS : end * _VIEW_WORDS : _VIEW_WORDS]
    shown = int(lengths[lengths > _INLINE_BYTES].sum(dtype=np.int64))
    if brought <= 2 * shown or shown > _ONE_PIECE:
        return array
    flat = pa.large_string() if pa.types.is_string_view(array.type) else pa.large_binary()
    return array.cast(flat).cast(array.type)


def _validity(array: pa.Array) -> pa.Buffer | None:
    if not array.null_count:  # as unions and run ends say: their nulls are their children's
        return None
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    return pa.py_buffer(np.packbits(valid, bitorder="little"))


# -- nested types: own buffers, validity apart, and children; both cut to the array's items, counted from 0 --

_Parts = tuple[list[npt.NDArray[Any]], list[pa.Array]]


def _own(array: pa.Array, number: int, dtype: Any, count: int) -> npt.NDArray[Any]:
    """Return ``count`` items of one of the array's own buffers, from its first item on."""
    buffer = array.buffers()[number]
    return np.frombuffer(buffer, dtype)[array.offset :][:count] if count else np.empty(0, dtype)


def _struct(array: pa.Array) -> _Parts:
    return [], [array.field(index) for index in range(array.type.num_fields)]


def _list(array: pa.Array) -> _Parts:
    dtype = np.int64 if pa.types.is_large_list(array.type) else np.int32
    offsets = _own(array, 1, dtype, len(array) + 1) if len(array) else np.zeros(1, dtype)
    first, end = int(offsets[0]), int(offsets[-1])
    if pa.types.is_map(array.type):
        fields = [array.type.key_field, array.type.item_field]
        # Not `array.keys` and `array.items`, which look past the entries' own offset.
        pairs = [array.values.field(number).slice(first, end - first) for number in range(2)]
        return [offsets - first], [pa.StructArray.from_arrays(pairs, fields=fields)]
    return [offsets - first], [array.values.slice(first, end - first)]


def _list_view(array: pa.Array) -> _Parts:
    dtype = np.int64 if pa.types.is_large_list_view(array.type) else np.int32
    offsets, sizes = (_own(array, number, dtype, len(array)) for number in (1, 2))
    owns = sizes > 0
    first = int(offsets[owns].min(initial=np.iinfo(dtype).max)) if owns.any() else 0
    end = int((offsets + sizes)[owns].max(initial=first))
    return [np.where(owns, offsets - first, 0).astype(dtype), sizes], [array.values.slice(first, end - first)]


def _fixed_list(array: pa.Array) -> _Parts:
    size = array.type.list_size
    return [], [array.values.slice(array.offset * size, len(array) * size)]


def _union(array: pa.Array) -> _Parts:
    codes = _own(array, 1, np.int8, len(array))
    children = [array.field(index) for index in range(array.type.num_fields)]
    if array.type.mode == "sparse":
        return [codes], children  # already cut to the array's items
    offsets = _own(array, 2, np.int32, len(array)).copy()
    for index, code in enumerate(array.type.type_codes):
        mine = codes == code
        places = offsets[mine]
        first = int(places.min()) if len(places) else 0
        end = int(places.max()) + 1 if len(places) else 0
        offsets[mine] -= first
        children[index] = children[index].slice(first, end - first)
    return [codes, offsets], children


def _run_ends(array: pa.Array) -> _Parts:
    first, count = array.find_physical_offset(), array.find_physical_length()
    ends = array.run_ends.slice(first, count).to_numpy()
    ends = np.minimum(ends.astype(np.int64) - array.offset, len(array)).astype(ends.dtype)
    return [], [pa.array(ends, array.type.run_end_type), array.values.slice(first, count)]


_REBUILDERS: list[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], _Parts]]] = [
    (pa.types.is_struct, _struct),
    (lambda type_: pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_map(type_), _list),
    (lambda type_: pa.types.is_list_view(type_) or pa.types.is_large_list_view(type_), _list_view),
    (pa.types.is_fixed_size_list, _fixed_list),
    (pa.types.is_union, _union),
    (pa.types.is_run_end_encoded, _run_ends),
]
