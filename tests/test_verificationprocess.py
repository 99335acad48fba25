"""HDF5 loops for ever over a damaged heap: verify says where, and comes back with what it found before."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import h5py
import pyarrow as pa
import pytest

import shmstore
from shmstore import HDF5Storage, recoveryprocess
from shmstore.recovery import clear_up
from shmstore.watchedprocess import ask

#: Processor time after which a file of 100 kB is taken to hang; starting takes 0.4 s of it.
HANG_S = 3.0
TEXT = [f"text {number}" for number in range(20)]


@pytest.fixture
def recording(output_dir: Path) -> Path:
    """Record three instruments, the second with text in HDF5's heap."""
    with HDF5Storage(
        output_dir=output_dir, ring_bytes="64KiB", strings="vlen", compression="none", chunk_rows=64
    ) as storage:
        storage.write_batch("first", pa.table({"n": range(20)}))
        storage.write_batch("second", pa.table({"m": range(20), "text": TEXT}))
        storage.write_batch("third", pa.table({"n": range(20)}))
    return storage.path


def damage_heap(path: Path, holding: bytes) -> None:
    """Put zeros over the head of the first object of the heap in which something is.

    Of an object that is 0 and 0 bytes long, HDF5 2.0 goes on to the next one where it is.
    """
    whole = bytearray(path.read_bytes())
    start = whole.rindex(b"GCOL", 0, whole.index(holding))
    whole[start + 16 : start + 32] = bytes(16)
    path.unlink()  # HDF5 knows files by their inode
    path.write_bytes(whole)


def change_a_byte(path: Path, dataset: str) -> None:
    with h5py.File(path) as file:
        place = file[dataset].id.get_chunk_info(0).byte_offset
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(b"\xff")


def test_where_hdf5_comes_to_no_end_is_a_problem_beside_the_others(recording: Path) -> None:
    damage_heap(recording, b"text 7\0")
    change_a_byte(recording, "third/n")
    seen: list[tuple[int, int]] = []
    report = shmstore.verify(recording, lambda done, total: seen.append((done, total)), hang_s=HANG_S)
    assert (report.ok, report.path, report.state) == (False, str(recording), "complete")
    assert len(report.problems) == 2
    assert "instrument 'third', column 'n', chunk 0" in report.problems[0]
    assert report.problems[1] == (
        "HDF5 comes to no end while it reads instrument 'second', column 'text': the file is damaged there, "
        "and not all of it was checked: restore it from a copy"
    )
    assert [(item.name, item.rows, item.columns) for item in report.instruments] == [("first", 20, 1)]
    assert seen
    assert shmstore.verify(recording, hang_s=HANG_S) == report


def test_a_file_that_hdf5_cannot_even_open_has_an_unknown_state(recording: Path) -> None:
    damage_heap(recording, b"complete")
    report = shmstore.verify(recording, hang_s=HANG_S)
    assert (report.ok, report.state, report.instruments) == (False, "unknown", ())
    assert "comes to no end while it reads the head of the file" in "".join(report.problems)
    assert str(report).startswith(f"{recording}: unknown, 1 problems\n  problem: HDF5 comes to no end")


def test_a_recovery_in_which_hdf5_comes_to_no_end_is_ended(recording: Path, shared_folder: Path) -> None:
    damage_heap(recording, b"text 7\0")
    damaged = recording.read_bytes()
    ending = ask("shmstore.recoveryprocess", str(recording), str(shared_folder), hang_s=HANG_S)
    assert ending.hung
    assert ending.at == "instrument 'second', column 'text'"
    assert recording.read_bytes() == damaged


def test_a_recovery_that_is_ended_leaves_nothing_of_its_own(
    recording: Path, shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage_heap(recording, b"text 7\0")
    damaged = recording.read_bytes()
    recording.with_name(recording.name + ".recovering").write_text("what it had begun")
    monkeypatch.setattr(recoveryprocess, "ask", partial(ask, hang_s=HANG_S))
    with pytest.raises(shmstore.BrokenError, match="came to no end in it while it read instrument 'second'"):
        shmstore.recover(recording, shm_dir=shared_folder)
    assert list(recording.parent.iterdir()) == [recording]
    assert recording.read_bytes() == damaged


def test_what_was_about_to_take_the_place_of_the_old_one_is_not_cleared_up(
    recording: Path, shared_folder: Path
) -> None:
    made_anew = recording.with_name(recording.name + ".recovering")
    made_anew.write_text("all that there may be")
    recording.with_name(recording.name + ".recovery.old").mkdir()
    clear_up(recording, shared_folder)
    assert made_anew.exists()


def test_what_the_listener_raises_ends_the_verification(recording: Path) -> None:
    def progress(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        shmstore.verify(recording, progress)


def test_a_process_that_does_not_start_is_no_fault_of_the_file(
    recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(shmstore.BrokenError, match=f"that verified {recording} ended with exit code 1"):
        shmstore.verify(recording)
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(shmstore.StorageError, match="cannot start a process: No such file"):
        shmstore.verify(recording)
