"""What it costs that nothing is lost: journal, checksums, ledger, tail files, supervision; on against off."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.conftest import Scale
from benchmarks.report import Report
from shmstore.bench.recorders import Recording
from shmstore.bench.streams import MIB, Adc, Telemetry

pytestmark = pytest.mark.timeout(1800)  # seconds; slow machines are welcome


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_adc_recoverable(report: Report, scale: Scale, output: Path, compression: str) -> None:
    """1 GiB of noisy ADC samples, recoverable against not."""
    batches, megabytes = scale.pick(1024, 8), MIB / 1e6
    report.compare(
        f"recoverable, adc, {compression}",
        "MB/s",
        Recording(Adc(), batches, output, megabytes, compression=compression),
        Recording(
            Adc(), batches, output, megabytes, "not recoverable", compression=compression, recoverable=False
        ),
        at_least=0.95,
    )


def test_small_batches_recoverable(report: Report, scale: Scale, output: Path) -> None:
    """Batches of 100 rows × 4 float64, recoverable against not."""
    batches = scale.pick(50_000, 50)
    report.compare(
        "recoverable, 100 rows × 4 float64 a batch",
        "batches/s",
        Recording(Telemetry(), batches, output, 1.0),
        Recording(Telemetry(), batches, output, 1.0, "not recoverable", recoverable=False),
        at_least=0.95,
    )
