"""Stream assembly: items of one dataset become whole chunks; the ragged remainder grows in a tail.

Whole chunks are borrowed from wherever the items lie and handed to the codec pipeline; only what is left over
is copied. What HDF5 must place itself (variable-length items) is gathered here and written by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shmstore.buffers import Items
from shmstore.dataset import Dataset
from shmstore.errors import BrokenError
from shmstore.layout import Stream
from shmstore.pipeline import Chunk, CodecPipeline, Encode
from shmstore.steps import step
from shmstore.tails import TailBuffers, abreast

#: Items of a variable-length column gathered before HDF5 is asked to place them.
_VARIABLE_ITEMS = 65536


@dataclass(slots=True)
class _Buffer:
    """One of a stream's tail buffers.

    Attributes
    ----------
    memory : ndarray
        Room for a chunk, in shared memory.
    chunk : int
        Number of the chunk whose items it holds; -1: none that matters.
    ticket : int
        Chunks that must be written before a commit can cover all the rows in it.
    reserved : bool
        Whether there is memory behind it for sure.
    """

    memory: Chunk
    chunk: int = -1
    ticket: int = 0
    reserved: bool = False


class Standing(NamedTuple):
    """Where a stream stands at a commit; what it takes to go on from there.

    Attributes
    ----------
    items : int
        Its items so far.
    buffer : int
        Which of its tail buffers holds those of the chunk that is not full; -1: there are none.
    published : bool
        Whether that chunk stands in the file as it is, to be overwritten in place.
    """

    items: int
    buffer: int = -1
    published: bool = False


class ChunkAssembler:
    """Puts the chunks of one stream together.

    A buffer is used again only when a commit covers all that is in it: until then a writer that replaces this
    one would have to go on from there.

    Parameters
    ----------
    dataset
        Where they go.
    stream
        What they hold.
    buffers
        The stream's tail buffers, of one chunk each.
    pipeline
        Takes whole chunks.
    encode
        The stream's encoder; ``None`` leaves chunks to the filters that HDF5 itself runs, if there are any.
    commit
        Has everything that is written committed; called when no buffer is free.
    standing
        Where to go on; by default at the beginning.
    """

    def __init__(
        self,
        dataset: Dataset,
        stream: Stream,
        buffers: TailBuffers,
        pipeline: CodecPipeline,
        encode: Encode | None,
        commit: Callable[[], None],
        standing: Standing | None = None,
    ) -> None:
        self.dataset = dataset
        self._stream = stream
        self._pipeline = pipeline
        self._encode = encode
        self._make_room = commit
        self._item_bytes = stream.item_bytes
        self._chunk_items = dataset.chunk_items
        self._buffers = [_Buffer(memory) for memory in buffers]
        self._tails = buffers
        self._current = 0
        self._last_full: _Buffer | None = None
        self._filled = 0
        self._chunk = 0
        self._committed = 0
        self._begin = 0
        #: Whether commits cover the stream; false while it is filled up with what came before it.
        self.guarded = True
        self._tail_since = 0.0
        self._published_items = 0
        self._published_chunk = -1
        if standing is not None:
            self._go_on(standing)
        elif stream.lead:
            self.append(np.zeros((stream.lead, *stream.item_shape), stream.numpy_dtype))

    def _go_on(self, standing: Standing) -> None:
        self._chunk, self._filled = divmod(standing.items, self._chunk_items)
        self._committed = standing.items
        if self._filled:
            self._current = standing.buffer
            self._tails.reserve(self._current)  # of a segment that was copied, the rest may be a hole
            self._buffers[self._current].chunk = self._chunk
            self._tail_since = time.monotonic()
        # In a file that was made anew unfinished chunks are missing.
        before = max(self._chunk * self._chunk_items, self.dataset.first_items)
        if standing.published and self.dataset.known_items > before:
            self._published_chunk = self._chunk

    @property
    def total(self) -> int:
        """Items taken in."""
        return self._chunk * self._chunk_items + self._filled

    def standing(self, items: int) -> Standing | None:
        """Return where the stream stood when it had so many items, not fewer than at the last commit.

        ``None``: it did not exist yet, and all of them are the fill value.
        """
        if items < self._begin:
            return None
        chunk, rest = divmod(items, self._chunk_items)
        if not rest:
            return Standing(items)
        for number, buffer in enumerate(self._buffers):
            if buffer.chunk == chunk:
                return Standing(items, number, self._published_chunk == chunk)
        raise BrokenError(f"{self.dataset.path}: item {items} is in none of its buffers")

    def tail(self, standing: Standing) -> Chunk:
        """Return the bytes of the chunk that is not full at a standing; a view over its buffer."""
        if standing.buffer < 0:
            return self._buffers[0].memory[:0]
        size = standing.items % self._chunk_items * self._item_bytes
        return self._buffers[standing.buffer].memory[:size]

    def committed(self, items: int) -> None:
        """A commit covers so many items: buffers of whole chunks among them are free."""
        self._committed = items

    def append(self, items: Items) -> None:
        """Take items in; whole chunks among them are borrowed by the pipeline, the rest is copied."""
        self._begin_batch()
        count = len(items)
        self._take(np.frombuffer(items, np.uint8) if count and items.nbytes else np.empty(0, np.uint8), count)

    def takes_whole(self, count: int) -> bool:
        """Whether so many items are whole chunks from where the stream stands, of which none is copied."""
        return not self._filled and not count % self._chunk_items

    def append_run(self, items: Items) -> None:
        """Take the items of several batches in: ``(batches, ...)``, those of each batch contiguous.

        A commit covers all of them or none, so several may be a chunk's worth at most, or whole chunks each.
        """
        self._begin_batch()
        each = items[0].nbytes // self._item_bytes
        if len(items) == 1 or each >= self._chunk_items:
            for own in items:
                self._take(own.view(np.uint8), each)
            return
        done = 0
        while done < len(items):
            count = min(len(items) - done, (self._chunk_items - self._filled) // each)
            if count:
                self._copy_to_tail(items[done : done + count], count * each)
            else:  # over the end of the chunk
                count = 1
                self._take(items[done].view(np.uint8), each)
            done += count

    def _begin_batch(self) -> None:
        if self._last_full is not None:
            # The rows before this batch are covered once all is written that was submitted for them.
            self._last_full.ticket = self._pipeline.submitted
            self._last_full = None

    def _take(self, data: Chunk, count: int) -> None:
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
        self._begin = items
        self._committed = self._chunk * self._chunk_items
        rest = items % self._chunk_items
        if rest:
            self.append(np.ones((rest, *self._stream.item_shape), self._stream.numpy_dtype))

    def _copy_to_tail(self, data: Items, count: int) -> None:
        if not self._filled:
            self._take_buffer()
        self._copy_to_buffer(data, count)

    def _copy_to_buffer(self, data: Items, count: int) -> None:
        buffer = self._buffers[self._current]
        start = self._filled * self._item_bytes
        buffer.memory[start : start + data.nbytes].view(data.dtype).reshape(data.shape)[...] = data
        self._advance(count)

    def _advance(self, count: int) -> None:
        """So many items more are in the tail; if it is full by that, it goes to the pipeline."""
        self._filled += count
        if self._filled == self._chunk_items:
            buffer = self._buffers[self._current]
            buffer.ticket = self._pipeline.submitted + 1
            self._last_full = buffer
            self._submit(buffer.memory)

    def _take_buffer(self) -> None:
        """Begin a chunk in a buffer that no commit needs any more."""
        if self._free() is None:
            oldest = min(self._buffers, key=lambda buffer: buffer.chunk)
            self._pipeline.wait_for(oldest.ticket)
            if self.guarded:
                self._make_room()
        free = self._free()
        if free is None:
            raise BrokenError(f"{self.dataset.path}: a commit left none of its buffers free")
        buffer = self._buffers[free]
        if not buffer.reserved:
            self._tails.reserve(free)
            buffer.reserved = True
        buffer.chunk = self._chunk
        self._current = free
        self._tail_since = time.monotonic()

    def _free(self) -> int | None:
        covered = self._committed // self._chunk_items
        for number, buffer in enumerate(self._buffers):
            if buffer.chunk < covered:
                return number
            if not self.guarded and buffer.chunk < self._chunk and buffer.ticket <= self._pipeline.written:
                return number
        return None

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
        buffer = self._buffers[self._current].memory
        buffer[self._filled * self._item_bytes :] = 0
        with self.dataset.lock:
            # HDF5 wants a chunk's first item within the extent before it takes the chunk.
            self.dataset.grow(self.total)
            self.dataset.write_chunk(self._chunk, buffer, self.dataset.skip_mask)
            step("writer.tail_published")
        self._published_chunk, self._published_items = self._chunk, self.total

    def finish(self) -> None:
        """Hand the last, partial chunk to the pipeline, filled up with zeros; nothing may come after.

        Whether it is written yet, only the pipeline knows: of many streams all are handed over first.
        """
        if self._filled and self.total > self._published_items:
            buffer = self._buffers[self._current].memory
            buffer[self._filled * self._item_bytes :] = 0
            self._submit(buffer, self._filled)


class Rank:
    """Streams whose tails lie side by side, and that fill them in step: one copy serves all (:meth:`of`).

    A batch of 500 columns costs little more by that than one of 5 (measured: 0.2 ms, not 2.1).
    """

    def __init__(self, assemblers: Sequence[ChunkAssembler], tails: Sequence[npt.NDArray[np.uint8]]) -> None:
        self._assemblers = assemblers
        self._tails = tails
        self._item_bytes = assemblers[0]._item_bytes
        self._chunk_items = assemblers[0]._chunk_items
        self._abreast = True  # whether the buffers in use lie side by side

    @classmethod
    def of(cls, assemblers: Sequence[ChunkAssembler]) -> Rank | None:
        """Return the rank that some streams make, if they do."""
        sizes = {(assembler._item_bytes, assembler._chunk_items) for assembler in assemblers}
        tails = abreast([assembler._tails for assembler in assemblers]) if len(sizes) == 1 else None
        return None if tails is None else cls(assemblers, tails)

    def append_run(self, items: Items) -> None:
        """Take the items of several batches in, ``(batches, streams, ...)``, as each stream would."""
        each = items[0, 0].nbytes // self._item_bytes
        if each >= self._chunk_items or not self._in_step:
            for assembler, own in zip(self._assemblers, items.swapaxes(0, 1), strict=True):
                assembler.append_run(own)
            return
        self._abreast = True
        for assembler in self._assemblers:
            if assembler._last_full is not None:
                assembler._begin_batch()
        done = 0
        while done < len(items):
            room = self._chunk_items - self._assemblers[0]._filled
            count = min(len(items) - done, room // each)
            if count:
                self._copy_to_tails(items[done : done + count], count * each)
            else:  # over the end of the chunk
                count, data = 1, items[done : done + 1].view(np.uint8)
                self._copy_to_tails(data[..., : room * self._item_bytes], room)
                self._copy_to_tails(data[..., room * self._item_bytes :], each - room)
            done += count

    @property
    def _in_step(self) -> bool:
        first = self._assemblers[0]
        chunk, filled, current = first._chunk, first._filled, first._current
        # A loop, not a generator: it is gone through for each batch.
        for each in self._assemblers:
            if each._filled != filled or each._chunk != chunk or (filled and each._current != current):
                return False
        return True

    def _copy_to_tails(self, data: Items, count: int) -> None:
        """Copy, while all are in step."""
        first = self._assemblers[0]
        if not first._filled:
            self._abreast = self._take_buffers()
        if not self._abreast:
            for assembler, own in zip(self._assemblers, data.swapaxes(0, 1), strict=True):
                assembler._copy_to_buffer(own, count)
            return
        start, filled = first._filled * self._item_bytes, first._filled + count
        batches, streams, _ = data.shape
        room = self._tails[first._current][:, start : start + count * self._item_bytes]
        room.view(data.dtype).reshape(streams, batches, -1).swapaxes(0, 1)[...] = data
        for assembler in self._assemblers:
            if filled < self._chunk_items:
                assembler._filled = filled
            else:
                assembler._advance(count)

    def _take_buffers(self) -> bool:
        """Have each begin a chunk in a buffer; returns whether these lie side by side."""
        first, last = self._assemblers[0], self._assemblers[-1]
        number = first._free()
        if number is not None and not first._buffers[number].reserved:
            first._tails.reserve_abreast(last._tails, number)  # a system call for each would take a while
            for assembler in self._assemblers:
                assembler._buffers[number].reserved = True
        for assembler in self._assemblers:
            assembler._take_buffer()
        return all(assembler._current == first._current for assembler in self._assemblers)


class VariableAssembler:
    """Gathers the items of a stream that HDF5 itself places (native variable-length types).

    Parameters
    ----------
    dataset
        Where they go.
    items
        Items that it has already.
    """

    def __init__(self, dataset: Dataset, items: int = 0) -> None:
        self.dataset = dataset
        self.total = items
        self._gathered: list[Items] = []
        self._written = items

    def standing(self, items: int) -> Standing | None:
        """Return where the stream stood when it had so many items."""
        return Standing(items)

    def tail(self, standing: Standing) -> Chunk:
        """Return nothing: what is committed of it is in the file and in the journal."""
        return np.empty(0, np.uint8)

    def committed(self, items: int) -> None:
        """A commit covers so many items."""

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
        with self.dataset.lock:
            self.dataset.grow(self.total)
            self.dataset.write_variable(self._written, items)
        self._gathered.clear()
        self._written = self.total
