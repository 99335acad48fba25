"""What no recorder can beat: the parts of a recording, each alone on this machine, in the same run.

A byte that is recorded is copied into shared memory once, goes through the codec, and is handed to the kernel
with what is left of it. Each of these alone takes so much of a processor; all of them on all cores are the
machine's limit. The codec's part is taken with the very chunks that a recording has made.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  h5py reads most codecs' chunks with it
import numpy as np
import numpy.typing as npt

from shmstore.bench.harness import FileRun
from shmstore.bench.streams import Stream, batch_bytes, made, pieces
from shmstore.codec import Codec
from shmstore.inspection import describe
from shmstore.payload import Encoder

#: So many bytes of chunks stand for all of a recording.
_MOST_CHUNKS = 128 << 20


class Memcpy:
    """Every batch copied into shared memory as large as the ring, which was touched before; one thread.

    Parameters
    ----------
    stream
        What is copied.
    batches
        How many batches.
    ring_bytes
        How much memory they go to, round and round.
    per_batch
        What one batch counts in the case's unit.
    """

    def __init__(self, stream: Stream, batches: int, ring_bytes: int, per_batch: float) -> None:
        self.label = "memcpy"
        self.amount = batches * per_batch
        self.touches = 0
        self._batches = batches
        self._made = [pieces(batch) for batch in made(stream)]
        largest = max(sum(piece.nbytes for piece in batch) for batch in self._made)
        self._size = max(ring_bytes, largest)
        self._room: npt.NDArray[np.uint8] | None = None

    def prepare(self) -> None:
        """Map the memory, every page of it."""
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        self._room = np.frombuffer(mmap.mmap(-1, self._size, flags=flags), np.uint8)

    def run(self) -> None:
        """Copy."""
        room, place, distinct = self._room, 0, len(self._made)
        if room is None:
            raise RuntimeError("run() comes after prepare()")
        for number in range(self._batches):
            for piece in self._made[number % distinct]:
                if place + piece.nbytes > self._size:
                    place = 0
                np.copyto(room[place : place + piece.nbytes], piece)
                place += piece.nbytes

    def finish(self) -> dict[str, Any]:
        """Give the memory back."""
        self._room = None
        return {}

    def abandon(self) -> None:
        """Give the memory back."""
        self._room = None


class PwriteLoop(FileRun):
    """The least that any recorder does: `os.pwrite` of each batch from memory, then fdatasync.

    Parameters
    ----------
    stream
        What is written: its columns' bytes, no more.
    batches
        How many batches.
    output
        Folder of the file.
    per_batch
        What one batch counts in the case's unit.
    """

    def __init__(self, stream: Stream, batches: int, output: Path, per_batch: float) -> None:
        super().__init__("pwrite", batches * per_batch, batches * batch_bytes(stream), output / "bare")
        self._batches = batches
        self._made = [pieces(batch) for batch in made(stream)]

    def run(self) -> None:
        """Open, write, sync, close."""
        distinct = len(self._made)
        _write(self._path, (piece for n in range(self._batches) for piece in self._made[n % distinct]))


def _write(path: Path, blocks: Any) -> None:
    place = 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for block in blocks:
            place += os.pwrite(fd, block, place)
        os.fdatasync(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Chunks:
    """What a recording gives to the codec and to the file, unfiltered.

    Attributes
    ----------
    arrays : tuple of ndarray
        Chunks as they were written, the ragged last one of a dataset included.
    share : float
        Bytes of all chunks of the recording for each byte of the stream.
    rows : int
        Rows of a chunk of its widest column.
    """

    arrays: tuple[npt.NDArray[Any], ...]
    share: float
    rows: int

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays)


def chunks_of(path: Path, stream_bytes: int) -> Chunks:
    """Read the chunks of a recording that has ended.

    Parameters
    ----------
    path
        The recording; variable-length values, which HDF5 places by itself, have no chunks.
    stream_bytes
        What was put.
    """
    report = describe(path)
    datasets = [
        (dataset, dataset.chunk_shape[0])
        for instrument in report.instruments
        for column in instrument.columns
        for dataset in column.datasets
        if dataset.chunk_shape and dataset.dtype not in {"utf8", "bytes"} and dataset.raw_bytes
    ]
    total = sum(dataset.raw_bytes for dataset, _ in datasets)
    arrays = []
    with h5py.File(path) as file:
        for dataset, rows in datasets:
            wanted = min(dataset.raw_bytes, _MOST_CHUNKS * dataset.raw_bytes // total)
            taken = 0
            for start in range(0, dataset.shape[0], rows):
                array = np.ascontiguousarray(file[dataset.path][start : start + rows])
                arrays.append(array)
                taken += array.nbytes
                if taken >= wanted:
                    break
    rows_of_widest = 1
    if datasets:
        _, rows_of_widest = max(datasets, key=lambda one: one[0].raw_bytes // max(1, one[0].shape[0]))
    return Chunks(tuple(arrays), total / max(1, stream_bytes), rows_of_widest)


class CodecAlone:
    """The codec on a recording's chunks, in as many threads as the writer has; the results are dropped.

    Parameters
    ----------
    chunks
        What is encoded.
    codec
        With what; it has to be one that is encoded outside HDF5.
    threads
        How many threads.
    megabytes
        About how much of the stream one run stands for.
    """

    def __init__(self, chunks: Chunks, codec: Codec, threads: int, megabytes: float) -> None:
        self.label = "codec alone"
        self.touches = 0
        self._threads = threads
        per_round = chunks.nbytes / 1e6 / chunks.share
        self._rounds = max(1, round(megabytes / per_round))
        self.amount = self._rounds * per_round
        self._work = encoders(chunks, codec)
        self._stored = 0

    def prepare(self) -> None:
        """Nothing: the chunks are in memory."""

    def run(self) -> None:
        """Encode all of them, several times."""
        work = self._work * self._rounds
        with ThreadPoolExecutor(self._threads) as pool:
            self._stored = sum(
                pool.map(_encoded_bytes, (work[number :: self._threads] for number in range(self._threads)))
            )

    def finish(self) -> dict[str, Any]:
        """Return how many bytes were left."""
        return {"file_bytes": self._stored, "threads": self._threads}

    def abandon(self) -> None:
        """Nothing."""


def encoders(chunks: Chunks, codec: Codec) -> list[tuple[Encoder, npt.NDArray[Any]]]:
    """Return each chunk with what encodes it."""
    known: dict[tuple[int, int], Encoder] = {}
    work = []
    for array in chunks.arrays:
        key = (array.itemsize, array.nbytes)
        encoder = known.get(key) or codec.encoder(*key)
        if encoder is None:
            raise ValueError("codec 'none' encodes nothing")
        known[key] = encoder
        work.append((encoder, array))
    return work


def _encoded_bytes(work: Sequence[tuple[Encoder, npt.NDArray[Any]]]) -> int:
    return sum(len(encode(chunk).payload) for encode, chunk in work)


class PwriteResult(FileRun):
    """`os.pwrite` of what the codec leaves of the chunks, then fdatasync.

    Parameters
    ----------
    chunks
        The chunks.
    codec
        The codec.
    output
        Folder of the file.
    megabytes
        About how much of the stream one run stands for.
    """

    def __init__(self, chunks: Chunks, codec: Codec, output: Path, megabytes: float) -> None:
        per_round = chunks.nbytes / 1e6 / chunks.share
        self._rounds = max(1, round(megabytes / per_round))
        # Of a chunk that does not shrink the payload is a view: it lives as long as the chunks do.
        self._payloads = [encode(chunk).payload for encode, chunk in encoders(chunks, codec)]
        size = self._rounds * sum(map(len, self._payloads))
        super().__init__("pwrite of the result", self._rounds * per_round, size, output / "result")

    def run(self) -> None:
        """Open, write, sync, close."""
        _write(self._path, (payload for _ in range(self._rounds) for payload in self._payloads))


def machine_limit(cores: int, cpu_s_per_gb: Sequence[float]) -> float:
    """Return the rate at which all cores do nothing but the parts of a recording, in MB/s.

    Parameters
    ----------
    cores
        Cores that this process may use.
    cpu_s_per_gb
        Processor seconds that each part alone takes for 1 GB of the stream.

    Examples
    --------
    >>> machine_limit(2, [0.1, 1.5, 0.4])  # 2 s on 2 cores
    1000.0
    """
    return 1000.0 * cores / max(sum(cpu_s_per_gb), 1e-9)
