"""The chronicle: what a journal tells of a recording, put in order.

Here the journal's operations get their meaning: what stands in the file, which rings feed which instruments,
and where every chunk is. Who goes on with the recording, or makes its file anew, asks the chronicle. It reads
the journal alone, and knows neither HDF5 nor shared memory.

A journal is as long as its recording: of the chunks and items in it nothing stays in memory but the last. Who
needs all of them has them read again (:meth:`~ Chronicle.chunks`, :meth:`~ Chronicle.items`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shmstore.accounting import Account
from shmstore.codec import Codec
from shmstore.errors import IncompleteFileError
from shmstore.journal import Items, JournalReader, Operation, Record, entries_of
from shmstore.layout import Stream, stream_from_dict

#: Chunks, and items of variable length, that stay of those that a commit covers: the last, which a kill may
#: have met on their way.
LAST_CHUNKS, LAST_ITEMS = 2, 4096

_NONE = 2**64 - 1  # no chunk has such a number


class ToldChunk(NamedTuple):
    """A chunk as it was written last.

    Attributes
    ----------
    offset : int
        Where its stored bytes are in the file; -1: in the journal.
    length, crc : int
        How many they are, and their CRC-32.
    """

    offset: int
    length: int
    crc: int


@dataclass(slots=True)
class ToldDataset:
    """A dataset as the journal tells of it.

    Attributes
    ----------
    path : str or None
        Where it is; ``None`` once it is gone.
    stream, chunk_items, codec, items
        As it was made.
    bytes_written : int
        Stored bytes of all chunks that were written to it.
    last_chunks : dict of int to ToldChunk
        Of those that are full and committed the last few, and all behind, by their number.
    last_items : list of Items
        Records that hold the last committed items of variable length, and all behind, as they were written.
    """

    path: str | None
    stream: Stream
    chunk_items: int
    codec: Codec
    items: int
    bytes_written: int = 0
    last_chunks: dict[int, ToldChunk] = field(default_factory=dict)
    last_items: list[Items] = field(default_factory=list)


@dataclass(slots=True)
class ToldInstrument:
    """An instrument as the journal tells of it.

    Attributes
    ----------
    instrument_id, link : str
        Its id, and the name of its group.
    continues : str
        Id of the instrument whose other schemas it takes, or empty.
    options : dict
        What was asked for it.
    schema : bytes
        The schema that holds, serialized; empty if none was declared.
    history : str
        JSON of the schemas before, or empty.
    """

    instrument_id: str
    link: str
    continues: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    schema: bytes = b""
    history: str = ""


@dataclass(slots=True)
class ToldTails:
    """A segment of tails: its name, the datasets by number, their chunks' sizes, and buffers of each."""

    name: str
    datasets: list[int]
    sizes: list[int]
    buffers: int


class Chronicle:
    """All that a journal tells.

    Parameters
    ----------
    path
        The journal.
    covered
        How far the last commit covers it: a change of schema that began later is told as if it never had.
    items
        For who goes on from that commit: how many items it covers of each dataset, by number. Of the others
        there is nothing to go on with.
    journal
        Number of the journal that `covered` is a position of; 0: of this one. One that was made anew since
        covers all that the commit did.
    payloads
        Whether data in the journal that no commit covers is held against its checksums too: after a power
        cut. What one covers had been synced, and is damaged otherwise, if at all.

    Attributes
    ----------
    identity : dict
        What the journal says of the recording.
    operations : list of Operation
        What was done to the file's structure, in order.
    datasets : list of ToldDataset
        By number.
    instruments : dict of str to ToldInstrument
        By link.
    tails : list of ToldTails
        The segments.
    rings : dict of int to str
        The instrument of each ring.
    declared : dict of (int, int) to (str, bytes)
        For each ring and number of a schema, the link of the instrument that takes it, and the schema.
    accounts : list of Account
        Of rings that have ended.
    problems : list of str
        What went wrong.
    end : int
        Where the journal ends, for who goes on with it.
    torn : bool
        Whether HDF5's own structures may be damaged, or ahead of what counts: the file must be made anew.
    short : bool
        Whether it ends before what the last commit covers: it was damaged since.
    finished : bool
        Whether the file was finished, and is on the disk: nothing else told here is needed any more.
    report : dict or None
        The closing report of who finished it.

    Raises
    ------
    StorageError, IncompleteFileError
        The journal cannot be read.
    """

    def __init__(
        self,
        path: Path,
        covered: int | None = None,
        *,
        items: Mapping[int, int] | None = None,
        journal: int = 0,
        payloads: bool = False,
    ) -> None:
        self.path = path
        self.operations: list[Operation] = []
        self.datasets: list[ToldDataset] = []
        self.instruments: dict[str, ToldInstrument] = {}
        self.tails: list[ToldTails] = []
        self.rings: dict[int, str] = {}
        self.declared: dict[tuple[int, int], tuple[str, bytes]] = {}
        self.accounts: list[Account] = []
        self.problems: list[str] = []
        self.torn = self.finished = False
        self.report: dict[str, Any] | None = None
        self._items = items or {}
        self._open: list[Operation] | None = None  # since the structure was opened, and not closed again
        with JournalReader(path, (covered or 0) if payloads else None) as reader:
            self._reader = reader
            self.identity = reader.header.identity
            self.end = reader.end
            try:
                for entries in entries_of(self._told(covered)):
                    self._keep(entries)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise IncompleteFileError(f"{path} tells what makes no sense: {error!r}") from None
            ours = journal in (0, reader.number)
            self.short = covered is not None and ours and reader.end < covered

    def _told(self, covered: int | None) -> Iterator[Record]:
        """Give the records that count, and take in what those tell that tell of no chunk."""
        reader = self._reader
        records = iter(reader)
        for record in records:
            if isinstance(record, Operation):
                if record.name == "evolve" and covered is not None and record.start >= covered:
                    self.torn = True
                    self._look_for_the_end(records)
                    break
                self._operation(record)
            elif isinstance(record, Items):
                told, committed = self.datasets[record.dataset], self._items.get(record.dataset, _NONE)
                if record.first + record.items > committed - LAST_ITEMS:
                    told.last_items.append(record)
            else:
                yield record
            self._stop = record.end
            if self._open is None:
                self.end = reader.end
        # What was begun and not ended did not happen, whatever it left in the file.
        self.torn = self.torn or self._open is not None

    def _look_for_the_end(self, behind: Iterator[Record]) -> None:
        """See whether the file was finished all the same: then what went over the commit is in it."""
        for record in behind:
            if isinstance(record, Operation) and record.name == "finished":
                self._operation(record)

    def _operation(self, operation: Operation) -> None:
        if operation.name == "begin":
            self._open = []
        elif operation.name == "end":
            for inner in self._open or []:
                self._do(inner)
            self._open = None
        elif operation.name == "finished":
            self.finished, self.report = True, operation.arguments.get("report")
        elif self._open is not None:
            self._open.append(operation)
        else:
            self._do(operation)

    def _do(self, operation: Operation) -> None:
        self.operations.append(operation)
        act = getattr(self, f"_on_{operation.name}", None)
        if act is not None:
            act(operation, operation.arguments)

    # -- what is in the file ---------------------------------------------------------------------------------

    def _on_create_instrument(self, _: Operation, arguments: Mapping[str, Any]) -> None:
        attributes = arguments["attributes"]
        link = arguments["link"]
        self.instruments[link] = ToldInstrument(
            attributes["instrument_id"], link, attributes.get("continues", "")
        )

    def _on_create_bytes(self, operation: Operation, arguments: Mapping[str, Any]) -> None:
        link, _, rest = arguments["path"].partition("/")
        if rest == "_arrow/schema" and link in self.instruments:
            self.instruments[link].schema = self._reader.load(operation)

    def _on_create_document(self, _: Operation, arguments: Mapping[str, Any]) -> None:
        link, _, rest = arguments["path"].partition("/")
        if rest == "_arrow/history" and link in self.instruments:
            self.instruments[link].history = arguments["text"]

    def _on_create_dataset(self, _: Operation, arguments: Mapping[str, Any]) -> None:
        path = arguments["path"]
        self._remove(path)
        self.datasets.append(
            ToldDataset(
                path,
                stream_from_dict(arguments["stream"]),
                int(arguments["chunk_items"]),
                Codec(**arguments["codec"]),
                int(arguments["items"]),
            )
        )

    def _on_remove(self, _: Operation, arguments: Mapping[str, Any]) -> None:
        self._remove(arguments["path"])

    def _on_replace(self, _: Operation, arguments: Mapping[str, Any]) -> None:
        self._remove(arguments["path"])
        self.datasets[arguments["number"]].path = arguments["path"]

    def _remove(self, path: str) -> None:
        for dataset in self.datasets:
            if dataset.path is not None and (dataset.path == path or dataset.path.startswith(f"{path}/")):
                dataset.path = None

    # -- what is beside it -----------------------------------------------------------------------------------

    def _on_options(self, _: Operation, arguments: Mapping[str, Any]) -> None:
        for instrument in self.instruments.values():
            if instrument.instrument_id == arguments["instrument"]:
                instrument.options = dict(arguments["options"])

    def _on_tails(self, _: Operation, arguments: Mapping[str, Any]) -> None:
        self.tails.append(ToldTails(**arguments))

    def _on_attach(self, _: Operation, arguments: Mapping[str, Any]) -> None:
        self.rings[int(arguments["ring"])] = arguments["instrument"]

    def _on_withdraw(self, _: Operation, arguments: Mapping[str, Any]) -> None:
        self.rings.pop(int(arguments["ring"]), None)

    def _on_detach(self, _: Operation, arguments: Mapping[str, Any]) -> None:
        self.rings.pop(int(arguments["ring"]), None)
        self.accounts.append(Account(**arguments["account"]))

    def _on_declare(self, operation: Operation, arguments: Mapping[str, Any]) -> None:
        key = int(arguments["ring"]), int(arguments["number"])
        self.declared[key] = arguments["link"], self._reader.load(operation)

    def _on_problem(self, _: Operation, arguments: Mapping[str, Any]) -> None:
        self.problems.append(arguments["text"])

    # -- chunks and items ------------------------------------------------------------------------------------

    def _keep(self, entries: npt.NDArray[np.void]) -> None:
        """Keep of chunks, in the order of their writing, what is to be known of the last."""
        known = entries[entries["dataset"] < len(self.datasets)]
        sizes = np.zeros(len(self.datasets), np.uint64)
        np.add.at(sizes, known["dataset"], known["length"])
        firsts = np.full(len(self.datasets), _NONE, np.uint64)
        for number, (told, size) in enumerate(zip(self.datasets, sizes.tolist(), strict=True)):
            told.bytes_written += size
            if number in self._items:
                firsts[number] = max(0, self._items[number] // told.chunk_items - LAST_CHUNKS)
        for entry in known[known["index"] >= firsts[known["dataset"]]]:
            place = -1 if entry["reserved"] else int(entry["offset"])
            told = self.datasets[entry["dataset"]]
            told.last_chunks[int(entry["index"])] = ToldChunk(place, int(entry["length"]), int(entry["crc"]))

    def chunks(self) -> dict[int, npt.NDArray[np.void]]:
        """Return for each dataset, by number, its chunks as they were written last, by index.

        Returns
        -------
        dict of int to ndarray
            Of `journal.ENTRY`, ``(chunks,)``, ascending.
        """
        with JournalReader(self.path) as reader:
            parts = list(entries_of(self._again(reader)))
        if not parts:
            return {}
        entries = np.concatenate(parts)
        entries = entries[np.lexsort((entries["index"], entries["dataset"]))]  # stable: later ones come last
        same = (np.diff(entries["dataset"]) == 0) & (np.diff(entries["index"]) == 0)
        entries = entries[np.append(~same, True)]
        starts = np.flatnonzero(np.append(True, np.diff(entries["dataset"]) != 0))
        return {int(part["dataset"][0]): part for part in np.split(entries, starts[1:])}

    def items(self) -> dict[int, list[Items]]:
        """Return for each dataset of variable length, by number, the records of its items, as written."""
        found: dict[int, list[Items]] = {}
        with JournalReader(self.path) as reader:
            for record in self._again(reader):
                if isinstance(record, Items):
                    found.setdefault(record.dataset, []).append(record)
        return found

    def _again(self, reader: JournalReader) -> Iterator[Record]:
        """Give the records that count."""
        for record in reader:
            if record.end > self._stop:
                return
            yield record

    def values(self, record: Items) -> list[bytes]:
        """Return items of a variable-length dataset that the journal holds."""
        with JournalReader(self.path) as reader:
            return reader.values(record)

    def load(self, record: Operation) -> bytes:
        """Return the data that the journal holds besides a record."""
        with JournalReader(self.path) as reader:
            return reader.load(record)

    def load_chunk(self, entry: npt.NDArray[np.void]) -> bytes:
        """Return the stored bytes of a chunk that the journal holds."""
        with JournalReader(self.path) as reader:
            return reader.payload(int(entry["offset"]), int(entry["length"]), int(entry["crc"]))
