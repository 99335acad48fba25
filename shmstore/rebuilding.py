"""Rebuilding: a recording's file made anew from its journal, whatever became of HDF5's own structures.

Of the old file only the stored bytes of chunks are read, at the places that the journal names, and each is
held against its checksum. The result is a file of its own beside the old one, with a journal of its own; the
old one is never touched.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shmstore.checkpoint import Checkpoint
from shmstore.chronicle import Chronicle, ToldDataset
from shmstore.codec import Codec
from shmstore.dataset import Dataset
from shmstore.errors import IncompleteFileError, StorageError, storage_error
from shmstore.journal import INLINE, Items
from shmstore.layout import Stream, stream_from_dict
from shmstore.recordingfile import RecordingFile
from shmstore.signature import crc32
from shmstore.steps import step
from shmstore.tails import Tails

#: Items of a variable-length dataset written at a time.
_VARIABLE_ITEMS = 65536

#: What stands in for damaged items of these streams, and of codes of labels, goes by the item before them:
#: only so can the others be read.
_ORDERED = ("offsets", "types", "run_ends")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Damage:
    """Items that could not be brought over, and for which something stands in.

    Attributes
    ----------
    path : str
        Their dataset.
    start, stop : int
        The first of them, and the one after the last.
    stream : Stream
        What the dataset holds.
    on_disk : bool
        Whether the disk has damaged them; else they are gone from shared memory.
    """

    path: str
    start: int
    stop: int
    stream: Stream
    on_disk: bool = True

    @property
    def items(self) -> str:
        """Which they are, in words."""
        return f"items {self.start} to {self.stop - 1} of {self.path!r}"

    @property
    def how(self) -> str:
        """What became of them, in words."""
        return "are damaged on the disk" if self.on_disk else "are gone from shared memory"

    def __str__(self) -> str:
        return f"{self.items} {self.how}"


def rebuild(
    chronicle: Chronicle,
    checkpoint: Checkpoint,
    damaged: Path,
    path: Path,
    progress: Progress | None = None,
) -> tuple[RecordingFile, list[Damage]]:
    """Make a recording's file anew, as it was at a commit; it is open for what comes after.

    Parameters
    ----------
    chronicle
        What its journal tells.
    checkpoint
        The commit. What was in unfinished chunks then is not in the file.
    damaged
        The old file.
    path
        The new one, which must not exist.
    progress
        Called with the bytes copied and those in all.

    Returns
    -------
    RecordingFile
        The new file.
    list of Damage
        What could not be brought over: chunks whose stored bytes are not what the journal says, and items
        whose bytes in the journal are not what was written. They read as the fill value, and items of
        variable length as empty; an offset, a code or the end of a run goes by the one before.

    Raises
    ------
    StorageError
        A file cannot be read or written.
    IncompleteFileError
        The journal does not tell enough.
    """
    file = RecordingFile.create(path, chronicle.identity["attributes"], chronicle.identity["config"])
    try:
        _repeat(chronicle, file)
        step("recovery.operations_repeated")
        return file, _Copy(chronicle, file, damaged, checkpoint.items, progress).run()
    except BaseException as error:
        # After the disk has refused a write, HDF5 must not be touched again: it may crash.
        if isinstance(error, StorageError) or not isinstance(error, (OSError, RuntimeError)):
            file.close()
        raise


def mend_tails(
    file: RecordingFile, chronicle: Chronicle, checkpoint: Checkpoint, folder: Path
) -> list[Damage]:
    """Make segments of tails anew that are cut or gone; something stands in for what a commit had in them.

    Parameters
    ----------
    file
        The new file.
    chronicle, checkpoint
        As for `rebuild`.
    folder
        Where the segments are, by other names too: what these name stays as it is.

    Returns
    -------
    list of Damage
        What is not in them any more.

    Raises
    ------
    StorageError
        There is no memory.
    """
    standings = {
        int(number): standing
        for instrument in checkpoint.instruments.values()
        for number, *standing in instrument["streams"]
    }
    cut: list[tuple[int, int, npt.NDArray[np.uint8], int]] = []
    mended = []
    for told in chronicle.tails:
        path = folder / told.name
        if standings.keys().isdisjoint(told.datasets):
            continue
        size = path.stat().st_size if path.exists() else 0
        if size >= Tails.needed(told.sizes, told.buffers):
            continue
        there = path.read_bytes() if size else b""
        tails = Tails.create(path, told.sizes, told.buffers)
        mended.append(tails)
        for number, buffers in zip(told.datasets, tails.buffers, strict=True):
            items, held, *_ = standings.get(number, (0, -1))
            for index, (start, buffer) in enumerate(zip(buffers.starts, buffers, strict=True)):
                part = there[start : start + len(buffer)]
                buffer[: len(part)] = memoryview(part)
                if index == held:
                    cut.append((number, int(items), buffer, len(part)))
    try:
        return _stand_in_tails(file, chronicle, cut)
    finally:
        cut.clear()
        for tails in mended:
            tails.leave()


def _stand_in_tails(
    file: RecordingFile, chronicle: Chronicle, cut: Sequence[tuple[int, int, npt.NDArray[np.uint8], int]]
) -> list[Damage]:
    """Let something stand in for what is not in these buffers: dataset, its items, memory, bytes there."""
    found = []
    with file.structure() if cut else contextlib.nullcontext():  # else chunks just written cannot be read
        for number, items, buffer, there in cut:
            dataset, told = _existing(file, number), chronicle.datasets[number]
            size = told.stream.item_bytes
            chunk, filled = divmod(items, told.chunk_items)
            kept = min(there // size, filled)
            if kept == filled:
                continue
            before = _item_before(dataset, told, range(chunk, chunk + 1))
            if before is not None and kept:
                last = buffer[(kept - 1) * size : kept * size].view(told.stream.numpy_dtype)
                before = np.maximum(last, 0) if "CATEGORIES" in told.stream.attributes else last.copy()
            stand_in = _stand_in(told, before, 0)
            buffer[kept * size : filled * size] = stand_in[: (filled - kept) * size]
            first = chunk * told.chunk_items
            found.append(Damage(dataset.path, first + kept, items, told.stream, on_disk=False))
    return found


def _repeat(chronicle: Chronicle, file: RecordingFile) -> None:
    """Do to a new file, and tell its journal, what was done to the old one."""
    structure: dict[str, Callable[[Mapping[str, Any], bytes], Any]] = {
        "create_instrument": lambda told, _: file.create_instrument(told["link"], told["attributes"]),
        "set_columns": lambda told, _: file.set_columns(told["link"], told["columns"]),
        "create_group": lambda told, _: file.create_group(told["path"], told["attributes"]),
        "create_document": lambda told, _: file.create_document(told["path"], told["text"]),
        "create_bytes": lambda told, blob: file.create_bytes(told["path"], blob),
        "set_metadata": lambda told, _: file.set_metadata(told["path"], told["values"]),
        "link": lambda told, _: file.link(told["root"], map(stream_from_dict, told["streams"])),
        "remove": lambda told, _: file.remove(told["path"]),
        "replace": lambda told, _: file.replace(_existing(file, told["number"]), told["path"]),
        "create_dataset": lambda told, _: file.create_dataset(
            told["path"],
            stream_from_dict(told["stream"]),
            told["chunk_items"],
            Codec(**told["codec"]),
            told["items"],
        ),
    }
    with file.structure():
        for operation in chronicle.operations:
            blob = chronicle.load(operation) if operation.length else b""
            act = structure.get(operation.name)
            if act is not None:
                act(operation.arguments, blob)
            else:
                file.journal.operation(operation.name, operation.arguments, blob)


def _existing(file: RecordingFile, number: int) -> Dataset:
    dataset = file.datasets[number]
    if dataset is None:
        raise IncompleteFileError(f"{file.path}: the journal names dataset {number} after it was removed")
    return dataset


@dataclass(frozen=True, slots=True)
class _Piece:
    """Items of variable length that were written at once."""

    first: int
    values: list[bytes]
    damaged: bool = False


class _Copy:
    """Chunks and items on their way from the old file, and from the journal, into the new file."""

    def __init__(
        self,
        chronicle: Chronicle,
        file: RecordingFile,
        damaged: Path,
        items: Mapping[int, int],
        progress: Progress | None,
    ) -> None:
        self._chronicle = chronicle
        self._file = file
        self._damaged = damaged
        self._items = items
        self._progress = progress
        self._damages: list[Damage] = []
        self._gaps: list[tuple[Dataset, ToldDataset, range]] = []
        self._copied = self._total = 0

    def run(self) -> list[Damage]:
        """Copy everything; returns what could not be."""
        chunks, values = self._chronicle.chunks(), self._chronicle.items()
        wanted = {}
        for number, told in enumerate(self._chronicle.datasets):
            if told.path is not None and number in self._items and number in chunks:
                whole = self._items[number] // told.chunk_items
                wanted[number] = chunks[number][chunks[number]["index"] < whole]
        self._total = sum(int(entries["length"].sum()) for entries in wanted.values())
        source = -1  # after a power cut there may be no file, if nothing of it was needed yet
        if wanted:
            try:
                source = os.open(self._damaged, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise storage_error(error, "read the damaged recording", self._damaged) from None
        try:
            for number, told in enumerate(self._chronicle.datasets):
                if told.path is None or number not in self._items:
                    continue
                dataset = _existing(self._file, number)
                if dataset.variable:
                    self._copy_values(dataset, told, values.get(number, ()), self._items[number])
                elif number in wanted:
                    self._copy_chunks(source, dataset, told, wanted[number])
                    dataset.grow(self._items[number] // told.chunk_items * told.chunk_items)
        finally:
            if source >= 0:
                os.close(source)
        if self._gaps:
            self._fill_gaps()
        self._file.flush()
        return self._damages

    def _copy_chunks(
        self, source: int, dataset: Dataset, told: ToldDataset, entries: npt.NDArray[np.void]
    ) -> None:
        damaged = []
        for entry in entries:
            index = int(entry["index"])
            payload = self._payload(source, entry)
            if payload is None:
                damaged.append(index)
                continue
            dataset.grow((index + 1) * told.chunk_items)
            dataset.write_chunk(index, payload, int(entry["filter_mask"]))
            dataset.chunks_written += 1
            step("recovery.chunk_copied")
            self._copied += len(payload)
            if self._progress is not None:
                self._progress(self._copied, self._total)
        for chunks in _runs(damaged):
            self._gaps.append((dataset, told, chunks))
            size = told.chunk_items
            self._damages.append(Damage(dataset.path, chunks.start * size, chunks.stop * size, told.stream))

    def _payload(self, source: int, entry: npt.NDArray[np.void]) -> bytes | None:
        """Return the stored bytes of a chunk; ``None`` if they are not what was written."""
        length = int(entry["length"])
        if entry["reserved"] == INLINE:
            try:
                return self._chronicle.load_chunk(entry)
            except IncompleteFileError:
                return None
        payload = _read(source, length, int(entry["offset"]), self._damaged)
        return payload if len(payload) == length and crc32(payload) == int(entry["crc"]) else None

    def _fill_gaps(self) -> None:
        """Let something stand in for damaged chunks: with holes in it, a column is refused by readers."""
        with self._file.structure():  # whose handles have written no chunk: only these may read
            before = [_item_before(dataset, told, chunks) for dataset, told, chunks in self._gaps]
        for (dataset, told, chunks), item in zip(self._gaps, before, strict=True):
            for number, index in enumerate(chunks):
                stand_in = _stand_in(told, item, number * told.chunk_items)
                dataset.write_chunk(index, stand_in, dataset.skip_mask)
                dataset.chunks_written += 1

    def _copy_values(self, dataset: Dataset, told: ToldDataset, records: Sequence[Items], items: int) -> None:
        """Write items of variable length; what was written again counts as it was last."""
        pieces: list[_Piece] = []
        end = 0
        for record in records:
            while pieces and end > record.first:  # written again from here on
                piece = pieces.pop()
                end = piece.first
                if end < record.first:
                    pieces.append(replace(piece, values=piece.values[: record.first - end]))
                    end = record.first
            if record.first > end:
                raise IncompleteFileError(
                    f"{self._chronicle.path} has no items {end} to {record.first - 1} of {dataset.path!r}"
                )
            try:
                pieces.append(_Piece(record.first, self._chronicle.values(record)))
            except IncompleteFileError:
                pieces.append(_Piece(record.first, [b""] * record.items, damaged=True))
            end = record.first + record.items
        for piece in pieces:
            stop = min(piece.first + len(piece.values), items)
            if piece.damaged and piece.first < stop:
                self._damages.append(Damage(dataset.path, piece.first, stop, told.stream))
        values = [value for piece in pieces for value in piece.values][:items]
        if len(values) < items:
            raise IncompleteFileError(
                f"{self._chronicle.path} has only {len(values)} of {items} items of {dataset.path!r}"
            )
        for start in range(0, items, _VARIABLE_ITEMS):
            part = values[start : start + _VARIABLE_ITEMS]
            objects = np.empty(len(part), object)
            for row, value in enumerate(part):
                text = told.stream.dtype == "utf8"
                objects[row] = value.decode() if text else np.frombuffer(value, np.uint8)
            dataset.grow(start + len(part))
            dataset.write_variable(start, objects)
            self._file.flush()


def _read(source: int, length: int, offset: int, path: Path) -> bytes:
    try:
        return os.pread(source, length, offset)
    except OSError as error:
        raise storage_error(error, "read the damaged recording", path) from None


def _runs(numbers: Sequence[int]) -> list[range]:
    """Return ascending numbers as ranges without a gap.

    Examples
    --------
    >>> _runs([1, 2, 5])
    [range(1, 3), range(5, 6)]
    """
    found: list[range] = []
    for number in numbers:
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found


def _item_before(dataset: Dataset, told: ToldDataset, chunks: range) -> npt.NDArray[Any] | None:
    """Return what the stand-in for some chunks goes by; ``None``: by nothing."""
    stream = told.stream
    labels = "CATEGORIES" in stream.attributes
    if stream.role not in _ORDERED and not labels:
        return None
    start, stop = chunks.start * told.chunk_items, chunks.stop * told.chunk_items
    if start:
        item = dataset.read(start - 1, start)
        return np.maximum(item, 0) if labels else item  # a null has the code -1, and a mask
    if stream.role == "types" and stop < dataset.known_items:  # there may be no code 0
        return dataset.read(stop, stop + 1)
    return np.zeros(1, stream.numpy_dtype)


def _stand_in(told: ToldDataset, before: npt.NDArray[Any] | None, distance: int) -> npt.NDArray[np.uint8]:
    """Return a chunk that can stand in for a damaged one.

    Parameters
    ----------
    told
        Its dataset.
    before
        What it goes by.
    distance
        Items between that and the chunk's first.
    """
    stream = told.stream
    items = np.zeros((told.chunk_items, *stream.item_shape), stream.numpy_dtype)
    if stream.fill is not None:
        items[...] = stream.fill
    if before is not None:
        items[...] = before
    if stream.role == "run_ends":
        items += np.arange(distance + 1, distance + 1 + told.chunk_items).astype(items.dtype)
    return items.reshape(-1).view(np.uint8)
