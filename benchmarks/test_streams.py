"""Large batches into one file: how fast, against what the machine and h5py do."""

from __future__ import annotations

from pathlib import Path

import hdf5plugin
import pytest

from benchmarks.conftest import Scale
from benchmarks.report import Report, Result
from shmstore.bench.handover import HandedOver
from shmstore.bench.harness import Series
from shmstore.bench.limits import PwriteLoop
from shmstore.bench.peers import H5pyAppend
from shmstore.bench.recorders import Recording
from shmstore.bench.streams import MIB, Adc, Frames

pytestmark = pytest.mark.timeout(1800)  # seconds; slow machines are welcome

_MB = MIB / 1e6


def _stored_share(series: Series, batches: int, batch_bytes: int) -> float:
    """Bytes in the file for each byte recorded."""
    return float(series.details["file_bytes"] / (batches * batch_bytes))


@pytest.mark.parametrize("period", [1000.0, 50.0])
def test_adc_gzip(report: Report, scale: Scale, output: Path, period: float) -> None:
    """1 GiB of noisy ADC samples, gzip-6, against h5py appending with gzip-6 and shuffle."""
    stream = Adc(period=period)
    # h5py gets an eighth: its rate is flat (README.md), and it would take half a minute a round.
    batches, theirs = scale.pick(1024, 8), scale.pick(128, 8)
    filters = {"compression": "gzip", "compression_opts": 6, "shuffle": True}
    case = f"adc, period {period:g}, gzip-6"
    mine, peer = report.compare(
        case,
        "MB/s",
        Recording(stream, batches, output, _MB, compression="gzip", compression_level=6),
        H5pyAppend(stream, theirs, output, _MB, MIB // 2, filters, "h5py gzip-6+shuffle"),
        at_least=10,
    )
    shares = _stored_share(mine, batches, MIB), _stored_share(peer, theirs, MIB)
    size = shares[0] / shares[1]
    report.add(
        Result(f"{case}: size", shares[0], "B/B", peer.run.label, shares[1], size, "≤ 1.05", size <= 1.05)
    )


def test_adc_none(report: Report, scale: Scale, output: Path) -> None:
    """1 GiB of ADC samples, uncompressed, against a bare pwrite loop of the same bytes.

    With a ring that fits the processor's cache: what a producer has put is still in it when it is written.
    """
    batches = scale.pick(1024, 8)
    report.compare(
        "adc, none",
        "MB/s",
        Recording(Adc(), batches, output, _MB, compression="none", ring_bytes="16MiB"),
        PwriteLoop(Adc(), batches, output, _MB),
        at_least=0.9,
    )


def test_adc_none_handed_over(report: Report, scale: Scale, output: Path) -> None:
    """The same against bytes that another process copied into a ring as large: what two processes allow."""
    batches, ring = scale.pick(1024, 8), 16 << 20
    report.compare(
        "adc, none",
        "MB/s",
        Recording(Adc(), batches, output, _MB, compression="none", ring_bytes=ring),
        HandedOver(Adc(), batches, ring, output, _MB),
    )


def test_frames_bitshuffle(report: Report, scale: Scale, output: Path) -> None:
    """1 GiB of sparse detector frames of 4 MiB, bitshuffle-lz4, against h5py with the same filter."""
    stream = Frames()
    batches = scale.pick(256, 4)
    report.compare(
        "frames, bitshuffle-lz4",
        "MB/s",
        Recording(stream, batches, output, 4 * _MB, compression="bitshuffle"),
        H5pyAppend(stream, batches, output, 4 * _MB, 1, hdf5plugin.Bitshuffle(), "h5py bitshuffle-lz4"),
    )
