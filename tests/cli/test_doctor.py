"""``shmstore doctor``, run as a command beside recordings that live and that were killed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from commandline import document, only_error, shmstore
from wrecks import ROWS, wreck

from shmstore import HDF5Storage


def doctor(output_dir: Path, shm_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return shmstore("doctor", "--shm-dir", shm_dir, *arguments, cwd=output_dir)


def test_nothing_lies_around(output_dir: Path, shared_folder: Path) -> None:
    result = doctor(output_dir, shared_folder)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"shared memory in {shared_folder}: ")
    assert lines[-1] == "nothing lies around"


def test_a_living_recording_is_shown_and_does_not_lie_around(output_dir: Path, shared_folder: Path) -> None:
    with HDF5Storage(
        output_dir=output_dir, shm_dir=shared_folder, ring_bytes="256KiB", name="run"
    ) as storage:
        result = doctor(output_dir, shared_folder, "--reclaim", "--discard")
        assert result.returncode == 0
        assert "none: in use" in result.stdout
        assert f"lives, {storage.writer_pid}" in result.stdout
        assert (shared_folder / "shmstore-run").exists()


def test_what_was_killed_is_shown_and_reclaimed_by_what_it_holds(
    output_dir: Path, shared_folder: Path
) -> None:
    empty = wreck(output_dir, shared_folder, name="empty")
    full = wreck(output_dir, shared_folder, "put", "flush", "stop", "put", "put", name="full")

    result = doctor(output_dir, shared_folder)
    assert result.returncode == 1
    for wanted in (
        f"{2 * ROWS} rows in 2 batches",
        f"gone, was {full.owner}",
        f"shmstore recover {full.path}",
        "shmstore doctor --reclaim",
        "says it is recorded, and nobody does",
    ):
        assert wanted in result.stdout, wanted

    result = doctor(output_dir, shared_folder, "--reclaim", "--json")
    found = document(result)
    assert (result.returncode, found["clean"]) == (1, False)
    assert found["reclaimed"] == [str(empty.folder)]
    (session,) = found["sessions"]
    assert (session["name"], session["batches"], session["rows"]) == ("full", 2, 2 * ROWS)
    assert (session["holds_data"], session["left_behind"]) == (True, True)
    assert session["remedy"] == f"shmstore recover {full.path}"
    assert {file["kind"] for file in found["files"]} == {"recording", "recovery"}
    assert found["shared_memory"]["path"] == str(shared_folder)
    assert not empty.folder.exists()
    assert full.folder.exists()

    result = doctor(output_dir, shared_folder, "--reclaim", "--discard")
    assert f"removed {full.folder}" in result.stdout
    assert result.returncode == 1  # the files are still there
    assert not list(shared_folder.iterdir())
    assert doctor(output_dir, shared_folder, str(shared_folder)).returncode == 0


def test_the_configured_folders_are_looked_at(output_dir: Path, shared_folder: Path) -> None:
    left = wreck(output_dir / "data", shared_folder)
    (output_dir / "shmstore.toml").write_text(
        f'[storage]\noutput_dir = "data"\nshm_dir = "{shared_folder}"\n'
    )
    found = document(shmstore("doctor", "--json", cwd=output_dir))
    assert [file["path"] for file in found["files"]] == [
        f"data/{left.path.name}",
        f"data/{left.path.name}.recovery",
    ]
    assert [session["folder"] for session in found["sessions"]] == [str(left.folder)]


@pytest.mark.parametrize(
    "arguments", [["--discard"], ["--shm-dir", "none"], ["none"], ["--reclaim", "--nonsense"]], ids=" ".join
)
def test_a_wrong_call(output_dir: Path, shared_folder: Path, arguments: list[str]) -> None:
    result = doctor(output_dir, shared_folder, *arguments)
    assert result.returncode == 2
    assert only_error(result)
    assert result.stdout == ""
