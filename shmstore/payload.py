"""From one chunk's bytes to exactly the bytes that HDF5's filter pipeline reads, outside HDF5.

Owns the payload format of each filter that is produced here. Knows neither h5py nor how a codec is spelled or
chosen (:mod:`shmstore.codec` does). An encoder is called from several threads at once; the interpreter lock
is free while bytes are transposed and compressed.
"""

from __future__ import annotations

import functools
import struct
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shmstore.deflate import zlib_stream
from shmstore.shuffle import bit_shuffle, bitshuffle_block, byte_shuffle

__all__ = ["Encoded", "Encoder", "build_encoder"]

Bytes: TypeAlias = npt.NDArray[np.uint8]
Compress: TypeAlias = Callable[[Bytes], "bytes | memoryview | None"]

_LZ4_LIMIT = 0x7E000000  # LZ4_MAX_INPUT_SIZE


class Encoded(NamedTuple):
    """One chunk, ready for ``write_direct_chunk``.

    Attributes
    ----------
    payload
        The bytes to write. Where the chunk did not shrink, a view of the caller's own chunk: use it before
        the chunk is released.
    filter_mask
        0, or a bit set for each filter where the chunk is stored raw.
    """

    payload: bytes | memoryview
    filter_mask: int


class Encoder(Protocol):
    """What turns a chunk into its payload; safe to call from several threads at once."""

    def __call__(self, chunk: memoryview | npt.NDArray[Any]) -> Encoded:
        """Encode one chunk.

        Parameters
        ----------
        chunk
            C-contiguous, exactly as many bytes as the encoder was made for; borrowed for the call, and for as
            long as a raw payload is in use.

        Raises
        ------
        ValueError
            The chunk has another length.
        """
        ...


class _Scratch(threading.local):
    """One array for each thread, as large as the largest chunk that it shuffled."""

    array: Bytes = np.empty(0, np.uint8)

    def take(self, nbytes: int) -> Bytes:
        if self.array.nbytes < nbytes:
            self.array = np.empty(nbytes, np.uint8)
        return self.array[:nbytes]


_scratch = _Scratch()


def build_encoder(
    name: str,
    inner: str | None,
    level: int | None,
    shuffle: str,
    itemsize: int,
    chunk_nbytes: int,
    filters: int,
) -> Encoder:
    """Make the encoder of one dataset.

    Parameters
    ----------
    name, inner, level
        As in :class:`shmstore.codec.Codec`.
    shuffle
        ``"none"``, ``"byte"`` or ``"bit"``, decided for this item size.
    itemsize, chunk_nbytes
        Bytes of one element and of one chunk: a whole number of elements.
    filters
        How many filters the dataset's pipeline has: as many bits are set in the mask of a raw chunk.
    """
    before = shuffle == "byte" and not name.startswith("blosc")  # Blosc does its own
    planes = itemsize if before else 1
    compress: Compress
    if name == "gzip":
        compress = functools.partial(zlib_stream, planes=planes, level=level or 0)
    elif name == "zstd":
        compress = functools.partial(_arrow, name="zstd", level=level)
    elif name == "lz4":
        compress = functools.partial(_lz4, level=level)
    elif name == "blosc":
        compress = _blosc(str(inner), level or 0, shuffle, itemsize)
    elif name == "blosc2":
        compress = _blosc2(str(inner), level or 0, shuffle, itemsize)
    elif name == "bitshuffle":
        compress = functools.partial(_bitshuffle, inner=str(inner), level=level, itemsize=itemsize)
    else:
        raise NotImplementedError(f"{name} has no encoder")
    raw_mask = (1 << filters) - 1

    def encode(chunk: memoryview | npt.NDArray[Any]) -> Encoded:
        raw = _raw(chunk)
        if raw.nbytes != chunk_nbytes:
            raise ValueError(f"chunk has {raw.nbytes} bytes: this encoder takes {chunk_nbytes}")
        data = raw
        if before:
            data = _scratch.take(chunk_nbytes)
            byte_shuffle(raw, itemsize, data)
        payload = compress(data)
        if payload is None or len(payload) >= chunk_nbytes:
            return Encoded(raw.data, raw_mask)
        return Encoded(payload, 0)

    return encode


def _raw(chunk: memoryview | npt.NDArray[Any]) -> Bytes:
    """The chunk's bytes, without a copy."""
    if isinstance(chunk, np.ndarray):
        if not chunk.flags.c_contiguous:
            raise ValueError("chunk is not C-contiguous: take numpy.ascontiguousarray of it first")
        return chunk.reshape(-1).view(np.uint8)  # frombuffer refuses datetime64
    return np.frombuffer(chunk, np.uint8)


def _arrow(data: Bytes, name: str, level: int | None) -> bytes:
    # As bytes: a Buffer from here exports the length that it had before it was cut to size (pyarrow 26). A
    # codec for each call costs 2 us; Arrow promises nothing about one that threads share.
    arrow: Any = pa  # its stubs do not take arrays
    compressed: bytes = arrow.Codec(name, compression_level=level).compress(data, asbytes=True)
    return compressed


def _lz4(data: Bytes, level: int | None) -> bytes | None:
    """https://github.com/nexusformat/HDF5-External-Filter-Plugins/tree/master/LZ4: here, one block."""
    if data.nbytes > _LZ4_LIMIT:
        return None
    block = _arrow(data, "lz4_raw", level)
    if len(block) >= data.nbytes:
        return None
    return b"".join((struct.pack(">QII", data.nbytes, data.nbytes, len(block)), block))


def _blosc(inner: str, level: int, shuffle: str, itemsize: int) -> Compress:
    import numcodecs.blosc as blosc  # 0.03 s: only those who want it pay

    # Blosc's process-wide threads would serialize our codec threads on one lock.
    blosc.use_threads = False

    def compress(data: Bytes) -> bytes | None:
        if data.nbytes > blosc.MAX_BUFFERSIZE:
            return None
        # The item size travels as the dtype: a Blosc chunk does not hold items of more than 255 bytes.
        items = data.view(f"V{itemsize}") if itemsize <= blosc.MAX_TYPESIZE else data
        compressed: bytes = blosc.compress(items, inner.encode(), level, _BLOSC_SHUFFLE[shuffle])
        return compressed

    return compress


_BLOSC_SHUFFLE = {"none": 0, "byte": 1, "bit": 2}


def _blosc2(inner: str, level: int, shuffle: str, itemsize: int) -> Compress:
    """A contiguous frame of one chunk (https://github.com/Blosc/HDF5-Blosc2)."""
    import blosc2  # 0.25 s: only those who want it pay

    blosc2.set_releasegil(True)
    transposition = {
        "none": blosc2.Filter.NOFILTER,
        "byte": blosc2.Filter.SHUFFLE,
        "bit": blosc2.Filter.BITSHUFFLE,
    }
    cparams = {
        "codec": blosc2.Codec[inner.upper()],
        "clevel": level,
        "typesize": itemsize if itemsize <= blosc2.MAX_TYPESIZE else 1,
        "nthreads": 1,
        "filters": [transposition[shuffle]],
        "filters_meta": [0],
    }

    def compress(data: Bytes) -> bytes:
        chunk = blosc2.SChunk(
            chunksize=data.nbytes, data=data, contiguous=True, cparams=cparams, dparams={"nthreads": 1}
        )
        frame: bytes = chunk.to_cframe()
        return frame

    return compress


def _bitshuffle(data: Bytes, inner: str, level: int | None, itemsize: int) -> bytes:
    """Whole blocks, then one short block of a multiple of 8 elements, then up to 7 elements as they are.

    The format: ``bshuf_blocked_wrap_fun`` and ``bshuf_h5_filter`` in https://github.com/kiyo-masui/bitshuffle.
    """
    name = "zstd" if inner == "zstd" else "lz4_raw"
    block_nbytes = bitshuffle_block(itemsize) * itemsize
    group = 8 * itemsize
    end = data.nbytes // group * group
    scratch = _scratch.take(block_nbytes)
    pieces: list[bytes | memoryview] = [struct.pack(">QI", data.nbytes, block_nbytes)]
    for start in range(0, end, block_nbytes):
        block = data[start : min(start + block_nbytes, end)]
        planes = scratch[: block.nbytes]
        bit_shuffle(block, itemsize, planes)
        compressed = _arrow(planes, name, level)
        pieces.append(struct.pack(">I", len(compressed)))
        pieces.append(compressed)
    pieces.append(data[end:].data)
    return b"".join(pieces)
