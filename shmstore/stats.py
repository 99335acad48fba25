"""What `stats()` returns: frozen counts, safe to keep, compare and print. No actor is imported here.

The unit of accounting is the row. For each producer and instrument

    accepted = committed + dropped + rejected + in flight

where *in flight* (sealed, not yet committed) is 0 once the recording is closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class _Counts:
    def to_dict(self) -> dict[str, Any]:
        """Return the counts as plain, JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_dict`; unknown keys, of a newer writer, are ignored."""
        known = {item.name for item in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


@dataclass(frozen=True, slots=True)
class ProducerStats(_Counts):
    """Counts of one producer, as it sees them itself.

    Attributes
    ----------
    accepted, dropped, rejected : int
        Rows handed to :meth:`put` or :meth:`loan`; dropped by the policy ``drop_newest``; refused with an
        error.
    sealed : int
        Rows placed in the ring: ``accepted - dropped - rejected``.
    batches : int
        Slots sealed.
    sealed_bytes : int
        Bytes of the bodies of these slots.
    waits : int
        How often :meth:`put` or :meth:`loan` had to wait for space.
    wait_ns : int
        How long in total, in nanoseconds.
    ring_bytes, ring_bytes_used : int
        Capacity of the ring, and bytes in it that are not yet released.
    released_bytes : int
        Bytes of the ring that were given back so far, headers and padding included: what lay there is
        committed. With ``ring_bytes_used`` added, where the newest slot ends.
    """

    instrument_id: str
    accepted: int = 0
    dropped: int = 0
    rejected: int = 0
    sealed: int = 0
    batches: int = 0
    sealed_bytes: int = 0
    waits: int = 0
    wait_ns: int = 0
    ring_bytes: int = 0
    ring_bytes_used: int = 0
    released_bytes: int = 0


@dataclass(frozen=True, slots=True)
class InstrumentStats(_Counts):
    """Counts of one instrument over all its producers.

    Attributes
    ----------
    accepted, committed, dropped, rejected : int
        Rows, see the module.
    quarantined : int
        Rows that the file could not take; kept as Arrow IPC beside it. Counted in ``rejected`` too.
    rows_written : int
        Rows in the file.
    batches_written : int
        Slots committed.
    bytes_in : int
        Bytes of the columns before compression.
    bytes_written : int
        Bytes handed to the file for them.
    producers : int
        Producers attached now.
    ring_bytes, ring_bytes_used, ring_high_water : int
        Capacity, use and highest use of their rings.
    chunks_written : int
        Chunks handed to the file.
    steps_down, steps_up : int
        Under ``compression="adaptive"``, how often codecs were eased because they could not keep up, and how
        often that was taken back. A writer that replaces another takes back all.
    chunks_cheaper, chunks_stored : int
        Chunks that were compressed at a cheaper level than configured because of that, and not at all.
    """

    accepted: int = 0
    committed: int = 0
    dropped: int = 0
    rejected: int = 0
    quarantined: int = 0
    rows_written: int = 0
    batches_written: int = 0
    bytes_in: int = 0
    bytes_written: int = 0
    producers: int = 0
    ring_bytes: int = 0
    ring_bytes_used: int = 0
    ring_high_water: int = 0
    chunks_written: int = 0
    steps_down: int = 0
    steps_up: int = 0
    chunks_cheaper: int = 0
    chunks_stored: int = 0

    @property
    def steps_below(self) -> int:
        """So many steps below what is configured columns are compressed now; of all instruments the sum."""
        return self.steps_down - self.steps_up


@dataclass(frozen=True, slots=True)
class StorageStats(InstrumentStats):
    """Counts of a whole recording; every field of `InstrumentStats` is the sum over the instruments.

    Attributes
    ----------
    state : str
        ``"recording"``, ``"closing"``, ``"complete"``, ``"partial"``, ``"aborted"`` or ``"broken"``.
    commits, flushes : int
        File flushes that published rows to readers; durable flushes (fsync).
    last_flush : float or None
        When the last durable flush returned, in seconds since the epoch.
    writer_restarts : int
        How often the writer was replaced, having died or hung.
    last_restart_reason : str
        Why, the last time; empty if it never was.
    file_bytes : int
        Size of the file.
    instruments : mapping of str to InstrumentStats
        The same per instrument.
    """

    state: str = "recording"
    commits: int = 0
    flushes: int = 0
    last_flush: float | None = None
    writer_restarts: int = 0
    last_restart_reason: str = ""
    file_bytes: int = 0
    instruments: Mapping[str, InstrumentStats] = field(default_factory=dict)

    @property
    def in_flight(self) -> int:
        """Rows sealed in a ring or held in a tail that are not yet committed."""
        return self.accepted - self.committed - self.dropped - self.rejected

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_dict`."""
        instruments = {
            name: InstrumentStats.from_dict(counts) for name, counts in values["instruments"].items()
        }
        known = {item.name for item in fields(cls)}
        return cls(
            **{**{key: value for key, value in values.items() if key in known}, "instruments": instruments}
        )
