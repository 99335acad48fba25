"""Tail files: what a durable flush puts down besides the recording, in two files written in turn.

``tails-0`` and ``tails-1`` each hold one generation: a checkpoint and a number of contents. The older of them
is overwritten, so that a power cut in the middle leaves the newer. What checkpoint and contents mean is the
business of the writer. The bytes are told in ``docs/recovery-formats.md``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from shmstore.disk import DiskFile, flat
from shmstore.errors import IncompleteFileError, storage_error
from shmstore.signature import SIGNATURE_BYTES, crc32, sign, signed_version
from shmstore.steps import step

_MAGIC = b"SHMTAILS"
_VERSION = (1, 0)
_HEADER = struct.Struct("<QQII4x")  # generation, checkpoint's length and CRC, number of contents
_CRC = struct.Struct("<I")  # of header and table
_CONTENT = struct.Struct("<QI4x")  # length, CRC
_TABLE_START = SIGNATURE_BYTES + _HEADER.size + _CRC.size

Generation = tuple[bytes, list[bytes]]


class TailFile:
    """The two files in ``folder``, which must exist; they are made when they are first needed.

    Parameters
    ----------
    folder
        Where the files are.
    """

    #: What the bytes go through: tests of broken disks put a broken one here.
    file_type: ClassVar[type[DiskFile]] = DiskFile

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[int, DiskFile] = {}
        self._generation: int | None = None  # the newest that is whole; not looked up yet

    def save(self, checkpoint: bytes, contents: Sequence[bytes | memoryview | npt.NDArray[np.uint8]]) -> None:
        """Put a generation on the disk in place of the older one. Blocks until it is there.

        Parameters
        ----------
        checkpoint
            What the contents belong to.
        contents
            Contiguous bytes; they are only read, and not kept.

        Raises
        ------
        StorageError
            The disk refused. The newer generation is as it was, and the call can be repeated.
        IncompleteFileError
            The files there have a newer version.
        """
        if self._generation is None:
            self._generation = self._newest()[0]
        generation = self._generation + 1
        number = generation % 2
        parts = [flat(content) for content in contents]
        header = _HEADER.pack(generation, len(checkpoint), crc32(checkpoint), len(parts))
        table = b"".join(_CONTENT.pack(len(part), crc32(part)) for part in parts)
        head = sign(_MAGIC, _VERSION) + header + _CRC.pack(crc32(table, crc32(header))) + table
        try:
            if number not in self._files:
                self._files[number] = self._open(self.path(number))
            # Not cut to its length: the space is needed again, and the reader minds the lengths.
            self._files[number].write([head, checkpoint, *parts], 0)
            step("writer.tail_file_written")
            self._files[number].sync()
        except OSError as error:
            raise storage_error(error, "write a tail file", self.path(number)) from None
        self._generation = generation

    def load(self) -> Generation | None:
        """Return checkpoint and contents of the newest generation that is whole; ``None`` if there is none.

        All of it is checked. Memory is taken for no more than what the file has.

        Raises
        ------
        StorageError
            The disk refused.
        IncompleteFileError
            The files there have a newer version.
        """
        return self._newest()[1]

    def path(self, number: int) -> Path:
        """Return the path of file 0 or 1."""
        return self.folder / f"tails-{number}"

    def close(self) -> None:
        """Close the files; they stay."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._generation = None

    def remove(self) -> None:
        """Close and remove the files.

        Raises
        ------
        StorageError
            The folder does not allow it.
        """
        self.close()
        for number in range(2):
            try:
                with DiskFile.waiting():  # it may be long
                    self.path(number).unlink(missing_ok=True)
            except OSError as error:
                raise storage_error(error, "remove a tail file", self.path(number)) from None

    def _open(self, path: Path) -> DiskFile:
        try:
            return self.file_type.open(path, write=True)
        except FileNotFoundError:
            return self.file_type.create(path)

    def _newest(self) -> tuple[int, Generation | None]:
        """Return number and content of the newest whole generation; ``(0, None)`` without one."""
        newest: tuple[int, Generation | None] = 0, None
        for number in range(2):
            try:
                file = DiskFile.open(self.path(number))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise storage_error(error, "read a tail file", self.path(number)) from None
            try:
                found = _read(file, newest[0])
            except OSError as error:
                raise storage_error(error, "read a tail file", self.path(number)) from None
            finally:
                file.close()
            if found and found[0] % 2 == number:
                newest = found
        return newest


def _read(file: DiskFile, above: int) -> tuple[int, Generation] | None:
    """Return what a file holds; ``None`` if it is not whole, or its generation not above another."""
    fixed, size = file.read(0, _TABLE_START), file.size
    version = signed_version(fixed, _MAGIC)
    if not version:
        return None
    if version[0] != _VERSION[0]:
        raise IncompleteFileError(
            f"{file.path} has version {version[0]}.{version[1]} of the tail files' format, and this shmstore "
            f"knows {_VERSION[0]}: use the shmstore that made it, or a newer one"
        )
    if len(fixed) < _TABLE_START:
        return None
    header = fixed[SIGNATURE_BYTES : SIGNATURE_BYTES + _HEADER.size]
    generation, length, checkpoint_crc, count = _HEADER.unpack(header)
    if generation <= above or _TABLE_START + count * _CONTENT.size + length > size:
        return None
    table = file.read(_TABLE_START, count * _CONTENT.size)
    if _CRC.unpack_from(fixed, SIGNATURE_BYTES + _HEADER.size)[0] != crc32(table, crc32(header)):
        return None
    wanted = [(length, checkpoint_crc), *_CONTENT.iter_unpack(table)]
    at = _TABLE_START + len(table)
    if at + sum(length for length, _ in wanted) > size:
        return None
    found = []
    for length, crc in wanted:
        part = file.read(at, length)
        if len(part) != length or crc32(part) != crc:
            return None
        found.append(part)
        at += length
    return generation, (found[0], found[1:])
