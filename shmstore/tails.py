"""Tails: the ragged remainders of an instrument's columns, in shared memory, several buffers a stream.

While one buffer's chunk is compressed, written and committed, the next remainder grows in another. They lie
in shared memory so that they outlive the writer: what is committed of a chunk that is not full stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shmstore.errors import BrokenError
from shmstore.segment import Segment, align

#: Buffers of a stream: the one that grows, one that may not be written over because the last commit ends in
#: it, and at least one more; and as many as let that much of all streams be under way between two commits.
_FEWEST, _MOST = 3, 16
_UNDER_WAY_BYTES = 8 * 2**20


def buffers_for(chunk_bytes: Sequence[int]) -> int:
    """Return how many buffers each of several streams gets, from the sizes of their chunks.

    Examples
    --------
    >>> buffers_for([1 << 20]), buffers_for([1 << 20] * 4), buffers_for([1 << 18] * 500)
    (8, 3, 3)
    """
    return max(_FEWEST, min(_MOST, _UNDER_WAY_BYTES // max(sum(chunk_bytes), 1)))


class Tails:
    """Chunk-sized buffers, the same number for each of several streams, in one segment.

    Made by :meth:`create`; a writer that follows another gets at them by :meth:`attach`.

    Attributes
    ----------
    buffers : list of list of ndarray
        For each stream its buffers, ``(chunk_bytes,)`` of uint8 each.
    """

    def __init__(self, segment: Segment, chunk_bytes: Sequence[int], buffers: int) -> None:
        self._segment = segment
        self.buffers: list[list[npt.NDArray[np.uint8]]] = []
        start = 0
        for size in chunk_bytes:
            own = []
            for _ in range(buffers):
                own.append(np.frombuffer(segment.view, np.uint8, size, start))
                start += align(size)
            self.buffers.append(own)

    @classmethod
    def create(cls, path: Path, chunk_bytes: Sequence[int], buffers: int) -> Tails:
        """Make the segment.

        Parameters
        ----------
        path
            Where; what a writer that was killed may have left there is replaced.
        chunk_bytes
            Size of a chunk of each stream, in bytes.
        buffers
            How many each stream gets.
        """
        path.unlink(missing_ok=True)
        size = cls.needed(chunk_bytes, buffers)
        return cls(Segment.create(path, max(size, align(1))), chunk_bytes, buffers)

    @classmethod
    def attach(cls, path: Path, chunk_bytes: Sequence[int], buffers: int, *, private: bool = False) -> Tails:
        """Map what another writer made with these sizes and number; ``private`` as for `Segment.attach`."""
        segment = Segment.attach(path, private=private)
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
        self.buffers.clear()
        self._segment.close()

    def close(self) -> None:
        """Unmap and remove; every array over the buffers must be gone."""
        self.buffers.clear()
        self._segment.unlink()
        self._segment.close()
