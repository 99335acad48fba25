"""Arrow types by what their bytes are: the form in which values travel and are stored.

Some types stand in the way of an exact record. pyarrow has no array class for month and day-time
intervals; and its full validation refuses values that are legal bytes: times beyond a day, dates that are
no whole days, decimals beyond their precision. Such types have a *physical* form here with the same
buffers (int32, int64, fixed-size binary). Batches are given that form on their way in and lose it on
their way out: nothing is copied or looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from shmstore.nulls import nulls
from shmstore.sameness import same_type, same_types

_MONTHS, _DAY_TIME = pa.lib.Type_INTERVAL_MONTHS, pa.lib.Type_INTERVAL_DAY_TIME
_LIST_MAKERS = (
    (pa.types.is_list, pa.list_),
    (pa.types.is_large_list, pa.large_list),
    (pa.types.is_list_view, pa.list_view),
    (pa.types.is_large_list_view, pa.large_list_view),
)


def physical_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema in its physical form; itself if that is the same."""
    changed = schema
    for number, field in enumerate(schema):
        physical = _physical_field(field)
        if not same_type(physical.type, field.type):
            changed = changed.set(number, physical)  # one by one: all else of the schema stays as it is
    return changed


def physical_type(type_: pa.DataType) -> pa.DataType:
    """Return the type in its physical form; itself if that is the same.

    Examples
    --------
    >>> physical_type(pa.list_(pa.time32("s"))), physical_type(pa.decimal128(5, 2)), physical_type(pa.int8())
    (ListType(list<item: int32>), FixedSizeBinaryType(fixed_size_binary[16]), DataType(int8))
    """
    leaf = _physical_leaf(type_)
    if leaf is not None:
        return leaf
    if isinstance(type_, pa.BaseExtensionType):
        storage = physical_type(type_.storage_type)
        return type_ if same_type(storage, type_.storage_type) else storage
    if pa.types.is_dictionary(type_):
        return pa.dictionary(type_.index_type, physical_type(type_.value_type), type_.ordered)
    if pa.types.is_run_end_encoded(type_):
        return pa.run_end_encoded(type_.run_end_type, physical_type(type_.value_type))
    return with_members(type_, _physical_field)


def retyped(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch under another schema of the same buffers: of its physical form, or back.

    The batch itself, if it has that schema already: Arrow's import is not right for every slice.
    """
    found = batch.schema
    if found.equals(schema, check_metadata=True) and same_types(found, schema):
        return batch
    if not batch.num_rows:
        return empty_batch(schema)  # Arrow's import goes wrong over the buffers that empty arrays leave out
    return pa.record_batch(_Retyped(batch, schema))


class _Retyped:
    """A batch that shows another schema at Arrow's C data interface."""

    def __init__(self, batch: pa.RecordBatch, schema: pa.Schema) -> None:
        self._batch = batch
        self._schema = schema

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[Any, Any]:
        return self._schema.__arrow_c_schema__(), self._batch.__arrow_c_array__()[1]


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch without rows, of any schema; Arrow's own functions fail for some types."""
    physical = physical_schema(schema)
    batch = pa.RecordBatch.from_arrays([nulls(0, field.type) for field in physical], schema=physical)
    return batch if physical is schema else pa.record_batch(_Retyped(batch, schema))


def _physical_leaf(type_: pa.DataType) -> pa.DataType | None:
    if type_.id == _MONTHS or pa.types.is_time32(type_):
        return pa.int32()
    if type_.id == _DAY_TIME or pa.types.is_date64(type_) or pa.types.is_time64(type_):
        return pa.int64()
    if pa.types.is_decimal(type_):
        return pa.binary(type_.bit_width // 8)
    return None


def _physical_field(field: pa.Field) -> pa.Field:
    type_ = physical_type(field.type)
    return field if same_type(type_, field.type) else field.with_type(type_)


def with_members(type_: pa.DataType, change: Callable[[pa.Field], pa.Field]) -> pa.DataType:
    """Return a type with each of its members changed; for types that have fields, and any other as it is."""
    if pa.types.is_map(type_):
        return pa.map_(change(type_.key_field), change(type_.item_field), type_.keys_sorted)
    fields = [change(type_.field(number)) for number in range(type_.num_fields)]
    if not fields:
        return type_
    if pa.types.is_struct(type_):
        return pa.struct(fields)
    if pa.types.is_union(type_):
        return pa.union(fields, type_.mode, type_.type_codes)
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(fields[0], type_.list_size)
    for is_kind, make in _LIST_MAKERS:
        if is_kind(type_):
            return make(fields[0])
    raise TypeError(f"a type with members that is unknown here: {type_}")
