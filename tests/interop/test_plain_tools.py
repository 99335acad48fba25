"""What people open the file with: HDF5's own command-line tools (1.10) and plain h5py."""

from __future__ import annotations

import subprocess
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest

import shmstore


def tool(*command: str) -> str:
    """Run one of HDF5's tools; anything on standard error, or an exit code, is a failure."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A finished file with one column of each kind, flushed half-way so that a tail was published."""
    schema = pa.schema(
        [
            ("time", pa.timestamp("ns", "UTC")),
            ("count", pa.int32()),
            ("volts", pa.float64()),
            ("on", pa.bool_()),
            ("note", pa.string()),
            ("frame", pa.fixed_shape_tensor(pa.uint16(), [2, 3])),
        ]
    )
    with shmstore.HDF5Storage(output_dir=tmp_path) as storage:
        producer = storage.producer("camera_1", schema)
        for start in (0, 50):
            rows = range(start, start + 50)
            frames = np.repeat(np.array(rows, np.uint16), 6).reshape(50, 2, 3)
            columns = [
                pa.array([1_000_000_000 * row for row in rows], schema.field("time").type),
                pa.array([None if row % 10 == 3 else row for row in rows], pa.int32()),
                pa.array([row / 4 for row in rows]),
                pa.array([row % 2 == 0 for row in rows]),
                pa.array([f"row {row}" for row in rows]),
                pa.FixedShapeTensorArray.from_numpy_ndarray(frames),
            ]
            producer.put(pa.record_batch(columns, schema=schema))
            storage.flush()
    return storage.path


def test_h5ls_lists_every_column_with_its_shape(recording: Path) -> None:
    listing = {line.split()[0]: line for line in tool("h5ls", "-r", str(recording)).splitlines()}
    assert "{100/Inf}" in listing["/camera_1/time"]
    assert "{100/Inf, 2, 3}" in listing["/camera_1/frame"]
    assert "{100/Inf}" in listing["/camera_1/_arrow/validity/1"]


def test_h5dump_shows_structure_and_values(recording: Path) -> None:
    header = tool("h5dump", "-H", str(recording))
    assert 'GROUP "camera_1"' in header
    assert "H5T_ENUM" in header  # bool
    assert "complete" in tool("h5dump", "-a", "/state", str(recording))
    assert '"row 99"' in tool("h5dump", "-d", "/camera_1/note", "-s", "99", "-c", "1", str(recording))
    assert "24.75" in tool("h5dump", "-d", "/camera_1/volts", "-s", "99", "-c", "1", str(recording))
    assert "(99,0,0): 99, 99, 99" in tool(
        "h5dump", "-d", "/camera_1/frame", "-s", "99,0,0", "-c", "1,2,3", str(recording)
    )


def test_plain_h5py_sees_the_values(recording: Path) -> None:
    with h5py.File(recording) as file:
        camera = file["camera_1"]
        assert camera["time"][7] == 7_000_000_000
        assert camera["time"].attrs["units"] == "nanoseconds since 1970-01-01"
        assert camera["count"][:5].tolist() == [0, 1, 2, 0, 4]  # a null is the fill value
        assert camera["_arrow/validity/1"][:5].tolist() == [True, True, True, False, True]
        assert camera["on"][:3].tolist() == [True, False, True]
        assert camera["note"].asstr()[42] == "row 42"
        assert (camera["frame"][:, 1, 2] == np.arange(100)).all()
