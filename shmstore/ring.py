"""The ring: variable-size slots in a shared-memory byte ring, one producer, one consumer.

A slot lives as in Plasma: *create* (a loan) → *seal* → *borrow* → *release*. Unsealed is invisible, sealed is
immutable. Slots are allocated and released in order, each contiguous (a pad slot fills the end of the lap),
and 64-byte aligned. The slot header is the truth: the consumer finds sealed slots by walking the ring, and
needs no descriptor.

The ring moves bytes. It knows neither Arrow nor HDF5 nor how the consumer is woken.

Shared-memory layout, little-endian, all words 8 bytes, each written by one side only::

    0      magic, layout version, capacity, ring number          (written once)
    1024   producer words   see ``_P_*``
    2048   consumer words   see ``_C_*``
    4096   slots: 64-byte header, then the body, padded to 64

Positions are absolute byte counts since the ring was made and never wrap; ``position % capacity`` is the
place. A position is therefore also a generation: a header left by an earlier lap carries another one and
cannot be mistaken.

Python gives no memory fences. On x86-64 stores become visible in program order, which is what sealing needs;
on weaker machines the header's CRC and the system call that rings the bell stand in for it.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import struct
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from shmstore.errors import BatchTooLargeError, BrokenError, StorageError
from shmstore.segment import ALIGNMENT, Segment, align
from shmstore.steps import step

HEADER_BYTES = 4096
SLOT_HEADER_BYTES = 64

_MAGIC = int.from_bytes(b"SHMRING1", "little")
_VERSION = 1
_IDENTITY = struct.Struct("<QQQQ")
_PRODUCER_OFFSET, _CONSUMER_OFFSET, _WORDS = 1024, 2048, 16
#: Producer's words: next position, life (see `Life`), and counts; last, what `_P_SEALED_BYTES` is to be once
#: the slot at the next position is sealed.
_P_HEAD, _P_LIFE, _P_SEQUENCE, _P_SEALED_ROWS, _P_WAITING = 0, 1, 2, 3, 4
_P_DROPPED_ROWS, _P_REJECTED_ROWS, _P_SEALED_BYTES, _P_PID, _P_BYTES_THEN = 5, 6, 7, 8, 9
#: Consumer's words: released up to (position), the first sequence number that will not be taken any more
#: (plus 1; 0 while recording), and the highest use seen.
_C_TAIL, _C_FINAL, _C_HIGH_WATER = 0, 1, 2

_HEADER = struct.Struct(
    "<IHHQQQQIII"
)  # magic, kind, -, position, sequence, length, row start, rows, schema id, skip
_CRC_AT = _HEADER.size
_CRC = struct.Struct("<I")
_SEAL_AT = _CRC_AT + _CRC.size
_SLOT_MAGIC = 0x544F_4C53  # "SLOT"
_SEAL = 0x5EA1_ED00_0000_0001
_PRODUCER_LOCK = 0
#: No position and no count comes this far: what does is damage, and sums with it would not fit their words.
_IMPOSSIBLE = 1 << 62
_WORD = (1 << 64) - 1
#: A run has so many slots at least; or one, if that is so large that no more are wanted at once.
_FEWEST_ALIKE, _LARGE_BYTES = 2, 64 * 2**10
#: So many are looked at one by one; of more, all at once.
_FEW = 32
_NUMBERS = np.arange(1024, dtype=np.uint64)


class Kind(enum.IntEnum):
    """What a slot's body holds; `shmstore.batch` gives all but PAD their meaning."""

    PAD = 0
    IPC = 1
    PLAIN = 2
    STREAM = 3


class Life(enum.IntEnum):
    """Where the producer of a ring stands."""

    CREATED = 0
    ATTACHED = 1
    CLOSED = 2
    ABORTED = 3


class Slot(NamedTuple):
    """A sealed slot, borrowed from the ring until :meth:`Ring.release`.

    Attributes
    ----------
    position, end : int
        Where its header starts, and where the next slot's does.
    sequence : int
        Number of the slot in its ring, from 0.
    kind : Kind
        What the body holds.
    row_start, rows : int
        Rows sealed in this ring before it; rows in it.
    schema_id : int
        Number of the schema that the body follows.
    skip : int
        Where in the body the record batch begins.
    body : memoryview
        The bytes, over the ring itself; read-only.
    viewed : weak reference
        To what the body and every array over it keep alive: gone once nobody looks at the slot.
    """

    position: int
    end: int
    sequence: int
    kind: Kind
    row_start: int
    rows: int
    schema_id: int
    skip: int
    body: memoryview
    viewed: weakref.ref[npt.NDArray[np.uint8]]

    @property
    def slots(self) -> int:
        """One; as a `Run` has several."""
        return 1


class Run(NamedTuple):
    """Sealed slots that lie side by side and whose headers say the same of all of them.

    Looked at with :meth:`Ring.look_ahead`; borrowed like one slot from :meth:`Ring.borrow_run` until
    :meth:`Ring.release`.

    Attributes
    ----------
    position, end : int
        Where the first one's header starts, and where the next slot's after them does.
    sequence, row_start : int
        Of the first.
    slots, rows : int
        How many they are, and the rows in all of them.
    kind, schema_id, skip : int
        Of each, as in a `Slot`.
    length : int
        Bytes of each one's body.
    memory : memoryview
        The ring's bytes from ``position`` on, headers and bodies; read-only.
    viewed : weak reference
        As of a `Slot`.
    """

    position: int
    end: int
    sequence: int
    row_start: int
    slots: int
    rows: int
    kind: Kind
    schema_id: int
    skip: int
    length: int
    memory: memoryview
    viewed: weakref.ref[npt.NDArray[np.uint8]]

    @property
    def body(self) -> memoryview:
        """All of its memory."""
        return self.memory

    @property
    def stride(self) -> int:
        """Bytes from one slot to the next."""
        return SLOT_HEADER_BYTES + align(self.length)

    @property
    def slot_rows(self) -> int:
        """Rows of each slot."""
        return self.rows // self.slots

    @property
    def first_body(self) -> memoryview:
        """The body of the first one."""
        return self.memory[SLOT_HEADER_BYTES : SLOT_HEADER_BYTES + self.length]

    def bytes_of(self, number: int, start: int, count: int) -> bytes:
        """Return a copy of ``count`` bytes from byte ``start`` on of one's body, by its number in the run."""
        place = number * self.stride + SLOT_HEADER_BYTES + start
        return bytes(self.memory[place : place + count])

    def first(self, slots: int) -> Run:
        """Return the first so many of them."""
        if slots == self.slots:
            return self
        return self._replace(
            end=self.position + slots * self.stride, slots=slots, rows=slots * self.slot_rows
        )

    def bodies(self, start: int, count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return ``count`` items that lie at byte ``start`` of each body: ``(slots, count)``, a view."""
        kind = np.dtype(dtype)
        offset = SLOT_HEADER_BYTES + start
        strides = (self.stride, kind.itemsize)
        return np.ndarray((self.slots, count), kind, self.memory, offset, strides)

    def strips(
        self, start: int, shape: tuple[int, int], stride: int, dtype: npt.DTypeLike
    ) -> npt.NDArray[Any]:
        """Return strips of items, the first at byte ``start`` of each body, one each ``stride`` bytes.

        ``shape`` is that of the strips of a body; what is returned is ``(slots, *shape)``, a view.
        """
        kind = np.dtype(dtype)
        offset = SLOT_HEADER_BYTES + start
        strides = (self.stride, stride, kind.itemsize)
        return np.ndarray((self.slots, *shape), kind, self.memory, offset, strides)


class Ring:
    """A byte ring in its own segment. One process produces (reserve, seal), one consumes (borrow, release).

    Parameters
    ----------
    segment
        The shared memory; owned by the ring from here on.

    Attributes
    ----------
    capacity : int
        Bytes for slots.
    number : int
        The ring's number within its session.
    """

    def __init__(self, segment: Segment) -> None:
        if segment.size < HEADER_BYTES + SLOT_HEADER_BYTES:
            raise BrokenError(f"{segment.path} is no ring: it has only {segment.size} bytes")
        magic, version, capacity, number = _IDENTITY.unpack_from(segment.view)
        if magic != _MAGIC or version != _VERSION:
            raise BrokenError(
                f"{segment.path} is no ring of this version of shmstore: end the recording that made it"
            )
        if capacity != segment.size - HEADER_BYTES or capacity % ALIGNMENT:
            raise BrokenError(f"{segment.path} is damaged: it claims {capacity} bytes of {segment.size}")
        self.segment = segment
        self.capacity: int = capacity
        self.number: int = number
        self._slots = segment.view[HEADER_BYTES:]
        self._words = self._slots.cast("Q")
        self._producer = segment.words(_PRODUCER_OFFSET, _WORDS)
        self._consumer = segment.words(_CONSUMER_OFFSET, _WORDS)
        self._cursor: int = self._consumer[_C_TAIL]
        self._borrowed = 0
        if self._cursor % ALIGNMENT:
            raise BrokenError(f"ring {number} is damaged: it claims to be released up to {self._cursor}")

    @classmethod
    def create(cls, path: Path, capacity: int, number: int) -> Self:
        """Make a ring of at least ``capacity`` bytes for slots, reserved and pre-faulted."""
        capacity = align(max(capacity, 4 * SLOT_HEADER_BYTES))
        segment = Segment.create(path, HEADER_BYTES + capacity)
        _IDENTITY.pack_into(segment.view, 0, _MAGIC, _VERSION, capacity, number)
        return cls(segment)

    @classmethod
    def attach(cls, path: Path, *, private: bool = False) -> Self:
        """Map an existing ring; ``private`` as for `Segment.attach`."""
        try:
            segment = Segment.attach(path, private=private)
        except StorageError as error:
            if error.errno != errno.EINVAL:
                raise
            raise BrokenError(f"{path} is no ring: it is empty") from None
        try:
            return cls(segment)
        except BrokenError:
            segment.close()
            raise

    # -- the producer's side ---------------------------------------------------------------------------------

    def claim(self, pid: int) -> bool:
        """Become the ring's only producer, until death; ``False`` if another living process is."""
        if not self.segment.try_lock(_PRODUCER_LOCK):
            return False
        self._producer[_P_PID] = pid
        self._catch_up()
        if self._producer[_P_LIFE] == Life.CREATED:
            self._producer[_P_LIFE] = Life.ATTACHED
        return True

    def _catch_up(self) -> None:
        """Count what a producer before sealed when it was killed before it could count that."""
        words = self._producer
        while (header := self._header_at(words[_P_HEAD])) is not None:
            kind, position, sequence, length, row_start, rows, *_ = header
            if kind != Kind.PAD:
                words[_P_SEQUENCE] = sequence + 1
                words[_P_SEALED_ROWS] = row_start + rows
                words[_P_SEALED_BYTES] = words[_P_BYTES_THEN]
            words[_P_HEAD] = position + SLOT_HEADER_BYTES + align(length)

    @property
    def largest_body(self) -> int:
        """Bytes of the largest body that the ring can ever hold."""
        return self.capacity - SLOT_HEADER_BYTES

    @property
    def position(self) -> int:
        """Where the next slot's header will stand, or stands once reserved."""
        position: int = self._producer[_P_HEAD]
        return position

    def reserve(self, length: int) -> memoryview | None:
        """Find room for a body of ``length`` bytes; nothing is visible until :meth:`seal`.

        Returns
        -------
        memoryview or None
            The writable body, borrowed until sealed or forgotten; ``None`` while the ring is too full.

        Raises
        ------
        BatchTooLargeError
            The ring could not hold it even when empty.
        """
        need = SLOT_HEADER_BYTES + align(length)
        if need > self.capacity:
            raise BatchTooLargeError(
                f"{length} bytes do not fit a ring of {self.capacity}: set ring_bytes to at least "
                f"{need + HEADER_BYTES}"
            )
        head: int = self._producer[_P_HEAD]
        used = head - self._consumer[_C_TAIL]
        if not 0 <= used <= self.capacity or (head | used) % ALIGNMENT:
            raise BrokenError(
                f"ring {self.number} is damaged: it claims {used} of {self.capacity} bytes in use, up to "
                f"{head}"
            )
        place = head % self.capacity
        room_to_end = self.capacity - place
        if need > room_to_end:
            if used + room_to_end > self.capacity:
                return None
            # The lap's end is filled first and on its own, so that it can be released while the producer
            # waits.
            pad = _HEADER.pack(_SLOT_MAGIC, Kind.PAD, 0, head, 0, room_to_end - SLOT_HEADER_BYTES, 0, 0, 0, 0)
            self._write_header(head, pad)
            step("producer.pad_written")
            head += room_to_end
            used += room_to_end
            place = 0
            self._producer[_P_HEAD] = head
        if used + need > self.capacity:
            return None
        start = place + SLOT_HEADER_BYTES
        return self._slots[start : start + length]

    def seal(self, kind: Kind, length: int, rows: int, schema_id: int, skip: int = 0) -> int:
        """Make the slot reserved last visible to the consumer; ``length`` may be less than what was reserved.

        Returns
        -------
        int
            Its sequence number. Never reads the body, so the cost does not depend on its length.

        Raises
        ------
        BrokenError
            The ring's counts are damaged; nothing is sealed.
        """
        words = self._producer
        head: int = words[_P_HEAD]
        sequence: int = words[_P_SEQUENCE]
        row_start: int = words[_P_SEALED_ROWS]
        if head | sequence | row_start >= _IMPOSSIBLE:
            raise BrokenError(
                f"ring {self.number} is damaged: it claims {sequence} batches of {row_start} rows, up to "
                f"{head}"
            )
        size: int = (words[_P_SEALED_BYTES] + length) & _WORD
        words[_P_BYTES_THEN] = size  # no slot tells it, as it does its rows
        self._write_header(
            head,
            _HEADER.pack(_SLOT_MAGIC, kind, 0, head, sequence, length, row_start, rows, schema_id, skip),
        )
        step("producer.sealed")
        words[_P_SEQUENCE] = sequence + 1
        step("producer.half_counted")
        words[_P_SEALED_ROWS] = row_start + rows
        words[_P_SEALED_BYTES] = size
        step("producer.counted")
        words[_P_HEAD] = head + SLOT_HEADER_BYTES + align(length)
        return sequence

    def _write_header(self, head: int, header: bytes) -> None:
        place = head % self.capacity
        self._slots[place : place + _SEAL_AT] = header + zlib.crc32(header).to_bytes(4, "little")
        step("producer.header_written")
        self._words[place // 8 + 7] = head ^ _SEAL  # last: from here on the slot is sealed

    def count_dropped(self, rows: int) -> None:
        """Count rows that the policy ``drop_newest`` threw away."""
        self._count(_P_DROPPED_ROWS, rows)

    def count_rejected(self, rows: int) -> None:
        """Count rows that were refused with an error."""
        self._count(_P_REJECTED_ROWS, rows)

    def count_refused(self, rows: int) -> None:
        """Count rows that were sealed, but that the consumer did not take at the end, as rejected instead."""
        self._count(_P_SEALED_ROWS, -rows)
        self._count(_P_REJECTED_ROWS, rows)

    def _count(self, word: int, more: int) -> None:
        # Around the end of the word, should it be damaged: to count must not fail.
        self._producer[word] = (self._producer[word] + more) & _WORD

    def set_waiting(self, waiting: bool) -> None:
        """Tell the consumer whether it should say when space comes free."""
        self._producer[_P_WAITING] = int(waiting)

    def end(self, life: Life) -> None:
        """Tell the consumer that nothing more comes, and give the place of the producer back."""
        self._producer[_P_LIFE] = life
        step("producer.ended")
        self.segment.unlock(_PRODUCER_LOCK)

    def taken_at_end(self) -> int | None:
        """Number of slots that were taken when the recording ended; ``None`` while it goes on."""
        final: int = self._consumer[_C_FINAL]
        return final - 1 if final else None

    # -- both sides ------------------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Bytes between the oldest slot not released and the newest."""
        used: int = self._producer[_P_HEAD] - self._consumer[_C_TAIL]
        return used

    @property
    def life(self) -> Life:
        """Where the producer stands, by its own word."""
        word: int = self._producer[_P_LIFE]
        if word > Life.ABORTED:
            raise BrokenError(f"ring {self.number} is damaged: its producer's state reads {word}")
        return Life(word)

    @property
    def waiting(self) -> bool:
        """Whether the producer waits for space."""
        return bool(self._producer[_P_WAITING])

    @property
    def producer_pid(self) -> int:
        """Process that produces, 0 before the first."""
        pid: int = self._producer[_P_PID]
        return pid

    @property
    def producer_lives(self) -> bool:
        """Whether a living process holds the place of the producer; asked of the kernel, by the consumer."""
        return self.segment.is_locked(_PRODUCER_LOCK)

    @property
    def sealed_slots(self) -> int:
        """Slots sealed so far, by the producer's word."""
        count: int = self._producer[_P_SEQUENCE]
        return count

    @property
    def sealed_rows(self) -> int:
        """Rows sealed so far."""
        rows: int = self._producer[_P_SEALED_ROWS]
        return rows

    @property
    def sealed_bytes(self) -> int:
        """Bytes of the bodies sealed so far."""
        size: int = self._producer[_P_SEALED_BYTES]
        return size

    @property
    def dropped_rows(self) -> int:
        """Rows dropped by policy so far."""
        rows: int = self._producer[_P_DROPPED_ROWS]
        return rows

    @property
    def rejected_rows(self) -> int:
        """Rows refused so far."""
        rows: int = self._producer[_P_REJECTED_ROWS]
        return rows

    @property
    def high_water(self) -> int:
        """Highest use in bytes that the consumer saw."""
        high: int = self._consumer[_C_HIGH_WATER]
        return high

    # -- the consumer's side ---------------------------------------------------------------------------------

    def borrow(self) -> Slot | None:
        """Take the next sealed slot, in order; ``None`` when there is none yet.

        The body stays valid until :meth:`release` has passed its end.

        Raises
        ------
        BrokenError
            There is no slot where the producer counts one, or its header carries its seal but does not hold
            together: the ring is damaged from here on.
        """
        counted: int = self._producer[_P_HEAD]  # looked at first: it is stored after the seal
        while (header := self._header_at(self._cursor)) is not None:
            kind, position, sequence, length, row_start, rows, schema_id, skip = header
            end = position + SLOT_HEADER_BYTES + align(length)
            self._cursor = end
            if kind == Kind.PAD:
                if not self._borrowed:
                    self._consumer[_C_TAIL] = end
                continue
            self._count_borrowed()
            start = position % self.capacity + SLOT_HEADER_BYTES
            # An exporter of its own: over a mere slice, numpy's views would hold on to the whole mapping.
            exporter: npt.NDArray[np.uint8] = (
                np.frombuffer(self._slots, np.uint8, length, start) if length else np.empty(0, np.uint8)
            )
            body = exporter.data.toreadonly()
            viewed = weakref.ref(exporter)
            return Slot(position, end, sequence, Kind(kind), row_start, rows, schema_id, skip, body, viewed)
        if self._cursor < counted:
            # Once more: where the processor lets loads overtake one another, the seal may be seen last.
            if self._header_at(self._cursor) is not None:
                return self.borrow()
            raise BrokenError(
                f"ring {self.number} is damaged at position {self._cursor}: no slot is sealed there, and the "
                f"producer has come to {counted}"
            )
        return None

    def _count_borrowed(self) -> None:
        used = self.used  # with what is sealed beyond what is borrowed now
        if used > self._consumer[_C_HIGH_WATER]:
            self._consumer[_C_HIGH_WATER] = used
        self._borrowed += 1

    def look_ahead(self, longest: Callable[[int, int], int], most_bytes: int) -> Run | None:
        """Look at the next slots, if two or more are alike: of one length, kind, schema, and number of rows.

        A large slot counts alone. Nothing is borrowed by that. ``None``: there are no such slots; what there
        is, :meth:`borrow` tells.

        Parameters
        ----------
        longest
            Given schema id and rows of the next slot, says how many like it are wanted; up to 1,024.
        most_bytes
            Most bytes of the ring.

        Raises
        ------
        BrokenError
            The next slot's header does not hold together.
        """
        position = self._behind_pad()
        place = position % self.capacity
        words = self._words
        if position % ALIGNMENT or words[place // 8 + 7] != position ^ _SEAL:
            return None
        stride = SLOT_HEADER_BYTES + align(words[place // 8 + 3])
        most = min(most_bytes, self.capacity - place) // stride
        follows = most > 1 and words[(place + stride) // 8 + 7] == (position + stride) ^ _SEAL
        fewest = 1 if stride >= _LARGE_BYTES else _FEWEST_ALIKE
        if not follows and fewest > 1:
            return None
        most = most if follows else 1
        header = self._header_at(position)
        if header is None or SLOT_HEADER_BYTES + align(header[3]) != stride:
            return None
        most = min(most, longest(header[6], header[5]))
        count = self._count_few_alike if most <= _FEW else self._count_alike
        slots = count(header, stride, most)
        if slots < fewest:
            return None
        kind, _, sequence, length, row_start, rows, schema_id, skip = header
        exporter: npt.NDArray[np.uint8] = np.frombuffer(self._slots, np.uint8, slots * stride, place)
        memory, viewed = exporter.data.toreadonly(), weakref.ref(exporter)
        end = position + slots * stride
        return Run(
            *(position, end, sequence, row_start, slots, slots * rows),
            *(Kind(kind), schema_id, skip, length, memory, viewed),
        )

    def _count_few_alike(self, header: tuple[int, ...], stride: int, most: int) -> int:
        """Return the same as `_count_alike`, sooner where there are few."""
        kind, position, sequence, length, row_start, rows, schema_id, skip = header
        for number in range(1, most):
            position += stride
            sequence += 1
            row_start += rows
            place = position % self.capacity
            if self._words[place // 8 + 7] != position ^ _SEAL:
                return number
            said = _HEADER.pack(
                _SLOT_MAGIC, kind, 0, position, sequence, length, row_start, rows, schema_id, skip
            )
            if self._slots[place : place + _SEAL_AT] != said + _CRC.pack(zlib.crc32(said)):
                return number
        return most

    def _count_alike(self, header: tuple[int, ...], stride: int, most: int) -> int:
        """Return how many slots from one on are sealed and have its header, but for what counts up."""
        kind, position, sequence, length, row_start, rows, schema_id, skip = header
        place = position % self.capacity
        heads: npt.NDArray[np.uint64] = np.ndarray((most, 8), "<u8", self._slots, place, (stride, 8))
        numbers = _NUMBERS[:most]
        # The seals first, each before what it seals.
        seals = heads[:, 7] == (numbers * np.uint64(stride) + np.uint64(position)) ^ np.uint64(_SEAL)
        sealed = most if seals.all() else int(seals.argmin())
        heads = heads[:sealed].copy()
        data, crcs = heads.tobytes(), (heads[:, 6] >> np.uint64(32)).tolist()
        heads[:, 6] &= np.uint64(0xFFFF_FFFF)
        first = _HEADER.pack(
            _SLOT_MAGIC, kind, 0, position, sequence, length, row_start, rows, schema_id, skip
        )
        said = np.frombuffer(first + bytes(4), "<u8")
        more = np.array([0, stride, 1, 0, rows, 0, 0], np.uint64)
        same = (heads[:, :7] == said + numbers[:sealed, None] * more).all(axis=1)
        alike = sealed if same.all() else int(same.argmin())
        for number in range(alike):
            start = number * SLOT_HEADER_BYTES
            if zlib.crc32(data[start : start + _CRC_AT]) != crcs[number]:
                return number
        return alike

    def borrow_run(self, run: Run) -> None:
        """Take slots that :meth:`look_ahead` has shown, or the first of them; nothing else since."""
        if run.position != self._behind_pad():
            raise BrokenError(f"ring {self.number} stands at {self._cursor}, not at {run.position}")
        self._cursor = run.end
        self._count_borrowed()

    def _behind_pad(self) -> int:
        """Return where the next slot stands, or will: behind the pad, if the end of a lap comes first."""
        position = self._cursor
        place = position % self.capacity
        if position % ALIGNMENT or self._words[place // 8 + 7] != position ^ _SEAL:
            return position
        end = position + SLOT_HEADER_BYTES + align(self._words[place // 8 + 3])
        if end % self.capacity:  # a pad fills the lap
            return position
        header = self._header_at(position)
        return end if header is not None and header[0] == Kind.PAD else position

    def _header_at(self, position: int) -> tuple[int, int, int, int, int, int, int, int] | None:
        """Return kind, position, sequence, length, row start, rows, schema id and skip of a sealed slot.

        ``None`` if none is sealed there.
        """
        if position % ALIGNMENT:
            raise BrokenError(f"ring {self.number} is damaged: it claims a slot at position {position}")
        place = position % self.capacity
        if self._words[place // 8 + 7] != position ^ _SEAL:
            return None
        header = bytes(self._slots[place : place + _CRC_AT])
        (crc,) = _CRC.unpack_from(self._slots, place + _CRC_AT)
        magic, kind, _, where, sequence, length, row_start, rows, schema_id, skip = _HEADER.unpack(header)
        if (
            crc != zlib.crc32(header)
            or magic != _SLOT_MAGIC
            or where != position
            or kind > Kind.STREAM
            or place + SLOT_HEADER_BYTES + align(length) > self.capacity
            or skip > length
            or position | sequence | row_start >= _IMPOSSIBLE
        ):
            raise BrokenError(
                f"ring {self.number} is damaged at position {position}: its header does not hold together"
            )
        return kind, position, sequence, length, row_start, rows, schema_id, skip

    def unreleased(self) -> tuple[int, int]:
        """Return how many sealed slots were not released yet, and their rows. Changes nothing: for onlookers.

        Raises
        ------
        BrokenError
            The ring is damaged.
        """
        position: int = self._consumer[_C_TAIL]
        last = position + self.capacity
        slots = total = 0
        while position < last and (header := self._header_at(position)) is not None:
            kind, _, _, length, _, rows, *_ = header
            position += SLOT_HEADER_BYTES + align(length)
            if kind != Kind.PAD:
                slots += 1
                total += rows
        return slots, total

    def pass_over(self, slots: int) -> None:
        """Give back unseen what is left of the first ``slots`` slots; before anything is borrowed.

        For a consumer that follows another, which had them safe and was killed before it gave them back.
        """
        while (header := self._header_at(self._cursor)) is not None:
            kind, position, sequence, length, *_ = header
            if kind != Kind.PAD and sequence >= slots:
                return
            self._cursor = position + SLOT_HEADER_BYTES + align(length)
            self._consumer[_C_TAIL] = self._cursor

    def has_sealed(self) -> bool:
        """Whether :meth:`borrow` would find a slot (or a pad) now."""
        position = self._cursor
        return bool(self._words[(position % self.capacity) // 8 + 7] == position ^ _SEAL)

    def release(self, slot: Slot | Run) -> None:
        """Give a borrowed slot (or run of slots), and all before it, back to the producer.

        Raises
        ------
        BufferError
            An array over the slot's body is still alive: releasing it would let the producer overwrite it.
        """
        slot.body.release()
        if slot.viewed() is not None:
            raise BufferError(f"an array over batch {slot.sequence} of ring {self.number} is still alive")
        self._borrowed -= 1
        # A pad that was passed since goes with the last slot before it: the producer may be waiting for that
        # space.
        self._consumer[_C_TAIL] = slot.end if self._borrowed else self._cursor

    def finish(self, taken: int) -> None:
        """Publish that exactly ``taken`` slots were taken and no further one will be."""
        self._consumer[_C_FINAL] = taken + 1

    def close(self) -> None:
        """Let go of the ring in this process; memory that arrays still look at stays mapped until they go."""
        for view in (self._words, self._slots, self._producer, self._consumer):
            with contextlib.suppress(BufferError):
                view.release()
        self.segment.close()

    def __repr__(self) -> str:
        return f"<Ring {self.number}: {self.used} of {self.capacity} bytes used>"
