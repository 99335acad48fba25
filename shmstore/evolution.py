"""The policy ``evolve``: which schema holds for an instrument once a batch with another one has come.

Pure functions over Arrow schemas and batches. Who asks, and what becomes of a file whose columns grow, is not
known here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa

from shmstore.errors import IncompleteFileError, SchemaMismatchError
from shmstore.nulls import nulls
from shmstore.sameness import same_type, same_types
from shmstore.schema import first_difference, quoted, to_dict

#: By this key of a field's metadata a type that is not registered here says what it is.
_EXTENSION_NAME = b"ARROW:extension:name"
_SIGNED = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
_REMEDY = "; cast the batch, or use schema_policy='new'"


@dataclass(frozen=True, slots=True)
class Evolution:
    """What a batch of another schema makes of an instrument's.

    Attributes
    ----------
    schema : pyarrow.Schema
        The schema that holds from now on: the former columns in their order, then the new ones.
    added : tuple of int
        Columns of ``schema`` that are new; rows before are null there.
    widened : tuple of int
        Columns whose type became wider; the values of rows before are cast.
    loosened : tuple of int
        Columns that may be null from now on and might not before.
    """

    schema: pa.Schema
    added: tuple[int, ...] = ()
    widened: tuple[int, ...] = ()
    loosened: tuple[int, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether ``schema`` is another than before; if not, :func:`project` is all that a batch needs."""
        return bool(self.added or self.widened or self.loosened)


@dataclass(frozen=True, slots=True)
class PastSchema:
    """A schema that held once, as the file's history tells it.

    Attributes
    ----------
    row : int
        It held for the rows before this one (from the row of the entry before on, or from 0).
    schema : Mapping
        As :func:`shmstore.schema.to_dict` makes it; equality compares it.
    """

    row: int
    schema: Mapping[str, Any]

    @classmethod
    def of(cls, row: int, schema: pa.Schema) -> PastSchema:
        """Describe a schema that is replaced at ``row``."""
        return cls(row, to_dict(schema))


def evolve(current: pa.Schema, found: pa.Schema) -> Evolution:
    """Return the schema that holds for both what was recorded and a batch of the schema ``found``.

    Columns are matched by name, doubled names also by occurrence; their order in ``found`` does not count.
    Columns that are new are appended and must be nullable; those that are left out must be nullable too.
    Whole columns of integers, and of floats, may be wider than before, and get the smallest type that holds
    both; narrower ones are cast (:func:`project`). A column that was not null may become nullable. Metadata
    of the schema and of its columns stays; new columns bring theirs.

    Raises
    ------
    SchemaMismatchError
        Anything else differs; the message shows the first difference and what would be accepted. It names no
        instrument: that is the caller's to add.

    Examples
    --------
    >>> current = pa.schema([("a", pa.uint8())])
    >>> evolution = evolve(current, pa.schema([("a", pa.int8()), ("b", pa.string())]))
    >>> evolution.schema.types, evolution.added, evolution.widened
    ([DataType(int16), DataType(string)], (1,), (0,))
    """
    if same_types(found, current):
        return Evolution(current)
    others = dict(_by_occurrence(found))
    fields: list[pa.Field] = []
    widened, loosened = [], []
    for key, position in _by_occurrence(current):
        field = current.field(position)
        if key in others:
            other = found.field(others.pop(key))
            type_ = _common_type(field, other)
            if not same_type(type_, field.type):
                widened.append(position)
                field = field.with_type(type_)
            if other.nullable and not field.nullable:
                loosened.append(position)
                field = field.with_nullable(True)
        elif not field.nullable:
            raise SchemaMismatchError(
                f"column {quoted(field.name)} is missing and declared not null; only a nullable column may "
                f"be left out{_REMEDY}"
            )
        fields.append(field)
    for position in others.values():
        field = found.field(position)
        if not field.nullable:
            raise SchemaMismatchError(
                f"column {quoted(field.name)} is new and declared not null; only a nullable column may be "
                f"added{_REMEDY}"
            )
        fields.append(field)
    schema = pa.schema(fields, metadata=current.metadata)
    added = tuple(range(len(current), len(fields)))
    return Evolution(schema, added, tuple(widened), tuple(loosened))


def project(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch of an older, narrower or reordered schema under the one that holds now.

    Columns that are missing are null, narrower ones are cast, all others are passed on without a copy. The
    batch itself comes back if it has exactly this schema.

    Parameters
    ----------
    batch
        Its schema must be one under which ``schema`` stays as it is: see :func:`evolve`.
    schema
        The schema of the result, metadata included.

    Raises
    ------
    SchemaMismatchError
        ``schema`` cannot hold the batch.
    """
    if batch.schema is schema or batch.schema.equals(schema, check_metadata=True):
        return batch
    evolution = evolve(schema, batch.schema)
    if evolution.changed:
        raise SchemaMismatchError(
            f"a batch does not fit the schema that holds: {first_difference(schema, batch.schema)}; evolve "
            "the schema first"
        )
    if not len(schema):  # no column would carry the number of rows
        return batch.replace_schema_metadata(schema.metadata)
    positions = dict(_by_occurrence(batch.schema))
    columns = []
    for key, position in _by_occurrence(schema):
        type_ = schema.field(position).type
        if key in positions:
            column = batch.column(positions[key])
            columns.append(column if same_type(column.type, type_) else column.cast(type_))
        else:
            columns.append(nulls(batch.num_rows, type_))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def history_to_json(history: Iterable[PastSchema]) -> str:
    """Return the schemas that held before, oldest first, as the JSON that stands in the file.

    Examples
    --------
    >>> print(history_to_json([PastSchema.of(100, pa.schema([("a", pa.int8())]))]))
    [{"row": 100, "schema": {"fields": [{"name": "a", "type": "int8", "nullable": true}]}}]
    """
    entries = [{"row": past.row, "schema": past.schema} for past in history]
    return json.dumps(entries, ensure_ascii=False)


def history_from_json(text: str) -> list[PastSchema]:
    """Return what :func:`history_to_json` was given.

    Raises
    ------
    IncompleteFileError
        The text is no history; the caller adds the file and the instrument.
    """
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list) or not all(map(_is_past_schema, entries)):
        raise IncompleteFileError("the history of the schema is damaged: it is no list of rows and schemas")
    history = [PastSchema(entry["row"], entry["schema"]) for entry in entries]
    if any(after.row < before.row for before, after in pairwise(history)):
        raise IncompleteFileError("the history of the schema is damaged: its rows are out of order")
    return history


def _is_past_schema(entry: object) -> bool:
    if not isinstance(entry, dict) or set(entry) != {"row", "schema"}:
        return False
    row, schema = entry["row"], entry["schema"]
    return type(row) is int and row >= 0 and isinstance(schema, dict) and "fields" in schema


def _by_occurrence(schema: pa.Schema) -> Iterable[tuple[tuple[str, int], int]]:
    """Yield name and occurrence, and the position, of every column."""
    seen: Counter[str] = Counter()
    for position, name in enumerate(schema.names):
        yield (name, seen[name]), position
        seen[name] += 1


def _common_type(current: pa.Field, found: pa.Field) -> pa.DataType:
    """Return the smallest type that holds the values of both columns."""
    if same_type(found.type, current.type):
        return current.type
    if not any(_EXTENSION_NAME in (field.metadata or ()) for field in (current, found)):
        type_ = _wider_integer(current.type, found.type) or _wider_float(current.type, found.type)
        if type_ is not None:
            return type_
    loose = found.with_nullable(current.nullable)
    difference = first_difference(pa.schema([current]), pa.schema([loose]))
    raise SchemaMismatchError(f"{difference}; {_accepted(current.type, found.type)}{_REMEDY}")


def _wider_integer(one: pa.DataType, two: pa.DataType) -> pa.DataType | None:
    types = pa.types
    if not (types.is_integer(one) and types.is_integer(two)):
        return None
    if types.is_signed_integer(one) == types.is_signed_integer(two):
        return max(one, two, key=lambda type_: int(type_.bit_width))
    # A signed integer holds the unsigned ones of half its width.
    bits = max(t.bit_width * (1 if types.is_signed_integer(t) else 2) for t in (one, two))
    return _SIGNED.get(bits)


def _wider_float(one: pa.DataType, two: pa.DataType) -> pa.DataType | None:
    if pa.types.is_floating(one) and pa.types.is_floating(two):
        return max(one, two, key=lambda type_: int(type_.bit_width))
    return None


def _accepted(current: pa.DataType, found: pa.DataType) -> str:
    types = pa.types
    if types.is_integer(current) and types.is_integer(found):
        return "no integer type holds both"
    if types.is_integer(current):
        return "integers of any width are accepted"
    if types.is_floating(current):
        return "floats of any width are accepted"
    return "only columns of integers or of floats may change their type, to another width"
