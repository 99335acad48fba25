"""Large pages for files in memory: 2 MiB of a file in one page instead of 512.

What a write to tmpfs costs is mostly one page after the other: to get it, to enter it into the file, to lock
it; and who copies into shared memory pays for each page whose place the processor has to look up.
``madvise(MADV_COLLAPSE)`` (Linux 6.1, madvise(2)) puts one large page in the place of those that a block of 2
MiB has and lacks, whatever the system's settings for huge pages. benchmarks/README.md tells what that brings.
On any other filesystem, and on an older kernel, nothing happens here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import mmap
import os
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

#: A large page on x86-64, and on 64-bit ARM with small pages of 4 KiB.
BLOCK_BYTES = 2 * 2**20
_TMPFS_MAGIC = 0x01021994  # statfs(2)
_MADV_COLLAPSE, _MAP_FIXED, _PROT_NONE = 25, 0x10, 0  # mmap has no names for them
#: To get a large page must not take longer than it saves. It does where free memory is in pieces, or, in a
#: virtual machine, with the host. Processor time: a thread may have to wait for a processor at any time.
_TOO_SLOW_S = 5e-4
#: After a slow one the next block is left alone, after another in a row so many times as many.
_PAUSE_FACTOR, _LONGEST_PAUSE = 8, 4096
#: Where less is left than so many large pages, a file does not take one of which it may not need all.
_SPARE_PAGES = 16
_NEVER = 1 << 63
_REAL_TIME_LIMIT = Path("/proc/sys/kernel/sched_rt_runtime_us")

_LIBC = ctypes.CDLL(None, use_errno=True)
_MMAP: Any = _LIBC.mmap
_MMAP.restype = ctypes.c_void_p
_MMAP.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_int64)
_MUNMAP: Any = _LIBC.munmap
_MUNMAP.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MADVISE: Any = _LIBC.madvise
_MADVISE.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FSTATFS: Any = _LIBC.fstatfs
_FSTATFS.argtypes = (ctypes.c_int, ctypes.c_char_p)


class Mapping:
    """A file, mapped for reading and writing where its blocks can be seen through large pages.

    Parameters
    ----------
    fd
        The file, borrowed.
    size
        Bytes to map, from the file's start.
    flags
        As for ``mmap.mmap``.

    Attributes
    ----------
    view : memoryview
        All of it. It stays mapped until the last slice of it, or array over it, has gone: to unmap under
        them would be a crash.

    Raises
    ------
    OSError
        The system refuses.
    """

    def __init__(self, fd: int, size: int, flags: int) -> None:
        whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        with contextlib.closing(_Area(whole)) as area:
            _map(area.start, size, mmap.PROT_READ | mmap.PROT_WRITE, flags | _MAP_FIXED, fd)
            self._start = area.keep()
        memory = (ctypes.c_char * size).from_address(self._start)
        # At the interpreter's end it stays: there may be threads that look at it.
        weakref.finalize(memory, _MUNMAP, self._start, whole).atexit = False
        self.view = memoryview(memory).cast("B")

    def advise(self, start: int, size: int, advice: int) -> None:
        """Give the kernel a hint on a part of it; what it fails with is the kernel's affair."""
        first = start & -mmap.PAGESIZE
        _MADVISE(self._start + first, start + size - first, advice)


class BlockWindow:
    """A window onto one block of a file after the other, through which it gets a large page.

    While it is open, the memory of the block that it was last used for stays, even if the file goes.

    Parameters
    ----------
    fd
        The file, borrowed; it may be open for reading alone.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._area = _Area(BLOCK_BYTES)

    def enlarge(self, block: int) -> None:
        """Give a block a large page; it must have a page at least, and some of it may lie behind the end.

        Raises
        ------
        OSError
            The system cannot, or not now.
        """
        flags = mmap.MAP_SHARED | _MAP_FIXED
        _map(self._area.start, BLOCK_BYTES, mmap.PROT_READ, flags, self._fd, block * BLOCK_BYTES)
        if _MADVISE(self._area.start, BLOCK_BYTES, _MADV_COLLAPSE):
            raise _last_error()

    def close(self) -> None:
        """Close it."""
        self._area.close()


class Patience:
    """Asks for large pages as long as that is worth it.

    Attributes
    ----------
    given : int
        How many were had.
    """

    def __init__(self) -> None:
        self.given = 0
        self._left_alone = 0
        self._pause = 0

    def ask(self, enlarge: Callable[[], None]) -> None:
        """Ask for one, unless others could not be had lately, or took too long."""
        if self._left_alone:
            self._left_alone -= 1
            return
        longer = min(_LONGEST_PAUSE, _PAUSE_FACTOR * self._pause or 1)
        began = time.thread_time()
        try:
            enlarge()
        except OSError as error:
            # EINVAL: most likely a kernel that knows none.
            self._pause = _LONGEST_PAUSE if error.errno == errno.EINVAL else longer
        else:
            self.given += 1
            self._pause = longer if time.thread_time() - began > _TOO_SLOW_S else 0
        self._left_alone = self._pause


class GrowingFile:
    """Gives a file in memory large pages before it grows into them: what a block has already must be copied.

    Parameters
    ----------
    fd
        The file, borrowed; open for writing.

    Attributes
    ----------
    patience : Patience
        How many it was given.
    """

    def __init__(self, fd: int) -> None:
        self.patience = Patience()
        self._fd = fd
        self._window: BlockWindow | None = None
        # The first block is left alone: a small file is to take little memory.
        self._next_start = BLOCK_BYTES if may_have_them(fd) else _NEVER

    def expect(self, end: int, size: int) -> None:
        """Prepare for what is appended next; the file may be longer then, by less than that.

        Parameters
        ----------
        end
            How many bytes the file has.
        size
            How many come.
        """
        last_byte = end + size - 1
        if last_byte <= self._next_start:
            return
        # No block is begun for its first byte alone: the file would be as long as if that had come.
        first, stop = max(self._next_start, end) // BLOCK_BYTES, -(-last_byte // BLOCK_BYTES)
        self._next_start = stop * BLOCK_BYTES
        if self._is_short_of_space(size):
            return
        for block in range(first, stop):
            if (block + 1) * BLOCK_BYTES - end >= BLOCK_BYTES // 2:
                self.patience.ask(functools.partial(self._enlarge, block))

    def _enlarge(self, block: int) -> None:
        if self._window is None:
            self._window = BlockWindow(self._fd)
        os.posix_fallocate(self._fd, block * BLOCK_BYTES, 1)
        self._window.enlarge(block)

    def _is_short_of_space(self, size: int) -> bool:
        filesystem = os.fstatvfs(self._fd)
        return filesystem.f_bavail * filesystem.f_frsize < size + _SPARE_PAGES * BLOCK_BYTES

    def close(self) -> None:
        """Let go of the file; what it has behind its end is for :func:`trim`."""
        self._next_start = _NEVER
        if self._window is not None:
            self._window.close()
            self._window = None


def reserve(fd: int, blocks: Sequence[int], patience: Patience) -> None:
    """Give whole blocks of a file large pages, where they can be had and the file is in memory.

    Each has one small page at least, then; the rest of it may have none.

    Raises
    ------
    OSError
        There is no memory.
    """
    if not blocks or not may_have_them(fd):
        return
    with contextlib.closing(BlockWindow(fd)) as window:
        for block in blocks:
            os.posix_fallocate(fd, block * BLOCK_BYTES, 1)
            patience.ask(functools.partial(window.enlarge, block))


def may_have_them(fd: int) -> bool:
    """Whether large pages may be asked for: the open file lies on a tmpfs, and nobody can be kept waiting."""
    return is_in_memory(fd) and not _real_time_is_unlimited()


@functools.cache
def _real_time_is_unlimited() -> bool:
    """Whether a real-time thread may have a processor for itself (sched(7)).

    The kernel has every processor put its lists of pages in order first, and waits for that.
    """
    try:
        return _REAL_TIME_LIMIT.read_text().strip() == "-1"
    except OSError:  # a system without such a limit gives no such promise either
        return True


def is_in_memory(fd: int) -> bool:
    """Whether an open file lies on a tmpfs."""
    answer = ctypes.create_string_buffer(512)  # struct statfs has 120 bytes; its type comes first, as a long
    return not _FSTATFS(fd, answer) and int.from_bytes(answer.raw[:8], sys.byteorder) == _TMPFS_MAGIC


def trim(fd: int) -> None:
    """Free what a file in memory, open for reading at least, has behind its end; nobody may write to it."""
    if not is_in_memory(fd):
        return
    # Not by its name, which may be another file's by now.
    with Path(f"/proc/self/fd/{fd}").open("r+b", buffering=0) as file:
        file.truncate(file.seek(0, os.SEEK_END))


class _Area:
    """Addresses that nothing else takes, from a multiple of a block's size on: where a large page can lie.

    Attributes
    ----------
    start : int
        The first of them.
    """

    def __init__(self, size: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._size = size
        self._taken = _map(None, size + BLOCK_BYTES, _PROT_NONE, flags, -1)
        self.start = -(-self._taken // BLOCK_BYTES) * BLOCK_BYTES

    def keep(self) -> int:
        """Give back what lies around the area; it is the caller's to unmap from here on."""
        end = self._taken + self._size + BLOCK_BYTES
        for first, last in (self._taken, self.start), (self.start + self._size, end):
            if last > first:
                _MUNMAP(first, last - first)
        self._taken = 0
        return self.start

    def close(self) -> None:
        """Unmap all of it, unless it is kept."""
        if self._taken:
            _MUNMAP(self._taken, self._size + BLOCK_BYTES)
            self._taken = 0


def _map(address: int | None, size: int, access: int, flags: int, fd: int, start: int = 0) -> int:
    mapped = int(_MMAP(address, size, access, flags, fd, start))
    if mapped == ctypes.c_void_p(-1).value:  # MAP_FAILED
        raise _last_error()
    return mapped


def _last_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
