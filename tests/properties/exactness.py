"""What it means that two Arrow tables are the same: every bit that somebody could have meant.

Values become *tokens*, plain Python values that are equal exactly if the values are: floats by their bits
(NaN payloads, -0.0), times as the number that was put, null apart from empty, a dictionary's value as its
index together with the whole dictionary, a union's with its type code. How arrays are chunked, sliced or
padded, what lies under a null, and how runs and list views are laid out does not count.

Read off the buffers, since pyarrow's own conversions refuse some values and bend others (its
``UnionArray.type_codes`` and ``offsets`` forget the offset of a slice).
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Token = Any


def tokens(array: pa.Array) -> list[Token]:
    """Return one token for each item of an array; ``None`` for a null."""
    type_ = array.type
    if isinstance(type_, pa.BaseExtensionType):
        return tokens(array.storage)
    if pa.types.is_null(type_):
        return [None] * len(array)
    if pa.types.is_union(type_):
        return _union(array)
    if pa.types.is_run_end_encoded(type_):
        return _runs(array)
    if not len(array):
        return []
    values = _values(array, type_)
    if array.buffers()[0] is None:
        return values
    return [value if valid else None for value, valid in zip(values, _bits(array, 0), strict=True)]


def table_tokens(batches: Iterable[pa.RecordBatch], columns: Sequence[int]) -> list[list[Token]]:
    """Return for each of some columns, by position, the tokens of all rows."""
    batches = list(batches)
    return [[token for batch in batches for token in tokens(batch.column(index))] for index in columns]


def difference(
    found: pa.Table, schema: pa.Schema, rows: int, expected: Sequence[Sequence[Token]]
) -> str | None:
    """Say where a table first differs from what it should hold; ``None`` if nowhere.

    Parameters
    ----------
    found
        The table.
    schema
        The schema that it should have, metadata included.
    rows
        How many rows it should have.
    expected
        The tokens of each column.
    """
    if not found.schema.equals(schema, check_metadata=True) or found.schema.serialize() != schema.serialize():
        shown = [one.to_string(truncate_metadata=False) for one in (schema, found.schema)]
        return "the schema was\n{}\nand is\n{}".format(*shown)
    try:
        found.validate(full=True)
    except pa.ArrowInvalid as error:
        return f"the table is not valid: {error}"
    if found.num_rows != rows:
        return f"there were {rows} rows and are {found.num_rows}"
    for index, (field, wanted) in enumerate(zip(schema, expected, strict=True)):
        got = [token for chunk in found.column(index).chunks for token in tokens(chunk)]
        if got == wanted:
            continue
        for row, (put, read) in enumerate(zip(wanted, got, strict=True)):
            if put != read:
                column = f"column {index} {field.name[:40]!r} ({str(field.type)[:200]})"
                return f"{column}, row {row}: put {put!r}, read {read!r}"
    return None


def _values(array: pa.Array, type_: pa.DataType) -> list[Token]:
    """Return the tokens of an array with a validity buffer, as if all were valid."""
    if pa.types.is_boolean(type_):
        return _bits(array, 1)
    if pa.types.is_dictionary(type_):
        labels = tuple(tokens(array.dictionary))
        return [(int(index), labels) for index in _numbers(array, 1, type_.index_type.to_pandas_dtype())]
    if pa.types.is_struct(type_):
        members = [tokens(array.field(index)) for index in range(type_.num_fields)]
        return list(zip(*members, strict=True)) if members else [()] * len(array)
    if pa.types.is_fixed_size_list(type_):
        size = type_.list_size
        items = tokens(array.values.slice(array.offset * size, len(array) * size))
        return [tuple(items[size * row : size * (row + 1)]) for row in range(len(array))]
    if pa.types.is_list(type_) or pa.types.is_map(type_):
        return _lists(array, np.int32)
    if pa.types.is_large_list(type_):
        return _lists(array, np.int64)
    if pa.types.is_list_view(type_):
        return _list_views(array, np.int32)
    if pa.types.is_large_list_view(type_):
        return _list_views(array, np.int64)
    if pa.types.is_string(type_) or pa.types.is_binary(type_):
        return _strings(array, np.int32)
    if pa.types.is_large_string(type_) or pa.types.is_large_binary(type_):
        return _strings(array, np.int64)
    if pa.types.is_string_view(type_) or pa.types.is_binary_view(type_):
        return _views(array)
    width = type_.bit_width // 8
    data = _octets(array, 1)
    start = array.offset * width
    return [data[start + width * row : start + width * (row + 1)] for row in range(len(array))]


def _octets(array: pa.Array, buffer: int) -> bytes:
    found = array.buffers()[buffer]
    return b"" if found is None else found.to_pybytes()


def _numbers(array: pa.Array, buffer: int, dtype: npt.DTypeLike, more: int = 0) -> npt.NDArray[Any]:
    size = np.dtype(dtype).itemsize
    return np.frombuffer(_octets(array, buffer), dtype, len(array) + more, array.offset * size)


def _bits(array: pa.Array, buffer: int) -> list[bool]:
    bits = np.unpackbits(np.frombuffer(_octets(array, buffer), np.uint8), bitorder="little")
    return [bool(bit) for bit in bits[array.offset : array.offset + len(array)]]


def _strings(array: pa.Array, offset: npt.DTypeLike) -> list[bytes]:
    data = _octets(array, 2)
    ends = _numbers(array, 1, offset, 1).tolist()
    return [data[start:stop] for start, stop in itertools.pairwise(ends)]


def _views(array: pa.Array) -> list[bytes]:
    """Follow each 16-byte view: a length, then the bytes themselves if at most 12, or where they are."""
    data = [buffer.to_pybytes() for buffer in array.buffers()[2:]]
    found = []
    for view in _numbers(
        array, 1, np.dtype([("size", "<i4"), ("head", "V4"), ("buffer", "<i4"), ("start", "<i4")])
    ):
        size, start = int(view["size"]), int(view["start"])
        inline = view.tobytes()[4 : 4 + size]
        # What lies under a null may lead nowhere.
        known = size > 12 and 0 <= view["buffer"] < len(data)
        found.append(data[view["buffer"]][start : start + size] if known else inline)
    return found


def _lists(array: pa.Array, offset: npt.DTypeLike) -> list[Token]:
    ends = _numbers(array, 1, offset, 1).tolist()
    items = tokens(array.values.slice(ends[0], ends[-1] - ends[0]))
    return [tuple(items[start - ends[0] : stop - ends[0]]) for start, stop in itertools.pairwise(ends)]


def _list_views(array: pa.Array, offset: npt.DTypeLike) -> list[Token]:
    items = tokens(array.values)
    starts, sizes = _numbers(array, 1, offset).tolist(), _numbers(array, 2, offset).tolist()
    return [tuple(items[start : start + size]) for start, size in zip(starts, sizes, strict=True)]


def _union(array: pa.Array) -> list[Token]:
    if not len(array):
        return []
    type_ = array.type
    child_of = {code: index for index, code in enumerate(type_.type_codes)}
    codes = _numbers(array, 1, np.int8).tolist()
    members = [tokens(array.field(index)) for index in range(type_.num_fields)]
    places = _numbers(array, 2, np.int32).tolist() if type_.mode == "dense" else range(len(array))
    return [(code, members[child_of[code]][place]) for code, place in zip(codes, places, strict=True)]


def _runs(array: pa.Array) -> list[Token]:
    ends = array.run_ends.to_pylist()
    values = tokens(array.values)
    return [values[bisect.bisect_right(ends, array.offset + row)] for row in range(len(array))]
