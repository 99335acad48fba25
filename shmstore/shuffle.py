"""Byte and bit transposition of a chunk, as HDF5's shuffle (2) and bitshuffle (32008) filters do and undo it.

Owns the transpositions and the search for the library that does them fast. Knows no codec, no filter
pipeline and no header. Nothing here keeps a buffer beyond the call, and the interpreter lock is free while
bytes move.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["bit_shuffle", "bit_unshuffle", "bitshuffle_block", "byte_shuffle", "byte_unshuffle"]

Bytes: TypeAlias = npt.NDArray[np.uint8]

# blosc2_shuffle has vector code for these only: 12-27 GB/s against numpy's 3. For others (3, 12, ...) it
# falls back to a byte loop at 2 GB/s and numpy wins. On the way back numpy makes 0.4-3 GB/s and the library
# 32-36 GB/s for 2, 4 and 8, 12-25 for 12 and above, 2-3 for 3 to 6: it wins or draws.
_VECTOR_ITEMSIZES = frozenset((2, 4, 8, 16))
_MAX_BLOSC_ITEMSIZE = 255

# 8 KiB, bitshuffle's own default, costs half of the speed here and 4 % of the size (noisy int16), and 64 KiB
# a seventh of the speed and a tenth of the size (sparse counts). The reader takes the size from the payload.
_BITSHUFFLE_BLOCK_BYTES = 256 << 10


@functools.cache
def _blosc2_library() -> Any | None:
    """The C library inside the blosc2 package, found without importing that package (0.25 s), or None."""
    spec = importlib.util.find_spec("blosc2")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        # The extension comes second: where the library is the system's, it is among the extension's
        # dependencies.
        for path in (*Path(root).glob("lib*/libblosc2.so"), *Path(root).glob("blosc2_ext*.so")):
            try:
                library = ctypes.CDLL(str(path))
                for function in (
                    *(library.blosc2_shuffle, library.blosc2_bitshuffle),
                    *(library.blosc2_unshuffle, library.blosc2_bitunshuffle),
                ):
                    function.argtypes = (ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)
                    function.restype = ctypes.c_int32
            except (OSError, AttributeError):
                continue
            return library
    return None


def _address(array: Bytes) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def byte_shuffle(chunk: Bytes, itemsize: int, out: Bytes) -> None:
    """Transpose whole elements into byte planes: first all first bytes, then all second bytes, and so on.

    Parameters
    ----------
    chunk
        ``(nbytes,)``, contiguous, a whole number of elements; borrowed for the call.
    itemsize
        Bytes of one element.
    out
        ``(nbytes,)``, contiguous, not overlapping; overwritten.
    """
    if itemsize in _VECTOR_ITEMSIZES:
        library = _blosc2_library()
        if library is not None and (
            library.blosc2_shuffle(itemsize, chunk.nbytes, _address(chunk), _address(out)) == chunk.nbytes
        ):
            return
    np.copyto(out.reshape(itemsize, -1), chunk.reshape(-1, itemsize).T)


def byte_unshuffle(planes: Bytes, itemsize: int, out: Bytes) -> None:
    """Put elements together again from their byte planes: the inverse of :func:`byte_shuffle`.

    Parameters
    ----------
    planes
        ``(nbytes,)``, contiguous, a whole number of elements; borrowed for the call.
    itemsize
        Bytes of one element.
    out
        ``(nbytes,)``, contiguous, not overlapping; overwritten.
    """
    library = _blosc2_library() if itemsize <= _MAX_BLOSC_ITEMSIZE else None
    if library is not None and (
        library.blosc2_unshuffle(itemsize, planes.nbytes, _address(planes), _address(out)) == planes.nbytes
    ):
        return
    np.copyto(out.reshape(-1, itemsize), planes.reshape(itemsize, -1).T)


def bitshuffle_block(itemsize: int) -> int:
    """Elements that are transposed together, as a block: a multiple of 8, about 256 KiB."""
    return max(_BITSHUFFLE_BLOCK_BYTES // itemsize // 8, 1) * 8


def bit_shuffle(block: Bytes, itemsize: int, out: Bytes) -> None:
    """Transpose whole elements into bit planes, least significant bit of the first byte first.

    Parameters
    ----------
    block
        ``(nbytes,)``, contiguous, a multiple of 8 elements; borrowed for the call.
    itemsize
        Bytes of one element.
    out
        ``(nbytes,)``, contiguous, not overlapping; overwritten.

    Notes
    -----
    The order is that of ``bshuf_trans_bit_elem`` in https://github.com/kiyo-masui/bitshuffle (and of Blosc).
    """
    library = _blosc2_library() if itemsize <= _MAX_BLOSC_ITEMSIZE else None
    if library is not None and (
        library.blosc2_bitshuffle(itemsize, block.nbytes, _address(block), _address(out)) == block.nbytes
    ):
        return
    bits = np.unpackbits(block.reshape(-1, itemsize), axis=1, bitorder="little")
    out[:] = np.packbits(bits.T, axis=1, bitorder="little").reshape(-1)


def bit_unshuffle(planes: Bytes, itemsize: int, out: Bytes) -> None:
    """Put elements together again from their bit planes: the inverse of :func:`bit_shuffle`.

    Parameters
    ----------
    planes
        ``(nbytes,)``, contiguous, a multiple of 8 elements; borrowed for the call.
    itemsize
        Bytes of one element.
    out
        ``(nbytes,)``, contiguous, not overlapping; overwritten.
    """
    library = _blosc2_library() if itemsize <= _MAX_BLOSC_ITEMSIZE else None
    if library is not None and (
        library.blosc2_bitunshuffle(itemsize, planes.nbytes, _address(planes), _address(out)) == planes.nbytes
    ):
        return
    bits = np.unpackbits(planes.reshape(itemsize * 8, -1), axis=1, bitorder="little")
    out[:] = np.packbits(bits.T, axis=1, bitorder="little").reshape(-1)
