"""HDF5's door: the file of a recording, which one process writes, with one thread at a time.

A `RecordingFile` is open for SWMR writing all the time, but for the moments in which objects are added
(:meth:`~ RecordingFile.structure`). It knows neither Arrow nor rings; what is in a dataset is the
:class:`~shmstore.dataset.Dataset`'s to write. Nothing else in shmstore writes HDF5.

The metadata cache's evictions are off while recording, so that the file changes on disk only at
:meth:`~ RecordingFile.flush`: an extent is never visible before the rows it covers.

Whatever is done here is told to the journal beside: each object that is made, each chunk with its place and
checksum, and the items that HDF5 places by itself. So the file can be made anew from it, whatever a kill or a
power cut does to HDF5's own structures.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from h5py import h5a, h5d, h5p, h5s, h5t

from shmstore.codec import Codec, Filter
from shmstore.dataset import Dataset, h5py_dtype
from shmstore.disk import DiskFile, start_writing_back, sync_data, sync_folder
from shmstore.errors import ShmStoreError, refusal, storage_error
from shmstore.journal import Journal, JournalReader, NoJournal, entries_of
from shmstore.largepages import GrowingFile, is_in_memory, trim
from shmstore.layout import Link as LayoutLink
from shmstore.layout import Stream, stream_to_dict
from shmstore.recoveryfolder import recovery_folder, remove_recovery_folder
from shmstore.signature import crc32
from shmstore.steps import step
from shmstore.superblock import repair_superblock

log = logging.getLogger("shmstore.writer")

FORMAT_VERSION = "1.0"
# v110: superblock 3 and extensible-array chunk indexes, hence SWMR and O(1) appends; HDF5 1.10 and newer can
# read it.
_LIBVER = ("v110", "v110")
#: Large chunks begin on a page of the file: a copy into whole pages takes a twelfth less. What that leaves
#: between compressed ones is below 1 % of them.
_ALIGNMENT = {"alignment_threshold": 256 * 1024, "alignment_interval": 4096}
_FILTER_OPTIONAL = 1
_TEXT = h5py.string_dtype()
#: Where datasets are kept until the end that another has taken the place of.
_REPLACED = "_shmstore/replaced"
#: Rows of a variable-length column in one chunk: 64 KiB of references.
_VARIABLE_CHUNK_ITEMS = 4096
#: How much memory may add up that HDF5 keeps for chunks, and for items: it is metadata, which stays in the
#: cache while its evictions are off. Giving it back takes half a millisecond; items come faster than chunks.
_INDEX_BYTES, _HEAP_BYTES = 2 * 2**20, 32 * 2**20
_HDF5PLUGIN = {
    "bzip2": "BZip2",
    "fcidecomp": "FciDecomp",
    "htj2k": "Htj2k",
    "sperr": "Sperr",
    "sz": "SZ",
    "sz3": "SZ3",
    "zfp": "Zfp",
}


class RecordingFile:
    """The HDF5 file of one recording.

    Attributes
    ----------
    path : Path
        The file.
    generation : int
        Grows whenever the file was reopened: handles of an older generation are dead.
    index_bytes, heap_bytes : int
        Memory that HDF5 holds for chunks and for variable-length items, estimated; given back by a
        :meth:`flush` when it is too much.
    lock : threading.RLock
        Held by whoever writes: a flush between an extent and the rows that it covers would show readers rows
        that nobody put.
    journal : Journal or NoJournal
        Where everything is told; to be written to under the lock.
    datasets : list of Dataset
        All of them, by number; ``None`` for one that is gone.
    failed : bool
        Whether the disk has refused a change of the structure, a note, a flush or a sync: what the file
        holds, what the journal tells and what the caller knows may differ from then on.
    """

    def __init__(self, path: Path, file: h5py.File, journal: Journal | NoJournal) -> None:
        self.path = path
        self.journal = journal
        self.datasets: list[Dataset | None] = []
        self.generation = 0
        self.index_bytes = self.heap_bytes = 0
        self.lock = threading.RLock()
        self._file = file
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._written_back = 0
        self._named = False  # whether the names of file and folder are sure to be on the disk
        self._structuring = False
        self._end: int | None = None
        self._pages = GrowingFile(self._fd)
        self._in_memory = is_in_memory(self._fd)
        self.failed = False

    @classmethod
    def create(
        cls, path: Path, attributes: Mapping[str, Any], config: str, *, recoverable: bool = True
    ) -> RecordingFile:
        """Make the file with its root groups, and start SWMR.

        Parameters
        ----------
        path
            Must not exist.
        attributes
            Attributes of the root group.
        config
            JSON text kept as ``_shmstore/@config``.
        recoverable
            Whether a journal is kept beside it.

        Raises
        ------
        StorageError
            The folder cannot be written to, or the file exists.
        """
        try:
            # h5py's own message for a folder that is missing or read-only is long and carries no advice.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        except OSError as error:
            raise storage_error(error, "create the recording", path) from None
        identity = {"attributes": dict(attributes), "config": config}
        folder = recovery_folder(path)
        journal: Journal | NoJournal = NoJournal()
        try:
            if recoverable:
                folder.mkdir(mode=0o700)
                journal = Journal.create(folder / "journal", identity)
            file = h5py.File(path, "w", libver=_LIBVER, track_order=True, **_ALIGNMENT)
            for name, value in attributes.items():
                # The one number among them is a time in nanoseconds.
                file.attrs[name] = np.uint64(value) if isinstance(value, int) else value
            file.create_group("metadata", track_order=True)
            own = file.create_group("_shmstore", track_order=True)
            own.attrs["format_version"] = FORMAT_VERSION
            own.attrs["config"] = config
            recording = cls(path, file, journal)
            recording._start_swmr()
        except Exception as error:
            with contextlib.suppress(OSError):
                path.unlink()
                (folder / "journal").unlink(missing_ok=True)
                folder.rmdir()
            if (refused := refusal(error)) is not None and not isinstance(error, ShmStoreError):
                raise storage_error(refused, "create the recording", path) from None
            raise
        return recording

    @classmethod
    def resume(cls, path: Path, journal: Journal | NoJournal) -> RecordingFile:
        """Go on with a file whose writer was killed, and start SWMR.

        Parameters
        ----------
        path
            The file; its superblock is mended.
        journal
            Its journal, open behind its last whole record.

        Raises
        ------
        StorageError, IncompleteFileError
            It cannot be opened.
        """
        with DiskFile.waiting():
            repair_superblock(path)
        try:
            file = h5py.File(path, "r+", libver=_LIBVER, locking=False, **_ALIGNMENT)
        except OSError as error:
            raise storage_error(error, "go on with the recording", path) from None
        recording = cls(path, file, journal)
        recording._start_swmr()
        return recording

    # -- structure -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def structure(self) -> Iterator[None]:
        """Leave SWMR for as long as the block takes, so that objects and attributes can be added; 0.5 ms.

        Readers that have the file open go on reading what they know; opening it anew fails for that moment.
        """
        with self.lock, self._minded():
            if self._structuring:
                yield
                return
            # Until the end is told too, HDF5's structures may be torn, and nothing of what was done counts.
            self.journal.operation("begin", {})
            self.journal.write()
            step("writer.structure_begun")
            self._reopen()
            step("writer.structure_opened")
            self._structuring = True
            try:
                yield
            except BaseException as error:
                if refusal(error) is None:
                    self._end_structure()  # what was done before it failed was done
                raise
            self._end_structure()

    @contextlib.contextmanager
    def _minded(self) -> Iterator[None]:
        """Remember it if the disk refuses what is done in the block."""
        try:
            yield
        except Exception as error:
            if refusal(error) is not None:
                self.failed = True
            raise

    def _end_structure(self) -> None:
        self._structuring = False
        step("writer.structure_changed")
        self._start_swmr()
        step("writer.structure_closed")
        self.journal.operation("end", {})
        self.journal.write()
        step("writer.structure_ended")

    def create_instrument(self, link: str, attributes: Mapping[str, Any]) -> None:
        """Make an instrument's group; within :meth:`structure`."""
        self._remove(link)
        group = self._file.create_group(link, track_order=True)
        for name, value in attributes.items():
            group.attrs[name] = value
        self.journal.operation("create_instrument", {"link": link, "attributes": dict(attributes)})

    def set_columns(self, link: str, columns: Sequence[str]) -> None:
        """Mark an instrument's group as a column table, as HEP001 has it; within :meth:`structure`."""
        attributes = self._file[link].attrs
        _set_token(attributes, "CLASS", "COLUMN_TABLE")
        _set_token(attributes, "VERSION", "1.0")
        width = max((len(name.encode()) for name in columns), default=1)
        names = np.array([name.encode() for name in columns], f"S{width}")
        attributes.create("column-order", names, dtype=h5py.string_dtype("utf-8", width))
        self.journal.operation("set_columns", {"link": link, "columns": list(columns)})

    def create_group(self, path: str, attributes: Mapping[str, Any]) -> None:
        """Make a group within an instrument; within :meth:`structure`."""
        if path in self._file:
            return
        group = self._file.create_group(path, track_order=True)
        for name, value in attributes.items():
            if isinstance(value, str):
                _set_token(group.attrs, name, value)
            else:
                group.attrs[name] = value
        self.journal.operation("create_group", {"path": path, "attributes": dict(attributes)})

    def create_document(self, path: str, text: str) -> None:
        """Keep a text as a scalar string dataset, in place of any before; within :meth:`structure`."""
        self._remove(path)
        self._file.create_dataset(path, data=text, dtype=h5py.string_dtype()).flush()
        self.journal.operation("create_document", {"path": path, "text": text})

    def create_bytes(self, path: str, data: bytes) -> None:
        """Keep bytes as a uint8 dataset, in place of any before; within :meth:`structure`."""
        self._remove(path)
        # Else the data is written when the handle goes, where nobody hears of an error.
        self._file.create_dataset(path, data=np.frombuffer(data, np.uint8)).flush()
        self.journal.operation("create_bytes", {"path": path}, data)

    def replace(self, dataset: Dataset, path: str) -> None:
        """Put a dataset in the place of another, which goes out of sight; within :meth:`structure`.

        The other one is removed at the end only. HDF5 would use its space again at once, and after a power
        cut the recording may have to be made anew as it was before.
        """
        self.journal.operation("replace", {"number": dataset.number, "path": path})
        for number, other in enumerate(self.datasets):
            if other is not None and other.path == path:
                self._file.require_group(_REPLACED)
                self._file.move(path, f"{_REPLACED}/{number}")
                self.datasets[number] = None
        self._file.move(dataset.path, path)
        dataset.path = path

    @property
    def has_replaced(self) -> bool:
        """Whether there are datasets that :meth:`finish` will remove, and with them what they hold."""
        return _REPLACED in self._file

    def _exists(self, path: str) -> bool:
        """Whether there is something at a path; h5py's own ``in`` takes four times as long."""
        links, parts = self._file.id.links, path.strip("/").split("/")
        return all(links.exists("/".join(parts[:count]).encode()) for count in range(1, len(parts) + 1))

    def _remove(self, path: str) -> None:
        if not self._exists(path):
            return
        del self._file[path]
        for number, dataset in enumerate(self.datasets):
            if dataset is not None and (dataset.path == path or dataset.path.startswith(f"{path}/")):
                self.datasets[number] = None

    def remove(self, path: str) -> None:
        """Remove what another writer made and never committed; within :meth:`structure`."""
        self._remove(path)
        self.journal.operation("remove", {"path": path})

    def create_dataset(
        self, path: str, stream: Stream, chunk_items: int, codec: Codec, items: int = 0
    ) -> Dataset:
        """Make the dataset of a stream; within :meth:`structure`.

        Parameters
        ----------
        path
            Path in the file, from its root and without a slash in front.
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
        self._remove(path)  # what a writer that was killed may have left
        filters = (
            ()
            if stream.variable
            else _filters(codec, stream.numpy_dtype.itemsize, chunk_items * stream.item_bytes)
        )
        fill_time = h5d.FILL_TIME_ALLOC if stream.variable else h5d.FILL_TIME_IFSET
        properties = _creation(
            (chunk_items, *shape), fill_time, stream.fill, stream.numpy_dtype, tuple(filters)
        )
        space = h5s.create_simple((items, *shape), (h5s.UNLIMITED, *shape))
        type_id = h5t.py_create(h5py_dtype(stream), logical=True)
        if stream.dtype.startswith("ascii:"):
            type_id.set_strpad(h5t.STR_NULLTERM)  # else h5dump shows what is behind the end
        made = h5d.create(self._file.id, path.encode(), type_id, space, properties, _with_groups())
        if stream.attributes:
            attributes = h5py.Dataset(made).attrs
            for name, value in stream.attributes.items():
                if not isinstance(value, LayoutLink):
                    attributes[name] = value
            if stream.fill is not None:
                attributes["_FillValue"] = np.asarray(stream.fill, stream.numpy_dtype)
        dataset = Dataset(self, len(self.datasets), path, stream, chunk_items, len(filters))
        dataset.first_items = dataset.known_items = items
        self.datasets.append(dataset)
        self.journal.operation(
            "create_dataset",
            {
                "path": path,
                "stream": stream_to_dict(stream),
                "chunk_items": chunk_items,
                "codec": codec.filter_fields(),
                "items": items,
            },
        )
        return dataset

    def note(self, operation: str, arguments: Mapping[str, Any], blob: bytes = b"") -> None:
        """Tell the journal of what is not in the file, but has to be known by who goes on with it."""
        with self.lock, self._minded():
            self.journal.operation(operation, arguments, blob)
            self.journal.write()

    def restore_dataset(self, path: str, stream: Stream, chunk_items: int, codec: Codec) -> Dataset:
        """Take up a dataset that another writer made; they must be taken up in the order of their making."""
        filters = (
            ()
            if stream.variable
            else _filters(codec, stream.numpy_dtype.itemsize, chunk_items * stream.item_bytes)
        )
        dataset = Dataset(self, len(self.datasets), path, stream, chunk_items, len(filters))
        self.datasets.append(dataset)
        return dataset

    def link(self, root: str, streams: Iterable[Stream]) -> None:
        """Set the attributes that refer to other objects, once these exist; within :meth:`structure`.

        Parameters
        ----------
        root
            What the streams' paths begin below.
        streams
            Whose datasets have been made; most refer to nothing.
        """
        streams = [
            stream
            for stream in streams
            if any(isinstance(value, LayoutLink) for value in stream.attributes.values())
        ]
        if not streams:
            return
        for stream in streams:
            for name, value in stream.attributes.items():
                if isinstance(value, LayoutLink):
                    self._file[root + stream.path].attrs[name] = self._file[root + value.path].ref
        self.journal.operation(
            "link", {"root": root, "streams": [stream_to_dict(stream) for stream in streams]}
        )

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
        self.journal.operation("set_metadata", {"path": path, "values": dict(values)})

    # -- rows ------------------------------------------------------------------------------------------------

    def open_dataset(self, path: str, *, cached: bool) -> h5d.DatasetID:
        """Open a dataset by path; a chunk cache is of use only where HDF5 itself places the items."""
        access = h5p.create(h5p.DATASET_ACCESS)
        if not cached:
            access.set_chunk_cache(0, 0, 1.0)
        return h5d.open(self._file.id, path.encode(), access)

    def flush(self) -> int:
        """Tell the journal, and publish to readers, what was written; neither is synced here.

        Returns
        -------
        int
            How far the journal is then.
        """
        with self.lock, self._minded():
            position = self.journal.write()
            step("writer.journal_written")
            self._file.flush()
            self.forget_end()
            if self.index_bytes > _INDEX_BYTES or self.heap_bytes > _HEAP_BYTES:
                with self.structure():  # closing is the only thing that makes HDF5 let go of it
                    self.index_bytes = self.heap_bytes = 0
            return position

    def sync(self) -> None:
        """Wait until the disk has what was flushed, the journal included.

        Touches no HDF5, so another thread may call it.
        """
        with self._minded():  # the system may have given up for good what a sync has failed on
            sync_data(self._fd)
            step("writer.file_synced")
            self.journal.sync()
            step("writer.journal_synced")
            if not self._named:
                sync_folder(self.path.parent)
                self._named = True

    @property
    def unwritten_bytes(self) -> int:
        """Bytes that :meth:`start_writing_back` has not seen yet; of a file in memory none."""
        return 0 if self._in_memory else self.size - self._written_back

    def start_writing_back(self) -> None:
        """Have the disk begin with what came since the last call; a sync has less to wait for then.

        Touches no HDF5, so another thread may call it; it may take a while where the disk is busy.
        """
        start, self._written_back = self._written_back, self.size
        start_writing_back(self._fd, start, self._written_back)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        # Half the price of fstat: asked for after each chunk.
        return os.lseek(self._fd, 0, os.SEEK_END)

    @property
    def end(self) -> int:
        """Bytes of the file; remembered since the last chunk, as nothing else makes it grow but a flush."""
        return self.look_for_end() if self._end is None else self._end

    def look_for_end(self) -> int:
        """Return how many bytes the file has now."""
        self._end = self.size
        return self._end

    def expect(self, size: int) -> None:
        """Prepare for so many bytes that are appended next; the file may be longer then, within them."""
        self._pages.expect(self.end, size)

    def forget_end(self) -> None:
        """The file may have grown."""
        self._end = None

    @property
    def free_bytes(self) -> int:
        """Bytes that are left on the file's disk for this user."""
        filesystem = os.fstatvfs(self._fd)
        return filesystem.f_bavail * filesystem.f_frsize

    # -- end -------------------------------------------------------------------------------------------------

    def finish(
        self,
        state: str,
        accounting: str,
        rows: Mapping[str, int],
        totals: Mapping[int, int] | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        """Stamp the end into the file, close it, and wait until the disk has it.

        Whatever happens meanwhile, either the journal says that the file is finished, or it and the tail
        files are there to make it anew.

        Parameters
        ----------
        state
            ``"complete"``, ``"partial"`` or ``"aborted"``.
        accounting
            JSON text kept as ``_shmstore/@accounting``.
        rows
            Rows by the instrument's link.
        totals
            Items by the dataset's number: where a writer that was killed left more, they are cut off.
        report
            The closing report, for the journal: who follows a writer that is killed from here on needs it.

        The journal stays: see :meth:`discard_journal`.
        """
        with self.lock:
            self.journal.operation("begin", {})  # and no end: who is to go on from here makes the file anew
            self.journal.write()
        step("close.begun_stamping")
        self._reopen()
        self._file.attrs["state"] = state
        self._file["_shmstore"].attrs["accounting"] = accounting
        for link, count in rows.items():
            self._file[link].attrs["NROWS"] = np.uint64(count)
        cut = []
        for number, total in (totals or {}).items():
            dataset = self.datasets[number]
            if dataset is not None and dataset.known_items > total:
                dataset.cut(total)
                cut.append(dataset)
        self._remove("_shmstore/checksums")  # of a writer that was killed in here
        step("close.stamped")
        self._keep_checksums(cut)
        if _REPLACED in self._file:  # last, so that nothing takes the space that comes free
            del self._file[_REPLACED]
        step("close.checksums_written")
        with DiskFile.waiting():
            self._file.close()
        step("close.file_closed")
        self._pages.close()
        with contextlib.suppress(OSError):  # it takes more memory than it has bytes, and no harm is done
            trim(self._fd)
        with DiskFile.waiting():
            os.fsync(self._fd)
        os.close(self._fd)
        self.journal.operation("finished", {"report": report})
        self.journal.write()
        self.journal.sync()
        self.journal.close()

    def _keep_checksums(self, cut: Iterable[Dataset]) -> None:
        """Have the file hold the checksum of each chunk, as the journal tells them.

        Those of all datasets stand in a row while they are gathered: 4 bytes a chunk.
        """
        group = self._file["_shmstore"].create_group("checksums", track_order=True)
        if not isinstance(self.journal, Journal):
            return
        counts = np.array([0 if dataset is None else dataset.chunks for dataset in self.datasets], np.uint64)
        starts = np.append(np.int64(0), counts.cumsum().astype(np.int64))
        checksums, told = np.zeros(starts[-1], "<u4"), np.zeros(len(counts), np.bool_)
        with DiskFile.waiting(), JournalReader(self.journal.path) as reader:  # it may be long
            for entries in entries_of(reader):
                known = entries[entries["dataset"] < len(counts)]
                known = known[known["index"] < counts[known["dataset"]]]
                told[known["dataset"]] = True
                # Of a chunk that was written twice, the last counts.
                checksums[starts[known["dataset"]] + known["index"].astype(np.int64)] = known["crc"]
            if reader.end < self.journal.position:
                log.warning("%s is damaged: the recording gets no checksums of its chunks", reader.path)
                return
        for shortened in cut:
            last = starts[shortened.number + 1] - 1
            if shortened.chunks and checksums[last]:
                checksums[last] = crc32(shortened.stored_chunk(shortened.chunks - 1)[1])
        # Not through h5py's upper layer, which takes twice as long: there may be a thousand datasets.
        type_id, text_type = h5t.py_create(checksums.dtype, logical=True), h5t.py_create(_TEXT, logical=True)
        properties, scalar = h5p.create(h5p.DATASET_CREATE), h5s.create(h5s.SCALAR)
        properties.set_obj_track_times(False)
        for number, dataset in enumerate(self.datasets):
            if dataset is not None and told[number]:
                own = checksums[starts[number] : starts[number + 1]]
                space = h5s.create_simple(own.shape)
                kept = h5d.create(group.id, str(number).encode(), type_id, space, properties)
                kept.write(h5s.ALL, h5s.ALL, own)
                path = h5a.create(kept, b"path", text_type, scalar)
                path.write(np.array(f"/{dataset.path}", _TEXT))
                kept.flush()  # else it is written when the handle goes, where nobody hears of an error

    def discard_journal(self) -> None:
        """Remove what lies beside a file that is finished."""
        remove_recovery_folder(self.path)

    def close(self) -> None:
        """Close without stamping anything, and leave the journal: for the way out after a failure."""
        self._file.close()
        self._pages.close()
        os.close(self._fd)
        self.journal.close()

    def _reopen(self) -> None:
        self._file.close()
        # Without HDF5's file lock: a reader that opens the file in this moment holds it briefly, and must not
        # stop us. That nobody else writes is settled already, by creating the file exclusively.
        self._file = h5py.File(self.path, "r+", libver=_LIBVER, locking=False, **_ALIGNMENT)
        self.generation += 1
        self.forget_end()

    def _start_swmr(self) -> None:
        self.forget_end()
        self._file.flush()  # if the disk refuses: it is a crash when starting SWMR is what fails
        self._file.swmr_mode = True
        self.generation += 1
        cache = self._file.id.get_mdc_config()
        cache.evictions_enabled = False
        cache.incr_mode = cache.decr_mode = cache.flash_incr_mode = 0
        self._file.id.set_mdc_config(cache)


def note_losses(path: Path, texts: Sequence[str]) -> None:
    """Have a finished recording say that something of it is lost; on the disk when it returns.

    Parameters
    ----------
    path
        The file, which nobody else has.
    texts
        What is lost, for the account.

    Raises
    ------
    OSError, RuntimeError
        As h5py raises them.
    """
    with h5py.File(path, "r+", libver=_LIBVER, locking=False) as file:
        own = file["_shmstore"].attrs
        account = json.loads(own["accounting"])
        account |= {"ok": False, "problems": [*account["problems"], *texts]}
        own["accounting"] = json.dumps(account)
        if file.attrs["state"] == "complete":
            file.attrs["state"] = "partial"
    with path.open("rb") as written:
        os.fsync(written.fileno())


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


@functools.lru_cache(maxsize=16)
def _creation(
    chunk: tuple[int, ...],
    fill_time: int,
    fill: float | None,
    dtype: np.dtype[Any],
    filters: tuple[Filter, ...],
) -> h5p.PropDCID:
    """Return how a dataset is made, not to be changed: the same for the many columns of a wide table.

    Parameters
    ----------
    chunk
        Shape of a chunk.
    fill_time
        When HDF5 writes the fill value.
    fill, dtype
        The fill value, and its type.
    filters
        What chunks go through.
    """
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_chunk(chunk)
    properties.set_fill_time(fill_time)
    properties.set_attr_creation_order(h5p.CRT_ORDER_TRACKED | h5p.CRT_ORDER_INDEXED)
    if fill is not None:
        properties.set_fill_value(np.asarray(fill, dtype))
    for filter_ in filters:
        properties.set_filter(filter_.id, _FILTER_OPTIONAL, filter_.cd_values)
    return properties


@functools.cache
def _with_groups() -> h5p.PropLCID:
    """Return that the groups on the way to an object are made too."""
    links = h5p.create(h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    return links


def _filters(codec: Codec, itemsize: int, chunk_bytes: int) -> Sequence[Filter]:
    """Return the filter pipeline of a dataset with that codec."""
    if codec.name not in _HDF5PLUGIN:
        return codec.filters(itemsize, chunk_bytes)
    class_ = getattr(hdf5plugin, _HDF5PLUGIN[codec.name])
    made = class_(codec.level) if codec.level is not None else class_()
    return (Filter(made.filter_id, tuple(made.filter_options)),)
