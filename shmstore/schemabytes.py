"""Arrow schemas as bytes, exactly, and back.

Arrow's own form of a schema keeps an extension type as a remark on a field; the values of dictionaries and of
run ends have no field, so there it is lost. Where that happens, the values' types stand in a second schema,
under a key of the first one's metadata.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from shmstore.physical import with_members

_VALUES_KEY = b"shmstore:encoded-values"


def to_bytes(schema: pa.Schema) -> bytes:
    """Return a schema as an Arrow IPC message that any Arrow reads, and that `from_bytes` reads exactly."""
    data: bytes = schema.serialize().to_pybytes()
    if travelling(schema).equals(schema):
        return data
    values = [pa.field("", type_) for field in schema for type_ in _encoded_values(field.type)]
    metadata = {**(schema.metadata or {}), _VALUES_KEY: to_bytes(pa.schema(values))}
    image: pa.Buffer = schema.with_metadata(metadata).serialize()
    return bytes(image)


def from_bytes(data: pa.Buffer | bytes | memoryview) -> pa.Schema:
    """Return the schema that `to_bytes` was given.

    Raises
    ------
    ValueError, OSError
        The bytes are no schema.
    """
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(data))
    except pa.ArrowNotImplementedError as error:
        raise ValueError(f"the bytes are no schema that is known here: {error}") from None
    metadata = dict(schema.metadata or {})
    if _VALUES_KEY not in metadata:
        return schema
    values = iter(from_bytes(metadata.pop(_VALUES_KEY)).types)
    try:
        fields = [field.with_type(_restored(field.type, values)) for field in schema]
    except StopIteration:
        raise ValueError("the types of its dictionaries' values are not all there") from None
    return pa.schema(fields, metadata=metadata or None)


def travelling(schema: pa.Schema) -> pa.Schema:
    """Return what is left of a schema in an Arrow IPC stream."""
    return pa.ipc.read_schema(schema.serialize())


def _encoded_values(type_: pa.DataType) -> Iterator[pa.DataType]:
    """Give the types of the values of all dictionaries and run ends within, outermost first."""
    if isinstance(type_, pa.BaseExtensionType):
        return
    if pa.types.is_dictionary(type_) or pa.types.is_run_end_encoded(type_):
        yield type_.value_type
        yield from _encoded_values(type_.value_type)
        return
    for number in range(type_.num_fields):
        yield from _encoded_values(type_.field(number).type)


def _restored(type_: pa.DataType, values: Iterator[pa.DataType]) -> pa.DataType:
    if isinstance(type_, pa.BaseExtensionType):
        return type_
    if pa.types.is_dictionary(type_):
        return pa.dictionary(type_.index_type, _restored(next(values), values), type_.ordered)
    if pa.types.is_run_end_encoded(type_):
        return pa.run_end_encoded(type_.run_end_type, _restored(next(values), values))
    return with_members(type_, lambda field: field.with_type(_restored(field.type, values)))
