"""Large pages: the same bytes with and without, nothing kept that has gone, no patience with slow memory."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shmstore import largepages
from shmstore.largepages import BLOCK_BYTES, BlockWindow, GrowingFile, Mapping, Patience, reserve, trim

CONTENT = np.random.default_rng(7).integers(256, size=7 * BLOCK_BYTES + 12_345, dtype=np.uint8).tobytes()


@pytest.fixture
def fd(shared_folder: Path) -> Iterator[int]:
    opened = os.open(shared_folder / "f", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


def can_be_had(folder: Path) -> bool:
    """Whether this system gives large pages: as its settings tell, and as memory of another kind gets."""
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    setting = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    room = os.statvfs(folder)
    return (
        release >= (6, 1)
        and setting.exists()
        and "[deny]" not in setting.read_text()
        and Path("/proc/sys/kernel/sched_rt_runtime_us").read_text().strip() != "-1"
        and room.f_bavail * room.f_frsize > 32 * BLOCK_BYTES
        and _gives_one_to_anonymous_memory()
    )


def _gives_one_to_anonymous_memory() -> bool:
    with mmap.mmap(-1, 2 * BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:: mmap.PAGESIZE] = b"1" * (2 * BLOCK_BYTES // mmap.PAGESIZE)
        try:
            memory.madvise(25)  # MADV_COLLAPSE
        except OSError:
            return False
    return True


def grow(fd: int, growing: GrowingFile, largest: int = 400_000) -> None:
    """Append the content in pieces of all sizes, each told before it comes."""
    rng = np.random.default_rng(1)
    end = 0
    while end < len(CONTENT):
        piece = CONTENT[end : end + int(rng.integers(1, largest))]
        growing.expect(end, len(piece))
        assert os.fstat(fd).st_size < end + len(piece)
        assert os.pread(fd, len(piece), end).strip(b"\0") == b""
        end += os.pwrite(fd, piece, end)


def seen_through_large_pages(path: Path) -> int:
    """Return how many bytes of this process's mappings of a file are (proc(5), smaps)."""
    found, within = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split()[0].endswith(":"):
            within = line.endswith(str(path))
        elif within and line.startswith(("ShmemPmdMapped:", "FilePmdMapped:")):
            found += int(line.split()[1]) * 1024
    return found


# -- a file that grows -----------------------------------------------------------------------------------


def test_a_file_in_memory_has_the_same_bytes_and_at_its_end_no_memory_to_spare(
    shared_folder: Path, fd: int
) -> None:
    path = shared_folder / "f"
    # It is told through an open of its own, as the recording is.
    growing = GrowingFile(os.open(path, os.O_RDWR))
    grow(fd, growing)
    assert (growing.patience.given > 0) == can_be_had(shared_folder)
    assert path.read_bytes() == CONTENT
    growing.close()
    path.rename(shared_folder / "moved")
    path.write_bytes(CONTENT)  # what has its name now is not what is trimmed
    trim(growing._fd)
    os.close(growing._fd)
    path.unlink()
    (shared_folder / "moved").rename(path)
    assert path.stat().st_size == len(CONTENT)
    assert path.stat().st_blocks * 512 < len(CONTENT) + mmap.PAGESIZE
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("largest", [1_000, 400_000, 3 * BLOCK_BYTES])
def test_every_block_but_the_first_is_asked_for_before_it_is_written_to(
    shared_folder: Path, fd: int, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    """What is there already would have to be copied into the large page."""
    asked = []

    def enlarge(self: BlockWindow, block: int) -> None:
        written = os.pread(fd, BLOCK_BYTES, block * BLOCK_BYTES)
        asked.append((block, written.strip(b"\0")))

    monkeypatch.setattr(BlockWindow, "enlarge", enlarge)
    monkeypatch.setattr(largepages, "_TOO_SLOW_S", 10.0)
    growing = GrowingFile(fd)
    grow(fd, growing, largest)
    assert asked == [(block, b"") for block in range(1, 8)]
    growing.close()


@pytest.mark.parametrize("size", [BLOCK_BYTES - 9, BLOCK_BYTES - 8, 3 * BLOCK_BYTES - 9, 3 * BLOCK_BYTES - 8])
def test_what_is_expected_can_be_told_from_what_is_prepared(fd: int, size: int) -> None:
    """By the file's length: whoever appends has made it longer."""
    growing = GrowingFile(fd)
    end = BLOCK_BYTES + 10
    os.pwrite(fd, CONTENT[:end], 0)
    growing.expect(end, size)
    assert os.fstat(fd).st_size < end + size
    growing.close()


def test_a_block_that_is_half_full_when_something_is_expected_is_left_alone(fd: int) -> None:
    growing = GrowingFile(fd)
    os.pwrite(fd, CONTENT[: BLOCK_BYTES + BLOCK_BYTES // 2 + 1], 0)
    growing.expect(BLOCK_BYTES + BLOCK_BYTES // 2 + 1, 1000)
    assert not growing.patience.given
    growing.close()


def test_a_small_file_takes_no_large_page(shared_folder: Path, fd: int) -> None:
    growing = GrowingFile(fd)
    growing.expect(0, BLOCK_BYTES)
    os.pwrite(fd, CONTENT[:BLOCK_BYTES], 0)
    assert not growing.patience.given
    assert (shared_folder / "f").stat().st_blocks * 512 == BLOCK_BYTES
    growing.close()


def test_a_file_on_a_disk_is_left_alone(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    on_disk = not largepages.is_in_memory(fd)
    growing = GrowingFile(fd)
    grow(fd, growing)
    assert not (on_disk and growing.patience.given)
    assert (tmp_path / "f").read_bytes() == CONTENT
    growing.close()
    trim(fd)
    os.close(fd)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_closed_one_keeps_nothing_of_a_file_that_was_removed(shared_folder: Path, fd: int) -> None:
    growing = GrowingFile(fd)
    grow(fd, growing)
    (shared_folder / "f").unlink()
    growing.close()
    growing.close()
    assert str(shared_folder) not in Path("/proc/self/maps").read_text()
    growing.expect(100 * BLOCK_BYTES, BLOCK_BYTES)  # whoever is late: nothing is mapped any more
    assert str(shared_folder) not in Path("/proc/self/maps").read_text()


def test_where_space_is_short_no_page_is_taken_that_may_not_be_needed(
    shared_folder: Path, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = os.statvfs(shared_folder)
    monkeypatch.setattr(largepages, "_SPARE_PAGES", room.f_bavail * room.f_frsize // BLOCK_BYTES + 1)
    growing = GrowingFile(fd)
    grow(fd, growing)
    assert not growing.patience.given
    growing.close()


def test_a_system_that_maps_nothing_more_leaves_the_file_its_small_pages(
    shared_folder: Path, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(largepages, "_map", refuse)
    growing = GrowingFile(fd)
    grow(fd, growing)
    assert not growing.patience.given
    assert (shared_folder / "f").read_bytes() == CONTENT
    growing.close()


def test_a_disk_that_is_full_fails_the_write_and_nothing_before(
    shared_folder: Path, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    growing = GrowingFile(fd)
    grow(fd, growing)
    assert not growing.patience.given
    assert (shared_folder / "f").read_bytes() == CONTENT
    growing.close()


@pytest.mark.parametrize("limit", ["-1\n", None])
def test_where_a_real_time_thread_may_keep_a_processor_nobody_waits_for_it(
    shared_folder: Path, fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None
) -> None:
    if limit is not None:
        (tmp_path / "limit").write_text(limit)
    monkeypatch.setattr(largepages, "_REAL_TIME_LIMIT", tmp_path / "limit")
    largepages._real_time_is_unlimited.cache_clear()
    try:
        growing, patience = GrowingFile(fd), Patience()
        grow(fd, growing)
        reserve(fd, range(3), patience)
        assert not growing.patience.given
        assert patience.given == 0
        growing.close()
    finally:
        largepages._real_time_is_unlimited.cache_clear()


# -- memory reserved at once -----------------------------------------------------------------------------


def test_blocks_that_are_reserved_keep_what_they_hold_and_lie_in_large_pages(
    shared_folder: Path, fd: int
) -> None:
    os.ftruncate(fd, 3 * BLOCK_BYTES + 100)
    mapping = Mapping(fd, 3 * BLOCK_BYTES + 100, mmap.MAP_SHARED)
    mapping.view[BLOCK_BYTES + 5 : BLOCK_BYTES + 9] = b"here"
    patience = Patience()
    reserve(fd, range(3), patience)
    assert (patience.given > 0) == can_be_had(shared_folder)
    assert bytes(mapping.view[BLOCK_BYTES : BLOCK_BYTES + 12]) == b"\0" * 5 + b"here" + b"\0" * 3
    mapping.view[: BLOCK_BYTES // 2] = CONTENT[: BLOCK_BYTES // 2]
    assert os.pread(fd, BLOCK_BYTES // 2, 0) == CONTENT[: BLOCK_BYTES // 2]
    mapping.advise(0, BLOCK_BYTES, 14)  # MADV_HUGEPAGE: what is there may be seen as it lies
    if patience.given:
        assert seen_through_large_pages(shared_folder / "f")


def test_a_mapping_begins_where_a_large_page_can_and_takes_no_more_addresses_than_it_has(
    shared_folder: Path, fd: int
) -> None:
    def mappings() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    os.ftruncate(fd, BLOCK_BYTES + 5)
    before = mappings()
    made = [Mapping(fd, BLOCK_BYTES + 5, mmap.MAP_SHARED) for _ in range(20)]
    array = np.frombuffer(made[0].view, np.uint8)
    assert (array.ctypes.data % BLOCK_BYTES, len(array)) == (0, BLOCK_BYTES + 5)
    assert mappings() <= before + 20 + 2  # neighbours may be taken for one
    made.clear()
    assert str(shared_folder) in Path("/proc/self/maps").read_text()
    assert array[-1] == 0
    del array
    assert str(shared_folder) not in Path("/proc/self/maps").read_text()


def test_what_cannot_be_mapped_is_an_error(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(PermissionError):
            Mapping(folder, 100, mmap.MAP_SHARED)
        with pytest.raises(OSError, match="No such device"):
            BlockWindow(folder).enlarge(0)
    finally:
        os.close(folder)


# -- patience --------------------------------------------------------------------------------------------


class Memory:
    """Gives pages after as many seconds of processor time as it is told, or an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.takes_s = 0.0
        self.error = 0
        self.asked = 0
        monkeypatch.setattr(largepages.time, "thread_time", lambda: self.now_s)

    def enlarge(self) -> None:
        self.asked += 1
        self.now_s += self.takes_s
        if self.error:
            raise OSError(self.error, os.strerror(self.error))

    def asked_in(self, patience: Patience, chances: int) -> list[int]:
        """Return which of so many chances were taken."""
        taken = []
        for number in range(chances):
            before = self.asked
            patience.ask(self.enlarge)
            taken += [number] * (self.asked - before)
        return taken


def test_quick_memory_is_asked_for_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, patience = Memory(monkeypatch), Patience()
    memory.takes_s = 1e-4
    assert memory.asked_in(patience, 50) == list(range(50))
    assert patience.given == 50


@pytest.mark.parametrize("error", [0, errno.ENOMEM])
def test_slow_or_scarce_memory_is_left_alone_for_longer_and_longer(
    monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    memory, patience = Memory(monkeypatch), Patience()
    memory.takes_s, memory.error = 0.0 if error else 5e-3, error
    assert memory.asked_in(patience, 700) == [0, 2, 11, 76, 589]
    assert memory.asked_in(patience, 100_000)[-1] > 95_000  # but not for ever
    memory.takes_s = memory.error = 0
    memory.asked_in(patience, 5000)
    assert memory.asked_in(patience, 10) == list(range(10))  # once it is quick again, all is well


def test_a_system_without_large_pages_is_hardly_ever_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, patience = Memory(monkeypatch), Patience()
    memory.error = errno.EINVAL
    assert memory.asked_in(patience, 10_000) == [0, 4097, 8194]
    assert patience.given == 0
