"""HDF5's door: the only module through which shmstore writes HDF5, used by one thread of one process.

A `RecordingFile` is open for SWMR writing all the time, but for the moments in which objects are added
(:meth:`~ RecordingFile.structure`). It offers what the assembly of chunks needs, in HDF5's terms: create,
write a chunk directly, set an extent, flush, sync. It knows neither Arrow nor rings.

The metadata cache's evictions are off while recording, so that the file changes on disk only at
:meth:`flush`: an extent is never visible before the rows it covers.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt
from h5py import h5d, h5p, h5s, h5t

from shmstore.codec import Codec, Filter
from shmstore.errors import StorageError, storage_error
from shmstore.layout import Link as LayoutLink
from shmstore.layout import Stream

FORMAT_VERSION = "1.0"
# v110: superblock 3 and extensible-array chunk indexes, hence SWMR and O(1) appends; HDF5 1.10 and newer can
# read it.
_LIBVER = ("v110", "v110")
#: Large chunks begin on a page of the file: a copy into whole pages takes a twelfth less. What that leaves
#: between compressed ones is below 1 % of them.
_ALIGNMENT = {"alignment_threshold": 256 * 1024, "alignment_interval": 4096}
_FILTER_OPTIONAL = 1
#: Rows of a variable-length column in one chunk: 64 KiB of references.
_VARIABLE_CHUNK_ITEMS = 4096
#: Memory that HDF5 keeps for an item of a variable-length column besides its bytes, and how much of that may
#: add up: what holds the items is metadata, which stays in the cache while its evictions are off (measured:
#: 105 bytes for each string of 10).
_HEAP_ITEM_BYTES, _HEAP_BYTES = 96, 32 * 2**20
_HDF5PLUGIN = {
    "bzip2": "BZip2",
    "fcidecomp": "FciDecomp",
    "htj2k": "Htj2k",
    "sperr": "Sperr",
    "sz": "SZ",
    "sz3": "SZ3",
    "zfp": "Zfp",
}


class Dataset:
    """One unlimited dataset, addressed by path so that it survives the file's reopening.

    Attributes
    ----------
    path : str
        Absolute path in the file.
    chunk_items : int
        Items in a chunk.
    chunk_bytes : int
        Bytes of a whole chunk, unfiltered.
    skip_mask : int
        Filter mask that says "stored as it is".
    known_items : int
        Extent of the first dimension, as last set.
    bytes_written, chunks_written : int
        Bytes handed to the file, and whole chunks among them.
    """

    def __init__(
        self, file: RecordingFile, path: str, stream: Stream, chunk_items: int, filters: int
    ) -> None:
        self.path = path
        self.chunk_items = chunk_items
        self.chunk_bytes = chunk_items * stream.item_bytes
        self.skip_mask = (1 << filters) - 1
        self._file = file
        self._stream = stream
        self._origin = (0,) * len(stream.item_shape)
        self.known_items = 0
        self.bytes_written = 0
        self.chunks_written = 0
        self._opened = -1
        self._id: h5d.DatasetID = None

    @property
    def id(self) -> h5d.DatasetID:
        """The low-level handle, reopened if the file was."""
        if self._opened != self._file.generation:
            self._id = self._file.open_dataset(self.path, cached=self._stream.variable)
            self._opened = self._file.generation
        return self._id

    def grow(self, items: int) -> None:
        """Extend the first dimension, if it is shorter; readers see it after the file's next flush.

        It never shrinks: HDF5 would read the last chunk back through its filters to blank what is cut off.
        """
        if items > self.known_items:
            self.id.set_extent((items, *self._stream.item_shape))
            self.known_items = items

    def write_chunk(self, index: int, payload: Any, filter_mask: int) -> None:
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
        """
        # h5py checks neither length nor place, and HDF5 takes a wrong length silently: it would overwrite a
        # neighbour.
        size = memoryview(payload).nbytes
        if filter_mask == self.skip_mask and size != self.chunk_bytes:
            raise StorageError(
                22, f"{self.path}: an unfiltered chunk has {self.chunk_bytes} bytes, not {size}"
            )
        try:
            self.id.write_direct_chunk((index * self.chunk_items, *self._origin), payload, filter_mask)
        except OSError:
            # The handle remembers the chunk's place, which the index never got: written again through the
            # same handle, the chunk would be lost without a word.
            self._id, self._opened = None, -1
            raise
        self.bytes_written += size

    def filter_chunk(self, index: int, chunk: npt.NDArray[np.uint8]) -> None:
        """Write as much of a whole chunk as lies within the extent through HDF5's own filters."""
        items = chunk.view(self._stream.numpy_dtype).reshape(self.chunk_items, *self._stream.item_shape)
        start = index * self.chunk_items
        self._write(start, items[: self.known_items - start])
        self.bytes_written = int(self.id.get_storage_size())

    def write_variable(self, start: int, items: npt.NDArray[Any]) -> None:
        """Write variable-length items from ``start`` on, within the extent; HDF5 places their bytes."""
        self._write(start, items)
        size = sum(len(item) for item in items.tolist())
        self.bytes_written += size + items.nbytes
        self._file.heap_bytes += size + _HEAP_ITEM_BYTES * len(items)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read items back, ``(stop - start, *item_shape)``.

        Only through a handle that wrote none of their chunks (:meth:`RecordingFile.structure` gives new
        ones): HDF5 2.0 takes a chunk that it was given unfiltered for a filtered one.
        """
        items: npt.NDArray[Any] = h5py.Dataset(self.id)[start:stop]
        return items

    def _write(self, start: int, items: npt.NDArray[Any]) -> None:
        space = self.id.get_space()
        shape = self._stream.item_shape
        space.select_hyperslab((start, *self._origin), (len(items), *shape))
        self.id.write(
            h5s.create_simple((len(items), *shape)), space, np.ascontiguousarray(items), self._memory_type()
        )

    def _memory_type(self) -> Any:
        return h5t.py_create(_h5py_dtype(self._stream))


class RecordingFile:
    """The HDF5 file of one recording.

    Attributes
    ----------
    path : Path
        The file.
    generation : int
        Grows whenever the file was reopened: handles of an older generation are dead.
    heap_bytes : int
        Memory that variable-length items hold, estimated; given back by a :meth:`flush` when it is too much.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self.generation = 0
        self.heap_bytes = 0
        self._file = file
        self._sync_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._structuring = False

    @classmethod
    def create(cls, path: Path, attributes: Mapping[str, Any], config: str) -> RecordingFile:
        """Make the file with its root groups, and start SWMR.

        Parameters
        ----------
        path
            Must not exist.
        attributes
            Attributes of the root group.
        config
            JSON text kept as ``_shmstore/@config``.

        Raises
        ------
        StorageError
            The folder cannot be written to, or the file exists.
        """
        try:
            # h5py's own message for a folder that is missing or read-only is long and carries no advice.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
            file = h5py.File(path, "w", libver=_LIBVER, track_order=True, **_ALIGNMENT)
        except OSError as error:
            raise storage_error(error, "create the recording", path) from None
        for name, value in attributes.items():
            file.attrs[name] = value
        file.create_group("metadata", track_order=True)
        own = file.create_group("_shmstore", track_order=True)
        own.attrs["format_version"] = FORMAT_VERSION
        own.attrs["config"] = config
        recording = cls(path, file)
        recording._start_swmr()
        return recording

    # -- structure -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def structure(self) -> Iterator[None]:
        """Leave SWMR for as long as the block takes, so that objects and attributes can be added; 0.5 ms.

        Readers that have the file open go on reading what they know; opening it anew fails for that moment.
        """
        if self._structuring:
            yield
            return
        self._reopen()
        self._structuring = True
        try:
            yield
        finally:
            self._structuring = False
            self._start_swmr()

    def create_instrument(self, link: str, attributes: Mapping[str, Any]) -> None:
        """Make an instrument's group; within :meth:`structure`."""
        group = self._file.create_group(link, track_order=True)
        for name, value in attributes.items():
            group.attrs[name] = value

    def set_columns(self, link: str, columns: Sequence[str]) -> None:
        """Mark an instrument's group as a column table, as HEP001 has it; within :meth:`structure`."""
        attributes = self._file[link].attrs
        _set_token(attributes, "CLASS", "COLUMN_TABLE")
        _set_token(attributes, "VERSION", "1.0")
        width = max((len(name.encode()) for name in columns), default=1)
        names = np.array([name.encode() for name in columns], f"S{width}")
        attributes.create("column-order", names, dtype=h5py.string_dtype("utf-8", width))

    def create_group(self, path: str, attributes: Mapping[str, Any]) -> None:
        """Make a group within an instrument; within :meth:`structure`."""
        group = self._file.create_group(path, track_order=True)
        for name, value in attributes.items():
            if isinstance(value, str):
                _set_token(group.attrs, name, value)
            else:
                group.attrs[name] = value

    def create_document(self, path: str, text: str) -> None:
        """Keep a text as a scalar string dataset, in place of any before; within :meth:`structure`."""
        self._remove(path)
        self._file.create_dataset(path, data=text, dtype=h5py.string_dtype())

    def create_bytes(self, path: str, data: bytes) -> None:
        """Keep bytes as a uint8 dataset, in place of any before; within :meth:`structure`."""
        self._remove(path)
        self._file.create_dataset(path, data=np.frombuffer(data, np.uint8))

    def replace(self, dataset: Dataset, path: str) -> None:
        """Put a dataset in the place of another, which is lost; within :meth:`structure`."""
        self._remove(path)
        self._file.move(dataset.path, path)
        dataset.path = path

    def _remove(self, path: str) -> None:
        if path in self._file:
            del self._file[path]

    def create_dataset(
        self, path: str, stream: Stream, chunk_items: int, codec: Codec, items: int = 0
    ) -> Dataset:
        """Make the dataset of a stream; within :meth:`structure`.

        Parameters
        ----------
        path
            Absolute path in the file.
        stream
            What it holds.
        chunk_items
            Items in a chunk; variable-length streams choose their own.
        codec
            What its chunks are compressed with; variable-length streams are not.
        items
            Its extent at first: so many items of the fill value.
        """
        shape = stream.item_shape
        if stream.variable:
            chunk_items = _VARIABLE_CHUNK_ITEMS
        properties = h5p.create(h5p.DATASET_CREATE)
        properties.set_chunk((chunk_items, *shape))
        properties.set_fill_time(h5d.FILL_TIME_ALLOC if stream.variable else h5d.FILL_TIME_IFSET)
        properties.set_attr_creation_order(h5p.CRT_ORDER_TRACKED | h5p.CRT_ORDER_INDEXED)
        dtype = _h5py_dtype(stream)
        if stream.fill is not None:
            properties.set_fill_value(np.asarray(stream.fill, stream.numpy_dtype))
        filters = (
            ()
            if stream.variable
            else _filters(codec, stream.numpy_dtype.itemsize, chunk_items * stream.item_bytes)
        )
        for filter_ in filters:
            properties.set_filter(filter_.id, _FILTER_OPTIONAL, filter_.cd_values)
        links = h5p.create(h5p.LINK_CREATE)
        links.set_create_intermediate_group(True)
        space = h5s.create_simple((items, *shape), (h5s.UNLIMITED, *shape))
        type_id = h5t.py_create(dtype, logical=True)
        if stream.dtype.startswith("ascii:"):
            type_id.set_strpad(h5t.STR_NULLTERM)  # else h5dump shows what is behind the end
        h5d.create(self._file.id, path.encode(), type_id, space, properties, links)
        handle = self._file[path]
        for name, value in stream.attributes.items():
            if not isinstance(value, LayoutLink):
                handle.attrs[name] = value
        if stream.attributes and stream.fill is not None:
            handle.attrs["_FillValue"] = np.asarray(stream.fill, stream.numpy_dtype)
        dataset = Dataset(self, path, stream, chunk_items, len(filters))
        dataset.known_items = items
        return dataset

    def link(self, root: str, streams: Iterable[Stream]) -> None:
        """Set the attributes that refer to other objects, once these exist; within :meth:`structure`.

        Parameters
        ----------
        root
            What the streams' paths begin below.
        streams
            Whose datasets have been made.
        """
        for stream in streams:
            for name, value in stream.attributes.items():
                if isinstance(value, LayoutLink):
                    self._file[root + stream.path].attrs[name] = self._file[root + value.path].ref

    def set_metadata(self, path: str, values: Mapping[str, Any]) -> None:
        """Set attributes of a group to JSON-ready values; within :meth:`structure`."""
        attributes = self._file[path].attrs
        json_keys = set(attributes["_json_keys"].tolist()) if "_json_keys" in attributes else set()
        for key, value in values.items():
            attribute = metadata_attribute(value)
            if attribute is None:
                attributes[key] = json.dumps(value, ensure_ascii=False)
                json_keys.add(key)
            else:
                attributes[key] = attribute
                json_keys.discard(key)
        if json_keys:
            attributes["_json_keys"] = np.array(sorted(json_keys), dtype=h5py.string_dtype())
        elif "_json_keys" in attributes:
            del attributes["_json_keys"]

    # -- rows ------------------------------------------------------------------------------------------------

    def open_dataset(self, path: str, *, cached: bool) -> h5d.DatasetID:
        """Open a dataset by path; a chunk cache is of use only where HDF5 itself places the items."""
        access = h5p.create(h5p.DATASET_ACCESS)
        if not cached:
            access.set_chunk_cache(0, 0, 1.0)
        return h5d.open(self._file.id, path.encode(), access)

    def flush(self) -> None:
        """Publish to readers what was written; libhdf5 does not fsync."""
        self._file.flush()
        if self.heap_bytes > _HEAP_BYTES:
            with self.structure():  # closing is the only thing that makes HDF5 let go of the heap
                self.heap_bytes = 0

    def sync(self) -> None:
        """Wait until the disk has what was flushed; touches no HDF5, so another thread may call it."""
        os.fdatasync(self._sync_fd)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._sync_fd).st_size

    # -- end -------------------------------------------------------------------------------------------------

    def finish(self, state: str, accounting: str, rows: Mapping[str, int]) -> None:
        """Stamp the end into the file, close it, and wait until the disk has it.

        Parameters
        ----------
        state
            ``"complete"``, ``"partial"`` or ``"aborted"``.
        accounting
            JSON text kept as ``_shmstore/@accounting``.
        rows
            Rows by the instrument's link.
        """
        self._reopen()
        self._file.attrs["state"] = state
        self._file["_shmstore"].attrs["accounting"] = accounting
        for link, count in rows.items():
            self._file[link].attrs["NROWS"] = np.uint64(count)
        self._file.close()
        os.fsync(self._sync_fd)
        os.close(self._sync_fd)

    def close(self) -> None:
        """Close without stamping anything: for the way out after a failure."""
        self._file.close()
        os.close(self._sync_fd)

    def _reopen(self) -> None:
        self._file.close()
        # Without HDF5's file lock: a reader that opens the file in this moment holds it briefly, and must not
        # stop us. That nobody else writes is settled already, by creating the file exclusively.
        self._file = h5py.File(self.path, "r+", libver=_LIBVER, locking=False, **_ALIGNMENT)
        self.generation += 1

    def _start_swmr(self) -> None:
        self._file.swmr_mode = True
        self.generation += 1
        cache = self._file.id.get_mdc_config()
        cache.evictions_enabled = False
        cache.incr_mode = cache.decr_mode = cache.flash_incr_mode = 0
        self._file.id.set_mdc_config(cache)


def metadata_attribute(value: Any) -> Any:
    """Return what HDF5 can keep of a metadata value as it is; ``None`` if it must be kept as JSON."""
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return np.int64(value) if value < 2**63 else np.uint64(value)
    if isinstance(value, float):
        return value
    if isinstance(value, list) and value:
        kinds = {type(item) for item in value}
        if kinds == {str}:
            return np.array(value, dtype=h5py.string_dtype())
        if kinds in ({float}, {bool}) or (kinds == {int} and all(-(2**63) <= item < 2**63 for item in value)):
            return np.array(value)
    return None


def _set_token(attributes: h5py.AttributeManager, name: str, token: str) -> None:
    """Set an attribute to fixed-length ASCII with a NUL at its end, as HEP001 asks for its own words."""
    type_id = h5t.C_S1.copy()
    type_id.set_size(len(token) + 1)
    type_id.set_strpad(h5t.STR_NULLTERM)
    attributes.create(name, np.bytes_(token), dtype=h5py.Datatype(type_id))


def _h5py_dtype(stream: Stream) -> Any:
    if stream.dtype == "utf8":
        return h5py.string_dtype()
    if stream.dtype == "bytes":
        return h5py.vlen_dtype(np.uint8)
    if stream.dtype.startswith("utf8:"):
        return h5py.string_dtype("utf-8", stream.numpy_dtype.itemsize)
    if stream.dtype.startswith("ascii:"):
        return h5py.string_dtype("ascii", stream.numpy_dtype.itemsize)
    return stream.numpy_dtype


def _filters(codec: Codec, itemsize: int, chunk_bytes: int) -> Sequence[Filter]:
    """Return the filter pipeline of a dataset with that codec."""
    if codec.name not in _HDF5PLUGIN:
        return codec.filters(itemsize, chunk_bytes)
    class_ = getattr(hdf5plugin, _HDF5PLUGIN[codec.name])
    made = class_(codec.level) if codec.level is not None else class_()
    return (Filter(made.filter_id, tuple(made.filter_options)),)
