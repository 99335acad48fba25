"""Codecs alone: on the very bytes that a recording holds, in proportion, and what is worth a recording."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest

import shmstore
from shmstore.planning import plan
from shmstore.tuning.codecs import (
    CodecFigures,
    Values,
    candidate_points,
    measure,
    values_of,
    worth_recording,
)
from shmstore.tuning.point import Point

MIB = 1 << 20
RNG = np.random.default_rng(0)
ROWS = 200_000
BATCH = pa.record_batch(
    {
        "time": pa.array(np.arange(ROWS) * 1000, pa.timestamp("ns")),
        "adc": (2000 * np.sin(np.arange(ROWS) / 160) + RNG.normal(0, 20, ROWS)).astype(np.int16),
        "hits": pa.array([[1.5] * (row % 3) for row in range(ROWS)], pa.list_(pa.float32())),
        "label": pa.array([f"state {row // 50_000}" for row in range(ROWS)]).dictionary_encode(),
        "text": pa.array(["x"] * ROWS),
    }
)


def values(batch: pa.RecordBatch = BATCH) -> list[Values]:
    return values_of(
        [batch.slice(0, ROWS // 2), batch.slice(ROWS // 2)], plan(batch.schema, lambda _: "vlen")
    )


def test_values_are_what_the_file_holds(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir) as storage:
        storage.write_batch("probe", BATCH)
    with h5py.File(storage.path) as file:
        for stream, items in values():
            stored = file[f"probe/{stream.path}"][:]
            assert np.array_equal(stored[stream.lead :], items), stream.path
    assert "text" not in {stream.path for stream, _ in values()}


@pytest.mark.parametrize("chunk_bytes", [MIB // 4, MIB])
def test_sizes_agree_with_a_recording(output_dir: Path, chunk_bytes: int) -> None:
    batch = pa.Table.from_batches([BATCH.select(["time", "adc"])] * 20).combine_chunks().to_batches()[0]
    point = Point("zstd", 3, chunk_bytes=chunk_bytes)
    with shmstore.HDF5Storage(shmstore.StorageConfig(output_dir=output_dir, **point.options())) as storage:
        storage.write_batch("probe", batch)
    with h5py.File(storage.path) as file:
        stored = sum(file[f"probe/{name}"].id.get_storage_size() for name in ("time", "adc"))
    alone = values(batch)
    assert measure(point, alone, 60.0).size == pytest.approx(stored / batch.nbytes, rel=0.05)
    assert 0 < measure(point, alone, 1e-6).size < 1  # one chunk, however little time there is


def test_some_of_many_narrow_columns_stand_for_all() -> None:
    noise = {f"noise_{number}": RNG.integers(0, 2**31, 50_000, np.int32) for number in range(300)}
    zeros = {f"zeros_{number}": np.zeros(50_000, np.int32) for number in range(300)}
    mixed = {name: column for pair in zip(noise.items(), zeros.items(), strict=True) for name, column in pair}
    size = measure(Point("lz4", chunk_bytes=MIB // 4), values(pa.record_batch(mixed)), 60.0).size
    assert size == pytest.approx(0.5, abs=0.2)


def test_no_codec_is_free() -> None:
    figures = measure(Point("none"), values(), 1.0)
    assert (figures.mb_s, figures.size, figures.to_dict()["mb_s"]) == (float("inf"), 1.0, None)


def test_less_than_a_chunk_is_enough() -> None:
    assert measure(Point("gzip", 1, chunk_bytes=4 * MIB), values(BATCH.slice(0, 10)), 1.0).size > 0


def test_candidates() -> None:
    points = candidate_points(Point(), (), MIB)
    assert {point.chunk_bytes for point in points} == {MIB // 16, MIB // 4, MIB}
    assert {point.codec.name for point in points} == {"none", "gzip", "zstd", "lz4", "blosc", "bitshuffle"}
    assert len(points) == len(set(points))


def test_candidates_keep_what_is_fixed() -> None:
    gzip = candidate_points(Point("gzip", 6), ("compression",), MIB)
    assert {str(point.codec) for point in gzip} == {f"gzip-{level}+shuffle" for level in (1, 3, 6, 9)}
    assert {point.chunk_bytes for point in candidate_points(Point(), ("chunk_bytes",), MIB)} == {None}
    (same,) = candidate_points(Point("blosc2:lz4", 5, chunk_bytes=MIB), ("compression", "chunk_bytes"), MIB)
    assert str(same.codec) == "blosc2:lz4-5+shuffle"
    one = candidate_points(Point("gzip", 7), ("compression", "compression_level"), 0)
    assert [(point.compression_level, point.chunk_bytes) for point in one] == [(7, MIB // 16)]


def figures(compression: str, level: int | None, mb_s: float, size: float, chunk: int = MIB) -> CodecFigures:
    return CodecFigures(Point(compression, level, chunk_bytes=chunk), mb_s, size)


def test_what_is_dominated_is_not_worth_recording() -> None:
    none, fast, small = (
        figures("none", None, float("inf"), 1.0),
        figures("lz4", None, 2000, 0.6),
        figures("zstd", 6, 400, 0.5),
    )
    beaten = figures("gzip", 6, 300, 0.55)
    assert worth_recording([beaten, small, none, fast], 6) == [none, fast, small]


def test_of_one_codec_the_best_chunk_size_stays() -> None:
    small, large = figures("zstd", 1, 1000, 0.6, MIB // 4), figures("zstd", 1, 1000, 0.5, MIB)
    assert worth_recording([small, large], 6) == [large]


def test_thinning_keeps_the_corners() -> None:
    none, knee, smallest = (
        figures("none", None, float("inf"), 1.0),
        figures("zstd", 1, 1500, 0.50),
        figures("zstd", 12, 80, 0.45),
    )
    near = [figures("gzip", 1, 1550, 0.52), figures("zstd", 2, 1400, 0.495), figures("zstd", 3, 1300, 0.49)]
    kept = worth_recording([none, knee, smallest, *near], 3)
    assert kept[0] is none
    assert kept[-1] is smallest
    assert kept[1] in (knee, *near)
    assert len(kept) == 3
