"""The checkpoint: what a commit covers, in one document; whoever replaces a writer goes on from there.

It is kept in the ledger at every commit, and with the contents of unfinished chunks in the tail files at
every durable flush. Its form is told in ``docs/recovery-formats.md``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shmstore.accounting import SourceStanding
from shmstore.errors import IncompleteFileError

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a commit covers.

    Attributes
    ----------
    position : int
        How far the journal was: what it tells beyond is not covered.
    sources : mapping of int to SourceStanding
        What was taken of each ring, by its number.
    instruments : mapping of str to mapping
        Where each instrument stood, by its link: see `InstrumentAssembly.standing`.
    tails : sequence of int
        In the tail files only: the datasets whose unfinished chunks stand beside, in that order.
    journal : int
        Number of the journal that `position` is one of; 0: not known. A file that is made anew has another
        journal, and the ledger tells of it with the next commit only.
    """

    position: int
    sources: Mapping[int, SourceStanding]
    instruments: Mapping[str, Mapping[str, Any]]
    tails: Sequence[int] = ()
    journal: int = 0

    @property
    def items(self) -> dict[int, int]:
        """How many items of each dataset it covers, by number."""
        return {
            int(number): int(count)
            for standing in self.instruments.values()
            for number, count, *_ in standing["streams"]
        }

    def pack(self) -> bytes:
        """Return it as bytes."""
        document = {
            "version": _VERSION,
            "position": self.position,
            "journal": self.journal,
            "sources": [[number, *standing] for number, standing in self.sources.items()],
            "instruments": self.instruments,
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def unpack(cls, data: bytes) -> Checkpoint:
        """Rebuild from `pack`.

        Raises
        ------
        IncompleteFileError
            It is no checkpoint, or one of a newer version.
        """
        try:
            document = json.loads(data)
            if document["version"] > _VERSION:
                raise IncompleteFileError(
                    f"the checkpoint has version {document['version']}, newer than {_VERSION}: update "
                    "shmstore"
                )
            sources = {
                int(number): SourceStanding(*map(int, standing)) for number, *standing in document["sources"]
            }
            return cls(
                int(document["position"]),
                sources,
                dict(document["instruments"]),
                document.get("tails", ()),
                int(document.get("journal", 0)),
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise IncompleteFileError(f"the checkpoint is damaged: {error!r}") from None


def durable_checkpoint(packed: bytes, tails: Sequence[int]) -> bytes:
    """Return a packed checkpoint that also says whose unfinished chunks stand beside it."""
    return packed[:-1] + b',"tails":' + json.dumps(list(tails)).encode() + b"}"
