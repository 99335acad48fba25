"""The tuner: real, tiny runs on little data; what it makes on the way is gone afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import shmstore
from shmstore.errors import StorageError, UnsupportedTypeError
from shmstore.sources.files import open_source
from shmstore.tuning.goal import Goal
from shmstore.tuning.tuner import Stopped, Tuner

MIB = 1 << 20


def write_data(path: Path, rows: int = 400_000, **columns: Any) -> str:
    rng = np.random.default_rng(0)
    adc = (2000 * np.sin(np.arange(rows) / 160) + rng.normal(0, 20, rows)).astype(np.int16)
    times = pa.array(np.arange(rows) * 1000, pa.timestamp("ns"))
    pa.parquet.write_table(pa.table({"time": times, "adc": adc, **columns}), str(path))
    return str(path)


@contextmanager
def tuner(
    folder: Path, path: str, fixed: dict[str, Any] | None = None, **options: Any
) -> Iterator[tuple[Tuner, list[str]]]:
    told: list[str] = []
    with (
        open_source(path) as source,
        Tuner(source, folder / "disk", fixed=fixed or {}, tell=told.append, **options) as made,
    ):
        yield made, told
    assert list((folder / "disk").iterdir()) == []


def test_tunes_and_checks(output_dir: Path) -> None:
    with tuner(output_dir, write_data(output_dir / "run.parquet"), producers=2) as (made, told):
        began_s = time.monotonic()
        tuning = made.tune(Goal("rate"), 3.0)
        took_s = time.monotonic() - began_s
        config = shmstore.StorageConfig(**tuning.chosen.point.options())
        check = made.check(config, 5.0, 1.0)
    assert tuning.seconds <= took_s
    assert tuning.chosen in tuning.figures
    assert tuning.default is None or tuning.default.point.compression == "gzip"
    assert tuning.front
    assert {id(figures) for figures in tuning.front} <= {id(figures) for figures in tuning.figures}
    assert {each.point.codec.name for each in tuning.alone} >= {"none", "gzip", "zstd", "lz4", "blosc"}
    assert tuning.shortfall() is None
    assert tuning.disk_mb_s > 0
    assert check.holds
    assert check.sentence().startswith("holds 5 MB/s for ")
    assert check.figures.p99_ms is not None
    assert told[0].startswith("reading a sample of ")
    assert any(text.startswith("recording ") for text in told)


def test_a_rate_that_nothing_holds_is_told_with_what_would(output_dir: Path) -> None:
    with tuner(output_dir, write_data(output_dir / "run.parquet")) as (made, _):
        tuning = made.tune(Goal("size", 1e6), 1.0)
        config = shmstore.StorageConfig(ring_bytes=4 * MIB)
        check = made.check(config, 20_000.0, 1.0)
    assert not tuning.holds
    assert "nothing that was recorded holds 1,000,000 MB/s" in str(tuning.shortfall())
    assert not check.holds
    assert check.lacking_mb_s > 1000
    assert "does not hold 20,000 MB/s: it lacks" in check.sentence()
    assert "lower the rate to" in tuning.recommendation(20_000.0)


def test_what_is_fixed_is_not_varied(output_dir: Path) -> None:
    fixed = {"compression": "zstd", "ring_bytes": 2 * MIB, "strings": "packed", "chunk_bytes": MIB}
    path = write_data(output_dir / "run.parquet", 50_000, note=["x"] * 50_000)
    with tuner(output_dir, path, fixed) as (made, _):
        tuning = made.tune(Goal("size"), 2.0)
    assert {each.point.codec.name for each in tuning.alone} == {"zstd"}
    assert {figures.point.ring_bytes for figures in tuning.figures} == {2 * MIB}
    assert [note.partition(":")[0] for note in tuning.notes] == ["sizes are rough"]  # no text is left out


def test_latency_is_measured_at_a_pace(output_dir: Path) -> None:
    fixed = {"compression": "lz4", "ring_bytes": 8 * MIB}
    with tuner(output_dir, write_data(output_dir / "run.parquet"), fixed) as (made, _):
        tuning = made.tune(Goal("latency"), 3.0)
    assert tuning.goal.asked_mb_s is not None
    assert all(figures.p99_ms is not None for figures in tuning.figures)
    assert "ms, " in tuning.choices["codec"].reason


def test_nothing_but_text_is_recorded_all_the_same(output_dir: Path) -> None:
    path = output_dir / "log.parquet"
    pa.parquet.write_table(pa.table({"line": [f"line {number}" for number in range(20_000)]}), str(path))
    with tuner(output_dir, str(path), {"ring_bytes": 2 * MIB}) as (made, _):
        tuning = made.tune(Goal("rate"), 1.0)
    assert tuning.alone == []
    assert tuning.chosen.point.compression == "gzip"
    assert any("no codec compresses 'line'" in note for note in tuning.notes)


def test_data_that_cannot_be_recorded_is_refused_first(output_dir: Path) -> None:
    path = output_dir / "run.arrows"
    schema = pa.schema([("odd", pa.dictionary(pa.int8(), pa.dictionary(pa.int8(), pa.string())))])
    with pa.ipc.new_stream(str(path), pa.schema([("fine", pa.int8())])) as writer:
        writer.write_batch(pa.record_batch({"fine": pa.array([1], pa.int8())}))
    with open_source(str(path)) as source:
        source.schema = schema
        with pytest.raises(UnsupportedTypeError, match="odd"):
            Tuner(source, output_dir / "disk").__enter__()
    assert not (output_dir / "disk").exists()


def test_a_check_that_the_disk_has_no_room_for(output_dir: Path) -> None:
    with (
        tuner(output_dir, write_data(output_dir / "run.parquet", 1000)) as (made, _),
        pytest.raises(StorageError, match="lower --check-seconds"),
    ):
        made.check(shmstore.StorageConfig(), 1e6, 86_400.0)


@pytest.mark.parametrize("asks", [1, 5, 60])
def test_stops_when_asked(output_dir: Path, asks: int) -> None:
    left = asks

    def stopped() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    stop: Callable[[], bool] = stopped
    path = write_data(output_dir / "run.parquet", 50_000)
    with pytest.raises(Stopped), tuner(output_dir, path, stopped=stop) as (made, _):
        made.tune(Goal("rate"), 20.0)
    assert list((output_dir / "disk").iterdir()) == []
