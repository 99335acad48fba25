from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore.deflate import zlib_stream

Bytes = npt.NDArray[np.uint8]


def planes_of(array: npt.NDArray[Any]) -> Bytes:
    """The chunk as HDF5's shuffle filter leaves it."""
    return np.ascontiguousarray(array.view(np.uint8).reshape(-1, array.dtype.itemsize).T).reshape(-1)


def adc(period: float, samples: int = 131072) -> npt.NDArray[np.int16]:
    noise = np.random.default_rng(3).normal(0, 20, samples)
    signal: npt.NDArray[np.float64] = 2000 * np.sin(2 * np.pi * np.arange(samples) / period) + noise
    return signal.astype(np.int16)


@st.composite
def shuffled(draw: st.DrawFn) -> tuple[Bytes, int]:
    """Planes side by side, each of another kind: noise, few values, runs, a recurring string, constant."""
    itemsize = draw(st.sampled_from([1, 2, 3, 4, 8, 12, 16, 17, 40]))
    items = draw(st.one_of(st.integers(1, 300), st.integers(4000, 9000), st.just(70000 // itemsize)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    planes = []
    for kind in draw(st.lists(st.integers(0, 4), min_size=itemsize, max_size=itemsize)):
        if kind == 0:
            plane = rng.integers(0, 256, items)
        elif kind == 1:
            plane = rng.integers(0, rng.integers(2, 200), items)
        elif kind == 2:
            plane = np.repeat(rng.integers(0, 256, items), 50)[:items]
        elif kind == 3:
            plane = np.tile(rng.integers(0, 256, 37), items // 37 + 1)[:items]
        else:
            plane = np.full(items, 7)
        planes.append(plane.astype(np.uint8))
    return np.concatenate(planes), itemsize


@settings(deadline=None, max_examples=150)
@given(shuffled(), st.integers(0, 9))
def test_inflate_gives_the_bytes_back(chunk: tuple[Bytes, int], level: int) -> None:
    data, planes = chunk
    stream = zlib_stream(data, planes, level)
    if stream is not None:
        assert zlib.decompress(stream) == data.tobytes()
        assert len(stream) < data.nbytes


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=5000), st.integers(1, 20), st.integers(1, 9))
def test_any_bytes_at_all(content: bytes, planes: int, level: int) -> None:
    stream = zlib_stream(np.frombuffer(content, np.uint8), planes, level)
    assert stream is None or zlib.decompress(stream) == content


@pytest.mark.parametrize("level", range(10))
def test_every_level_on_a_chunk_with_noise_and_signal(level: int) -> None:
    data = planes_of(adc(333))
    stream = zlib_stream(data, 2, level)
    if level == 0:
        assert stream is None
    else:
        assert stream is not None
        assert zlib.decompress(stream) == data.tobytes()
        assert len(stream) < 0.62 * data.nbytes


@pytest.mark.parametrize("period", [5, 7.3, 20, 50, 200, 333, 1000, 5000, 50000])
def test_level_6_is_within_5_percent_of_zlib(period: float) -> None:
    data = planes_of(adc(period, 524288))
    stream = zlib_stream(data, 2, 6)
    assert stream is not None
    assert len(stream) <= 1.05 * len(zlib.compress(data.data, 6))


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_level_6_on_a_random_walk(dtype: str) -> None:
    data = planes_of(np.cumsum(np.random.default_rng(1).normal(0, 1, 65536)).astype(dtype))
    stream = zlib_stream(data, np.dtype(dtype).itemsize, 6)
    assert stream is not None
    assert len(stream) <= 1.05 * len(zlib.compress(data.data, 6))


def test_level_6_on_timestamps() -> None:
    steps = 1_000_000 + np.random.default_rng(1).integers(-500, 500, 65536)
    data = planes_of((1_700_000_000_000_000_000 + np.cumsum(steps)).astype("<i8"))
    stream = zlib_stream(data, 8, 6)
    assert stream is not None
    assert len(stream) <= 1.05 * len(zlib.compress(data.data, 6))


def test_level_6_on_text() -> None:
    rng = np.random.default_rng(1)
    words = np.array(["motor", "axis", "moved", "to", "position", "detector", "armed", "timeout", "retry"])
    lines = (f"{n:09d} {' '.join(rng.choice(words, 6))} id={rng.integers(10**6)}\n" for n in range(4000))
    data = np.frombuffer("".join(lines).encode(), np.uint8)
    stream = zlib_stream(data, 1, 6)
    assert stream is not None
    assert len(stream) <= 1.05 * len(zlib.compress(data.data, 6))


def test_noise_is_refused_not_blown_up() -> None:
    assert zlib_stream(np.random.default_rng(0).integers(0, 256, 1 << 18, np.uint8), 4, 9) is None


def test_noise_that_the_sample_misses_costs_next_to_nothing() -> None:
    """Zeros where the sample looks, noise elsewhere."""
    plane = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
    plane[: 1 << 15] = plane[-(1 << 15) :] = plane[(1 << 19) - (1 << 15) : (1 << 19) + (1 << 15)] = 0
    stream = zlib_stream(plane, 1, 6)
    assert stream is not None
    assert zlib.decompress(stream) == plane.tobytes()


def test_empty() -> None:
    assert zlib_stream(np.empty(0, np.uint8), 1, 6) is None
