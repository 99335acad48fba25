"""Where encoded items are kept without a file, to be decoded again: one column in memory."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from shmstore.buffers import Items
from shmstore.decoding import decode
from shmstore.dictionaries import Dictionaries
from shmstore.encoding import Intake, dictionary_nodes, encode
from shmstore.layout import Column, Stream
from shmstore.physical import physical_schema, physical_type, retyped
from shmstore.planning import plan


def column_of(type_: pa.DataType, how: str = "vlen") -> Column:
    """Return how a column ``c`` of the type is stored, with that way to store strings."""
    return plan(pa.schema([("c", type_)]), lambda _: how).columns[0]


def physical(array: pa.Array) -> pa.Array:
    """Return an array in its physical form."""
    schema = pa.schema([("c", array.type)])
    stored = physical_schema(schema)
    if stored is schema:
        return array
    return retyped(pa.record_batch([array], schema=schema), stored).column(0)


def intake_of(column: Column, array: pa.Array) -> dict[str, Items]:
    """Return the items of an array, taken as the first batch of a column, by path."""
    nodes = dictionary_nodes(column)
    intake = Intake(len(array), {}, {node.path: Dictionaries() for node in nodes})
    encode(column.node, physical(array), intake)
    return intake.items


class StoredItems:
    """All items of one column, batch after batch; a source for `decode` that is strict about what is there.

    Attributes
    ----------
    items_by_path : dict of str to ndarray
        What datasets would hold.
    """

    def __init__(self, type_: pa.DataType, how: str = "vlen") -> None:
        self.column = column_of(type_, how)
        self.type = physical_type(type_)
        self.items_by_path: dict[str, Items] = {
            stream.path: np.zeros((stream.lead, *stream.item_shape), stream.numpy_dtype)
            for stream in self.column.streams
            if not stream.lazy
        }
        self._taken: Counter[str] = Counter()
        self._dictionaries = {node.path: Dictionaries() for node in dictionary_nodes(self.column)}

    def append(self, array: pa.Array) -> None:
        """Encode a batch, check that its items are as their datasets want them, and keep them."""
        intake = Intake(len(array), self._taken, self._dictionaries)
        encode(self.column.node, physical(array), intake)
        for stream in self.column.streams:
            items = intake.items.get(stream.path)
            if items is None:
                assert stream.lazy or stream.role == "segments" or stream.path.startswith("CATEGORIES/")
                items = np.ones((intake.counts[stream.space] if stream.lazy else 0, *stream.item_shape), bool)
                if stream.path not in self.items_by_path or not len(items):
                    continue
            else:
                assert items.dtype == (np.dtype(object) if stream.variable else stream.numpy_dtype)
                assert items.flags.c_contiguous
                assert len(items) == intake.counts[stream.space]
            assert items.shape[1:] == stream.item_shape
            if stream.dtype == "utf8":  # HDF5 takes text and gives bytes
                items = np.array([text.encode() for text in items] or [None], object)[: len(items)]
            if stream.path not in self.items_by_path:  # a mask that is needed for the first time
                before = np.ones((self._taken[stream.space], *stream.item_shape), np.bool_)
                self.items_by_path[stream.path] = before
            self.items_by_path[stream.path] = np.concatenate([self.items_by_path[stream.path], items])
        self._taken.update(intake.counts)
        intake.accept()

    def read(self, start: int, stop: int) -> pa.Array:
        """Decode rows, in their physical form."""
        array = decode(self.column.node, self.type, self, start, stop)
        array.validate()
        return array

    # -- what decode asks for ----------------------------------------------------------------------------

    def items(self, stream: Stream, start: int, stop: int) -> Items:
        """Return items, which must be there."""
        found = self.items_by_path[stream.path]
        if not 0 <= start <= stop <= len(found):
            raise ValueError(f"{stream.path} has {len(found)} items, not {start} to {stop}")
        return found[start:stop]

    def mask(self, stream: Stream, start: int, stop: int) -> Items | None:
        """Return a mask's items; what lies beyond its end is valid."""
        found = self.items_by_path.get(stream.path)
        if found is None:
            return None
        mask = np.ones((stop - start, *stream.item_shape), np.bool_)
        part = found[start:stop]
        mask[: len(part)] = part
        return mask

    def all_items(self, stream: Stream) -> Items:
        """Return all items that there are."""
        return self.items_by_path[stream.path]
