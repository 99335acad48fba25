"""From the bytes that one chunk has in the file back to its items, outside HDF5: the inverse of the payloads.

Owns, per filter, what a stored chunk must look like. Knows neither h5py nor where chunks come from. A decoder
is called from several threads at once; the interpreter lock is free while bytes are expanded and transposed.
What it is given may be damaged or made to deceive: each length is checked, and what is not exactly one chunk
is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numcodecs.blosc
import numcodecs.lz4
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from isal import isal_zlib

from shmstore.shuffle import bit_unshuffle, byte_unshuffle

__all__ = ["Decoder", "build_decoder"]

Bytes: TypeAlias = npt.NDArray[np.uint8]
Expand: TypeAlias = Callable[[bytes, int], "bytes | Bytes"]
Fill: TypeAlias = Callable[[bytes, Bytes], None]

# Blosc's process-wide threads would serialize our threads on one lock.
numcodecs.blosc.use_threads = False

# Ids: https://github.com/HDFGroup/hdf5_plugins/blob/master/docs/RegisteredFilterPlugins.md
_DEFLATE, _SHUFFLE, _BLOSC, _LZ4, _BITSHUFFLE, _ZSTD, _BLOSC2 = 1, 2, 32001, 32004, 32008, 32015, 32026
_BITSHUFFLE_LZ4, _BITSHUFFLE_ZSTD = 2, 3
#: What the libraries below take as a length.
_LARGEST = 0x7E000000
#: Bit-shuffled blocks below this cost more in Python than HDF5's own filter takes for them.
_SMALLEST_BLOCK = 32 << 10


class Decoder(Protocol):
    """What turns a stored chunk into its items; safe to call from several threads at once."""

    def __call__(self, payload: bytes, filter_mask: int, out: Bytes) -> None:
        """Decode one chunk.

        Parameters
        ----------
        payload
            What the file holds; borrowed for the call.
        filter_mask
            A bit for each filter that was skipped when the chunk was written.
        out
            ``(nbytes,)``, contiguous, as many bytes as a chunk has; overwritten, also by a call that fails.

        Raises
        ------
        ValueError
            The payload is damaged: it does not give exactly one chunk.
        NotImplementedError
            It may be sound, but is of a kind that only HDF5's own filter reads.
        """
        ...


def build_decoder(pipeline: Sequence[tuple[int, tuple[int, ...]]], chunk_nbytes: int) -> Decoder | None:
    """Make the decoder of one dataset.

    Parameters
    ----------
    pipeline
        Id and parameters (``cd_values``) of each filter, as the dataset's creation property list has them.
    chunk_nbytes
        Bytes of one chunk.

    Returns
    -------
    Decoder or None
        None where the pipeline is not one of ours: perhaps shuffle, then perhaps one of deflate, zstd, lz4,
        Blosc, Blosc2 and bitshuffle (which take no shuffle before them).
    """
    if not 0 < chunk_nbytes <= _LARGEST:
        return None
    itemsize = 1
    filters = list(pipeline)
    if filters and filters[0][0] == _SHUFFLE:
        itemsize = _value(filters.pop(0)[1], 0)
        if itemsize < 1 or chunk_nbytes % itemsize:
            return None
    shuffle_bits = len(pipeline) - len(filters)
    expand: Expand | None = None
    fill: Fill | None = None
    if filters:
        (filter_id, parameters), *others = filters
        expand = _EXPAND.get(filter_id)
        fill = None if shuffle_bits else _build_fill(filter_id, parameters, chunk_nbytes)
        if others or (expand is None and fill is None):
            return None

    def decode(payload: bytes, filter_mask: int, out: Bytes) -> None:
        if out.nbytes != chunk_nbytes:
            raise ValueError(f"the array has {out.nbytes} bytes: a chunk has {chunk_nbytes}")
        compressed = not filter_mask >> shuffle_bits & 1
        if fill is not None and compressed:
            fill(payload, out)
            return
        expanded = payload if expand is None or not compressed else expand(payload, chunk_nbytes)
        data = np.frombuffer(expanded, np.uint8)
        if data.nbytes != chunk_nbytes:
            raise ValueError(f"it has {data.nbytes} bytes where {chunk_nbytes} belong")
        if itemsize > 1 and not filter_mask & 1:
            byte_unshuffle(data, itemsize, out)
        else:
            out[:] = data

    def decode_or_refuse(payload: bytes, filter_mask: int, out: Bytes) -> None:
        try:
            decode(payload, filter_mask, out)
        except NotImplementedError:
            raise
        # Each library has its own way to complain of the same thing.
        except (ValueError, OSError, RuntimeError, struct.error, isal_zlib.error) as error:
            raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None

    return decode_or_refuse


def _value(parameters: tuple[int, ...], index: int) -> int:
    """One of a filter's parameters; 0 where it has fewer."""
    return parameters[index] if index < len(parameters) else 0


def _inflate(payload: bytes, nbytes: int) -> bytes:
    # ISA-L: 0.8 to 1.4 times the speed of zlib-ng, and ahead where both are slow (one core, MB/s: decimal
    # floats 490 against 370, photon counts 1,040 against 740; noisy ADC samples 2,200 against 2,700).
    stream = isal_zlib.decompressobj()
    data: bytes = stream.decompress(payload, nbytes + 1)  # no more: a small stream may hold gigabytes
    if not stream.eof:  # also the checksum is behind it
        raise ValueError(f"its zlib stream is cut off, or longer than {nbytes} bytes")
    return data


def _zstd(payload: bytes, nbytes: int) -> bytes:
    # As bytes: Arrow's own memory is given back to the system each time (1 MiB: 540 us of processor, or 310).
    data: bytes = pa.Codec("zstd").decompress(payload, nbytes, asbytes=True)  # raises unless it is that many
    return data


def _lz4(payload: bytes, nbytes: int) -> Bytes:
    """https://github.com/nexusformat/HDF5-External-Filter-Plugins/tree/master/LZ4: any number of blocks."""
    length, block_nbytes = struct.unpack_from(">QI", payload)
    if length != nbytes or not block_nbytes:
        raise ValueError(f"its lz4 header tells of {length} bytes where {nbytes} belong")
    data = np.empty(nbytes, np.uint8)
    place = 12
    for start in range(0, nbytes, block_nbytes):
        block = data[start : start + block_nbytes]
        piece = _piece(payload, place)
        place += 4 + len(piece)
        if len(piece) == block.nbytes:  # stored as it was
            block[:] = np.frombuffer(piece, np.uint8)
        else:
            _lz4_block(piece, block)
    return data


_EXPAND: dict[int, Expand] = {_DEFLATE: _inflate, _ZSTD: _zstd, _LZ4: _lz4}


def _piece(payload: bytes, place: int) -> memoryview:
    """The bytes behind their length (big-endian, 4 bytes) at a place."""
    (length,) = struct.unpack_from(">I", payload, place)
    piece = memoryview(payload)[place + 4 : place + 4 + length]
    if len(piece) != length:
        raise ValueError(f"it ends within a block of {length} bytes")
    return piece


def _lz4_block(piece: memoryview, out: Bytes) -> None:
    # numcodecs wants the length in front, and holds the block to it; Arrow's lz4_raw does not notice a block
    # that gives less (pyarrow 26).
    numcodecs.lz4.decompress(b"".join((struct.pack("<I", out.nbytes), piece)), out)


def _build_fill(filter_id: int, parameters: tuple[int, ...], nbytes: int) -> Fill | None:
    """What writes straight into the chunk's place."""
    if filter_id == _BLOSC:
        return _blosc
    if filter_id == _BLOSC2:
        return _blosc2()
    if filter_id == _BITSHUFFLE:
        itemsize, block_items, inner = (_value(parameters, index) for index in (2, 3, 4))
        known = inner in {_BITSHUFFLE_LZ4, _BITSHUFFLE_ZSTD} and itemsize > 0 and nbytes % itemsize == 0
        if known and block_items * itemsize >= _SMALLEST_BLOCK:
            return _bitshuffle(inner, itemsize)
    return None


def _blosc(payload: bytes, out: Bytes) -> None:
    """https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst."""
    nbytes, _, stored_nbytes = struct.unpack_from("<III", payload, 4)
    if nbytes != out.nbytes or stored_nbytes > len(payload):
        raise ValueError(f"its Blosc header tells of {nbytes} bytes in {stored_nbytes}, not of a whole chunk")
    numcodecs.blosc.decompress(payload, out)


def _blosc2() -> Fill:
    """A contiguous frame of one chunk (https://github.com/Blosc/HDF5-Blosc2)."""
    import blosc2  # 0.25 s: only those who want it pay

    blosc2.set_releasegil(True)

    def fill(payload: bytes, out: Bytes) -> None:
        frame = blosc2.schunk_from_cframe(payload)
        if "b2nd" in frame.meta:
            raise NotImplementedError("its frame holds an N-D array in blocks")
        if frame.nchunks != 1:
            raise ValueError(f"its Blosc2 frame has {frame.nchunks} chunks where 1 belongs")
        chunk = frame.get_chunk(0)
        nbytes, stored_nbytes, _ = blosc2.get_cbuffer_sizes(chunk)
        if nbytes != out.nbytes or stored_nbytes > len(chunk):
            raise ValueError(f"its Blosc2 chunk tells of {nbytes} bytes where {out.nbytes} belong")
        blosc2.decompress2(chunk, dst=out, nthreads=1)

    return fill


def _bitshuffle(inner: int, itemsize: int) -> Fill:
    """Blocks of bit planes, one short block, and up to 7 elements as they are.

    The format: ``bshuf_blocked_wrap_fun`` and ``bshuf_h5_filter`` in https://github.com/kiyo-masui/bitshuffle.
    """
    group = 8 * itemsize

    def fill(payload: bytes, out: Bytes) -> None:
        nbytes, block_nbytes = struct.unpack_from(">QI", payload)
        if nbytes != out.nbytes or not block_nbytes or block_nbytes % group:
            raise ValueError(f"its bitshuffle header tells of {nbytes} bytes in blocks of {block_nbytes}")
        place, end = 12, nbytes // group * group
        scratch = np.empty(min(block_nbytes, end), np.uint8)
        for start in range(0, end, block_nbytes):
            block = out[start : min(start + block_nbytes, end)]
            piece = _piece(payload, place)
            place += 4 + len(piece)
            planes = scratch[: block.nbytes]
            if inner == _BITSHUFFLE_ZSTD:
                planes = np.frombuffer(_zstd(bytes(piece), block.nbytes), np.uint8)
            else:
                _lz4_block(piece, planes)
            bit_unshuffle(planes, itemsize, block)
        if len(payload) < place + nbytes - end:
            raise ValueError("it ends within its last elements")
        out[end:] = np.frombuffer(payload, np.uint8, nbytes - end, place)

    return fill
