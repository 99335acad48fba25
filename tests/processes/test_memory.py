"""Memory of writers: what they have written by then takes none, whoever wrote it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from processes.programs import TIMEOUT_S

import shmstore
from shmstore import HDF5Storage

MIB = 2**20
CHUNK_ROWS = 16
BATCH = pa.record_batch({"n": np.arange(CHUNK_ROWS * 1024), "x": np.linspace(0, 1, CHUNK_ROWS * 1024)})


def own_bytes(process: int) -> int:
    """Return the memory that a process has for itself: without rings, tails and libraries."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    fields = {name: rest.split() for name, _, rest in (line.partition(":") for line in text.splitlines())}
    return int(fields["Anonymous"][0]) * 1024


def replace_writer(storage: HDF5Storage) -> int:
    """Kill the writer; return the memory of the next one, once it has gone on from there."""
    killed = storage.writer_pid
    os.kill(killed, signal.SIGKILL)
    deadline = time.monotonic() + TIMEOUT_S
    while storage.writer_pid == killed:
        assert time.monotonic() < deadline, "no writer takes its place"
        time.sleep(0.01)
    storage.write_batch("cam", BATCH)
    storage.flush()
    return own_bytes(storage.writer_pid)


def test_a_writer_takes_no_more_memory_after_many_chunks_than_after_few(output_dir: Path) -> None:
    """Neither one that wrote them, nor one in its place, which has read what the journal tells of them."""
    with HDF5Storage(
        output_dir=output_dir,
        chunk_rows=CHUNK_ROWS,
        compression="none",
        ring_bytes="2MiB",
        commit_bytes="1MiB",
    ) as storage:
        storage.write_batch("cam", BATCH)
        after_few = replace_writer(storage)
        for _ in range(48):
            storage.write_batch("cam", BATCH)
        storage.flush()
        writer_of_all = own_bytes(storage.writer_pid)
        after_many = replace_writer(storage)
    assert writer_of_all - after_few < 12 * MIB  # what is under way, and 2 for the index of 100,000 chunks
    assert after_many - after_few < 4 * MIB  # with what the journal tells of them it were 13
    with shmstore.open(storage.path) as recording:
        assert recording["cam"].num_rows == 51 * len(BATCH)


def faults(pid: int) -> int:
    """Return how many pages the kernel has given to a process, or mapped, on its first touch."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[7])


def test_the_memory_of_encoded_chunks_is_used_again(output_dir: Path) -> None:
    """Given back to the kernel each time, it would be faulted in anew: 150 pages for each of these chunks."""
    noise = np.random.default_rng(1).normal(0, 20, (16, MIB // 2)).astype(np.int16)
    batches = [pa.record_batch({"n": samples}) for samples in noise]
    with (
        HDF5Storage(output_dir=output_dir, compression="lz4", ring_bytes="8MiB") as storage,
        storage.producer("adc", batches[0].schema) as producer,
    ):
        for number in range(64):
            producer.put(batches[number % 16])
        storage.flush()
        before = faults(storage.writer_pid)
        for number in range(128):
            producer.put(batches[number % 16])
        storage.flush()
        assert faults(storage.writer_pid) - before < 128 * 50
