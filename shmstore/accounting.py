"""The account of a recording: which rows were accepted, and what became of them.

For each producer, ``accepted = committed + dropped + rejected + lost``, where ``lost`` must be 0. The counts
of the rings and the counts of the file are kept apart and compared at the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple


class SourceStanding(NamedTuple):
    """What a commit covers of a ring.

    Attributes
    ----------
    slots : int
        Slots taken and safe.
    rows, quarantined : int
        Rows of them in the file, and in quarantine.
    """

    slots: int = 0
    rows: int = 0
    quarantined: int = 0


@dataclass(slots=True)
class Account:
    """Rows of one producer, as the writer counted them."""

    instrument_id: str
    ring: int
    taken: int = 0
    taken_slots: int = 0
    committed: int = 0
    committed_slots: int = 0
    quarantined: int = 0
    dropped: int = 0
    rejected: int = 0
    lost: int = 0

    @classmethod
    def of(cls, instrument_id: str, ring: int, standing: SourceStanding) -> Account:
        """Return the account of a ring at a commit."""
        return cls(
            instrument_id,
            ring,
            taken=standing.rows + standing.quarantined,
            taken_slots=standing.slots,
            committed=standing.rows,
            committed_slots=standing.slots,
            quarantined=standing.quarantined,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what is stamped into the file: ``accepted = committed + dropped + rejected + lost``."""
        return {
            "instrument": self.instrument_id,
            "ring": self.ring,
            "accepted": self.taken + self.dropped + self.rejected + self.lost,
            "committed": self.committed,
            "dropped": self.dropped,
            "rejected": self.rejected + self.quarantined,
            "quarantined": self.quarantined,
            "lost": self.lost,
            "batches": self.committed_slots,
        }


def imbalances(instrument_id: str, rows_in_file: int, accounts: Iterable[Account]) -> list[str]:
    """Compare the rows taken from an instrument's rings with those in the file, counted independently.

    Returns
    -------
    list of str
        What is wrong, in words; empty if the account is right.
    """
    own = [account for account in accounts if account.instrument_id == instrument_id]
    committed = sum(account.committed for account in own)
    lost = sum(account.lost for account in own)
    found = []
    if committed != rows_in_file:
        found.append(f"{instrument_id!r} has {rows_in_file} rows in the file, but {committed} were committed")
    open_rows = sum(account.taken - account.committed - account.quarantined for account in own)
    if open_rows:
        found.append(f"{open_rows} rows of {instrument_id!r} were taken from a ring and never committed")
    if lost:
        found.append(f"{lost} rows of {instrument_id!r} were sealed by a producer and are lost")
    return found
