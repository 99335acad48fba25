"""Disk files: whole writes whatever the system takes at a time, reads that mind the size."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from broken_disk import BrokenFile

from shmstore.disk import DiskFile, flat
from shmstore.errors import IncompleteFileError


@pytest.fixture
def file(tmp_path: Path) -> Iterator[DiskFile]:
    made = DiskFile.create(tmp_path / "f")
    yield made
    made.close()


def test_a_new_file_is_its_owners_alone_and_never_one_that_exists(file: DiskFile) -> None:
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        DiskFile.create(file.path)


def test_more_parts_than_one_call_takes_come_out_in_order(file: DiskFile) -> None:
    parts = [bytes([i % 251]) * (i % 5) for i in range(5000)]
    file.write(parts, 3)
    assert file.read(0, file.size + 100) == b"\0\0\0" + b"".join(parts)


@pytest.mark.parametrize("most", [1, 2, 3, 7, 11])
def test_short_writes_are_continued(tmp_path: Path, most: int) -> None:
    file = BrokenFile.create(tmp_path / "short")
    BrokenFile.answers[:] = [most] * 5
    file.write([b"ab", b"", memoryview(b"cdefg"), b"hij"], 0)
    assert file.read(0, 100) == b"abcdefghij"
    BrokenFile.answers.clear()
    file.close()


def test_a_disk_that_takes_nothing_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    file = BrokenFile.create(tmp_path / "none")
    BrokenFile.answers[:] = [2, 0]
    with pytest.raises(OSError) as caught:
        file.write([b"abc"], 0)
    assert caught.value.errno == errno.EIO
    file.close()


def test_a_read_takes_no_more_memory_than_the_file_has(file: DiskFile) -> None:
    file.write([b"abc"], 0)
    assert file.read(1, 2**60) == b"bc"
    assert file.read(3, 5) == file.read(2**40, 5) == b""


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(IncompleteFileError, match="no regular file"):
            DiskFile.open(path)


def test_syncing_a_file_that_was_removed_is_an_error(file: DiskFile) -> None:
    file.write([b"abc"], 0)
    file.sync()
    file.path.unlink()
    with pytest.raises(FileNotFoundError):
        file.sync()


def test_flat_looks_at_the_same_bytes_and_takes_contiguous_ones_only() -> None:
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    view = flat(array)
    assert bytes(view) == bytes(range(12))
    array[0, 0] = 99
    assert view[0] == 99
    assert len(flat(array[:0])) == 0
    with pytest.raises(TypeError):
        flat(array[:, ::2])
