from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest

import shmstore
from shmstore.bench.recorders import Recording, quantiles
from shmstore.bench.streams import Telemetry, total_bytes
from shmstore.errors import BrokenError

STREAM = Telemetry(rows=10, columns=2, distinct=3)


def recording(output_dir: Path, shared_folder: Path, batches: int, **options: object) -> Recording:
    return Recording(
        STREAM, batches, output_dir, 2.0, shm_dir=shared_folder, standby=False, ring_bytes=1 << 20, **options
    )


@pytest.mark.parametrize(
    ("producers", "shared", "instruments"),
    [(1, False, ["stream"]), (3, False, ["stream_0", "stream_1", "stream_2"]), (3, True, ["stream"])],
)
def test_all_producers_together_record_every_batch(
    output_dir: Path, shared_folder: Path, producers: int, shared: bool, instruments: list[str]
) -> None:
    run = recording(output_dir, shared_folder, 8, producers=producers, shared=shared)
    assert run.amount == 16.0
    run.prepare()
    run.run()
    with shmstore.open(run.path) as recorded:
        assert recorded.instruments == instruments
        values = np.concatenate([recorded[name].read()["reading_0"].to_numpy() for name in recorded])
    # Each starts elsewhere in the stream, and goes on in its order.
    wanted = [
        STREAM.batches()[(first + number) % 3]["reading_0"].to_numpy()
        for first in range(producers)
        for number in range(len(range(first, 8, producers)))
    ]
    assert sorted(values) == sorted(np.concatenate(wanted))
    found = run.finish()
    assert not list(output_dir.iterdir())
    assert found["rows"] == 80
    assert found["bytes_in"] == total_bytes(STREAM, 8)
    assert found["put_us"]["count"] == 8
    assert "copy_us" not in found
    assert set(found["phases"]) >= {"put_s", "ring_wait_s", "close_s"}
    assert found["cpu_s"]["writer"] > 0
    assert found["cpu_s"]["producer"] > 0
    # An interpreter with pyarrow and h5py in it.
    assert found["writer_peak_bytes"] > found["writer_private_peak_bytes"] > 10 << 20


def test_a_paced_recording_copies_beside(output_dir: Path, shared_folder: Path) -> None:
    run = recording(output_dir, shared_folder, 20, pace=1000.0)
    run.prepare()
    run.run()
    found = run.finish()
    assert found["put_us"]["count"] == found["copy_us"]["count"] == 20
    assert found["phases"]["put_s"] > 19 / 1000
    assert found["producer_waits"] == 0


def test_an_abandoned_recording_leaves_nothing(output_dir: Path, shared_folder: Path) -> None:
    run = recording(output_dir, shared_folder, 8, producers=2)
    run.prepare()
    run.abandon()
    assert not list(output_dir.iterdir())
    assert not list(shared_folder.iterdir())
    assert not multiprocessing.active_children()


def test_a_producer_that_dies_is_told(output_dir: Path, shared_folder: Path) -> None:
    run = recording(output_dir, shared_folder, 8)
    run.prepare()
    (child,) = multiprocessing.active_children()
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    with pytest.raises(BrokenError, match="ended too early"):
        run.run()
    run.abandon()
    assert not list(output_dir.iterdir())


def test_quantiles_are_microseconds() -> None:
    found = quantiles(np.arange(1, 1001) / 1e6)
    assert found["count"] == 1000
    assert found["p50"] == pytest.approx(500.5)
    assert found["max"] == pytest.approx(1000)
    assert found["quantiles"][0] == [0.0, pytest.approx(1.0)]
    assert found["quantiles"][-1] == [1.0, pytest.approx(1000)]
    shares, values = zip(*found["quantiles"], strict=True)
    assert list(shares) == sorted(shares)
    assert list(values) == sorted(values)
    assert quantiles(np.empty(0)) == {}
