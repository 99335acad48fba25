"""pyarrow as a peer: Parquet and Arrow IPC files, of any type that Arrow has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from shmstore.bench.harness import FileRun, sync
from shmstore.bench.streams import MIB, Stream, batch_bytes, made

#: A row group holds so many rows, or so many bytes, whichever comes first.
_GROUP_ROWS, _GROUP_BYTES = 1 << 20, 64 * MIB
#: Batches smaller than that are joined before they become a message.
_MESSAGE_BYTES = MIB


class _ArrowFile(FileRun):
    """Batches joined to tables of a size that suits the format."""

    def __init__(
        self, label: str, stream: Stream, batches: int, output: Path, per_batch: float, codec: str
    ) -> None:
        super().__init__(
            label, batches * per_batch, batches * batch_bytes(stream), output / label.replace(" ", "-")
        )
        self._batches = batches
        self._schema = stream.schema
        self._codec = codec
        self._made = made(stream)

    def _tables(self, full: Callable[[int, int], bool]) -> Iterator[pa.Table]:
        """Yield all batches as tables, one whenever ``full`` says so of its rows and bytes."""
        held: list[pa.RecordBatch] = []
        rows = nbytes = 0
        for number in range(self._batches):
            batch = self._made[number % len(self._made)]
            held.append(batch)
            rows, nbytes = rows + batch.num_rows, nbytes + batch.nbytes
            if full(rows, nbytes):
                yield pa.Table.from_batches(held, self._schema)
                held, rows, nbytes = [], 0, 0
        if held:
            yield pa.Table.from_batches(held, self._schema)


class ParquetFile(_ArrowFile):
    """Parquet with pyarrow's defaults, in row groups of a million rows or 64 MiB.

    Parameters
    ----------
    stream
        What is written.
    batches
        How many batches.
    output
        Folder of the file.
    per_batch
        What one batch counts in the case's unit.
    codec
        ``"zstd"``, ``"lz4"`` or ``"none"``.
    """

    def __init__(self, stream: Stream, batches: int, output: Path, per_batch: float, codec: str) -> None:
        super().__init__("Parquet", stream, batches, output, per_batch, codec)

    def run(self) -> None:
        """Create the file, write every row group, close."""
        writer = pa.parquet.ParquetWriter(self._path, self._schema, compression=self._codec)
        with writer:
            for table in self._tables(lambda rows, nbytes: rows >= _GROUP_ROWS or nbytes >= _GROUP_BYTES):
                writer.write_table(table, row_group_size=_GROUP_ROWS)
        sync(self._path)


class IpcFile(_ArrowFile):
    """An Arrow IPC file; batches of less than 1 MiB are joined first.

    Parameters
    ----------
    stream, batches, output, per_batch, codec
        As for `ParquetFile`.
    """

    def __init__(self, stream: Stream, batches: int, output: Path, per_batch: float, codec: str) -> None:
        super().__init__("Arrow IPC", stream, batches, output, per_batch, codec)

    def run(self) -> None:
        """Create the file, write every message, close."""
        compression: Any = None if self._codec == "none" else self._codec
        options = pa.ipc.IpcWriteOptions(compression=compression, unify_dictionaries=True)
        with (
            pa.OSFile(str(self._path), "wb") as file,
            pa.ipc.new_file(file, self._schema, options=options) as writer,
        ):
            for table in self._tables(lambda _, nbytes: nbytes >= _MESSAGE_BYTES):
                writer.write_table(table if len(table.columns[0].chunks) == 1 else table.combine_chunks())
        sync(self._path)
