"""The sample: the first part of the user's data, kept as an Arrow IPC stream that every process can map.

Bounded, whatever is read. It knows neither recordings nor codecs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from shmstore.sources.files import InputError, Source

#: At least 16 chunks of 4 MiB, the largest that is tried; small beside any machine's memory.
SAMPLE_BYTES = 64 << 20
#: Batches beyond this are cut, as a producer would have to that puts them into a small ring.
_BATCH_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """What is recorded again and again; a `shmstore.bench.streams.Stream`, too.

    Attributes
    ----------
    path : Path
        The Arrow IPC stream.
    name, kind, stem : str
        What it was taken from: see `shmstore.sources.files.Source`.
    rows, nbytes, count : int
        How much it is: rows, bytes of the columns, batches.
    whole : bool
        Whether it is all there was.
    """

    path: Path
    name: str
    kind: str
    stem: str
    rows: int
    nbytes: int
    count: int
    whole: bool

    @property
    def schema(self) -> pa.Schema:
        """The schema of every batch."""
        return self.batches()[0].schema

    def batches(self) -> list[pa.RecordBatch]:
        """Return the batches, over the mapped file."""
        return mapped_batches(self.path)

    def to_dict(self) -> dict[str, Any]:
        """Return plain, JSON-ready values; its path is of this run only and left out."""
        return {key: value for key, value in asdict(self).items() if key != "path"}


def take_sample(
    source: Source, path: Path, most_bytes: int = SAMPLE_BYTES, stopped: Callable[[], bool] = lambda: False
) -> Sample:
    """Copy the beginning of a source.

    Parameters
    ----------
    source
        An open source; it is read as far as needed.
    path
        Where the sample goes: a new file.
    most_bytes
        Reading ends with the batch that brings it this far.
    stopped
        Asked after each batch; once true, the sample ends there.

    Raises
    ------
    InputError
        The source holds no rows, or is damaged before so many bytes.
    """
    rows = nbytes = count = 0
    whole = True
    with pa.OSFile(os.fsencode(path), "wb") as file, pa.ipc.new_stream(file, source.schema) as writer:
        for batch in source.batches():
            for piece in _pieces(batch):
                writer.write_batch(piece)
                rows += piece.num_rows
                nbytes += piece.nbytes
                count += 1
            if nbytes >= most_bytes or stopped():
                whole = False
                break
    if not rows:
        raise InputError(f"{source.name}: holds no rows: there is nothing to tune for")
    return Sample(path, source.name, source.kind, source.stem, rows, nbytes, count, whole)


def mapped_batches(path: Path) -> list[pa.RecordBatch]:
    """Return a sample's batches, over the mapped file."""
    with pa.ipc.open_stream(pa.memory_map(os.fsencode(path).decode())) as reader:
        return list(reader)


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    row_bytes = max(1, batch.nbytes // max(1, batch.num_rows))
    rows = max(1, _BATCH_BYTES // row_bytes)
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)
