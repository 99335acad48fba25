"""Whether two Arrow types are one: all the way down, where Arrow's own comparison does not look."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa


def same_type(one: pa.DataType, two: pa.DataType) -> bool:
    """Say whether two types are equal, the metadata of their fields apart.

    Arrow (26) takes dictionaries and run ends for equal whose values hold an extension type, whatever else
    these hold: ``struct<uuid, int64>`` for ``struct<uuid, string>``.

    Examples
    --------
    >>> one, two = (
    ...     pa.dictionary(pa.int8(), pa.struct([("a", pa.uuid()), ("b", t)])) for t in ("int8", "utf8")
    ... )
    >>> same_type(one, two), same_type(one, one)
    (False, True)
    """
    if not one.equals(two):
        return False
    return all(same_type(a, b) for a, b in zip(_within(one), _within(two), strict=False))


def same_types(one: pa.Schema, two: pa.Schema) -> bool:
    """Say whether two schemas have the same columns, metadata apart."""
    return bool(one.equals(two)) and all(map(same_type, one.types, two.types))


def _within(type_: pa.DataType) -> Iterator[pa.DataType]:
    if isinstance(type_, pa.BaseExtensionType):
        yield type_.storage_type
    elif pa.types.is_dictionary(type_):
        yield type_.value_type
    else:
        for number in range(type_.num_fields):
            yield type_.field(number).type
