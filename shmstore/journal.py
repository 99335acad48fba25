"""The journal: what was done to a recording, record by record, so that it can be rebuilt from any wreck.

Records are appended, and never changed. Each has a checksum, the journal's own number and its position, so
that nothing of another journal, or of another place, can pass for one. A reader takes the records up to the
first that does not hold together; a writer goes on behind the last that does. The bytes are told in
``docs/recovery-formats.md``.

What the operations and numbers mean is the business of the writer and of recovery: this module knows neither
HDF5 nor Arrow nor rings.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from shmstore.disk import DiskFile, flat
from shmstore.errors import IncompleteFileError, storage_error
from shmstore.signature import SIGNATURE_BYTES, crc32, sign, signed_version

#: Longest payload: an operation's blob, an inline chunk, the items of one record.
PAYLOAD_LIMIT = 2**30
#: Longest body; nothing longer is ever asked of memory before a checksum was right.
BODY_LIMIT = 2**24

#: One chunk of a dataset: where its stored bytes are in the recording, and their CRC-32. In memory only,
#: `reserved` is :data:`INLINE` of a chunk whose stored bytes are in the journal, at `offset`; else it is 0.
ENTRY = np.dtype(
    [
        ("dataset", "<u4"),
        ("filter_mask", "<u4"),
        ("index", "<u8"),
        ("items", "<u8"),
        ("offset", "<u8"),
        ("length", "<u8"),
        ("crc", "<u4"),
        ("reserved", "<u4"),
    ]
)

INLINE = 1

_MAGIC = b"SHMJRNAL"
_VERSION = (1, 0)
_IDENTITY = struct.Struct("<II4x")  # the journal's number, length of the identity
_CRC = struct.Struct("<I")  # of what is before it, and of identity or body
_START = SIGNATURE_BYTES + _IDENTITY.size + _CRC.size

_RECORD_MAGIC = 0x4443_4552  # "RECD"
_RECORD = struct.Struct(
    "<IIIIQQI"
)  # magic, journal's number, kind, body length, position, payload length, payload CRC
_RECORD_HEADER = struct.Struct(_RECORD.format + "I")  # and its CRC
_RECORD_BYTES = _RECORD_HEADER.size
_OPERATION, _CHUNKS, _INLINE, _ITEMS = 1, 2, 3, 4

_pack_entry = struct.Struct("<IIQQQQI4x").pack
_INLINE_BODY = struct.Struct("<IIQQ")  # dataset, filter mask, index, items
_ITEMS_BODY = struct.Struct("<I4xQQ")  # dataset, first, count
_LENGTH = np.dtype("<u8")  # of an item

_BLOCK_BYTES = 2**20
#: Entries of chunks that are looked at together: they come in records of a few, and each look costs.
_TOGETHER_BYTES = 2**20


class Header(NamedTuple):
    """The first record.

    Attributes
    ----------
    start, end
        Where the record is in the journal.
    version
        Of the format: major, minor.
    identity
        What the journal belongs to.
    """

    start: int
    end: int
    version: tuple[int, int]
    identity: dict[str, Any]


class Operation(NamedTuple):
    """Something that was done to the recording's structure.

    Attributes
    ----------
    start, end
        Where the record is in the journal.
    name, arguments
        What was done.
    offset, length, crc
        Where in the journal its blob is; see :meth:`JournalReader.load`.
    """

    start: int
    end: int
    name: str
    arguments: dict[str, Any]
    offset: int
    length: int
    crc: int


class Chunks(NamedTuple):
    """Chunks that were written to the recording.

    Attributes
    ----------
    start, end
        Where the record is in the journal.
    body
        Their entries, as they stand in the journal.
    """

    start: int
    end: int
    body: bytes

    @property
    def entries(self) -> npt.NDArray[np.void]:
        """Array of :data:`ENTRY` of shape ``(chunks,)``, in the order of their writing; read-only."""
        return np.frombuffer(self.body, ENTRY)


class Inline(NamedTuple):
    """A chunk whose stored bytes are in the journal.

    Attributes
    ----------
    start, end
        Where the record is in the journal.
    dataset, chunk_index, filter_mask, items
        As in :data:`ENTRY`.
    offset, length, crc
        Where in the journal its stored bytes are; see :meth:`JournalReader.load`.
    """

    start: int
    end: int
    dataset: int
    chunk_index: int
    filter_mask: int
    items: int
    offset: int
    length: int
    crc: int

    @property
    def entry(self) -> bytes:
        """The chunk as an :data:`ENTRY`."""
        chunk = self.dataset, self.filter_mask, self.chunk_index, self.items
        return _pack_entry(*chunk, self.offset, self.length, self.crc)


class Items(NamedTuple):
    """Items of a variable-length dataset.

    Attributes
    ----------
    start, end
        Where the record is in the journal.
    dataset, first, items
        Number of the dataset; its item that comes first here, and how many there are.
    offset, length, crc
        Where in the journal they are; see :meth:`JournalReader.values`.
    """

    start: int
    end: int
    dataset: int
    first: int
    items: int
    offset: int
    length: int
    crc: int


Record = Header | Operation | Chunks | Inline | Items


class Journal:
    """A journal that is written. Records are collected in memory until :meth:`write`. For one thread.

    Made by :meth:`create`, or by :meth:`reopen` where an earlier process ended.

    Attributes
    ----------
    path : Path
        The file.
    """

    #: Whether it is worth telling anything.
    keeps: ClassVar[bool] = True
    #: What the bytes go through: tests of broken disks put a broken one here.
    file_type: ClassVar[type[DiskFile]] = DiskFile

    def __init__(self, file: DiskFile, number: int, position: int) -> None:
        self.path = file.path
        self._file = file
        self._number = number
        self._position = position
        self._collected: list[bytes | memoryview] = []
        self._end = position  # of the last record collected
        self._entries = bytearray()  # of chunks that have no record yet
        self._torn = False  # there may be more in the file than `_position` says

    @classmethod
    def create(cls, path: Path, identity: Mapping[str, Any]) -> Self:
        """Make a journal that says what it belongs to.

        Parameters
        ----------
        path
            A file that does not exist yet.
        identity
            What JSON can say.

        Raises
        ------
        StorageError
            The file exists or cannot be written; then none is left behind.
        ValueError
            The identity is too long.
        """
        text = _spell(dict(identity))
        if len(text) > BODY_LIMIT:
            raise ValueError(
                f"an identity of {len(text)} bytes is too long for the journal: at most {BODY_LIMIT}"
            )
        number = int.from_bytes(os.urandom(4), "little")
        about = _IDENTITY.pack(number, len(text))
        header = sign(_MAGIC, _VERSION) + about + _CRC.pack(crc32(text, crc32(about))) + text
        try:
            file = cls.file_type.create(path)
        except OSError as error:
            raise storage_error(error, "make the journal", path) from None
        try:
            file.write([header], 0)
        except OSError as error:
            file.close()
            with contextlib.suppress(OSError):
                path.unlink()
            raise storage_error(error, "make the journal", path) from None
        return cls(file, number, len(header))

    @classmethod
    def reopen(cls, path: Path, end: int) -> Self:
        """Go on with a journal behind ``end``; what lies there is cut away, for good when this returns.

        Parameters
        ----------
        path
            The file.
        end
            End of the last record that holds together: :attr:`JournalReader.end`.

        Raises
        ------
        StorageError
            The file cannot be read or written.
        IncompleteFileError
            It is no journal, one of a newer version, or ends before ``end``.
        """
        try:
            file = cls.file_type.open(path, write=True)
        except OSError as error:
            raise storage_error(error, "reopen the journal", path) from None
        try:
            header, number = _read_header(file)
            if not header.end <= end <= file.size:
                raise IncompleteFileError(
                    f"{path} has no record that ends at {end}: it has been changed since it was read"
                )
            if end < file.size:
                file.truncate(end)
            # What was cut away, here or by who wrote before, must not come back behind new records after a
            # power cut.
            file.sync()
        except OSError as error:
            file.close()
            raise storage_error(error, "reopen the journal", path) from None
        except IncompleteFileError:
            file.close()
            raise
        return cls(file, number, end)

    @property
    def number(self) -> int:
        """The journal's number, drawn at random when it was made."""
        return self._number

    @property
    def position(self) -> int:
        """Bytes of whole records in the file."""
        return self._position

    def operation(self, name: str, arguments: Mapping[str, Any], blob: bytes = b"") -> int:
        """Collect an operation, and return where its record will start.

        Parameters
        ----------
        name, arguments
            What was done, as JSON can say it.
        blob
            Bytes that belong to it.

        Raises
        ------
        TypeError
            JSON cannot say the arguments.
        ValueError
            Arguments or blob are too long.
        """
        body = _spell({"operation": name, "arguments": dict(arguments)})
        return self._collect(_OPERATION, body, [memoryview(blob)], crc32(blob))

    def chunk(
        self, dataset: int, index: int, filter_mask: int, items: int, offset: int, length: int, crc: int
    ) -> None:
        """Collect a chunk that was written to the recording; those in a row share a record.

        Parameters
        ----------
        dataset, index
            Number of the dataset, and of the chunk in it.
        filter_mask
            HDF5's: a bit for each filter that was left out.
        items
            How many the dataset had then, those of chunks written in the same go included.
        offset, length
            Where in the recording its stored bytes are.
        crc
            CRC-32 of these.
        """
        # Packed at once: as quick as keeping a tuple to be packed later, and a wrong number is found here.
        self._entries += _pack_entry(dataset, filter_mask, index, items, offset, length, crc)

    def inline(
        self,
        dataset: int,
        index: int,
        filter_mask: int,
        items: int,
        crc: int,
        payload: bytes | memoryview | npt.NDArray[np.uint8],
    ) -> None:
        """Collect a chunk and its stored bytes.

        Parameters
        ----------
        dataset, index, filter_mask, items
            As in :meth:`chunk`.
        crc
            CRC-32 of the payload.
        payload
            Contiguous bytes. They are not copied, and must not change before :meth:`write` has returned.

        Raises
        ------
        ValueError
            The payload is too long.
        """
        body = _INLINE_BODY.pack(dataset, filter_mask, index, items)
        self._collect(_INLINE, body, [flat(payload)], crc)

    def items(self, dataset: int, start: int, values: Sequence[bytes]) -> None:
        """Collect items of a variable-length dataset, from item ``start`` on. They are copied.

        Raises
        ------
        ValueError
            A single one is too long; nothing is collected then.
        """
        sizes = np.fromiter(map(len, values), np.int64, len(values)) + _LENGTH.itemsize
        if len(values) and sizes.max() > PAYLOAD_LIMIT:
            raise ValueError(
                f"an item of {sizes.max() - _LENGTH.itemsize} bytes is too long for the journal: at most "
                f"{PAYLOAD_LIMIT - _LENGTH.itemsize}"
            )
        ends = sizes.cumsum()
        first, before = 0, 0
        while first < len(values):
            last = int(ends.searchsorted(before + PAYLOAD_LIMIT, "right"))
            lengths = (sizes[first:last] - _LENGTH.itemsize).astype(_LENGTH).tobytes()
            data = b"".join(values[first:last])
            body = _ITEMS_BODY.pack(dataset, start + first, last - first)
            payload = [memoryview(lengths), memoryview(data)]
            self._collect(_ITEMS, body, payload, crc32(data, crc32(lengths)))
            first, before = last, int(ends[last - 1])

    def write(self) -> int:
        """Write what was collected, and return :attr:`position`. It is on the disk after :meth:`sync` only.

        Raises
        ------
        StorageError
            The disk refused. Nothing of it is in the file, and all of it is kept for another call.
        """
        self._close_entries()
        if not self._collected:
            return self._position
        try:
            if self._torn:
                self._cut()
            self._torn = True
            self._file.write(self._collected, self._position)
            self._torn = False
        except OSError as error:
            # If this fails too, what is torn stays behind until the next call, or until the file is read.
            with contextlib.suppress(OSError):
                self._cut()
            raise storage_error(error, "write the journal", self.path) from None
        self._collected.clear()
        self._position = self._end
        return self._position

    def sync(self) -> None:
        """Return once everything up to :attr:`position` is on the disk.

        Raises
        ------
        StorageError
            The disk refused. The system may have given up what was written since the last sync, even if a
            later call succeeds.
        """
        try:
            self._file.sync()
        except OSError as error:
            raise storage_error(error, "sync the journal", self.path) from None

    def close(self) -> None:
        """Close the file; it stays. What was collected and not written is gone."""
        self._file.close()
        self._collected.clear()

    def _cut(self) -> None:
        self._file.truncate(self._position)
        self._torn = False

    def _close_entries(self) -> None:
        """Make records of the chunks that have none yet."""
        entries, self._entries = self._entries, bytearray()
        most = BODY_LIMIT // ENTRY.itemsize * ENTRY.itemsize
        for start in range(0, len(entries), most):
            self._append(_CHUNKS, bytes(entries[start : start + most]), [], 0)

    def _collect(self, kind: int, body: bytes, payload: list[memoryview], crc: int) -> int:
        length = sum(map(len, payload))
        if len(body) > BODY_LIMIT or length > PAYLOAD_LIMIT:
            raise ValueError(
                f"a record of {len(body)} bytes and {length} bytes of data is too long for the journal: "
                f"at most {BODY_LIMIT} and {PAYLOAD_LIMIT}"
            )
        self._close_entries()
        return self._append(kind, body, payload, crc)

    def _append(self, kind: int, body: bytes, payload: list[memoryview], crc: int) -> int:
        start, length = self._end, sum(map(len, payload))
        header = _RECORD.pack(_RECORD_MAGIC, self._number, kind, len(body), start, length, crc)
        self._collected += [header + _CRC.pack(crc32(body, crc32(header))) + body, *payload]
        self._end += _RECORD_BYTES + len(body) + length
        return start


class NoJournal:
    """Keeps nothing: for a recording that is not to be recovered. As much of `Journal` as is asked of it."""

    keeps = False
    number = position = 0

    def operation(self, name: str, arguments: Mapping[str, Any], blob: bytes = b"") -> int:
        """Forget it."""
        return 0

    def chunk(
        self, dataset: int, index: int, filter_mask: int, items: int, offset: int, length: int, crc: int
    ) -> None:
        """Forget it."""

    def inline(
        self,
        dataset: int,
        index: int,
        filter_mask: int,
        items: int,
        crc: int,
        payload: bytes | memoryview | npt.NDArray[np.uint8],
    ) -> None:
        """Forget it."""

    def items(self, dataset: int, start: int, values: Sequence[bytes]) -> None:
        """Forget them."""

    def write(self) -> int:
        """Do nothing."""
        return 0

    def sync(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class JournalReader:
    """The records of a journal that hold together, as they were written. Iterating may be repeated.

    The journal may be damaged in any way: what comes out is what went in, up to some record. Memory is
    bounded by the longest body (:data:`BODY_LIMIT`); payloads are read when they are asked for.

    Parameters
    ----------
    path
        The file; as long as it is now.
    payloads_from
        Check the payloads of records that start there or behind, and stop at one that is damaged. After a
        power cut a record may be on the disk and its payload not, unless it had been synced; after a kill
        that cannot be.

    Attributes
    ----------
    header : Header
        The first record.
    end : int
        End of the last record that holds together, of those that were iterated over so far.

    Raises
    ------
    StorageError
        The file cannot be read.
    IncompleteFileError
        It is no journal, its first record is damaged, or it has a newer version.
    """

    def __init__(self, path: Path, payloads_from: int | None = None) -> None:
        self.path = path
        self._payloads_from = payloads_from
        try:
            self._file = DiskFile.open(path)
        except OSError as error:
            raise storage_error(error, "read the journal", path) from None
        try:
            self._size = self._file.size
            self.header, self._number = _read_header(self._file)
        except OSError as error:
            self._file.close()
            raise storage_error(error, "read the journal", path) from None
        except IncompleteFileError:
            self._file.close()
            raise
        self.end = self.header.end
        self._block, self._block_start = b"", 0

    @property
    def number(self) -> int:
        """The journal's number."""
        return self._number

    @property
    def torn(self) -> bool:
        """Whether bytes follow :attr:`end`: after iterating, whether a record is damaged or cut."""
        return self.end < self._size

    def __iter__(self) -> Iterator[Record]:
        """Yield the header and the records behind it.

        Raises
        ------
        StorageError
            The disk refused.
        """
        self.end = self.header.end
        yield self.header
        while (frame := self._frame(self.end)) is not None:
            try:
                record = _decode(frame)
            except (ValueError, KeyError, TypeError, RecursionError, struct.error):
                return  # its checksum is right, so who wrote it was wrong
            self.end = frame.end
            if record is not None:
                yield record

    def load(self, record: Operation | Inline | Items) -> bytes:
        """Return a record's payload: an operation's blob, an inline chunk's stored bytes.

        Raises
        ------
        StorageError
            The disk refused.
        IncompleteFileError
            It is damaged.
        """
        return self.payload(record.offset, record.length, record.crc)

    def payload(self, offset: int, length: int, crc: int) -> bytes:
        """Return a payload by its place.

        Raises
        ------
        StorageError
            The disk refused.
        IncompleteFileError
            It is damaged.
        """
        try:
            payload = self._file.read(offset, length)
        except OSError as error:
            raise storage_error(error, "read the journal", self.path) from None
        if len(payload) != length or crc32(payload) != crc:
            raise IncompleteFileError(
                f"{self.path} is damaged: {length} bytes at {offset} are not what was written"
            )
        return payload

    def values(self, record: Items) -> list[bytes]:
        """Return the items of a record.

        Raises
        ------
        StorageError
            The disk refused.
        IncompleteFileError
            They are damaged.
        """
        payload = self.load(record)
        start = record.items * _LENGTH.itemsize
        values = []
        for length in np.frombuffer(payload, _LENGTH, record.items).tolist():
            values.append(payload[start : start + length])
            start += length
        if start != len(payload):
            raise IncompleteFileError(
                f"{self.path} is damaged: the items at {record.offset} are not {record.length} bytes long"
            )
        return values

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        """Return the reader itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def _frame(self, start: int) -> _Frame | None:
        """Return the record at ``start`` if it holds together."""
        try:
            at = self._at(start, _RECORD_BYTES)
            if at < 0:
                return None
            magic, number, kind, body_length, position, length, crc, own = _RECORD_HEADER.unpack_from(
                self._block, at
            )
            if magic != _RECORD_MAGIC or number != self._number or position != start:
                return None
            offset = start + _RECORD_BYTES + body_length
            end = offset + length
            if body_length > BODY_LIMIT or length > PAYLOAD_LIMIT or end > self._size:
                return None
            at = self._at(start, _RECORD_BYTES + body_length)
            if at < 0:
                return None
            body = self._block[at + _RECORD_BYTES : at + _RECORD_BYTES + body_length]
            if own != crc32(body, crc32(self._block[at : at + _RECORD.size])):
                return None
            checked = self._payloads_from is not None and start >= self._payloads_from
            if checked and self._crc_of(offset, length) != crc:
                return None
        except OSError as error:
            raise storage_error(error, "read the journal", self.path) from None
        return _Frame(start, end, kind, body, offset, length, crc)

    def _at(self, start: int, count: int) -> int:
        """Return where bytes of the file are in the block of it that is kept; -1 if the file ends before."""
        at = start - self._block_start
        if not 0 <= at <= len(self._block) - count:
            self._block = self._file.read(start, max(count, _BLOCK_BYTES))
            self._block_start, at = start, 0
        return at if len(self._block) >= count else -1

    def _crc_of(self, start: int, count: int) -> int:
        crc = 0
        for at in range(start, start + count, _BLOCK_BYTES):
            crc = crc32(self._file.read(at, min(_BLOCK_BYTES, start + count - at)), crc)
        return crc


def entries_of(records: Iterable[Record]) -> Iterator[npt.NDArray[np.void]]:
    """Give the chunks that records tell of, as arrays of :data:`ENTRY` of some ten thousand.

    All records are taken, in their order; those that tell of no chunk are passed over.
    """
    told: list[bytes] = []
    inline: list[int] = []
    size = 0

    def together() -> npt.NDArray[np.void]:
        entries = np.frombuffer(bytearray().join(told), ENTRY)
        entries["reserved"] = 0  # what a newer version says there is not known
        entries["reserved"][inline] = INLINE
        return entries

    for record in records:
        if isinstance(record, Chunks):
            told.append(record.body)
        elif isinstance(record, Inline):
            inline.append(size // ENTRY.itemsize)
            told.append(record.entry)
        else:
            continue
        size += len(told[-1])
        if size >= _TOGETHER_BYTES:
            yield together()
            told.clear()
            inline.clear()
            size = 0
    if told:
        yield together()


def is_of_another_version(path: Path) -> bool:
    """Whether a file is a whole journal's beginning, of a version that is not known here."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        version = signed_version(file.read(SIGNATURE_BYTES), _MAGIC)
        return version is not None and version[0] != _VERSION[0]
    return False


class _Frame(NamedTuple):
    """A record of any kind, whole."""

    start: int
    end: int
    kind: int
    body: bytes
    offset: int
    length: int
    crc: int


def _decode(frame: _Frame) -> Operation | Chunks | Inline | Items | None:
    """Return what a record says; ``None`` for a kind that only a newer minor version knows."""
    start, end, kind, body, offset, length, crc = frame
    if kind == _CHUNKS:
        if len(body) % ENTRY.itemsize:
            raise ValueError("no whole entries")
        return Chunks(start, end, body)
    if kind == _OPERATION:
        said = json.loads(body)
        name, arguments = said["operation"], said["arguments"]
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise ValueError("no operation")
        return Operation(start, end, name, arguments, offset, length, crc)
    if kind == _INLINE:
        dataset, filter_mask, index, items = _INLINE_BODY.unpack(body)
        return Inline(start, end, dataset, index, filter_mask, items, offset, length, crc)
    if kind == _ITEMS:
        dataset, first, count = _ITEMS_BODY.unpack(body)
        if count * _LENGTH.itemsize > length:
            raise ValueError("more items than bytes")
        return Items(start, end, dataset, first, count, offset, length, crc)
    return None


def _read_header(file: DiskFile) -> tuple[Header, int]:
    """Return the first record, and the number that all others carry."""
    fixed = file.read(0, _START)
    version = signed_version(fixed, _MAGIC)
    if not version:
        raise IncompleteFileError(f"{file.path} is no journal, or was never finished: nothing is told in it")
    if version[0] != _VERSION[0]:
        raise IncompleteFileError(
            f"{file.path} has version {version[0]}.{version[1]} of the journal's format, and this shmstore "
            f"knows {_VERSION[0]}: use the shmstore that made it, or a newer one"
        )
    damaged = f"{file.path} is a journal whose first record is damaged: what it belongs to is not known"
    if len(fixed) < _START:
        raise IncompleteFileError(damaged)
    about = fixed[SIGNATURE_BYTES : SIGNATURE_BYTES + _IDENTITY.size]
    number, length = _IDENTITY.unpack(about)
    if length > BODY_LIMIT:
        raise IncompleteFileError(damaged)
    text = file.read(_START, length)
    crc = _CRC.unpack_from(fixed, SIGNATURE_BYTES + _IDENTITY.size)[0]
    if len(text) != length or crc != crc32(text, crc32(about)):
        raise IncompleteFileError(damaged)
    try:
        identity = json.loads(text)
    except (ValueError, RecursionError):
        identity = None
    if not isinstance(identity, dict):
        raise IncompleteFileError(damaged)
    return Header(0, _START + length, version, identity), number


def _spell(value: dict[str, Any]) -> bytes:
    # ASCII only: names may have characters that UTF-8 cannot spell.
    return json.dumps(value, separators=(",", ":")).encode("ascii")
