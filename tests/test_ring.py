"""The ring against a model, against its own wreckage, and between real processes."""

from __future__ import annotations

import os
import signal
import struct
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from children import Child
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore import ring as ring_module
from shmstore.errors import BatchTooLargeError, BrokenError, StorageError
from shmstore.ring import HEADER_BYTES, SLOT_HEADER_BYTES, Kind, Life, Ring, Run, Slot
from shmstore.segment import Segment, align

CAPACITY = 4096
STAMP = struct.Struct("<Q")
#: Ways to look at a body; through none of them may it change.
LOOKS: list[Callable[[memoryview], Any]] = [
    lambda body: np.frombuffer(body, np.uint8)[0:20],
    np.asarray,
    lambda body: np.frombuffer(body[:800], "<f8").view(np.uint8),
    pa.py_buffer,
    lambda body: pa.py_buffer(body[0:]).slice(0, 100),
    lambda body: body[0:30],
]


def body_of(sequence: int, length: int) -> bytes:
    """A body that says which it is: its sequence number, and a pattern that follows from it."""
    pattern = np.arange(length) * 7 + sequence * 31
    return (STAMP.pack(sequence) + pattern.astype(np.uint8).tobytes())[:length]


def seal(ring: Ring, length: int, rows: int = 1) -> int | None:
    """Put one slot, if there is room."""
    body = ring.reserve(length)
    if body is None:
        return None
    body[:] = body_of(ring.sealed_slots, length)
    body.release()
    return ring.seal(Kind.IPC, length, rows, 5)


def take(ring: Ring) -> Slot:
    """Borrow a slot that must be there."""
    slot = ring.borrow()
    assert slot is not None
    return slot


@pytest.fixture
def ring(shared_folder: Path) -> Iterator[Ring]:
    made = Ring.create(shared_folder / "ring-9", CAPACITY, 9)
    yield made
    made.close()


# -- a slot's life ---------------------------------------------------------------------------------------


def test_a_slot_comes_out_as_it_went_in(ring: Ring) -> None:
    body = ring.reserve(100)
    assert body is not None
    assert len(body) == 100
    body[:] = body_of(0, 100)
    assert ring.seal(Kind.PLAIN, 100, 17, 5, skip=32) == 0
    slot = take(ring)
    assert bytes(slot.body) == body_of(0, 100)
    assert slot[:-2] == (0, 192, 0, Kind.PLAIN, 0, 17, 5, 32)
    assert slot.body.readonly
    assert ring.borrow() is None
    assert (ring.used, ring.high_water) == (192, 192)
    body.release()
    ring.release(slot)
    assert (ring.used, ring.high_water) == (0, 192)


def test_the_highest_use_counts_what_was_not_borrowed_yet(ring: Ring) -> None:
    for _ in range(3):
        seal(ring, 64)
    slot = take(ring)
    assert ring.high_water == ring.used == 3 * 128
    ring.release(slot)
    assert (ring.used, ring.high_water) == (2 * 128, 3 * 128)


def test_bodies_are_aligned_and_rows_and_sequences_count_up(ring: Ring) -> None:
    for length in (0, 1, 63, 64, 65):
        seal(ring, length, rows=length)
    slots = [take(ring) for _ in range(5)]
    assert [slot.sequence for slot in slots] == [0, 1, 2, 3, 4]
    assert [slot.row_start for slot in slots] == [0, 0, 1, 64, 128]
    assert [slot.position for slot in slots[1:]] == [slot.end for slot in slots[:-1]]
    for slot in slots:
        array = np.frombuffer(slot.body, np.uint8)
        assert not len(array) or array.ctypes.data % 64 == 0
        del array
        assert bytes(slot.body) == body_of(slot.sequence, len(slot.body))
        ring.release(slot)
    assert (ring.sealed_slots, ring.sealed_rows, ring.sealed_bytes) == (5, 193, 193)


def test_what_is_not_sealed_is_invisible(ring: Ring, shared_folder: Path) -> None:
    consumer = Ring.attach(shared_folder / "ring-9")
    body = ring.reserve(200)
    assert body is not None
    body[:] = b"x" * 200
    assert consumer.borrow() is None
    assert not consumer.has_sealed()
    body.release()
    ring.seal(Kind.IPC, 200, 1, 0)
    assert consumer.has_sealed()
    assert take(consumer).rows == 1
    consumer.close()


def test_a_loan_given_back_leaves_its_space_to_the_next(ring: Ring) -> None:
    """The five mistakes of queues like this one: an exception must not lose the slot."""
    for _ in range(100):
        body = ring.reserve(ring.largest_body)
        assert body is not None
        body[:3] = b"bad"
        body.release()
    assert ring.borrow() is None
    assert ring.used == 0
    assert seal(ring, ring.largest_body) == 0
    slot = take(ring)
    assert bytes(slot.body) == body_of(0, ring.largest_body)


def test_sealing_less_than_was_reserved_frees_the_rest(ring: Ring) -> None:
    body = ring.reserve(3000)
    assert body is not None
    body[:10] = body_of(0, 10)
    body.release()
    ring.seal(Kind.IPC, 10, 1, 0)
    assert ring.used == 128
    assert seal(ring, 3000) == 1
    assert bytes(take(ring).body) == body_of(0, 10)
    assert bytes(take(ring).body) == body_of(1, 3000)


def test_the_last_slot_is_handed_out(ring: Ring) -> None:
    """No slot is kept back to tell full from empty."""
    for expected in range(CAPACITY // 128):
        assert seal(ring, 64) == expected
    assert ring.used == ring.capacity
    assert seal(ring, 0) is None
    ring.release(take(ring))
    assert seal(ring, 64) == CAPACITY // 128


@pytest.mark.parametrize("length", [CAPACITY - SLOT_HEADER_BYTES, CAPACITY - SLOT_HEADER_BYTES - 63])
def test_a_slot_as_large_as_the_ring_fits_again_and_again(ring: Ring, length: int) -> None:
    for lap in range(5):
        assert seal(ring, length) == lap
        assert seal(ring, 0) is None
        slot = take(ring)
        assert bytes(slot.body) == body_of(lap, length)
        ring.release(slot)


def test_a_slot_larger_than_the_ring_is_refused_with_the_size_that_helps(ring: Ring) -> None:
    with pytest.raises(BatchTooLargeError, match="set ring_bytes to at least") as caught:
        ring.reserve(ring.largest_body + 1)
    enough = int(str(caught.value).split()[-1])
    assert enough - HEADER_BYTES >= ring.largest_body + 1 + SLOT_HEADER_BYTES
    assert ring.used == 0
    assert seal(ring, 10) == 0


# -- the wrap --------------------------------------------------------------------------------------------


def test_a_slot_that_does_not_fit_the_lap_begins_the_next(ring: Ring) -> None:
    seal(ring, 3000)
    ring.release(take(ring))
    assert seal(ring, 2000) == 1  # 1,024 bytes are left of the lap
    slot = take(ring)
    assert slot.position == CAPACITY
    assert bytes(slot.body) == body_of(1, 2000)
    assert (slot.sequence, slot.row_start) == (1, 1)  # a pad is no slot, and has no rows
    ring.release(slot)
    assert ring.used == 0


def test_a_pad_is_released_even_if_the_slot_behind_it_has_to_wait(ring: Ring) -> None:
    seal(ring, 1984)
    seal(ring, 1024)
    first = take(ring)
    assert seal(ring, ring.largest_body) is None  # only the pad is written
    assert ring.used == ring.capacity
    second = take(ring)
    ring.release(first)
    ring.release(second)
    assert ring.borrow() is None
    assert ring.used == 0
    assert seal(ring, ring.largest_body) == 2
    assert bytes(take(ring).body) == body_of(2, ring.largest_body)


def test_a_pad_passed_while_a_slot_is_borrowed_goes_with_that_slot(ring: Ring) -> None:
    seal(ring, 3000)
    slot = take(ring)
    assert seal(ring, 2000) is None
    assert ring.borrow() is None
    assert ring.used == ring.capacity
    ring.release(slot)
    assert ring.used == 0


def test_a_pad_as_small_as_a_header(ring: Ring) -> None:
    seal(ring, CAPACITY - 2 * SLOT_HEADER_BYTES)
    ring.release(take(ring))
    assert seal(ring, 1) == 1
    slot = take(ring)
    assert (slot.position, bytes(slot.body)) == (CAPACITY, body_of(1, 1))


def test_a_header_of_an_earlier_lap_is_never_mistaken(ring: Ring) -> None:
    """All places hold sealed headers of earlier laps; none of them may be borrowed again."""
    for lap in range(6):
        for _ in range(CAPACITY // 256):
            assert ring.borrow() is None
            assert not ring.has_sealed()
            assert seal(ring, 192) is not None
            slot = take(ring)
            assert slot.position // CAPACITY == lap
            ring.release(slot)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, CAPACITY - SLOT_HEADER_BYTES), st.integers(0, 3), st.integers(0, 3)),
        max_size=120,
    ),
    st.sampled_from([CAPACITY, CAPACITY - 64, 1088]),
)
def test_slots_of_any_size_come_out_once_in_order_and_whole(
    steps: list[tuple[int, int, int]], capacity: int
) -> None:
    """Producer and consumer interleaved, with any number of slots borrowed, against a list."""
    with tempfile.TemporaryDirectory(prefix="shmstore-test-", dir="/dev/shm") as folder:
        producer = Ring.create(Path(folder) / "ring", capacity, 0)
        consumer = Ring.attach(Path(folder) / "ring")
        sealed: deque[tuple[int, int]] = deque()
        borrowed: deque[Slot] = deque()

        def borrow() -> bool:
            slot = consumer.borrow()
            assert (slot is None) == (not sealed)
            if slot is None:
                return False
            sequence, length = sealed.popleft()
            assert (slot.sequence, len(slot.body)) == (sequence, length)
            borrowed.append(slot)
            return True

        def release() -> None:
            slot = borrowed.popleft()
            assert bytes(slot.body) == body_of(slot.sequence, len(slot.body))  # still, after all that came
            consumer.release(slot)

        for length, borrows, releases in steps:
            size = min(length, producer.largest_body)
            sequence = seal(producer, size)
            if sequence is not None:
                sealed.append((sequence, size))
            elif not sealed and not borrowed:
                borrow()  # passes the pad
                assert seal(producer, size) is not None  # an empty ring takes everything
                sealed.append((producer.sealed_slots - 1, size))
            for _ in range(borrows):
                borrow()
            for _ in range(min(releases, len(borrowed))):
                release()
        while borrow():
            pass
        while borrowed:
            release()
        consumer.borrow()
        assert producer.used == 0
        producer.close()
        consumer.close()


# -- who looks at a slot ---------------------------------------------------------------------------------


def test_a_borrowed_slot_is_not_overwritten_until_it_is_released(ring: Ring) -> None:
    seal(ring, 1000)
    kept = take(ring)
    while seal(ring, 500) is not None:
        pass
    for _ in range(20):  # others come and go behind it; the space before it stays taken
        while (slot := ring.borrow()) is not None:
            assert bytes(slot.body) == body_of(slot.sequence, 500)
        assert seal(ring, 500) is None
    assert bytes(kept.body) == body_of(0, 1000)


@pytest.mark.parametrize("look", LOOKS)
def test_releasing_under_a_living_view_is_refused(ring: Ring, look: Callable[[memoryview], Any]) -> None:
    seal(ring, 1000)
    slot = take(ring)
    view = look(slot.body)
    for _ in range(2):
        with pytest.raises(BufferError):
            ring.release(slot)
    assert ring.used > 0
    assert bytes(memoryview(view)[:10]) == body_of(0, 1000)[:10]
    del view
    ring.release(slot)
    assert ring.used == 0
    with pytest.raises(ValueError, match="released"):
        bytes(slot.body)


def test_an_array_outlives_the_ring(shared_folder: Path) -> None:
    ring = Ring.create(shared_folder / "ring", CAPACITY, 0)
    seal(ring, 100)
    array = np.frombuffer(take(ring).body, np.uint8)
    ring.close()
    ring.segment.unlink()
    assert bytes(array) == body_of(0, 100)


# -- wreckage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", range(0, 56, 4))
def test_a_damaged_header_is_noticed(ring: Ring, offset: int) -> None:
    seal(ring, 100)
    ring.segment.view[HEADER_BYTES + offset] ^= 0x40
    with pytest.raises(BrokenError, match="damaged at position 0"):
        ring.borrow()


def test_a_header_that_points_outside_is_refused_though_its_checksum_is_right(ring: Ring) -> None:
    body = ring.reserve(100)
    assert body is not None
    body.release()
    ring.seal(Kind.IPC, CAPACITY, 1, 0)
    with pytest.raises(BrokenError, match="does not hold together"):
        ring.borrow()


def test_a_slot_of_a_kind_that_nobody_knows_is_refused(ring: Ring) -> None:
    body = ring.reserve(100)
    assert body is not None
    body.release()
    ring.seal(cast(Kind, max(Kind) + 1), 100, 1, 0)
    with pytest.raises(BrokenError, match="does not hold together"):
        ring.borrow()


def test_a_message_that_begins_outside_its_body_is_refused(ring: Ring) -> None:
    body = ring.reserve(100)
    assert body is not None
    body.release()
    ring.seal(Kind.IPC, 100, 1, 0, skip=101)
    with pytest.raises(BrokenError, match="does not hold together"):
        ring.borrow()


def test_a_damaged_position_of_the_consumer_is_noticed_by_the_producer(ring: Ring) -> None:
    ring.segment.words(2048, 1)[0] = 2 * CAPACITY
    with pytest.raises(BrokenError, match="damaged"):
        ring.reserve(10)


def test_a_slot_that_the_producer_counts_and_that_is_not_there_is_noticed(ring: Ring) -> None:
    """Its seal is gone: to wait for it would be to wait for ever."""
    for _ in range(3):
        seal(ring, 64)
    ring.release(take(ring))
    ring.segment.view[HEADER_BYTES + 128 + 56] ^= 1
    with pytest.raises(BrokenError, match="damaged at position 128: no slot is sealed there"):
        ring.borrow()


def test_a_seal_that_is_seen_after_the_count_is_waited_for(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a processor where loads overtake one another."""
    seal(ring, 64)
    looks = []

    def late(position: int) -> Any:
        looks.append(position)
        return Ring._header_at(ring, position) if len(looks) > 1 else None

    monkeypatch.setattr(ring, "_header_at", late)
    assert take(ring).sequence == 0
    assert ring.borrow() is None


@pytest.mark.parametrize("where", [13, CAPACITY - 3, 2**64 - 1])
def test_a_position_where_no_slot_can_be_is_refused_by_all(
    ring: Ring, shared_folder: Path, where: int
) -> None:
    onlooker = Ring.attach(shared_folder / "ring-9")
    producer, consumer = ring.segment.words(1024, 1), ring.segment.words(2048, 1)
    producer[0] = where
    with pytest.raises(BrokenError, match="damaged"):
        ring.claim(os.getpid())
    with pytest.raises(BrokenError, match="damaged"):
        ring.reserve(10)
    consumer[0] = where
    with pytest.raises(BrokenError, match="damaged"):
        ring.reserve(10)
    with pytest.raises(BrokenError, match="damaged"):
        onlooker.unreleased()
    with pytest.raises(BrokenError, match=f"released up to {where}"):
        Ring.attach(shared_folder / "ring-9")
    onlooker.close()


@pytest.mark.parametrize("word", [2, 3])
def test_counts_that_cannot_be_are_refused_before_a_slot_is_sealed(ring: Ring, word: int) -> None:
    ring.segment.words(1024, 16)[word] = 2**64 - 1
    assert ring.reserve(10) is not None
    with pytest.raises(BrokenError, match="damaged: it claims"):
        ring.seal(Kind.IPC, 10, 1, 0)
    assert ring.borrow() is None


def test_counting_goes_on_whatever_the_counts_are(ring: Ring) -> None:
    words = ring.segment.words(1024, 16)
    words[5] = words[6] = words[7] = 2**64 - 1
    ring.count_dropped(2)
    ring.count_rejected(2)
    ring.count_refused(5)
    assert (ring.dropped_rows, ring.rejected_rows) == (1, 6)
    words[3] = 0
    seal(ring, 64)
    assert ring.sealed_bytes == 63


@pytest.mark.parametrize("at", [16, 32])
def test_a_header_that_counts_too_far_is_refused_though_its_checksum_is_right(ring: Ring, at: int) -> None:
    seal(ring, 64)
    view = ring.segment.view
    struct.pack_into("<Q", view, HEADER_BYTES + at, 2**63)
    struct.pack_into("<I", view, HEADER_BYTES + 52, zlib.crc32(view[HEADER_BYTES : HEADER_BYTES + 52]))
    with pytest.raises(BrokenError, match="does not hold together"):
        ring.borrow()


@pytest.mark.parametrize(
    ("offset", "message"), [(0, "no ring of this version"), (8, "no ring of this version"), (17, "damaged")]
)
def test_a_segment_that_is_no_ring_is_refused(shared_folder: Path, offset: int, message: str) -> None:
    ring = Ring.create(shared_folder / "ring", CAPACITY, 0)
    ring.segment.view[offset] ^= 1
    ring.close()
    with pytest.raises(BrokenError, match=message):
        Ring.attach(shared_folder / "ring")
    assert str(shared_folder) not in Path("/proc/self/maps").read_text()


def test_a_segment_too_small_for_a_ring_is_refused(shared_folder: Path) -> None:
    Segment.create(shared_folder / "ring", 100).close()
    with pytest.raises(BrokenError, match="only 100 bytes"):
        Ring.attach(shared_folder / "ring")
    with pytest.raises(StorageError, match="recording has ended"):
        Ring.attach(shared_folder / "none")
    (shared_folder / "empty").touch()
    with pytest.raises(BrokenError, match="is no ring: it is empty"):
        Ring.attach(shared_folder / "empty")


def test_a_strange_state_of_the_producer_is_refused(ring: Ring) -> None:
    ring.segment.words(1024, 2)[1] = 77
    with pytest.raises(BrokenError, match="77"):
        _ = ring.life


def test_an_onlooker_counts_what_was_not_released_and_changes_nothing(ring: Ring) -> None:
    sealed = 0
    while seal(ring, 900, rows=3) is not None:
        sealed += 1
    assert ring.unreleased() == (sealed, 3 * sealed)
    first = take(ring)
    assert ring.unreleased() == (sealed, 3 * sealed)
    ring.release(first)
    before = bytes(ring.segment.view)
    assert ring.unreleased() == (sealed - 1, 3 * sealed - 3)
    assert bytes(ring.segment.view) == before
    while (slot := ring.borrow()) is not None:
        ring.release(slot)
    assert ring.unreleased() == (0, 0)


def test_an_onlooker_does_not_count_the_pad_at_the_end_of_a_lap(ring: Ring) -> None:
    for _ in range(3):
        seal(ring, 1000)
        ring.release(take(ring))
    assert ring.reserve(1000) is not None  # pads the lap, and is never sealed
    assert ring.used > 0
    assert ring.unreleased() == (0, 0)


def test_an_onlooker_names_a_damaged_ring(ring: Ring) -> None:
    seal(ring, 100)
    ring.segment.view[HEADER_BYTES + 8] ^= 1
    with pytest.raises(BrokenError, match="damaged at position 0"):
        ring.unreleased()
    ring.segment.words(2048, 1)[0] = 3
    with pytest.raises(BrokenError, match="a slot at position 3"):
        ring.unreleased()


# -- who follows one that was killed ---------------------------------------------------------------------


def words_of(ring: Ring) -> tuple[int, int, int, int]:
    """Return the next position, slots and rows by the producer's word, and what the consumer gave back."""
    return ring.position, ring.sealed_slots, ring.sealed_rows, ring.position - ring.used


@pytest.mark.parametrize("slots", range(6))
def test_slots_that_were_safe_are_passed_over(ring: Ring, shared_folder: Path, slots: int) -> None:
    for _ in range(5):
        seal(ring, 192, rows=3)
    follower = Ring.attach(shared_folder / "ring-9")
    follower.pass_over(slots)
    assert ring.used == (5 - slots) * 256
    assert [take(follower).sequence for _ in range(5 - slots)] == list(range(slots, 5))
    assert follower.borrow() is None
    follower.close()


def test_slots_that_were_given_back_already_are_no_matter(ring: Ring, shared_folder: Path) -> None:
    for _ in range(4):
        seal(ring, 192)
    for _ in range(2):
        ring.release(take(ring))
    follower = Ring.attach(shared_folder / "ring-9")
    follower.pass_over(1)
    assert take(follower).sequence == 2
    follower.close()


def test_a_pad_among_them_or_behind_them_is_passed_over_too(ring: Ring, shared_folder: Path) -> None:
    for length in (1984, 1024):
        seal(ring, length)
    ring.release(take(ring))
    seal(ring, 1500)  # behind a pad
    follower = Ring.attach(shared_folder / "ring-9")
    follower.pass_over(2)
    assert ring.used == 64 + align(1500)
    slot = take(follower)
    assert (slot.sequence, slot.position, bytes(slot.body)) == (2, CAPACITY, body_of(2, 1500))
    follower.release(slot)
    follower.close()
    assert seal(ring, 3000) is None  # only a pad fits, and its place
    follower = Ring.attach(shared_folder / "ring-9")
    follower.pass_over(3)
    assert ring.used == 0
    assert not follower.has_sealed()
    assert seal(ring, 3000) == 3
    assert take(follower).sequence == 3
    follower.close()


def test_a_damaged_ring_is_not_passed_over(ring: Ring, shared_folder: Path) -> None:
    for _ in range(2):
        seal(ring, 192)
    ring.segment.view[HEADER_BYTES + 256 + 8] ^= 1
    follower = Ring.attach(shared_folder / "ring-9")
    with pytest.raises(BrokenError, match="damaged at position 256"):
        follower.pass_over(2)
    assert ring.used == 256  # what came before is given back
    follower.close()


#: The producer's words in the order in which sealing changes them: slots, rows, bytes, next position.
SEALED_WORDS = (2, 3, 7, 0)


@pytest.mark.parametrize("counted", range(5))
def test_a_producer_that_follows_counts_what_was_sealed(
    ring: Ring, shared_folder: Path, counted: int
) -> None:
    """The one before was killed when it had sealed, and changed only the first of its words."""
    assert ring.claim(1)
    seal(ring, 192, rows=3)
    words = ring.segment.words(1024, 16)
    before = words[:].tolist()
    seal(ring, 500, rows=5)
    for word in SEALED_WORDS[counted:]:
        words[word] = before[word]
    words.release()
    ring.end(Life.ATTACHED)  # its lock goes with it
    follower = Ring.attach(shared_folder / "ring-9")
    assert follower.claim(2)
    assert words_of(follower) == (256 + 64 + 512, 2, 8, 0)
    assert follower.sealed_bytes == 192 + 500
    assert seal(follower, 100) == 2
    assert [bytes(take(ring).body) for _ in range(3)] == [body_of(0, 192), body_of(1, 500), body_of(2, 100)]
    follower.close()


def test_a_producer_that_follows_counts_a_pad(ring: Ring, shared_folder: Path) -> None:
    assert ring.claim(1)
    seal(ring, 3000)
    words = ring.segment.words(1024, 16)
    head = words[0]
    assert seal(ring, 2000) is None
    words[0] = head  # it was killed before it could say where the next lap begins
    words.release()
    ring.end(Life.ATTACHED)
    follower = Ring.attach(shared_folder / "ring-9")
    assert follower.claim(2)
    assert words_of(follower) == (CAPACITY, 1, 1, 0)
    assert follower.sealed_bytes == 3000
    ring.release(take(ring))
    assert ring.borrow() is None
    assert seal(follower, 2000) == 1
    assert bytes(take(ring).body) == body_of(1, 2000)
    follower.close()


def test_a_producer_killed_when_it_had_just_sealed_loses_nothing(ring: Ring, shared_folder: Path) -> None:
    with Child(
        "import os, signal",
        "from shmstore.ring import Kind, Ring",
        f"ring = Ring.attach(Path({str(shared_folder / 'ring-9')!r}))",
        "ring.claim(os.getpid())",
        "write = Ring._write_header",
        "def write_and_die(self, *arguments):",
        "    write(self, *arguments)",
        "    os.kill(os.getpid(), signal.SIGKILL)",
        "Ring._write_header = write_and_die",
        "ring.reserve(5)[:] = b'first'",
        "ring.seal(Kind.IPC, 5, 3, 0)",
    ) as child:
        assert child.process.wait(60) == -signal.SIGKILL
    assert (ring.sealed_slots, ring.has_sealed()) == (0, True)
    assert ring.claim(os.getpid())
    assert (ring.sealed_slots, ring.sealed_rows) == (1, 3)
    assert seal(ring, 100) == 1
    assert [bytes(take(ring).body) for _ in range(2)] == [b"first", body_of(1, 100)]


def test_what_is_done_to_a_ring_in_private_is_for_oneself(ring: Ring, shared_folder: Path) -> None:
    for _ in range(3):
        seal(ring, 192)
    before = (shared_folder / "ring-9").read_bytes()
    private = Ring.attach(shared_folder / "ring-9", private=True)
    private.pass_over(1)
    for _ in range(2):
        private.release(take(private))
    assert private.used == 0
    private.finish(3)
    assert (shared_folder / "ring-9").read_bytes() == before
    assert (ring.used, ring.taken_at_end()) == (3 * 256, None)
    private.close()


# -- two processes ---------------------------------------------------------------------------------------


def test_a_ring_has_one_producer_until_that_is_killed(ring: Ring, shared_folder: Path) -> None:
    path = shared_folder / "ring-9"
    with Child(
        "import os",
        "from shmstore.ring import Ring",
        f"ring = Ring.attach(Path({str(path)!r}))",
        "say(ring.claim(os.getpid()))",
        "wait()",
    ) as child:
        assert child.hear() == "True"
        assert ring.producer_lives
        assert (ring.producer_pid, ring.life) == (child.pid, Life.ATTACHED)
        second = Ring.attach(path)
        assert not second.claim(os.getpid())
        assert ring.producer_pid == child.pid
        child.end(signal.SIGKILL)
        assert not ring.producer_lives
        assert second.claim(os.getpid())
        assert ring.producer_pid == os.getpid()
        second.end(Life.CLOSED)
        assert not ring.producer_lives
        assert ring.life == Life.CLOSED
        second.close()


def test_a_producer_killed_within_a_loan_leaves_what_it_sealed_and_nothing_else(
    ring: Ring, shared_folder: Path
) -> None:
    with Child(
        "import os",
        "from shmstore.ring import Kind, Ring",
        f"ring = Ring.attach(Path({str(shared_folder / 'ring-9')!r}))",
        "ring.claim(os.getpid())",
        "ring.reserve(5)[:] = b'first'",
        "ring.seal(Kind.IPC, 5, 1, 0)",
        "ring.reserve(6)[:] = b'second'",
        "say('ready')",
        "wait()",
    ) as child:
        assert child.hear() == "ready"
        child.end(signal.SIGKILL)
    assert bytes(take(ring).body) == b"first"
    assert ring.borrow() is None
    assert (ring.sealed_slots, ring.sealed_rows) == (1, 1)


def test_ten_thousand_slots_through_a_small_ring_to_another_process(ring: Ring, shared_folder: Path) -> None:
    """No bell here: each side looks again, so that only the ring itself orders what they see."""
    slots = 10_000
    path = shared_folder / "ring-9"
    with Child(
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})",
        "import time",
        "from shmstore.ring import Ring",
        "from test_ring import body_of",
        f"ring = Ring.attach(Path({str(path)!r}))",
        "expected = 0",
        f"while expected < {slots}:",
        "    slot = ring.borrow()",
        "    if slot is None:",
        "        time.sleep(0)",
        "        continue",
        "    if slot.sequence != expected or bytes(slot.body) != body_of(expected, expected * 37 % 1500):",
        "        say('wrong', slot.sequence, expected, bytes(slot.body)[:8])",
        "        break",
        "    ring.release(slot)",
        "    expected += 1",
        "say('took', expected, ring.used)",
        "ring.close()",
    ) as child:
        for sequence in range(slots):
            while seal(ring, sequence * 37 % 1500) is None:
                os.sched_yield()
                if child.process.poll() is not None:
                    break
        assert child.hear() == f"took {slots} 0"
    assert ring.sealed_slots == slots


# -- counts ----------------------------------------------------------------------------------------------


def test_counts_and_words_reach_the_other_side(ring: Ring, shared_folder: Path) -> None:
    other = Ring.attach(shared_folder / "ring-9")
    ring.count_dropped(3)
    ring.count_dropped(4)
    ring.count_rejected(5)
    ring.set_waiting(True)
    assert (other.number, other.capacity) == (9, CAPACITY)
    assert (other.dropped_rows, other.rejected_rows, other.waiting) == (7, 5, True)
    ring.set_waiting(False)
    assert not other.waiting
    assert ring.taken_at_end() is None
    other.finish(0)
    assert ring.taken_at_end() == 0
    other.close()


def test_sealing_counts_bytes_with_their_header_only_as_used(ring: Ring) -> None:
    seal(ring, 100)
    seal(ring, 200)
    assert ring.sealed_bytes == 300
    assert ring.used == 2 * SLOT_HEADER_BYTES + align(100) + align(200)
    assert f"{ring.used} of {CAPACITY}" in repr(ring)


# -- runs of slots that are alike ------------------------------------------------------------------------


@pytest.fixture(params=[0, 1024], ids=["all at once", "one by one"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have headers compared in either way, however many there are."""
    monkeypatch.setattr(ring_module, "_FEW", request.param)


either_way = pytest.mark.usefixtures("few")


def look_ahead(ring: Ring, most: int = 1024, most_bytes: int = CAPACITY) -> Run | None:
    return ring.look_ahead(lambda schema_id, rows: most, most_bytes)


@either_way
def test_slots_that_are_alike_are_borrowed_together(ring: Ring) -> None:
    for _ in range(5):
        seal(ring, 100, rows=3)
    seal(ring, 100, rows=4)
    run = look_ahead(ring)
    assert run is not None
    assert run[:-2] == (0, 5 * 192, 0, 0, 5, 15, Kind.IPC, 5, 0, 100)
    assert (run.slot_rows, run.stride, bytes(run.first_body)) == (3, 192, body_of(0, 100))
    assert run.memory.readonly
    bodies = run.bodies(0, 100, np.uint8)
    assert [bytes(body) for body in bodies] == [body_of(number, 100) for number in range(5)]
    assert run.bodies(0, 1, "<u8")[:, 0].tolist() == [0, 1, 2, 3, 4]
    run = run.first(4)
    ring.borrow_run(run)
    assert (ring.high_water, ring.used) == (6 * 192, 6 * 192)
    with pytest.raises(BufferError):
        ring.release(run)  # somebody looks at it
    del bodies
    ring.release(run)
    assert ring.used == 2 * 192
    for number in (4, 5):
        slot = take(ring)
        assert (slot.sequence, bytes(slot.body)) == (number, body_of(number, 100))
        ring.release(slot)
    assert ring.used == 0


@either_way
def test_a_large_slot_is_a_run_by_itself(shared_folder: Path) -> None:
    size = 64 * 1024
    ring = Ring.create(shared_folder / "ring", 4 * size, 0)
    for _ in range(3):
        seal(ring, size, rows=2)
    small = look_ahead(ring, most=1, most_bytes=100)
    run = look_ahead(ring, most_bytes=4 * size)
    assert small is not None
    assert run is not None
    assert (small.slots, small.rows, bytes(small.first_body)) == (1, 2, body_of(0, size))
    assert run.slots == 3
    assert look_ahead(ring, most=0) is None
    ring.borrow_run(small)
    ring.release(small)
    assert take(ring).sequence == 1
    del small, run
    ring.close()


def test_who_looks_ahead_takes_nothing(ring: Ring) -> None:
    for _ in range(3):
        seal(ring, 10)
    for _ in range(2):
        assert look_ahead(ring) is not None
    for number in range(3):
        assert take(ring).sequence == number
    assert look_ahead(ring) is None


def test_a_run_that_is_no_longer_ahead_is_refused(ring: Ring) -> None:
    for _ in range(3):
        seal(ring, 10)
    run = look_ahead(ring)
    assert run is not None
    take(ring)
    with pytest.raises(BrokenError, match="ring 9"):
        ring.borrow_run(run)


@either_way
def test_a_run_is_as_long_as_is_wanted(ring: Ring) -> None:
    for _ in range(6):
        seal(ring, 10, rows=2)
    asked: list[tuple[int, int]] = []

    def three(schema_id: int, rows: int) -> int:
        asked.append((schema_id, rows))
        return 3

    run = ring.look_ahead(three, CAPACITY)
    assert run is not None
    assert (run.slots, asked) == (3, [(5, 2)])
    run = look_ahead(ring, most_bytes=4 * 128 + 100)
    assert run is not None
    assert run.slots == 4
    assert look_ahead(ring, most=1) is None
    assert look_ahead(ring, most_bytes=128) is None


@either_way
@pytest.mark.parametrize(
    ("kind", "length", "rows", "schema_id", "skip"),
    [
        (Kind.PLAIN, 100, 1, 5, 0),
        (Kind.IPC, 101, 1, 5, 0),
        (Kind.IPC, 200, 1, 5, 0),
        (Kind.IPC, 100, 2, 5, 0),
        (Kind.IPC, 100, 1, 6, 0),
        (Kind.IPC, 100, 1, 5, 8),
    ],
)
def test_a_slot_of_another_kind_ends_a_run(
    ring: Ring, kind: Kind, length: int, rows: int, schema_id: int, skip: int
) -> None:
    for _ in range(3):
        seal(ring, 100)
    body = ring.reserve(length)
    assert body is not None
    ring.seal(kind, length, rows, schema_id, skip)
    for _ in range(3):
        seal(ring, 100)
    run = look_ahead(ring)
    assert run is not None
    assert run.slots == 3
    ring.borrow_run(run)
    assert take(ring).sequence == 3


@either_way
def test_a_run_ends_with_the_lap(ring: Ring) -> None:
    """Slots of 192 bytes: 21 to a lap, and a pad of 64."""
    for _ in range(15):
        seal(ring, 100)
        ring.release(take(ring))
    for _ in range(10):
        seal(ring, 100)
    lengths = []
    while (run := look_ahead(ring)) is not None:
        ring.borrow_run(run)
        lengths.append(run.slots)
        assert ring.look_ahead(lambda *_: 10, CAPACITY) is None or run.slots == 6
        if run.slots == 6:  # the pad behind it
            slot = take(ring)
            assert slot.position == CAPACITY
            ring.release(run)
            ring.release(slot)
        else:
            ring.release(run)
    assert lengths == [6, 3]
    assert ring.used == 0


@either_way
@pytest.mark.parametrize("offset", range(0, 56, 4))
def test_a_damaged_header_ends_a_run_and_is_noticed_then(ring: Ring, offset: int) -> None:
    for _ in range(4):
        seal(ring, 100)
    ring.segment.view[HEADER_BYTES + 2 * 192 + offset] ^= 0xFF
    run = look_ahead(ring)
    assert run is not None
    assert run.slots == 2
    ring.borrow_run(run)
    with pytest.raises(BrokenError, match="ring 9 is damaged"):
        ring.borrow()


@either_way
def test_a_run_may_begin_behind_the_end_of_a_lap(ring: Ring) -> None:
    for _ in range(21):
        seal(ring, 100)
    run = look_ahead(ring)
    assert run is not None
    ring.borrow_run(run)
    ring.release(run)
    ring.reserve(100)  # writes the pad
    assert look_ahead(ring) is None
    for _ in range(3):
        seal(ring, 100)
    run = look_ahead(ring)
    assert run is not None
    assert (run.position, run.slots, run.sequence) == (CAPACITY, 3, 21)
    assert ring.used == CAPACITY % 192 + 3 * 192  # looking gives nothing back
    assert bytes(run.first_body) == body_of(21, 100)
    ring.borrow_run(run)
    ring.release(run)
    assert ring.used == 0


@either_way
def test_a_slot_that_is_not_sealed_ends_a_run(ring: Ring) -> None:
    for _ in range(4):
        seal(ring, 100)
    seal_of_the_third = HEADER_BYTES + 2 * 192 + 56
    ring.segment.view[seal_of_the_third] ^= 0xFF
    run = look_ahead(ring)
    assert run is not None
    assert run.slots == 2
    ring.segment.view[HEADER_BYTES + 192 + 56] ^= 0xFF
    assert look_ahead(ring) is None


@settings(max_examples=60, deadline=None)
@given(
    slots=st.lists(st.tuples(st.sampled_from([0, 8, 8, 8, 100, 700]), st.integers(1, 2)), max_size=120),
    most=st.integers(2, 20),
    kept=st.integers(0, 3),
    few=st.sampled_from([0, 4, 1024]),
)
def test_runs_and_single_slots_come_out_once_in_order_and_whole(
    slots: list[tuple[int, int]], most: int, kept: int, few: int
) -> None:
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-ring-") as folder,
        mock.patch.object(ring_module, "_FEW", few),
    ):
        ring = Ring.create(Path(folder) / "ring", CAPACITY, 9)
        held: deque[Slot | Run] = deque()
        waiting, seen = deque(slots), 0
        while waiting or seen < len(slots):
            while waiting and seal(ring, *waiting[0]) is not None:
                waiting.popleft()
            run = look_ahead(ring, most)
            if run is not None:
                ring.borrow_run(run)
                for body in run.bodies(0, run.length, np.uint8):
                    assert bytes(body) == body_of(seen, slots[seen][0])
                    assert run.slot_rows == slots[seen][1]
                    seen += 1
                del body
                held.append(run)
            elif (slot := ring.borrow()) is not None:
                assert bytes(slot.body) == body_of(seen, slots[seen][0])
                seen += 1
                held.append(slot)
            while held and (len(held) > kept or waiting):
                ring.release(held.popleft())
        while held:
            ring.release(held.popleft())
        assert (ring.borrow(), ring.used) == (None, 0)
        ring.close()
