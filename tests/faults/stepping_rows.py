"""The rows of `faults.stepping_crew`, for who puts them and who checks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from processes.rows import sizes

FILE = "daq.h5"
TIMEOUT_S = 60
BATCHES = 40
LARGEST_ROWS = 100  # such a batch is a quarter of its ring at most: it is never cut
#: The instrument of each ring.
RINGS = {0: "vlen", 1: "packed", 2: "lent", 3: "evolving", 4: "late"}
PLAIN = pa.schema(
    [("producer", pa.int64()), ("sequence", pa.int64()), ("row", pa.int32()), ("value", pa.float64())]
)
#: Of the instrument whose schema evolves: one column is new, two are wider.
EARLIER = PLAIN.set(3, pa.field("value", pa.float32())).set(1, pa.field("sequence", pa.int16()))
LATER = PLAIN.append(pa.field("extra", pa.int64()))


def rows_of(ring: int, sequence: int) -> int:
    """Return how many rows a batch has."""
    return int(sizes(ring, 0, BATCHES, LARGEST_ROWS)[sequence])


def plain(ring: int, sequence: int) -> dict[str, Any]:
    """Return the columns of `PLAIN`."""
    row = np.arange(rows_of(ring, sequence))
    return {"producer": ring, "sequence": sequence, "row": row, "value": value(sequence, row)}


def value(sequence: Any, row: Any) -> Any:
    """Return what the column has in these rows: exact as float32."""
    return sequence + row / 8192


def sealed_path(folder: Path, ring: int) -> Path:
    """Return the file with the count of a ring's batches."""
    return folder / "sealed" / str(ring)
