"""One column of one instrument in an open file: how many rows it has, and its rows as Arrow arrays.

Owns the way from datasets to arrays, and the checks that a dataset is what the file's layout says. Knows
neither recordings nor how files are opened; it lives for one look at the file, and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shmstore.encoding import decode
from shmstore.errors import IncompleteFileError
from shmstore.layout import Column, Stream, is_blob, is_text

Items = npt.NDArray[Any]

#: Arrow addresses the bytes of one string or binary array with 31 bits.
_ARRAY_CHARS = 2**31 - 1


class StoredColumn:
    """A column's datasets.

    Every method may raise `IncompleteFileError`, naming the dataset, or what h5py raises for a damaged file.

    Parameters
    ----------
    group
        The instrument's group; borrowed.
    column
        Its place in the layout.
    type_
        Its Arrow type.
    """

    def __init__(self, group: h5py.Group, column: Column, type_: pa.DataType) -> None:
        self._column = column
        self._type = type_
        self._datasets = {stream.role: _dataset(group, stream) for stream in column.streams}

    def length(self) -> int:
        """Return the rows by the extent of the first dataset."""
        main = self._column.streams[0]
        return max(0, self._items(main) - main.lead)

    def rows(self) -> int:
        """Return the rows of which every dataset that exists has its part."""
        rows = min(self._items(stream) - stream.lead for stream in self._counted())
        offsets = self._datasets.get("offsets")
        if rows <= 0 or offsets is None:
            return max(0, rows)
        return _rows_within(offsets, rows, self._items(self._column.stream("chars")))

    def check_chunks(self) -> None:
        """Refuse a column with holes, for which HDF5 would make up values. Takes 0.2 µs a chunk."""
        for stream in self._column.streams:
            dataset = self._datasets[stream.role]
            if dataset is None or stream.lazy or not dataset.chunks:
                continue
            expected = -(-len(dataset) // dataset.chunks[0])
            if dataset.id.get_num_chunks() < expected:
                found = dataset.id.get_num_chunks()
                raise IncompleteFileError(
                    f"{stream.path!r} has {found} chunks where {expected} belong: restore it from a copy"
                )

    def read(self, start: int, stop: int) -> pa.ChunkedArray:
        """Read rows, which must be there.

        Parameters
        ----------
        start, stop
            First row, and the row after the last.

        Returns
        -------
        pa.ChunkedArray
            Owns its memory. One chunk, unless its strings are too long for one.
        """
        return pa.chunked_array(self._arrays(start, stop) if stop > start else [], self._type)

    def _counted(self) -> list[Stream]:
        """Return the streams that have an item for each row, as far as they exist."""
        return [
            stream
            for stream in self._column.streams
            if stream.role != "chars" and not (stream.lazy and self._datasets[stream.role] is None)
        ]

    def _items(self, stream: Stream) -> int:
        dataset = self._datasets[stream.role]
        return 0 if dataset is None else len(dataset)

    def _arrays(self, start: int, stop: int) -> list[pa.Array]:
        rows = stop - start
        items: dict[str, Items] = {}
        for stream in self._column.streams:
            dataset, there = self._datasets[stream.role], self._items(stream)
            if stream.lazy:
                if dataset is not None:
                    items[stream.role] = _mask(dataset, stream, start, stop)
                continue
            first, last = start, stop + stream.lead
            if stream.role == "chars":
                first, last = int(items["offsets"][0]), int(items["offsets"][-1])
            if there < last or first > last:
                raise IncompleteFileError(
                    f"{stream.path!r} has {there} items where {last} belong: restore it from a copy"
                )
            items[stream.role] = (
                np.empty(0, stream.numpy_dtype) if dataset is None else _read_items(dataset, first, last)
            )
        if rows > 1 and (is_text(self._type) or is_blob(self._type)) and _chars(items) > _ARRAY_CHARS:
            middle = start + rows // 2
            return self._arrays(start, middle) + self._arrays(middle, stop)
        return [decode(self._column, self._type, items, rows)]


def row_bytes(column: Column, variable: int = 64) -> int:
    """Return about how many bytes a row takes in memory, if a variable-length value takes ``variable``."""
    return sum(
        variable if stream.variable or stream.role == "chars" else stream.item_bytes
        for stream in column.streams
    )


def _read_items(dataset: h5py.Dataset, start: int, stop: int) -> Items:
    """Read items; the only place where values leave the file."""
    return np.asarray(dataset[start:stop])


def _rows_within(offsets: h5py.Dataset, rows: int, chars: int) -> int:
    """Return how many of the rows end within the first ``chars`` bytes, reading few chunks of the offsets.

    While a packed column grows, its offsets and its bytes become visible in chunks of different sizes.
    """
    if offsets[rows] <= chars:
        return rows
    step = offsets.chunks[0] if offsets.chunks else rows + 1
    low, high = 0, rows // step  # the last chunk that begins within
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if offsets[middle * step] <= chars else (low, middle - 1)
    ends = _read_items(offsets, low * step, min((low + 1) * step, rows + 1))
    return max(0, low * step + int(np.searchsorted(ends, chars, side="right")) - 1)


def _mask(dataset: h5py.Dataset, stream: Stream, start: int, stop: int) -> Items:
    """Return a mask's items; what lies beyond its end is valid."""
    mask = np.ones((stop - start, *stream.item_shape), np.bool_)
    there = min(len(dataset), stop) - start
    if there > 0:
        mask[:there] = _read_items(dataset, start, start + there)
    return mask


def _chars(items: Mapping[str, Items]) -> int:
    if "chars" in items:
        return int(items["chars"].size)
    values = items["values"]
    return sum(map(len, values)) if values.dtype == object else values.nbytes


def _dataset(group: h5py.Group, stream: Stream) -> h5py.Dataset | None:
    """Return a stream's dataset, ``None`` if it does not exist; refuse one that is not as the layout says."""
    found = group.get(stream.path)
    if found is None:
        return None
    if not isinstance(found, h5py.Dataset):
        raise IncompleteFileError(f"{stream.path!r} is no dataset: restore it from a copy")
    if stream.dtype == "utf8":
        text = h5py.check_string_dtype(found.dtype)
        fits = text is not None and text.length is None
    elif stream.dtype == "bytes":
        fits = h5py.check_vlen_dtype(found.dtype) == np.uint8
    else:
        fits = found.dtype == stream.numpy_dtype
    if not fits or found.ndim != 1 + len(stream.item_shape) or found.shape[1:] != stream.item_shape:
        raise IncompleteFileError(
            f"{stream.path!r} has items of type {found.dtype} and shape {found.shape[1:]}, the layout says "
            f"{stream.dtype} and {stream.item_shape}: restore it from a copy"
        )
    return found
