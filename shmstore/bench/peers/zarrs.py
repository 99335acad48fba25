"""zarr 3 as a peer: one array per column in a folder, each chunk a file, or many of them in a shard."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import zarr
from zarr.codecs import BloscCodec

from shmstore.bench.harness import FileRun, sync
from shmstore.bench.peers.gathering import gathered
from shmstore.bench.streams import MIB, Stream, batch_bytes, columns, made

_SHARD_BYTES = 16 * MIB


class ZarrArrays(FileRun):
    """Batches gathered to whole chunks, or to whole shards, then ``Array.append``.

    Parameters
    ----------
    stream
        What is appended.
    batches
        How many batches.
    output
        Where the folder is made.
    per_batch
        What one batch counts in the case's unit.
    chunk_rows
        Rows of a chunk.
    codec
        ``"lz4"``, ``"zstd"`` (inside Blosc, with shuffle) or ``"none"``.
    level
        Of the codec, as Blosc counts it.
    sharded
        Whether about 16 MiB of each column's chunks make one file.
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
        *,
        sharded: bool,
    ) -> None:
        label = "zarr sharded" if sharded else "zarr"
        super().__init__(label, batches * per_batch, batches * batch_bytes(stream), output / "zarr")
        self._batches = batches
        self._chunk_rows = chunk_rows
        self._made = [columns(batch) for batch in made(stream)]
        self._shard_rows = 0
        if sharded:
            widest = max(array[:1].nbytes for array in self._made[0].values())
            self._shard_rows = chunk_rows * max(2, _SHARD_BYTES // max(1, chunk_rows * widest))
        self._compressor: Any = None
        if codec == "lz4":
            self._compressor = BloscCodec(cname="lz4", clevel=level, shuffle="shuffle")
        elif codec == "zstd":
            self._compressor = BloscCodec(cname="zstd", clevel=level, shuffle="shuffle")

    def run(self) -> None:
        """Create the arrays, append everything."""
        arrays, distinct = self._made, len(self._made)
        every = (arrays[number % distinct] for number in range(self._batches))
        rows = self._shard_rows or self._chunk_rows
        group = zarr.open_group(str(self._path), mode="w")
        columns_ = []
        for number, array in enumerate(arrays[0].values()):
            rest = array.shape[1:]
            columns_.append(
                group.create_array(
                    f"column_{number}",
                    shape=(0, *rest),
                    dtype=array.dtype,
                    chunks=(self._chunk_rows, *rest),
                    shards=(self._shard_rows, *rest) if self._shard_rows else None,
                    compressors=self._compressor,
                    fill_value=math.nan if array.dtype.kind == "f" else 0,
                )
            )
        for part in gathered(every, rows):
            for column, array in zip(columns_, part.values(), strict=True):
                column.append(array)
        sync(self._path)
