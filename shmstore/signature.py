"""The signature: the first 16 bytes of whatever recovery reads back, and the checksum of everything in it.

A signature says what follows and in which version of its format. It has a checksum of its own and stays as it
is for good, so that a newer format can be told from damage. This module knows none of the formats.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
from zlib_ng import zlib_ng

SIGNATURE_BYTES = 16
_LAYOUT = struct.Struct("<8sHHI")  # magic, major version, minor version, CRC of these


def crc32(data: bytes | memoryview | npt.NDArray[np.uint8], start: int = 0) -> int:
    """Return the CRC-32 of zlib and PNG (polynomial 0xEDB88320), continued from ``start``.

    Examples
    --------
    >>> hex(crc32(b"123456789"))
    '0xcbf43926'
    """
    # zlib-ng's takes 35 GB/s, zlib's 1 to 7. isal's is as fast, but leaves the upper halves of the vector
    # registers in use, and SSE code that runs next takes half as much time again (numcodecs' Blosc).
    return int(zlib_ng.crc32(data, start))


def sign(magic: bytes, version: tuple[int, int]) -> bytes:
    """Return the signature for a format's magic (8 bytes) and version (major, minor)."""
    head = _LAYOUT.pack(magic, *version, 0)[:-4]
    return head + crc32(head).to_bytes(4, "little")


def signed_version(data: bytes | memoryview, magic: bytes) -> tuple[int, int] | None:
    """Return the version (major, minor) that ``data`` begins by telling; ``None`` without that signature."""
    if len(data) < SIGNATURE_BYTES:
        return None
    found, major, minor, crc = _LAYOUT.unpack_from(data)
    if found != magic or crc != crc32(data[: SIGNATURE_BYTES - 4]):
        return None
    return major, minor
