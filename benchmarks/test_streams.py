"""Large batches into one file: how fast, against what the machine and h5py do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hdf5plugin
import pytest

import shmstore
from benchmarks.conftest import Scale
from benchmarks.report import Report
from shmstore.bench import machine
from shmstore.bench.handover import HandedOver
from shmstore.bench.harness import Series
from shmstore.bench.limits import CodecAlone, Memcpy, PwriteLoop, PwriteResult, chunks_of, machine_limit
from shmstore.bench.peers import H5pyAppend
from shmstore.bench.recorders import Recording
from shmstore.bench.streams import MIB, Adc, Frames, Stream, Telemetry, batch_bytes

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
        at_least=12,
    )
    shares = _stored_share(mine, batches, MIB), _stored_share(peer, theirs, MIB)
    report.judge(f"{case}: size", "B/B", shares[:1], peer.run.label, shares[1:], at_most=1.05)


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
        at_least=0.95,
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


@pytest.mark.parametrize("codec", ["zstd", "lz4", "blosc:lz4"])
def test_adc_encoded_handed_over(report: Report, scale: Scale, output: Path, codec: str) -> None:
    """The same encoded, by as many threads as the writer has: what is left of the machine's limit by that."""
    batches = scale.pick(1024, 8)
    config = shmstore.StorageConfig(compression=codec)
    handed = HandedOver(
        *(Adc(), batches, config.ring_bytes, output, _MB, config.codec, config.codec_thread_count)
    )
    mine = Recording(Adc(), batches, output, _MB, compression=codec)
    report.compare(f"adc, {config.codec}", "MB/s", mine, handed)


@pytest.mark.parametrize(
    ("codec", "at_least"),
    [
        pytest.param({"compression": "bitshuffle"}, None, id="bitshuffle"),
        pytest.param({"compression": "gzip", "compression_level": 1}, None, id="gzip-1"),
        pytest.param({"compression": "lz4", "shuffle": False}, 3, id="lz4"),
    ],
)
def test_frames(
    report: Report, scale: Scale, output: Path, codec: dict[str, Any], at_least: float | None
) -> None:
    """4 GiB of sparse detector frames of 4 MiB, against h5py with bitshuffle-lz4; lz4 is the fastest.

    Beside it the machine's limit: by how much h5py can be outdone at all, and how much of that is reached.
    """
    stream = Frames()
    batches, per_batch = scale.pick(1024, 4), 4 * _MB
    case = f"frames, {shmstore.StorageConfig(**codec).codec}"
    parts = _parts(stream, scale.pick(256, 4), output, per_batch, codec)
    mine, peer = report.alternate(
        Recording(stream, batches, output, per_batch, **codec),
        H5pyAppend(stream, batches, output, per_batch, 1, hdf5plugin.Bitshuffle(), "h5py bitshuffle-lz4"),
        *parts,
    )
    report.judge(case, "MB/s", mine.rates, peer.run.label, peer.rates, at_least=at_least)
    alone = [_cpu_s_per_gb(part, "process") for part in parts]
    limits = [machine_limit(machine.cores(), list(each)) for each in zip(*alone, strict=True)]
    report.judge(case, "MB/s", mine.rates, "machine limit", limits)
    report.judge(f"{case}: machine limit", "MB/s", limits, peer.run.label, peer.rates)


def _parts(
    stream: Stream, batches: int, output: Path, per_batch: float, codec: dict[str, Any]
) -> list[Series]:
    """Return what each byte goes through at least: a copy, the codec, and pwrite of what that leaves."""
    config = shmstore.StorageConfig(**codec)
    recording = Recording(stream, batches, output, per_batch, **codec)
    once = Series(recording)
    once.ready(output)
    once.clocked()
    chunks = chunks_of(recording.path, batches * batch_bytes(stream))
    once.done()
    amount = batches * per_batch
    return [
        Series(Memcpy(stream, batches, config.ring_bytes, per_batch)),
        Series(CodecAlone(chunks, config.codec, config.codec_thread_count, amount)),
        Series(PwriteResult(chunks, config.codec, output, amount)),
    ]


def test_wide(report: Report, scale: Scale, output: Path) -> None:
    """2 GB of float32 in batches of 2 MB, zstd: 500 columns × 1,000 rows against 4 columns × 125,000."""
    # So many distinct batches that none stands twice in a chunk (of 32,768 rows).
    # Within bounds, so that values of short columns and of long ones hold as many bits that change.
    wide = Telemetry(rows=1000, columns=500, distinct=40, dtype="float32", within=1.0)
    narrow = Telemetry(rows=125_000, columns=4, distinct=16, dtype="float32", within=1.0)
    batches = scale.pick(1024, 4)
    mine = Recording(wide, batches, output, 2.0, compression="zstd")
    theirs = Recording(narrow, batches, output, 2.0, "4 columns × 125,000", compression="zstd")
    theirs.touches = mine.touches
    report.compare("500 columns × 1,000 float32 a batch, zstd", "MB/s", mine, theirs, at_least=0.6)


def test_producers(report: Report, scale: Scale, output: Path) -> None:
    """1 GiB of ADC samples, zstd: from 8 producers, each its own instrument, against all from one."""
    batches, producers = scale.pick(1024, 8), scale.pick(8, 2)
    report.compare(
        f"adc, zstd, {producers} producers",
        "MB/s",
        Recording(Adc(), batches, output, _MB, producers=producers, compression="zstd"),
        Recording(Adc(), batches, output, _MB, "1 producer", compression="zstd"),
        at_least=0.9,
    )


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_producer_cpu(report: Report, scale: Scale, output: Path, compression: str) -> None:
    """Processor time of the producer of 1 GiB of ADC samples, against memcpy of the same."""
    batches, ring = scale.pick(1024, 8), 64 * MIB
    handed = Series(HandedOver(Adc(), batches, ring, output, _MB))
    mine, copy = report.alternate(
        Recording(Adc(), batches, output, _MB, compression=compression, ring_bytes=ring),
        Memcpy(Adc(), batches, ring, _MB),
        handed,
    )
    case, ours = f"adc, {compression}: producer's processor time", _cpu_s_per_gb(mine, "producer")
    report.judge(case, "s/GB", ours, copy.run.label, _cpu_s_per_gb(copy, "process"), at_most=1.3)
    bare = _cpu_s_per_gb(handed, "producer")
    report.judge(case, "s/GB", ours, handed.run.label, bare)
    report.judge(
        f"{handed.run.label}: producer", "s/GB", bare, copy.run.label, _cpu_s_per_gb(copy, "process")
    )


def _cpu_s_per_gb(series: Series, role: str) -> list[float]:
    return [found["cpu_s"][role] / (series.run.amount / 1e3) for found in series.rounds]
