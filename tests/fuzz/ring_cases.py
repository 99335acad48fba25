"""Cases of a damaged ring: read by the writer, filled by a producer, looked at by `doctor`.

The ring has been round more than once. Of its slots some were released, some not; every one says who it is.
In one ring they differ in all else, in the other they are alike, so that the writer takes two at once.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from fuzz.damage import Damage, damaged
from fuzz.subject import serve

from shmstore.accounting import SourceStanding
from shmstore.errors import BatchTooLargeError, BrokenError
from shmstore.leftovers import find_sessions
from shmstore.queue import DescriptorQueue
from shmstore.ring import HEADER_BYTES, SLOT_HEADER_BYTES, Kind, Life, Ring, Run, Slot
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


class Slots(NamedTuple):
    """What the slots of a ring are.

    Attributes
    ----------
    alike : bool
        Whether they differ in nothing but their number.
    """

    alike: bool

    def body(self, sequence: int) -> bytes:
        """Return the body of a slot, full of its number; as long as no other near it, or as all."""
        return sequence.to_bytes(8, "little") * (5 if self.alike else 3 + sequence * 5 % 37)

    def rows(self, sequence: int) -> int:
        """Return the rows that a slot says it has."""
        return 2 if self.alike else 1 + sequence % 5

    def schema_id(self, sequence: int) -> int:
        """Return the schema that a slot says it follows."""
        return 0 if self.alike else sequence % 3


class _Fed:
    """Stands for what slots follow: an instrument that takes several at once."""

    def __init__(self) -> None:
        self.instrument = self

    def longest_run(self, rows: int) -> int:
        return 5 if rows else 0


class Cases:
    """The rings as they were whole, and what is done with one damaged."""

    def __init__(self, shm_dir: Path) -> None:
        self._shm_dir = shm_dir
        self._session = Session.create(shm_dir, "fuzzed")
        self._path = self._session.ring_path(_NUMBER)
        self._made = {alike: self._make(Slots(alike)) for alike in (False, True)}

    def _make(self, slots: Slots) -> tuple[bytes, list[int]]:
        """Return a ring that is whole, and where its headers are."""
        self._path.unlink(missing_ok=True)
        ring = Ring.create(self._path, CAPACITY, _NUMBER)
        ring.claim(os.getpid())
        for sequence in range(_SEALED):
            body = slots.body(sequence)
            while (room := ring.reserve(len(body))) is None:
                self._release(ring)
            room[:] = body
            room.release()
            ring.seal(Kind.IPC, len(body), slots.rows(sequence), slots.schema_id(sequence))
            if sequence < _RELEASED:
                self._release(ring)
        ring.end(Life.CLOSED)
        whole = bytes(ring.segment.view)
        ring.close()
        places = range(HEADER_BYTES, len(whole), SLOT_HEADER_BYTES)
        return whole, [at for at in places if whole[at : at + 4] == _SLOT_MAGIC]

    @staticmethod
    def _release(ring: Ring) -> None:
        slot = ring.borrow()
        assert slot is not None
        ring.release(slot)

    def __call__(self, damages: Sequence[Damage], side: str, mended: bool, alike: bool) -> str | None:
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
        alike
            Which of the rings.
        """
        whole, headers = self._made[alike]
        data = damaged(whole, damages, [*_REGIONS, *((at, at + SLOT_HEADER_BYTES) for at in headers)])
        if mended:
            data = _with_checksums(data, headers)
        self._path.write_bytes(data)
        if not self._session.queue_path(_NUMBER).exists():
            DescriptorQueue.create(self._session.queue_path(_NUMBER)).close()
        if side == "producer":
            return self._produce()
        if side == "onlooker":
            (found,) = find_sessions(self._shm_dir)
            assert found.batches <= CAPACITY // SLOT_HEADER_BYTES
            return found.problem
        return self._consume(data, _RELEASED + 3 if side == "follower" else 0, mended, Slots(alike))

    def _consume(self, data: bytes, committed: int, mended: bool, slots: Slots) -> str | None:
        whole, _ = self._made[slots.alike]
        known = range(committed or _RELEASED)
        standing = SourceStanding(len(known), sum(map(slots.rows, known)), 0)
        source = Source(self._session, _NUMBER, "x", standing)
        source.follows[0] = cast("Any", _Fed())
        try:
            refused: str | None = None
            taken = []
            slots_touched = data[HEADER_BYTES:] != whole[HEADER_BYTES:]
            try:
                while (slot := _take_run(source) or source.take()) is not None:
                    assert len(taken) <= CAPACITY // SLOT_HEADER_BYTES, "it never ends"
                    for sequence, body, rows in _slots_of(slot):
                        taken.append(sequence)
                        assert slots_touched or body == slots.body(sequence)
                        assert mended or rows == slots.rows(sequence)
                        assert mended or len(body) == len(slots.body(sequence))
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
            all_there = len(known) + len(taken) == _SEALED
            counts_touched = any(data[start:stop] != whole[start:stop] for start, stop in _COUNTS)
            told = refused is not None or account.lost > 0
            assert all_there or told or counts_touched or mended, "slots are missing, and nobody is told"
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


def _with_checksums(data: bytes, headers: Sequence[int]) -> bytes:
    done = bytearray(data)
    for at in headers:
        if at + SLOT_HEADER_BYTES <= len(done):
            struct.pack_into("<I", done, at + 52, zlib.crc32(done[at : at + 52]))
    return bytes(done)


def _take_run(source: Source) -> Run | None:
    run = source.look_ahead()
    return None if run is None else source.take_run(run, run.slots)


def _slots_of(slot: Slot | Run) -> Iterator[tuple[int, bytes, int]]:
    """Give sequence, body and rows of each."""
    if isinstance(slot, Slot):
        yield slot.sequence, bytes(slot.body), slot.rows
        return
    bodies = slot.bodies(0, slot.length, np.uint8)
    for number in range(slot.slots):
        yield slot.sequence + number, bytes(bodies[number]), slot.slot_rows


def main(arguments: Sequence[str]) -> None:
    """Serve cases in a folder of shared memory."""
    cases: Any = Cases(Path(arguments[0]))
    serve(cases)


if __name__ == "__main__":
    main(sys.argv[1:])
