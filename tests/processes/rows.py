"""Rows that say who they are: producer, sequence and row, with everything else a function of those three.

Read back, any loss, doubling, wrong order or invented value shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shmstore.reader import Instrument

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
_SLICE_ROWS = 200_000

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
    """Return the row counts of a producer's batches for an instrument, 1 to ``largest``; the same every time."""
    return np.random.default_rng([producer, instrument]).integers(1, largest, batches, endpoint=True)


class Ledger:
    """What was put into one instrument; checks what is read, slice by slice, against it.

    Parameters
    ----------
    put
        For each producer the rows of its batches, in order.
    """

    def __init__(self, put: Mapping[int, Numbers]) -> None:
        self._starts = {producer: np.concatenate([[0], np.cumsum(sizes)]) for producer, sizes in put.items()}
        self.seen = dict.fromkeys(put, 0)

    @property
    def total(self) -> int:
        return sum(int(starts[-1]) for starts in self._starts.values())

    def check(self, read: Mapping[str, Any]) -> None:
        """Check the next rows: each was put, is new, and stands in its producer's order.

        ``read`` holds numpy arrays; ``label`` an Arrow array; ``null`` the mask of nulls of ``flag``, if known.
        """
        producer, sequence = read["producer"], read["sequence"]
        row = read["row"].astype(np.int64)
        assert set(np.unique(producer).tolist()) <= set(self._starts), "rows of nobody"
        for number, starts in self._starts.items():
            mine = producer == number
            of, at = sequence[mine], row[mine]
            assert ((of >= 0) & (of < len(starts) - 1)).all(), f"producer {number}: batches never put"
            found = starts[of] + at
            assert ((at >= 0) & (found < starts[of + 1])).all(), f"producer {number}: rows never put"
            expected = np.arange(self.seen[number], self.seen[number] + len(found))
            assert np.array_equal(found, expected), f"producer {number}: rows lost, doubled or out of order"
            self.seen[number] += len(found)
        held = values(producer, sequence, row)
        assert np.array_equal(read["value"], held["value"])
        assert read["label"].equals(held["label"])
        assert np.array_equal(read["flag"], held["flag"] & ~held["null"])
        if "null" in read:
            assert np.array_equal(read["null"], held["null"])

    def check_complete(self) -> None:
        """Check that nothing that was put is missing."""
        assert self.seen == {producer: int(starts[-1]) for producer, starts in self._starts.items()}


def plain_rows(group: Any, stop: int | None = None, start: int = 0) -> Iterator[dict[str, Any]]:
    """Give an instrument's rows as plain h5py shows them, in slices; ``group`` is its group."""
    stop = len(group["producer"]) if stop is None else stop
    mask = group.get(f"_arrow/validity/{SCHEMA.get_field_index('flag')}")
    for first in range(start, stop, _SLICE_ROWS):
        part = slice(first, min(stop, first + _SLICE_ROWS))
        read = {name: group[name][part] for name in ("producer", "sequence", "row", "value", "flag")}
        read["label"] = _labels(group["label"], part)
        if mask is not None:
            valid = np.ones(part.stop - part.start, np.bool_)
            stored = mask[part]
            valid[: len(stored)] = stored
            read["null"] = ~valid
        yield read


def visible_rows(group: Any) -> int:
    """Return how many rows a reader of a live file sees in all columns."""
    for column in SCHEMA.names:
        for dataset in (group[column].values() if isinstance(group[column], h5py.Group) else [group[column]]):
            dataset.refresh()
    label = group["label"]
    rows = min(len(group[column]) for column in SCHEMA.names if column != "label")
    if not isinstance(label, h5py.Group):
        return min(rows, len(label))
    offsets = label["OFFSETS"][: rows + 1]
    return int(np.searchsorted(offsets, len(label["CHARS"]), side="right")) - 1


def _labels(stored: Any, part: slice) -> pa.Array:
    if not isinstance(stored, h5py.Group):
        return pa.array(stored.asstr()[part], pa.string())
    offsets = stored["OFFSETS"][part.start : part.stop + 1].astype(np.int64)
    chars = stored["CHARS"][offsets[0] : offsets[-1]]
    buffers = [None, pa.py_buffer(offsets - offsets[0]), pa.py_buffer(chars)]
    return pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers).cast(pa.string())


def arrow_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Give the rows of a table as `Ledger.check` takes them."""
    for part in table.to_batches(max_chunksize=_SLICE_ROWS):
        read = {name: part[name].to_numpy() for name in ("producer", "sequence", "row", "value")}
        read["label"] = part["label"]
        read["null"] = np.asarray(part["flag"].is_null().to_numpy(zero_copy_only=False))
        read["flag"] = pc.fill_null(part["flag"], False).to_numpy(zero_copy_only=False)
        yield read


def check_instrument(instrument: Instrument, put: Mapping[int, Numbers]) -> None:
    """Check all rows of an instrument, read through `shmstore.open`."""
    ledger = Ledger(put)
    assert instrument.num_rows == ledger.total
    for part in instrument.iter_batches(batch_rows=_SLICE_ROWS):
        for read in arrow_rows(pa.Table.from_batches([part])):
            ledger.check(read)
    ledger.check_complete()
