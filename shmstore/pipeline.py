"""The codec pipeline: chunks are encoded by N codec threads, and written in the order of submission.

Three kinds of threads meet here. The writer's own submits; codec threads encode; and whoever has encoded the
chunk that comes next in the file writes it, and those behind it that are ready, and carries out a commit in
between: nobody has to be woken for that, and what it writes is still in the processor's cache. Another *file
thread* does the same where no codec thread comes by soon: it writes what is not encoded, so that taking
batches from the rings goes on while the kernel copies (benchmarks/README.md tells what that brings). One
writes at a time. A bounded window makes the submitter wait, so memory is bounded.
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from shmstore.dataset import Dataset
from shmstore.signature import crc32
from shmstore.steps import step

#: What is written in one go, before a commit or anybody else gets at the file: some steps are paid once.
_RUN_BYTES = 2 * 2**20
#: Who waits for room in the window is woken when so much of it is free, not for each chunk.
_WINDOW_SHARE = 4
#: Longest wait without a look.
_LOOK_S = 0.05
#: For how long nothing may be written before the file thread does what a codec thread would that comes by.
#: Where all processors encode, it gets its turn when their slices end, a few milliseconds each, and keeps all
#: others from writing meanwhile.
_PATIENCE_S = 0.01

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
    #: Whether nothing has to be waited for any more.
    ended: bool = False
    encoded: tuple[Any, int] | None = None
    checksum: int | None = None
    error: BaseException | None = None

    def run(self) -> None:
        """Encode, and take the checksum.

        The results stay in the job, where they can be let go.
        """
        if self.encode is not None:
            self.encoded = self.encode(self.chunk)
        self.checksum = crc32(self.chunk if self.encoded is None else self.encoded[0])

    def end(self, error: BaseException | None = None) -> None:
        """It can be written, or has failed."""
        self.error = error
        self.ended = True

    @property
    def is_quick(self) -> bool:
        """Whether its bytes can be written at once, and nothing has failed."""
        return self.ended and self.error is None and not self.through_hdf5

    @property
    def through_hdf5(self) -> bool:
        """Whether its stored bytes are HDF5's to make."""
        return self.encode is None and not self.as_it_is and self.dataset.skip_mask != 0


@dataclass(slots=True)
class Commit:
    """A commit on its way.

    Attributes
    ----------
    action : callable
        What publishes the chunks written so far.
    written : int
        Chunks that were written when the action began, once it is done; -1 before.
    position : int
        What the action returned.
    """

    action: Callable[[], int]
    written: int = -1
    position: int = 0

    @property
    def done(self) -> bool:
        """Whether the action has returned."""
        return self.written >= 0


class _CodecThreads:
    """Threads that run jobs, begun in the order in which they come; started with the first.

    A pool of the standard library does the same, with four locks and a condition for each job.

    Parameters
    ----------
    count
        How many.
    ended
        Called when jobs have ended, on the thread that has ended them.
    """

    def __init__(self, count: int, ended: Callable[[], None]) -> None:
        self._count = count
        self._ended = ended
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, job: _Job) -> None:
        """Have a job run."""
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._run, name=f"shmstore-codec_{number}", daemon=True)
                for number in range(self._count)
            ]
            for thread in self._threads:
                thread.start()
        self._jobs.put(job)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            error = None
            try:
                job.run()
            except BaseException as failure:  # noqa: BLE001 (nothing is hidden: whoever waits is raised it)
                error = failure
            job.end(error)
            del job, error
            self._ended()

    def close(self) -> None:
        """Forget what has not begun, and wait for the rest."""
        with contextlib.suppress(Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job.end(CancelledError())
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._ended()


class CodecPipeline:
    """Encodes chunks on threads and writes them in the order of submission.

    A failure ends its work; whoever submits, commits or waits from then on is raised it.

    Parameters
    ----------
    threads
        Codec threads.
    window_bytes
        Unencoded bytes that may be under way when a chunk comes that is to be encoded; one always may.
    wake
        Called from any thread when a commit is done, when as much is written as `wake_when` asked for, and
        when it has failed.
    beat
        Called by whoever waits here, whenever more was written meanwhile: it is slow, but it lives.

    Attributes
    ----------
    submitted, written : int
        Chunks taken in, and chunks written, since the start. A chunk's ticket is ``submitted`` after its
        submission; it is in the file once ``written`` has reached that.
    written_bytes : int
        Unencoded bytes of the chunks written.
    """

    def __init__(
        self,
        threads: int,
        window_bytes: int,
        wake: Callable[[], None],
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.submitted = 0
        self.written = 0
        self.written_bytes = 0
        self._submitted_bytes = 0
        self._window_bytes = window_bytes
        self._wake = wake
        self._beat = beat
        #: Bytes and chunks.
        self._wake_at: tuple[int, int] | None = None
        self._commit: Commit | None = None
        self._failure: BaseException | None = None
        self._progress = threading.Condition()
        self._awaited: Callable[[], bool] | None = None
        self._waited_s = 0.0
        self._waits_since_s: float | None = None
        self._codecs = _CodecThreads(threads, self._advance)
        self._last_to_encode: _Job | None = None
        #: What is not written yet, in order.
        self._jobs: deque[_Job] = deque()
        #: Held by who writes. Who brings news says so first and tries then: if he does not get it, whoever
        #: has it looks once more.
        self._pen = threading.Lock()
        self._news = False
        #: Rung for the file thread: `False` to end.
        self._bell: SimpleQueue[bool] = SimpleQueue()
        self._thread = threading.Thread(target=self._attend, name="shmstore-file", daemon=True)
        self._thread.start()

    # -- the submitter's side --------------------------------------------------------------------------------

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
        """Take a whole chunk in; waits while the window is full.

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
        size = chunk.nbytes
        self.check()
        # A chunk that is not encoded takes no memory but what it lies in, which has its own bounds.
        if encode is not None and self.busy and self.under_way_bytes + size > self._window_bytes:
            share = self._window_bytes // _WINDOW_SHARE
            most = self._window_bytes - max(size, share if 2 * size <= share else 0)
            self._wait(lambda: not self.busy or self.under_way_bytes <= most)
        end = index * dataset.chunk_items + (dataset.chunk_items if items is None else items)
        job = _Job(dataset, index, end, chunk, as_it_is, None if as_it_is else encode)
        if job.encode is None:
            if dataset.keeps_checksums and not job.through_hdf5:
                job.run()  # its checksum: it costs less the sooner it is taken, and the file thread has more
            job.end()
        self.submitted += 1
        idle = self.written == self.submitted - 1  # now: the file thread must not fall asleep in between
        self._submitted_bytes += size
        self._jobs.append(job)
        if job.encode is not None:
            self._last_to_encode = job
            self._codecs.submit(job)
        if job.encode is None or idle:
            self._bell.put(True)

    def wait_for(self, ticket: int) -> None:
        """Wait until everything up to the chunk with that ticket is written."""
        self._wait(lambda: self.written >= ticket)

    def drain(self) -> None:
        """Wait until everything that was submitted is written."""
        self.wait_for(self.submitted)

    def commit(self, action: Callable[[], int]) -> Commit:
        """Have ``action`` carried out, as soon as the chunk is written that is being written.

        One at a time: the one before must be done.
        """
        self.check()
        commit = self._commit = Commit(action)
        if not self._codec_thread_comes:
            self._bell.put(True)
        return commit

    def finish(self, commit: Commit) -> None:
        """Wait until a commit is done."""
        if not commit.done:
            self._wait(lambda: commit.done)

    def wake_when(self, written_bytes: int, written: int = 0) -> None:
        """Ask to be woken once so many bytes, and so many chunks, are written since the start.

        Or when there is nothing more to wait for. Only the last call counts.
        """
        wanted = self._wake_at = written_bytes, written
        if self._reached(wanted):
            self._wake()  # it came to pass meanwhile

    def _reached(self, wanted: tuple[int, int]) -> bool:
        return (self.written_bytes >= wanted[0] and self.written >= wanted[1]) or not self.busy

    def check(self) -> None:
        """Raise what it failed with, if it did."""
        if self._failure is not None:
            raise self._failure

    @property
    def busy(self) -> bool:
        """Whether chunks are under way."""
        return self.written < self.submitted

    @property
    def under_way_bytes(self) -> int:
        """Unencoded bytes of the chunks that are under way."""
        return self._submitted_bytes - self.written_bytes

    def codec_wait_s(self, now_s: float) -> float:
        """Return for how long until now the file has waited for a chunk to be encoded."""
        since_s = self._waits_since_s
        return self._waited_s + (0.0 if since_s is None else now_s - since_s)

    def _wait(self, reached: Callable[[], bool]) -> None:
        self.check()
        if reached():
            return
        with self._progress:
            self._awaited = reached
            while not reached() and self._failure is None:
                written = self.written
                self._progress.wait(_LOOK_S)
                if self.written > written:
                    self._beat()
            self._awaited = None
        self.check()

    # -- whoever writes --------------------------------------------------------------------------------------

    @property
    def _codec_thread_comes(self) -> bool:
        """Whether a codec thread is sure to look after what is ready, once it has encoded what it is at."""
        return self._last_to_encode is not None and not self._last_to_encode.ended

    def _attend(self) -> None:
        """Look after what codec threads do not come by for."""
        written, since_s = -1, 0.0
        while True:
            with contextlib.suppress(Empty):
                if not self._bell.get(timeout=_PATIENCE_S if self.busy else None):
                    return
            now_s = time.monotonic()
            if self.written > written:
                written, since_s = self.written, now_s
            self._advance(patient=now_s - since_s < _PATIENCE_S)

    def _advance(self, *, patient: bool = False) -> None:
        """Write what is ready, and carry out a commit, unless another thread is at it already.

        Parameters
        ----------
        patient
            Leave all of it to a codec thread that comes by.
        """
        self._news = True
        while self._news and self._pen.acquire(blocking=False):
            try:
                while self._news:
                    self._news = False
                    self._write_what_is_ready(patient)
            except BaseException as error:  # noqa: BLE001 (nothing is hidden: whoever calls next raises it)
                self._failure = error
                self._tell()
                self._wake()
            finally:
                self._pen.release()

    def _write_what_is_ready(self, patient: bool) -> None:
        while self._failure is None and not (patient and self._codec_thread_comes):
            run = self._take_run()
            if run:
                self._write(run)
                del run
            elif self._commit is None:
                return
            if self._commit is not None:
                self._carry_out(self._commit)
            self._tell()

    def _take_run(self) -> list[_Job]:
        """Return the jobs that come next and are ready; none if the first is not."""
        jobs = self._jobs
        if not jobs:
            return []
        if not jobs[0].ended:
            if self._waits_since_s is None:
                self._waits_since_s = time.monotonic()
            return []
        if self._waits_since_s is not None:
            since_s, self._waits_since_s = self._waits_since_s, None
            # In this order somebody who asks in between is told too little, and the rest the next time.
            self._waited_s += time.monotonic() - since_s
        job = jobs.popleft()
        if job.error is not None:
            raise job.error
        run, size = [job], job.chunk.nbytes
        while job.is_quick and size < _RUN_BYTES and jobs and jobs[0].is_quick:
            run.append(jobs.popleft())
            size += run[-1].chunk.nbytes
        return run

    def _write(self, run: list[_Job]) -> None:
        ends = {job.dataset: job.items for job in run}
        with run[0].dataset.lock:
            for dataset, items in ends.items():
                dataset.grow(items)
            step("writer.chunk_due")
            for job in run:
                self._write_chunk(job)

    def _write_chunk(self, job: _Job) -> None:
        dataset = job.dataset
        if job.encoded is not None:
            dataset.write_chunk(job.index, *job.encoded, job.checksum)
        elif job.through_hdf5:
            dataset.filter_chunk(job.index, job.chunk)
        else:
            dataset.write_chunk(job.index, job.chunk, dataset.skip_mask, job.checksum)
        size = job.chunk.nbytes
        # The codec thread may hold on to the job for a moment, but the chunk's memory is free from here on.
        del job.chunk, job.encoded
        dataset.chunks_written += 1
        self.written_bytes += size
        self.written += 1
        wanted = self._wake_at
        if wanted is not None and self._reached(wanted):
            self._wake_at = None
            self._wake()

    def _carry_out(self, commit: Commit) -> None:
        written = self.written
        commit.position = commit.action()
        self._commit = None
        commit.written = written
        self._wake()

    def _tell(self) -> None:
        reached = self._awaited  # set before the waiter looks, read after what it looks for is set
        if reached is not None and (reached() or self._failure is not None):
            with self._progress:
                self._progress.notify_all()

    def close(self) -> None:
        """Stop the threads; chunks not yet written are forgotten, and let go of."""
        self._codecs.close()
        self._bell.put(False)
        self._thread.join()
        self._jobs.clear()
        self._last_to_encode = None
        if self._failure is not None:
            traceback.clear_frames(self._failure.__traceback__)
