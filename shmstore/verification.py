"""Whether a recording is whole: every stored chunk read, every value decoded, the account cast up again.

Owns the checks and their report; what a check finds wrong is a line in it, and the next check goes on. Knows
no session and no writer: a live file is looked at as any reader would. Memory is bounded by one chunk, and by
one batch of one column.

HDF5 does not survive every damage: it is told beforehand what is read next, for who watches from outside.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import h5py
import numpy as np
import pyarrow as pa

from shmstore.column import StoredColumn
from shmstore.errors import IncompleteFileError
from shmstore.layout import ROWS, Column, Layout
from shmstore.opening import naming
from shmstore.physical import physical_type
from shmstore.reader import Recording
from shmstore.recorded import Instrument
from shmstore.schema import to_dict
from shmstore.signature import crc32
from shmstore.verdict import InstrumentVerdict, VerifyReport

__all__ = ["verify"]

#: Called with bytes done and bytes in all; stored bytes count twice, once as stored and once decoded.
Progress = Callable[[int, int], None]
Result = TypeVar("Result")

_OWN, _CHECKSUMS = "_shmstore", "_shmstore/checksums"
#: Stored bytes read in one look: a live file is opened anew for each.
_LOOK_BYTES = 32 << 20
#: Damaged chunks named of one dataset: a file that lost its end has thousands.
_MOST_NAMED = 8
#: A filter may make a chunk larger, if little: nothing is read that claims to have grown by more.
_GROWTH, _GROWTH_BYTES = 2, 1 << 16


class Tell(Protocol):
    """Told one thing at a time while a file is verified, JSON-ready.

    ``at``: what is read next; ``state``: that of the recording; ``problem``, ``note``, ``instrument``: one
    more of what will be in the report.
    """

    def __call__(self, **words: Any) -> None:
        """Be told."""


def verify(
    path: str | os.PathLike[str], progress: Progress | None = None, tell: Tell | None = None
) -> VerifyReport:
    """Verify in this process, which HDF5 may take along, or never return to, if the file is damaged.

    Parameters, result and errors are those of `shmstore.verify`, which runs this in a process of its own; but
    ``progress`` is called after each chunk and each batch.

    Parameters
    ----------
    path
        The file.
    progress
        Called with the bytes done and the bytes in all.
    tell
        Told what is read, before it is, and what was found.
    """
    tell = tell or (lambda **words: None)
    tell(at="the head of the file")
    with Recording(path) as recording:
        tell(state=recording.state)
        return _Verification(recording, progress or (lambda done, total: None), tell).run()


class _Place(NamedTuple):
    """One dataset: where it is, and what it belongs to as it stands in messages."""

    path: str
    owner: str
    instrument: str
    stored_bytes: int
    column: int | None


class _Cursor:
    """How far the chunks of one dataset have been read; kept from look to look.

    Attributes
    ----------
    stored : list of _Chunk or None
        The chunks that there are, in order, as of the first look.
    wanted : list of int or None
        Their checksums, if the file has them.
    next : int
        Position of the next one among them.
    chunks, bytes : int
        What was read so far.
    """

    def __init__(self) -> None:
        self.stored: list[_Chunk] | None = None
        self.wanted: list[int] | None = None
        self.next = self.chunks = self.bytes = 0


class _Chunk(NamedTuple):
    """One chunk as the dataset's index has it."""

    number: int
    offset: tuple[int, ...]
    place: int
    size: int


class _Verification:
    """One pass over a recording.

    Parameters
    ----------
    recording
        Open; borrowed.
    progress
        Told how far it is.
    tell
        Told what is read, and what was found.
    """

    def __init__(self, recording: Recording, progress: Progress, tell: Tell) -> None:
        self._recording = recording
        self._opened = recording.opened
        self._path: Path = recording.path
        self._progress = progress
        self._tell = tell
        self._problems: list[str] = []
        self._notes: list[str] = []
        self._damaged: set[tuple[str, int]] = set()
        self._readable: dict[str, int] = {}
        #: Rows by the file's own word; of a damaged instrument there is none.
        self._counted: dict[str, int] = {}
        self._done = self._total = 0

    def run(self) -> VerifyReport:
        """Check everything."""
        live = self._recording.live
        instruments = [self._recording[name] for name in self._recording]
        layouts = {item.instrument_id: self._attempt(partial(self._layout_of, item)) for item in instruments}
        places = [
            place for item in instruments for place in self._datasets(item, layouts[item.instrument_id])
        ]
        self._total = 2 * sum(place.stored_bytes for place in places)
        checksums = self._checksums({place.path for place in places})
        read = {place.path: self._read_chunks(place, checksums.get(place.path)) for place in places}
        verdicts = []
        for item in instruments:
            layout = layouts[item.instrument_id]
            own = [place for place in places if place.instrument == item.link]
            if layout is not None:
                self._check_schema(item, layout)
                self._check_rows(item, layout)
                self._decode_columns(item, layout, own)
            cursors = [read[place.path] for place in own]
            verdict = InstrumentVerdict(
                item.instrument_id,
                self._readable.get(item.instrument_id, 0),
                len(layout.columns) if layout else 0,
                sum(cursor.chunks for cursor in cursors),
                sum(cursor.bytes for cursor in cursors),
            )
            self._tell(instrument=asdict(verdict))
            verdicts.append(verdict)
        if live:
            self._note(
                "it is being recorded, or its writer was killed (`shmstore doctor` tells which): columns may "
                "differ in length by a chunk, and there is no account yet"
            )
        else:
            self._check_account(instruments)
        self._progress(self._total, self._total)
        return VerifyReport(
            str(self._path),
            self._recording.state,
            tuple(verdicts),
            tuple(dict.fromkeys(self._problems)),
            tuple(self._notes),
        )

    def _layout_of(self, instrument: Instrument) -> Layout | None:
        self._tell(at=f"instrument {instrument.instrument_id!r}, layout")
        layout = instrument.layout
        if layout is None:  # nothing was recorded
            self._counted[instrument.instrument_id] = 0
        return layout

    def _attempt(self, check: Callable[[], Result]) -> Result | None:
        """Return what a check returns; what it raises is a problem."""
        try:
            return check()
        except IncompleteFileError as error:
            self._problem(str(error))
            return None

    def _problem(self, text: str) -> None:
        text = text.removeprefix(f"{self._path}: ")
        self._tell(problem=text)
        self._problems.append(text)

    def _note(self, text: str) -> None:
        self._tell(note=text)
        self._notes.append(text)

    def _look(self, what: str, attempt: Callable[[h5py.File], Result]) -> Result | None:
        """Return what ``attempt`` makes of the file; what is damaged is a problem of ``what``."""

        def look(file: h5py.File) -> Result:
            with naming(self._path, what):
                return attempt(file)

        self._tell(at=what)
        return self._attempt(lambda: self._opened.look(look))

    def _advance(self, size: int) -> None:
        self._done = min(self._done + size, self._total)
        self._progress(self._done, self._total)

    # -- chunks -------------------------------------------------------------------------------------------

    def _datasets(self, instrument: Instrument, layout: Layout | None) -> list[_Place]:
        """Return all datasets below an instrument's group, known to the layout or not."""
        columns = {
            f"/{instrument.link}/{stream.path}": column
            for column in (layout.columns if layout else ())
            for stream in column.streams
        }
        what = f"instrument {instrument.instrument_id!r}"

        def look(file: h5py.File) -> list[_Place]:
            places = []
            for path, dataset in _walk(file, f"/{instrument.link}", self._tell):
                if isinstance(dataset, str):
                    self._problem(f"{what}: {path!r} is damaged ({dataset}): restore it from a copy")
                    continue
                column = columns.get(path)
                owner = what if column is None else f"{what}, column {column.name!r}"
                index = None if column is None else column.index
                places.append(_Place(path, owner, instrument.link, dataset.id.get_storage_size(), index))
            return places

        return self._look(what, look) or []

    def _checksums(self, known: set[str]) -> dict[str, str]:
        """Return for each dataset where its checksums are."""

        def look(file: h5py.File) -> dict[str, str]:
            found = file.get(_CHECKSUMS)
            if found is None:
                return {}
            return {str(found[name].attrs["path"]): f"/{_CHECKSUMS}/{name}" for name in found}

        checksums = self._look(f"group {_CHECKSUMS!r}", look)
        if checksums is None:
            return {}
        if not checksums:
            self._note("the file has no checksums: chunks were read, but not compared with any")
        for path in sorted(checksums.keys() - known):
            self._problem(f"dataset {path!r} has checksums but is not there: restore it from a copy")
        return checksums

    def _read_chunks(self, place: _Place, checksums: str | None) -> _Cursor:
        """Read the chunks of one dataset, whatever becomes of single ones."""
        self._tell(at=f"{place.owner}: {place.path!r}")
        cursor, damaged, more = _Cursor(), 0, True
        while more:
            try:
                more = self._opened.look(partial(self._some_chunks, cursor, place, checksums))
            except IncompleteFileError as error:
                damaged += 1
                if place.column is not None:
                    self._damaged.add((place.instrument, place.column))
                if damaged > _MOST_NAMED:
                    self._problem(f"{place.owner}: more chunks of {place.path!r} are damaged")
                    break
                self._problem(str(error))
                if cursor.stored is None:
                    break  # it is the dataset, not a chunk
                cursor.next += 1
        return cursor

    def _some_chunks(self, cursor: _Cursor, place: _Place, checksums: str | None, file: h5py.File) -> bool:
        """Read chunks on from the cursor; return whether there are more."""
        with naming(self._path, f"{place.owner}: {place.path!r}"):
            dataset = file[place.path]
            if not dataset.chunks:
                dataset[()]  # in one piece
                return False
            if cursor.stored is None:
                stored = _chunks_of(dataset)
                cursor.wanted = None if checksums is None else _wanted(file[checksums], stored)
                cursor.stored = stored
            largest = _GROWTH * int(np.prod(dataset.chunks)) * dataset.dtype.itemsize + _GROWTH_BYTES
        stop = cursor.bytes + _LOOK_BYTES
        while cursor.next < len(cursor.stored) and (cursor.bytes < stop or not self._recording.live):
            chunk = cursor.stored[cursor.next]
            with naming(self._path, f"{place.owner}, chunk {chunk.number} of {place.path!r}"):
                if chunk.size > largest or chunk.place + chunk.size > self._file_bytes():
                    raise IncompleteFileError(
                        f"claims {chunk.size} bytes at {chunk.place}, which the file has not: restore it "
                        "from a copy"
                    )
                _, payload = dataset.id.read_direct_chunk(chunk.offset)
                found = crc32(payload)
                if cursor.wanted is not None and found != cursor.wanted[cursor.next]:
                    raise IncompleteFileError(
                        f"has the checksum {found:08x} where {cursor.wanted[cursor.next]:08x} was recorded: "
                        "it is damaged, restore it from a copy"
                    )
            cursor.next += 1
            cursor.chunks += 1
            cursor.bytes += chunk.size
            self._advance(chunk.size)
        return cursor.next < len(cursor.stored)

    def _file_bytes(self) -> int:
        return self._path.stat().st_size

    # -- rows ---------------------------------------------------------------------------------------------

    def _check_schema(self, instrument: Instrument, layout: Layout) -> None:
        what = f"instrument {instrument.instrument_id!r}, schema"

        def look(file: h5py.File) -> Any:
            return json.loads(file[instrument.link]["schema"].asstr()[()])

        document = self._look(what, look)
        if document is None:
            return
        expected = to_dict(layout.schema)
        if _without_types(document) != _without_types(expected):
            self._problem(f"{what}: the JSON and the Arrow schema beside it tell different columns")
        elif document != expected:
            # How a type is spelled is Arrow's own affair, and changes with its version.
            self._note(f"{what}: types are spelled otherwise than this version of Arrow does")

    def _check_rows(self, instrument: Instrument, layout: Layout) -> None:
        """Compare the rows of all columns with each other, and with those counted at the end."""
        what = f"instrument {instrument.instrument_id!r}"

        def look(file: h5py.File) -> tuple[int | None, dict[str, tuple[int, int]]]:
            counted = file[instrument.link].attrs.get("NROWS")
            rows = {}
            for column in layout.columns or (ROWS,):
                self._tell(at=f"{what}, column {column.name!r}, its length")
                with naming(self._path, f"{what}, column {column.name!r}"):
                    stored = _stored(file, instrument, layout, column)
                    rows[column.path] = stored.length(), stored.rows()
            return None if counted is None else int(counted), rows

        found = self._look(what, look)
        if found is None:
            return
        counted, rows = found
        self._readable[instrument.instrument_id] = min(there for _, there in rows.values())
        if self._recording.live:
            return
        if counted is None:
            self._problem(f"{what} has no NROWS: it was not finished, or is damaged")
            return
        self._counted[instrument.instrument_id] = counted
        for column in layout.columns or (ROWS,):
            length, there = rows[column.path]
            if (length, there) != (counted, counted):
                self._problem(
                    f"{what}, column {column.name!r}: {min(length, there)} rows can be read and its extent "
                    f"is {length}, where {counted} were recorded: restore it from a copy"
                )
                self._damaged.add((instrument.link, column.index))

    def _decode_columns(self, instrument: Instrument, layout: Layout, places: list[_Place]) -> None:
        for column in layout.columns:
            own = [place for place in places if place.column == column.index]
            size, done = sum(place.stored_bytes for place in own), 0
            total = max(1, self._readable.get(instrument.instrument_id, 0))
            rows = 0
            self._tell(at=f"instrument {instrument.instrument_id!r}, column {column.name!r}")
            try:
                for batch in instrument.iter_batches(columns=[column.index]):
                    rows += batch.num_rows
                    self._advance(min(size, size * rows // total) - done)
                    done = min(size, size * rows // total)
            except IncompleteFileError as error:
                if (instrument.link, column.index) not in self._damaged:
                    self._problem(str(error))
                    for place in own:
                        self._locate(place)
            self._advance(size - done)

    def _locate(self, place: _Place) -> None:
        """Name the chunks of a dataset that cannot be decoded."""

        def look(file: h5py.File) -> list[str]:
            dataset, found = file[place.path], []
            for chunk in _chunks_of(dataset) if dataset.chunks else ():
                self._tell(at=f"{place.owner}, chunk {chunk.number} of {place.path!r}")
                try:
                    dataset[chunk.offset[0] : chunk.offset[0] + dataset.chunks[0]]
                except (OSError, RuntimeError, ValueError):
                    found.append(f"{place.owner}, chunk {chunk.number} of {place.path!r} cannot be decoded")
            return found

        for text in (self._look(place.owner, look) or [])[:_MOST_NAMED]:
            self._problem(text)

    # -- the account --------------------------------------------------------------------------------------

    def _check_account(self, instruments: list[Instrument]) -> None:
        self._tell(at="its account of rows")
        state, account = self._recording.state, self._recording.accounting
        if state not in ("complete", "partial", "aborted"):
            self._problem(f"its state is {state!r}, which is none: restore it from a copy")
        if state == "aborted":
            self._note("it was aborted: what was not in the file by then was given up")
        if account is None:
            self._problem("it has no account of its rows: it was not finished, or is damaged")
            return

        def look(file: h5py.File) -> dict[str, str]:
            return {item.instrument_id: _root(file, item) for item in instruments}

        roots = self._look("the instruments", look) or {}
        try:
            found = list(_imbalances(account, self._counted, roots))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            found = [f"its account of rows is damaged: {error!r}"]
        for text in found:
            self._problem(text)
        if state == "partial" and account.get("ok") is True:
            self._problem("it says that it is partial, and its account that nothing was lost")


# -- what the file says ------------------------------------------------------------------------------------


def _walk(file: h5py.File, top: str, tell: Tell) -> Iterator[tuple[str, h5py.Dataset | str]]:
    """Yield path and dataset, or path and what is wrong with it, for all that hard links lead to."""
    seen, pending = set(), [top]
    while pending:
        path = pending.pop()
        tell(at=repr(path))
        try:
            found = file[path]
            address = h5py.h5o.get_info(found.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(found, h5py.Dataset):
                yield path, found
            elif isinstance(found, h5py.Group):
                names = [n for n in found if isinstance(found.get(n, getlink=True), h5py.HardLink)]
                pending += [f"{path}/{name}" for name in reversed(names)]
        except (OSError, LookupError, RuntimeError, ValueError, TypeError) as error:
            yield path, " ".join(str(error).split())


def _chunks_of(dataset: h5py.Dataset) -> list[_Chunk]:
    """Return the stored chunks of a chunked dataset, in order."""
    grid = [max(1, -(-size // step)) for size, step in zip(dataset.shape, dataset.chunks, strict=True)]
    chunks = []

    def keep(info: Any) -> None:
        steps = [start // step for start, step in zip(info.chunk_offset, dataset.chunks, strict=True)]
        number = steps[0]
        for step, count in zip(steps[1:], grid[1:], strict=True):
            number = number * count + step
        chunks.append(_Chunk(number, tuple(info.chunk_offset), info.byte_offset, info.size))

    dataset.id.chunk_iter(keep)
    return sorted(chunks)


def _wanted(checksums: h5py.Dataset, chunks: list[_Chunk]) -> list[int]:
    """Return the checksum of each stored chunk, in order; they stand at the chunks' numbers."""
    if checksums.ndim != 1 or checksums.dtype != np.uint32:
        raise IncompleteFileError("its checksums are damaged: restore it from a copy")
    values = checksums[:]
    numbers = [chunk.number for chunk in chunks]
    recorded = np.flatnonzero(values)
    if not set(recorded.tolist()) <= set(numbers) or (numbers and numbers[-1] >= len(values)):
        raise IncompleteFileError(
            f"has {len(chunks)} chunks where {len(recorded)} were recorded: restore it from a copy"
        )
    wanted: list[int] = values[numbers].tolist()
    return wanted


def _stored(file: h5py.File, instrument: Instrument, layout: Layout, column: Column) -> StoredColumn:
    type_ = pa.null() if column is ROWS else layout.schema.field(column.index).type
    return StoredColumn(file[instrument.link], column, physical_type(type_))


def _without_types(document: Any) -> Any:
    """Return a schema's JSON without the spelling of its types."""
    try:
        fields = [{**field, "type": None} for field in document["fields"]]
        return {**document, "fields": fields}
    except (KeyError, TypeError):
        return document


def _root(file: h5py.File, instrument: Instrument) -> str:
    """Return the instrument whose producers' rows are here: under ``schema_policy="new"`` another one."""
    return str(file[instrument.link].attrs.get("continues", instrument.instrument_id))


def _imbalances(
    account: Mapping[str, Any], rows: Mapping[str, int], roots: Mapping[str, str]
) -> Iterator[str]:
    """Yield what does not add up in the account of a finished recording."""
    if account["ok"] is not True:
        yield from (f"accounting: {text}" for text in account["problems"] or ["something was lost"])
    committed: dict[str, int] = {}
    for producer in account["producers"]:
        name, accepted = str(producer["instrument"]), int(producer["accepted"])
        fates = {fate: int(producer[fate]) for fate in ("committed", "dropped", "rejected", "lost")}
        committed[name] = committed.get(name, 0) + fates["committed"]
        if accepted != sum(fates.values()):
            told = " + ".join(f"{count} {fate}" for fate, count in fates.items())
            yield f"accounting: ring {producer['ring']} of {name!r}: {accepted} rows accepted are not {told}"
    unknown = {root for name, root in roots.items() if name not in rows}
    found: dict[str, int] = {}
    for name, count in rows.items():
        found[roots[name]] = found.get(roots[name], 0) + count
    for name in {**found, **committed}:
        if name not in unknown and found.get(name, 0) != committed.get(name, 0):
            yield (
                f"accounting: {name!r} has {found.get(name, 0)} rows in the file, but "
                f"{committed.get(name, 0)} were committed"
            )
