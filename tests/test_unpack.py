from __future__ import annotations

import functools
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt
import pytest
from h5py import h5d, h5p, h5s, h5t, h5z
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore.codec import Codec
from shmstore.unpack import Decoder, build_decoder

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

CODECS = [
    *(Codec.parse("gzip", level, shuffle) for level, shuffle in ((1, None), (6, None), (6, False))),
    *(Codec.parse(name, None, shuffle) for name in ("zstd", "lz4") for shuffle in (None, False)),
    *(
        Codec.parse(f"{name}:{inner}")
        for name in ("blosc", "blosc2")
        for inner in ("lz4", "lz4hc", "blosclz", "zlib", "zstd")
    ),
    *(
        Codec.parse(name, level, shuffle)
        for name in ("blosc:lz4", "blosc2:lz4")
        for level, shuffle in ((0, None), (5, False), (5, "bit"))
    ),
    Codec.parse("bitshuffle:lz4"),
    Codec.parse("bitshuffle:zstd"),
]
# No multiples of 8; with less and with more than one block of bitshuffle.
SHAPES: list[tuple[Any, tuple[int, ...]]] = [
    ("i1", (5003,)),
    ("<i2", (40003,)),
    (">i4", (5003,)),
    ("<f8", (10007,)),
    ("u1", (3, 64, 80)),
    ([("time", "<i4"), ("value", "<f8")], (5003,)),
    ("S3", (5003,)),
    ("S300", (301,)),
    ("<i2", (3,)),
]
KINDS = ("noise", "zeros", "signal")


def made(kind: str, dtype: Any, shape: tuple[int, ...]) -> Array:
    """A chunk with the content that the name says."""
    dtype = np.dtype(dtype)
    items = int(np.prod(shape))
    nbytes = items * dtype.itemsize
    rng = np.random.default_rng(7)
    if kind == "noise":
        raw = rng.integers(0, 256, nbytes, np.uint8)
    elif kind == "zeros":
        raw = np.zeros(nbytes, np.uint8)
    elif dtype.kind in "iuf":
        raw = (60 * np.sin(np.arange(items) / 50) + rng.normal(0, 5, items)).astype(dtype).view(np.uint8)
    else:
        raw = np.repeat(rng.integers(32, 127, (nbytes + 6) // 7, np.uint8), 7)[:nbytes]
    chunk: Array = raw.view(dtype).reshape(shape)
    return chunk


def dataset_of(codec: Codec, chunk: Array, name: str, file: h5py.File) -> h5py.Dataset:
    """A dataset of one chunk; its filters have filled in their parameters."""
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk(chunk.shape)
    for filter_id, values in codec.filters(chunk.dtype.itemsize, chunk.nbytes):
        plist.set_filter(filter_id, h5z.FLAG_OPTIONAL, values)
    space = h5s.create_simple(chunk.shape, (h5s.UNLIMITED, *chunk.shape[1:]))
    return h5py.Dataset(
        h5d.create(file.id, name.encode(), h5t.py_create(chunk.dtype, logical=True), space, plist)
    )


def pipeline_of(dataset: h5py.Dataset) -> list[tuple[int, tuple[int, ...]]]:
    properties = dataset.id.get_create_plist()
    filters = (properties.get_filter(number) for number in range(properties.get_nfilters()))
    return [(filter_id, values) for filter_id, _, values, _ in filters]


def decoder_of(codec: Codec, chunk: Array) -> Decoder:
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        decoder = build_decoder(pipeline_of(dataset_of(codec, chunk, "x", file)), chunk.nbytes)
    assert decoder is not None
    return decoder


def payload_of(codec: Codec, chunk: Array) -> tuple[bytes, int]:
    encoder = codec.encoder(chunk.dtype.itemsize, chunk.nbytes)
    assert encoder is not None
    payload, filter_mask = encoder(chunk)
    return bytes(payload), filter_mask


def fenced(nbytes: int) -> tuple[Bytes, Bytes]:
    """An array at an odd address, and that with what lies around it, where nothing may be written."""
    around = np.full(nbytes + 202, 0xA5, np.uint8)
    return around[101:-101], around


def untouched(around: Bytes) -> bool:
    return bool((around[:101] == 0xA5).all() and (around[-101:] == 0xA5).all())


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_what_was_encoded_comes_back(codec: Codec) -> None:
    masks = set()
    for kind in KINDS:
        for shape in SHAPES:
            chunk = made(kind, *shape)
            payload, filter_mask = payload_of(codec, chunk)
            masks.add(filter_mask)
            out, around = fenced(chunk.nbytes)
            decoder_of(codec, chunk)(payload, filter_mask, out)
            assert out.tobytes() == chunk.tobytes(), (kind, shape)
            assert untouched(around)
    assert max(masks) > 0  # also chunks stored raw
    assert (0 in masks) == (codec.level != 0)


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_what_the_filters_of_hdf5_wrote_is_read(codec: Codec) -> None:
    only_hdf5 = []
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        for number, shape in enumerate(SHAPES):
            for kind in KINDS:
                chunk = made(kind, *shape)
                dataset = dataset_of(codec, chunk, f"{kind} {number}", file)
                dataset[...] = chunk
                dataset.flush()
                filter_mask, payload = dataset.id.read_direct_chunk((0,) * chunk.ndim)
                decoder = build_decoder(pipeline_of(dataset), chunk.nbytes)
                assert decoder is not None
                out, around = fenced(chunk.nbytes)
                try:
                    decoder(payload, filter_mask, out)
                except NotImplementedError:
                    only_hdf5.append(chunk.ndim)
                else:
                    assert out.tobytes() == chunk.tobytes(), (kind, shape)
                assert untouched(around)
    assert set(only_hdf5) == ({3} if codec.name == "blosc2" else set())  # N-D arrays in blocks


@pytest.mark.parametrize("filter_mask", [1, 2])
def test_a_chunk_that_one_of_two_filters_left_alone(filter_mask: int, tmp_path: Path) -> None:
    """HDF5 itself skips a filter that fails for a chunk, and no other."""
    chunk = made("signal", "<i4", (5000,))
    planes = chunk.view(np.uint8).reshape(-1, 4).T.tobytes()
    payload = planes if filter_mask == 2 else zlib.compress(chunk.tobytes())
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = file.create_dataset(
            "x", chunk.shape, chunk.dtype, chunks=chunk.shape, compression="gzip", shuffle=True
        )
        dataset.id.write_direct_chunk((0,), payload, filter_mask)
        decoder = build_decoder(pipeline_of(dataset), chunk.nbytes)
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["x"][()].tobytes() == chunk.tobytes()
    assert decoder is not None
    out = np.zeros(chunk.nbytes, np.uint8)
    decoder(payload, filter_mask, out)
    assert out.tobytes() == chunk.tobytes()


@pytest.mark.parametrize("filter_mask", [0, 1])
def test_lz4_in_several_blocks(filter_mask: int) -> None:
    """Other writers cut a chunk; some of its blocks are stored as they are."""
    noise, zeros = made("noise", "<i2", (500,)), np.zeros(1500, "<i2")
    chunk = np.concatenate((noise, zeros))
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("x", data=chunk, chunks=chunk.shape, **hdf5plugin.LZ4(nbytes=1000))
        dataset.flush()
        mask, payload = dataset.id.read_direct_chunk((0,))
        pipeline = pipeline_of(dataset)
    decoder = build_decoder([(2, (2,)), *pipeline], chunk.nbytes)
    assert mask == 0
    assert decoder is not None
    assert len(payload) > noise.nbytes
    out = np.zeros(chunk.nbytes, np.uint8)
    decoder(payload, filter_mask, out)  # the mask says whether shuffle had been before it
    expected = chunk if filter_mask else np.ascontiguousarray(chunk.view(np.uint8).reshape(2, -1).T)
    assert out.tobytes() == expected.tobytes()


# -- what is damaged -----------------------------------------------------------------------------------------

DAMAGED = [
    codec for codec in CODECS if codec.level != 0 and codec.inner not in {"lz4hc", "zlib"}
]  # level 0 of Blosc is a copy


@functools.cache
def example(codec: Codec) -> tuple[Array, bytes, Decoder]:
    chunk = made("signal", "<i2", (40003,))
    payload, filter_mask = payload_of(codec, chunk)
    assert filter_mask == 0
    return chunk, payload, decoder_of(codec, chunk)


@pytest.mark.parametrize("codec", DAMAGED, ids=str)
def test_a_payload_that_ends_early_is_refused(codec: Codec) -> None:
    chunk, payload, decoder = example(codec)
    places = [*range(0, 70, 3), *range(70, len(payload), 997), *range(len(payload) - 9, len(payload))]
    for place in places:
        out, around = fenced(chunk.nbytes)
        with pytest.raises(ValueError) as caught:
            decoder(payload[:place], 0, out)
        assert "\n" not in str(caught.value)
        assert untouched(around)


@pytest.mark.parametrize("more", [-1600, -2, 2, 1600])
@pytest.mark.parametrize("codec", DAMAGED, ids=str)
def test_a_sound_payload_of_another_length_is_refused(codec: Codec, more: int) -> None:
    chunk, _, decoder = example(codec)
    other = made("signal", "<i2", (len(chunk) + more // 2,))
    payload, _ = payload_of(codec, other)
    out, around = fenced(chunk.nbytes)
    with pytest.raises(ValueError):
        decoder(payload, 0, out)
    assert untouched(around)


@pytest.mark.parametrize("codec", DAMAGED, ids=str)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_changed_bytes_give_an_error_or_a_chunk_and_nothing_else(codec: Codec, data: st.DataObject) -> None:
    chunk, payload, decoder = example(codec)
    places = st.one_of(st.integers(0, 40), st.integers(0, len(payload) - 1))
    changed = bytearray(payload)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)):
        changed[place] = value
    out, around = fenced(chunk.nbytes)
    try:
        decoder(bytes(changed), 0, out)
    except ValueError:
        pass
    else:
        # Deflate alone has a checksum, and its header's bits of level and check say nothing of the data.
        assert codec.name != "gzip" or out.tobytes() == chunk.tobytes()
    assert untouched(around)


@pytest.mark.parametrize("nbytes", [0, 79_999, 80_007])
@pytest.mark.parametrize("codec", CODECS[:2], ids=str)
def test_a_raw_chunk_of_another_length_is_refused(codec: Codec, nbytes: int) -> None:
    chunk, _, decoder = example(codec)
    with pytest.raises(ValueError, match=f"{nbytes} bytes where {chunk.nbytes} belong"):
        decoder(bytes(nbytes), 3, np.zeros(chunk.nbytes, np.uint8))


def test_a_small_stream_that_holds_much_takes_no_more_memory_than_a_chunk() -> None:
    decoder = build_decoder([(1, (6,))], 1000)
    assert decoder is not None
    payload = zlib.compress(bytes(64 << 20))
    out = np.zeros(1000, np.uint8)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="longer than 1000"):
            decoder(payload, 0, out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_an_array_of_another_length_is_refused() -> None:
    chunk, payload, decoder = example(CODECS[0])
    with pytest.raises(ValueError, match="the array has"):
        decoder(payload, 0, np.zeros(chunk.nbytes + 1, np.uint8))


# -- what is not ours ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pipeline",
    [
        [(3, ())],  # fletcher32
        [(1, (6,)), (3, ())],
        [(1, (6,)), (2, (2,))],  # the wrong way round
        [(2, ()), (1, (6,))],
        [(2, (0,)), (1, (6,))],
        [(2, (3,)), (1, (6,))],  # a chunk is no whole number of these
        [(2, (2,)), (32001, (2, 2, 2, 8000, 5, 1, 1))],
        [(1, (6,)), (32015, (3,))],
        [(32008, (0, 4, 2, 32768, 0))],  # planes without compression
        [(32008, (0, 4, 2, 0, 2))],  # blocks of the library's choice: small
        [(32008, (0, 4))],
        [(32000, (4, 261, 8000))],
    ],
)
def test_other_pipelines_have_no_decoder(pipeline: list[tuple[int, tuple[int, ...]]]) -> None:
    assert build_decoder(pipeline, 8000) is None


def test_chunks_too_large_for_the_libraries_have_no_decoder() -> None:
    assert build_decoder([(1, (6,))], 1 << 31) is None
