"""Damaged descriptors, and whatever else comes through their pipe: what was sent, or a clear error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fuzz.damage import DAMAGES, Damage, damaged
from fuzz.times import few, many
from hypothesis import given
from hypothesis import strategies as st

from shmstore.descriptor import RECORD_BYTES, Descriptor
from shmstore.errors import BrokenError
from shmstore.queue import DescriptorQueue

SENT = [Descriptor(3, sequence, sequence * 640, 600, sequence % 2, 10 + sequence) for sequence in range(20)]
WHOLE = b"".join((RECORD_BYTES - 4).to_bytes(4, "big") + descriptor.pack() for descriptor in SENT)
#: In how many pieces it comes, and how large they are.
PIECES = st.lists(st.integers(1, 300), max_size=6)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[DescriptorQueue]:
    made = DescriptorQueue.create(tmp_path / "queue-3")
    yield made
    made.close()


def survive(queue: DescriptorQueue, data: bytes, pieces: Sequence[int]) -> None:
    """What comes out was sent, or is refused; and afterwards the queue is as good as new."""
    at = 0
    for size in [*pieces, len(data)]:
        if data[at : at + size]:
            os.write(queue.fileno(), data[at : at + size])
        at += size
        with contextlib.suppress(BrokenError):
            assert set(queue.receive()) <= set(SENT)
    queue.ring(SENT[0])
    for _ in range(2):  # what was cut takes the next one along
        with contextlib.suppress(BrokenError):
            queue.receive()
    assert queue.receive() == []
    queue.ring(SENT[1])
    with contextlib.suppress(BrokenError):
        assert set(queue.receive()) <= set(SENT)


def refuse(data: bytes) -> None:
    with contextlib.suppress(BrokenError):
        assert Descriptor.unpack(data) in SENT


@few(200)
@given(DAMAGES, PIECES, st.binary(max_size=80))
def test_damaged_descriptors_are_refused(
    queue: DescriptorQueue, damages: Sequence[Damage], pieces: Sequence[int], data: bytes
) -> None:
    survive(queue, damaged(WHOLE, damages), pieces)
    refuse(data)
    refuse(damaged(WHOLE[4:RECORD_BYTES], damages))


@many(10_000)
@given(DAMAGES, PIECES, st.binary(max_size=80))
def test_many_damaged_descriptors_are_refused(
    queue: DescriptorQueue, damages: Sequence[Damage], pieces: Sequence[int], data: bytes
) -> None:
    survive(queue, damaged(WHOLE, damages), pieces)
    refuse(data)
    refuse(damaged(WHOLE[4:RECORD_BYTES], damages))
