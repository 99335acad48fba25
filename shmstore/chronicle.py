"""The chronicle: what a journal tells of a recording, put in order.

Here the journal's operations get their meaning: what stands in the file, which rings feed which instruments,
and where every chunk is. Who goes on with the recording, or makes its file anew, asks the chronicle. It reads
the journal alone, and knows neither HDF5 nor shared memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shmstore.accounting import Account
from shmstore.codec import Codec
from shmstore.errors import IncompleteFileError
from shmstore.journal import ENTRY, Chunks, Inline, Items, JournalReader, Operation
from shmstore.layout import Stream, stream_from_dict


@dataclass(slots=True)
class ToldDataset:
    """A dataset as the journal tells of it.

    Attributes
    ----------
    path : str or None
        Where it is; ``None`` once it is gone.
    stream, chunk_items, codec, items
        As it was made.
    """

    path: str | None
    stream: Stream
    chunk_items: int
    codec: Codec
    items: int
    inline: dict[int, Inline] = field(default_factory=dict)
    values: list[Items] = field(default_factory=list)


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
        self, path: Path, covered: int | None = None, *, journal: int = 0, payloads: bool = False
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
        self._chunks: list[npt.NDArray[np.void]] = []
        self._open: list[Operation] | None = None  # since the structure was opened, and not closed again
        with JournalReader(path, (covered or 0) if payloads else None) as reader:
            self._reader = reader
            self.identity = reader.header.identity
            self.end = reader.end
            try:
                self._read(covered)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise IncompleteFileError(f"{path} tells what makes no sense: {error!r}") from None
            ours = journal in (0, reader.number)
            self.short = covered is not None and ours and reader.end < covered

    def _read(self, covered: int | None) -> None:
        reader = self._reader
        for record in reader:
            if isinstance(record, Operation):
                if record.name == "evolve" and covered is not None and record.start >= covered:
                    self.torn = True
                    break
                self._operation(record)
            elif isinstance(record, Chunks):
                self._chunks.append(record.entries.copy())
            elif isinstance(record, Inline):
                self.datasets[record.dataset].inline[record.chunk_index] = record
                self._chunks.append(_entry_of(record))
            elif isinstance(record, Items):
                self.datasets[record.dataset].values.append(record)
            if self._open is None:
                self.end = reader.end
        # What was begun and not ended did not happen, whatever it left in the file.
        self.torn = self.torn or self._open is not None

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

    # -- chunks ----------------------------------------------------------------------------------------------

    def chunks(self) -> dict[int, npt.NDArray[np.void]]:
        """Return for each dataset, by number, its chunks as they were written last, by index.

        Returns
        -------
        dict of int to ndarray
            Of `journal.ENTRY`, ``(chunks,)``, ascending; those whose payload is in the journal have the
            offset ``INLINE``.
        """
        if not self._chunks:
            return {}
        entries = np.concatenate(self._chunks)
        entries = entries[np.lexsort((entries["index"], entries["dataset"]))]  # stable: later ones come last
        same = (np.diff(entries["dataset"]) == 0) & (np.diff(entries["index"]) == 0)
        entries = entries[np.append(~same, True)]
        starts = np.flatnonzero(np.append(True, np.diff(entries["dataset"]) != 0))
        return {int(part["dataset"][0]): part for part in np.split(entries, starts[1:])}

    def values(self, record: Items) -> list[bytes]:
        """Return items of a variable-length dataset that the journal holds."""
        with JournalReader(self.path) as reader:
            return reader.values(record)

    def load(self, record: Operation | Inline) -> bytes:
        """Return the data that the journal holds besides a record."""
        with JournalReader(self.path) as reader:
            return reader.load(record)


#: Offset of a chunk whose payload is in the journal.
INLINE = 2**64 - 1


def _entry_of(record: Inline) -> npt.NDArray[np.void]:
    entry = np.zeros(1, ENTRY)
    entry["dataset"], entry["index"] = record.dataset, record.chunk_index
    entry["filter_mask"], entry["items"] = record.filter_mask, record.items
    entry["offset"], entry["length"], entry["crc"] = INLINE, record.length, record.crc
    return entry
