"""Tails: the ragged remainders of an instrument's columns, in shared memory, two buffers a stream.

While one buffer's chunk is compressed and written, the next remainder grows in the other. They lie in shared
memory so that they outlive the writer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from shmstore.segment import Segment, align

_BUFFERS = 2


class Tails:
    """Two chunk-sized buffers for each of several streams, in one segment.

    Parameters
    ----------
    path
        The segment to make.
    chunk_bytes
        Size of a chunk of each stream, in bytes.
    """

    def __init__(self, path: Path, chunk_bytes: list[int]) -> None:
        size = sum(align(size) for size in chunk_bytes) * _BUFFERS
        self._segment = Segment.create(path, max(size, align(1)))
        self.pairs: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]] = []
        start = 0
        for size in chunk_bytes:
            pair = []
            for _ in range(_BUFFERS):
                pair.append(np.frombuffer(self._segment.view, np.uint8, size, start))
                start += align(size)
            self.pairs.append((pair[0], pair[1]))

    @property
    def size(self) -> int:
        """Bytes reserved."""
        return self._segment.size

    def close(self) -> None:
        """Unmap and remove; every array over the buffers must be gone."""
        self.pairs.clear()
        self._segment.unlink()
        self._segment.close()
