"""Whole chunks written on a thread of their own, many in one call, at places that HDF5 has given them.

While the thread is in the kernel, the writer takes in the next batches. Nothing here knows HDF5: who asks
must see to it that nobody learns of a place before :meth:`WriteBehind.wait` has returned.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

Chunk = npt.NDArray[np.uint8]

#: Buffers that Linux takes in one call (IOV_MAX).
_MOST_BUFFERS = 1024


class WriteBehind:
    """Writes to one file on a thread of its own, in the order of submission.

    Parameters
    ----------
    path
        The file; it exists.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shmstore-write")
        self._under_way: list[Future[None]] = []

    def submit(self, pieces: Iterable[tuple[int, Chunk]]) -> Future[None]:
        """Write chunks at their places in the file; the chunks are borrowed until it is done.

        Returns
        -------
        Future
            Done when all of them are written; fails with the system's `OSError`.
        """
        runs = list(_runs(pieces))
        writing = self._pool.submit(self._write, runs)
        self._under_way.append(writing)
        return writing

    def wait(self) -> None:
        """Wait until everything submitted is written.

        Raises
        ------
        OSError
            Some write failed.
        """
        under_way, self._under_way = self._under_way, []
        for writing in under_way:
            writing.result()

    def close(self) -> None:
        """Wait for what is under way, whether it succeeds or not, and let go of the file."""
        self._pool.shutdown(wait=True)
        os.close(self._fd)

    def _write(self, runs: list[tuple[int, list[Chunk]]]) -> None:
        try:
            for place, chunks in runs:
                written = os.pwritev(self._fd, [chunk.data for chunk in chunks], place)
                if written < sum(chunk.nbytes for chunk in chunks):
                    self._write_rest(place, chunks, written)
        finally:
            runs.clear()  # the pool holds on to it for a moment, but the chunks' memory is free from here on

    def _write_rest(self, place: int, chunks: list[Chunk], written: int) -> None:
        """Go on behind what was written before a signal came or the disk was full; or be told why not."""
        for chunk in chunks:
            rest = chunk[min(written, chunk.nbytes) :]
            written -= chunk.nbytes - rest.nbytes
            place += chunk.nbytes - rest.nbytes
            while rest.nbytes:
                count = os.pwrite(self._fd, rest.data, place)
                rest, place = rest[count:], place + count


def _runs(pieces: Iterable[tuple[int, Chunk]]) -> Iterable[tuple[int, list[Chunk]]]:
    """Put chunks together that lie one behind the other."""
    start = end = -1
    run: list[Chunk] = []
    for place, chunk in pieces:
        if run and (place != end or len(run) == _MOST_BUFFERS):
            yield start, run
            run = []
        if not run:
            start = place
        run.append(chunk)
        end = place + chunk.nbytes
    if run:
        yield start, run
