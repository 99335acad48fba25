"""Salvage: a recording whose journal is gone, made whole from its file alone.

A copy of the file is mended where a killed writer leaves its mark, and read through. If all of it holds, each
instrument is cut to the rows that all of its columns have, and the copy finished. What only the journal could
tell stays unknown, and the recording says so. The original is not touched.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shmstore.codec import Codec
from shmstore.errors import IncompleteFileError, storage_error
from shmstore.journal import Journal
from shmstore.layout import ROWS, Node, Stream
from shmstore.reader import Recording
from shmstore.rebuilding import Progress
from shmstore.recorded import Instrument
from shmstore.recordingfile import RecordingFile
from shmstore.recoveryfolder import recovery_folder
from shmstore.superblock import repair_superblock
from shmstore.verification import Tell, verify

_BLOCK_BYTES = 8 << 20
GONE = (
    "there was no whole journal: the recording was made whole from the file alone, as far as all columns of "
    "an instrument reach; what else had been accepted, dropped or refused, and whether the disk has changed "
    "what is there, is not known"
)


def salvage(
    path: Path,
    beside: Path,
    committed: Mapping[str, int],
    problems: list[str],
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> None:
    """Finish a copy of a recording, as far as the file alone can tell.

    Parameters
    ----------
    path
        The file that a killed writer left.
    beside
        The copy, which must not exist.
    committed
        By the link of an instrument: how many rows it had at least, if that is known.
    problems
        What else is known to be lost.
    progress
        Called with the bytes copied and those in all.
    tell
        Told what is read.

    Raises
    ------
    IncompleteFileError
        What is in the file does not hold together.
    StorageError
        The disk refuses.
    """
    _copy(path, beside, progress)
    try:
        repair_superblock(beside)
        verdict = verify(beside, tell=tell)
        if verdict.problems:
            raise IncompleteFileError(f"{beside}: {verdict.problems[0]}")
    except IncompleteFileError as error:
        reason = str(error).removeprefix(f"{beside}: ").replace(os.fspath(beside), os.fspath(path))
        raise IncompleteFileError(
            f"{path} was not finished, has no whole journal, and the file alone does not hold together: "
            f"{reason}; it is as it was: what was flushed may still be read with shmstore.open; if there is "
            f"a copy of {path.name}.recovery, put it beside the file, and recover again"
        ) from None
    with Recording(beside) as recording:
        standing = recording.opened.look(
            lambda file: [_Instrument(recording[name], file) for name in recording]
        )
    told = [GONE, *problems]
    for instrument in standing:
        lost = committed.get(instrument.link, 0) - instrument.rows
        if lost > 0:
            told.append(f"{lost} rows of {instrument.name!r} that had been committed are not in the file")
    known = {instrument.link for instrument in standing}
    told += [
        f"{count} rows of {link!r} that had been committed are not in the file, nor is anything else of it"
        for link, count in committed.items()
        if count and link not in known
    ]
    _finish(beside, standing, told)


class _Place(NamedTuple):
    """A dataset, and what is to become of it.

    Attributes
    ----------
    path : str
        Where it is in the file.
    stream : Stream
        What it holds.
    chunk_items : int
        Items in a chunk.
    items : int
        How many are to stay.
    last : int or None
        What the last of them has to be, if that is another than it is.
    """

    path: str
    stream: Stream
    chunk_items: int
    items: int
    last: int | None = None


class _Instrument:
    """An instrument as it stands in the file, and as far as all its columns reach."""

    def __init__(self, instrument: Instrument, file: Any) -> None:
        self.name, self.link = instrument.instrument_id, instrument.link
        self.rows = instrument.rows_in(file)
        self.root = str(file[self.link].attrs.get("continues", self.name))
        self.places: list[_Place] = []
        self._group = file[self.link]
        layout = instrument.layout_in(file)
        for column in (layout.columns or (ROWS,)) if layout else ():
            self._count(column.node, self.rows)
        del self._group

    def _count(self, node: Node, items: int) -> None:
        """Take down how many items of its datasets belong to so many items of a node."""
        within = [items] * len(node.children)
        for stream in node.streams:
            dataset = self._group.get(stream.path)
            if dataset is None:  # as long as nothing is null, or nothing was put
                continue
            own, last = items + stream.lead, None
            if stream.role == "chars":
                own = self._offset(node, items)
            elif stream.role == "run_ends":
                own = bisect_left(dataset, items) + 1 if items else 0
                if items and int(dataset[own - 1]) != items:
                    last = items
                within = [own] * len(node.children)
            elif stream.role == "segments":
                own = len(dataset)
            self.places.append(_Place(f"{self.link}/{stream.path}", stream, dataset.chunks[0], own, last))
        if node.kind == "list":
            within = [self._offset(node, items)]
        elif node.kind == "fixed_list":
            within = [items * int(self._group[node.path].attrs["SIZE"])]
        elif node.kind == "dense_union":
            types = self._group[node.stream("types").path][:items]
            picks = self._group[node.stream("offsets").path][:items]
            within = [int((picks[types == code] + 1).max(initial=0)) for code in node.codes]
        elif node.kind == "dictionary":  # labels were written before the codes that need them
            return
        for child, count in zip(node.children, within, strict=True):
            self._count(child, count)

    def _offset(self, node: Node, items: int) -> int:
        offsets = self._group.get(node.stream("offsets").path)
        return int(offsets[items]) if offsets is not None and len(offsets) > items else 0


def _copy(path: Path, beside: Path, progress: Progress | None) -> None:
    try:
        total, done = path.stat().st_size, 0
        with path.open("rb", buffering=0) as source, beside.open("xb", buffering=0) as target:
            while block := source.read(_BLOCK_BYTES):
                view = memoryview(block)
                while view:
                    view = view[target.write(view) :]
                done += len(block)
                if progress is not None:
                    progress(done, total)
    except OSError as error:
        raise storage_error(error, "copy the recording", beside) from None


def _finish(beside: Path, standing: list[_Instrument], problems: list[str]) -> None:
    """Cut each dataset to its items, take the checksums of chunks, and finish the file."""
    rows: dict[str, int] = {}
    for instrument in standing:
        rows[instrument.root] = rows.get(instrument.root, 0) + instrument.rows
    # Of the producers nothing is known but what came of them.
    fates = {"dropped": 0, "rejected": 0, "quarantined": 0, "lost": 0, "batches": 0}
    producers = [
        {"instrument": name, "ring": -1, "accepted": count, "committed": count, **fates}
        for name, count in rows.items()
    ]
    account = {"producers": producers, "ok": False, "problems": problems}
    folder = recovery_folder(beside)
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise storage_error(error, "finish the copy", folder) from None
    file = RecordingFile.resume(beside, Journal.create(folder / "journal", {}))
    try:
        totals = {}
        for place in (place for instrument in standing for place in instrument.places):
            dataset = file.restore_dataset(place.path, place.stream, place.chunk_items, Codec.parse("none"))
            dataset.survey(place.items, place.last)
            totals[dataset.number] = place.items
        file.flush()
        counted = {instrument.link: instrument.rows for instrument in standing}
        file.finish("partial", json.dumps(account), counted, totals)
        file.discard_journal()
    except BaseException:
        file.close()
        raise
