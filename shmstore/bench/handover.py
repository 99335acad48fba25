"""The least that a recorder with a writer process of its own does: hand every byte over, and write it.

One process copies each batch into shared memory, the other writes it from there, or what a codec leaves of
it. No queue but two semaphores, no rows, no file format: what is missing of a bare `pwrite` here, or of the
machine's limit, is the price of two processes.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shmstore.bench.harness import FileRun
from shmstore.bench.processes import CONTEXT, Companion
from shmstore.bench.streams import Stream, batch_bytes, made, pieces
from shmstore.boot import keep_freed_memory
from shmstore.codec import Codec
from shmstore.payload import Encoder

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
    codec
        Encodes each batch, as one chunk, in ``threads`` threads, which write what it leaves. The stream must
        have one column then, of a type of fixed width.
    threads
        How many threads encode.
    """

    def __init__(
        self,
        stream: Stream,
        batches: int,
        ring_bytes: int,
        output: Path,
        per_batch: float,
        codec: Codec | None = None,
        threads: int = 1,
    ) -> None:
        label = "pwrite, handed over" if codec is None else "codec and pwrite, handed over"
        super().__init__(label, batches * per_batch, batches * batch_bytes(stream), output / "handed")
        self._encoding: tuple[Codec, int, int] | None = None
        if codec is not None:
            (column,) = stream.schema
            self._encoding = codec, column.type.bit_width // 8, threads
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
            *(self._free, self._full, self._encoding),
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
    encoding: tuple[Codec, int, int] | None,
    pipe: Connection,
) -> None:
    room = _bytes_of(memory)
    room.max()  # every page is mapped
    encode, threads = None, 1
    if encoding is not None:
        codec, itemsize, threads = encoding
        encode = codec.encoder(itemsize, slot_bytes)
        if encode is not None:
            encode(room[:slot_bytes])  # the codec's library is loaded
        keep_freed_memory()
    with contextlib.suppress(BrokenPipeError):  # whoever would hear has been interrupted
        pipe.send("ready")
        began = time.process_time()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        places = ((number % slots * slot_bytes, sizes[number % len(sizes)]) for number in range(batches))
        consumer = _Consumer(fd, room, places, free, full)
        if encode is None:
            consumer.write()
        else:
            workers = [threading.Thread(target=consumer.encode, args=(encode,)) for _ in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        os.fdatasync(fd)
        os.close(fd)
        pipe.send(time.process_time() - began)
        del consumer
    del room  # or the memory could not be let go of
    memory.close()


class _Consumer:
    """Takes slots in order, and gives them back in order once they are written."""

    def __init__(
        self,
        fd: int,
        room: npt.NDArray[np.uint8],
        places: Iterator[tuple[int, int]],
        free: Any,
        full: Any,
    ) -> None:
        self._fd = fd
        self._room = room
        self._places = enumerate(places)
        self._free = free
        self._full = full
        #: Two of them: who waits for a full slot must not keep others from giving theirs back.
        self._taking, self._ending = threading.Lock(), threading.Lock()
        self._end = 0
        self._oldest = 0
        self._ended: set[int] = set()

    def write(self) -> None:
        """Write them as they are, one after the other."""
        for _, (place, size) in self._places:
            self._full.acquire()
            self._end += os.pwrite(self._fd, self._room[place : place + size].data, self._end)
            self._free.release()

    def encode(self, encode: Encoder) -> None:
        """Write what the codec leaves of them; in several threads at once. A failure ends the process."""
        try:
            self._encode(encode)
        except BaseException:  # noqa: BLE001 (nothing is hidden: whoever waits for space sees the process end)
            traceback.print_exc()
            os._exit(1)

    def _encode(self, encode: Encoder) -> None:
        while True:
            with self._taking:
                number, (place, size) = next(self._places, (-1, (0, 0)))
                if number < 0:
                    return
                self._full.acquire()
            payload = encode(self._room[place : place + size]).payload
            with self._ending:
                start = self._end
                self._end += len(payload)
            os.pwrite(self._fd, payload, start)
            del payload  # it may be a view
            with self._ending:
                self._ended.add(number)
                while self._oldest in self._ended:
                    self._ended.remove(self._oldest)
                    self._oldest += 1
                    self._free.release()


def _bytes_of(memory: SharedMemory) -> npt.NDArray[np.uint8]:
    return np.ndarray((memory.size,), np.uint8, memory.buf)
