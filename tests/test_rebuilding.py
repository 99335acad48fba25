"""Rebuilding: out of its journal comes the same file, whatever became of HDF5's own structures."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers its filters for plain h5py
import numpy as np
import pyarrow as pa
import pytest

import shmstore
from shmstore import HDF5Storage
from shmstore.checkpoint import Checkpoint
from shmstore.chronicle import Chronicle
from shmstore.codec import Codec
from shmstore.dataset import Dataset
from shmstore.errors import IncompleteFileError, StorageError
from shmstore.journal import INLINE
from shmstore.layout import Stream
from shmstore.rebuilding import Damage, rebuild
from shmstore.recordingfile import RecordingFile
from shmstore.recoveryfolder import recovery_folder
from shmstore.tailfile import TailFile

#: Of which there are three times as many: more than the chunk of a mask holds.
ROWS = 1500
STRINGS = {"packed": {"strings": "packed"}, "tag": {"strings": "fixed:8"}}


def columns(start: int, rows: int = ROWS) -> dict[str, pa.Array]:
    """Columns of every kind of storage, with nulls, for rows that say which they are."""
    numbers = range(start, start + rows)

    def unless_null(value: Any, row: int) -> Any:
        return None if row % 7 == 3 else value

    noise = np.random.default_rng(start).integers(-(2**62), 2**62, rows)
    texts = [unless_null(f"row {row} " + "ä" * (row % 5), row) for row in numbers]
    return {
        "n": pa.array(numbers, pa.int64()),
        "noise": pa.array(noise),
        "x": pa.array([unless_null(row / 3, row) for row in numbers]),
        "flag": pa.array([row % 3 == 0 for row in numbers]),
        "frame": pa.array([[row % 100] * 6 for row in numbers], pa.list_(pa.int16(), 6)),
        "text": pa.array(texts),
        "packed": pa.array(texts),
        "tag": pa.array([f"t{row}" for row in numbers]),
        "blob": pa.array([unless_null(bytes([row % 256]) * (row % 9), row) for row in numbers]),
        "list": pa.array([unless_null(list(range(row % 4)), row) for row in numbers], pa.list_(pa.int32())),
        "words": pa.array([[f"{row}", None][: row % 3] for row in numbers], pa.list_(pa.string())),
        "pair": pa.array([unless_null({"a": row, "b": None}, row) for row in numbers]),
        "label": pa.array([unless_null(f"label {row % 10}", row) for row in numbers]).dictionary_encode(),
        "time": pa.array([unless_null(row, row) for row in numbers], pa.timestamp("us", "UTC")),
        "money": pa.array([Decimal(row) / 100 for row in numbers], pa.decimal128(9, 2)),
    }


@dataclass(frozen=True)
class Recorded:
    """A recording at its end, and what a power cut would have left of it before."""

    path: Path
    left: Path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Record instruments of many kinds."""
    left = tmp_path_factory.mktemp("left")
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="shmstore-test-") as shm_dir,
        HDF5Storage(
            output_dir=tmp_path_factory.mktemp("recorded"),
            shm_dir=shm_dir,
            ring_bytes="4MiB",
            auto_flush_interval_secs=0,
            instruments={
                "cam/1": {"chunk_bytes": "2KiB", "columns": STRINGS, "compression": "gzip"},
                "raw": {"chunk_bytes": "2KiB", "columns": STRINGS, "compression": "none"},
                "hdf5": {"chunk_rows": 100, "compression": "lzf"},
                "grows": {"chunk_rows": 100, "schema_policy": "evolve", "compression": "blosc:lz4"},
                "many": {"chunk_rows": 100, "schema_policy": "new"},
            },
        ) as storage,
    ):
        storage.set_metadata("operator", {"name": ["night", None]})
        storage.set_instrument_metadata("raw", "gain", 4)
        for instrument in ("cam/1", "raw", "hdf5"):
            for start in range(0, 3 * ROWS, ROWS):
                storage.write_batch(instrument, pa.record_batch(columns(start)))
        for batch in (
            {"n": pa.array(range(ROWS), pa.int16())},
            {"n": pa.array(range(ROWS), pa.int32()), "text": columns(0)["text"]},
            {"n": pa.array(range(ROWS), pa.int64())},
        ):
            storage.write_batch("grows", pa.record_batch(batch))
            storage.write_batch("many", pa.record_batch(batch))
        storage.write_batch("bare", pa.RecordBatch.from_struct_array(pa.array([{}] * 5, pa.struct([]))))
        storage.flush()
        path = storage.path
        shutil.copytree(recovery_folder(path), left / recovery_folder(path).name)
        shutil.copy(path, left)
        storage.write_batch("raw", pa.record_batch(columns(3 * ROWS)))
    return Recorded(path, left / path.name)


@pytest.fixture
def left(recorded: Recorded, tmp_path: Path) -> Path:
    """Return what is left of the recording, to be done with as one likes."""
    return shutil.copytree(recorded.left.parent, tmp_path / "left") / recorded.left.name


def told(path: Path) -> tuple[Chronicle, Checkpoint]:
    """Return what is known of a recording after a power cut."""
    tail_file = TailFile(recovery_folder(path))
    saved = tail_file.load()
    tail_file.close()
    assert saved
    checkpoint = Checkpoint.unpack(saved[0])
    return Chronicle(recovery_folder(path) / "journal", checkpoint.position, payloads=True), checkpoint


def remade(path: Path, *arguments: Any) -> tuple[Path, list[Damage]]:
    """Make a recording's file anew, and close it; returns its path, and what could not be brought over."""
    chronicle, checkpoint = told(path)
    beside = path.with_name("anew.h5")
    file, problems = rebuild(chronicle, checkpoint, path, beside, *arguments)
    file.flush()
    file.close()
    return beside, problems


def opened(path: Path) -> h5py.File:
    return h5py.File(path, "r", libver="v110", swmr=True)


def datasets_of(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return the datasets of instruments by name."""
    found: dict[str, h5py.Dataset] = {}
    file.visititems(
        lambda name, each: (
            found.update({name: each})
            if isinstance(each, h5py.Dataset) and not name.startswith("_shmstore")
            else None
        )
    )
    return found


def plain(value: Any) -> Any:
    """Return an attribute's value so that it can be compared; of a reference, what it leads to."""
    return value.tolist() if hasattr(value, "tolist") else value


def attributes_of(object_: Any) -> dict[str, Any]:
    return {
        name: object_.file[value].name if isinstance(value, h5py.Reference) else plain(value)
        for name, value in object_.attrs.items()
    }


def check_same(original: Path, anew: Path, *, missing: frozenset[str] = frozenset()) -> None:
    """Compare every object, and every item that a whole chunk holds, with the original at its end."""
    with h5py.File(original) as file, opened(anew) as found:
        expected, got = datasets_of(file), datasets_of(found)
        assert list(got) == list(expected)
        compared = 0
        for name, dataset in got.items():
            wanted = expected[name]
            assert (dataset.dtype, dataset.shape[1:], dataset.maxshape) == (
                wanted.dtype,
                wanted.shape[1:],
                wanted.maxshape,
            )
            assert (dataset.chunks, repr(dataset.fillvalue)) == (wanted.chunks, repr(wanted.fillvalue))
            assert dataset.id.get_create_plist().equal(wanted.id.get_create_plist())
            assert attributes_of(dataset) == attributes_of(wanted)
            if dataset.chunks is None:
                assert np.array_equal(dataset[()], wanted[()])
                continue
            items = dataset.shape[0]
            variable = dataset.dtype.kind == "O"
            assert items % dataset.chunks[0] == 0 or variable
            assert items <= wanted.shape[0]
            assert items or wanted.shape[0] < dataset.chunks[0]
            if name not in missing:
                compared += items
                for one, other in zip(dataset[:].tolist(), wanted[:items].tolist(), strict=True):
                    assert plain(one) == plain(other) or (one != one and other != other), name
        assert compared > 200_000
        for name in ("metadata", *(name for name in file if name not in ("metadata", "_shmstore"))):
            attributes = attributes_of(file[name])
            attributes.pop("NROWS", None)
            assert attributes_of(found[name]) == attributes
        assert found.attrs["state"] == "recording"
        assert found["_shmstore"].attrs["config"] == file["_shmstore"].attrs["config"]


def test_a_file_is_made_anew_from_its_journal(recorded: Recorded, left: Path) -> None:
    seen: list[tuple[int, int]] = []
    before = left.read_bytes()
    anew, problems = remade(left, lambda done, total: seen.append((done, total)))
    assert problems == []
    check_same(recorded.path, anew)
    assert left.read_bytes() == before
    assert seen[-1][0] == seen[-1][1] > 3 * ROWS * 8
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_of_the_old_file_only_the_chunks_are_needed(recorded: Recorded, left: Path) -> None:
    """Everything else in it is overwritten with rubbish, HDF5's superblock first."""
    chronicle, _ = told(left)
    stored = np.frombuffer(left.read_bytes(), np.uint8)
    rubbish = np.random.default_rng(1).integers(0, 256, len(stored), np.uint8)
    kept = 0
    for entries in chronicle.chunks().values():
        for entry in entries[entries["reserved"] != INLINE]:
            place = slice(int(entry["offset"]), int(entry["offset"] + entry["length"]))
            rubbish[place] = stored[place]
            kept += int(entry["length"])
    assert kept < len(stored) - 10_000
    left.write_bytes(rubbish.tobytes())
    anew, problems = remade(left)
    assert problems == []
    check_same(recorded.path, anew)


def test_a_file_made_anew_can_be_made_anew_again(recorded: Recorded, left: Path) -> None:
    """Its own journal tells all that the first one told."""
    first, _ = told(left)
    anew, _ = remade(left)
    second = Chronicle(recovery_folder(anew) / "journal", payloads=True)
    assert not second.torn
    assert second.identity == first.identity
    for name in ("instruments", "tails", "rings", "declared", "accounts", "problems"):
        assert getattr(second, name) == getattr(first, name), name
    assert [(each.path, each.stream.path, each.chunk_items, each.codec) for each in second.datasets] == [
        (each.path, each.stream.path, each.chunk_items, each.codec) for each in first.datasets
    ]
    _, checkpoint = told(left)
    again = anew.with_name("again.h5")
    file, problems = rebuild(second, checkpoint, anew, again)
    file.flush()
    file.close()
    assert problems == []
    check_same(recorded.path, again)


def test_a_damaged_chunk_is_named_and_reads_as_nothing(recorded: Recorded, left: Path) -> None:
    chronicle, _ = told(left)
    numbers = {each.path: number for number, each in enumerate(chronicle.datasets)}
    entry = chronicle.chunks()[numbers["raw/noise"]][7]
    with left.open("r+b") as file:
        file.seek(int(entry["offset"]) + 3)
        file.write(b"\xa5\x5a")
    anew, problems = remade(left)
    (damage,) = problems
    assert str(damage) == "items 1792 to 2047 of 'raw/noise' are damaged on the disk"
    check_same(recorded.path, anew, missing=frozenset({"raw/noise"}))
    with h5py.File(recorded.path) as file, opened(anew) as found:
        expected = file["raw/noise"][: found["raw/noise"].shape[0]]
        expected[1792:2048] = found["raw/noise"].fillvalue
        np.testing.assert_array_equal(found["raw/noise"][:], expected)


def test_what_the_old_file_lacks_is_named(left: Path) -> None:
    left.write_bytes(left.read_bytes()[: left.stat().st_size // 2])
    _, problems = remade(left)
    assert sum(damage.stop - damage.start for damage in problems) > 2000


def test_a_file_that_is_gone_is_said_and_what_was_begun_can_be_begun_again(
    recorded: Recorded, left: Path
) -> None:
    away = left.rename(left.with_name("away"))
    with pytest.raises(StorageError, match="read the damaged recording"):
        remade(left)
    anew = left.with_name("anew.h5")
    away.rename(left)
    with pytest.raises(StorageError, match="never overwritten"):
        remade(left)  # of which something is there: whoever asks must have taken it away
    anew.unlink()
    shutil.rmtree(recovery_folder(anew))
    check_same(recorded.path, remade(left)[0])


def test_rows_come_out_as_readers_of_shmstore_have_them(recorded: Recorded, left: Path) -> None:
    """As far as chunks were full; the others, as the few labels of a dictionary, are with the checkpoint."""
    anew, _ = remade(left)
    names = [name for name in columns(0, 1) if name != "label"]
    for instrument in ("cam/1", "raw"):
        found = shmstore.read(anew, instrument, columns=names)
        assert found.num_rows > 4000
        found.validate(full=True)
        expected = shmstore.read(recorded.path, instrument, columns=names)
        assert found.slice(0, 4000).equals(expected.slice(0, 4000))


# -- chunks and items in small ---------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Iterator[RecordingFile]:
    made = RecordingFile.create(tmp_path / "recording.h5", {}, "{}")
    yield made
    made.close()


def made_anew(file: RecordingFile, items: dict[int, int]) -> tuple[dict[str, Any], list[Damage]]:
    """Make a file anew that is committed up to so many items of each dataset; returns them, and problems."""
    position = file.flush()
    chronicle = Chronicle(recovery_folder(file.path) / "journal", position)
    streams = [[number, count, -1, False] for number, count in items.items()]
    checkpoint = Checkpoint(position, {}, {"cam": {"counts": {}, "bytes_in": 0, "streams": streams}})
    anew, problems = rebuild(chronicle, checkpoint, file.path, file.path.with_name("anew.h5"))
    anew.flush()
    with opened(shutil.copy(anew.path, anew.path.with_name("copy.h5"))) as found:
        values = {name: found[name][:] for name in found if name not in ("metadata", "_shmstore")}
    anew.close()
    return values, problems


def make(file: RecordingFile, path: str, stream: Stream, items: int = 0) -> Dataset:
    with file.structure():
        return file.create_dataset(path, stream, 4, Codec.parse("gzip"), items)


def objects(*values: str) -> Any:
    made = np.empty(len(values), object)
    made[:] = values
    return made


def test_items_that_were_written_again_count_as_they_were_last(file: RecordingFile) -> None:
    """As when a writer went on from a commit, and one after it again."""
    dataset = make(file, "text", Stream("values", "text", "utf8"))
    for start, values in [
        (0, ("a", "b", "c")),
        (3, ("d",)),
        (4, ("e", "f")),
        (2, ("C",)),
        (3, ("D", "E", "ü" * 70_000, "G")),
        (7, ()),
    ]:
        dataset.grow(start + len(values))
        dataset.write_variable(start, objects(*values))
    values, problems = made_anew(file, {0: 6})
    assert problems == []
    assert [value.decode() for value in values["text"]] == ["a", "b", "C", "D", "E", "ü" * 70_000]


def test_items_that_the_journal_does_not_have_are_an_error(file: RecordingFile) -> None:
    dataset = make(file, "text", Stream("values", "text", "utf8"))
    dataset.grow(2)
    dataset.write_variable(0, objects("a", "b"))
    with pytest.raises(IncompleteFileError, match="only 2 of 3 items of 'text'"):
        made_anew(file, {0: 3})


def test_a_gap_in_the_items_is_an_error(file: RecordingFile) -> None:
    dataset = make(file, "text", Stream("values", "text", "utf8"))
    dataset.grow(5)
    dataset.write_variable(0, objects("a", "b"))
    dataset.write_variable(4, objects("e"))
    with pytest.raises(IncompleteFileError, match="no items 2 to 3 of 'text'"):
        made_anew(file, {0: 5})


def test_chunks_in_the_journal_itself_are_taken_from_there(file: RecordingFile) -> None:
    encode = Codec.parse("gzip").encoder(8, 32)
    assert encode
    dataset = make(file, "n", Stream("values", "n", "<i8"))
    for index, first in ((0, 1), (1, 5), (0, 7)):  # of the same length, the last goes where the first was
        payload, mask = encode(np.array([first, 0, 0, 0], "<i8"))
        dataset.grow(4 * index + 4)
        dataset.write_chunk(index, payload, mask)
    file.flush()
    entries = Chronicle(recovery_folder(file.path) / "journal").chunks()[0]
    assert entries["reserved"].tolist() == [INLINE, 0]
    values, problems = made_anew(file, {0: 8})
    assert problems == []
    assert values["n"].tolist() == [7, 0, 0, 0, 5, 0, 0, 0]


def spoil(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 4]))


def test_items_of_variable_length_that_are_damaged_are_named_and_empty(file: RecordingFile) -> None:
    dataset = make(file, "text", Stream("values", "text", "utf8"))
    for start, values in [(0, ("a", "b")), (2, ("c", "d", "e")), (4, ("E",)), (5, ("f", "g"))]:
        dataset.grow(start + len(values))
        dataset.write_variable(start, objects(*values))
        file.flush()
    journal = recovery_folder(file.path) / "journal"
    records = Chronicle(journal).items()[0]
    spoil(journal, records[1].offset + records[1].length - 1)
    spoil(journal, records[3].offset + 1)
    values, problems = made_anew(file, {0: 6})
    assert [value.decode() for value in values["text"]] == ["a", "b", "", "", "E", ""]
    assert [(damage.start, damage.stop) for damage in problems] == [(2, 4), (5, 6)]


def test_a_damaged_chunk_in_the_journal_is_named(file: RecordingFile) -> None:
    dataset = make(file, "n", Stream("values", "n", "<i8", fill=-1))
    dataset.grow(8)
    dataset.write_chunk(0, np.arange(4), 3)
    dataset.places.clear()  # so that it does not know where the chunk is
    dataset.write_chunk(0, np.arange(4), 3)
    dataset.write_chunk(1, np.arange(4), 3)
    file.flush()
    journal = recovery_folder(file.path) / "journal"
    spoil(journal, int(Chronicle(journal).chunks()[0][0]["offset"]))
    values, problems = made_anew(file, {0: 8})
    assert values["n"].tolist() == [-1] * 4 + [0, 1, 2, 3]
    assert [str(damage) for damage in problems] == ["items 0 to 3 of 'n' are damaged on the disk"]


@pytest.mark.parametrize(
    ("role", "damaged", "expected"),
    [
        ("offsets", [1, 2], [0, 2, 4, 6, *[6] * 8, 24, 26, 28, 30]),
        ("offsets", [0], [0, 0, 0, 0, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30]),
        ("types", [0, 3], [8, 8, 8, 8, 8, 10, 12, 14, 16, 18, 20, 22, *[22] * 4]),
        ("run_ends", [1, 2], [0, 2, 4, *range(6, 15), 24, 26, 28, 30]),
        ("run_ends", [0], [*range(1, 5), 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30]),
        ("values", [2], [0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 24, 26, 28, 30]),
    ],
)
def test_what_others_are_found_by_goes_on_in_its_order(
    file: RecordingFile, role: str, damaged: list[int], expected: list[int]
) -> None:
    encode = Codec.parse("gzip").encoder(8, 32)
    assert encode
    dataset = make(file, "n", Stream(role, "n", "<u8"))
    for index in range(4):
        payload, mask = encode(np.arange(8 * index, 8 * index + 8, 2, "<u8").view(np.uint8))
        dataset.grow(4 * index + 4)
        dataset.write_chunk(index, payload, mask)
    file.flush()
    entries = Chronicle(recovery_folder(file.path) / "journal").chunks()[0]
    for index in damaged:
        spoil(file.path, int(entries[index]["offset"]) + 2)
    values, problems = made_anew(file, {0: 16})
    assert values["n"].tolist() == expected
    assert sum(damage.stop - damage.start for damage in problems) == 4 * len(damaged)


def test_what_was_not_committed_and_chunks_that_were_not_full_are_left_out(file: RecordingFile) -> None:
    numbers, mask = Stream("values", "n", "<i8"), Stream("validity", "mask", "|b1", (), 1, lazy=True)
    dataset, late = make(file, "n", numbers), make(file, "mask", mask, 6)
    other = make(file, "other", numbers)
    for index in range(3):
        for each in (dataset, other):
            each.grow(4 * index + 4)
            each.write_chunk(index, np.full(4, index, "<i8"), 3)
    late.grow(8)
    late.write_chunk(1, np.array([1, 1, 0, 1], "?"), 3)
    values, problems = made_anew(file, {0: 11, 1: 8})
    assert problems == []
    assert values["n"].tolist() == [0] * 4 + [1] * 4
    assert values["mask"].tolist() == [True] * 6 + [False, True]  # its first chunk was never written
    assert values["other"].tolist() == []  # of which the commit knows nothing
