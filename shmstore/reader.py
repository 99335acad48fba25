"""Reading a recording back: `open`, `read` and `Recording`.

Owns what a recording says of itself: state, metadata, accounting, instruments. The rows are `Instrument`'s.
"""

from __future__ import annotations

import datetime
import json
import os
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import h5py
import pyarrow as pa

from shmstore.errors import ClosedError, IncompleteFileError
from shmstore.names import RESERVED_INSTRUMENTS
from shmstore.opening import OpenedFile, naming
from shmstore.recorded import Instrument, metadata_of, nearest

__all__ = ["Instrument", "Recording", "open", "read"]


class _Facts(NamedTuple):
    """What the root of the file says."""

    state: str
    application: str
    created_at: datetime.datetime
    metadata: dict[str, Any]
    accounting: dict[str, Any] | None
    links: dict[str, str]


class Recording:
    """A recording's file, open for reading; made by :func:`open`. Maps instrument ids to `Instrument`.

    May be used by several threads; HDF5 lets one of them read at a time. What it says of itself is as of its
    opening or its last :meth:`refresh`; rows are always counted anew.

    Attributes
    ----------
    opened : OpenedFile
        The file as it is held.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.opened = OpenedFile(path)
        self._instruments: dict[str, Instrument] = {}
        try:
            self._facts = self._look()
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> Path:
        """The file."""
        return self.opened.path

    @property
    def state(self) -> str:
        """``"recording"``, ``"complete"``, ``"partial"`` (something was lost) or ``"aborted"``."""
        return self._facts.state

    @property
    def live(self) -> bool:
        """Whether the file says that it is being recorded; so does one that a killed writer left behind."""
        return self.state == "recording"

    @property
    def metadata(self) -> dict[str, Any]:
        """The session's metadata, as it was set."""
        return dict(self._facts.metadata)

    @property
    def created_at(self) -> datetime.datetime:
        """When the recording began, with its zone."""
        return self._facts.created_at

    @property
    def application(self) -> str:
        """What wrote it: ``"shmstore X.Y.Z"``."""
        return self._facts.application

    @property
    def accounting(self) -> dict[str, Any] | None:
        """Rows accepted, committed, dropped and rejected, per producer; ``None`` until it is closed."""
        return self._facts.accounting

    @property
    def instruments(self) -> list[str]:
        """Ids of the instruments, in the order of their appearance."""
        return list(self._instruments)

    def refresh(self) -> None:
        """Look at the file again: state, metadata, instruments. A finished recording does not change.

        Raises
        ------
        ClosedError
            This recording was closed.
        StorageError, IncompleteFileError
            The file is gone, or cannot be read.
        """
        self._check_open()
        self.opened.refresh()
        self._facts = self._look()

    def close(self) -> None:
        """Close the file. Tables and batches stay valid; may be called twice."""
        self.opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self.close()

    def __getitem__(self, instrument_id: str) -> Instrument:
        """Return the instrument; one that appeared meanwhile is found, too.

        Raises
        ------
        IncompleteFileError
            The recording has no such instrument; the message names the nearest.
        """
        self._check_open()
        if instrument_id not in self._instruments and self.live:
            self.refresh()
        if instrument_id in self._instruments:
            return self._instruments[instrument_id]
        remedy = nearest(str(instrument_id), self._instruments, "it has no instruments")
        raise IncompleteFileError(f"{self.path} has no instrument {instrument_id!r}: {remedy}")

    def __contains__(self, instrument_id: object) -> bool:
        return instrument_id in self._instruments

    def __iter__(self) -> Iterator[str]:
        return iter(self.instruments)

    def __len__(self) -> int:
        return len(self._instruments)

    def __repr__(self) -> str:
        state = "closed" if self.opened.closed else self.state
        return f"<Recording {str(self.path)!r}, {state}, {len(self)} instruments>"

    def _check_open(self) -> None:
        if self.opened.closed:
            raise ClosedError(f"the recording {self.path} was closed: open it again")

    def _look(self) -> _Facts:
        facts = self.opened.look(self._read_facts)
        if facts.state != "recording":
            self.opened.refresh()
        self._instruments = {
            name: self._instruments.get(name) or Instrument(self.opened, name, link)
            for name, link in facts.links.items()
        }
        return facts

    def _read_facts(self, file: h5py.File) -> _Facts:
        with naming(self.path, "the root attributes"):
            state, application = str(file.attrs["state"]), str(file.attrs["application"])
            created_at = datetime.datetime.fromisoformat(str(file.attrs["created_at"]))
        with naming(self.path, "group 'metadata'"):
            metadata = metadata_of(file["metadata"])
        with naming(self.path, "the accounting in '_shmstore'"):
            text = file["_shmstore"].attrs.get("accounting")
            accounting = None if text is None else dict(json.loads(text))
        links: dict[str, str] = {}
        with naming(self.path, "the list of instruments"):
            for link in file:
                # What others have put into the file carries no id of ours.
                instrument_id = (
                    None if link in RESERVED_INSTRUMENTS else file[link].attrs.get("instrument_id")
                )
                if instrument_id is not None:
                    links[str(instrument_id)] = link
        return _Facts(state, application, created_at, metadata, accounting, links)


def open(path: str | os.PathLike[str]) -> Recording:
    """Open a recording: finished, live, or left behind by a writer that was killed.

    Parameters
    ----------
    path
        The HDF5 file.

    Returns
    -------
    Recording
        To be closed, or used as a context manager.

    Raises
    ------
    StorageError
        The system refuses: no such file, no permission; ``errno`` is kept.
    IncompleteFileError
        It is no shmstore recording, is cut off or damaged, or of a newer format.
    """
    return Recording(path)


def read(
    path: str | os.PathLike[str],
    instrument_id: str,
    columns: Sequence[str | int] | None = None,
    start: int | None = 0,
    stop: int | None = None,
) -> pa.Table:
    """Read rows of one instrument into memory; see :func:`open` and :meth:`Instrument.read`."""
    with Recording(path) as recording:
        return recording[instrument_id].read(columns, start, stop)
