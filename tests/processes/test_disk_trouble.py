"""A file that cannot grow: what the caller hears, and what a reader finds."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest

import shmstore

MIB = 2**20
ROWS = 100_000


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_write_that_fails_is_one_line_and_shows_no_row_that_was_not_put(
    tmp_path: Path, compression: str
) -> None:
    storage = shmstore.HDF5Storage(output_dir=tmp_path, compression=compression, strings="packed").start()
    # The kernel refuses the writer's file beyond this, in the middle of whatever it writes then.
    resource.prlimit(storage.writer_pid, resource.RLIMIT_FSIZE, (12 * MIB + 4321, 12 * MIB + 4321))
    noise = np.random.default_rng(1)
    errors = []
    try:
        for start in range(0, 400 * ROWS, ROWS):
            numbers = np.arange(start, start + ROWS)
            columns = {
                "number": numbers,
                "noise": noise.integers(0, 2**62, ROWS),
                "text": numbers.astype(str),
            }
            storage.write_batch("a", pa.record_batch(columns))
    except shmstore.StorageError as error:
        errors.append(error)
    with pytest.raises(shmstore.StorageError) as caught:
        storage.close()
    errors.append(caught.value)
    for error in errors:
        assert error.errno == errno.EFBIG
        assert "\n" not in str(error)
        assert "ulimit" in str(error)
    assert storage.state == "broken"
    with h5py.File(storage.path, "r", swmr=True) as file:
        numbers = file["a/number"][:]
        assert len(numbers) > 0
        assert (numbers == np.arange(len(numbers))).all()
        assert (file["a/noise"][:] != 0).all()
    table = shmstore.read(storage.path, "a")
    assert (
        table["number"].to_pylist() == table["text"].cast(pa.int64()).to_pylist() == list(range(len(table)))
    )
