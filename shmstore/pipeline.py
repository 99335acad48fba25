"""The codec pipeline: chunks go to N codec threads and come back in order, through a bounded window.

Whoever submits is the one thread that writes HDF5. A full window makes it wait for the oldest chunk, write
that, and go on: so memory is bounded and order is kept, with no queue in between. Codec threads only ever see
bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shmstore.dataset import Dataset

Chunk = npt.NDArray[np.uint8]
Encode = Callable[[Chunk], tuple[Any, int]]


@dataclass(slots=True)
class _Job:
    dataset: Dataset
    index: int
    items: int
    chunk: Chunk
    as_it_is: bool
    encode: Encode | None
    encoded: tuple[Any, int] | None = None
    encoding: Future[None] | None = None

    def run(self) -> None:
        """Encode; on a codec thread. The result stays in the job, where it can be let go."""
        if self.encode is not None:
            self.encoded = self.encode(self.chunk)


class CodecPipeline:
    """Encodes chunks on threads and writes them in the order of submission.

    Parameters
    ----------
    threads
        Codec threads.
    window_bytes
        Unencoded bytes that may be under way; one chunk always may.
    ready
        Called whenever a chunk is encoded, mostly from a codec thread.

    Attributes
    ----------
    submitted, written : int
        Chunks taken in, and chunks written, since the start. A chunk's ticket is ``submitted`` after its
        submission; it is in the file once ``written`` has reached that.
    """

    def __init__(self, threads: int, window_bytes: int, ready: Callable[[], None]) -> None:
        self.submitted = 0
        self.written = 0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="shmstore-codec")
        self._window_bytes = window_bytes
        self._ready = ready
        self._jobs: deque[_Job] = deque()
        self._under_way = 0

    def submit(
        self,
        dataset: Dataset,
        index: int,
        chunk: Chunk,
        encode: Encode | None,
        *,
        items: int | None = None,
        as_it_is: bool = False,
    ) -> None:
        """Take a whole chunk in; while the window is full, waits for earlier ones and writes them.

        Nothing is written before: a write of 1 MiB empties the processor's caches of everything else, and
        chunks taken in one after the other, then written one after the other, cost an eighth less besides the
        writes themselves than each at its turn.

        Parameters
        ----------
        dataset, index
            Where it goes.
        chunk
            Its bytes; borrowed until it is written.
        encode
            Runs on a codec thread; ``None`` leaves the chunk to the filters that HDF5 itself runs, if there
            are any.
        items
            How many of its items count, in the last chunk of all; by default all.
        as_it_is
            Store the chunk unfiltered.
        """
        while self._jobs and self._under_way + chunk.nbytes > self._window_bytes:
            self._write_oldest()
            self.write_ready()
        end = index * dataset.chunk_items + (dataset.chunk_items if items is None else items)
        job = _Job(dataset, index, end, chunk, as_it_is, None if as_it_is else encode)
        if job.encode is not None:
            job.encoding = self._pool.submit(job.run)
            job.encoding.add_done_callback(lambda _: self._ready())
        self.submitted += 1
        self._jobs.append(job)
        self._under_way += chunk.nbytes

    def write_ready(self) -> None:
        """Write what is encoded, up to the first chunk that is not."""
        while self._jobs and ((encoding := self._jobs[0].encoding) is None or encoding.done()):
            self._write_oldest()

    def wait_for(self, ticket: int) -> None:
        """Write everything up to the chunk with that ticket."""
        while self.written < ticket:
            self._write_oldest()

    def drain(self) -> None:
        """Write everything that was submitted."""
        self.wait_for(self.submitted)

    @property
    def busy(self) -> bool:
        """Whether chunks are under way."""
        return bool(self._jobs)

    def _write_oldest(self) -> None:
        # The job leaves the queue only once it is written: a failed write can be tried again.
        job = self._jobs[0]
        dataset = job.dataset
        if job.encoding is not None:
            job.encoding.result()
        dataset.grow(job.items)
        if job.encoded is not None:
            dataset.write_chunk(job.index, *job.encoded)
        elif dataset.skip_mask and not job.as_it_is:
            dataset.filter_chunk(job.index, job.chunk)
        else:
            dataset.write_chunk(job.index, job.chunk, dataset.skip_mask)
        self._jobs.popleft()
        self._under_way -= job.chunk.nbytes
        # The codec thread may hold on to the job for a moment, but the chunk's memory is free from here on.
        del job.chunk, job.encoded
        dataset.chunks_written += 1
        self.written += 1

    def close(self) -> None:
        """Stop the threads; chunks not yet written are forgotten."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._jobs.clear()
