"""Rows that say who they are: producer, sequence and row, with everything else a function of those three.

Read back, any loss, doubling, wrong order or invented value shows: see `processes.ledger`. Children import
this module, so it imports little.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SCHEMA = pa.schema(
    [
        ("producer", pa.int64()),
        ("sequence", pa.int64()),
        ("row", pa.int32()),
        ("value", pa.float64()),
        ("label", pa.string()),
        ("flag", pa.bool_()),
    ]
)
_LABELS = pa.array([f"label-{number}-µ"[: 4 + number % 13] for number in range(64)])

Numbers = npt.NDArray[np.int64]


def values(producer: Numbers, sequence: Numbers, row: Numbers) -> dict[str, Any]:
    """Return what the other columns hold in these rows: two arrays, labels, and a mask of nulls."""
    mixed = producer * 31 + sequence * 7 + row
    return {
        "value": producer * 1e6 + sequence + row / 8192,
        "label": _LABELS.take(pa.array(mixed % len(_LABELS))),
        "flag": mixed % 3 == 0,
        "null": mixed % 11 == 5,
    }


def batch(producer: int, sequence: int, rows: int) -> pa.RecordBatch:
    """Return the rows of one batch."""
    row = np.arange(rows)
    producers, sequences = np.full(rows, producer), np.full(rows, sequence)
    held = values(producers, sequences, row)
    columns = [
        pa.array(producers),
        pa.array(sequences),
        pa.array(row.astype(np.int32)),
        pa.array(held["value"]),
        held["label"],
        pa.array(held["flag"], mask=held["null"]),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def sizes(producer: int, instrument: int, batches: int, largest: int = 5000) -> Numbers:
    """Return the row counts of a producer's batches for an instrument, 1 to ``largest``."""
    return np.random.default_rng([producer, instrument]).integers(1, largest, batches, endpoint=True)


def endless_sizes(producer: int, instrument: int, largest: int = 5000) -> Iterator[int]:
    """Give the same row counts one by one, without an end."""
    random = np.random.default_rng([producer, instrument])
    while True:
        yield from random.integers(1, largest, 1000, endpoint=True).tolist()
