"""Tails: the ragged remainders of an instrument's columns, in shared memory, several buffers a stream.

While one buffer's chunk is compressed, written and committed, the next remainder grows in another. They lie
in shared memory so that they outlive the writer: what is committed of a chunk that is not full stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shmstore.errors import BrokenError
from shmstore.segment import Segment, align

#: Buffers of a stream: the one that grows, one that may not be written over because the last commit ends in
#: it, and at least one more; and as many as let that much of all streams be under way between two commits.
_FEWEST, _MOST = 3, 16
_UNDER_WAY_BYTES = 16 * 2**20


def buffers_for(chunk_bytes: Sequence[int]) -> int:
    """Return how many buffers each of several streams gets, from the sizes of their chunks.

    Examples
    --------
    >>> buffers_for([1 << 20]), buffers_for([1 << 20] * 4), buffers_for([1 << 18] * 500)
    (16, 4, 3)
    """
    return max(_FEWEST, min(_MOST, _UNDER_WAY_BYTES // max(sum(chunk_bytes), 1)))


class TailBuffers(Sequence[npt.NDArray[np.uint8]]):
    """The buffers of one stream, ``(chunk_bytes,)`` of uint8 each.

    Parameters
    ----------
    segment
        Where they lie.
    starts
        Where each of them begins, at a multiple of the alignment.
    chunk_bytes
        Their size.

    Attributes
    ----------
    starts : list of int
        As given.
    """

    def __init__(self, segment: Segment, starts: Sequence[int], chunk_bytes: int) -> None:
        self.starts = list(starts)
        self._segment = segment
        self._size = chunk_bytes
        self._arrays = [np.frombuffer(segment.view, np.uint8, chunk_bytes, start) for start in self.starts]

    def reserve(self, number: int) -> None:
        """Make sure that there is memory behind a buffer, before it is written to; keeps what it holds.

        Raises
        ------
        StorageError
            Shared memory is full.
        """
        self._segment.reserve(self.starts[number], self._size)

    def reserve_abreast(self, last: TailBuffers, number: int) -> None:
        """As `reserve`, for these buffers and those of the streams up to ``last``, which lie abreast."""
        start = self.starts[number]
        self._segment.reserve(start, last.starts[number] + last._size - start)

    def forget(self) -> None:
        """Let go of the memory."""
        self._arrays.clear()

    def __getitem__(self, number: Any) -> Any:
        """Return a buffer."""
        return self._arrays[number]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._arrays)


def abreast(streams: Sequence[TailBuffers]) -> list[npt.NDArray[np.uint8]] | None:
    """Return the buffers of several streams together: for each number ``(streams, chunk_bytes)``.

    ``None``: they are not of one size, or do not lie in one segment in this order, as far from one to the
    next.
    """
    first = streams[0]
    stride = streams[1].starts[0] - first.starts[0] if len(streams) > 1 else 0
    if stride < 0:
        return None
    for number, buffers in enumerate(streams):
        starts = [start + number * stride for start in first.starts]
        if (buffers._segment, buffers.starts, buffers._size) != (first._segment, starts, first._size):
            return None
    shape = len(streams), first._size
    return [np.ndarray(shape, np.uint8, first._segment.view, start, (stride, 1)) for start in first.starts]


class Tails:
    """Chunk-sized buffers, the same number for each of several streams, in one segment.

    The first buffers of all streams lie side by side, then the second ones, and so on: streams that fill
    their chunks in step use as much memory as they need, and that in large pages.

    Made by :meth:`create`; a writer that follows another gets at them by :meth:`attach`.

    Attributes
    ----------
    buffers : list of TailBuffers
        For each stream its buffers.
    """

    def __init__(self, segment: Segment, chunk_bytes: Sequence[int], buffers: int) -> None:
        self._segment = segment
        self.buffers: list[TailBuffers] = []
        row, start = self.needed(chunk_bytes, 1), 0
        for size in chunk_bytes:
            starts = [start + row * number for number in range(buffers)]
            self.buffers.append(TailBuffers(segment, starts, size))
            start += align(size)

    @classmethod
    def create(cls, path: Path, chunk_bytes: Sequence[int], buffers: int, *, sparse: bool = False) -> Tails:
        """Make the segment.

        Parameters
        ----------
        path
            Where; what a writer that was killed may have left there is replaced.
        chunk_bytes
            Size of a chunk of each stream, in bytes.
        buffers
            How many each stream gets.
        sparse
            Reserve memory for none of them yet: a stream whose batches are whole chunks uses none.
        """
        path.unlink(missing_ok=True)
        size = max(cls.needed(chunk_bytes, buffers), align(1))
        return cls(Segment.create(path, size, sparse=sparse), chunk_bytes, buffers)

    @classmethod
    def attach(cls, path: Path, chunk_bytes: Sequence[int], buffers: int, *, private: bool = False) -> Tails:
        """Map what another writer made with these sizes and number; ``private`` as for `Segment.attach`."""
        segment = Segment.attach(path, private=private, sparse=True)
        if segment.size < cls.needed(chunk_bytes, buffers):
            segment.close()
            raise BrokenError(f"{path} is too small for the tails that should be in it")
        return cls(segment, chunk_bytes, buffers)

    @staticmethod
    def needed(chunk_bytes: Sequence[int], buffers: int) -> int:
        """Return how many bytes of a segment are used by tails of these sizes and number."""
        return sum(align(size) for size in chunk_bytes) * buffers

    @property
    def size(self) -> int:
        """Bytes reserved."""
        return self._segment.size

    def leave(self) -> None:
        """Unmap, and leave the segment to whoever attaches it."""
        self._forget()
        self._segment.close()

    def close(self) -> None:
        """Unmap and remove; every array over the buffers must be gone."""
        self._forget()
        self._segment.unlink()
        self._segment.close()

    def _forget(self) -> None:
        for buffers in self.buffers:
            buffers.forget()
        self.buffers.clear()
