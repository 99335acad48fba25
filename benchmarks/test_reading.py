"""A compressed column read whole into memory: how fast, against h5py's ``dset[:]`` of the same dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  h5py has no zstd of its own
import numpy as np
import pytest

import shmstore
from benchmarks.conftest import Scale
from benchmarks.report import Report
from shmstore.bench.streams import MIB, Adc, Stream, Telemetry, batch_bytes

pytestmark = pytest.mark.timeout(1800)  # seconds; slow machines are welcome


class Reading:
    """Reads one column of a recording, from opening the file until its values are in memory.

    Parameters
    ----------
    label
        Its name in the report.
    path
        The file, which stays.
    nbytes
        Of the column; as much memory is taken.
    read
        Reads it, given the path.
    """

    def __init__(self, label: str, path: Path, nbytes: int, read: Callable[[Path], Any]) -> None:
        self.label = label
        self.amount = nbytes / 1e6
        self.touches = nbytes
        self._path = path
        self._read = read
        self._found: Any = None

    def prepare(self) -> None:
        """Nothing: the file is opened on the clock."""

    def run(self) -> None:
        """Read."""
        self._found = self._read(self._path)

    def finish(self) -> dict[str, Any]:
        """Let go of what was read."""
        self.abandon()
        return {"file_bytes": self._path.stat().st_size}

    def abandon(self) -> None:
        """Let go of what was read."""
        self._found = None


@pytest.mark.parametrize(
    ("stream", "compression", "at_least"),
    [
        pytest.param(Adc(), "gzip", 3.0, id="int16-gzip"),
        pytest.param(Telemetry(rows=MIB // 8, columns=1), "gzip", 3.0, id="float64-gzip"),
        pytest.param(Adc(), "zstd", None, id="int16-zstd"),
        pytest.param(Telemetry(rows=MIB // 8, columns=1), "zstd", None, id="float64-zstd"),
    ],
)
def test_column(
    report: Report, scale: Scale, output: Path, stream: Stream, compression: str, at_least: float | None
) -> None:
    """256 MiB of one column, as recorded with the codec's default level and shuffle."""
    batches = scale.pick(256, 4)
    made = stream.batches()
    with shmstore.HDF5Storage(output_dir=output, compression=compression) as storage:
        for number in range(batches):
            storage.write_batch("stream", made[number % len(made)])
    (name,) = stream.schema.names

    def ours(path: Path) -> Any:
        return shmstore.read(path, "stream")

    def theirs(path: Path) -> Any:
        with h5py.File(path) as file:
            return file[f"stream/{name}"][:]

    column = ours(storage.path).column(0)
    if not np.array_equal(column.to_numpy(), theirs(storage.path)):
        raise RuntimeError("the two did not read the same values")
    del column
    nbytes = batches * batch_bytes(stream)
    report.compare(
        f"read {stream.schema.field(0).type}, {compression}",
        "MB/s",
        Reading("shmstore.read", storage.path, nbytes, ours),
        Reading("h5py dset[:]", storage.path, nbytes, theirs),
        at_least,
    )
