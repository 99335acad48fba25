"""A dataset of the recording, in HDF5's terms: its extent, its chunks, its items.

Each chunk is told to the journal with its place and checksum, and so are items that HDF5 places by itself.
When the file is opened and closed, and what else stands in it, is not known here.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5d, h5s, h5t

from shmstore.errors import StorageError
from shmstore.journal import Journal, NoJournal
from shmstore.layout import Stream
from shmstore.signature import crc32
from shmstore.steps import step

#: Memory that HDF5 keeps for a chunk, and for an item of a variable-length column besides its bytes: the
#: index of chunks, and what holds such items, is metadata (measured: 19 to 27 bytes a chunk, 105 for each
#: string of 10).
_INDEX_ENTRY_BYTES, _HEAP_ITEM_BYTES = 27, 96


class DatasetFile(Protocol):
    """What a dataset needs of the file that it is in: some of `RecordingFile`."""

    generation: int
    index_bytes: int
    heap_bytes: int
    lock: threading.RLock
    journal: Journal | NoJournal

    @property
    def end(self) -> int:
        """Bytes of the file, as remembered."""

    def look_for_end(self) -> int:
        """Return how many bytes the file has now."""

    def expect(self, size: int) -> None:
        """Prepare for so many bytes that are appended next; the file may be longer then, within them."""

    def forget_end(self) -> None:
        """The file may have grown."""

    def open_dataset(self, path: str, *, cached: bool) -> h5d.DatasetID:
        """Open a dataset by path."""


class Dataset:
    """One unlimited dataset, addressed by path so that it survives the file's reopening.

    Attributes
    ----------
    path : str
        Path in the file, from its root and without a slash in front.
    chunk_items : int
        Items in a chunk.
    chunk_bytes : int
        Bytes of a whole chunk, unfiltered.
    skip_mask : int
        Filter mask that says "stored as it is".
    number : int
        By which the journal knows it.
    first_items : int
        Extent of the first dimension when it was made here.
    known_items : int
        Extent of the first dimension, as last set.
    bytes_written, chunks_written : int
        Bytes handed to the file, and whole chunks among them.
    places : dict of int to (int, int)
        Offset and length of chunks that may be written again in their place, by their number.
    """

    def __init__(
        self, file: DatasetFile, number: int, path: str, stream: Stream, chunk_items: int, filters: int
    ) -> None:
        self.number = number
        self.path = path
        self.chunk_items = chunk_items
        self.chunk_bytes = chunk_items * stream.item_bytes
        self.skip_mask = (1 << filters) - 1
        self._file = file
        self._stream = stream
        self._origin = (0,) * len(stream.item_shape)
        self.first_items = self.known_items = 0
        self.bytes_written = 0
        self.chunks_written = 0
        self.places: dict[int, tuple[int, int]] = {}
        self._opened = -1
        self._id: h5d.DatasetID = None

    @property
    def id(self) -> h5d.DatasetID:
        """The low-level handle, reopened if the file was."""
        if self._opened != self._file.generation:
            self._id = self._file.open_dataset(self.path, cached=self._stream.variable)
            self._opened = self._file.generation
        return self._id

    @property
    def chunks(self) -> int:
        """How many chunks the first dimension reaches over."""
        return -(-self.known_items // self.chunk_items)

    @property
    def variable(self) -> bool:
        """Whether HDF5 itself places its items."""
        return self._stream.variable

    @property
    def lock(self) -> threading.RLock:
        """The file's lock: to be held over what readers may see only whole."""
        return self._file.lock

    def grow(self, items: int) -> None:
        """Extend the first dimension, if it is shorter; readers see it after the file's next flush.

        It never shrinks: HDF5 would read the last chunk back through its filters to blank what is cut off.
        """
        if items > self.known_items:
            self.id.set_extent((items, *self._stream.item_shape))
            chunks = items // self.chunk_items - self.known_items // self.chunk_items
            self._file.index_bytes += chunks * _INDEX_ENTRY_BYTES
            self.known_items = items

    @property
    def keeps_checksums(self) -> bool:
        """Whether a checksum of each chunk is wanted."""
        return self._file.journal.keeps

    def cut(self, items: int) -> None:
        """Shorten the first dimension, through a handle that wrote none of its chunks.

        HDF5 encodes what is left of the last chunk anew.
        """
        self.id.set_extent((items, *self._stream.item_shape))
        self.known_items = items
        h5py.Dataset(self.id).flush()

    def write_chunk(self, index: int, payload: Any, filter_mask: int, checksum: int | None = None) -> None:
        """Write an encoded chunk as it is; its first item must lie within the extent.

        Parameters
        ----------
        index
            Number of the chunk, from 0.
        payload
            Bytes-like, borrowed for the call: what the filters would have produced, or with `skip_mask` the
            chunk's `chunk_bytes` bytes.
        filter_mask
            Which filters were skipped.
        checksum
            CRC-32 of the payload, if it was taken already.
        """
        # h5py checks neither length nor place, and HDF5 takes a wrong length silently: it would overwrite a
        # neighbour.
        size = memoryview(payload).nbytes
        if filter_mask == self.skip_mask and size != self.chunk_bytes:
            raise StorageError(
                22, f"{self.path}: an unfiltered chunk has {self.chunk_bytes} bytes, not {size}"
            )
        before = self._file.end
        if index not in self.places:  # else it is written where it was
            self._file.expect(size)
        try:
            self.id.write_direct_chunk((index * self.chunk_items, *self._origin), payload, filter_mask)
        except OSError:
            # The handle remembers the chunk's place, which the index never got: written again through the
            # same handle, the chunk would be lost without a word.
            self._id, self._opened = None, -1
            self._file.forget_end()
            raise
        step("writer.chunk_written")
        self.bytes_written += size
        self._note(index, filter_mask, payload, size, before, checksum)
        step("writer.chunk_noted")

    def filter_chunk(self, index: int, chunk: npt.NDArray[np.uint8]) -> None:
        """Write as much of a whole chunk as lies within the extent through HDF5's own filters."""
        items = chunk.view(self._stream.numpy_dtype).reshape(self.chunk_items, *self._stream.item_shape)
        start = index * self.chunk_items
        before = self._file.end
        self._write(start, items[: self.known_items - start])
        filter_mask, payload = self.id.read_direct_chunk((start, *self._origin))
        self.bytes_written += len(payload)
        self._note(index, filter_mask, payload, len(payload), before)

    def _note(
        self,
        index: int,
        filter_mask: int,
        payload: Any,
        size: int,
        before: int,
        checksum: int | None = None,
    ) -> None:
        """Tell the journal of a chunk that was written, when the file had ``before`` bytes.

        HDF5 does not say where it put a chunk in less time than it takes to go through all of them. But no
        other byte reaches the file meanwhile: if the chunk fits in behind what was there, it is at the end.
        """
        offset = self._file.look_for_end() - size
        place = self.places.pop(index, None)
        if offset < before:  # not at the end
            offset = place[0] if place is not None and place[1] == size else -1
        if offset >= 0 and self.known_items < (index + 1) * self.chunk_items:
            self.places[index] = offset, size  # a published tail: it will be written again
        journal = self._file.journal
        if not journal.keeps:
            return
        crc = crc32(payload) if checksum is None else checksum
        if offset < 0:
            journal.inline(self.number, index, filter_mask, self.known_items, crc, bytes(payload))
        else:
            journal.chunk(self.number, index, filter_mask, self.known_items, offset, size, crc)

    def write_variable(self, start: int, items: npt.NDArray[Any]) -> None:
        """Write variable-length items from ``start`` on, within the extent; HDF5 places their bytes."""
        self._write(start, items)
        step("writer.items_written")
        values = [item.encode() if isinstance(item, str) else item.tobytes() for item in items.tolist()]
        size = sum(map(len, values))
        if self._file.journal.keeps:
            self._file.journal.items(self.number, start, values)
        self.bytes_written += size + items.nbytes
        self._file.heap_bytes += size + _HEAP_ITEM_BYTES * len(items)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read items back, ``(stop - start, *item_shape)``.

        Only through a handle that wrote none of their chunks (:meth:`RecordingFile.structure` gives new
        ones): HDF5 2.0 takes a chunk that it was given unfiltered for a filtered one.
        """
        items: npt.NDArray[Any] = h5py.Dataset(self.id)[start:stop]
        return items

    def stored_chunk(self, index: int) -> tuple[int, bytes]:
        """Return a chunk's filter mask and its bytes as they are stored."""
        filter_mask, payload = self.id.read_direct_chunk((index * self.chunk_items, *self._origin))
        return int(filter_mask), bytes(payload)

    def blank_references(self, items: int) -> None:
        """Let variable-length items from ``items`` on refer to nothing, whatever they refer to now."""
        handle = self._file.open_dataset(self.path, cached=False)
        size = self._stream.item_bytes
        for index in range(items // self.chunk_items, -(-self.known_items // self.chunk_items)):
            place = (index * self.chunk_items,)
            try:
                _, payload = handle.read_direct_chunk(place)
            except (OSError, RuntimeError, ValueError):
                continue  # the extent reaches over a chunk that was never written
            kept = max(0, items - index * self.chunk_items) * size
            blanked = bytes(payload[:kept]) + bytes(len(payload) - kept)
            handle.write_direct_chunk(place, blanked, 0)

    def survey(self, items: int, last: int | None = None) -> None:
        """Take from the file what else the journal tells, and tell it: the extent, and where chunks are.

        Parameters
        ----------
        items
            How many are to stay; references beyond are blanked.
        last
            What the last of these is made to be.
        """
        self.known_items = int(self.id.shape[0])
        if self.variable:
            self.blank_references(items)
            return
        if last is not None:
            self._write(items - 1, np.array([last], self._stream.numpy_dtype))
        found: list[tuple[int, int]] = []
        self.id.chunk_iter(
            lambda info: found.append((info.chunk_offset[0] // self.chunk_items, info.byte_offset))
        )
        for index, offset in found:
            filter_mask, payload = self.stored_chunk(index)
            size, crc = len(payload), crc32(payload)
            self._file.journal.chunk(self.number, index, filter_mask, self.known_items, offset, size, crc)

    def _write(self, start: int, items: npt.NDArray[Any]) -> None:
        self._file.forget_end()
        space = self.id.get_space()
        shape = self._stream.item_shape
        space.select_hyperslab((start, *self._origin), (len(items), *shape))
        self.id.write(
            h5s.create_simple((len(items), *shape)), space, np.ascontiguousarray(items), self._memory_type()
        )

    def _memory_type(self) -> Any:
        return h5t.py_create(h5py_dtype(self._stream))


def h5py_dtype(stream: Stream) -> Any:
    """Return the type that a stream's items have in the file."""
    if stream.dtype == "utf8":
        return h5py.string_dtype()
    if stream.dtype == "bytes":
        return h5py.vlen_dtype(np.uint8)
    if stream.dtype.startswith("utf8:"):
        return h5py.string_dtype("utf-8", stream.numpy_dtype.itemsize)
    if stream.dtype.startswith("ascii:"):
        return h5py.string_dtype("ascii", stream.numpy_dtype.itemsize)
    return stream.numpy_dtype
