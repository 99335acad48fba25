"""Damage on the disk: what is lost is named by instrument, column and rows, and all else is recovered."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import pyarrow as pa
import pytest

import shmstore
from shmstore import HDF5Storage
from shmstore.chronicle import Chronicle
from shmstore.journal import INLINE, Journal
from shmstore.leftovers import find_files
from shmstore.recovery import RecoveryReport, recover
from shmstore.recoveryfolder import recovery_folder

ROWS = 5000  # more than a chunk of a mask
LOST = "what was accepted after the last durable flush went with the machine's memory"
N, READ = "instrument 'cam', column 'n'", "read as the fill value"


def columns() -> dict[str, pa.Array]:
    rows = range(ROWS)
    return {
        "n": pa.array(rows, pa.int64()),
        "x": pa.array([None if row % 7 == 0 else row / 3 for row in rows]),
        "text": pa.array([f"row {row}" for row in rows]),
        "packed": pa.array([f"row {row:04}" for row in rows]),
        "list": pa.array([[row, row] for row in rows], pa.list_(pa.int32())),
        "deep": pa.array([[[f"{row:04}"]] for row in rows]),
        "frames": pa.array([[[row], []] for row in rows], pa.list_(pa.list_(pa.int32()), 2)),
        "pair": pa.array([{"a": row} for row in rows]),
        "label": pa.array([f"label {row % 5}" for row in rows]).dictionary_encode(),
        "run": pa.RunEndEncodedArray.from_arrays(
            pa.array(range(2, ROWS + 2, 2), pa.int32()), pa.array(range(ROWS // 2))
        ),
    }


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what a power cut would have left of a recording."""
    left = tmp_path_factory.mktemp("left")
    options = {"columns": {"packed": {"strings": "packed"}}, "chunk_bytes": "2KiB", "compression": "zstd"}
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="shmstore-test-") as shm_dir,
        HDF5Storage(
            output_dir=tmp_path_factory.mktemp("recorded"),
            shm_dir=shm_dir,
            filename="daq.h5",
            ring_bytes="4MiB",
            auto_flush_interval_secs=0,
            instruments={"cam": options},
        ) as storage,
    ):
        storage.write_batch("cam", pa.record_batch(columns()))
        storage.write_batch("other", pa.record_batch({"n": list(range(5))}))
        storage.flush()
        shutil.copytree(recovery_folder(storage.path), left / "daq.h5.recovery")
        shutil.copy(storage.path, left)
    return left


@dataclass(frozen=True)
class Left:
    """What is left of a recording, to be damaged."""

    path: Path
    chronicle: Chronicle

    def number(self, dataset: str) -> int:
        return [told.path for told in self.chronicle.datasets].index(f"cam/{dataset}")

    def spoil(self, dataset: str, chunk: int) -> None:
        """Change a byte of a chunk, or of the items that were written at once."""
        number = self.number(dataset)
        journal, place = self.chronicle.path, -1
        if self.chronicle.datasets[number].stream.variable:
            place = self.chronicle.items()[number][chunk].offset + 3
        else:
            entry = self.chronicle.chunks()[number][chunk]
            assert entry["reserved"] != INLINE
            journal, place = self.path, int(entry["offset"] + entry["length"] // 2)
        with journal.open("r+b") as file:
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 0x40]))

    def recover(self, shm_dir: Path) -> RecoveryReport:
        return recover(self.path, shm_dir=shm_dir)


@pytest.fixture
def left(recorded: Path, tmp_path: Path) -> Left:
    path = shutil.copytree(recorded, tmp_path / "left") / "daq.h5"
    return Left(path, Chronicle(recovery_folder(path) / "journal"))


def check_others(path: Path, *damaged: str) -> pa.Table:
    """Check that all other columns are as they were put; returns the table."""
    found = shmstore.read(path, "cam")
    for name, values in columns().items():
        if name not in damaged:
            assert found[name].combine_chunks().to_pylist() == values.to_pylist(), name
    assert shmstore.read(path, "other")["n"].to_pylist() == list(range(5))
    return found


def test_the_rows_of_a_damaged_chunk_are_named_and_all_else_is_there(left: Left, shared_folder: Path) -> None:
    left.spoil("n", 3)
    left.spoil("n", 4)
    left.spoil("n", 8)
    before = left.path.read_bytes()
    report = left.recover(shared_folder)
    assert (report.state, report.ok, report.rows) == ("partial", False, {"cam": ROWS, "other": 5})
    assert report.problems == (
        LOST,
        f"{N}: rows 768 to 1279 are damaged on the disk (items 768 to 1279 of 'cam/n'); they {READ}",
        f"{N}: rows 2048 to 2303 are damaged on the disk (items 2048 to 2303 of 'cam/n'); they {READ}",
    )
    numbers = list(range(ROWS))
    numbers[768:1280] = [0] * 512
    numbers[2048:2304] = [0] * 256
    assert check_others(left.path, "n")["n"].to_pylist() == numbers
    with h5py.File(left.path) as file:
        assert file.attrs["state"] == "partial"
        assert file["cam/n"][:].tolist() == numbers
    verdict = shmstore.verify(left.path)
    assert verdict.problems == tuple(f"accounting: {problem}" for problem in report.problems)
    assert verdict.notes == ()
    assert report.kept == str(left.path.with_name("daq.h5.damaged") / "daq.h5")
    assert report.kept in str(report)
    assert Path(report.kept).read_bytes() == before
    assert sorted(entry.name for entry in left.path.parent.iterdir()) == ["daq.h5", "daq.h5.damaged"]
    again = left.recover(shared_folder)
    assert (again.source, again.kept) == ("nothing", None)
    assert [(file.kind, file.recording) for file in find_files(left.path.parent)] == [
        ("damaged", str(left.path))
    ]


def copy_of_session(shm_dir: Path) -> Path:
    """Return a copy of the only session in a folder, which nobody has."""
    (session,) = shm_dir.glob("shmstore-*")
    left = shm_dir / "shmstore-left"
    left.mkdir(mode=0o700)
    for file in session.iterdir():
        if file.is_file():
            shutil.copy(file, left)
    return left


# The first of the sixteen buffers of each column are in use: a sixteenth of the segment.
@pytest.mark.parametrize("share", [None, 0.0, 0.006, 0.02, 0.04, 0.056])
def test_what_is_cut_off_in_shared_memory_concerns_only_its_rows(
    output_dir: Path, shared_folder: Path, tmp_path: Path, share: float | None
) -> None:
    """Unfinished chunks are only there; what was in rings comes behind."""
    options = {"columns": {"packed": {"strings": "packed"}}, "chunk_bytes": "8KiB"}
    whole = pa.record_batch(columns())
    path = tmp_path / "left" / "daq.h5"
    path.parent.mkdir()
    with HDF5Storage(
        output_dir=output_dir,
        shm_dir=shared_folder,
        filename="daq.h5",
        ring_bytes="4MiB",
        auto_flush_interval_secs=0,
        instruments={"cam": options},
    ) as storage:
        storage.write_batch("cam", whole.slice(0, 4500))
        storage.write_batch("other", pa.record_batch({"n": list(range(5))}))
        storage.flush()
        os.kill(storage.writer_pid, signal.SIGSTOP)
        try:
            storage.write_batch("cam", whole.slice(4500))
            left = copy_of_session(shared_folder)
            shutil.copytree(recovery_folder(storage.path), recovery_folder(path))
            shutil.copy(storage.path, path)
        finally:
            os.kill(storage.writer_pid, signal.SIGCONT)
    (left / "recording").write_bytes(os.fsencode(path))
    tails = max(left.glob("tails-*"), key=lambda segment: segment.stat().st_size)
    if share is None:
        tails.unlink()
    else:
        os.truncate(tails, int(tails.stat().st_size * share))
    before = path.read_bytes()
    report = recover(path, shm_dir=shared_folder)
    assert (report.state, report.rows) == ("partial", {"cam": ROWS, "other": 5})
    assert report.kept is None
    assert not path.with_name("daq.h5.damaged").exists()
    assert before != path.read_bytes()
    concerned: dict[str, list[tuple[int, int]]] = {name: [] for name in columns()}
    unreadable = set()
    for problem in report.problems:
        place, _, said = problem.removeprefix("instrument 'cam', column ").partition(": ")
        name = place.strip("'")
        if found := re.match(r"rows (\d+) to (\d+) are gone from shared memory \(", said):
            concerned[name].append((int(found[1]), int(found[2])))
        else:  # the bounds of its dictionaries went too
            assert said.startswith("column 'label' is damaged")
            unreadable.add(name)
    assert any(concerned.values())
    names = [name for name in columns() if name not in unreadable]
    assert set(columns()) - set(names) <= {"label"}
    table = shmstore.read(path, "cam", columns=names)
    assert shmstore.read(path, "other")["n"].to_pylist() == list(range(5))
    for name in names:
        expected, read = columns()[name].to_pylist(), table[name].to_pylist()
        for row in range(ROWS):
            if not any(start <= row <= stop for start, stop in concerned[name]):
                assert read[row] == expected[row], (name, row)
        if not share and name != "text":
            assert read != expected, name
    with shmstore.open(path) as recording:
        account = recording.accounting
    assert account is not None
    assert set(account["problems"]) <= set(report.problems)
    assert not any("are gone" in problem for problem in set(report.problems) - set(account["problems"]))
    assert not left.exists()


#: A chunk of a dataset, its column, and how many rows are concerned.
CASES = [
    ("x", 2, "x", 256),
    ("list/OFFSETS", 1, "list", 257),
    ("list/VALUES", 1, "list", 256),
    ("packed/OFFSETS", 2, "packed", 257),
    ("packed/CHARS", 2, "packed", 256),
    ("deep/VALUES/VALUES/CHARS", 1, "deep", 512),
    ("frames/VALUES/VALUES", 1, "frames", 512),
    ("pair/a", 1, "pair", 256),
    ("label", 4, "label", 512),
    ("run/RUN_ENDS", 1, "run", 514),
    ("run/VALUES", 1, "run", 512),
    ("text", 0, "text", ROWS),
    ("_arrow/validity/1", 0, "x", 4096),
]


@pytest.mark.parametrize(("dataset", "chunk", "column", "rows"), CASES)
def test_damage_to_any_part_of_a_column_concerns_only_its_rows(
    left: Left, shared_folder: Path, dataset: str, chunk: int, column: str, rows: int
) -> None:
    left.spoil(dataset, chunk)
    report = left.recover(shared_folder)
    problem = report.problems[1]
    assert len(report.problems) == 2, report.problems
    place = f"instrument 'cam', column {column!r}: "
    start, stop = (int(word) for word in problem.removeprefix(f"{place}rows ").split()[0:3:2])
    found = check_others(left.path, column)[column].to_pylist()
    expected = columns()[column].to_pylist()
    assert found != expected
    assert found[:start] == expected[:start]
    assert found[stop + 1 :] == expected[stop + 1 :]
    assert stop + 1 - start == rows, problem
    assert shmstore.verify(left.path).state == "partial"


def test_a_column_that_cannot_be_read_any_more_keeps_nothing_else_back(
    left: Left, shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where offsets into a union, or the bounds of dictionaries, are damaged."""
    left.spoil("label", 4)
    monkeypatch.setattr("shmstore.rebuilding._item_before", lambda *_: None)  # codes of -1
    report = left.recover(shared_folder)
    assert len(report.problems) == 3
    assert "column 'label': rows 2048 to 2559 are damaged" in report.problems[1]
    assert "column 'label'" in report.problems[2]
    names = [name for name in columns() if name != "label"]
    found = shmstore.read(left.path, "cam", columns=names)
    assert found["n"].to_pylist() == list(range(ROWS))
    with pytest.raises(shmstore.IncompleteFileError):
        shmstore.read(left.path, "cam", columns=["label"])


def test_what_is_kept_does_not_take_the_place_of_what_was_kept_before(
    left: Left, recorded: Path, shared_folder: Path
) -> None:
    left.spoil("n", 3)
    first = left.recover(shared_folder)
    shutil.copy(recorded / "daq.h5", left.path)
    shutil.copytree(recorded / "daq.h5.recovery", recovery_folder(left.path))
    left.spoil("n", 4)
    second = left.recover(shared_folder)
    folder = left.path.with_name("daq.h5.damaged")
    assert (first.kept, second.kept) == (str(folder / "daq.h5"), str(folder / "daq~2.h5"))
    names = ["daq.h5", "daq.h5.recovery", "daq~2.h5", "daq~2.h5.recovery"]
    assert sorted(entry.name for entry in folder.iterdir()) == names
    for name in names[1::2]:
        kept = sorted(entry.name for entry in (folder / name).iterdir())
        assert kept == ["journal", "tails-1"]


def test_damage_that_a_writer_meets_while_it_goes_on_is_told_at_the_end(
    output_dir: Path, shared_folder: Path
) -> None:
    """A structure that is torn makes it copy the file, and so read what nobody would have read."""
    options = {"shm_dir": shared_folder, "filename": "daq.h5", "ring_bytes": "1MiB", "standby": False}
    storage = HDF5Storage(output_dir=output_dir, chunk_rows=100, **options).start()
    storage.write_batch("cam", pa.record_batch({"n": list(range(ROWS))}))
    storage.flush()
    os.kill(storage.writer_pid, signal.SIGSTOP)
    path, journal = storage.path, recovery_folder(storage.path) / "journal"
    chronicle = Chronicle(journal)
    Left(path, chronicle).spoil("n", 3)
    whole = Journal.reopen(journal, chronicle.end)
    whole.operation("begin", {})  # and no end
    whole.write()
    whole.close()
    os.kill(storage.writer_pid, signal.SIGKILL)
    storage.write_batch("cam", pa.record_batch({"n": [7]}))
    problem = "items 300 to 399 of 'cam/n' are damaged on the disk"
    with pytest.raises(shmstore.IncompleteFileError, match=problem):
        storage.close()
    assert storage.restarts
    numbers = [*range(ROWS), 7]
    numbers[300:400] = [0] * 100
    assert shmstore.read(path, "cam")["n"].to_pylist() == numbers
    assert shmstore.verify(path).problems == (f"accounting: {problem}",)
    kept = path.with_name("daq.h5.damaged")
    assert sorted(entry.name for entry in kept.iterdir()) == ["daq.h5", "daq.h5.recovery"]


def test_a_journal_that_was_cut_short_is_told_from_a_whole_one(left: Left) -> None:
    end = left.chronicle.end
    assert not Chronicle(left.chronicle.path, end).short
    record = left.chronicle.operations[-1]
    with left.chronicle.path.open("r+b") as file:
        file.seek(record.start)
        file.write(b"DCER")
    assert Chronicle(left.chronicle.path, end).short
    assert not Chronicle(left.chronicle.path, record.start).short
    # After a file was made anew, the ledger still tells of the journal before.
    assert not Chronicle(left.chronicle.path, end, journal=1).short
