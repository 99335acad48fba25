"""Hypothesis strategies for arrays and batches of a given type, as oddly laid out as Arrow allows.

Arrays are put together from buffers: slices at every level, something under each null, lists that do not
begin at offset 0 or have items under a null, list views that overlap, dense unions with gaps, dictionaries
with unused, doubled and null values, runs that go on behind the end. All of it is valid in the sense of
``validate(full=True)``. Left out is an array without items that has no offset at all: Arrow allows it, but
reads what lies behind the buffer when it writes one.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from properties.arrow_items import blobs, fixed_width_items, texts

FEW_ROWS = 8  # of most batches
MANY_ROWS = 300  # of a batch in a while
_PERIOD = 13  # so many values are drawn at most; a longer array repeats them
_INLINE_BYTES = 12  # what a view holds by itself
_BEYOND = b"\xff\xfe\x00"  # bytes that belong to no value, and are no UTF-8

Where = tuple[int, ...]
_Item = TypeVar("_Item")


@dataclasses.dataclass
class _Batch:
    """What drawing one batch needs to know.

    Attributes
    ----------
    draw : callable
        Hypothesis' own.
    nul : bool
        Whether text may hold NUL characters.
    dictionaries : dict
        For each dictionary, by its place in the schema, all values that it may show and how many it shows
        now; goes on from batch to batch.
    """

    draw: st.DrawFn
    nul: bool
    dictionaries: dict[Where, tuple[pa.Array, int]]

    def seldom(self, times: int = 4) -> bool:
        """Return True once in so many times; shrinks to False."""
        return self.draw(st.integers(1, times)) == times

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def items(self, of: st.SearchStrategy[_Item], count: int) -> list[_Item]:
        """Return so many items, some of them drawn and the others repeated."""
        drawn = self.draw(_listed(of, min(count, _PERIOD)))
        return list(itertools.islice(itertools.cycle(drawn), count))

    def numbers(self, count: int, low: int, high: int) -> list[int]:
        return self.items(st.integers(low, high), count)


@functools.cache
def _listed(of: st.SearchStrategy[_Item], count: int) -> st.SearchStrategy[list[_Item]]:
    return st.lists(of, min_size=count, max_size=count)


# -- batches -------------------------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn, schema: pa.Schema, most: int = 5, nul: bool = True) -> list[pa.RecordBatch]:
    """Draw one batch or several of a schema; dictionaries stay, grow or change between them.

    Parameters
    ----------
    schema
        The schema of each.
    most
        Most batches.
    nul
        Whether text may hold NUL characters.
    """
    dictionaries: dict[Where, tuple[pa.Array, int]] = {}
    found = []
    for _ in range(draw(st.integers(1, most))):
        context = _Batch(draw, nul, dictionaries)
        rows = context.number(9, MANY_ROWS) if context.seldom(8) else context.number(0, FEW_ROWS)
        columns = [
            _array(context, field.type, rows, field.nullable, (index,)) for index, field in enumerate(schema)
        ]
        if columns:
            batch = pa.RecordBatch.from_arrays(columns, schema=schema)
        else:  # there may be rows all the same
            rowed = pa.record_batch({"gone": pa.nulls(rows)}).select([])
            batch = pa.ipc.read_record_batch(rowed.serialize(), schema)
        batch.validate(full=True)
        found.append(batch)
    return found


@st.composite
def arrays(
    draw: st.DrawFn, type_: pa.DataType, rows: int, nullable: bool = True, nul: bool = True
) -> pa.Array:
    """Draw an array of a type with so many rows."""
    return _array(_Batch(draw, nul, {}), type_, rows, nullable, (0,))


def _array(context: _Batch, type_: pa.DataType, length: int, nullable: bool, where: Where) -> pa.Array:
    """Draw an array; once in a while as a slice of a longer one."""
    if not context.seldom():
        return _whole(context, type_, length, nullable, where)
    before, after = context.number(0, 3), context.number(0, 2)
    return _whole(context, type_, before + length + after, nullable, where).slice(before, length)


def _whole(context: _Batch, type_: pa.DataType, length: int, nullable: bool, where: Where) -> pa.Array:
    if isinstance(type_, pa.BaseExtensionType):
        storage = _array(context, type_.storage_type, length, nullable, where)
        return pa.ExtensionArray.from_storage(type_, storage)
    if pa.types.is_null(type_):
        return pa.nulls(length)
    if pa.types.is_run_end_encoded(type_):
        return _runs(context, type_, length, nullable, where)
    if pa.types.is_union(type_):
        return _union(context, type_, length, where)
    valid = _validity(context, length) if nullable else None
    for belongs, make in _MAKERS:
        if belongs(type_):
            return make(context, type_, length, valid, where)
    return _fixed_width(context, type_, length, valid)


# -- validity ------------------------------------------------------------------------------------------------


def _validity(context: _Batch, length: int) -> list[bool] | None:
    """Draw which items are there; ``None`` for no bitmap at all, which means all."""
    period = min(length, _PERIOD)
    nulls = context.number(0, 2**period - 1)  # a bit each; shrinks to none
    if not nulls and not context.seldom():
        return None
    return [not nulls >> item % period & 1 for item in range(length)]


def _bitmap(bits: Sequence[bool] | None) -> pa.Buffer | None:
    return None if bits is None else pa.py_buffer(np.packbits(np.array(bits, bool), bitorder="little"))


# -- values of fixed width -----------------------------------------------------------------------------------


def _fixed_width(context: _Batch, type_: pa.DataType, length: int, valid: list[bool] | None) -> pa.Array:
    values = context.items(fixed_width_items(type_), length)
    return pa.Array.from_buffers(type_, length, [_bitmap(valid), _joined(context, values, valid)])


def _joined(context: _Batch, values: list[bytes], valid: list[bool] | None) -> pa.Buffer:
    """Lay values end to end; under nulls sometimes what would not be one."""
    if valid is not None and not all(valid) and context.seldom(2):
        values = [
            value if there else b"\xff" * len(value) for value, there in zip(values, valid, strict=True)
        ]
    return pa.py_buffer(b"".join(values))


def _booleans(
    context: _Batch, type_: pa.DataType, length: int, valid: list[bool] | None, where: Where
) -> pa.Array:
    bits = context.items(st.booleans(), length)
    return pa.Array.from_buffers(type_, length, [_bitmap(valid), _bitmap(bits)])


# -- text and bytes ------------------------------------------------------------------------------------------


def _values(context: _Batch, type_: pa.DataType, count: int) -> list[bytes]:
    text = pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)
    return context.items(texts(context.nul) if text else blobs(), count)


def _strings(
    context: _Batch, type_: pa.DataType, length: int, valid: list[bool] | None, where: Where
) -> pa.Array:
    values = _values(context, type_, length)
    if valid is not None and context.seldom(2):
        values = [value if there else value + _BEYOND for value, there in zip(values, valid, strict=True)]
    before = _BEYOND if context.seldom() else b""
    wide = pa.types.is_large_string(type_) or pa.types.is_large_binary(type_)
    offsets = _offsets([len(value) for value in values], len(before), wide)
    data = pa.py_buffer(b"".join([before, *values, _BEYOND if context.seldom() else b""]))
    return pa.Array.from_buffers(type_, length, [_bitmap(valid), offsets, data])


def _offsets(sizes: list[int], first: int, wide: bool) -> pa.Buffer:
    return pa.py_buffer(np.cumsum([first, *sizes], dtype=np.int64 if wide else np.int32))


def _views(
    context: _Batch, type_: pa.DataType, length: int, valid: list[bool] | None, where: Where
) -> pa.Array:
    """Lay values out as views over two data buffers, back to front, with bytes between that nobody owns."""
    values = _values(context, type_, length)
    data = [bytearray(), bytearray(b"between")]
    views = [b""] * length
    for row in reversed(range(length)):
        value = values[row]
        view = len(value).to_bytes(4, "little")
        if len(value) <= _INLINE_BYTES:
            views[row] = view + value.ljust(_INLINE_BYTES, b"\0")
            continue
        buffer = len(value) & 1
        places = (buffer.to_bytes(4, "little"), len(data[buffer]).to_bytes(4, "little"))
        views[row] = b"".join([view, value[:4], *places])
        data[buffer] += value + b"..."
    buffers = [_bitmap(valid), pa.py_buffer(b"".join(views)), *(pa.py_buffer(bytes(part)) for part in data)]
    return pa.Array.from_buffers(type_, length, buffers)


# -- lists ---------------------------------------------------------------------------------------------------


def _sizes(context: _Batch, length: int) -> list[int]:
    return context.numbers(length, 0, 3 if length <= FEW_ROWS else 1)


def _lists(
    context: _Batch, type_: pa.DataType, length: int, valid: list[bool] | None, where: Where
) -> pa.Array:
    sizes = _sizes(context, length)
    before, after = (context.number(0, 2), context.number(0, 2)) if context.seldom() else (0, 0)
    offsets = _offsets(sizes, before, pa.types.is_large_list(type_))
    item = type_.field(0)
    items = _array(context, item.type, before + sum(sizes) + after, item.nullable, (*where, 0))
    return pa.Array.from_buffers(type_, length, [_bitmap(valid), offsets], children=[items])


def _list_views(
    context: _Batch, type_: pa.DataType, length: int, valid: list[bool] | None, where: Where
) -> pa.Array:
    item = type_.field(0)
    items = _array(context, item.type, context.number(0, 6), item.nullable, (*where, 0))
    places = context.numbers(length, 0, len(items))
    wanted = context.numbers(length, 0, len(items))
    sizes = [min(size, len(items) - place) for place, size in zip(places, wanted, strict=True)]
    dtype = np.int64 if pa.types.is_large_list_view(type_) else np.int32
    buffers = [_bitmap(valid), pa.py_buffer(np.array(places, dtype)), pa.py_buffer(np.array(sizes, dtype))]
    return pa.Array.from_buffers(type_, length, buffers, children=[items])


def _fixed_size_lists(
    context: _Batch, type_: pa.DataType, length: int, valid: list[bool] | None, where: Where
) -> pa.Array:
    item = type_.field(0)
    count = length * type_.list_size + (context.number(0, 2) if context.seldom() else 0)
    items = _array(context, item.type, count, item.nullable, (*where, 0))
    return pa.Array.from_buffers(type_, length, [_bitmap(valid)], children=[items])


# -- what is made of other columns ---------------------------------------------------------------------------


def _structs(
    context: _Batch, type_: pa.DataType, length: int, valid: list[bool] | None, where: Where
) -> pa.Array:
    members = [
        _array(context, field.type, length, field.nullable, (*where, index))
        for index, field in enumerate(type_.fields)
    ]
    return pa.Array.from_buffers(type_, length, [_bitmap(valid)], children=members)


def _dictionaries(
    context: _Batch, type_: pa.DataType, length: int, valid: list[bool] | None, where: Where
) -> pa.Array:
    least = 1 if length and (valid is None or any(valid)) else 0
    labels = _labels(context, type_, where, least)
    count = len(labels)
    numbers = context.numbers(length, 0, max(count - 1, 0))
    width = type_.index_type.bit_width // 8
    indices = _joined(context, [number.to_bytes(width, "little") for number in numbers], valid)
    return pa.DictionaryArray.from_buffers(type_, length, [_bitmap(valid), indices], labels)


def _labels(context: _Batch, type_: pa.DataType, where: Where, least: int) -> pa.Array:
    """Draw a dictionary with so many values at least: the last batch's, that with more values, or another."""
    change = "another"
    values, shown = context.dictionaries.get(where, (pa.nulls(0), 0))
    if where in context.dictionaries:
        change = context.draw(st.sampled_from(["none", "growth", "another"]))
        if change == "growth":
            shown = context.number(shown, len(values))
    if change == "another" or shown < least:
        values = _array(context, type_.value_type, context.number(least, 5), True, (*where, 0))
        shown = context.number(least, len(values))
    context.dictionaries[where] = values, shown
    return values if shown == len(values) else values.slice(0, shown)


def _union(context: _Batch, type_: pa.DataType, length: int, where: Where) -> pa.Array:
    count = type_.num_fields
    picks = context.numbers(length, 0, count - 1)
    types = pa.py_buffer(bytes(type_.type_codes[pick] for pick in picks))
    buffers, lengths = [None, types], [length] * count
    if type_.mode == "dense":
        # Within each child upwards only; items may be passed over, or used twice.
        lengths, offsets = [0] * count, []
        steps = context.numbers(length, -1, 1) if context.seldom() else [0] * length
        for pick, step in zip(picks, steps, strict=True):
            offsets.append(max(lengths[pick] + step, 0))
            lengths[pick] = offsets[-1] + 1
        buffers.append(pa.py_buffer(np.array(offsets, np.int32)))
    members = [
        _array(context, type_.field(index).type, lengths[index], type_.field(index).nullable, (*where, index))
        for index in range(count)
    ]
    return pa.Array.from_buffers(type_, length, buffers, children=members)


def _runs(context: _Batch, type_: pa.DataType, length: int, nullable: bool, where: Where) -> pa.Array:
    unseen = context.number(1, 3) if context.seldom() else 0
    sums = itertools.accumulate(context.numbers(length, 1, 4))
    ends = [*itertools.takewhile(lambda end: end < length, sums), *range(max(length, 1), length + unseen + 1)]
    values = _array(context, type_.value_type, len(ends), nullable, (*where, 0))
    children = [pa.array(ends, type_.run_end_type), values]
    return pa.Array.from_buffers(type_, length, [None], null_count=0, children=children)


_Maker = Callable[[_Batch, pa.DataType, int, "list[bool] | None", Where], pa.Array]

_MAKERS: list[tuple[Callable[[pa.DataType], bool], _Maker]] = [
    (pa.types.is_boolean, _booleans),
    (pa.types.is_string, _strings),
    (pa.types.is_binary, _strings),
    (pa.types.is_large_string, _strings),
    (pa.types.is_large_binary, _strings),
    (pa.types.is_string_view, _views),
    (pa.types.is_binary_view, _views),
    (pa.types.is_list, _lists),
    (pa.types.is_large_list, _lists),
    (pa.types.is_map, _lists),
    (pa.types.is_list_view, _list_views),
    (pa.types.is_large_list_view, _list_views),
    (pa.types.is_fixed_size_list, _fixed_size_lists),
    (pa.types.is_struct, _structs),
    (pa.types.is_dictionary, _dictionaries),
]
