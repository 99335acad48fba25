"""Segments: reserved or refused in full, locks that a death frees, memory that lives as long as its views."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import stat
from pathlib import Path

import numpy as np
import pytest
from children import Child

from shmstore.errors import StorageError
from shmstore.segment import Segment, align, byte_is_locked


def mapped(path: Path) -> bool:
    """Whether this process maps the file, removed or not."""
    return str(path) in Path("/proc/self/maps").read_text()


def test_a_segment_is_zeros_reserved_in_full_and_private(shared_folder: Path) -> None:
    segment = Segment.create(shared_folder / "s", 3 * mmap.PAGESIZE + 5)
    info = segment.path.stat()
    assert (segment.size, len(segment.view)) == (3 * mmap.PAGESIZE + 5, 3 * mmap.PAGESIZE + 5)
    assert bytes(segment.view) == bytes(segment.size)
    assert info.st_blocks * 512 >= segment.size  # a hole would be a SIGBUS later
    assert stat.S_IMODE(info.st_mode) == 0o600
    segment.close()


def test_what_one_mapping_writes_another_reads(shared_folder: Path) -> None:
    ours = Segment.create(shared_folder / "s", 4096)
    theirs = Segment.attach(shared_folder / "s")
    ours.view[100:105] = b"hello"
    theirs.words(64, 2)[1] = 2**64 - 1
    assert bytes(theirs.view[100:105]) == b"hello"
    assert bytes(ours.view[72:80]) == b"\xff" * 8
    ours.close()
    theirs.close()


def test_more_than_there_is_says_how_to_enlarge_it_and_leaves_nothing(shared_folder: Path) -> None:
    # More than the filesystem could ever hold: nothing is taken on the way to the refusal.
    before = os.statvfs(shared_folder)
    too_much = 2 * before.f_blocks * before.f_frsize
    with pytest.raises(StorageError) as caught:
        Segment.create(shared_folder / "s", too_much)
    message = str(caught.value)
    assert caught.value.errno == errno.ENOSPC
    assert f"{too_much / 2**20:.1f} MiB" in message
    assert "ring_bytes" in message
    assert "remount,size=" in message
    assert "--shm-size" in message
    assert "\n" not in message
    assert not list(shared_folder.iterdir())


def test_a_limit_of_the_process_is_not_blamed_on_shared_memory(shared_folder: Path) -> None:
    with Child(
        "import resource",
        "from pathlib import Path",
        "from shmstore.errors import StorageError",
        "from shmstore.segment import Segment",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))",
        "try:",
        f"    Segment.create(Path({str(shared_folder / 's')!r}), 20_000)",
        "except StorageError as error:",
        "    say(str(error))",
    ) as child:
        message = child.hear()
    assert "ulimit" in message
    assert "remount" not in message
    assert not list(shared_folder.iterdir())


def test_a_name_in_use_is_not_taken_over(shared_folder: Path) -> None:
    first = Segment.create(shared_folder / "s", 4096)
    first.view[0] = 7
    with pytest.raises(StorageError) as caught:
        Segment.create(shared_folder / "s", 8192)
    assert caught.value.errno == errno.EEXIST
    assert (first.path.stat().st_size, first.view[0]) == (4096, 7)
    first.close()


def test_attaching_to_nothing_says_that_the_recording_has_ended(shared_folder: Path) -> None:
    with pytest.raises(StorageError, match="recording has ended") as caught:
        Segment.attach(shared_folder / "gone")
    assert caught.value.errno == errno.ENOENT
    (shared_folder / "empty").touch()
    with pytest.raises(StorageError, match="cannot map"):
        Segment.attach(shared_folder / "empty")


def test_a_lock_has_one_holder_per_open(shared_folder: Path) -> None:
    ours = Segment.create(shared_folder / "s", 4096)
    theirs = Segment.attach(shared_folder / "s")
    assert ours.try_lock(3)
    assert not theirs.try_lock(3)
    assert theirs.is_locked(3)
    assert not theirs.is_locked(4)
    assert theirs.try_lock(4)
    ours.unlock(3)
    assert not theirs.is_locked(3)
    assert theirs.try_lock(3)
    theirs.close()
    assert not ours.is_locked(3)
    assert not ours.is_locked(4)
    ours.close()


def test_closing_frees_the_locks_even_while_an_array_keeps_the_memory(shared_folder: Path) -> None:
    ours = Segment.create(shared_folder / "s", 4096)
    theirs = Segment.attach(shared_folder / "s")
    array = np.frombuffer(ours.view, np.uint8)
    assert ours.try_lock()
    ours.close()
    assert array.sum() == 0
    assert not theirs.is_locked()
    theirs.close()


def test_a_lock_is_free_the_moment_its_holder_is_killed(shared_folder: Path) -> None:
    segment = Segment.create(shared_folder / "s", 4096)
    with Child(
        "from shmstore.segment import Segment",
        f"segment = Segment.attach(Path({str(segment.path)!r}))",
        "say(segment.try_lock(1))",
        "wait()",
    ) as child:
        assert child.hear() == "True"
        assert segment.is_locked(1)
        assert not segment.try_lock(1)
        child.end(signal.SIGKILL)
        assert not segment.is_locked(1)
        assert segment.try_lock(1)
    segment.close()


def test_an_open_file_can_be_asked_for_a_lock_without_a_mapping(shared_folder: Path) -> None:
    segment = Segment.create(shared_folder / "s", 4096)
    fd = os.open(segment.path, os.O_RDWR)
    assert not byte_is_locked(fd, 0)
    segment.try_lock(0)
    assert byte_is_locked(fd, 0)
    os.close(fd)
    segment.close()


def test_memory_stays_mapped_as_long_as_an_array_looks_at_it(shared_folder: Path) -> None:
    segment = Segment.create(shared_folder / "s", 4096)
    segment.view[:4] = b"data"
    array = np.frombuffer(segment.view, np.uint8)
    segment.close()
    segment.unlink()
    assert not segment.path.exists()
    assert bytes(array[:4]) == b"data"
    assert mapped(segment.path)
    path = segment.path
    del array, segment
    assert not mapped(path)


def test_close_and_unlink_may_be_called_twice(shared_folder: Path) -> None:
    segment = Segment.create(shared_folder / "s", 4096)
    for _ in range(2):
        segment.close()
        segment.unlink()
    assert not mapped(segment.path)
    assert "closed" in repr(segment)


def test_pieces_of_a_large_sparse_segment_keep_what_they_hold_when_their_neighbours_come(
    shared_folder: Path,
) -> None:
    size, piece = 17 * 2**20 + 100, 300_000
    segment = Segment.create(shared_folder / "s", size, sparse=True)
    other = Segment.attach(shared_folder / "s", sparse=True)
    starts = list(range(0, size - piece, piece))
    np.random.default_rng(3).shuffle(starts)
    for number, start in enumerate(starts):
        segment.reserve(start, piece)
        segment.view[start : start + piece] = bytes([number % 251 + 1]) * piece
    for number, start in enumerate(starts):
        assert bytes(other.view[start : start + piece]) == bytes([number % 251 + 1]) * piece
    assert segment.path.stat().st_blocks * 512 >= len(starts) * piece
    assert segment.path.stat().st_blocks * 512 <= size + mmap.PAGESIZE
    other.close()
    segment.close()


def test_a_large_segment_is_reserved_in_full_and_zeros(shared_folder: Path) -> None:
    size = 5 * 2**20 + 777
    segment = Segment.create(shared_folder / "s", size)
    assert segment.path.stat().st_blocks * 512 >= size
    assert not np.frombuffer(segment.view, np.uint8).any()
    segment.close()


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4096, 2**40 + 1])
def test_align_gives_the_next_cache_line(size: int) -> None:
    assert align(size) % 64 == 0
    assert 0 <= align(size) - size < 64


def test_a_private_mapping_shows_what_is_there_and_changes_nothing(shared_folder: Path) -> None:
    segment = Segment.create(shared_folder / "s", 8192)
    segment.view[:4] = b"here"
    private = Segment.attach(shared_folder / "s", private=True)
    assert bytes(private.view[:4]) == b"here"
    private.view[:4] = b"mine"
    assert bytes(private.view[:4]) == b"mine"
    assert bytes(segment.view[:4]) == b"here"
    assert (shared_folder / "s").read_bytes()[:4] == b"here"
    private.close()
    segment.close()
