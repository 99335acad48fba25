"""Arrow schemas as descriptions: JSON for people, the first difference for error messages, names of places.

This module compares and spells schemas; what follows from a difference is :mod:`shmstore.evolution`'s to say,
and it never sees a value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import pyarrow as pa

from shmstore.sameness import same_type

#: Longest text of one name or type in a message; names may have 4 KB, types thousands of fields.
_LONGEST_TEXT = 80
#: A place deeper than this is cut in its middle.
_MOST_STEPS = 8


def to_json(schema: pa.Schema) -> str:
    """Describe a schema as JSON that any language can read: :func:`to_dict` as text.

    Examples
    --------
    >>> print(to_json(pa.schema([pa.field("time", pa.timestamp("ns"), nullable=False)])))
    {"fields": [{"name": "time", "type": "timestamp[ns]", "nullable": false}]}
    """
    return json.dumps(to_dict(schema), ensure_ascii=False)


def to_dict(schema: pa.Schema) -> dict[str, Any]:
    """Describe a schema with values that JSON takes.

    The exact schema stands beside in Arrow's own serialized form; this one is for people and for tools that
    know no Arrow: a list of fields with ``name``, ``type`` (Arrow's spelling), ``nullable`` and ``metadata``.
    """
    document: dict[str, Any] = {"fields": [_field_to_dict(field) for field in schema]}
    if schema.metadata:
        document["metadata"] = _metadata_to_dict(schema.metadata)
    return document


def first_difference(expected: pa.Schema, found: pa.Schema) -> str | None:
    """Say in a few words where two schemas first differ; ``None`` if they hold the same columns.

    Metadata does not count, and neither do the names that Arrow gives the items of lists and maps: they
    cannot change how a value is stored. The text is one line of bounded length, whatever the schemas hold.

    Examples
    --------
    >>> first_difference(pa.schema([("a", pa.int32())]), pa.schema([("a", pa.int64())]))
    "column 'a' is int64, expected int32"
    >>> expected, found = (pa.schema([("a", pa.list_(pa.struct([("x", x)])))]) for x in ("int32", "int64"))
    >>> first_difference(expected, found)
    "column 'a', item, field 'x' is int64, expected int32"
    """
    for position, field in enumerate(expected):
        if position >= len(found):
            return f"{_column(expected, position)} ({_shown(field.type)}) is missing"
        other = found.field(position)
        if other.name != field.name:
            return f"column {position} {_is_not(repr(other.name), repr(field.name))}"
        if not same_type(other.type, field.type):
            return _type_difference([_column(expected, position)], field.type, other.type)
        if other.nullable and not field.nullable:
            return f"{_column(expected, position)} is nullable, expected not null"
    if len(found) > len(expected):
        extra = found.field(len(expected))
        return f"column {quoted(extra.name)} ({_shown(extra.type)}) is not expected"
    return None


def quoted(name: str) -> str:
    """Return a name as it stands in messages: quoted, on one line, cut if it is long.

    Examples
    --------
    >>> print(quoted("a"), quoted("x" * 4096)[-22:])
    'a' xx…' (4096 characters)
    """
    text = repr(name)
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[: _LONGEST_TEXT // 2]}…' ({len(name)} characters)"


def spelled(steps: Sequence[str]) -> str:
    """Return the way from a column to a place inside it, as it stands in messages; a long one is cut.

    Examples
    --------
    >>> spelled(["column 'a'", "item", "field 'x'"])
    "column 'a', item, field 'x'"
    """
    if len(steps) > _MOST_STEPS:
        half = _MOST_STEPS // 2
        left_out = f"… ({len(steps) - 2 * half} levels)"
        steps = [*steps[:half], left_out, *steps[-half:]]
    return ", ".join(steps)


def _column(schema: pa.Schema, position: int) -> str:
    name = schema.field(position).name
    unique = name and schema.names.count(name) == 1
    return f"column {quoted(name)}" + ("" if unique else f" at position {position}")


def _type_difference(steps: list[str], expected: pa.DataType, found: pa.DataType) -> str | None:
    if same_type(found, expected):
        return None
    inner = _inner_difference(steps, expected, found) if found.id == expected.id else None
    return inner or f"{spelled(steps)} {_is_not(str(found), str(expected))}"


def _inner_difference(steps: list[str], expected: pa.DataType, found: pa.DataType) -> str | None:
    """Descend into two types of one kind; ``None`` if it is not their children that differ."""
    types = pa.types
    if types.is_struct(expected) or types.is_union(expected):
        return _fields_difference(steps, expected, found)
    if types.is_dictionary(expected):
        difference = _type_difference(
            [*steps, "dictionary index"], expected.index_type, found.index_type
        ) or _type_difference([*steps, "dictionary value"], expected.value_type, found.value_type)
        if difference is None and expected.ordered != found.ordered:
            words = ("an ordered", "an unordered") if found.ordered else ("an unordered", "an ordered")
            difference = f"{spelled(steps)} is {words[0]} dictionary, expected {words[1]} one"
        return difference
    if types.is_run_end_encoded(expected):
        return _type_difference(
            [*steps, "run end"], expected.run_end_type, found.run_end_type
        ) or _type_difference([*steps, "run value"], expected.value_type, found.value_type)
    if types.is_map(expected):
        difference = _field_difference(
            [*steps, "key"], expected.key_field, found.key_field
        ) or _field_difference([*steps, "value"], expected.item_field, found.item_field)
        if difference is None and expected.keys_sorted != found.keys_sorted:
            words = ("sorted", "unsorted") if found.keys_sorted else ("unsorted", "sorted")
            difference = f"{spelled(steps)} has {words[0]} keys, expected {words[1]} ones"
        return difference
    if types.is_fixed_size_list(expected) and expected.list_size != found.list_size:
        return f"{spelled(steps)} has {found.list_size} items, expected {expected.list_size}"
    if hasattr(expected, "value_field"):  # the five kinds of list
        return _field_difference([*steps, "item"], expected.value_field, found.value_field)
    return None


def _fields_difference(steps: list[str], expected: pa.DataType, found: pa.DataType) -> str | None:
    word = "child" if pa.types.is_union(expected) else "field"
    pairs = zip_longest(_fields(expected), _fields(found))
    for position, (field, other) in enumerate(pairs):
        if other is None:
            return f"{spelled(steps)}, {word} {quoted(field.name)} ({_shown(field.type)}) is missing"
        if field is None:
            return f"{spelled(steps)}, {word} {quoted(other.name)} ({_shown(other.type)}) is not expected"
        if other.name != field.name:
            names = _is_not(repr(other.name), repr(field.name))
            return f"{spelled(steps)}, {word} {position} {names}"
        difference = _field_difference([*steps, f"{word} {quoted(field.name)}"], field, other)
        if difference is not None:
            return difference
    if word == "child" and expected.type_codes != found.type_codes:
        codes = _is_not(str(found.type_codes), str(expected.type_codes), "has the type codes")
        return f"{spelled(steps)} {codes}"
    return None


def _fields(type_: pa.DataType) -> Iterator[pa.Field]:
    return (type_.field(position) for position in range(type_.num_fields))


def _field_difference(steps: list[str], expected: pa.Field, found: pa.Field) -> str | None:
    difference = _type_difference(steps, expected.type, found.type)
    if difference is None and expected.nullable != found.nullable:
        words = ("nullable", "not null") if found.nullable else ("not null", "nullable")
        difference = f"{spelled(steps)} is {words[0]}, expected {words[1]}"
    return difference


def _is_not(found: str, expected: str, verb: str = "is") -> str:
    """Set two texts against each other; long ones from shortly before where they part."""
    if found == expected:
        return f"{verb} another {_cut(_one_line(found))} than expected"
    found, expected = _one_line(found), _one_line(expected)
    start = 0
    if max(len(found), len(expected)) > _LONGEST_TEXT:
        pairs = enumerate(zip(found, expected, strict=False))
        parted = next((place for place, (one, two) in pairs if one != two), min(len(found), len(expected)))
        start = max(0, parted - _LONGEST_TEXT // 4)
    return f"{verb} {_cut(found, start)}, expected {_cut(expected, start)}"


def _shown(type_: pa.DataType) -> str:
    return _cut(_one_line(str(type_)))


def _one_line(text: str) -> str:
    # The spelling of a type holds the names of its fields, and with them any character.
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _cut(text: str, start: int = 0) -> str:
    part = text[start : start + _LONGEST_TEXT]
    return ("…" if start else "") + part + ("…" if start + len(part) < len(text) else "")


def _field_to_dict(field: pa.Field) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": field.name, "type": str(field.type), "nullable": field.nullable}
    if field.metadata:
        entry["metadata"] = _metadata_to_dict(field.metadata)
    return entry


def _metadata_to_dict(metadata: dict[bytes, bytes]) -> dict[str, str]:
    return {
        key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in metadata.items()
    }
