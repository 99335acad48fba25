"""``shmstore verify``, run as a command."""

from __future__ import annotations

from pathlib import Path

import h5py
import pyarrow as pa
import pytest
from commandline import document, only_error, shmstore

from shmstore import HDF5Storage


@pytest.fixture
def recording(output_dir: Path) -> Path:
    with HDF5Storage(output_dir=output_dir, ring_bytes="1MiB", filename="good.h5") as storage:
        storage.write_batch("na[red]me\x1b[2J", pa.record_batch({"t": range(1000)}))
    return storage.path


@pytest.fixture
def damaged(recording: Path) -> Path:
    path = recording.with_name("bad.h5")
    path.write_bytes(recording.read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["state"] = "fine"
    return path


def test_a_whole_recording(recording: Path) -> None:
    result = shmstore("verify", recording, cwd=recording.parent)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == f"{recording}: complete, ok"
    assert "note: " not in result.stdout
    assert "na[red]me\\x1b[2J" in result.stdout
    assert "1,000" in result.stdout
    assert "\x1b" not in result.stdout


def test_as_json_of_several(recording: Path, damaged: Path) -> None:
    result = shmstore("verify", recording, damaged, "--json", cwd=recording.parent)
    assert result.returncode == 1
    found = document(result)
    assert not found["ok"]
    assert [(file["path"], file["ok"]) for file in found["files"]] == [
        (str(recording), True),
        (str(damaged), False),
    ]
    assert found["files"][0]["instruments"][0]["rows"] == 1000
    assert found["files"][1]["problems"] == ["its state is 'fine', which is none: restore it from a copy"]


def test_what_is_wrong_is_said(damaged: Path) -> None:
    result = shmstore("verify", damaged, cwd=damaged.parent)
    assert result.returncode == 1
    assert only_error(result) == (
        f"shmstore: error: {damaged}: its state is 'fine', which is none: restore it from a copy"
    )
    assert result.stdout.splitlines()[0] == f"{damaged}: fine, 1 problems"


def test_of_what_is_no_recording(recording: Path) -> None:
    folder = recording.parent
    (folder / "text.h5").write_text("no HDF5 at all")
    for name in ("text.h5", "gone.h5", "."):
        result = shmstore("verify", folder / name, cwd=folder)
        assert result.returncode == 2, name
        assert str(folder / name) in only_error(result)
        assert result.stdout == ""
    result = shmstore("verify", folder / "gone.h5", recording, "--json", cwd=folder)
    assert result.returncode == 2
    assert [file["ok"] for file in document(result)["files"]] == [
        False,
        True,
    ]  # the others are read all the same
    assert shmstore("verify", cwd=folder).returncode == 2
