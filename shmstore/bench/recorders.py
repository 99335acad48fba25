"""shmstore on the clock: a producer in a process of its own, the writer in another, this one waits.

The clock starts with the word "go" to a producer that has its batches made and its ring mapped, and stops
when `HDF5Storage.close` has returned: the file is closed, checked and synced, the rings are gone.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

import shmstore
from shmstore.bench.streams import Stream, batch_bytes

# spawn: a fork of a process in which Arrow has started threads is unsafe.
_CONTEXT = multiprocessing.get_context("spawn")


class Recording:
    """Records a stream with shmstore.

    Parameters
    ----------
    stream
        What is recorded.
    batches
        How many batches.
    output
        Folder of the file.
    per_batch
        What one batch counts in the case's unit.
    label
        Its name in the report, where shmstore is held against itself.
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
        **options: Any,
    ) -> None:
        self.label = label
        self.amount = batches * per_batch
        self.touches = batches * batch_bytes(stream)
        self._stream = stream
        self._batches = batches
        self._config = shmstore.StorageConfig(output_dir=output, **options)

    def prepare(self) -> None:
        """Start the writer and the producer; the producer makes its batches and maps its ring."""
        self._storage = shmstore.HDF5Storage(self._config).start()
        producer = self._storage.producer("stream", self._stream.schema)
        self._pipe, theirs = _CONTEXT.Pipe()
        self._child: BaseProcess = _CONTEXT.Process(
            target=_produce, args=(producer, self._stream, self._batches, theirs)
        )
        self._child.start()
        theirs.close()
        self._expect("ready")
        cpu = psutil.Process(self._storage.writer_pid).cpu_times()
        self._writer_cpu_before = cpu.user + cpu.system
        self._children_before = _cpu_of_ended_children()

    def run(self) -> None:
        """Let the producer go; close as soon as it has put everything."""
        began = time.perf_counter()
        self._pipe.send("go")
        self._produced = self._pipe.recv()
        put = time.perf_counter()
        self._storage.close()
        closed = time.perf_counter()
        self._phases = {"put_s": put - began, "close_s": closed - put}

    def finish(self) -> dict[str, Any]:
        """Remove the file; returns phases, processor seconds, bytes on disk and the writer's counts."""
        # The writer is the only child that ended on the clock.
        writer_cpu_s = _cpu_of_ended_children() - self._children_before - self._writer_cpu_before
        self._pipe.send("end")
        self._child.join()
        self._pipe.close()
        size = self._storage.path.stat().st_size
        self._storage.path.unlink()
        stats = self._storage.final_stats
        return {
            "phases": {**self._phases, "ring_wait_s": self._produced["wait_s"]},
            "producer_cpu_s": self._produced["cpu_s"],
            "writer_cpu_s": round(writer_cpu_s, 3),
            "file_bytes": size,
            "bytes_in": stats.bytes_in,
            "commits": stats.commits,
            "chunks": stats.chunks_written,
            "ring_high_water": stats.ring_high_water,
        }

    def _expect(self, word: str) -> None:
        if not self._pipe.poll(60) or self._pipe.recv() != word:
            raise RuntimeError(f"the producer process did not say {word!r}")


def _cpu_of_ended_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _produce(producer: shmstore.Producer, stream: Stream, batches: int, pipe: Connection) -> None:
    made = stream.batches()
    distinct = len(made)
    producer.stats()  # maps the ring
    pipe.send("ready")
    pipe.recv()
    cpu = time.process_time()
    for number in range(batches):
        producer.put(made[number % distinct])
    cpu = time.process_time() - cpu
    stats = producer.stats()
    producer.close()
    pipe.send({"cpu_s": cpu, "wait_s": stats.wait_ns / 1e9})
    pipe.recv()  # what this process takes to end is no part of the recording
