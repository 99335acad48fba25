"""A recording whose journal is gone: as much of it as the file alone can tell is made whole, or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest
from children import Child
from wrecks import BATCH, ROWS, kill_both, wreck

import shmstore
from shmstore import HDF5Storage
from shmstore.chronicle import Chronicle
from shmstore.recovery import recover
from shmstore.recoveryfolder import recovery_folder
from shmstore.salvage import GONE
from shmstore.superblock import lookup3

#: More than a chunk of a mask, and of fixed-size columns several.
MANY = 9000


def columns(rows: int = MANY) -> dict[str, pa.Array]:
    numbers = range(rows)
    return {
        "n": pa.array(numbers, pa.int64()),
        "small": pa.array([row % 100 for row in numbers], pa.int8()),
        "x": pa.array([None if row % 7 == 0 else row / 3 for row in numbers]),
        "text": pa.array([f"row {row}" for row in numbers]),
        "packed": pa.array([f"row {row}" for row in numbers]),
        "list": pa.array([[row] * (row % 3) for row in numbers], pa.list_(pa.int32())),
        "deep": pa.array([[[f"{row}"]] for row in numbers]),
        "frames": pa.array([[[row], []] for row in numbers], pa.list_(pa.list_(pa.int32()), 2)),
        "pair": pa.array([{"a": row, "b": None} for row in numbers]),
        "label": pa.array([f"label {row % 5}" for row in numbers]).dictionary_encode(),
        "run": pa.RunEndEncodedArray.from_arrays(
            pa.array([*range(100, rows, 100), rows], pa.int32()), pa.array(range(-(-rows // 100)))
        ),
        "either": pa.UnionArray.from_dense(
            pa.array([row % 2 for row in numbers], pa.int8()),
            pa.array([row // 2 for row in numbers], pa.int32()),
            [pa.array(range(-(-rows // 2))), pa.array([f"{row}" for row in range(-(-rows // 2))])],
        ),
    }


def runs(rows: int) -> dict[str, pa.Array]:
    """Columns of which one ends within a run of the other."""
    ends = pa.array([*range(3, rows, 3), rows], pa.int32())
    run = pa.RunEndEncodedArray.from_arrays(ends, pa.array(range(len(ends))))
    return {"small": pa.array([row % 100 for row in range(rows)], pa.int8()), "run": run}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a file as a kill leaves it whose columns differ in length."""
    left = tmp_path_factory.mktemp("left")
    options = {"chunk_bytes": "2KiB", "compression": "zstd"}
    packed = {"columns": {"packed": {"strings": "packed"}}}
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="shmstore-test-") as shm_dir,
        HDF5Storage(
            output_dir=tmp_path_factory.mktemp("recorded"),
            shm_dir=shm_dir,
            filename="daq.h5",
            ring_bytes="8MiB",
            auto_flush_interval_secs=0,
            instruments={"cam": options | packed, "runs": options},
        ) as storage,
    ):
        whole, short = pa.record_batch(columns()), pa.record_batch(runs(2400))
        storage.write_batch("cam", whole.slice(0, 5000))
        storage.write_batch("bare", pa.RecordBatch.from_struct_array(pa.array([{}] * 5, pa.struct([]))))
        storage.set_instrument_metadata("silent", "gain", 4)
        storage.write_batch("runs", short.slice(0, 3))
        storage.flush()
        storage.write_batch("runs", short.slice(3))
        storage.write_batch("cam", whole.slice(5000))
        while storage.stats().committed < MANY + 2400 + 5:
            time.sleep(0.01)
        shutil.copytree(recovery_folder(storage.path), left / "daq.h5.recovery")
        shutil.copy(storage.path, left)
    return left


@pytest.fixture
def left(recorded: Path, tmp_path: Path) -> Path:
    return shutil.copytree(recorded, tmp_path / "left") / "daq.h5"


def check(path: Path) -> int:
    """Check that all columns have the rows that were put first, and how it is told; returns how many."""
    with h5py.File(path) as file:
        assert file.attrs["state"] == "partial"
        rows = int(file["cam"].attrs["NROWS"])
        assert file["cam/n"][:].tolist() == list(range(rows))
        assert len(file["cam/run/RUN_ENDS"]) == -(-rows // 100)
        assert len(file["cam/packed/CHARS"]) == file["cam/packed/OFFSETS"][-1]
        assert file["runs/run/RUN_ENDS"][-2:].tolist() == [2046, 2048]
    assert shmstore.read(path, "runs")["run"].to_pylist() == runs(2400)["run"].to_pylist()[:2048]
    found = shmstore.read(path, "cam")
    expected = pa.table(columns()).slice(0, rows)
    for name in expected.column_names:
        assert found[name].to_pylist() == expected[name].to_pylist(), name
    return rows


def test_what_the_file_alone_holds_is_made_whole(left: Path, shared_folder: Path) -> None:
    with h5py.File(left, "r", libver="v110", swmr=True) as file:
        lengths = {len(file["cam"][name]) for name in ("n", "small", "x", "text", "pair/a")}
    assert len(lengths) > 1
    before = left.read_bytes()
    shutil.rmtree(recovery_folder(left))
    report = recover(left, shm_dir=shared_folder)
    rows = check(left)
    assert 5000 <= rows <= min(lengths) < MANY
    assert (report.state, report.source, report.drained) == ("partial", "file", 0)
    assert report.rows["cam"] == rows
    assert report.problems == (GONE,)
    verdict = shmstore.verify(left)
    assert (verdict.problems, verdict.notes) == ((f"accounting: {GONE}",), ())
    assert report.kept == str(left.with_name("daq.h5.damaged") / "daq.h5")
    assert Path(report.kept).read_bytes() == before
    again = recover(left, shm_dir=shared_folder)
    assert (again.source, again.state) == ("nothing", "partial")


@pytest.mark.parametrize("place", [3, 33, -1], ids=["signature", "identity", "a record behind"])
def test_a_journal_that_is_damaged_is_as_good_as_gone(left: Path, shared_folder: Path, place: int) -> None:
    journal = recovery_folder(left) / "journal"
    if place < 0:
        place = Chronicle(journal).operations[0].start + 2
    data = bytearray(journal.read_bytes())
    data[place] ^= 1
    journal.write_bytes(data)
    report = recover(left, shm_dir=shared_folder)
    check(left)
    assert (report.source, report.problems[0]) == ("file", GONE)
    assert sorted(entry.name for entry in left.parent.iterdir()) == ["daq.h5", "daq.h5.damaged"]
    kept = left.with_name("daq.h5.damaged") / "daq.h5.recovery"
    assert (kept / "journal").read_bytes() == bytes(data)


def test_a_file_that_only_its_writer_could_open_is_mended(left: Path, shared_folder: Path) -> None:
    """As when it was killed in the moment in which objects are added."""
    data = bytearray(left.read_bytes())
    data[11] = 1
    data[44:48] = lookup3(data[:44]).to_bytes(4, "little")
    left.write_bytes(data)
    shutil.rmtree(recovery_folder(left))
    with pytest.raises(shmstore.IncompleteFileError, match="killed doing so"):
        shmstore.open(left)
    assert recover(left, shm_dir=shared_folder).source == "file"
    check(left)


def test_without_a_file_there_is_nothing_to_make_whole(left: Path, shared_folder: Path) -> None:
    left.unlink()
    (recovery_folder(left) / "journal").write_text("no journal")
    with pytest.raises(shmstore.IncompleteFileError, match="nothing to recover it from"):
        recover(left, shm_dir=shared_folder)
    assert (recovery_folder(left) / "journal").read_text() == "no journal"


def test_a_recording_that_never_had_a_journal(output_dir: Path, shared_folder: Path) -> None:
    with Child(
        "import shmstore",
        "from wrecks import BATCH",
        f"storage = shmstore.HDF5Storage(output_dir={str(output_dir)!r}, shm_dir={str(shared_folder)!r},",
        "    filename='daq.h5', ring_bytes='256KiB', recoverable=False).start()",
        "storage.write_batch('x', BATCH)",
        "storage.flush()",
        "say(storage.writer_pid)",
        "wait()",
        also=Path(__file__).parent,
    ) as owner:
        kill_both(owner, int(owner.hear()))
    report = recover(output_dir / "daq.h5", shm_dir=shared_folder)
    assert (report.source, report.rows, report.problems) == ("file", {"x": ROWS}, (GONE,))
    assert shmstore.read(output_dir / "daq.h5", "x").equals(pa.Table.from_batches([BATCH]))


def test_a_journal_of_a_newer_version_is_not_taken_for_damaged(left: Path, shared_folder: Path) -> None:
    from shmstore.signature import sign

    journal = recovery_folder(left) / "journal"
    data = journal.read_bytes()
    journal.write_bytes(sign(b"SHMJRNAL", (2, 0)) + data[16:])
    before = left.read_bytes()
    with pytest.raises(shmstore.IncompleteFileError, match="or a newer one"):
        recover(left, shm_dir=shared_folder)
    assert left.read_bytes() == before
    assert journal.exists()


@pytest.mark.parametrize("cut", [0.5, 0.02])
def test_a_file_that_does_not_hold_together_is_refused_and_left_alone(
    left: Path, shared_folder: Path, cut: float
) -> None:
    shutil.rmtree(recovery_folder(left))
    data = left.read_bytes()
    start = int(len(data) * cut)
    noise = np.random.default_rng(1).integers(0, 256, len(data) // 3, np.uint8).tobytes()
    left.write_bytes(data[:start] + noise[: len(data) - start])
    before = left.read_bytes()
    with pytest.raises(shmstore.IncompleteFileError) as caught:
        recover(left, shm_dir=shared_folder)
    assert "has no whole journal" in str(caught.value)
    assert f"a copy of {left.name}.recovery" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left.read_bytes() == before
    assert [entry.name for entry in left.parent.iterdir()] == ["daq.h5"]


def test_what_else_is_known_to_be_lost_is_told_and_kept(output_dir: Path, shared_folder: Path) -> None:
    wrecked = wreck(output_dir, shared_folder, "put", "flush", "put", "stop", "put", "put")
    shutil.rmtree(recovery_folder(wrecked.path))
    report = recover(wrecked.path, shm_dir=shared_folder)
    assert (report.source, report.state) == ("file", "partial")
    assert report.problems[0] == GONE
    waiting = report.problems[1]
    assert "were still in rings" in waiting
    rows = report.rows["x"]
    assert rows >= ROWS
    lost = [problem for problem in report.problems[2:] if problem.endswith("are not in the file")]
    assert rows + sum(int(text.split()[0]) for text in [waiting, *lost]) == 4 * ROWS
    assert shmstore.read(wrecked.path, "x").equals(pa.Table.from_batches([BATCH] * 4).slice(0, rows))
    kept = wrecked.path.with_name(wrecked.path.name + ".damaged")
    rings = list(kept.glob("*.memory/shmstore-wreck/ring-*"))
    assert len(rings) == 1
    assert not wrecked.folder.exists()


@pytest.mark.parametrize("size", [0, 5000])
def test_a_ring_that_cannot_be_read_is_told_and_kept(
    output_dir: Path, shared_folder: Path, size: int
) -> None:
    wrecked = wreck(output_dir, shared_folder, "put", "flush", "stop", "put")
    shutil.rmtree(recovery_folder(wrecked.path))
    (ring,) = wrecked.folder.glob("ring-*")
    os.truncate(ring, size)
    report = recover(wrecked.path, shm_dir=shared_folder)
    assert (report.source, report.rows["x"]) == ("file", ROWS)
    assert report.problems[1].startswith("a ring cannot be read, it is kept in")
    kept = wrecked.path.with_name(wrecked.path.name + ".damaged")
    assert [path.stat().st_size for path in kept.glob("*.memory/shmstore-wreck/ring-*")] == [size]
