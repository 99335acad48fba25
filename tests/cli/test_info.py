"""`shmstore info`: of a real recording, finished and growing, and of what is none."""

from __future__ import annotations

from pathlib import Path

import h5py
import pyarrow as pa
import pytest
from commandline import document, only_error, shmstore

from shmstore import HDF5Storage

BATCH = pa.record_batch(
    {
        "time": pa.array(range(100), pa.timestamp("ns", tz="UTC")),
        "frame": pa.array([[1.0, 2.0]] * 100, pa.list_(pa.float64(), 2)),
        "na[red]me\x1b[2J": pa.array(["x", None] * 50),
    }
)


@pytest.fixture
def recording(output_dir: Path) -> Path:
    with HDF5Storage(output_dir=output_dir, compression="gzip", compression_level=4) as storage:
        storage.write_batch("camera", BATCH)
        storage.set_metadata("operator", "night\nshift")
        storage.set_instrument_metadata("camera", "gain", 4)
    return storage.path


def test_as_json(recording: Path) -> None:
    report = document(shmstore("info", recording, "--json", cwd=recording.parent))
    assert report["state"] == "complete"
    assert report["metadata"] == {"operator": "night\nshift"}
    (camera,) = report["instruments"]
    assert (camera["instrument_id"], camera["rows"], camera["metadata"]) == ("camera", 100, {"gain": 4})
    assert [column["name"] for column in camera["columns"]] == BATCH.schema.names
    values = camera["columns"][1]["datasets"][0]
    assert (values["shape"], values["filters"]) == ([100, 2], "shuffle, deflate 4")
    assert report["accounting"]["producers"][0]["committed"] == 100


def test_as_tables(recording: Path) -> None:
    result = shmstore("info", recording, cwd=recording.parent)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == str(recording)
    for wanted in (
        "complete",
        "night\\nshift",
        "timestamp[ns, tz=UTC]",
        "100 × 2",
        "shuffle, deflate 4",
        "gain",
    ):
        assert wanted in result.stdout
    # A name is shown as it is, and cannot steer the terminal.
    assert "na[red]me\\x1b[2J" in result.stdout
    assert "\x1b" not in result.stdout
    assert all(line == line.rstrip() for line in lines)


def test_what_adaptive_compression_did(output_dir: Path) -> None:
    with HDF5Storage(output_dir=output_dir, compression="adaptive") as storage:
        storage.write_batch("camera", BATCH)
    result = shmstore("info", storage.path, cwd=output_dir)
    assert result.returncode == 0
    assert "camera: adaptive compression took 0 steps down and 0 up: 0 chunks" in result.stdout
    assert "shuffle, deflate 6" in result.stdout
    report = document(shmstore("info", storage.path, "--json", cwd=output_dir))
    counts = {"steps_down": 0, "steps_up": 0, "chunks_cheaper": 0, "chunks_stored": 0}
    assert report["accounting"]["compression"] == {"camera": counts}


def test_of_a_recording_that_grows(output_dir: Path) -> None:
    with HDF5Storage(output_dir=output_dir) as storage:
        storage.write_batch("camera", BATCH)
        storage.flush()
        report = document(shmstore("info", storage.path, "--json", cwd=output_dir))
    assert report["state"] == "recording"
    assert report["instruments"][0]["rows"] == 100


def test_of_what_is_no_recording(output_dir: Path) -> None:
    (output_dir / "text.h5").write_text("no HDF5 at all")
    (output_dir / "empty.h5").touch()
    with h5py.File(output_dir / "other.h5", "w") as file:
        file["x"] = 1
    for name in ("text.h5", "empty.h5", "other.h5", "gone.h5", "."):
        result = shmstore("info", output_dir / name, cwd=output_dir)
        assert result.returncode == 2, name
        assert str(output_dir / name) in only_error(result)
        assert result.stdout == ""
