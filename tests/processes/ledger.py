"""Checks rows that were read back, through plain h5py and `shmstore.open`, against those that were put."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from processes.rows import SCHEMA, Numbers, values

from shmstore.reader import Instrument

_SLICE_ROWS = 200_000


class Ledger:
    """What was put into one instrument; checks what is read, slice by slice, against it.

    Parameters
    ----------
    put
        For each producer the rows of its batches, in order.
    """

    def __init__(self, put: Mapping[int, Sequence[int] | Numbers]) -> None:
        self._starts = {producer: np.concatenate([[0], np.cumsum(sizes)]) for producer, sizes in put.items()}
        self.seen = dict.fromkeys(put, 0)

    @property
    def total(self) -> int:
        return sum(int(starts[-1]) for starts in self._starts.values())

    def check(self, read: Mapping[str, Any]) -> None:
        """Check the next rows: each was put, is new, and stands in its producer's order.

        ``read`` holds numpy arrays; ``label`` an Arrow array; ``null`` is the mask of nulls of
        ``flag``, if it is known.
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


def visible_rows(group: Any, seen: int) -> int:
    """Return how many rows a reader of a live file sees in all columns, ``seen`` of which it knows."""
    for column in SCHEMA.names:
        for dataset in group[column].values() if isinstance(group[column], h5py.Group) else [group[column]]:
            dataset.refresh()
    label = group["label"]
    rows = min(len(group[column]) for column in SCHEMA.names if column != "label")
    if not isinstance(label, h5py.Group):
        return min(rows, len(label))
    offsets = label["OFFSETS"][seen : rows + 1]
    whole = int(np.searchsorted(offsets, len(label["CHARS"]), side="right"))
    return max(0, seen + whole - 1)


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


def check_instrument(instrument: Instrument, put: Mapping[int, Sequence[int] | Numbers]) -> None:
    """Check all rows of an instrument, read through `shmstore.open`."""
    ledger = Ledger(put)
    assert instrument.num_rows == ledger.total
    for part in instrument.iter_batches(batch_rows=_SLICE_ROWS):
        for read in arrow_rows(pa.Table.from_batches([part])):
            ledger.check(read)
    ledger.check_complete()
