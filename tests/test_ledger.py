"""The ledger: one whole copy, whatever is killed, torn or damaged."""

from __future__ import annotations

import contextlib
import errno
import random
import signal
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from children import Child
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmstore.errors import BrokenError, StorageError
from shmstore.ledger import Ledger

CAPACITY = 100
SLOT = 192  # 64 + CAPACITY, rounded up to a multiple of 64
DAMAGE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MUCH_DAMAGE = settings(DAMAGE, max_examples=30_000)


@pytest.fixture
def ledger(shared_folder: Path) -> Iterator[Ledger]:
    made = Ledger.create(shared_folder / "ledger", CAPACITY)
    yield made
    made.close()


def found_in(path: Path) -> bytes | None:
    """What somebody who takes over finds."""
    ledger = Ledger.attach(path)
    found = ledger.load()
    ledger.close()
    return found


def test_the_newest_is_found_here_and_by_who_takes_over(ledger: Ledger) -> None:
    assert ledger.load() is None
    assert found_in(ledger.path) is None
    for number in range(7):
        payload = bytes([number]) * (number * 16)
        ledger.store(payload)
        assert ledger.load() == found_in(ledger.path) == payload
    again = Ledger.attach(ledger.path)
    assert again.capacity == CAPACITY
    again.store(b"taken over")
    again.store(b"")
    assert again.load() == ledger.load() == b""
    again.close()


def test_more_than_the_capacity_is_refused_and_changes_nothing(ledger: Ledger) -> None:
    ledger.store(b"x" * CAPACITY)
    with pytest.raises(ValueError, match="101 bytes does not fit into the ledger's 100"):
        ledger.store(b"y" * (CAPACITY + 1))
    assert ledger.load() == b"x" * CAPACITY
    ledger.close()
    ledger.unlink()
    ledger.unlink()
    assert not ledger.path.exists()


def test_a_ledger_may_have_no_room_at_all(shared_folder: Path) -> None:
    ledger = Ledger.create(shared_folder / "l", 0)
    ledger.store(b"")
    assert found_in(ledger.path) == b""
    ledger.close()


def test_the_bytes_are_those_of_the_document(ledger: Ledger) -> None:
    for payload in (b"one", b"two", b"three"):
        ledger.store(payload)

    def slot(sequence: int, payload: bytes) -> bytes:
        head = b"SHMLEDGR" + struct.pack("<HH", 1, 0)
        head += struct.pack("<I", zlib.crc32(head))
        crc = zlib.crc32(struct.pack("<QQ", sequence, len(payload)) + payload)
        return head + struct.pack("<QQQQ", CAPACITY, sequence, len(payload), crc) + bytes(16) + payload

    data = ledger.path.read_bytes()
    assert len(data) == 2 * SLOT
    assert data[:SLOT].startswith(slot(2, b"two"))
    assert data[SLOT:].startswith(slot(3, b"three"))


def test_after_every_line_of_a_store_one_copy_is_whole(ledger: Ledger, shared_folder: Path) -> None:
    ledger.store(b"older" * 10)
    ledger.store(b"newer" * 12)
    images: list[bytes] = []

    def look(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is Ledger.store.__code__ and event in {"call", "line", "return"}:
            images.append(ledger.path.read_bytes())
        return look

    tracer = sys.gettrace()
    sys.settrace(look)
    try:
        ledger.store(b"newest" * 15)
    finally:
        sys.settrace(tracer)
    copy = shared_folder / "copy"
    outcomes = []
    for image in images:
        copy.write_bytes(image)
        outcomes.append(found_in(copy))
    turn = outcomes.index(b"newest" * 15)
    assert set(outcomes[:turn]) == {b"newer" * 12}
    assert set(outcomes[turn:]) == {b"newest" * 15}
    assert len(set(images)) >= 5  # the stores were looked at one by one


def test_a_slot_torn_at_any_byte_leaves_the_other(ledger: Ledger, shared_folder: Path) -> None:
    ledger.store(b"one" * 20)
    ledger.store(b"two" * 25)
    before = ledger.path.read_bytes()
    ledger.store(b"three" * 18)
    after = ledger.path.read_bytes()
    copy = shared_folder / "copy"
    for at in range(len(after)):
        for image in (before[:at] + after[at:], after[:at] + before[at:]):
            copy.write_bytes(image)
            assert found_in(copy) in {b"two" * 25, b"three" * 18}


def test_a_bit_that_flips_costs_no_more_than_the_newer_copy(ledger: Ledger, shared_folder: Path) -> None:
    ledger.store(b"older" * 15)
    ledger.store(b"newer" * 20)
    data = bytearray(ledger.path.read_bytes())
    copy = shared_folder / "copy"
    for at in range(len(data)):
        data[at] ^= 1 << at % 8
        copy.write_bytes(data)
        data[at] ^= 1 << at % 8
        # The newer one is in the first slot: two is even.
        assert found_in(copy) in ({b"older" * 15, b"newer" * 20} if at < SLOT else {b"newer" * 20})


def test_a_damaged_slot_is_repaired_by_the_next_stores(ledger: Ledger) -> None:
    for start in (0, SLOT):
        ledger.store(b"before")
        with ledger.path.open("r+b") as file:
            file.seek(start)
            file.write(b"\xff" * 64)
        again = Ledger.attach(ledger.path)
        for payload in (b"first", b"second"):
            again.store(payload)
            assert found_in(ledger.path) == payload
        again.close()


def test_what_is_no_ledger_is_refused(shared_folder: Path) -> None:
    for name, data in {
        "zeros": bytes(2 * SLOT),
        "odd": b"SHMLEDGR" * 15 + b"x",
        "small": b"x",
        "unaligned": bytes(2 * 68),
        "text": b"no ledger at all" * 24,
    }.items():
        path = shared_folder / name
        path.write_bytes(data)
        with pytest.raises(BrokenError, match="is no ledger"):
            Ledger.attach(path)
    with pytest.raises(StorageError) as caught:
        Ledger.attach(shared_folder / "gone")
    assert caught.value.errno == errno.ENOENT


def test_another_size_or_version_is_refused(ledger: Ledger) -> None:
    ledger.store(b"payload")
    data = ledger.path.read_bytes()
    ledger.path.write_bytes(data + bytes(128))
    with pytest.raises(BrokenError, match="no ledger"):
        Ledger.attach(ledger.path)
    head = b"SHMLEDGR" + struct.pack("<HH", 2, 0)
    head += struct.pack("<I", zlib.crc32(head))
    ledger.path.write_bytes(head + data[16:])
    with pytest.raises(BrokenError, match=r"version 2\.0 .*use the shmstore that made it"):
        Ledger.attach(ledger.path)


@pytest.mark.parametrize("seed", range(4))
def test_a_process_killed_while_it_stores_leaves_a_whole_copy(shared_folder: Path, seed: int) -> None:
    path = shared_folder / "ledger"
    Ledger.create(path, 8 * 5000).close()
    with Child(
        "import itertools",
        "from shmstore.ledger import Ledger",
        f"ledger = Ledger.attach(Path({str(path)!r}))",
        "for number in itertools.count():",
        "    ledger.store(number.to_bytes(8, 'little') * (number % 5000))",
        "    if number == 3000: say('going')",
    ) as child:
        assert child.hear() == "going"
        time.sleep(random.Random(seed).random() * 0.02)
        child.end(signal.SIGKILL)
    found = found_in(path)
    assert found is not None
    number = int.from_bytes(found[:8], "little")
    if found:
        assert found == number.to_bytes(8, "little") * (number % 5000)
        assert number >= 3000
    again = Ledger.attach(path)
    again.store(b"goes on")
    assert again.load() == found_in(path) == b"goes on"
    again.close()


def survive(path: Path, data: bytes) -> bytes | None:
    """Attach to any bytes, and use them: a result or a clear error."""
    path.write_bytes(data)
    found = None
    with contextlib.suppress(BrokenError, StorageError):
        ledger = Ledger.attach(path)
        try:
            found = ledger.load()
            ledger.store(b"x" * min(ledger.capacity, 10))
            assert ledger.load() == found_in(path) == b"x" * min(ledger.capacity, 10)
        finally:
            ledger.close()
    return found


def changed(path: Path, data: bytes, changes: list[tuple[int, bytes]], size: int) -> None:
    """Whatever is overwritten or cut, what comes out was stored once."""
    damaged = bytearray(data)
    for at, new in changes:
        damaged[at : at + len(new)] = new
    assert survive(path, bytes(damaged[:size])) in {None, b"older", b"newer"}


CHANGES = st.lists(st.tuples(st.integers(0, 2 * SLOT - 16), st.binary(min_size=1, max_size=16)), max_size=5)
SIZES = st.just(2 * SLOT) | st.integers(1, 2 * SLOT)


@DAMAGE
@given(st.binary(min_size=1, max_size=400), CHANGES, SIZES)
def test_any_damage_gives_what_was_stored_or_a_clear_error(
    ledger: Ledger, shared_folder: Path, data: bytes, changes: list[tuple[int, bytes]], size: int
) -> None:
    ledger.store(b"older")
    ledger.store(b"newer")
    survive(shared_folder / "fuzzed", data)
    changed(shared_folder / "fuzzed", ledger.path.read_bytes(), changes, size)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@MUCH_DAMAGE
@given(st.binary(min_size=1, max_size=400), CHANGES, SIZES)
def test_much_damage_gives_what_was_stored_or_a_clear_error(
    ledger: Ledger, shared_folder: Path, data: bytes, changes: list[tuple[int, bytes]], size: int
) -> None:
    ledger.store(b"older")
    ledger.store(b"newer")
    survive(shared_folder / "fuzzed", data)
    changed(shared_folder / "fuzzed", ledger.path.read_bytes(), changes, size)
