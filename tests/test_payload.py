from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import numpy.typing as npt
import pytest
from h5py import h5d, h5p, h5s, h5t, h5z

from shmstore.codec import Codec
from shmstore.payload import Encoded

Array = npt.NDArray[Any]

CODECS = [
    *(
        Codec.parse("gzip", level, shuffle)
        for level, shuffle in ((0, None), (1, None), (6, False), (9, True))
    ),
    *(Codec.parse("gzip", level) for level in (2, 3, 4, 5, 6, 7, 8)),
    *(Codec.parse("zstd", level, shuffle) for level, shuffle in ((None, None), (1, False), (9, True))),
    *(Codec.parse("lz4", level, shuffle) for level, shuffle in ((None, None), (None, False), (9, None))),
    *(
        Codec.parse(f"{name}:{inner}")
        for name in ("blosc", "blosc2")
        for inner in ("lz4", "lz4hc", "blosclz", "zlib", "zstd")
    ),
    *(
        Codec.parse(name, level, shuffle)
        for name in ("blosc:lz4", "blosc2:lz4")
        for level, shuffle in ((0, None), (9, False), (5, "bit"))
    ),
    Codec.parse("bitshuffle:lz4"),
    Codec.parse("bitshuffle:zstd"),
    Codec.parse("bitshuffle:zstd", 9),
]
# 5,003 and 35,003 rows: no multiple of 8, less and more than one block of bitshuffle.
SHAPES: list[tuple[Any, tuple[int, ...]]] = [
    ("i1", (5003,)),
    ("<i2", (35003,)),
    ("<i4", (5003,)),
    (">i4", (5003,)),
    ("<i8", (10007,)),
    ("<f4", (5003,)),
    ("<f8", (10007,)),
    ("u1", (3, 64, 80)),
    ([("time", "<i4"), ("value", "<f8")], (5003,)),
    ("S3", (5003,)),
    ("S300", (301,)),
    ("<i2", (3,)),
]
KINDS = ("noise", "zeros", "constant", "ramp", "signal")


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
    elif kind == "constant":
        raw = np.tile(rng.integers(0, 256, dtype.itemsize, np.uint8), items)
    elif kind == "ramp" and dtype.kind in "iuf":
        raw = (np.arange(items) % 120).astype(dtype).view(np.uint8)
    elif dtype.kind in "iuf":
        raw = (60 * np.sin(np.arange(items) / 50) + rng.normal(0, 5, items)).astype(dtype).view(np.uint8)
    else:
        raw = np.repeat(rng.integers(32, 127, (nbytes + 6) // 7, np.uint8), 7)[:nbytes]
    chunk: Array = raw.view(dtype).reshape(shape)
    return chunk


def store(file: h5py.File, name: str, codec: Codec, chunk: Array, encoded: Encoded) -> None:
    """Write one chunk past the pipeline, as the recorder does."""
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk(chunk.shape)
    for filter_id, cd_values in codec.filters(chunk.dtype.itemsize, chunk.nbytes):
        plist.set_filter(filter_id, h5z.FLAG_OPTIONAL, cd_values)
    space = h5s.create_simple(chunk.shape, (h5s.UNLIMITED, *chunk.shape[1:]))
    dataset = h5d.create(file.id, name.encode(), h5t.py_create(chunk.dtype, logical=True), space, plist)
    dataset.write_direct_chunk((0,) * chunk.ndim, encoded.payload, encoded.filter_mask)


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_plain_h5py_reads_it(codec: Codec, tmp_path: Path) -> None:
    chunks = {f"{kind} {number}": made(kind, *shape) for number, shape in enumerate(SHAPES) for kind in KINDS}
    raw = set()
    with h5py.File(tmp_path / "chunks.h5", "w", libver=("v110", "v110")) as file:
        for name, chunk in chunks.items():
            encoder = codec.encoder(chunk.dtype.itemsize, chunk.nbytes)
            assert encoder is not None
            encoded = encoder(chunk)
            # An unfiltered chunk has the chunk's length, a filtered one is shorter.
            assert (len(encoded.payload) == chunk.nbytes) == (encoded.filter_mask != 0)
            assert len(encoded.payload) <= chunk.nbytes
            if encoded.filter_mask:
                raw.add(name.split()[0])
            store(file, name, codec, chunk, encoded)
    # Opened anew: HDF5 2.0 forgets the mask of a chunk just written through the same handle.
    with h5py.File(tmp_path / "chunks.h5") as file:
        for name, chunk in chunks.items():
            dataset = file[name]
            assert dataset.dtype == chunk.dtype
            assert dataset[()].tobytes() == chunk.tobytes(), name
    assert "noise" in raw


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_noise_is_the_callers_own_bytes_with_every_filter_off(codec: Codec) -> None:
    chunk = made("noise", "<i4", (8192,))
    encoder = codec.encoder(4, chunk.nbytes)
    assert encoder is not None
    encoded = encoder(chunk.data)
    assert encoded.filter_mask == (1 << len(codec.filters(4, chunk.nbytes))) - 1
    assert np.shares_memory(np.frombuffer(encoded.payload, np.uint8), chunk)
    assert bytes(encoded.payload) == chunk.tobytes()


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec.level != 0], ids=str)
def test_zeros_shrink(codec: Codec) -> None:
    chunk = np.zeros((64, 512), np.int32)
    encoder = codec.encoder(4, chunk.nbytes)
    assert encoder is not None
    encoded = encoder(chunk)
    assert encoded.filter_mask == 0
    assert len(encoded.payload) < chunk.nbytes // 20


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_threads_share_an_encoder(codec: Codec) -> None:
    chunks = [made(kind, "<i2", (40000,)) + np.int16(n) for n in range(3) for kind in ("signal", "ramp")]
    encoder = codec.encoder(2, chunks[0].nbytes)
    assert encoder is not None
    alone = [bytes(encoder(chunk).payload) for chunk in chunks]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda n: bytes(encoder(chunks[n % 6]).payload), range(48)))
    assert together == alone * 8


def test_threads_keep_chunks_of_several_sizes_apart() -> None:
    """The scratch memory of a thread serves every encoder that it runs."""
    codec = Codec.parse("zstd")
    chunks = [made("signal", "<i8", (rows,)) for rows in (10, 5000, 300, 40000)]
    encoders = [codec.encoder(8, chunk.nbytes) for chunk in chunks]
    alone = [
        bytes(encoder(chunk).payload) for encoder, chunk in zip(encoders, chunks, strict=True) if encoder
    ]
    again = [
        bytes(encoder(chunk).payload) for encoder, chunk in zip(encoders, chunks, strict=True) if encoder
    ]
    assert alone == again
    assert len(alone) == 4


@pytest.mark.parametrize(("shuffle", "flags"), [(False, 0), ("byte", 1), ("bit", 4)])
def test_blosc_transposes_as_told(shuffle: bool | str, flags: int) -> None:
    """Byte 2 of a Blosc header: bit 0 for bytes, bit 2 for bits; byte 3: the item size."""
    chunk = made("signal", "<i4", (5003,))
    encoder = Codec.parse("blosc", shuffle=shuffle).encoder(4, chunk.nbytes)
    assert encoder is not None
    header = bytes(encoder(chunk).payload[:4])
    assert (header[2] & 5, header[3]) == (flags, 4)


def test_any_contiguous_chunk_is_taken() -> None:
    times = np.arange(1000).astype("<M8[ns]")
    encoder = Codec.parse("gzip").encoder(8, times.nbytes)
    assert encoder is not None
    expected = encoder(times.view(np.int64)).payload
    assert encoder(times).payload == expected
    assert encoder(memoryview(times.tobytes())).payload == expected
    assert encoder(times.reshape(10, 100)).payload == expected


def test_a_wrong_chunk_is_refused() -> None:
    encoder = Codec.parse("gzip").encoder(2, 2000)
    assert encoder is not None
    with pytest.raises(ValueError, match="chunk has 1998 bytes: this encoder takes 2000"):
        encoder(np.zeros(999, np.int16))
    with pytest.raises(ValueError, match="not C-contiguous"):
        encoder(np.zeros(2000, np.int16)[::2])


def test_lzf_filters_work_in_hdf5s_own_pipeline(tmp_path: Path) -> None:
    chunk = made("ramp", "<i4", (5003,))
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk(chunk.shape)
    for filter_id, cd_values in Codec.parse("lzf").filters(4, chunk.nbytes):
        plist.set_filter(filter_id, h5z.FLAG_OPTIONAL, cd_values)
    with h5py.File(tmp_path / "lzf.h5", "w") as file:
        space = h5s.create_simple(chunk.shape)
        dataset = h5d.create(file.id, b"x", h5t.py_create(chunk.dtype, logical=True), space, plist)
        dataset.write(h5s.ALL, h5s.ALL, chunk)
    with h5py.File(tmp_path / "lzf.h5") as file:
        assert (file["x"].compression, file["x"].shuffle) == ("lzf", True)
        assert file["x"].id.get_chunk_info(0).size < chunk.nbytes // 2
        assert (file["x"][:] == chunk).all()
