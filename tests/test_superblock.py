"""Reading and repairing superblocks, against files that HDF5 wrote and writers that were killed."""

from __future__ import annotations

import os
import signal
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
from children import Child

from shmstore.errors import IncompleteFileError, StorageError
from shmstore.superblock import lookup3, read_superblock, repair_superblock

FLUSHED = 5000


@pytest.fixture
def intact(tmp_path: Path) -> Path:
    path = tmp_path / "intact.h5"
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file["x"] = np.arange(1000)
    return path


def test_the_checksum_is_the_one_of_lookup3() -> None:
    # From driver5() in lookup3.c.
    assert lookup3(b"") == 0xDEADBEEF
    assert lookup3(b"Four score and seven years ago") == 0x17770551
    # Every length up to two blocks takes another way through the last one.
    assert len({lookup3(bytes(length)) for length in range(25)}) == 25


def test_an_intact_file_is_left_alone(intact: Path) -> None:
    before = intact.read_bytes()
    superblock = read_superblock(intact)
    assert (superblock.version, superblock.flags, superblock.checksum_ok) == (3, 0, True)
    assert superblock.end_of_file == len(before)
    assert not repair_superblock(intact)
    assert intact.read_bytes() == before


@pytest.mark.parametrize("place", [11, 28, 44], ids=["flags", "end of file", "checksum"])
def test_what_is_repaired_is_what_hdf5_wrote(intact: Path, place: int) -> None:
    before = intact.read_bytes()
    with intact.open("r+b") as file:
        os.pwrite(file.fileno(), bytes([before[place] ^ 5]), place)
    assert not read_superblock(intact).checksum_ok
    with pytest.raises(OSError):
        h5py.File(intact)
    assert repair_superblock(intact)
    assert intact.read_bytes() == before


def test_a_file_whose_writer_was_killed_opens_plainly_after_the_repair(tmp_path: Path) -> None:
    path = tmp_path / "killed.h5"
    with Child(
        "import h5py, numpy as np",
        f"file = h5py.File({str(path)!r}, 'w', libver=('v110', 'v110'))",
        "data = file.create_dataset('x', (0,), 'i8', maxshape=(None,), chunks=(100,), compression='gzip')",
        "file.swmr_mode = True",
        "def append(count):",
        "    for _ in range(count):",
        "        rows = len(data)",
        "        data.resize(rows + 50, 0)",
        "        data[rows:] = np.arange(rows, rows + 50)",
        f"append({FLUSHED} // 50)",
        "file.flush()",
        "append(37)",
        "say('ready')",
        "wait()",
    ) as child:
        assert child.hear() == "ready"
        child.end(signal.SIGKILL)
    with pytest.raises(OSError):
        h5py.File(path)
    superblock = read_superblock(path)
    assert superblock.flags & 1
    assert superblock.checksum_ok
    assert repair_superblock(path)
    assert read_superblock(path).flags == 0
    with h5py.File(path) as file:
        assert len(file["x"]) >= FLUSHED
        assert np.array_equal(file["x"][:FLUSHED], np.arange(FLUSHED))
    with h5py.File(path, "r+") as file:
        file["y"] = 1
    assert not repair_superblock(path)


def test_what_cannot_be_repaired_is_said_and_left_alone(intact: Path, tmp_path: Path) -> None:
    whole = intact.read_bytes()
    with h5py.File(tmp_path / "old.h5", "w", libver=("earliest", "v108")) as file:
        file["x"] = 1
    cases = {
        "empty": (b"", "does not begin like an HDF5 file"),
        "text": (b"time,volts\n" * 9, "does not begin like an HDF5 file"),
        "short": (whole[:47], "cut off"),
        "old": ((tmp_path / "old.h5").read_bytes(), "version 0, not 3"),
        "narrow": (whole[:9] + b"\4" + whole[10:], "offsets of 4"),
    }
    for name, (content, reason) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        for use in (read_superblock, repair_superblock):
            with pytest.raises(IncompleteFileError, match=reason):
                use(path)
        assert path.read_bytes() == content
    with pytest.raises(StorageError, match="superblock"):
        read_superblock(tmp_path / "none.h5")
    with pytest.raises(StorageError, match="superblock"):
        repair_superblock(tmp_path)


def test_a_stale_end_of_file_becomes_the_size_of_the_file(intact: Path) -> None:
    with intact.open("ab") as file:
        file.write(bytes(4096))
    assert repair_superblock(intact)
    with intact.open("rb") as file:
        assert struct.unpack("<Q", file.read(36)[28:])[0] == intact.stat().st_size
    with h5py.File(intact) as file:
        assert file["x"][-1] == 999
