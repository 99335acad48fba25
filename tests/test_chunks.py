from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt
import pytest

from shmstore import chunks
from shmstore.chunks import read_items
from shmstore.codec import Codec

Items = npt.NDArray[Any]
Reading = chunks._Reading

CHUNK = 16_384  # items of 4 bytes in 64 KiB
LENGTH = 60 * CHUNK - 777


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.h5"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that decoded, one for each task: empty where HDF5 did it all."""
    names: list[str] = []

    class Watched(Reading):
        def _decode(self, stored: list[Any]) -> list[int]:
            names.append(threading.current_thread().name)
            return super()._decode(stored)

    monkeypatch.setattr(chunks, "_Reading", Watched)
    return names


def wave(length: int, dtype: Any = "<f4") -> Items:
    values = 3000 * np.sin(np.arange(length) / 700) + np.random.default_rng(5).normal(0, 9, length)
    rounded: Items = np.round(values).astype(dtype)
    return rounded


def write(path: Path, items: Items, chunk: int = CHUNK, **options: Any) -> None:
    options = options or {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.create_dataset(
            "x",
            data=items,
            maxshape=(None, *items.shape[1:]),
            chunks=(chunk, *items.shape[1:]),
            **options,
        )


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        (0, LENGTH),
        (0, LENGTH - 1),
        (1, LENGTH),
        (CHUNK, 50 * CHUNK),
        (CHUNK - 1, 50 * CHUNK + 1),
        (CHUNK + 5, 41 * CHUNK - 5),
        (3 * CHUNK, LENGTH + 10**6),
        (-40 * CHUNK, LENGTH),
    ],
)
def test_a_range_is_what_h5py_reads(path: Path, decoded: list[str], start: int, stop: int) -> None:
    items = wave(LENGTH)
    write(path, items)
    with h5py.File(path) as file:
        found = read_items(file["x"], start, stop)
        assert decoded
        assert found.dtype == items.dtype
        assert found.tobytes() == items[start:stop].tobytes()
    found[...] = 0  # the caller's own


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip", "compression_opts": 6},
        dict(hdf5plugin.Zstd()),
        {"shuffle": True, **hdf5plugin.LZ4()},
        dict(hdf5plugin.Blosc("zstd")),
        dict(hdf5plugin.Blosc2("lz4")),
        {"shuffle": True},
    ],
)
def test_other_filters(path: Path, decoded: list[str], options: dict[str, Any]) -> None:
    items = wave(LENGTH, "<i4")
    write(path, items, **options)
    with h5py.File(path) as file:
        assert read_items(file["x"], 0, LENGTH).tobytes() == items.tobytes()
    assert decoded


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("?", (2_500_000,)),
        (">u2", (1_250_000,)),
        ("<f2", (1_250_000,)),
        ("<c8", (300_000,)),
        ("S12", (200_000,)),
        ([("time", "<i8"), ("value", ">f4")], (200_000,)),
        ("<u2", (500, 40, 60)),
        ("?", (1200, 7, 300)),
    ],
)
def test_types_and_shapes(path: Path, decoded: list[str], dtype: Any, shape: tuple[int, ...]) -> None:
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.random.default_rng(1).integers(0, 2, nbytes, np.uint8)
    items = raw.view(dtype).reshape(shape)
    write(path, items, max(1, shape[0] // 19))
    with h5py.File(path) as file:
        found = read_items(file["x"], 1, shape[0] - 1)
        expected = file["x"][1 : shape[0] - 1]
    assert decoded
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


def test_threads_of_a_name_decode_and_end_with_the_call(path: Path, decoded: list[str]) -> None:
    write(path, wave(LENGTH))
    with h5py.File(path) as file:
        read_items(file["x"], 0, LENGTH)
    assert all(name.startswith("shmstore-chunks") for name in decoded)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("shmstore-chunks")]


def test_a_caller_that_has_the_lock_of_h5py_is_served(path: Path, decoded: list[str]) -> None:
    """As in a callback of h5py's ``visititems``: decoding must not ask h5py for anything."""
    items = wave(LENGTH)
    write(path, items)
    found: list[Items] = []
    with h5py.File(path) as file:
        file.visititems(lambda _, dataset: found.append(read_items(dataset, 0, LENGTH)))
    assert decoded
    assert found[0].tobytes() == items.tobytes()


def test_several_threads_read_at_once(path: Path, decoded: list[str]) -> None:
    items = wave(LENGTH)
    write(path, items)
    with h5py.File(path) as file, ThreadPoolExecutor(3) as pool:
        dataset = file["x"]
        for found in pool.map(lambda start: read_items(dataset, start, LENGTH), range(0, 1200, 100)):
            assert found.tobytes() == items[-len(found) :].tobytes()
    assert decoded


# -- into an array -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [100, LENGTH])
def test_into_an_array_of_the_callers(path: Path, stop: int) -> None:
    items = wave(LENGTH)
    write(path, items)
    around = np.full(stop + 2, -1, "<f4")
    with h5py.File(path) as file:
        out = around[1:-1]
        assert read_items(file["x"], 0, stop, out) is out
    assert out.tobytes() == items[:stop].tobytes()
    assert around[0] == around[-1] == -1


@pytest.mark.parametrize(
    "out", [np.zeros(LENGTH - 1, "<f4"), np.zeros(LENGTH, ">f4"), np.zeros((LENGTH, 2), "<f4")[:, 0]]
)
def test_an_array_that_does_not_fit_is_refused(path: Path, out: Items) -> None:
    write(path, wave(LENGTH))
    with h5py.File(path) as file, pytest.raises(ValueError, match="give one that fits"):
        read_items(file["x"], 0, LENGTH, out)


# -- through HDF5 --------------------------------------------------------------------------------------------


def test_chunks_that_were_never_written_have_the_fill_value(path: Path, decoded: list[str]) -> None:
    items = np.full(LENGTH, 7, "<i4")
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(
            "x", LENGTH, "<i4", chunks=CHUNK, maxshape=None, compression="gzip", fillvalue=7
        )
        for start in (0, 5 * CHUNK, 6 * CHUNK, LENGTH - 3):
            items[start : start + CHUNK] = dataset[start : start + CHUNK] = start + 1
    with h5py.File(path) as file:
        assert file["x"].id.get_num_chunks() == 4
        found = read_items(file["x"], 0, LENGTH)
    assert decoded
    assert found.tobytes() == items.tobytes()


def test_frames_that_only_hdf5_reads(path: Path, decoded: list[str]) -> None:
    """Blosc2's own N-D blocks, which its HDF5 filter makes of images."""
    images = wave(60 * 50 * 300, "<i4").reshape(60, 50, 300)
    write(path, images, 7, **hdf5plugin.Blosc2())
    with h5py.File(path) as file:
        assert read_items(file["x"], 3, 60).tobytes() == images[3:].tobytes()
    assert decoded


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": None},
        {"chunks": (CHUNK,)},  # no filter: nothing to decode
        {"chunks": (CHUNK,), "compression": "lzf"},
        {"chunks": (CHUNK,), "compression": "gzip", "fletcher32": True},
        {"chunks": (1000,), "compression": "gzip"},  # too small
        {"chunks": (2 * LENGTH,), "maxshape": (None,), "compression": "gzip"},  # one
    ],
)
def test_what_hdf5_does_as_well(path: Path, decoded: list[str], options: dict[str, Any]) -> None:
    items = wave(LENGTH)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", data=items, **options)
        assert read_items(dataset, 3, LENGTH).tobytes() == items[3:].tobytes()
    assert not decoded


def test_chunks_that_do_not_span_the_other_dimensions(path: Path, decoded: list[str]) -> None:
    images = wave(LENGTH // 500 * 500, "<i4").reshape(-1, 500)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", data=images, chunks=(100, 250), compression="gzip")
        assert read_items(dataset, 0, len(images)).tobytes() == images.tobytes()
    assert not decoded


def test_types_that_numpy_has_otherwise(path: Path, decoded: list[str]) -> None:
    """Numbers of 12 bits in 2 bytes, which HDF5 converts; and strings of variable length."""
    short = h5py.h5t.STD_I16LE.copy()
    short.set_precision(12)
    values = np.random.default_rng(0).integers(-2048, 2048, 1_500_000).astype("<i2")
    words = np.array(["a", "bc", ""] * 300_000, object)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", values.shape, short, chunks=(CHUNK,), compression="gzip")[...] = values
        file.create_dataset("y", data=words, dtype=h5py.string_dtype(), chunks=(CHUNK,), compression="gzip")
        assert (read_items(file["x"], 0, len(values)) == values).all()
        assert [word.decode() for word in read_items(file["y"], 0, len(words))] == words.tolist()
    assert not decoded


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (5, 5), (9, 3), (LENGTH, LENGTH + 5), (7, 2007)])
def test_little_or_nothing(path: Path, decoded: list[str], start: int, stop: int) -> None:
    items = wave(LENGTH)
    write(path, items)
    with h5py.File(path) as file:
        assert read_items(file["x"], start, stop).tobytes() == items[start:stop].tobytes()
    assert not decoded


# -- live, and damaged ---------------------------------------------------------------------------------------


def test_a_live_file_whose_last_chunk_is_stored_raw_at_first(path: Path, decoded: list[str]) -> None:
    items = wave(LENGTH)
    codec = Codec.parse("gzip")
    encoder = codec.encoder(4, 4 * CHUNK)
    assert encoder is not None
    write(path, items[:0])
    padded = np.zeros((60, CHUNK), "<f4")
    padded.reshape(-1)[:LENGTH] = items

    def read() -> Items:
        with h5py.File(path, "r", swmr=True, locking=False) as file:  # anew for each look, as the reader does
            return read_items(file["x"], 0, LENGTH)

    with h5py.File(path, "r+", libver=("v110", "v110"), locking=False) as file:
        file.swmr_mode = True
        dataset = file["x"].id
        for number in range(59):
            payload, filter_mask = encoder(padded[number])
            assert filter_mask == 0
            dataset.set_extent(((number + 1) * CHUNK,))
            dataset.write_direct_chunk((number * CHUNK,), payload, filter_mask)
        for length in (CHUNK // 3, LENGTH - 59 * CHUNK):
            part = padded[59].copy()
            part[length:] = 0
            dataset.set_extent((59 * CHUNK + length,))
            dataset.write_direct_chunk((59 * CHUNK,), part.tobytes(), 3)
            file.flush()
            assert read().tobytes() == items[: 59 * CHUNK + length].tobytes()
        payload, filter_mask = encoder(padded[59])
        dataset.write_direct_chunk((59 * CHUNK,), payload, filter_mask)
        file.flush()
    assert read().tobytes() == items.tobytes()
    assert decoded


def test_a_damaged_chunk_is_named(path: Path) -> None:
    items = wave(LENGTH)
    write(path, items)
    with h5py.File(path) as file:
        place = file["x"].id.get_chunk_info_by_coord((43 * CHUNK,))
    with path.open("r+b") as raw:
        raw.seek(place.byte_offset + place.size // 2)
        raw.write(bytes(64))
    with h5py.File(path) as file:
        with pytest.raises(OSError, match=r"^chunk 43 of '/x': [^\n]+$"):
            read_items(file["x"], 0, LENGTH)
        whole = read_items(file["x"], 0, 43 * CHUNK)
    assert whole.tobytes() == items[: 43 * CHUNK].tobytes()


def test_a_chunk_that_lies_beyond_the_end_of_the_file_is_an_error(path: Path) -> None:
    items = wave(LENGTH)
    write(path, items)
    with h5py.File(path) as file:
        dataset = file["x"]
        place = dataset.id.get_chunk_info_by_coord((30 * CHUNK,)).byte_offset
        with path.open("r+b") as raw:
            raw.truncate(place + 10)
        with pytest.raises(OSError):
            read_items(dataset, 0, LENGTH)
