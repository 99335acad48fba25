"""h5py as a peer: in one process, by slices or by direct chunks; and behind a queue of pickled batches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import h5py
import hdf5plugin  # noqa: F401  h5py has few codecs of its own
import numpy as np
import numpy.typing as npt

from shmstore.bench.harness import FileRun, sync
from shmstore.bench.peers.gathering import Arrays, gathered
from shmstore.bench.processes import CONTEXT, Companion
from shmstore.bench.streams import MIB, Stream, batch_bytes, columns, made
from shmstore.codec import Codec
from shmstore.payload import Encoder

_QUEUE_BYTES = 64 * MIB


def filters_of(codec: Codec, itemsize: int, chunk_nbytes: int) -> dict[str, Any]:
    """Return the keywords of ``create_dataset`` that give a dataset the very filters that shmstore gives it.

    Examples
    --------
    >>> filters_of(Codec.parse("gzip"), itemsize=2, chunk_nbytes=1024)
    {'shuffle': True, 'compression': 'gzip', 'compression_opts': 6}
    """
    found = codec.filters(itemsize, chunk_nbytes)
    if not found:
        return {}
    shuffle = {"shuffle": True} if len(found) > 1 else {}
    own = found[-1]
    if own.id == h5py.h5z.FILTER_DEFLATE:  # which h5py takes by name only
        return {**shuffle, "compression": "gzip", "compression_opts": own.cd_values[0]}
    return {**shuffle, "compression": own.id, "compression_opts": own.cd_values}


class H5pyAppend(FileRun):
    """h5py in one process, as one would write it: for each batch and column, ``resize`` and assign a slice.

    Parameters
    ----------
    stream
        What is appended.
    batches
        How many batches.
    output
        Folder of the file.
    per_batch
        What one batch counts in the case's unit.
    chunk_rows
        Rows of a chunk.
    filters
        Keywords of ``create_dataset``, or the codec whose filters are meant; by default none.
    label
        Its name in the report.
    """

    def __init__(
        self,
        stream: Stream,
        batches: int,
        output: Path,
        per_batch: float,
        chunk_rows: int,
        filters: Mapping[str, Any] | Codec | None = None,
        label: str = "h5py append",
    ) -> None:
        super().__init__(label, batches * per_batch, batches * batch_bytes(stream), output / "h5py.h5")
        self._batches = batches
        self._chunk_rows = chunk_rows
        self._filters = filters or {}
        self._made = [columns(batch) for batch in made(stream)]

    def run(self) -> None:
        """Create the file, append every batch, close."""
        arrays, distinct = self._made, len(self._made)
        with _Appender(self._path, self._chunk_rows, self._filters) as appender:
            for number in range(self._batches):
                appender.append(arrays[number % distinct])
        sync(self._path)


class H5pyDirect(FileRun):
    """h5py in one process, chunks encoded outside HDF5 by shmstore's own encoder: ``write_direct_chunk``.

    The best that one thread can do with h5py. Batches are gathered to whole chunks first.

    Parameters
    ----------
    stream, batches, output, per_batch, chunk_rows
        As for `H5pyAppend`.
    codec
        The codec; it has to be one that is encoded outside HDF5.
    label
        Its name in the report.
    """

    def __init__(
        self,
        stream: Stream,
        batches: int,
        output: Path,
        per_batch: float,
        chunk_rows: int,
        codec: Codec,
        label: str = "h5py direct chunks",
    ) -> None:
        super().__init__(label, batches * per_batch, batches * batch_bytes(stream), output / "direct.h5")
        self._batches = batches
        self._chunk_rows = chunk_rows
        self._codec = codec
        self._made = [columns(batch) for batch in made(stream)]

    def run(self) -> None:
        """Create the file, write every chunk, close."""
        arrays, distinct = self._made, len(self._made)
        every = (arrays[number % distinct] for number in range(self._batches))
        with _Appender(self._path, self._chunk_rows, self._codec) as appender:
            for part in gathered(every, self._chunk_rows):
                appender.append(part, direct=True)
        sync(self._path)


class H5pyQueue(FileRun):
    """h5py in a process of its own, behind a `multiprocessing.Queue` of pickled record batches.

    The queue holds 64 MiB at most. The clock runs until the file is closed.

    Parameters
    ----------
    stream, batches, output, per_batch, chunk_rows, filters, label
        As for `H5pyAppend`.
    """

    def __init__(
        self,
        stream: Stream,
        batches: int,
        output: Path,
        per_batch: float,
        chunk_rows: int,
        filters: Mapping[str, Any] | Codec | None = None,
        label: str = "h5py behind a queue",
    ) -> None:
        super().__init__(label, batches * per_batch, batches * batch_bytes(stream), output / "queue.h5")
        self._batches = batches
        self._arguments = (self._path, chunk_rows, filters or {})
        self._made = made(stream)
        self._depth = max(2, min(32_000, _QUEUE_BYTES // max(1, batch_bytes(stream))))
        self._child: Companion | None = None

    def prepare(self) -> None:
        """Start the process that writes."""
        self._queue: Any = CONTEXT.Queue(self._depth)
        self._child = Companion(_write_queued, *self._arguments, self._queue)

    def run(self) -> None:
        """Put every batch, and wait until the file is closed."""
        if self._child is None:
            raise RuntimeError("run() comes after prepare()")
        began = time.process_time()
        put, batches, distinct = self._queue.put, self._made, len(self._made)
        for number in range(self._batches):
            put(batches[number % distinct])
        put(None)
        self._writer_cpu_s = float(self._child.answer())
        self._producer_cpu_s = time.process_time() - began

    def finish(self) -> dict[str, Any]:
        """End the process and remove the file."""
        return {
            **super().finish(),
            "cpu_s": {"producer": self._producer_cpu_s, "writer": self._writer_cpu_s},
        }

    def abandon(self) -> None:
        """End the process and remove the file."""
        child, self._child = self._child, None
        if child is not None:
            child.end()
            self._queue.cancel_join_thread()
            self._queue.close()
        super().abandon()


def _write_queued(
    path: Path, chunk_rows: int, filters: Mapping[str, Any] | Codec, queue: Any, pipe: Connection
) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever would hear has been interrupted
        pipe.send("ready")
        began = time.process_time()
        with _Appender(path, chunk_rows, filters) as appender:
            while (batch := queue.get()) is not None:
                appender.append(columns(batch))
        sync(path)
        pipe.send(time.process_time() - began)


class _Appender:
    """An HDF5 file with one dataset per column, made by the first batch. A context manager."""

    def __init__(self, path: Path, chunk_rows: int, filters: Mapping[str, Any] | Codec) -> None:
        self._file = h5py.File(path, "w")
        self._chunk_rows = chunk_rows
        self._filters = filters
        self._datasets: dict[str, tuple[Any, Encoder | None]] = {}
        self._rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, arrays: Arrays, *, direct: bool = False) -> None:
        """Append to every column; direct: a whole chunk at a chunk's place past HDF5's filters."""
        if not self._datasets:
            self._datasets = {
                f"{number}": self._create(f"{number}", array) for number, array in enumerate(arrays.values())
            }
        start = self._rows
        for (dataset, encoder), array in zip(self._datasets.values(), arrays.values(), strict=True):
            self._rows = start + len(array)
            dataset.resize(self._rows, axis=0)
            if not direct or len(array) != self._chunk_rows:
                dataset[start : self._rows] = array
                continue
            payload, mask = (array, 0) if encoder is None else encoder(array)
            dataset.id.write_direct_chunk((start, *(0,) * (array.ndim - 1)), payload, mask)

    def _create(self, name: str, array: npt.NDArray[Any]) -> tuple[Any, Encoder | None]:
        shape = array.shape[1:]
        filters, encoder = self._filters, None
        if isinstance(filters, Codec):
            nbytes = self._chunk_rows * int(np.prod(shape, dtype=np.int64)) * array.itemsize
            encoder = filters.encoder(array.itemsize, nbytes) if filters.direct else None
            filters = filters_of(filters, array.itemsize, nbytes)
        dataset = self._file.create_dataset(
            name,
            shape=(0, *shape),
            maxshape=(None, *shape),
            chunks=(self._chunk_rows, *shape),
            dtype=array.dtype,
            **filters,
        )
        return dataset, encoder
