"""Cases of a damaged HDF5 file, finished or live: opened, described, read and verified."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import pyarrow as pa
from fuzz.body_cases import column_of_each_kind
from fuzz.damage import Damage, damaged
from fuzz.subject import serve
from processes.rows import batch

import shmstore
from shmstore import opening
from shmstore.errors import ShmStoreError
from shmstore.verdict import VerifyReport
from shmstore.verification import verify

#: How recordings are made that are then damaged.
MADE: dict[str, dict[str, Any]] = {
    "packed": {"strings": "packed", "compression": "gzip"},
    "plain": {"strings": "vlen", "compression": "none"},
    "live": {"strings": "packed", "compression": "zstd"},
}
_NESTED = ("list", "struct", "dictionary", "dense", "decimal", "fixed_list")
_BATCHES, _ROWS = 8, 90


def record(folder: Path) -> None:
    """Record a file of each kind; of the live one, what is there while it is being recorded."""
    kinds = column_of_each_kind(12)
    nested = pa.record_batch({name: kinds[name] for name in _NESTED})
    for kind, settings in MADE.items():
        with shmstore.HDF5Storage(
            output_dir=folder, filename=f"recorded-{kind}.h5", ring_bytes="256KiB", chunk_rows=256, **settings
        ) as storage:
            storage.set_metadata("run", kind)
            for sequence in range(_BATCHES):
                storage.write_batch("rows", batch(0, sequence, _ROWS))
                storage.write_batch("nested", nested)
            storage.flush()
            if kind == "live":
                shutil.copy(storage.path, folder / "live.h5")
        if kind != "live":
            storage.path.rename(folder / f"{kind}.h5")


class Files:
    """The files as they were whole, and how they are damaged."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._whole = {kind: (folder / f"{kind}.h5").read_bytes() for kind in MADE}
        self._regions = {kind: _regions(folder / f"{kind}.h5") for kind in MADE}

    def damaged(self, damages: Sequence[Damage], kind: str) -> Path:
        """Make a damaged file of one of them, in the place of the last one."""
        path = self._folder / "damaged.h5"
        path.unlink(missing_ok=True)  # HDF5 knows files by their inode
        path.write_bytes(damaged(self._whole[kind], damages, self._regions[kind]))
        return path


class Cases:
    """The files as they were whole, and what was in them."""

    def __init__(self, folder: Path) -> None:
        # A writer may always be just adding something; here nobody does, and each look would wait for it.
        opening.WINDOW_S = 0.01
        self._files = Files(folder)
        self._tables = {kind: self._read(folder / f"{kind}.h5") for kind in MADE}
        self._protected = {kind: _protected(folder / f"{kind}.h5") for kind in MADE}
        for kind in MADE:
            assert verify(folder / f"{kind}.h5").ok

    def __call__(self, damages: Sequence[Damage], kind: str) -> str | None:
        """Try one, of one of the files; all in this process, as starting another takes longer than a case."""
        path = self._files.damaged(damages, kind)
        errors: list[str] = []
        found = self._read(path, errors)
        report: VerifyReport | None = None
        try:
            report = verify(path)
            json.dumps(report.to_dict())
        except ShmStoreError as error:
            errors.append(str(error))
        try:
            json.dumps(shmstore.describe(path).to_dict())
        except ShmStoreError as error:
            errors.append(str(error))
        # Until it is finished a file has no checksums: what was written over a chunk may be read.
        if report is not None and report.ok and kind != "live":
            whole = self._tables[kind]
            wrong = [
                name
                for name, columns in self._protected[kind].items()
                if name not in found or not found[name].select(columns).equals(whole[name].select(columns))
            ]
            assert found.keys() == whole.keys()
            assert not wrong, f"wrong in {wrong}, and verify says ok: {errors}"
        if report is not None:
            errors += report.problems
        return errors[0] if errors else None

    def _read(self, path: Path, errors: list[str] | None = None) -> dict[str, pa.Table]:
        """Return what can be read, and gather why the rest cannot."""
        tables = {}
        try:
            with shmstore.open(path) as recording:
                for name in recording:
                    try:
                        tables[name] = recording[name].read()
                        tables[name].validate(full=True)
                    except ShmStoreError as error:
                        if errors is None:
                            raise
                        errors.append(str(error))
        except ShmStoreError as error:
            if errors is None:
                raise
            errors.append(str(error))
        return tables


def _protected(path: Path) -> dict[str, list[int]]:
    """Return for each instrument the columns of which all is under checksums: not text of variable length."""
    with shmstore.open(path) as recording:
        layouts = {name: recording[name].layout for name in recording}
    return {
        name: [column.index for column in layout.columns if not any(one.variable for one in column.streams)]
        for name, layout in layouts.items()
        if layout is not None
    }


def _regions(path: Path) -> list[tuple[int, int]]:
    """Return where chunks are not, that is, HDF5's own structures; two chunks; and all of it."""
    chunks: list[tuple[int, int]] = []

    def look(name: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset) and found.chunks:
            found.id.chunk_iter(lambda info: chunks.append((info.byte_offset, info.byte_offset + info.size)))

    with h5py.File(path, "r", swmr=path.name == "live.h5", locking=False) as file:
        file.visititems(look)
    chunks.sort()
    size = path.stat().st_size
    edges = [0, *(edge for chunk in chunks for edge in chunk), size]
    between = [
        (at, min(at + 2048, stop))
        for start, stop in zip(edges[::2], edges[1::2], strict=True)
        for at in range(start, stop, 2048)
    ]
    return [*between, *chunks[:: max(1, len(chunks) // 8)], (0, size)]


if __name__ == "__main__":
    serve(Cases(Path(sys.argv[1])))
