"""shmstore on the clock: producers in processes of their own, the writer in another, this one waits.

The clock starts with the word "go" to producers that have made their batches and mapped their rings; it stops
when `HDF5Storage.close` has returned: the file is closed, checked and synced, the rings are gone.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import time
from collections.abc import Iterable
from dataclasses import fields
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import shmstore
from shmstore import chunking
from shmstore.bench.processes import Watch, await_standby, deaf_to_interrupts, ended_children_cpu_s
from shmstore.bench.streams import Stream, batch_bytes, made, pieces
from shmstore.errors import BrokenError, ShmStoreError

# spawn: a fork of a process in which Arrow has started threads is unsafe.
_CONTEXT = multiprocessing.get_context("spawn")
_READY_S = 60.0
#: With a recording so large the writer's standby is awaited: its start would lie on the clock by chance.
_LARGE_BYTES, _STANDBY_S = 64 << 20, 10.0
#: Room for the copies beside a paced recording: more than a processor's caches hold.
_ROOM_BYTES = 64 << 20


class Recording:
    """Records a stream with shmstore.

    Parameters
    ----------
    stream
        What is recorded.
    batches
        How many batches, by all producers together.
    output
        Folder of the file.
    per_batch
        What one batch counts in the case's unit.
    label
        Its name in the report, where shmstore is held against itself.
    producers
        How many processes produce.
    shared
        Whether they all feed one instrument; otherwise each has its own.
    pace
        Batches a second and producer, evenly spaced; 0: as many as go. Between paced ones each batch is also
        copied to memory of the producer's own, for a comparison.
    **options
        Fields of `shmstore.StorageConfig`.
    """

    def __init__(
        self,
        stream: Stream,
        batches: int,
        output: Path,
        per_batch: float,
        label: str = "shmstore",
        *,
        producers: int = 1,
        shared: bool = False,
        pace: float = 0.0,
        **options: Any,
    ) -> None:
        self.label = label
        self.amount = batches * per_batch
        recorded, width = batches * batch_bytes(stream), len(stream.schema)
        # Chunks that are not full are in memory besides, of each column three.
        self.touches = recorded + min(recorded, 3 * width * chunking.largest_bytes(width))
        self._is_large = recorded >= _LARGE_BYTES
        self._stream = stream
        self._shares = [len(range(number, batches, producers)) for number in range(producers)]
        self._shared = shared
        self._pace = pace
        self._config = shmstore.StorageConfig(output_dir=output, **options)
        self._storage: shmstore.HDF5Storage | None = None
        self._children: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._watch: Watch | None = None

    @property
    def path(self) -> Path:
        """The file, until it is removed."""
        return self._running().path

    def prepare(self) -> None:
        """Start the writer and the producers; those make their batches and map their rings."""
        self._storage = storage = shmstore.HDF5Storage(self._config).start()
        schema = self._stream.schema
        for number, share in enumerate(self._shares):
            name = "stream" if self._shared or len(self._shares) == 1 else f"stream_{number}"
            ours, theirs = _CONTEXT.Pipe()
            self._pipes.append(ours)
            child = _CONTEXT.Process(
                target=_produce,
                args=(storage.producer(name, schema), self._stream, number, share, self._pace, theirs),
                daemon=True,
            )
            with deaf_to_interrupts():
                child.start()
            self._children.append(child)
            theirs.close()
        for pipe in self._pipes:
            if not pipe.poll(_READY_S) or self._answer(pipe) != "ready":
                raise BrokenError(f"a producer process was not ready within {_READY_S:g} s: free processors")
        producers = {child.pid for child in self._children}
        if self._config.recoverable and self._config.standby and self._is_large:
            await_standby(producers | {storage.writer_pid}, _STANDBY_S)
        self._watch = Watch(storage.writer_pid, producers)
        self._watch.start()
        self._ended_before = ended_children_cpu_s()
        self._writer_before = self._watch.writer_cpu_s()

    def run(self) -> None:
        """Let the producers go; close as soon as they have put everything."""
        storage = self._running()
        began = time.perf_counter()
        for pipe in self._pipes:
            with contextlib.suppress(BrokenPipeError):  # its answer tells
                pipe.send("go")
        self._produced = [self._answer(pipe) for pipe in self._pipes]
        put = time.perf_counter()
        storage.close()
        closed = time.perf_counter()
        self._phases = {"put_s": put - began, "close_s": closed - put}

    def finish(self) -> dict[str, Any]:
        """Remove the file; returns phases, processor seconds, memory, bytes on disk and the counts."""
        storage, watch = self._running(), self._watch
        if watch is None:
            raise RuntimeError("finish() comes after prepare() and run()")
        watch.stop()
        # Of the children that ended on the clock one is the writer; another may be a standby, idle when last
        # seen.
        ended = ended_children_cpu_s() - self._ended_before
        writer_cpu_s = max(0.0, ended - watch.others_cpu_s - self._writer_before)
        self._end_producers()
        size = storage.path.stat().st_size
        storage.path.unlink()
        stats = storage.final_stats
        self._storage = None
        # Where the writer tells how long it was at what, that is a phase too.
        told = {
            item.name.removesuffix("_ns") + "_s": getattr(stats, item.name) / 1e9
            for item in fields(stats)
            if item.name.endswith("_ns")
        }
        waits = [produced["wait_s"] for produced in self._produced]
        producer_cpu_s = sum(produced["cpu_s"] for produced in self._produced)
        puts = np.concatenate([produced["put_s"] for produced in self._produced])
        copies = np.concatenate([produced["copy_s"] for produced in self._produced])
        return {
            "phases": {**self._phases, "ring_wait_s": sum(waits) / len(waits), **told},
            "cpu_s": {"producer": producer_cpu_s, "writer": writer_cpu_s},
            "put_us": quantiles(puts),
            **({"copy_us": quantiles(copies)} if self._pace else {}),
            "writer_peak_bytes": watch.peak_bytes,
            "writer_private_peak_bytes": watch.private_peak_bytes,
            "file_bytes": size,
            "bytes_in": stats.bytes_in,
            "rows": stats.rows_written,
            "commits": stats.commits,
            "chunks": stats.chunks_written,
            "ring_high_water": stats.ring_high_water,
            "producer_waits": sum(produced["waits"] for produced in self._produced),
        }

    def abandon(self) -> None:
        """End the processes and remove the file, whatever state they are in."""
        if self._watch is not None:
            self._watch.stop()
        for child in self._children:
            if child.is_alive():
                child.terminate()
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send("end")
        self._end_producers()
        storage, self._storage = self._storage, None
        if storage is not None:
            with contextlib.suppress(ShmStoreError, OSError):
                storage.abort()
            with contextlib.suppress(ShmStoreError, OSError):
                storage.path.unlink(missing_ok=True)

    def _running(self) -> shmstore.HDF5Storage:
        if self._storage is None:
            raise RuntimeError("there is no recording: prepare() makes one")
        return self._storage

    def _answer(self, pipe: Connection) -> Any:
        try:
            return pipe.recv()
        except (EOFError, ConnectionError):
            raise BrokenError("a producer process ended too early: see what it said above") from None

    def _end_producers(self) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send("end")
        for child in self._children:
            child.join()
            child.close()
        for pipe in self._pipes:
            pipe.close()
        self._children, self._pipes = [], []


def quantiles(seconds: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return times as the report has them: some percentiles, and the whole distribution, in µs."""
    if not len(seconds):
        return {}
    shares = np.concatenate((np.linspace(0, 0.98, 50), [0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999, 1.0]))
    curve = np.quantile(seconds, shares) * 1e6
    named = {f"p{percent:g}": float(np.percentile(seconds, percent)) * 1e6 for percent in (50, 90, 99, 99.9)}
    return {
        "count": len(seconds),
        **named,
        "max": float(curve[-1]),
        "quantiles": [[float(share), float(value)] for share, value in zip(shares, curve, strict=True)],
    }


def _produce(
    producer: shmstore.Producer, stream: Stream, first: int, count: int, pace: float, pipe: Connection
) -> None:
    batches = made(stream)
    batches = batches[first % len(batches) :] + batches[: first % len(batches)]
    producer.stats()  # maps the ring
    with contextlib.suppress(EOFError, ConnectionError):  # whoever would speak has been interrupted
        pipe.send("ready")
        if pipe.recv() == "go":
            pipe.send(_put_on_the_clock(producer, batches, count, pace))
            pipe.recv()  # what this process takes to end is no part of the recording


def _put_on_the_clock(
    producer: shmstore.Producer, batches: list[pa.RecordBatch], count: int, pace: float
) -> dict[str, Any]:
    copier = _Copier(batches) if pace else None
    puts, copies = np.empty(count), np.empty(count if pace else 0)
    cpu, began = time.process_time(), time.perf_counter()
    if copier is None:
        _put_all(producer, batches, puts)
    else:
        for number in range(count):
            time.sleep(max(0.0, began + number / pace - time.perf_counter()))
            # Each has a batch that the other has not just brought into the cache.
            copies[number] = copier.copy(number + len(batches) // 2)
            start = time.perf_counter()
            producer.put(batches[number % len(batches)])
            puts[number] = time.perf_counter() - start
    cpu = time.process_time() - cpu
    stats = producer.stats()
    producer.close()
    return {
        "cpu_s": cpu,
        "wait_s": stats.wait_ns / 1e9,
        "waits": stats.waits,
        "put_s": puts,
        "copy_s": copies,
    }


def _put_all(
    producer: shmstore.Producer, batches: list[pa.RecordBatch], seconds: npt.NDArray[np.float64]
) -> None:
    put, clock, distinct = producer.put, time.perf_counter, len(batches)
    end = clock()
    for number in range(len(seconds)):
        put(batches[number % distinct])
        start, end = end, clock()
        seconds[number] = end - start


class _Copier:
    """Copies batches to shared memory that was touched before: what a put cannot do without."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._pieces = [pieces(batch) for batch in batches]
        largest = max(sum(piece.nbytes for piece in batch) for batch in self._pieces)
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        self._room = np.frombuffer(mmap.mmap(-1, max(_ROOM_BYTES, largest), flags=flags), np.uint8)
        self._place = 0

    def copy(self, number: int) -> float:
        """Copy the batch of this number; return how long it took, in seconds."""
        batch = self._pieces[number % len(self._pieces)]
        if self._place + sum(piece.nbytes for piece in batch) > self._room.nbytes:
            self._place = 0
        start = time.perf_counter()
        for piece in batch:
            np.copyto(self._room[self._place : self._place + piece.nbytes], piece)
            self._place += piece.nbytes
        return time.perf_counter() - start
