"""Real recordings by real producer processes: what they put is what is counted; nothing stays behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest

from shmstore.errors import BrokenError
from shmstore.sources.files import open_source
from shmstore.tuning.crew import Crew, Order, Stopped
from shmstore.tuning.point import Point
from shmstore.tuning.sample import take_sample
from shmstore.tuning.trial import Stage, growth

MIB = 1 << 20
FIXED: dict[str, Any] = {"ring_bytes": 4 * MIB}
POINT = Point("zstd", 1, chunk_bytes=1 << 18, ring_bytes=4 * MIB)


def write_sample(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    schema = pa.schema([("adc", pa.int16())])
    with pa.ipc.new_stream(str(folder / "in.arrows"), schema) as writer:
        for _ in range(8):
            writer.write_batch(pa.record_batch([rng.integers(0, 500, 1 << 16, np.int16)], schema=schema))
    with open_source(str(folder / "in.arrows")) as source:
        return take_sample(source, folder / "sample").path


@contextmanager
def stage(folder: Path, producers: int = 1, **fixed: Any) -> Iterator[Stage]:
    recordings = folder / "recordings"
    recordings.mkdir()
    with Crew(write_sample(folder), producers) as crew:
        yield Stage(crew, producers, recordings, "probe", {**FIXED, **fixed})
    assert list(recordings.iterdir()) == []


def test_as_fast_as_it_goes(output_dir: Path) -> None:
    with stage(output_dir, producers=2) as ready:
        figures = ready.record(ready.config(POINT), POINT, 0.3)
        again = ready.record(ready.config(POINT), POINT, 0.2)  # by the same processes
    assert figures.point == POINT
    assert figures.nbytes > 0
    assert figures.nbytes % (1 << 17) == 0  # whole batches
    assert figures.mb_s == pytest.approx(figures.nbytes / 1e6 / figures.seconds)
    assert 0.3 < figures.size < 0.8  # 9 of 16 bits, and chunks
    assert figures.dropped == 0
    assert 0 < figures.high_water <= 1
    assert figures.p99_ms is None
    assert again.nbytes > 0
    assert figures.to_dict()["codec"] == "zstd-1+shuffle"


def test_at_a_pace_latencies_are_measured(output_dir: Path) -> None:
    with stage(output_dir, producers=2) as ready:
        figures = ready.record(ready.config(POINT), POINT, 1.0, 4e6)
    assert figures.mb_s == pytest.approx(4, rel=0.2)
    assert figures.p50_ms is not None
    assert figures.p99_ms is not None
    assert 0 < figures.p50_ms <= figures.p99_ms


def test_a_pace_beyond_the_machine_is_late(output_dir: Path) -> None:
    with stage(output_dir) as ready:
        figures = ready.record(ready.config(POINT), POINT, 0.5, 1e12)
    assert figures.late_s > 0.1
    assert figures.high_water > 0.5


def test_growth_is_what_rings_gain_while_producers_put() -> None:
    filling = [(float(second), 10 * second * MIB) for second in range(11)]
    emptying = [(10.0 + second, (100 - 50 * second) * MIB) for second in range(1, 3)]
    assert growth([*filling, *emptying], 10.0, MIB) == pytest.approx(10 * MIB)
    assert growth([*filling, *emptying], 10.0, 60 * MIB) == 0  # 50 MiB in five seconds are noise
    assert growth([(float(second), (second % 2) * MIB) for second in range(20)], 20.0, MIB) == 0
    assert growth(filling[:4], 10.0, MIB) == 0  # two moments are no trend


def test_drops_are_counted(output_dir: Path) -> None:
    with stage(output_dir, on_full="drop_newest") as ready:
        point = Point("zstd", 12, chunk_bytes=1 << 18, ring_bytes=MIB)
        figures = ready.record(ready.config(point), point, 0.5, 1e11)
    assert figures.dropped > 0


def test_stopping_leaves_nothing(output_dir: Path) -> None:
    end_s = float("inf")
    recordings = output_dir / "recordings"
    recordings.mkdir()
    with Crew(write_sample(output_dir), 1, lambda: time.monotonic() > end_s) as crew:
        ready = Stage(crew, 1, recordings, "probe", FIXED)
        ready.record(ready.config(POINT), POINT, 0.2)
        end_s = time.monotonic() + 0.8
        with pytest.raises(Stopped):
            ready.record(ready.config(POINT), POINT, 60.0)
    assert list(recordings.iterdir()) == []


def test_what_a_producer_cannot_do_is_told(output_dir: Path) -> None:
    with (
        Crew(write_sample(output_dir), 1) as crew,
        pytest.raises(BrokenError, match=r"producer process 0: .*nowhere"),
    ):
        crew.prepare(Order("nowhere", "/dev/shm", "probe", 1.0, 1))
