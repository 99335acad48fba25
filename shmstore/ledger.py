"""The ledger: a few bytes in shared memory of which one whole copy outlives any kill.

Two slots are written in turn, so that a process killed in the middle of one leaves the other as it was. What
the bytes say is the business of the writer. Only one process at a time uses a ledger: the writer, then
whoever takes over from it. The bytes are told in ``docs/recovery-formats.md``.

Python gives no memory fences, and a kill needs none: all stores that a process made before its death are in
memory, in program order.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Self

from shmstore.errors import BrokenError
from shmstore.segment import Segment, align
from shmstore.signature import SIGNATURE_BYTES, crc32, sign, signed_version
from shmstore.steps import step

_MAGIC = b"SHMLEDGR"
_VERSION = (1, 0)
_SLOT_HEADER_BYTES = 64
# Words of the slot header, after the signature.
_CAPACITY, _SEQUENCE, _LENGTH, _CRC, _WORDS = 0, 1, 2, 3, 4
_COVERED = struct.Struct("<QQ")  # sequence and length, before the payload


class Ledger:
    """The latest of the payloads that were stored, in a segment of its own.

    Attributes
    ----------
    path : Path
        The segment.
    capacity : int
        Bytes that a payload may have.
    """

    def __init__(self, segment: Segment, capacity: int) -> None:
        self.path = segment.path
        self.capacity = capacity
        self._segment = segment
        self._slot_bytes = segment.size // 2
        self._words = [
            segment.words(number * self._slot_bytes + SIGNATURE_BYTES, _WORDS) for number in range(2)
        ]
        self._sequence = max((sequence for sequence, _ in self._whole()), default=0)

    @classmethod
    def create(cls, path: Path, capacity: int) -> Self:
        """Make an empty ledger for payloads of at most ``capacity`` bytes.

        Raises
        ------
        StorageError
            The segment exists already, or shared memory is too small.
        """
        slot_bytes = align(_SLOT_HEADER_BYTES + capacity)
        segment = Segment.create(path, 2 * slot_bytes)
        for start in (0, slot_bytes):
            segment.words(start + SIGNATURE_BYTES, _WORDS)[_CAPACITY] = capacity
            segment.view[start : start + SIGNATURE_BYTES] = sign(_MAGIC, _VERSION)
        return cls(segment, capacity)

    @classmethod
    def attach(cls, path: Path) -> Self:
        """Take over an existing ledger. One of its slots is enough to know it by.

        Raises
        ------
        StorageError
            There is no such segment.
        BrokenError
            It is no ledger, or one of a newer version.
        """
        segment = Segment.attach(path)
        try:
            return cls(segment, _capacity_of(segment))
        except BrokenError:
            segment.close()
            raise

    def store(self, payload: bytes) -> None:
        """Put ``payload`` in place of the older of the two; killed meanwhile, the newer one stays.

        Raises
        ------
        ValueError
            It is longer than :attr:`capacity`.
        """
        length = len(payload)
        if length > self.capacity:
            raise ValueError(
                f"a payload of {length} bytes does not fit into the ledger's {self.capacity}: "
                f"make the ledger with a larger capacity"
            )
        sequence = self._sequence + 1
        number = sequence % 2
        words, start = self._words[number], number * self._slot_bytes
        body = start + _SLOT_HEADER_BYTES
        words[_SEQUENCE] = 0  # from here on the slot counts for nothing
        self._segment.view[start : start + SIGNATURE_BYTES] = sign(_MAGIC, _VERSION)
        words[_CAPACITY] = self.capacity
        self._segment.view[body : body + length] = payload
        step("writer.ledger_half_stored")
        words[_LENGTH] = length
        words[_CRC] = _crc_of(sequence, payload)
        words[_SEQUENCE] = sequence  # and from here on for the newest
        self._sequence = sequence

    def load(self) -> bytes | None:
        """Return the newest payload that is whole; ``None`` if nothing was ever stored."""
        return max(self._whole(), default=(0, None), key=lambda found: found[0])[1]

    def _whole(self) -> list[tuple[int, bytes]]:
        """Return sequence and payload of each slot that holds together."""
        found = []
        for number, words in enumerate(self._words):
            start = number * self._slot_bytes
            sequence, length, crc = words[_SEQUENCE], words[_LENGTH], words[_CRC]
            version = signed_version(self._segment.view[start : start + SIGNATURE_BYTES], _MAGIC)
            if not sequence or not version or sequence % 2 != number or length > self.capacity:
                continue
            body = start + _SLOT_HEADER_BYTES
            payload = bytes(self._segment.view[body : body + length])
            if crc == _crc_of(sequence, payload):
                found.append((sequence, payload))
        return found

    def close(self) -> None:
        """Unmap; the segment stays."""
        for words in self._words:
            words.release()
        self._segment.close()

    def unlink(self) -> None:
        """Remove the segment."""
        self._segment.unlink()


def _crc_of(sequence: int, payload: bytes) -> int:
    return crc32(payload, crc32(_COVERED.pack(sequence, len(payload))))


def _capacity_of(segment: Segment) -> int:
    """Return what one of the slots says, and the size of the segment confirms."""
    size = segment.size
    if size % 2 or size // 2 < _SLOT_HEADER_BYTES or (size // 2) % 8:
        raise BrokenError(f"{segment.path} is no ledger: no ledger has {size} bytes")
    for start in (0, size // 2):
        version = signed_version(segment.view[start : start + SIGNATURE_BYTES], _MAGIC)
        if version and version[0] != _VERSION[0]:
            raise BrokenError(
                f"{segment.path} has version {version[0]}.{version[1]} of the ledger's format, and this "
                f"shmstore knows {_VERSION[0]}: use the shmstore that made it, or a newer one"
            )
        capacity = segment.words(start + SIGNATURE_BYTES, _WORDS)[_CAPACITY]
        if version and 2 * align(_SLOT_HEADER_BYTES + capacity) == size:
            return capacity
    raise BrokenError(f"{segment.path} is no ledger, or its making was interrupted: nothing was stored in it")
