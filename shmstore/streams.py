"""Stream assembly: items of one dataset become whole chunks; the ragged remainder grows in a tail.

Whole chunks are borrowed from wherever the items lie and handed to the codec pipeline; only what is left over
is copied. What HDF5 must place itself (variable-length items) is gathered here and written by it.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np

from shmstore.buffers import Items
from shmstore.dataset import Dataset
from shmstore.layout import Stream
from shmstore.pipeline import Chunk, CodecPipeline, Encode

#: Items of a variable-length column gathered before HDF5 is asked to place them.
_VARIABLE_ITEMS = 65536


class ChunkAssembler:
    """Puts the chunks of one stream together.

    Parameters
    ----------
    dataset
        Where they go.
    stream
        What they hold.
    buffers
        The stream's two tail buffers, each of one chunk.
    pipeline
        Takes whole chunks.
    encode
        The stream's encoder; ``None`` leaves chunks to the filters that HDF5 itself runs, if there are any.

    Attributes
    ----------
    total : int
        Items taken in.
    """

    def __init__(
        self,
        dataset: Dataset,
        stream: Stream,
        buffers: tuple[Chunk, Chunk],
        pipeline: CodecPipeline,
        encode: Encode | None,
    ) -> None:
        self.dataset = dataset
        self._stream = stream
        self._pipeline = pipeline
        self._encode = encode
        self._item_bytes = stream.item_bytes
        self._chunk_items = dataset.chunk_items
        self._buffers = itertools.cycle([list(pair) for pair in zip(buffers, (0, 0), strict=True)])
        # The buffer, and the ticket of the chunk last taken from it.
        self._tail: list[Any] = next(self._buffers)
        self._filled = 0
        self._chunk = 0
        self._tail_since = 0.0
        self._published_items = 0
        self._published_chunk = -1
        if stream.lead:
            self.append(np.zeros((stream.lead, *stream.item_shape), stream.numpy_dtype))

    @property
    def total(self) -> int:
        """Items taken in."""
        return self._chunk * self._chunk_items + self._filled

    def append(self, items: Items) -> None:
        """Take items in; whole chunks among them are borrowed by the pipeline, the rest is copied."""
        count = len(items)
        data = np.frombuffer(items, np.uint8) if count and items.nbytes else np.empty(0, np.uint8)
        size, chunk_items = self._item_bytes, self._chunk_items
        start = min(count, chunk_items - self._filled) if self._filled else 0
        if start:
            self._copy_to_tail(data[: start * size], start)
        while count - start >= chunk_items:
            self._submit(data[start * size : (start + chunk_items) * size])
            start += chunk_items
        if start < count:
            self._copy_to_tail(data[start * size :], count - start)

    def begin_at(self, items: int) -> None:
        """Let the stream begin with ``items`` items of the fill value 1, which the dataset shows already.

        Whole chunks of them are never written.
        """
        self._chunk = items // self._chunk_items
        rest = items % self._chunk_items
        if rest:
            self.append(np.ones((rest, *self._stream.item_shape), self._stream.numpy_dtype))

    def _copy_to_tail(self, data: Chunk, count: int) -> None:
        buffer, ticket = self._tail
        if not self._filled:
            self._pipeline.wait_for(ticket)  # the chunk that was last taken from this buffer
            self._tail_since = time.monotonic()
        start = self._filled * self._item_bytes
        buffer[start : start + data.nbytes] = data
        self._filled += count
        if self._filled == self._chunk_items:
            self._submit(buffer)
            self._tail[1] = self._pipeline.submitted
            self._tail = next(self._buffers)

    def _submit(self, chunk: Chunk, items: int | None = None) -> None:
        # A chunk that was published as it is keeps its place in the file: compressing it now would leave that
        # behind.
        published = self._published_chunk == self._chunk
        self._pipeline.submit(self.dataset, self._chunk, chunk, self._encode, items=items, as_it_is=published)
        self._chunk += 1
        self._filled = 0

    def publish(self, older_than_s: float = 0.0) -> None:
        """Show the tail to readers, as a full-size unfiltered chunk that is overwritten in place as it grows.

        Parameters
        ----------
        older_than_s
            Leave a tail alone that began less than so many seconds ago.
        """
        if (
            not self._filled
            or self.total == self._published_items
            or time.monotonic() - self._tail_since < older_than_s
        ):
            return
        self._pipeline.drain()  # the extent set here must not reach over a chunk still under way
        buffer = self._tail[0]
        buffer[self._filled * self._item_bytes :] = 0
        if self._published_chunk != self._chunk:
            # HDF5 wants a chunk's first item within the extent before it takes the chunk.
            self.dataset.grow(self.total)
        self.dataset.write_chunk(self._chunk, buffer, self.dataset.skip_mask)
        self.dataset.grow(self.total)
        self._published_chunk, self._published_items = self._chunk, self.total

    def finish(self) -> None:
        """Hand the last, partial chunk to the pipeline, filled up with zeros; nothing may come after."""
        if self._filled and self.total > self._published_items:
            buffer = self._tail[0]
            buffer[self._filled * self._item_bytes :] = 0
            self._submit(buffer, self._filled)
        self._pipeline.drain()


class VariableAssembler:
    """Gathers the items of a stream that HDF5 itself places (native variable-length types).

    Parameters
    ----------
    dataset
        Where they go.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.total = 0
        self._gathered: list[Items] = []
        self._written = 0

    def append(self, items: Items) -> None:
        """Take items in: an object array, kept until the next :meth:`publish`."""
        self._gathered.append(items)
        self.total += len(items)
        if self.total - self._written >= _VARIABLE_ITEMS:
            self.publish()

    def publish(self) -> None:
        """Write what was gathered."""
        if self._written == self.total:
            return
        items = np.concatenate(self._gathered)
        self.dataset.grow(self.total)
        self.dataset.write_variable(self._written, items)
        self._gathered.clear()
        self._written = self.total
