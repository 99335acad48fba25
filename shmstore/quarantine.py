"""Quarantine: batches that the file could not take, kept whole as Arrow IPC files beside it.

They are counted and reported by the writer; here they are only put down safely.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from shmstore.disk import sync_data, sync_folder
from shmstore.errors import storage_error
from shmstore.names import link_name
from shmstore.steps import step


class Quarantine:
    """The folder ``<recording>.quarantine``, made with its first batch.

    Parameters
    ----------
    recording
        Path of the HDF5 file.
    """

    def __init__(self, recording: Path) -> None:
        self.folder = recording.with_name(recording.name + ".quarantine")

    def keep(self, instrument_id: str, ring: int, sequence: int, batch: pa.RecordBatch) -> Path:
        """Write a batch as an Arrow IPC file, synced to disk, and return its path.

        A writer that follows another may keep the same batch again: it goes by its ring's number and its own,
        and is kept once. Nothing else is ever overwritten.

        Raises
        ------
        StorageError
            The folder cannot be written to.
        """
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return self._put(instrument_id, f"{ring}-{sequence:06d}.arrow", sink.getvalue())

    def keep_stream(self, instrument_id: str, ring: int, sequence: int, parts: Iterable[Any]) -> Path:
        """Write a batch as an Arrow IPC stream whose bytes are given, unseen, and return its path."""
        return self._put(instrument_id, f"{ring}-{sequence:06d}.arrows", b"".join(parts))

    def keep_bytes(self, instrument_id: str, ring: int, sequence: int, body: memoryview) -> Path:
        """Write the body of a slot that holds no readable batch, as it is, and return its path."""
        return self._put(instrument_id, f"{ring}-{sequence:06d}.slot", body)

    def _put(self, instrument_id: str, ending: str, data: bytes | memoryview | pa.Buffer) -> Path:
        first = path = self.folder / f"{link_name(instrument_id)}-{ending}"
        beside = path.with_name(path.name + ".part")
        number = 1
        try:
            self.folder.mkdir(exist_ok=True)
            # A recording of the same name may have been here before, whose file somebody took away.
            while path.exists() and path.read_bytes() != bytes(data):
                number += 1
                path = first.with_stem(f"{first.stem}~{number}")
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                sync_data(file.fileno())
            step("writer.quarantine_written")
            beside.rename(path)
            sync_folder(self.folder)  # or a power cut takes the name
        except OSError as error:
            raise storage_error(error, f"keep a refused batch of {instrument_id!r}", path) from None
        return path
