"""The descriptor queue: never blocks, survives garbage and killed readers, wakes who waits."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import Child

from shmstore.descriptor import RECORD_BYTES, Descriptor
from shmstore.errors import BrokenError, StorageError
from shmstore.queue import DescriptorQueue


def descriptor(sequence: int) -> Descriptor:
    return Descriptor(1, sequence, sequence * 128, 64, 0, sequence % 10)


def received(queue: DescriptorQueue) -> list[int]:
    """Take all that wait."""
    sequences: list[int] = []
    while batch := queue.receive():
        sequences += [item.sequence for item in batch]
    return sequences


@pytest.fixture
def path(shared_folder: Path) -> Path:
    return shared_folder / "queue-1"


@pytest.fixture
def queue(path: Path) -> Iterator[DescriptorQueue]:
    made = DescriptorQueue.create(path)
    yield made
    made.close()


def test_descriptors_arrive_in_order_at_the_other_end(queue: DescriptorQueue, path: Path) -> None:
    producer = DescriptorQueue.attach(path)
    assert queue.receive() == []
    for sequence in range(600):
        producer.ring(descriptor(sequence))
    assert queue.receive() == [descriptor(sequence) for sequence in range(256)]
    assert received(queue) == list(range(256, 600))
    producer.close()


def test_a_record_takes_64_bytes_and_the_names_are_private(queue: DescriptorQueue, path: Path) -> None:
    queue.ring(descriptor(0))
    assert len(os.read(queue.fileno(), 4096)) == RECORD_BYTES
    assert {name.name for name in path.parent.iterdir()} == {"queue-1", "queue-1.space"}
    assert all(stat.S_IMODE(name.stat().st_mode) == 0o600 for name in path.parent.iterdir())


def test_a_full_queue_never_blocks_and_keeps_whole_records(queue: DescriptorQueue) -> None:
    for sequence in range(5000):  # far more than a pipe holds: this returns, or the test hangs
        queue.ring(descriptor(sequence))
    kept = received(queue)
    assert kept == list(range(len(kept)))
    assert 0 < len(kept) < 5000
    queue.ring(descriptor(9999))
    assert received(queue) == [9999]


@pytest.mark.parametrize("garbage", [b"\0" * 64, os.urandom(64), b"\0\0\0\x3c" + b"\0" * 60])
def test_garbage_is_refused_and_what_comes_later_is_taken(queue: DescriptorQueue, garbage: bytes) -> None:
    os.write(queue.fileno(), garbage)
    with pytest.raises(BrokenError):
        queue.receive()
    queue.ring(descriptor(7))
    assert received(queue) == [7]


def test_a_cut_record_waits_for_its_rest(queue: DescriptorQueue) -> None:
    record = b"\0\0\0\x3c" + descriptor(4).pack()
    os.write(queue.fileno(), record[:40])
    assert queue.receive() == []
    os.write(queue.fileno(), record[40:] + record[:10])
    assert queue.receive() == [descriptor(4)]
    os.write(queue.fileno(), b"not the rest of it".ljust(54))
    with pytest.raises(BrokenError, match="checksum"):
        queue.receive()


def test_a_killed_reader_does_not_stop_the_next(queue: DescriptorQueue, path: Path) -> None:
    """Killed while it waits, as it would be most of the time."""
    with Child(
        "import select",
        "from shmstore.queue import DescriptorQueue",
        f"queue = DescriptorQueue.attach(Path({str(path)!r}))",
        "say('waiting')",
        "select.select([queue], [], [])",
        "say(len(queue.receive()))",
        "select.select([queue], [], [])",
    ) as child:
        assert child.hear() == "waiting"
        queue.ring(descriptor(0))
        assert child.hear() == "1"
        child.end(signal.SIGKILL)
    for sequence in range(1, 5):
        queue.ring(descriptor(sequence))
    successor = DescriptorQueue.attach(path)
    assert received(successor) == [1, 2, 3, 4]
    successor.close()


def test_neither_side_notices_that_the_other_is_replaced(queue: DescriptorQueue, path: Path) -> None:
    producer = DescriptorQueue.attach(path)
    producer.ring(descriptor(0))
    producer.close()
    assert received(queue) == [0]  # and no end of file
    assert queue.receive() == []
    successor = DescriptorQueue.attach(path)
    successor.ring(descriptor(1))
    assert received(queue) == [1]
    successor.close()


def test_a_waiting_producer_is_woken(queue: DescriptorQueue, path: Path) -> None:
    with Child(
        "from shmstore.queue import DescriptorQueue",
        f"queue = DescriptorQueue.attach(Path({str(path)!r}))",
        "say('waiting')",
        "say(queue.wait_for_space(60))",
        "queue.close()",
    ) as child:
        assert child.hear() == "waiting"
        queue.announce_space()
        assert child.hear() == "True"


def test_a_bell_rung_before_is_heard_once(queue: DescriptorQueue) -> None:
    for _ in range(3):
        queue.announce_space()
    assert queue.wait_for_space(60)
    assert not queue.wait_for_space(0.01)


def test_announcing_never_blocks_though_nobody_listens(queue: DescriptorQueue) -> None:
    for _ in range(100_000):
        queue.announce_space()
    assert queue.wait_for_space(0)
    assert not queue.wait_for_space(0)


def test_names_in_use_or_gone_are_said(queue: DescriptorQueue, path: Path) -> None:
    with pytest.raises(StorageError, match="descriptor queue"):
        DescriptorQueue.create(path)
    queue.unlink()
    queue.unlink()
    assert not list(path.parent.iterdir())
    with pytest.raises(StorageError, match="recording has ended"):
        DescriptorQueue.attach(path)
    queue.ring(descriptor(3))
    assert received(queue) == [3]  # open ends stay good
