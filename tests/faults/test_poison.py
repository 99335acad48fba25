"""Batches that kill every writer that takes them: kept aside, while everything else is recorded."""

from __future__ import annotations

import os
from pathlib import Path

import commandline
import h5py
import numpy as np
import pyarrow as pa
import pytest

import shmstore
from shmstore import HDF5Storage

pytestmark = pytest.mark.crash

ROWS, BATCHES = 500, 30
MAGIC = 0x600DF00DDEADBEEF - 2**63

#: Python looks for a module of this name at its start: so the tests get into the writer's process.
TRAP = "sitecustomize.py"

IN_TAKING = f"""
import os, sys
if "-c" in sys.argv:
    import pyarrow as pa, pyarrow.compute as pc
    import shmstore.assembly
    encode = shmstore.assembly.encode
    def encode_or_die(node, values, intake):
        if pa.types.is_int64(values.type) and pc.any(pc.equal(values, {MAGIC})).as_py():
            os.kill(os.getpid(), 9)
        return encode(node, values, intake)
    shmstore.assembly.encode = encode_or_die
"""

IN_A_CODEC_THREAD = f"""
import os, sys
if "-c" in sys.argv:
    import shmstore.pipeline
    run = shmstore.pipeline._Job.run
    def run_or_die(job):
        if ({MAGIC}).to_bytes(8, "little", signed=True) in job.chunk.tobytes():
            os.kill(os.getpid(), 9)
        run(job)
    shmstore.pipeline._Job.run = run_or_die
"""


def arm(folder: Path, trap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every interpreter that is started with ``-c``, as writers are, fall into the trap."""
    folder.mkdir()
    (folder / TRAP).write_text(trap)
    package = str(Path(shmstore.__file__).parent.parent)
    known = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), package, known])))


def numbers(sequence: int, poisons: set[int]) -> pa.RecordBatch:
    column = np.arange(sequence * ROWS, (sequence + 1) * ROWS)
    if sequence in poisons:
        column[ROWS // 2] = MAGIC
    return pa.record_batch({"number": column, "text": column.astype(str)})


@pytest.mark.parametrize(
    ("trap", "poisons"),
    [(IN_TAKING, {7}), (IN_TAKING, {0, 11, 12}), (IN_A_CODEC_THREAD, {7})],
    ids=["one", "several", "codec"],
)
def test_a_batch_that_kills_writers_is_kept_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str, poisons: set[int]
) -> None:
    arm(tmp_path / "trap", trap, monkeypatch)
    out = tmp_path / "out"
    storage = HDF5Storage(output_dir=out, filename="daq.h5", standby=False, chunk_rows=ROWS).start()
    try:
        with storage.producer("innocent") as innocent, storage.producer("guilty", strings="packed") as guilty:
            for sequence in range(BATCHES):
                innocent.put(numbers(sequence, set()))
                guilty.put(numbers(sequence, poisons))
            storage.flush()
    finally:
        with pytest.raises(shmstore.IncompleteFileError) as caught:
            storage.close()
    kept = sorted((out / "daq.h5.quarantine").iterdir())
    assert [path.suffix for path in kept] == [".arrows"] * len(poisons)
    assert str(kept[0]) in str(caught.value)
    assert "3 writers died over it" in str(caught.value)
    for path, sequence in zip(kept, sorted(poisons), strict=True):
        with pa.ipc.open_stream(path.read_bytes()) as stream:
            assert stream.read_all().equals(pa.Table.from_batches([numbers(sequence, poisons)]))
    assert storage.state == "partial"
    assert len(storage.restarts) >= 3 * len(poisons)
    stats = storage.final_stats.instruments["guilty"]
    assert stats.rejected == stats.quarantined == ROWS * len(poisons)
    assert stats.committed == ROWS * (BATCHES - len(poisons))
    assert stats.accepted == ROWS * BATCHES
    expected = np.concatenate(
        [
            numbers(sequence, poisons)["number"].to_numpy()
            for sequence in range(BATCHES)
            if sequence not in poisons
        ]
    )
    with h5py.File(storage.path) as file:
        assert file.attrs["state"] == "partial"
        assert (file["guilty/number"][:] == expected).all()
        assert (file["innocent/number"][:] == np.arange(ROWS * BATCHES)).all()
    assert (
        shmstore.read(storage.path, "guilty")["text"].cast(pa.int64()).to_numpy().tolist()
        == expected.tolist()
    )
    assert {path.name for path in out.iterdir()} == {"daq.h5", "daq.h5.quarantine"}


def test_what_was_kept_aside_can_be_ingested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as armed:
        arm(tmp_path / "trap", IN_TAKING, armed)
        storage = HDF5Storage(output_dir=tmp_path / "out", standby=False).start()
        storage.write_batch("guilty", numbers(0, {0}))
        with pytest.raises(shmstore.IncompleteFileError):
            storage.close()
    (kept,) = storage.path.with_name(f"{storage.path.name}.quarantine").iterdir()
    result = commandline.shmstore("ingest", kept, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    path = tmp_path / result.stdout.splitlines()[-1]
    with h5py.File(path) as file:
        (ingested,) = (group for group in file.values() if "number" in group)
        assert ingested["number"][:].tolist() == numbers(0, {0})["number"].to_pylist()
