"""Segments: files in shared memory, reserved when made or piece by piece, mapped, and removed by their owner.

A segment is bytes; what they mean is the business of the ring, the tails and the session page. Linux only: it
needs ``posix_fallocate`` on tmpfs, ``MAP_POPULATE`` and open-file-description locks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import threading
from pathlib import Path
from typing import Self

from shmstore.errors import StorageError, storage_error
from shmstore.largepages import BLOCK_BYTES, Mapping, Patience, reserve

#: Everything in a segment starts at a multiple of this: a cache line.
ALIGNMENT = 64

#: Of a sparse segment as large as this, more than was asked for may be reserved, for the sake of large pages.
_LARGE_BYTES = 8 * BLOCK_BYTES
_POPULATE = getattr(mmap, "MAP_POPULATE", 0)
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14 (madvise(2)); mmap has no name for it
# Open-file-description locks (fcntl.h): owned by the open file, so the kernel frees them the moment the last
# holder is gone, killed or not; the constants are in Python's fcntl only since 3.9 on some builds.
_F_OFD_GETLK, _F_OFD_SETLK = 36, 37
_FLOCK = struct.Struct("hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid


class Segment:
    """One file in shared memory, mapped read-write into this process.

    Made by :meth:`create` (which reserves and pre-faults all of it, unless it is to be sparse) or
    :meth:`attach`. The mapping belongs to this object until :meth:`close`; the file stays until somebody
    calls :meth:`unlink`.

    Attributes
    ----------
    path : Path
        The file.
    size : int
        Bytes mapped.
    view : memoryview
        All of it, writable; slices of it keep the memory mapped.
    """

    def __init__(
        self, path: Path, fd: int, size: int, *, private: bool = False, sparse: bool = False
    ) -> None:
        self.path = path
        self.size = size
        self._fd = fd
        # What is mapped keeps its open, and with it that open's locks, until the last view goes: so the
        # mapping gets an open of its own, and locks end with `close`.
        own = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            flags = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED | (0 if sparse else _POPULATE)
            self._mapping = Mapping(own, size, flags)
        finally:
            os.close(own)
        self.view = self._mapping.view
        self._private = private
        self._patience = Patience()
        self._asked: set[int] = set()  # blocks that were to get a large page

    @classmethod
    def create(cls, path: Path, size: int, *, sparse: bool = False) -> Self:
        """Make a segment of ``size`` bytes of zeros, all of it reserved.

        Parameters
        ----------
        path, size
            Where, and how large.
        sparse
            Reserve nothing yet, if there is enough: each piece must be given to :meth:`reserve` before it is
            touched.

        Raises
        ------
        StorageError
            The file exists, or the filesystem cannot hold it: then nothing is left behind, and the message
            says how to enlarge shared memory.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise storage_error(error, "make a shared-memory segment", path) from None
        try:
            # Asked first: tmpfs takes page after page before it finds that there are too few, and may drive
            # the machine out of memory on the way.
            if size > _left(path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.ftruncate(fd, size)
            if not sparse:
                reserve(fd, range(size // BLOCK_BYTES), Patience())
                # tmpfs lets ftruncate exceed what is left and answers the first touch with SIGBUS; this fails
                # here.
                os.posix_fallocate(fd, 0, size)
            return cls(path, fd, size, sparse=sparse)
        except OSError as error:
            os.close(fd)
            path.unlink()
            raise _cannot_reserve(error, path, size) from None

    def reserve(self, start: int, size: int) -> None:
        """Reserve and pre-fault a piece of a sparse segment; what it holds stays.

        Raises
        ------
        StorageError
            As for :meth:`create`.
        """
        if self._private:
            return
        try:
            self._ask_for_large_pages(start, start + size)
            os.posix_fallocate(self._fd, start, size)
        except OSError as error:
            raise _cannot_reserve(error, self.path, size) from None
        # An older kernel does not know it: the pages come with the first touch.
        self._mapping.advise(start, size, _POPULATE_WRITE)

    def _ask_for_large_pages(self, start: int, stop: int) -> None:
        """Have the blocks that a piece lies in reserved as a whole, if that is little of the segment."""
        if self.size < _LARGE_BYTES:
            return
        last = min(-(-stop // BLOCK_BYTES), self.size // BLOCK_BYTES)
        new = [block for block in range(start // BLOCK_BYTES, last) if block not in self._asked]
        self._asked.update(new)
        reserve(self._fd, new, self._patience)

    @classmethod
    def attach(cls, path: Path, *, private: bool = False, sparse: bool = False) -> Self:
        """Map an existing segment.

        Parameters
        ----------
        path
            The segment.
        private
            Whether what is written is for this process alone, and the segment stays as it is.
        sparse
            Whether it was made so.

        Raises
        ------
        StorageError
            There is no such segment: its recording has ended.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise storage_error(
                error, "attach a shared-memory segment", path, "its recording has ended, or never began"
            ) from None
        try:
            return cls(path, fd, os.fstat(fd).st_size, private=private, sparse=sparse)
        except (OSError, ValueError) as error:
            os.close(fd)
            code = error.errno if isinstance(error, OSError) else errno.EINVAL
            raise StorageError(code, f"cannot map the shared-memory segment: {error}", str(path)) from None

    def words(self, offset: int, count: int) -> memoryview:
        """Return ``count`` 8-byte words from ``offset`` on; each is loaded and stored in one move."""
        return self.view[offset : offset + 8 * count].cast("Q")

    def try_lock(self, byte: int = 0) -> bool:
        """Take the lock on one byte of the file, without waiting; it is held until :meth:`close` or death."""
        return lock_byte(self._fd, byte)

    def is_locked(self, byte: int = 0) -> bool:
        """Whether another open of the file holds the lock on ``byte``: whether its holder lives."""
        return byte_is_locked(self._fd, byte)

    def unlock(self, byte: int = 0) -> None:
        """Give the lock on ``byte`` back."""
        fcntl.fcntl(self._fd, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0))

    def disown(self) -> None:
        """In a forked child: give up the parent's locks, which came along, so that its death frees them."""
        own = os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)
        os.dup2(own, self._fd, inheritable=False)
        os.close(own)

    def close(self) -> None:
        """Unmap. Locks held through this object are freed; the file stays.

        What slices of :attr:`view`, or arrays over them, still look at stays mapped until the last of them
        goes: to unmap under them would be a crash.
        """
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        del self._mapping
        with contextlib.suppress(BufferError):
            self.view.release()

    def unlink(self) -> None:
        """Remove the file; mappings of it stay valid."""
        self.path.unlink(missing_ok=True)

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else _amount(self.size)
        return f"<Segment {self.path.name}: {state}>"


def fence() -> None:
    """Let what was stored before be seen by others before what is loaded next is read.

    Python has no such instruction, but to take a lock is one, on x86-64: an atomic exchange. Where it is not
    as strict, whoever relies on this must live with a rare miss.
    """
    lock = threading.Lock()  # of its own: nobody is waited for, not even after a fork
    lock.acquire()
    lock.release()


def lock_byte(fd: int, byte: int) -> bool:
    """Take the open-file-description lock on one byte of an open file; ``False`` if another holds it."""
    try:
        fcntl.fcntl(fd, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def byte_is_locked(fd: int, byte: int) -> bool:
    """Whether another open of the file holds the lock on ``byte``."""
    answer = fcntl.fcntl(fd, _F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _cannot_reserve(error: OSError, path: Path, size: int) -> StorageError:
    advice = _enlarge(path) if error.errno == errno.ENOSPC else None
    return storage_error(error, f"reserve {_amount(size)} of shared memory", path, advice)


def _amount(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"


def _left(path: Path) -> int:
    """Return the bytes that can be had where ``path`` lies.

    A tmpfs may be as large as the memory behind it, or larger: what it calls free need not be there.
    """
    filesystem = os.statvfs(path.parent)
    memory = 0
    for line in Path("/proc/meminfo").read_text().splitlines():  # proc(5): "MemAvailable:   123 kB"
        name, _, amount = line.partition(":")
        if name in {"MemAvailable", "SwapFree"}:
            memory += int(amount.split()[0]) * 1024
    return min(filesystem.f_bavail * filesystem.f_frsize, memory)


def _enlarge(path: Path) -> str:
    return (
        f"{_amount(_left(path))} are left there: use a smaller ring_bytes or fewer producers, or enlarge "
        f"it (`mount -o remount,size=8G {path.parent.parent}`; in Docker `--shm-size=8g`)"
    )


def align(size: int) -> int:
    """Round up to the alignment of whatever lies in a segment: a cache line.

    Examples
    --------
    >>> align(0), align(1), align(64), align(65)
    (0, 64, 64, 128)
    """
    return (size + ALIGNMENT - 1) & -ALIGNMENT
