"""PyTables as a peer: one ``EArray`` per column, with Blosc2."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import tables

from shmstore.bench.harness import FileRun, sync
from shmstore.bench.peers.gathering import gathered
from shmstore.bench.streams import Stream, batch_bytes, columns, made


class EArrays(FileRun):
    """Batches gathered to whole chunks, then ``EArray.append``; Blosc2 with a thread for each core.

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
    codec
        ``"lz4"``, ``"zstd"`` or ``"none"``.
    level
        Of the codec, as Blosc2 counts it.
    """

    def __init__(
        self,
        stream: Stream,
        batches: int,
        output: Path,
        per_batch: float,
        chunk_rows: int,
        codec: str,
        level: int,
    ) -> None:
        super().__init__(
            "PyTables EArray", batches * per_batch, batches * batch_bytes(stream), output / "tables.h5"
        )
        self._batches = batches
        self._chunk_rows = chunk_rows
        self._made = [columns(batch) for batch in made(stream)]
        filters: dict[str, Any] = {"complevel": 0}
        if codec != "none":
            filters = {"complevel": level, "complib": f"blosc2:{codec}", "shuffle": True}
        self._filters = tables.Filters(**filters)
        tables.set_blosc_max_threads(len(os.sched_getaffinity(0)))

    def run(self) -> None:
        """Create the file, append everything, close."""
        arrays, distinct = self._made, len(self._made)
        every = (arrays[number % distinct] for number in range(self._batches))
        with tables.open_file(str(self._path), "w") as file:
            columns_: list[Any] = [
                file.create_earray(
                    file.root,
                    f"column_{number}",
                    atom=tables.Atom.from_dtype(array.dtype),
                    shape=(0, *array.shape[1:]),
                    chunkshape=(self._chunk_rows, *array.shape[1:]),
                    filters=self._filters,
                )
                for number, array in enumerate(arrays[0].values())
            ]
            for part in gathered(every, self._chunk_rows):
                for column, array in zip(columns_, part.values(), strict=True):
                    column.append(array)
        sync(self._path)
