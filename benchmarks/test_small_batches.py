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
    ("stream", "times_h5py", "batches_per_s"),
    [
        pytest.param(Telemetry(rows=100, columns=4), 30, 60_000, id="100 rows x 4"),
        pytest.param(Telemetry(rows=1, columns=8), None, 40_000, id="1 row x 8"),
    ],
)
def test_batches(
    report: Report,
    scale: Scale,
    output: Path,
    stream: Telemetry,
    times_h5py: float | None,
    batches_per_s: float,
) -> None:
    """50,000 batches of a few float64 rows from one producer, uncompressed; against h5py appending each."""
    case = f"{stream.rows} row(s) × {stream.columns} float64 a batch"
    mine, _ = report.compare(
        case,
        "batches/s",
        Recording(stream, scale.pick(50_000, 200), output, 1, compression="none"),
        H5pyAppend(stream, scale.pick(2500, 50), output, 1, _CHUNK_ROWS),
        at_least=times_h5py,
    )
    report.judge(case, "batches/s", mine.rates, at_least=batches_per_s)
