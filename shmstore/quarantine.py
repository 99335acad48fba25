"""Quarantine: batches that the file could not take, kept whole as Arrow IPC files beside it.

They are counted and reported by the writer; here they are only put down safely.
"""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa

from shmstore.errors import storage_error
from shmstore.names import link_name


class Quarantine:
    """The folder ``<recording>.quarantine``, made with its first batch.

    Parameters
    ----------
    recording
        Path of the HDF5 file.
    """

    def __init__(self, recording: Path) -> None:
        self.folder = recording.with_name(recording.name + ".quarantine")
        self._count = 0

    def keep(self, instrument_id: str, batch: pa.RecordBatch) -> Path:
        """Write a batch as an Arrow IPC file, synced to disk, and return its path.

        Raises
        ------
        StorageError
            The folder cannot be written to.
        """
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return self._put(instrument_id, "arrow", sink.getvalue())

    def keep_bytes(self, instrument_id: str, body: memoryview) -> Path:
        """Write the body of a slot that holds no readable batch, as it is, and return its path."""
        return self._put(instrument_id, "slot", body)

    def _put(self, instrument_id: str, suffix: str, data: memoryview | pa.Buffer) -> Path:
        path = self.folder / f"{link_name(instrument_id)}-{self._count:06d}.{suffix}"
        try:
            self.folder.mkdir(exist_ok=True)
            with path.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise storage_error(error, f"keep a refused batch of {instrument_id!r}", path) from None
        self._count += 1
        return path
