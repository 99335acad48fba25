"""Rebuilding: a recording's file made anew from its journal, whatever became of HDF5's own structures.

Of the old file only the stored bytes of chunks are read, at the places that the journal names, and each is
held against its checksum. The result is a file of its own beside the old one, with a journal of its own; the
old one is never touched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shmstore.checkpoint import Checkpoint
from shmstore.chronicle import INLINE, Chronicle, ToldDataset
from shmstore.codec import Codec
from shmstore.dataset import Dataset, RecordingFile
from shmstore.errors import IncompleteFileError, StorageError, storage_error
from shmstore.layout import stream_from_dict
from shmstore.signature import crc32
from shmstore.steps import step

#: Items of a variable-length dataset written at a time.
_VARIABLE_ITEMS = 65536

Progress = Callable[[int, int], None]


def rebuild(
    chronicle: Chronicle,
    checkpoint: Checkpoint,
    damaged: Path,
    path: Path,
    progress: Progress | None = None,
) -> tuple[RecordingFile, list[str]]:
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
    list of str
        What could not be brought over: chunks whose stored bytes are not what the journal says. They read as
        the fill value.

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
        items = {
            number: int(count)
            for standing in checkpoint.instruments.values()
            for number, count, *_ in standing["streams"]
        }
        return file, _Copy(chronicle, file, damaged, items, progress).run()
    except BaseException as error:
        # After the disk has refused a write, HDF5 must not be touched again: it may crash.
        if isinstance(error, StorageError) or not isinstance(error, (OSError, RuntimeError)):
            file.close()
        raise


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
        self._problems: list[str] = []
        self._copied = self._total = 0

    def run(self) -> list[str]:
        """Copy everything; returns what could not be."""
        chunks = self._chronicle.chunks()
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
                    self._copy_values(dataset, told, self._items[number])
                elif number in wanted:
                    self._copy_chunks(source, dataset, told, wanted[number])
                    dataset.grow(self._items[number] // told.chunk_items * told.chunk_items)
        finally:
            if source >= 0:
                os.close(source)
        self._file.flush()
        return self._problems

    def _copy_chunks(
        self, source: int, dataset: Dataset, told: ToldDataset, entries: npt.NDArray[np.void]
    ) -> None:
        for entry in entries:
            index, length = int(entry["index"]), int(entry["length"])
            if entry["offset"] == INLINE:
                payload = self._chronicle.load(told.inline[index])
            else:
                payload = _read(source, length, int(entry["offset"]), self._damaged)
            if len(payload) != length or crc32(payload) != int(entry["crc"]):
                self._problems.append(
                    f"chunk {index} of {dataset.path!r} (items {index * told.chunk_items} to "
                    f"{(index + 1) * told.chunk_items - 1}) is damaged in {self._damaged.name}"
                )
                continue
            dataset.grow((index + 1) * told.chunk_items)
            dataset.write_chunk(index, payload, int(entry["filter_mask"]))
            dataset.chunks_written += 1
            step("recovery.chunk_copied")
            self._copied += length
            if self._progress is not None:
                self._progress(self._copied, self._total)

    def _copy_values(self, dataset: Dataset, told: ToldDataset, items: int) -> None:
        """Write items of variable length; what was written again counts as it was last."""
        pieces: list[tuple[int, list[bytes]]] = []
        end = 0
        for record in told.values:
            while pieces and end > record.first:  # written again from here on
                first, kept = pieces.pop()
                end = first
                if first < record.first:
                    pieces.append((first, kept[: record.first - first]))
                    end = record.first
            if record.first > end:
                raise IncompleteFileError(
                    f"{self._chronicle.path} has no items {end} to {record.first - 1} of {dataset.path!r}"
                )
            pieces.append((record.first, self._chronicle.values(record)))
            end = record.first + record.items
        values = [value for _, kept in pieces for value in kept][:items]
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
