"""The writer's view of one ring: in order, nothing missing, given back only when it is safe."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from children import Child

from shmstore.accounting import SourceStanding
from shmstore.assembly import Ticket
from shmstore.errors import BrokenError, StorageError
from shmstore.queue import DescriptorQueue
from shmstore.ring import Kind, Life, Ring, Run, Slot
from shmstore.session import Session
from shmstore.source import Source


@pytest.fixture
def session(shared_folder: Path) -> Iterator[Session]:
    made = Session.create(shared_folder, "run")
    Ring.create(made.ring_path(3), 4096, 3).close()
    DescriptorQueue.create(made.queue_path(3)).close()
    yield made
    made.close()


@pytest.fixture
def source(session: Session) -> Iterator[Source]:
    made = Source(session, 3, "cam")
    yield made
    made.close()


@pytest.fixture
def producer(session: Session) -> Iterator[Ring]:
    made = Ring.attach(session.ring_path(3))
    made.claim(os.getpid())
    yield made
    made.close()


def seal(producer: Ring, rows: int, length: int = 64) -> None:
    body = producer.reserve(length)
    assert body is not None
    body.release()
    producer.seal(Kind.IPC, length, rows, 0)


def take(source: Source) -> Slot:
    slot = source.take()
    assert slot is not None
    return slot


def commit(source: Source, chunks_written: int = 0) -> int:
    """Commit what was taken by now, as far as so many chunks cover it; returns the bytes that came free."""
    source.ripen()
    source.cover(chunks_written)
    return source.release()


def test_slots_are_taken_in_order_and_counted(source: Source, producer: Ring) -> None:
    assert source.take() is None
    for rows in (5, 0, 7):
        seal(producer, rows)
    assert not source.idle
    for rows in (5, 0, 7):
        slot = take(source)
        assert slot.rows == rows
        source.hold(slot, Ticket())
    assert source.take() is None
    assert (source.account.taken, source.account.taken_slots, source.account.committed) == (12, 3, 0)
    assert not source.idle


def test_space_comes_free_in_order_as_tickets_fall_due(source: Source, producer: Ring) -> None:
    tickets = [Ticket(1), Ticket(), Ticket(2)]
    for ticket in tickets:
        seal(producer, 10)
        source.hold(take(source), ticket)
    assert commit(source) == 0
    assert commit(source, 1) == 128
    assert source.account.committed == 10
    assert commit(source, 5) == 0  # the second does not know its chunks yet, and the third waits behind it
    tickets[1].chunks = 2
    assert commit(source, 1) == 0
    assert commit(source, 2) == 256
    assert (source.account.committed, source.account.committed_slots) == (30, 3)
    assert producer.used == 0
    assert source.idle


def test_a_slot_distributed_while_a_commit_is_under_way_is_left_to_the_next(
    source: Source, producer: Ring
) -> None:
    for rows in (1, 2, 3):
        seal(producer, rows)
    source.hold(take(source), Ticket(0))
    source.hold(take(source), waiting := Ticket())
    source.hold(take(source), Ticket(0))
    source.ripen()
    waiting.chunks = 0
    source.cover(5)
    assert (source.standing.slots, source.standing.rows) == (1, 1)
    source.release()
    source.ripen()
    source.cover(5)
    assert (source.standing.slots, source.standing.rows) == (3, 6)
    source.release()


def test_quarantined_slots_are_free_at_once_and_counted_apart(source: Source, producer: Ring) -> None:
    for ticket in (None, Ticket(0), None):
        seal(producer, 4)
        source.hold(take(source), ticket)
    commit(source)
    assert (source.account.committed, source.account.quarantined) == (4, 8)
    assert source.account.to_dict()["rejected"] == 8


def test_a_commit_covers_only_what_was_taken_before_it_began(source: Source, producer: Ring) -> None:
    """Rows that came after have not been flushed, even if their chunks were written by then."""
    for number in range(4):
        seal(producer, 10)
        source.hold(take(source), Ticket(number) if number % 2 else None)
        if number == 1:
            source.ripen()
    source.cover(100)
    assert (source.account.committed, source.account.quarantined, source.account.committed_slots) == (
        10,
        10,
        2,
    )
    assert source.standing == SourceStanding(2, 10, 10)
    assert source.release() == 256
    source.cover(100)  # no other has begun
    assert (source.standing, source.release()) == (SourceStanding(2, 10, 10), 0)
    assert commit(source, 100) == 256
    assert source.standing == SourceStanding(4, 20, 20)


def test_what_is_covered_is_counted_before_its_space_is_given_back(source: Source, producer: Ring) -> None:
    """In between the checkpoint is written: whoever follows must not take these slots again."""
    seal(producer, 10)
    source.hold(take(source), Ticket(1))
    source.ripen()
    source.cover(1)
    assert (source.standing, producer.used) == (SourceStanding(1, 10, 0), 128)
    assert not source.idle
    assert source.release() == 128
    assert (source.release(), producer.used, source.idle) == (0, 0, True)


def test_a_slot_that_somebody_looks_at_is_counted_and_not_freed(source: Source, producer: Ring) -> None:
    for _ in range(2):
        seal(producer, 10)
    slot = take(source)
    array = np.frombuffer(slot.body, np.uint8)
    source.hold(slot, Ticket(0))
    source.hold(take(source), Ticket(0))
    assert commit(source) == 0
    assert (source.account.committed, source.idle, producer.used) == (20, False, 256)
    assert source.stuck
    del array
    assert commit(source) == 256
    assert not source.stuck
    assert (source.account.committed, source.account.committed_slots, producer.used) == (20, 2, 0)


def test_rows_that_wait_for_company_can_wait_on_unless_their_space_is_needed(
    source: Source, producer: Ring
) -> None:
    assert not source.releasable
    seal(producer, 10)
    source.hold(take(source), waiting := Ticket())
    assert (source.releasable, source.crowded) == (False, False)
    producer.set_waiting(True)
    assert (source.releasable, source.crowded) == (True, True)
    producer.set_waiting(False)
    seal(producer, 10, 1024)
    assert (source.releasable, source.crowded) == (True, True)
    source.hold(take(source), Ticket(0))
    waiting.chunks = 0
    commit(source)
    assert (source.releasable, source.crowded) == (False, False)


def test_it_says_what_must_be_written_before_a_commit_covers_more(source: Source, producer: Ring) -> None:
    assert source.next_ticket == 0
    for _ in range(3):
        seal(producer, 10)
    source.hold(take(source), waiting := Ticket())
    source.hold(take(source), Ticket(7))
    source.hold(take(source), None)
    assert source.next_ticket == 0, "nobody knows yet"
    waiting.chunks = 5
    assert source.next_ticket == 5
    source.ripen()
    source.cover(5)
    assert source.next_ticket == 7, "whether or not the one before has been given back"
    source.cover(7)
    assert source.next_ticket == 0
    source.release()


def test_a_ring_is_full_when_its_producer_waits(source: Source, producer: Ring) -> None:
    assert source.fill == 0
    seal(producer, 10, 1024 - 64)
    assert source.fill == 1024 / producer.capacity
    producer.set_waiting(True)
    assert source.fill == 1


def test_a_slot_that_no_chunk_is_waited_for_is_given_back_by_the_next_commit(
    source: Source, producer: Ring
) -> None:
    """As one that was taken while a commit was on its way."""
    for _ in range(2):
        seal(producer, 10)
    source.hold(take(source), Ticket(0))
    source.ripen()
    source.hold(take(source), Ticket(0))
    source.cover(0)
    source.release()
    assert source.releasable
    assert commit(source) == 128
    assert not source.releasable


def test_a_waiting_producer_is_told_of_space(source: Source, producer: Ring, session: Session) -> None:
    queue = DescriptorQueue.attach(session.queue_path(3))
    seal(producer, 1)
    source.hold(take(source), Ticket(0))
    commit(source)
    assert not queue.wait_for_space(0)  # nobody waited: no system call
    seal(producer, 1)
    source.hold(take(source), Ticket(0))
    producer.set_waiting(True)
    commit(source)
    assert queue.wait_for_space(0)
    queue.close()


def test_a_producer_that_waits_for_a_pad_is_told_when_that_is_passed(
    source: Source, producer: Ring, session: Session
) -> None:
    queue = DescriptorQueue.attach(session.queue_path(3))
    seal(producer, 1, 2048)
    source.hold(take(source), Ticket(0))
    assert commit(source) > 0
    assert producer.reserve(producer.largest_body) is None  # all that it left is a pad
    producer.set_waiting(True)
    assert source.take() is None
    assert queue.wait_for_space(0)
    body = producer.reserve(producer.largest_body)
    assert body is not None
    body.release()
    queue.close()


# -- one that follows another ----------------------------------------------------------------------------


@pytest.fixture
def followed(session: Session, producer: Ring) -> Iterator[SourceStanding]:
    """Return what a writer committed that was killed before it gave anything back: three slots of five."""
    one = Source(session, 3, "cam")
    for number in range(5):
        seal(producer, 10 + number)
        if number < 4:
            one.hold(take(one), None if number == 1 else Ticket(number))
    one.ripen()
    one.cover(2)
    yield one.standing
    one.ring.close()
    one.queue.close()


def test_who_follows_takes_what_was_not_committed_and_nothing_twice(
    session: Session, producer: Ring, followed: SourceStanding
) -> None:
    assert followed == SourceStanding(3, 22, 11)
    source = Source(session, 3, "cam", followed)
    assert producer.used == 2 * 128  # what was committed is given back
    assert (source.standing, source.account.taken, source.account.taken_slots) == (followed, 33, 3)
    assert [take(source).rows for _ in range(2)] == [13, 14]
    assert source.take() is None
    assert source.account.to_dict()["accepted"] == 60
    source.close()


def test_who_follows_one_that_had_given_back_finds_its_place(session: Session, producer: Ring) -> None:
    one = Source(session, 3, "cam")
    for _ in range(3):
        seal(producer, 10)
        one.hold(take(one), Ticket(0))
    commit(one)
    standing = one.standing
    one.ring.close()
    one.queue.close()
    seal(producer, 7)
    source = Source(session, 3, "cam", standing)
    assert take(source).rows == 7
    source.close()


def test_who_follows_tells_a_producer_of_the_space(
    session: Session, producer: Ring, followed: SourceStanding
) -> None:
    """It may have been waiting for it when the writer before was killed."""
    queue = DescriptorQueue.attach(session.queue_path(3))
    producer.set_waiting(True)
    source = Source(session, 3, "cam", followed)
    assert queue.wait_for_space(0)
    source.close()
    queue.close()


def test_who_recovers_leaves_the_ring_as_it_is(
    session: Session, producer: Ring, followed: SourceStanding
) -> None:
    session.private = True
    before = session.ring_path(3).read_bytes()
    source = Source(session, 3, "cam", followed)
    for _ in range(2):
        source.hold(take(source), Ticket(0))
    assert commit(source) == 256
    assert source.idle
    assert session.ring_path(3).read_bytes() == before
    assert producer.used == 5 * 128
    source.close()


# -- what is wrong with a ring ---------------------------------------------------------------------------


def test_a_missing_slot_is_noticed(source: Source, producer: Ring) -> None:
    seal(producer, 1)
    producer.segment.words(1024, 16)[2] = 7  # the producer's own count of sequence numbers
    seal(producer, 1)
    take(source)
    with pytest.raises(BrokenError, match="'cam' skips from batch 1 to 7"):
        source.take()


def test_missing_rows_are_noticed(source: Source, producer: Ring) -> None:
    seal(producer, 5)
    producer.segment.words(1024, 16)[3] = 99  # its count of rows
    seal(producer, 5)
    take(source)
    with pytest.raises(BrokenError, match="skips"):
        source.take()


def test_a_producer_whose_word_is_damaged_has_ended_when_it_is_gone(source: Source, producer: Ring) -> None:
    producer.segment.words(1024, 2)[1] = 77
    assert not source.ended
    producer.close()
    assert source.ended


def test_a_producer_that_sealed_and_is_gone_has_ended_whatever_its_word(
    source: Source, producer: Ring
) -> None:
    seal(producer, 5)
    producer.segment.words(1024, 2)[1] = Life.CREATED
    assert not source.ended
    producer.close()
    assert source.ended


def test_a_damaged_ring_costs_what_was_not_taken(source: Source, producer: Ring) -> None:
    for _ in range(3):
        seal(producer, 10)
    source.hold(take(source), Ticket(0))
    producer.segment.view[4096 + 128 + 20] ^= 1
    with pytest.raises(BrokenError, match="damaged"):
        source.take()
    assert source.give_up() == 20
    assert source.take() is None
    commit(source)
    assert source.idle
    account = source.settle_account()
    assert (account.committed, account.lost, account.to_dict()["accepted"]) == (10, 20, 30)


@pytest.mark.parametrize("aborted", [False, True])
def test_what_a_living_producer_adds_to_a_damaged_ring_is_lost_too(
    source: Source, producer: Ring, aborted: bool
) -> None:
    assert producer.claim(1)
    seal(producer, 10)
    producer.segment.view[4096 + 20] ^= 1
    with pytest.raises(BrokenError, match="damaged"):
        source.take()
    assert source.give_up() == 10
    seal(producer, 7)
    source.close_account(aborted=aborted)
    account = source.settle_account()
    assert (account.lost, account.dropped, account.to_dict()["accepted"]) == (17, 0, 17)


def test_the_producers_own_counts_join_the_account(source: Source, producer: Ring) -> None:
    producer.count_dropped(4)
    producer.count_rejected(6)
    seal(producer, 10)
    source.hold(take(source), Ticket(0))
    commit(source)
    stamped = source.settle_account().to_dict()
    assert (stamped["dropped"], stamped["rejected"], stamped["accepted"]) == (4, 6, 20)


@pytest.mark.parametrize("life", [Life.CLOSED, Life.ABORTED])
def test_a_producer_that_says_so_has_ended(source: Source, producer: Ring, life: Life) -> None:
    assert not source.ended
    producer.end(life)
    assert source.ended


def test_one_that_never_came_has_not_ended(source: Source) -> None:
    assert not source.ended


def test_a_killed_producer_has_ended_and_what_it_sealed_is_there(source: Source, session: Session) -> None:
    with Child(
        "import os",
        "from shmstore.ring import Kind, Ring",
        f"ring = Ring.attach(Path({str(session.ring_path(3))!r}))",
        "ring.claim(os.getpid())",
        "ring.reserve(4)[:] = b'kept'",
        "ring.seal(Kind.IPC, 4, 9, 0)",
        "say('ready')",
        "wait()",
    ) as child:
        assert child.hear() == "ready"
        assert not source.ended
        child.end(signal.SIGKILL)
    assert source.ended
    assert not source.idle
    slot = take(source)
    assert (bytes(slot.body), slot.rows) == (b"kept", 9)


def test_rows_never_taken_are_the_living_producers_to_report(source: Source, producer: Ring) -> None:
    seal(producer, 10)
    source.close_account(aborted=False)
    assert source.settle_account().lost == 0
    producer.end(Life.CLOSED)
    source.close_account(aborted=False)
    assert source.settle_account().lost == 10


def test_an_abort_drops_what_was_not_taken(source: Source, producer: Ring) -> None:
    seal(producer, 10)
    producer.count_dropped(1)
    source.close_account(aborted=True)
    account = source.settle_account()
    assert (account.dropped, account.lost) == (11, 0)


def test_a_ring_of_another_number_is_refused(session: Session) -> None:
    session.ring_path(3).rename(session.ring_path(4))
    with pytest.raises(BrokenError, match="ring 4 claims to be ring 3"):
        Source(session, 4, "cam")


def test_a_ring_without_its_queue_is_refused_and_let_go(session: Session) -> None:
    session.queue_path(3).unlink()
    with pytest.raises(StorageError, match="descriptor queue"):
        Source(session, 3, "cam")
    assert str(session.ring_path(3)) not in Path("/proc/self/maps").read_text()


def test_closing_removes_the_names(session: Session) -> None:
    Source(session, 3, "cam").close()
    assert [path.name for path in session.folder.iterdir()] == ["page"]


class Killed(BaseException):
    """Stands for the end of the process."""


class DeadlyQueue(DescriptorQueue):
    """A queue over whose removal its process is killed when one of its two names is gone."""

    def unlink(self) -> None:
        self.path.unlink()
        raise Killed


def test_a_ring_never_has_half_a_queue(session: Session) -> None:
    """Else nobody could go on with what is in the session, nor recover it."""
    source = Source(session, 3, "cam")
    source.queue.close()
    source.queue = DeadlyQueue.attach(session.queue_path(3))
    with pytest.raises(Killed):
        source.close()
    assert not session.queue_path(3).exists()
    assert not session.ring_path(3).exists()
    source.ring.close()


# -- several at once -------------------------------------------------------------------------------------


class Fed:
    """Stands for what slots follow: an instrument that takes runs of up to so many slots."""

    def __init__(self, longest: int) -> None:
        self.instrument = self
        self.longest = longest

    def longest_run(self, rows: int) -> int:
        return self.longest if rows else 0


def ahead(source: Source) -> Run:
    run = source.look_ahead()
    assert run is not None
    return run


def test_slots_taken_together_are_counted_one_by_one(source: Source, producer: Ring) -> None:
    source.follows[0] = cast("Any", Fed(8))
    seal(producer, 3)
    for _ in range(2):
        seal(producer, 5)
    assert source.look_ahead() is None  # the first is for itself
    source.hold(take(source), Ticket(0))
    run = source.take_run(ahead(source), 2)
    assert run is not None
    assert (source.account.taken, source.account.taken_slots) == (13, 3)
    source.hold(run, Ticket(1))
    assert commit(source, 0) == 128
    assert (source.account.committed, source.account.committed_slots, source.idle) == (3, 1, False)
    assert commit(source, 1) == 2 * 128
    assert source.standing == SourceStanding(3, 13, 0)
    assert (producer.used, source.idle) == (0, True)


def test_a_commit_does_not_part_slots_that_were_taken_together(source: Source, producer: Ring) -> None:
    source.follows[0] = cast("Any", Fed(2))
    for _ in range(6):
        seal(producer, 5)
    for chunks in (1, 2, 3):
        run = source.take_run(ahead(source), 2)
        assert run is not None
        source.hold(run, Ticket(chunks))
        if chunks == 2:
            source.ripen()
    source.cover(100)
    assert source.standing == SourceStanding(4, 20, 0)
    source.release()
    assert commit(source, 2) == 0
    assert commit(source, 3) == 2 * 128


def test_who_takes_fewer_than_were_looked_at_finds_the_rest(source: Source, producer: Ring) -> None:
    source.follows[0] = cast("Any", Fed(8))
    for _ in range(4):
        seal(producer, 5)
    run = source.take_run(ahead(source), 1)
    assert run is not None
    assert (run.slots, run.rows, source.account.taken_slots) == (1, 5, 1)
    assert ahead(source).sequence == 1


def test_after_a_look_in_vain_slots_are_taken_one_by_one_for_a_while(source: Source, producer: Ring) -> None:
    source.follows[0] = cast("Any", Fed(8))
    for _ in range(20):
        seal(producer, 1)
    looks = []
    for _ in range(12):
        run = source.look_ahead()
        looks.append(run is not None)
        if run is not None:
            assert source.take_run(run, 0) is None
        take(source)
    assert looks == [True, False, True, False, False, False, True, *[False] * 5]


def test_what_no_instrument_takes_together_is_not_looked_at(source: Source, producer: Ring) -> None:
    for _ in range(4):
        seal(producer, 5)
    assert source.look_ahead() is None  # of a schema never declared
    source.follows[0] = cast("Any", Fed(0))
    assert source.look_ahead() is None


def test_nothing_is_looked_at_once_a_writer_has_said_what_it_took(source: Source, producer: Ring) -> None:
    source.follows[0] = cast("Any", Fed(8))
    for _ in range(4):
        seal(producer, 5)
    source.ring.finish(2)
    assert source.look_ahead() is None


def test_a_run_behind_a_missing_slot_is_refused(source: Source, producer: Ring) -> None:
    source.follows[0] = cast("Any", Fed(8))
    for _ in range(4):
        seal(producer, 5)
    source.account.taken_slots += 1
    with pytest.raises(BrokenError, match="'cam' skips from batch 1 to 0"):
        source.take_run(ahead(source), 2)
