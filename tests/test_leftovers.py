"""What killed recordings leave behind is found, and goes only if it is nobody's and holds nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
from children import Child
from wrecks import BATCH, ROWS, Wreck, wreck

import shmstore
from shmstore import HDF5Storage, StorageError
from shmstore.leftovers import (
    LeftSession,
    find_files,
    find_sessions,
    is_written,
    reclaim,
    shared_memory,
)
from shmstore.segment import Segment
from shmstore.session import OWNER_LOCK, Session, State


@pytest.fixture
def empty(output_dir: Path, shared_folder: Path) -> Wreck:
    """Return a recording that was killed before anything was put."""
    return wreck(output_dir, shared_folder)


@pytest.fixture
def full(output_dir: Path, shared_folder: Path) -> Wreck:
    """Return a recording that was killed with three batches in a ring, of which the file has none."""
    return wreck(output_dir, shared_folder, "put", "flush", "stop", "put", "put", "put")


def only(shm_dir: Path) -> LeftSession:
    (session,) = find_sessions(shm_dir)
    return session


# -- sessions ------------------------------------------------------------------------------------------------


def test_a_killed_session_is_found_with_what_it_holds(full: Wreck, shared_folder: Path) -> None:
    session = only(shared_folder)
    assert (session.name, session.folder, session.user) == ("wreck", str(full.folder), os.geteuid())
    assert (session.owner_pid, session.writer_pid) == (full.owner, full.writer)
    assert (session.owner_lives, session.writer_lives, session.producers) == (False, False, ())
    assert (session.batches, session.rows, session.holds_data) == (3, 3 * ROWS, True)
    assert (session.in_use, session.left_behind) == (False, True)
    assert session.state in ("recording", "broken")  # its owner may have noticed the writer's end
    assert session.remedy == f"shmstore recover {full.path}"
    assert session.size_bytes >= 256 * 1024
    assert session.problem is None


def test_one_that_holds_data_goes_only_if_told_so(full: Wreck, shared_folder: Path) -> None:
    assert not reclaim(only(shared_folder))
    assert only(shared_folder).batches == 3
    assert reclaim(only(shared_folder), discard=True)
    assert not full.folder.exists()


def test_one_that_holds_nothing_goes_and_its_neighbours_stay(empty: Wreck, shared_folder: Path) -> None:
    (shared_folder / "other").mkdir()
    session = only(shared_folder)
    assert (session.holds_data, session.batches, session.tails) == (False, 0, False)
    assert session.remedy == "shmstore doctor --reclaim"
    assert reclaim(session)
    assert [path.name for path in shared_folder.iterdir()] == ["other"]
    assert empty.path.exists()
    assert reclaim(session)  # it is gone


def test_unfinished_chunks_are_data(output_dir: Path, shared_folder: Path) -> None:
    wreck(output_dir, shared_folder, "put", "flush")
    session = only(shared_folder)
    assert (session.batches, session.tails, session.holds_data) == (0, True, True)
    assert not reclaim(session)


def test_what_is_left_of_a_finished_recording_holds_nothing(
    full: Wreck, output_dir: Path, shared_folder: Path
) -> None:
    session = only(shared_folder)
    assert (session.recording, session.finished) == (str(full.path), False)
    assert session.remedy == f"shmstore recover {full.path}"
    full.path.unlink()
    shutil.rmtree(full.path.with_name(full.path.name + ".recovery"))
    assert only(shared_folder).holds_data
    with HDF5Storage(output_dir=output_dir, filename=full.path.name, ring_bytes="256KiB") as storage:
        storage.write_batch("x", BATCH)
    session = only(shared_folder)
    assert (session.finished, session.holds_data, session.batches) == (True, False, 3)
    assert reclaim(session)


def test_a_session_that_closed_and_was_not_removed_holds_nothing(full: Wreck, shared_folder: Path) -> None:
    page = Session.attach(full.folder)
    page.state = State.CLOSED
    page.close()
    assert reclaim(only(shared_folder))


def test_a_living_recording_is_left_alone(output_dir: Path, shared_folder: Path) -> None:
    with HDF5Storage(output_dir=output_dir, shm_dir=shared_folder, ring_bytes="256KiB") as storage:
        storage.write_batch("x", BATCH)
        session = only(shared_folder)
        assert (session.owner_lives, session.writer_lives) == (True, True)
        assert (session.owner_pid, session.writer_pid) == (os.getpid(), storage.writer_pid)
        assert session.producers == (os.getpid(),)
        assert (session.in_use, session.left_behind, session.remedy) == (True, False, None)
        assert not reclaim(session, discard=True)
        storage.write_batch("x", BATCH)
    assert shmstore.read(storage.path, "x").num_rows == 2 * ROWS


def test_a_process_id_that_is_in_use_again_does_not_count(empty: Wreck, shared_folder: Path) -> None:
    page = Segment.attach(empty.folder / "page")
    page.words(0, 4)[2:4] = memoryview(bytearray(os.getpid().to_bytes(8, "little") * 2)).cast("Q")
    page.close()
    session = only(shared_folder)
    assert (session.owner_pid, session.writer_pid) == (os.getpid(),) * 2
    assert (session.owner_lives, session.left_behind) == (False, True)
    assert reclaim(session)


@pytest.mark.parametrize("name", ["ledger-1", "report.new", "recording.new", "ring-12"])
def test_a_folder_of_which_nearly_all_is_gone_is_still_a_session(shared_folder: Path, name: str) -> None:
    folder = shared_folder / "shmstore-nearly"
    folder.mkdir(0o700)
    (folder / name).touch()
    assert only(shared_folder).name == "nearly"
    (folder / name).rename(folder / "ledger")
    assert find_sessions(shared_folder) == []


def test_one_that_is_taken_up_meanwhile_is_left_alone(empty: Wreck, shared_folder: Path) -> None:
    session = only(shared_folder)
    page = Segment.attach(empty.folder / "page")
    assert page.try_lock(OWNER_LOCK)
    assert not reclaim(session, discard=True)
    assert only(shared_folder).owner_lives
    page.close()
    assert reclaim(session)


def test_a_new_session_of_the_same_name_is_left_alone(empty: Wreck, shared_folder: Path) -> None:
    found = only(shared_folder)
    assert reclaim(found)
    session = Session.create(shared_folder, "wreck")
    assert not reclaim(found, discard=True)
    assert only(shared_folder).owner_lives
    session.remove()
    session.close()


def test_a_living_producer_keeps_its_session(full: Wreck, shared_folder: Path) -> None:
    found = only(shared_folder)
    (ring,) = full.folder.glob("ring-*")
    with Child(
        "import os",
        "from shmstore.ring import Ring",
        f"ring = Ring.attach(Path({str(ring)!r}))",
        "say(ring.claim(os.getpid()))",
        "wait()",
    ) as child:
        assert child.hear() == "True"
        session = only(shared_folder)
        assert (session.producers, session.in_use) == ((child.pid,), True)
        assert not reclaim(found, discard=True)  # as it was found before
    assert reclaim(only(shared_folder), discard=True)


def test_what_belongs_to_another_user_is_not_looked_into(
    empty: Wreck, shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = only(shared_folder)
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    session = only(shared_folder)
    assert (session.foreign, session.left_behind, session.owner_pid) == (True, False, 0)
    assert not reclaim(session, discard=True)
    assert not reclaim(ours, discard=True)
    assert empty.folder.exists()


def test_damage_is_named_and_counts_as_data(full: Wreck, shared_folder: Path) -> None:
    (ring,) = full.folder.glob("ring-*")
    with ring.open("r+b") as file:
        file.write(bytes(64))
    session = only(shared_folder)
    assert session.problem
    assert "is no ring of this version" in session.problem
    assert session.holds_data
    with (full.folder / "page").open("r+b") as file:
        file.write(b"OLDPAGE0")
    session = only(shared_folder)
    assert "is no session of this version" in str(session.problem)
    assert session.state == "unknown"
    assert not reclaim(session)
    assert reclaim(session, discard=True)


def test_a_session_that_was_never_begun_goes(shared_folder: Path) -> None:
    (shared_folder / "shmstore-bare").mkdir()
    (shared_folder / "shmstore-page").mkdir()
    Segment.create(shared_folder / "shmstore-page" / "page", 4096).close()
    sessions = find_sessions(shared_folder)
    assert [(session.name, session.holds_data) for session in sessions] == [("bare", False), ("page", False)]
    assert all(reclaim(session) for session in sessions)
    assert not list(shared_folder.iterdir())


def test_what_is_no_session_is_no_concern_of_ours(empty: Wreck, shared_folder: Path) -> None:
    (shared_folder / "shmstore-file").touch()
    (shared_folder / "shmstore-link").symlink_to(empty.folder)
    (shared_folder / "shmstore-notes").mkdir()
    (shared_folder / "shmstore-notes" / "todo.txt").touch()
    assert only(shared_folder).folder == str(empty.folder)
    with pytest.raises(StorageError, match="look for sessions"):
        find_sessions(shared_folder / "none")


# -- files ---------------------------------------------------------------------------------------------------


def test_a_recording_that_nobody_writes_any_more_is_found(empty: Wreck, output_dir: Path) -> None:
    found, beside = find_files(output_dir)
    assert (found.path, found.kind) == (str(empty.path), "recording")
    assert (beside.path, beside.kind) == (f"{empty.path}.recovery", "recovery")
    assert found.recording == beside.recording == str(empty.path)
    assert found.remedy == f"shmstore recover {empty.path}"
    assert found.size_bytes > 0


def test_recordings_that_grow_or_are_finished_are_not_left(output_dir: Path) -> None:
    with h5py.File(output_dir / "other.h5", "w", libver=("v110", "v110")) as file:
        file["state"] = "recording"
    (output_dir / "notes.txt").write_text("no recording")
    with HDF5Storage(output_dir=output_dir, ring_bytes="256KiB") as storage:
        producer = storage.producer("x")
        for number in range(20):  # each brings an object, for which the writer has the file to itself
            storage.write_batch(f"x{number}", BATCH)
            assert not find_files(output_dir)
        producer.close()
        storage.flush()
        assert is_written(storage.path)
    assert is_written(storage.path) is False
    assert not find_files(output_dir)


@pytest.fixture
def remains(output_dir: Path) -> Iterator[Path]:
    """Make by hand what a writer that was killed and a recovery leave beside ``daq.h5``."""
    (output_dir / "daq.h5.recovery").mkdir(mode=0o700)
    (output_dir / "daq.h5.recovery" / "journal").write_bytes(bytes(5000))
    (output_dir / "daq.h5.recovering").write_bytes(bytes(100))
    (output_dir / "daq.h5.quarantine").mkdir()
    yield output_dir / "daq.h5"
    shutil.rmtree(output_dir / "daq.h5.recovery")


def test_what_lies_beside_a_recording_is_found(remains: Path, output_dir: Path) -> None:
    found = {file.kind: file for file in find_files(output_dir)}
    assert set(found) == {"recovery", "recovering", "quarantine"}
    assert found["recovery"].remedy == found["recovering"].remedy == f"shmstore recover {remains}"
    assert found["recovery"].size_bytes >= 5000
    assert found["quarantine"].remedy.startswith(f"shmstore ingest {remains}.quarantine/*.arrow")


def test_what_somebody_works_with_is_not_left(remains: Path, output_dir: Path, shared_folder: Path) -> None:
    with remains.with_name("daq.h5.recovering").open("r+b"):
        assert {file.kind for file in find_files(output_dir)} == {"recovery", "quarantine"}
    with remains.open("wb"):  # a writer
        assert {file.kind for file in find_files(output_dir)} == {"quarantine"}
    session = Session.create(shared_folder, "run")
    (session.folder / "recording").write_text(str(remains))
    assert not find_files(output_dir, find_sessions(shared_folder))
    session.close()
    assert len(find_files(output_dir, find_sessions(shared_folder))) == 3


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="look for leftovers"):
        find_files(tmp_path / "none")


def test_whether_a_file_is_being_written_is_asked_of_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert is_written(path) is False
    path.touch()
    assert is_written(path) is False
    with path.open("rb"):
        assert is_written(path) is False
    with path.open("ab"):
        assert is_written(path) is True
    with Child(f"file = open({str(path)!r}, 'ab')", "say('open')", "wait()") as child:
        assert child.hear() == "open"
        assert is_written(path) is True
        child.end()
    assert is_written(path) is False


# -- room ----------------------------------------------------------------------------------------------------


def test_shared_memory_is_told_as_the_system_has_it(shared_folder: Path) -> None:
    memory = shared_memory(shared_folder)
    found = os.statvfs(shared_folder)
    assert memory.size_bytes == found.f_blocks * found.f_frsize
    assert 0 <= memory.free_bytes <= memory.size_bytes
    assert (memory.advice is not None) == (memory.free_bytes < 512 << 20)
    with pytest.raises(StorageError):
        shared_memory(shared_folder / "none")


def test_small_shared_memory_comes_with_advice() -> None:
    small = shared_memory(Path("/proc"))  # a filesystem of no size at all
    assert small.size_bytes == 0
    assert small.advice
    assert "--shm-size=" in small.advice
    assert "mount -o remount,size=" in small.advice
