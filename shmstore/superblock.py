"""The superblock: the first 48 bytes of an HDF5 file, of version 3, read and repaired without HDF5.

Owns what a writer that was killed leaves there: the mark that a writer has the file, an end of file that lags
behind, and the checksum over both. Knows neither HDF5's library nor recordings. The structure is told in the
HDF5 file format specification, version 3.0, section II.A, "Version 3 Superblock".
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from shmstore.errors import IncompleteFileError, storage_error

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SIZE = 48
#: Signature, version, size of offsets, size of lengths, flags, base address, address of the extension, end of
#: file, address of the root group; after them the checksum of these.
_FIELDS = struct.Struct("<8sBBBBQQQQ")
_CHECKSUM = struct.Struct("<I")
_FLAGS_AT, _END_OF_FILE_AT = 11, 28
_WORD = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a superblock says.

    Attributes
    ----------
    version : int
        Always 3.
    flags : int
        0 if the file was closed; bit 0: open for writing, bit 2: in SWMR mode, or left so by a killed writer.
    end_of_file : int
        Bytes that the file has by its own word; HDF5 refuses one that is shorter.
    checksum_ok : bool
        Whether the checksum is right; HDF5 refuses the file if it is not.
    """

    version: int
    flags: int
    end_of_file: int
    checksum_ok: bool


def read_superblock(path: str | os.PathLike[str]) -> Superblock:
    """Read the superblock of a file.

    Raises
    ------
    StorageError
        The system refuses: no such file, no permission; ``errno`` is kept.
    IncompleteFileError
        It is no HDF5 file, or one with another superblock than shmstore writes.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            block = stream.read(_SIZE)
    except OSError as error:
        raise storage_error(error, "read the superblock", file) from None
    return _parsed(file, block)


def repair_superblock(path: str | os.PathLike[str]) -> bool:
    """Make plain HDF5 open a file whose writer was killed: in place, and synced to the disk.

    The flags become 0, the end of the file what the system says that it is, and the checksum right. Nobody
    may have the file open for writing: this cannot be seen here, and is the caller's to know. If the checksum
    was wrong before, the address of the root group may be, too: then HDF5 still refuses the file.

    Parameters
    ----------
    path
        The file, recorded by shmstore or by h5py with a low version bound of 1.10.

    Returns
    -------
    bool
        Whether anything had to change; a file that was closed is left alone.

    Raises
    ------
    StorageError, IncompleteFileError
        As `read_superblock`; the file is as it was.
    """
    file = Path(path)
    try:
        with file.open("r+b", buffering=0) as stream:
            block = stream.read(_SIZE) or b""
            _parsed(file, block)
            repaired = bytearray(block)
            repaired[_FLAGS_AT] = 0
            struct.pack_into("<Q", repaired, _END_OF_FILE_AT, os.fstat(stream.fileno()).st_size)
            _CHECKSUM.pack_into(repaired, _FIELDS.size, lookup3(repaired[: _FIELDS.size]))
            if repaired == block:
                return False
            os.pwrite(stream.fileno(), repaired, 0)  # within one sector: no power cut leaves half of it
            os.fsync(stream.fileno())
    except OSError as error:
        raise storage_error(error, "repair the superblock", file) from None
    return True


def _parsed(path: Path, block: bytes) -> Superblock:
    if not block.startswith(_SIGNATURE):
        raise IncompleteFileError(
            f"{path} does not begin like an HDF5 file: name a file that shmstore recorded, or restore a copy"
        )
    if len(block) < _SIZE:
        raise IncompleteFileError(f"{path} is cut off within its superblock: copy it again, whole")
    _, version, offset_bytes, length_bytes, flags, _, _, end_of_file, _ = _FIELDS.unpack_from(block)
    if version != 3:
        raise IncompleteFileError(
            f"{path} has a superblock of version {version}, not 3: shmstore did not record it; try h5clear"
        )
    if (offset_bytes, length_bytes) != (8, 8):
        raise IncompleteFileError(
            f"{path} has offsets of {offset_bytes} and lengths of {length_bytes} bytes where 8 are expected: "
            "shmstore did not record it, or it is damaged: restore it from a copy"
        )
    (checksum,) = _CHECKSUM.unpack_from(block, _FIELDS.size)
    return Superblock(version, flags, end_of_file, checksum == lookup3(block[: _FIELDS.size]))


def lookup3(data: bytes | bytearray) -> int:
    """Return the checksum that HDF5 puts behind its metadata.

    ``hashlittle`` of Bob Jenkins' lookup3.c (May 2006, public domain, burtleburtle.net/bob/c/lookup3.c) with
    an initial value of 0.

    Examples
    --------
    >>> hex(lookup3(b"Four score and seven years ago"))  # from the self-test in lookup3.c
    '0x17770551'
    """
    a = b = c = (0xDEADBEEF + len(data)) & _WORD
    if not data:
        return c
    whole = max(0, (len(data) - 1) // 12)  # the last 1 to 12 bytes are mixed in otherwise
    padded = bytes(data) + bytes(12 * (whole + 1) - len(data))
    *blocks, last = struct.iter_unpack("<III", padded)
    for one, two, three in blocks:
        a, b, c = _mixed((a + one) & _WORD, (b + two) & _WORD, (c + three) & _WORD)
    return _final(*((word + more) & _WORD for word, more in zip((a, b, c), last, strict=True)))


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (32 - bits)) & _WORD


def _mixed(a: int, b: int, c: int) -> tuple[int, int, int]:
    """``mix`` of lookup3.c: reversible, so that no block is forgotten."""
    a, c = (a - c ^ _rotated(c, 4)) & _WORD, (c + b) & _WORD
    b, a = (b - a ^ _rotated(a, 6)) & _WORD, (a + c) & _WORD
    c, b = (c - b ^ _rotated(b, 8)) & _WORD, (b + a) & _WORD
    a, c = (a - c ^ _rotated(c, 16)) & _WORD, (c + b) & _WORD
    b, a = (b - a ^ _rotated(a, 19)) & _WORD, (a + c) & _WORD
    c, b = (c - b ^ _rotated(b, 4)) & _WORD, (b + a) & _WORD
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    """``final`` of lookup3.c, of which only c counts."""
    c = ((c ^ b) - _rotated(b, 14)) & _WORD
    a = ((a ^ c) - _rotated(c, 11)) & _WORD
    b = ((b ^ a) - _rotated(a, 25)) & _WORD
    c = ((c ^ b) - _rotated(b, 16)) & _WORD
    a = ((a ^ c) - _rotated(c, 4)) & _WORD
    b = ((b ^ a) - _rotated(a, 14)) & _WORD
    return ((c ^ b) - _rotated(b, 24)) & _WORD
