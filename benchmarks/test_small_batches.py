"""Small batches into one file: how many a second, against h5py appending each."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.conftest import Scale
from benchmarks.report import Report
from shmstore.bench.peers import H5pyAppend
from shmstore.bench.recorders import Recording
from shmstore.bench.streams import Telemetry

pytestmark = pytest.mark.timeout(1800)  # seconds; slow machines are welcome

_CHUNK_ROWS = 8192


@pytest.mark.parametrize(
    ("stream", "batches"),
    [
        pytest.param(Telemetry(rows=100, columns=4), 50_000, id="100 rows x 4"),
        pytest.param(Telemetry(rows=1, columns=8), 50_000, id="1 row x 8"),
    ],
)
def test_batches(report: Report, scale: Scale, output: Path, stream: Telemetry, batches: int) -> None:
    """Batches of a few float64 rows, uncompressed, against h5py appending each."""
    report.compare(
        f"{stream.rows} row(s) × {stream.columns} float64 a batch",
        "batches/s",
        Recording(stream, scale.pick(batches, 200), output, 1, compression="none"),
        H5pyAppend(stream, scale.pick(batches // 20, 50), output, 1, _CHUNK_ROWS),
    )
