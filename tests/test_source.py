"""The writer's view of one ring: in order, nothing missing, given back only when it is safe."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from children import Child

from shmstore.assembly import Ticket
from shmstore.errors import BrokenError, StorageError
from shmstore.queue import DescriptorQueue
from shmstore.ring import Kind, Life, Ring, Slot
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
    assert source.release(0) == 0
    assert source.release(1) == 128
    assert source.account.committed == 10
    assert source.release(5) == 0  # the second does not know its chunks yet, and the third waits behind it
    tickets[1].chunks = 2
    assert source.release(1) == 0
    assert source.release(2) == 256
    assert (source.account.committed, source.account.committed_slots) == (30, 3)
    assert producer.used == 0
    assert source.idle


def test_quarantined_slots_are_free_at_once_and_counted_apart(source: Source, producer: Ring) -> None:
    for ticket in (None, Ticket(0), None):
        seal(producer, 4)
        source.hold(take(source), ticket)
    source.release(0)
    assert (source.account.committed, source.account.quarantined) == (4, 8)
    assert source.account.to_dict()["rejected"] == 8


def test_a_slot_that_somebody_looks_at_is_neither_freed_nor_counted(source: Source, producer: Ring) -> None:
    seal(producer, 10)
    slot = take(source)
    array = np.frombuffer(slot.body, np.uint8)
    source.hold(slot, Ticket(0))
    assert source.release(0) == 0
    assert (source.account.committed, source.idle, producer.used) == (0, False, 128)
    del array
    assert source.release(0) == 128
    assert (source.account.committed, source.account.committed_slots, producer.used) == (10, 1, 0)


def test_a_waiting_producer_is_told_of_space(source: Source, producer: Ring, session: Session) -> None:
    queue = DescriptorQueue.attach(session.queue_path(3))
    seal(producer, 1)
    source.hold(take(source), Ticket(0))
    source.release(0)
    assert not queue.wait_for_space(0)  # nobody waited: no system call
    seal(producer, 1)
    source.hold(take(source), Ticket(0))
    producer.set_waiting(True)
    source.release(0)
    assert queue.wait_for_space(0)
    queue.close()


def test_a_producer_that_waits_for_a_pad_is_told_when_that_is_passed(
    source: Source, producer: Ring, session: Session
) -> None:
    queue = DescriptorQueue.attach(session.queue_path(3))
    seal(producer, 1, 2048)
    source.hold(take(source), Ticket(0))
    assert source.release(0) > 0
    assert producer.reserve(producer.largest_body) is None  # all that it left is a pad
    producer.set_waiting(True)
    assert source.take() is None
    assert queue.wait_for_space(0)
    body = producer.reserve(producer.largest_body)
    assert body is not None
    body.release()
    queue.close()


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


def test_a_damaged_ring_costs_what_was_not_taken(source: Source, producer: Ring) -> None:
    for _ in range(3):
        seal(producer, 10)
    source.hold(take(source), Ticket(0))
    producer.segment.view[4096 + 128 + 20] ^= 1
    with pytest.raises(BrokenError, match="damaged"):
        source.take()
    assert source.give_up() == 20
    assert source.take() is None
    source.release(0)
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
    source.release(0)
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
