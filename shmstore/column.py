"""One column of one instrument in an open file: how many rows it has, and its rows as Arrow arrays.

Owns the way from datasets to arrays, and the checks that a dataset is what the file's layout says. Knows
neither recordings nor how files are opened; it lives for one look at the file, and keeps nothing.
"""

from __future__ import annotations

import itertools

import h5py
import numpy as np
import pyarrow as pa

from shmstore.buffers import Items
from shmstore.chunks import read_items
from shmstore.decoding import TooLongError, decode
from shmstore.errors import IncompleteFileError
from shmstore.layout import Column, Node, Stream
from shmstore.planning import child_types, storage_type

#: What a string or byte sequence that HDF5 placed itself is taken to need in memory.
_VARIABLE_BYTES = 64


class StoredColumn:
    """A column's datasets; where `shmstore.decoding.decode` gets its items from.

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
        self._datasets = {stream.path: _dataset(group, stream) for stream in column.streams}
        self._whole: dict[str, Items] = {}

    # -- how much there is -------------------------------------------------------------------------------

    def rows(self) -> int:
        """Return the rows of which every dataset that exists has its part."""
        return self._available(self._column.node, self._type)

    def length(self) -> int:
        """Return the rows by the extent of the column's first datasets; nested ones do not count."""
        return self._extent(self._column.node, self._type)

    def _extent(self, node: Node, type_: pa.DataType) -> int:
        """Return the items of a node by the dataset that says so most directly."""
        eager = [stream for stream in node.streams if not stream.lazy and stream.role != "segments"]
        if node.kind == "run_ends":
            ends = self._there(eager[0])
            return int(self.items(eager[0], ends - 1, ends)[0]) if ends else 0
        if eager:
            return max(0, self._there(eager[0]) - eager[0].lead)
        items = self._extent(node.children[0], child_types(type_)[0])
        return items // storage_type(type_).list_size if node.kind == "fixed_list" else items

    def _available(self, node: Node, type_: pa.DataType) -> int:
        """Return the items of a node that can be read, with all that they need of the nodes within."""
        there = [self._there(stream) - stream.lead for stream in self._counted(node)]
        if node.kind == "packed":
            within = self._there(node.stream("chars"))
            return self._entries_within(node, max(0, min(there)), within)
        if node.kind == "list":
            return self._entries_within(node, max(0, min(there)), min(self._within(node, type_)))
        if node.kind == "run_ends":
            runs = min(self._there(node.streams[0]), *self._within(node, type_))
            return int(self.items(node.streams[0], runs - 1, runs)[0]) if runs else 0
        if node.kind == "dense_union":
            return self._picked_within(node, type_, max(0, min(there)))
        if node.kind in ("struct", "sparse_union", "fixed_list"):
            size = storage_type(type_).list_size if node.kind == "fixed_list" else 1
            there += [items // size for items in self._within(node, type_)]
        return max(0, min(there))

    def _within(self, node: Node, type_: pa.DataType) -> list[int]:
        """Return for each node directly within how many items can be read."""
        pairs = zip(node.children, child_types(type_), strict=True)
        return [self._available(child, inner) for child, inner in pairs]

    def _counted(self, node: Node) -> list[Stream]:
        """Return the streams that have an item for each of the node's, as far as they exist."""
        return [
            stream
            for stream in node.streams
            if stream.role not in ("chars", "segments")
            and not (stream.lazy and self._datasets[stream.path] is None)
        ]

    def _entries_within(self, node: Node, entries: int, items: int) -> int:
        """Return how many of the entries end within the first ``items`` items; reads few chunks of offsets.

        While a column grows, its offsets and its values become visible in chunks of different sizes.
        """
        stream = node.stream("offsets")
        offsets = self._datasets[stream.path]
        if not entries or offsets is None or offsets[entries] <= items:
            return entries
        step = offsets.chunks[0] if offsets.chunks else entries + 1
        low, high = 0, entries // step  # the last chunk that begins within
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if offsets[middle * step] <= items else (low, middle - 1)
        ends = self.items(stream, low * step, min((low + 1) * step, entries + 1))
        return max(0, low * step + int(np.searchsorted(ends, items, side="right")) - 1)

    def _picked_within(self, node: Node, type_: pa.DataType, entries: int) -> int:
        """Return how many of a dense union's entries come before the first that picks what is not there yet.

        What is missing is at the end, and little: it is looked for backwards.
        """
        limits = np.zeros(256, np.uint64)
        limits[list(node.codes)] = self._within(node, type_)
        step = 65536
        for start in range((entries - 1) // step * step, -1, -step) if entries else ():
            stop = min(start + step, entries)
            types = self.items(node.stream("types"), start, stop)
            picks = self.items(node.stream("offsets"), start, stop)
            missing = np.flatnonzero(picks >= limits[types.astype(np.int64) % 256])
            if not len(missing):
                return entries
            entries = start + int(missing[0])
        return entries

    # -- rows --------------------------------------------------------------------------------------------

    def read(self, start: int, stop: int) -> pa.ChunkedArray:
        """Read rows, which must be there.

        Parameters
        ----------
        start, stop
            First row, and the row after the last.

        Returns
        -------
        pa.ChunkedArray
            Owns its memory. One chunk, unless its strings are too long for one, or its dictionary changes.
        """
        edges = [start, *self._changes(start, stop), stop]
        arrays: list[pa.Array] = []
        if stop > start:
            for first, last in itertools.pairwise(edges):
                arrays += self._arrays(first, last)
        return pa.chunked_array(arrays, self._type)

    def _changes(self, start: int, stop: int) -> list[int]:
        """Return the rows in between at which some dictionary of the column changes."""
        changes: set[int] = set()
        for node in _outer_dictionaries(self._column.node):
            rows = self.all_items(node.stream("segments"))[:, 0]
            changes.update(rows[(rows > start) & (rows < stop)].tolist())
        return sorted(changes)

    def _arrays(self, start: int, stop: int) -> list[pa.Array]:
        try:
            array = decode(self._column.node, self._type, self, start, stop)
            array.validate()
        except TooLongError:
            if stop - start < 2:
                raise
            middle = start + (stop - start) // 2
            return self._arrays(start, middle) + self._arrays(middle, stop)
        except (pa.ArrowException, ValueError, KeyError, IndexError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise IncompleteFileError(f"column {self._column.name!r} is damaged: {reason}") from None
        return [array]

    # -- what decode asks for ----------------------------------------------------------------------------

    def items(self, stream: Stream, start: int, stop: int) -> Items:
        """Return a stream's items, which must be there."""
        dataset, there = self._datasets[stream.path], self._there(stream)
        if not 0 <= start <= stop <= there:
            raise IncompleteFileError(
                f"{stream.path!r} has {there} items where {stop} belong: restore it from a copy"
            )
        return (
            np.empty((0, *stream.item_shape), stream.numpy_dtype)
            if dataset is None
            else read_items(dataset, start, stop)
        )

    def mask(self, stream: Stream, start: int, stop: int) -> Items | None:
        """Return a mask's items; what lies beyond its end is valid."""
        dataset = self._datasets[stream.path]
        if dataset is None:
            return None
        mask = np.ones((stop - start, *stream.item_shape), np.bool_)
        there = min(len(dataset), stop) - start
        if there > 0:
            mask[:there] = read_items(dataset, start, start + there)
        return mask

    def all_items(self, stream: Stream) -> Items:
        """Return all items of a stream; read once."""
        if stream.path not in self._whole:
            self._whole[stream.path] = self.items(stream, 0, self._there(stream))
        return self._whole[stream.path]

    def _there(self, stream: Stream) -> int:
        dataset = self._datasets[stream.path]
        return 0 if dataset is None else len(dataset)

    def row_bytes(self, rows: int) -> int:
        """Return about how many bytes a row takes in memory, seen over all ``rows``; labels do not count."""
        labels = {
            stream.path
            for node in _outer_dictionaries(self._column.node)
            for stream in (*node.streams[1:2], *(s for child in node.children for s in _streams(child)))
        }
        counted = [stream for stream in self._column.streams if stream.path not in labels]
        sizes = (
            self._there(stream) * (_VARIABLE_BYTES if stream.variable else stream.item_bytes)
            for stream in counted
        )
        return max(1, sum(sizes) // max(rows, 1))

    def check_chunks(self) -> None:
        """Refuse a column with holes, for which HDF5 would make up values. Takes 0.2 µs a chunk."""
        for stream in self._column.streams:
            dataset = self._datasets[stream.path]
            if dataset is None or stream.lazy or not dataset.chunks:
                continue
            expected = -(-len(dataset) // dataset.chunks[0])
            if dataset.id.get_num_chunks() < expected:
                found = dataset.id.get_num_chunks()
                raise IncompleteFileError(
                    f"{stream.path!r} has {found} chunks where {expected} belong: restore it from a copy"
                )


def _streams(node: Node) -> list[Stream]:
    return [stream for inner in node.walk() for stream in inner.streams]


def _outer_dictionaries(node: Node) -> list[Node]:
    """Return the dictionary nodes that are not within the labels of another."""
    if node.kind == "dictionary":
        return [node]
    return [found for child in node.children for found in _outer_dictionaries(child)]


def _dataset(group: h5py.Group, stream: Stream) -> h5py.Dataset | None:
    """Return a stream's dataset, ``None`` if it does not exist; refuse one that is not as the layout says."""
    if stream.path not in group:
        return None
    # Not by `get`, for which one that cannot be opened does not exist either: a mask that was made after a
    # live file had been opened has a link there, and lies behind what is taken for the end of the file.
    found = group[stream.path]
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
