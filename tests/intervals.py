"""The two interval types that pyarrow cannot make, and batches of them.

It takes them from others, from a file or over the C data interface; that way is gone here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import pyarrow as pa


class _ArrowSchema(ctypes.Structure):
    """https://arrow.apache.org/docs/format/CDataInterface.html: what is first, and room for the rest."""

    _fields_ = (("format", ctypes.c_char_p), ("rest", ctypes.c_void_p * 8))


def _interval(spelling: bytes) -> pa.DataType:
    description = _ArrowSchema()
    address = ctypes.addressof(description)
    pa.int32()._export_to_c(address)
    description.format = spelling
    return pa.DataType._import_from_c(address)


MONTH_INTERVAL = _interval(b"tiM")
DAY_TIME_INTERVAL = _interval(b"tiD")


class _Relabelled:
    def __init__(self, batch: pa.RecordBatch, schema: pa.Schema) -> None:
        self.batch, self.schema = batch, schema

    def __arrow_c_array__(self, requested_schema: Any = None) -> tuple[Any, Any]:
        return self.schema.__arrow_c_schema__(), self.batch.__arrow_c_array__()[1]


def relabelled(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return the batch's own memory under a schema of the same layout, such as intervals for integers."""
    return pa.record_batch(_Relabelled(batch, schema))


def interval_batch(months: Sequence[int | None], days: Sequence[tuple[int, int] | None]) -> pa.RecordBatch:
    """Return a batch with columns ``months``, ``days`` (days and milliseconds) and ``listed`` (of months)."""
    packed = [None if day is None else day[0] % 2**32 | day[1] << 32 for day in days]
    schema = pa.schema(
        [("months", MONTH_INTERVAL), ("days", DAY_TIME_INTERVAL), ("listed", pa.list_(MONTH_INTERVAL))]
    )
    columns = [
        pa.array(months, pa.int32()),
        pa.array(packed, pa.int64()),
        pa.array([None if month is None else [month, None] for month in months], pa.list_(pa.int32())),
    ]
    return relabelled(pa.RecordBatch.from_arrays(columns, names=schema.names), schema)
