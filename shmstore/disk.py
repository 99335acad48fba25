"""Disk files: written whole or not at all as far as their owner can tell, read within their size, synced.

The one place where recovery's files meet the system's calls: ``pwritev``, ``pread``, ``ftruncate``,
``fdatasync``. What the bytes mean is the business of the journal and the tail file, and so is the translation
of an ``OSError``, which everything here lets through.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from shmstore.errors import IncompleteFileError

_BUFFERS_A_CALL = 1024  # IOV_MAX of Linux
_SYNC_FILE_RANGE: Any = getattr(ctypes.CDLL(None), "sync_file_range", None)
_SYNC_FILE_RANGE_WRITE = 2
if _SYNC_FILE_RANGE is not None:
    _SYNC_FILE_RANGE.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class DiskFile:
    """One regular file, open.

    Attributes
    ----------
    path : Path
        The file.
    """

    #: Entered around every wait for the disk, which may be long, by whoever waits: a process that is watched
    #: says there that it has not hung.
    waiting: ClassVar[Callable[[], AbstractContextManager[object]]] = contextlib.nullcontext

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._named = False  # whether its name is sure to be on the disk: who made it may have been killed

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make a file that must not exist, for its owner alone."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        return cls(path, fd)

    @classmethod
    def open(cls, path: Path, write: bool = False) -> Self:
        """Open an existing file.

        Raises
        ------
        IncompleteFileError
            It is a folder, a pipe or another thing that has no size.
        """
        # Without O_NONBLOCK the open of a named pipe waits for somebody at its other end.
        access = os.O_RDWR if write else os.O_RDONLY
        fd = os.open(path, access | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise IncompleteFileError(f"{path} is no regular file: something else has its name")
        return cls(path, fd)

    @property
    def size(self) -> int:
        """Its length in bytes, now."""
        return os.fstat(self._fd).st_size

    def read(self, start: int, count: int) -> bytes:
        """Return ``count`` bytes from ``start`` on; fewer, where the file ends before.

        Memory is taken for what the file has, whatever ``count`` says.
        """
        count = min(count, self.size - start)
        parts = []
        while count > 0 and (part := os.pread(self._fd, count, start)):
            parts.append(part)
            start += len(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, parts: Sequence[bytes | memoryview], start: int) -> None:
        """Write the parts one after the other from ``start`` on, in as few calls as the system takes.

        Short writes are continued. When it raises, any part of it may have been written.
        """
        left = [memoryview(part) for part in parts if len(part)]
        first = 0
        while first < len(left):
            written = self._write_some(left[first : first + _BUFFERS_A_CALL], start)
            if not written:
                raise OSError(errno.EIO, os.strerror(errno.EIO))  # or it would go on for ever
            start += written
            while first < len(left) and written >= len(left[first]):
                written -= len(left[first])
                first += 1
            if written:
                left[first] = left[first][written:]

    def _write_some(self, parts: Sequence[memoryview], start: int) -> int:
        return os.pwritev(self._fd, parts, start)

    def truncate(self, size: int) -> None:
        """Cut the file to ``size`` bytes."""
        os.ftruncate(self._fd, size)

    def sync(self) -> None:
        """Return once all that was written is on the disk, and the file's name too.

        A file that somebody removed meanwhile is an error: what is in it would be gone with its last user.
        """
        if not os.fstat(self._fd).st_nlink:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        sync_data(self._fd)
        if not self._named:
            sync_folder(self.path.parent)
            self._named = True

    def close(self) -> None:
        """Close it; it stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def sync_folder(folder: Path) -> None:
    """Return once the names in a folder are on the disk as they are now."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with DiskFile.waiting():
            os.fsync(fd)
    finally:
        os.close(fd)


def sync_data(fd: int) -> None:
    """Return once what was written to an open file is on the disk."""
    with DiskFile.waiting():
        os.fdatasync(fd)


def start_writing_back(fd: int, start: int, stop: int) -> None:
    """Have the disk begin with a part of a file, without waiting for it.

    Else the kernel leaves all of it in memory until a tenth of that is full, or somebody waits in a sync.
    """
    if _SYNC_FILE_RANGE is not None:  # a hint, and Linux only: what it fails with, the next sync tells
        with DiskFile.waiting():
            _SYNC_FILE_RANGE(fd, start, stop - start, _SYNC_FILE_RANGE_WRITE)


def flat(data: bytes | memoryview | npt.NDArray[np.uint8]) -> memoryview:
    """Return the bytes of a C-contiguous buffer as one row, without a copy.

    Raises
    ------
    TypeError
        It is not contiguous, or has other items than bytes.
    """
    view = data.data if isinstance(data, np.ndarray) else memoryview(data)
    # A cast of nothing is refused.
    return view.cast("B") if view.nbytes else memoryview(b"")
