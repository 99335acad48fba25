"""The least that a recorder with a writer process of its own does: hand every byte over, and write it.

One process copies each batch into shared memory, the other writes it from there. No queue but two semaphores,
no rows, no file format: what is missing of a bare `pwrite` here is the price of two processes.
"""

from __future__ import annotations

import contextlib
import os
import time
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shmstore.bench.harness import FileRun
from shmstore.bench.processes import CONTEXT, Companion
from shmstore.bench.streams import Stream, batch_bytes, made, pieces

#: Longest wait for space without a look at who is to make it.
_LOOK_S = 1.0


class HandedOver(FileRun):
    """Every batch copied into shared memory, and written from there by another process; then fdatasync.

    Parameters
    ----------
    stream
        What is written: its columns' bytes, no more.
    batches
        How many batches.
    ring_bytes
        How much memory they go through.
    output
        Folder of the file.
    per_batch
        What one batch counts in the case's unit.
    """

    def __init__(self, stream: Stream, batches: int, ring_bytes: int, output: Path, per_batch: float) -> None:
        super().__init__(
            "pwrite, handed over", batches * per_batch, batches * batch_bytes(stream), output / "handed"
        )
        self._batches = batches
        self._made = [pieces(batch) for batch in made(stream)]
        self._slot_bytes = max(sum(piece.nbytes for piece in batch) for batch in self._made)
        self._slots = max(2, ring_bytes // self._slot_bytes)
        self._memory: SharedMemory | None = None
        self._child: Companion | None = None

    def prepare(self) -> None:
        """Make the memory, every page of it, and start the process that writes."""
        self._memory = SharedMemory(create=True, size=self._slots * self._slot_bytes)
        _bytes_of(self._memory)[:] = 0
        self._free, self._full = CONTEXT.Semaphore(self._slots), CONTEXT.Semaphore(0)
        sizes = [sum(piece.nbytes for piece in batch) for batch in self._made]
        self._child = Companion(
            _write_slots,
            *(self._path, self._memory, self._slots, self._slot_bytes, sizes, self._batches),
            *(self._free, self._full),
        )

    def run(self) -> None:
        """Copy every batch, and wait until the file is closed."""
        if self._memory is None or self._child is None:
            raise RuntimeError("run() comes after prepare()")
        began = time.process_time()
        room = _bytes_of(self._memory)
        slots, size, distinct = self._slots, self._slot_bytes, len(self._made)
        for number in range(self._batches):
            while not self._free.acquire(timeout=_LOOK_S):
                self._child.check()
            place = number % slots * size
            for piece in self._made[number % distinct]:
                np.copyto(room[place : place + piece.nbytes], piece)
                place += piece.nbytes
            self._full.release()
        self._writer_cpu_s = float(self._child.answer())
        self._producer_cpu_s = time.process_time() - began

    def finish(self) -> dict[str, Any]:
        """End the process, and remove file and memory."""
        return {
            **super().finish(),
            "cpu_s": {"producer": self._producer_cpu_s, "writer": self._writer_cpu_s},
        }

    def abandon(self) -> None:
        """End the process, and remove file and memory."""
        child, self._child = self._child, None
        if child is not None:
            child.end()
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()
            memory.unlink()
        super().abandon()


def _write_slots(
    path: Path,
    memory: SharedMemory,
    slots: int,
    slot_bytes: int,
    sizes: list[int],
    batches: int,
    free: Any,
    full: Any,
    pipe: Connection,
) -> None:
    room = _bytes_of(memory)
    room.max()  # every page is mapped
    with contextlib.suppress(BrokenPipeError):  # whoever would hear has been interrupted
        pipe.send("ready")
        began, end = time.process_time(), 0
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for number in range(batches):
            full.acquire()
            place = number % slots * slot_bytes
            end += os.pwrite(fd, room[place : place + sizes[number % len(sizes)]].data, end)
            free.release()
        os.fdatasync(fd)
        os.close(fd)
        pipe.send(time.process_time() - began)
    del room  # or the memory could not be let go of
    memory.close()


def _bytes_of(memory: SharedMemory) -> npt.NDArray[np.uint8]:
    return np.ndarray((memory.size,), np.uint8, memory.buf)
