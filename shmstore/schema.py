"""Arrow schemas as descriptions: JSON for people, the first difference for error messages."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa


def to_json(schema: pa.Schema) -> str:
    """Describe a schema as JSON that any language can read.

    The exact schema stands beside in Arrow's own serialized form; this one is for people and for tools that
    know no Arrow: a list of fields with ``name``, ``type`` (Arrow's spelling), ``nullable`` and ``metadata``.

    Examples
    --------
    >>> print(to_json(pa.schema([pa.field("time", pa.timestamp("ns"), nullable=False)])))
    {"fields": [{"name": "time", "type": "timestamp[ns]", "nullable": false}]}
    """
    document: dict[str, Any] = {"fields": [_field_to_dict(field) for field in schema]}
    if schema.metadata:
        document["metadata"] = _metadata_to_dict(schema.metadata)
    return json.dumps(document, ensure_ascii=False)


def first_difference(expected: pa.Schema, found: pa.Schema) -> str | None:
    """Say in a few words where two schemas first differ; ``None`` if they hold the same columns.

    Metadata does not count: it cannot change how a value is stored.

    Examples
    --------
    >>> first_difference(pa.schema([("a", pa.int32())]), pa.schema([("a", pa.int64())]))
    "column 'a' is int64, expected int32"
    """
    for position, field in enumerate(expected):
        if position >= len(found):
            return f"column {field.name!r} ({field.type}) is missing"
        other = found.field(position)
        if other.name != field.name:
            return f"column {position} is {other.name!r}, expected {field.name!r}"
        if not other.type.equals(field.type):
            return f"column {field.name!r} is {other.type}, expected {field.type}"
        if other.nullable and not field.nullable:
            return f"column {field.name!r} is nullable, expected not null"
    if len(found) > len(expected):
        extra = found.field(len(expected))
        return f"column {extra.name!r} ({extra.type}) is not expected"
    return None


def _field_to_dict(field: pa.Field) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": field.name, "type": str(field.type), "nullable": field.nullable}
    if field.metadata:
        entry["metadata"] = _metadata_to_dict(field.metadata)
    return entry


def _metadata_to_dict(metadata: dict[bytes, bytes]) -> dict[str, str]:
    return {
        key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in metadata.items()
    }
