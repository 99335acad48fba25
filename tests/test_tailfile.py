"""Tail files: the newest generation that is whole, whatever became of the other."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from broken_disk import BrokenFile, BrokenTailFile
from children import Child
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmstore.errors import IncompleteFileError, StorageError
from shmstore.tailfile import TailFile

OLDER = (b"older checkpoint", [b"a" * 30, b"", b"bc"])
NEWER = (b"newer", [b"d", b"ef" * 20])
DAMAGE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MUCH_DAMAGE = settings(DAMAGE, max_examples=30_000)


@pytest.fixture
def tails(tmp_path: Path) -> Iterator[TailFile]:
    made = TailFile(tmp_path)
    yield made
    made.close()


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[BrokenTailFile]:
    made = BrokenTailFile(tmp_path)
    yield made
    made.close()
    BrokenFile.answers.clear()


def found_in(folder: Path) -> tuple[bytes, list[bytes]] | None:
    """What somebody who takes over finds."""
    return TailFile(folder).load()


def test_the_newest_is_found_here_and_by_who_takes_over(tails: TailFile) -> None:
    assert tails.load() is None
    assert not list(tails.folder.iterdir())
    for number in range(6):
        contents = [bytes([i]) * (number * i) for i in range(6 - number)]
        tails.save(b"%d" % number, contents)
        assert tails.load() == found_in(tails.folder) == (b"%d" % number, contents)
    assert sorted(path.name for path in tails.folder.iterdir()) == ["tails-0", "tails-1"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tails.folder.iterdir()} == {0o600}
    again = TailFile(tails.folder)
    again.save(b"taken over", [])
    assert tails.load() == (b"taken over", [])
    again.close()


def test_contents_may_be_any_contiguous_bytes(tails: TailFile) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(4, 6)
    many = [memoryview(b"x")] * 3000
    tails.save(b"", [array, memoryview(b"view"), array[:0], b"bytes", *many])
    assert tails.load() == (b"", [bytes(range(24)), b"view", b"", b"bytes", *many])
    with pytest.raises(TypeError):
        tails.save(b"", [array[:, ::2]])
    assert found_in(tails.folder) is not None


def test_the_bytes_are_those_of_the_document(tails: TailFile) -> None:
    tails.save(*OLDER)
    checkpoint, contents = OLDER
    signature = b"SHMTAILS" + struct.pack("<HH", 1, 0)
    signature += struct.pack("<I", zlib.crc32(signature))
    header = struct.pack("<QQIII", 1, len(checkpoint), zlib.crc32(checkpoint), len(contents), 0)
    table = b"".join(struct.pack("<QII", len(part), zlib.crc32(part), 0) for part in contents)
    crc = struct.pack("<I", zlib.crc32(header + table))
    assert tails.path(1).read_bytes() == signature + header + crc + table + checkpoint + b"".join(contents)
    assert not tails.path(0).exists()


def test_files_are_made_again_where_they_were_removed(tails: TailFile) -> None:
    tails.save(*OLDER)
    tails.save(*NEWER)
    tails.remove()
    tails.remove()
    assert not list(tails.folder.iterdir())
    assert tails.load() is None
    tails.save(*NEWER)
    assert found_in(tails.folder) == NEWER


def test_a_save_torn_at_any_byte_leaves_the_one_before(tails: TailFile, tmp_path: Path) -> None:
    tails.save(b"oldest and longer than the newest", [b"z" * 90])
    tails.save(*OLDER)
    before = tails.path(1).read_bytes()
    tails.save(*NEWER)
    after = tails.path(1).read_bytes()
    length = 48 + 2 * 16 + len(NEWER[0]) + sum(map(len, NEWER[1]))  # without what is behind it
    for at in range(len(after)):
        for image in (after[:at] + before[at:], before[:at] + after[at:], after[:at]):
            tails.path(1).write_bytes(image)
            whole = image[:length] == after[:length]
            assert found_in(tmp_path) == (NEWER if whole else OLDER)


def test_a_bit_that_flips_costs_no_more_than_its_generation(tails: TailFile) -> None:
    tails.save(*OLDER)
    tails.save(*NEWER)
    for number, left in ((1, NEWER), (0, OLDER)):
        data = bytearray(tails.path(number).read_bytes())
        for at in range(len(data)):
            data[at] ^= 1 << at % 8
            tails.path(number).write_bytes(data)
            data[at] ^= 1 << at % 8
            assert found_in(tails.folder) == left
        tails.path(number).write_bytes(data)


def test_the_generation_that_is_left_is_not_overwritten(tails: TailFile) -> None:
    tails.save(*OLDER)
    tails.save(*NEWER)
    with tails.path(0).open("r+b") as file:
        file.write(b"torn")
    again = TailFile(tails.folder)
    kept = tails.path(1).read_bytes()
    again.save(b"next", [])
    assert tails.path(1).read_bytes() == kept
    assert found_in(tails.folder) == (b"next", [])
    again.close()


def test_lengths_beyond_the_file_are_no_reason_to_ask_for_memory(tails: TailFile) -> None:
    def damage(length: int, count: int, table: Sequence[int]) -> None:
        header = struct.pack("<QQIII", 3, length, 0, count, 0)
        rows = b"".join(struct.pack("<QII", each, 0, 0) for each in table)
        crc = struct.pack("<I", zlib.crc32(header + rows))
        tails.path(1).write_bytes(tails.path(0).read_bytes()[:16] + header + crc + rows)

    tails.save(*OLDER)
    tails.save(*NEWER)
    for length, count, table in [(2**63, 0, []), (0, 2**32 - 1, []), (0, 2, [2**64 - 1, 2**64 - 1])]:
        damage(length, count, table)
        assert found_in(tails.folder) == NEWER
    damage(0, 0, [])
    assert found_in(tails.folder) == (b"", [])  # had it been whole


def test_another_major_version_is_neither_read_nor_overwritten(tails: TailFile) -> None:
    tails.save(*OLDER)
    head = b"SHMTAILS" + struct.pack("<HH", 2, 0)
    tails.path(0).write_bytes(head + struct.pack("<I", zlib.crc32(head)))
    again = TailFile(tails.folder)
    for refused in (again.load, lambda: again.save(*NEWER)):
        with pytest.raises(IncompleteFileError, match=r"version 2\.0 .*use the shmstore that made it"):
            refused()
    assert tails.path(0).stat().st_size == 16


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("taken", [[], [1], [60], [20, 40, 30]])
def test_a_refused_save_keeps_the_one_before_and_can_be_repeated(
    broken: BrokenTailFile, code: int, taken: list[int]
) -> None:
    broken.save(b"oldest", [])
    broken.save(*OLDER)
    BrokenFile.answers[:] = [*taken, -code, -code]
    for _ in range(2):
        with pytest.raises(StorageError, match="cannot write a tail file") as caught:
            broken.save(*NEWER)
        assert caught.value.errno == code
        assert found_in(broken.folder) == OLDER
    broken.save(*NEWER)
    assert found_in(broken.folder) == NEWER
    broken.path(0).unlink()
    assert found_in(broken.folder) == NEWER  # the repetition went into the same file


def test_a_folder_that_vanished_is_an_error_not_a_save_into_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "recovery"
    tails = TailFile(folder)
    assert tails.load() is None
    with pytest.raises(StorageError, match="create the folder first"):
        tails.save(*OLDER)
    folder.mkdir()
    tails.save(*OLDER)
    tails.save(*NEWER)
    for path in list(folder.iterdir()):
        path.unlink()
    folder.rmdir()
    with pytest.raises(StorageError) as caught:
        tails.save(*NEWER)
    assert caught.value.errno == errno.ENOENT
    tails.close()


def test_something_else_in_their_place_is_refused(tails: TailFile) -> None:
    os.mkfifo(tails.path(0))
    with pytest.raises(IncompleteFileError, match="no regular file"):
        tails.load()


def test_a_real_file_that_may_not_grow_leaves_the_one_before(tmp_path: Path) -> None:
    """The system's own short write, and its own refusal after it."""
    with Child(
        "import resource",
        "from shmstore.errors import StorageError",
        "from shmstore.tailfile import TailFile",
        f"tails = TailFile(Path({str(tmp_path)!r}))",
        "tails.save(b'small', [b'x' * 100])",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))",
        "try:",
        "    tails.save(b'large', [b'y' * 9000])",
        "except StorageError as error:",
        "    say(error.errno)",
        "wait()",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))",
        "tails.save(b'large', [b'y' * 9000])",
        "say('saved')",
    ) as child:
        assert child.hear() == str(errno.EFBIG)
        assert found_in(tmp_path) == (b"small", [b"x" * 100])
        child.tell()
        assert child.hear() == "saved"
    assert found_in(tmp_path) == (b"large", [b"y" * 9000])


def survive(folder: Path, number: int, data: bytes) -> tuple[bytes, list[bytes]] | None:
    """Load any bytes: a result or a clear error."""
    (folder / f"tails-{number}").write_bytes(data)
    with contextlib.suppress(IncompleteFileError):
        return found_in(folder)
    return None


def damaged(folder: Path, data: bytes, changes: list[tuple[int, bytes]], size: int) -> None:
    """Any bytes beside a whole generation leave that one; so does any change of one that was whole."""
    with contextlib.closing(TailFile(folder)) as tails:
        tails.remove()
        tails.save(*OLDER)
        tails.save(*NEWER)
    image = bytearray(tails.path(0).read_bytes())
    for at, new in changes:
        image[at : at + len(new)] = new
    assert survive(folder, 0, bytes(image[:size])) in (OLDER, NEWER)
    assert survive(folder, 0, data) == OLDER
    assert survive(folder, 0, bytes(image[:16]) + data) in (OLDER, None)


CHANGES = st.lists(st.tuples(st.integers(0, 125), st.binary(min_size=1, max_size=12)), max_size=4)
SIZES = st.integers(0, 140)


@DAMAGE
@given(st.binary(max_size=300), CHANGES, SIZES)
def test_any_damage_leaves_the_other_generation(
    tmp_path: Path, data: bytes, changes: list[tuple[int, bytes]], size: int
) -> None:
    damaged(tmp_path, data, changes, size)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@MUCH_DAMAGE
@given(st.binary(max_size=300), CHANGES, SIZES)
def test_much_damage_leaves_the_other_generation(
    tmp_path: Path, data: bytes, changes: list[tuple[int, bytes]], size: int
) -> None:
    damaged(tmp_path, data, changes, size)
