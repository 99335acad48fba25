"""Cases of a damaged ring: read by the writer, filled by a producer, looked at by `doctor`.

The ring has been round more than once. Of its slots some were released, some not; every one says who it is.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzz.damage import Damage, damaged
from fuzz.subject import serve

from shmstore.accounting import SourceStanding
from shmstore.errors import BatchTooLargeError, BrokenError
from shmstore.leftovers import find_sessions
from shmstore.queue import DescriptorQueue
from shmstore.ring import HEADER_BYTES, SLOT_HEADER_BYTES, Kind, Life, Ring
from shmstore.session import Session
from shmstore.source import Source

CAPACITY = 4096
_NUMBER = 7
_RELEASED, _SEALED = 9, 17
_SLOT_MAGIC = b"SLOT"
#: Identity, the producer's words, the consumer's, and all of the slots.
_REGIONS = [(0, 32), (1024, 1096), (2048, 2072), (HEADER_BYTES, HEADER_BYTES + CAPACITY)]
#: The producer's words by which slots are missed: where the next one goes, how many there were, and rows.
_COUNTS = [(1024, 1032), (1040, 1056)]


def body_of(sequence: int) -> bytes:
    """Return the body of a slot: as long as no other near it, and full of its number."""
    return sequence.to_bytes(8, "little") * (3 + sequence * 5 % 37)


def rows_of(sequence: int) -> int:
    """Return the rows that a slot says it has."""
    return 1 + sequence % 5


class Cases:
    """The ring as it was whole, and what is done with it damaged."""

    def __init__(self, shm_dir: Path) -> None:
        self._shm_dir = shm_dir
        self._session = Session.create(shm_dir, "fuzzed")
        self._path = self._session.ring_path(_NUMBER)
        ring = Ring.create(self._path, CAPACITY, _NUMBER)
        ring.claim(os.getpid())
        for sequence in range(_SEALED):
            body = body_of(sequence)
            while (room := ring.reserve(len(body))) is None:
                self._release(ring)
            room[:] = body
            room.release()
            ring.seal(Kind.IPC, len(body), rows_of(sequence), sequence % 3)
            if sequence < _RELEASED:
                self._release(ring)
        ring.end(Life.CLOSED)
        self._whole = bytes(ring.segment.view)
        ring.close()
        self._headers = [
            at
            for at in range(HEADER_BYTES, len(self._whole), SLOT_HEADER_BYTES)
            if self._whole[at : at + 4] == _SLOT_MAGIC
        ]
        self._regions = [*_REGIONS, *((at, at + SLOT_HEADER_BYTES) for at in self._headers)]

    @staticmethod
    def _release(ring: Ring) -> None:
        slot = ring.borrow()
        assert slot is not None
        ring.release(slot)

    def __call__(self, damages: Sequence[Damage], side: str, mended: bool) -> str | None:
        """Try one.

        Parameters
        ----------
        damages
            What is done to the whole ring.
        side
            Who uses it then: ``"writer"``, ``"follower"`` (of a writer that had committed some),
            ``"producer"`` or ``"onlooker"``.
        mended
            Whether headers get right checksums again: as if who wrote them had been wrong.
        """
        data = damaged(self._whole, damages, self._regions)
        if mended:
            data = self._with_checksums(data)
        self._path.write_bytes(data)
        if not self._session.queue_path(_NUMBER).exists():
            DescriptorQueue.create(self._session.queue_path(_NUMBER)).close()
        if side == "producer":
            return self._produce()
        if side == "onlooker":
            (found,) = find_sessions(self._shm_dir)
            assert found.batches <= CAPACITY // SLOT_HEADER_BYTES
            return found.problem
        return self._consume(data, _RELEASED + 3 if side == "follower" else 0, mended)

    def _with_checksums(self, data: bytes) -> bytes:
        done = bytearray(data)
        for at in self._headers:
            if at + SLOT_HEADER_BYTES <= len(done):
                struct.pack_into("<I", done, at + 52, zlib.crc32(done[at : at + 52]))
        return bytes(done)

    def _consume(self, data: bytes, committed: int, mended: bool) -> str | None:
        known = range(committed or _RELEASED)
        standing = SourceStanding(len(known), sum(map(rows_of, known)), 0)
        source = Source(self._session, _NUMBER, "x", standing)
        try:
            refused: str | None = None
            taken = []
            slots_touched = data[HEADER_BYTES:] != self._whole[HEADER_BYTES:]
            try:
                while (slot := source.take()) is not None:
                    assert len(taken) <= CAPACITY // SLOT_HEADER_BYTES, "it never ends"
                    taken.append(slot.sequence)
                    body = bytes(slot.body)
                    assert slots_touched or body == body_of(slot.sequence)
                    assert mended or slot.rows == rows_of(slot.sequence)
                    assert mended or len(body) == len(body_of(slot.sequence))
                    source.hold(slot, None)
                    source.ripen()
                    source.cover(0)
                    if slot.sequence % 2:
                        source.release()
            except BrokenError as error:
                refused = str(error)
                source.give_up()
            assert source.ended in (True, False)
            assert source.idle in (True, False)
            assert source.crowded in (True, False)
            assert source.releasable in (True, False)
            source.release()
            source.close_account(aborted=False)
            account = source.settle_account()
            assert mended or taken == list(range(len(known), len(known) + len(taken)))
            whole = len(known) + len(taken) == _SEALED
            counts_touched = any(data[start:stop] != self._whole[start:stop] for start, stop in _COUNTS)
            told = refused is not None or account.lost > 0
            assert whole or told or counts_touched or mended, "slots are missing, and nobody is told"
            return refused
        finally:
            source.close()

    def _produce(self) -> str | None:
        ring = Ring.attach(self._path)
        try:
            assert ring.claim(os.getpid())
            ring.count_dropped(3)
            ring.count_rejected(2)
            for turn in range(200):
                length = turn * 61 % 700
                with contextlib.suppress(BatchTooLargeError):
                    room = ring.reserve(length)
                    if room is None:
                        break
                    assert len(room) == length
                    room[:] = b"\xa5" * length
                    room.release()
                    ring.seal(Kind.PLAIN, length, 1, 0)
            else:
                raise AssertionError("a ring that nobody empties never fills up")
            ring.count_refused(2**40)
            ring.end(Life.CLOSED)
        finally:
            ring.close()
        return None


def main(arguments: Sequence[str]) -> None:
    """Serve cases in a folder of shared memory."""
    cases: Any = Cases(Path(arguments[0]))
    serve(cases)


if __name__ == "__main__":
    main(sys.argv[1:])
