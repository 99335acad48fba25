"""``shmstore recover``, run as a command on recordings whose owner and writer were killed."""

from __future__ import annotations

import resource
import subprocess
import time
from functools import partial
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from children import Child
from commandline import document, only_error, running, shmstore
from wrecks import BATCH, REFUSED, ROWS, wreck

import shmstore as package
from shmstore import BrokenError, HDF5Storage

#: So many batches fill chunks.
MANY = 400


def recover(output_dir: Path, shm_dir: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return shmstore("recover", "--shm-dir", shm_dir, *arguments, cwd=output_dir)


def assert_whole(path: Path, shm_dir: Path, batches: int) -> None:
    """Check that all batches are there, in order and once, and that nothing else is left."""
    assert package.read(path, "x") == pa.Table.from_batches([BATCH] * batches)
    assert package.verify(path).ok
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert not list(shm_dir.iterdir())


def test_what_was_put_is_in_the_file(output_dir: Path, shared_folder: Path) -> None:
    left = wreck(output_dir, shared_folder, "put", "flush", "put", "stop", "put", "put")
    result = recover(output_dir, shared_folder, left.path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0] == f"{left.path}: complete, recovered from shared memory"
    assert f"{4 * ROWS}" in result.stdout
    assert_whole(left.path, shared_folder, 4)

    result = recover(output_dir, shared_folder, left.path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{left.path}: complete, there was nothing to recover\n"
    assert_whole(left.path, shared_folder, 4)


def test_by_the_name_of_its_session_as_json(output_dir: Path, shared_folder: Path) -> None:
    left = wreck(output_dir, shared_folder, "put", "flush", "stop", "put", name="night")
    result = recover(output_dir, shared_folder, "night", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert document(result) == {
        "ok": True,
        "recordings": [
            {
                "recording": "night",
                "ok": True,
                "path": str(left.path),
                "state": "complete",
                "source": "shared memory",
                "rows": {"x": 2 * ROWS},
                "drained": ROWS,
                "problems": [],
                "kept": None,
            }
        ],
    }
    assert_whole(left.path, shared_folder, 2)


def test_all_that_was_left_behind_here(output_dir: Path, shared_folder: Path) -> None:
    here, elsewhere = output_dir / "here", output_dir / "elsewhere"
    lefts = [wreck(here, shared_folder, "put", "stop", "put", name=name) for name in ("one", "two")]
    other = wreck(elsewhere, shared_folder, "put", name="other")
    result = recover(here, shared_folder, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    found = document(result)["recordings"]
    assert sorted(entry["path"] for entry in found) == sorted(str(left.path) for left in lefts)
    for left in lefts:
        assert package.read(left.path, "x").num_rows == 2 * ROWS
    assert other.folder.exists()
    assert [path.name for path in shared_folder.iterdir()] == [other.folder.name]

    result = recover(here, shared_folder)
    assert (result.returncode, result.stdout) == (0, "nothing was left behind here\n")
    assert recover(elsewhere, shared_folder).returncode == 0
    assert_whole(other.path, shared_folder, 1)


def test_all_that_was_left_behind_in_a_folder(output_dir: Path, shared_folder: Path) -> None:
    here, elsewhere = output_dir / "here", output_dir / "elsewhere"
    lefts = [wreck(here, shared_folder, "put", "stop", "put", name=name) for name in ("one", "two")]
    other = wreck(elsewhere, shared_folder, "put", name="other")
    result = recover(output_dir, shared_folder, here, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(entry["path"] for entry in document(result)["recordings"]) == sorted(
        str(left.path) for left in lefts
    )
    assert other.folder.exists()
    for folder in ("here", "./here", "elsewhere/..", "/"):
        result = recover(output_dir, shared_folder, folder)
        assert (result.returncode, result.stdout) == (0, f"nothing was left behind in {folder}\n")
    result = recover(elsewhere, shared_folder, "../here", ".")
    assert result.returncode == 0
    assert result.stdout.startswith(f"nothing was left behind in ../here\n{other.path}: complete")
    assert_whole(other.path, shared_folder, 1)


def test_a_folder_does_not_hide_the_session_of_its_name(output_dir: Path, shared_folder: Path) -> None:
    left = wreck(output_dir / "data", shared_folder, "put", name="night")
    (output_dir / "night").mkdir()
    result = recover(output_dir, shared_folder, "night")
    assert result.returncode == 0
    assert result.stdout.startswith(f"{left.path}: complete")
    assert_whole(left.path, shared_folder, 1)


def test_where_shared_memory_is_not_found_each_word_is_answered(
    output_dir: Path, shared_folder: Path
) -> None:
    result = recover(output_dir, shared_folder / "gone", ".", "gone.h5", "--json")
    assert result.returncode != 0
    found = document(result)["recordings"]
    assert [(entry["recording"], entry["ok"]) for entry in found] == [(".", False), ("gone.h5", False)]


def test_a_recording_that_goes_on_is_refused(output_dir: Path, shared_folder: Path) -> None:
    with HDF5Storage(
        output_dir=output_dir, shm_dir=shared_folder, ring_bytes="256KiB", name="run"
    ) as storage:
        storage.write_batch("x", BATCH)
        for recording in (storage.path, "run"):
            result = recover(output_dir, shared_folder, recording)
            assert result.returncode == 2
            assert "goes on" in only_error(result)
        result = recover(output_dir, output_dir, storage.path)  # which is not where its session is
        assert result.returncode == 2
        assert "goes on" in only_error(result)
        assert recover(output_dir, shared_folder).stdout == "nothing was left behind here\n"
        storage.write_batch("x", BATCH)
    assert_whole(storage.path, shared_folder, 2)


def test_one_whose_session_cannot_be_seen_is_refused_while_it_is_written(
    output_dir: Path, shared_folder: Path
) -> None:
    with HDF5Storage(output_dir=output_dir, shm_dir=shared_folder, ring_bytes="256KiB") as storage:
        storage.write_batch("x", BATCH)
        storage.flush()
        told = next(shared_folder.glob("*/recording"))
        told.rename(told.with_name("unseen"))
        result = recover(output_dir, shared_folder, storage.path)
        assert result.returncode == 2
        assert "is being written by another process" in only_error(result)
        told.with_name("unseen").rename(told)
    assert_whole(storage.path, shared_folder, 1)


@pytest.mark.parametrize(
    "name", ["gone.h5", "nobody", "", "-", "a" * 5000, "a\nb\x1b[2J", "*/x", "note.txt", "ü" * 99]
)
def test_a_name_of_no_recording(output_dir: Path, shared_folder: Path, name: str) -> None:
    (output_dir / "note.txt").write_text("no recording")
    before = sorted(output_dir.iterdir())
    result = recover(output_dir, shared_folder, "--", name)
    assert result.returncode == 2
    assert "\x1b" not in only_error(result)
    assert result.stdout == ""
    assert sorted(output_dir.iterdir()) == before
    assert not list(shared_folder.iterdir())


def test_the_others_are_recovered_all_the_same(output_dir: Path, shared_folder: Path) -> None:
    left = wreck(output_dir, shared_folder, "put")
    result = recover(output_dir, shared_folder, "gone.h5", left.path, "--json")
    assert result.returncode == 2
    assert [entry["ok"] for entry in document(result)["recordings"]] == [False, True]
    assert_whole(left.path, shared_folder, 1)


def test_what_is_in_quarantine_is_named_and_can_be_ingested(output_dir: Path, shared_folder: Path) -> None:
    left = wreck(output_dir, shared_folder, "put", "refused", "flush", "stop", "refused")
    quarantine = left.path.with_name(left.path.name + ".quarantine")
    assert len(list(quarantine.iterdir())) == 1
    result = recover(output_dir, shared_folder, left.path, "--json")
    assert result.returncode == 1
    (report,) = document(result)["recordings"]
    files = sorted(quarantine.glob("*.arrow"))
    assert len(files) == 2
    assert (report["ok"], report["state"], report["rows"]) == (False, "partial", {"x": ROWS, "y": 1})
    for problem, line in zip(report["problems"], result.stderr.splitlines(), strict=True):
        assert problem in line
        assert any(problem.startswith(f"5 rows of 'y' are in {file}, not in the file") for file in files)
    assert package.read(left.path, "y")["text"].to_pylist() == ["fine"]

    again = recover(output_dir, shared_folder, left.path)
    assert again.returncode == 1
    assert "partial, there was nothing to recover" in again.stdout
    assert all(problem in again.stderr for problem in report["problems"])

    result = shmstore("ingest", *files, "--instrument", "y", "--json", cwd=output_dir)
    assert result.returncode == 0
    assert package.read(document(result)["path"], "y") == pa.Table.from_batches([REFUSED] * 2)


def test_one_that_was_killed_itself_is_repeated(output_dir: Path, shared_folder: Path) -> None:
    left = wreck(output_dir, shared_folder, *["put"] * MANY, "flush", "stop", "put")

    def kill(done: int, total: int) -> None:
        for child in psutil.Process().children():
            if "shmstore.recoveryprocess" in child.cmdline():
                child.kill()

    with pytest.raises(BrokenError, match=r"was killed by signal 9.* and can be started again"):
        package.recover(left.path, shm_dir=shared_folder, progress=kill)
    assert left.path.with_name(left.path.name + ".recovering").exists()
    assert len(list(shared_folder.iterdir())) == 2
    assert recover(output_dir, shared_folder).returncode == 0
    assert_whole(left.path, shared_folder, MANY + 1)


def test_one_whose_caller_was_killed_ends_what_it_began(output_dir: Path, shared_folder: Path) -> None:
    left = wreck(output_dir, shared_folder, *["put"] * MANY, "flush", "stop", "put")
    with Child(
        "import os, shmstore",
        f"shmstore.recover({str(left.path)!r}, shm_dir={str(shared_folder)!r},",
        "    progress=lambda done, total: os.kill(os.getpid(), 9))",
    ) as child:
        assert child.process.wait(60) == -9
    deadline = time.monotonic() + 60
    while list(shared_folder.iterdir()):  # which goes last
        assert time.monotonic() < deadline, "the recovery did not end"
        time.sleep(0.01)
    assert_whole(left.path, shared_folder, MANY + 1)


def test_its_rings_are_found_wherever_they_are(output_dir: Path, shared_folder: Path) -> None:
    left = wreck(output_dir, shared_folder, "put", "stop", "put")
    empty = output_dir / "memory"
    empty.mkdir()
    assert recover(output_dir, empty, left.path).returncode == 0
    empty.rmdir()
    assert_whole(left.path, shared_folder, 2)


def test_a_producer_that_outlived_them_all_is_told(output_dir: Path, shared_folder: Path) -> None:
    left = wreck(output_dir, shared_folder, "put", "stop", "put")
    ring = next(left.folder.glob("ring-*"))
    page = package.session.Session.attach(left.folder)
    assert page.recording or page.state == package.session.State.BROKEN
    assert recover(output_dir, shared_folder, left.path).returncode == 0
    assert page.state == package.session.State.BROKEN
    page.close()
    assert not ring.exists()
    assert_whole(left.path, shared_folder, 2)


def test_a_disk_that_refuses_leaves_everything_as_it_was(output_dir: Path, shared_folder: Path) -> None:
    left = wreck(output_dir, shared_folder, *["put"] * 10, "flush", "stop", "put")
    before = left.path.read_bytes()
    for largest in (8192, 40_000, 100_000):
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
        arguments = ("recover", "--shm-dir", shared_folder, left.path)
        with running(*arguments, cwd=output_dir, preexec_fn=limit) as process:
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 3, errors
        # Shared memory is refused first, then the new file.
        assert ": File too large" in errors.splitlines()[-1]
        assert left.path.read_bytes() == before
    assert recover(output_dir, shared_folder, left.path).returncode == 0
    assert_whole(left.path, shared_folder, 11)


def test_a_wrong_call(output_dir: Path, shared_folder: Path) -> None:
    result = shmstore("recover", "--shm-dir", shared_folder / "none", cwd=output_dir)
    assert result.returncode == 2
    assert only_error(result)
    assert shmstore("recover", "--nonsense", cwd=output_dir).returncode == 2
    assert not list(output_dir.iterdir())


@pytest.mark.parametrize("damage", ["cut", "empty", "position", "state"])
def test_a_damaged_ring_does_not_keep_the_rest_from_being_recovered(
    output_dir: Path, shared_folder: Path, damage: str
) -> None:
    left = wreck(output_dir, shared_folder, "put", "flush", "put", "refused", "stop", "put")
    (ring,) = (path for path in left.folder.glob("ring-*") if _rows(path) == 3 * ROWS)
    with ring.open("r+b") as file:
        if damage in ("cut", "empty"):
            file.truncate(5000 if damage == "cut" else 0)
        else:
            file.seek(2048 if damage == "position" else 1032)
            file.write((77).to_bytes(8, "little"))
    result = recover(output_dir, shared_folder, left.path)
    table = package.read(left.path, "x")
    if damage == "state":  # nothing is missing without it
        assert len(table) == 3 * ROWS
    else:
        assert result.returncode == 1
        assert "a ring of 'x' cannot be read, what was in it and in no file is lost" in result.stderr
        assert ROWS <= len(table) <= 2 * ROWS
    assert len(package.read(left.path, "y")) == 1


def _rows(ring: Path) -> int:
    """Return how many rows were sealed in a ring, by its own word."""
    return int.from_bytes(ring.read_bytes()[1024 + 24 : 1024 + 32], "little")
