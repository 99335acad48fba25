"""What shmstore is held against: other ways to bring the same bytes into a file, on the same filesystem."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py

from shmstore.bench.streams import Stream, batch_bytes, columns


class PwriteLoop:
    """The least that any recorder does: `os.pwrite` of each batch from memory, then fsync, as close() does.

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
        self.label = "bare pwrite"
        self.amount = batches * per_batch
        self.touches = batches * batch_bytes(stream)
        self._batches = batches
        self._path = output / "bare"
        self._made = [[array.data for array in columns(batch).values()] for batch in stream.batches()]

    def prepare(self) -> None:
        """Nothing: the batches are made, the file is opened on the clock."""

    def run(self) -> None:
        """Open, write, sync, close."""
        made, distinct, place = self._made, len(self._made), 0
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for number in range(self._batches):
            for data in made[number % distinct]:
                place += os.pwrite(fd, data, place)
        os.fsync(fd)
        os.close(fd)

    def finish(self) -> dict[str, Any]:
        """Remove the file."""
        size = self._path.stat().st_size
        self._path.unlink()
        return {"file_bytes": size}


class H5pyAppend:
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
        Keywords of ``create_dataset``; by default none.
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
        filters: Mapping[str, Any] | None = None,
        label: str = "h5py append",
    ) -> None:
        self.label = label
        self.amount = batches * per_batch
        self.touches = batches * batch_bytes(stream)
        self._batches = batches
        self._path = output / "h5py.h5"
        self._chunk_rows = chunk_rows
        self._filters = filters or {}
        self._made = [columns(batch) for batch in stream.batches()]

    def prepare(self) -> None:
        """Nothing: the batches are made, the file is created on the clock."""

    def run(self) -> None:
        """Create the file, append every batch, close."""
        made, distinct = self._made, len(self._made)
        with h5py.File(self._path, "w") as file:
            datasets = {
                name: file.create_dataset(
                    name,
                    shape=(0, *array.shape[1:]),
                    maxshape=(None, *array.shape[1:]),
                    chunks=(self._chunk_rows, *array.shape[1:]),
                    dtype=array.dtype,
                    **self._filters,
                )
                for name, array in made[0].items()
            }
            rows = 0
            for number in range(self._batches):
                start = rows
                for name, array in made[number % distinct].items():
                    rows = start + len(array)
                    dataset = datasets[name]
                    dataset.resize(rows, axis=0)
                    dataset[start:rows] = array

    def finish(self) -> dict[str, Any]:
        """Remove the file."""
        size = self._path.stat().st_size
        self._path.unlink()
        return {"file_bytes": size}
