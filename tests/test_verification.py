"""What is wrong with a recording is found and named; what is right is not called wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from wrecks import ROWS, wreck

import shmstore
from shmstore import HDF5Storage, IncompleteFileError, StorageError, VerifyReport
from shmstore.superblock import repair_superblock
from shmstore.verification import verify as verify_here

#: Incompressible, so that a chunk is as long in the file as it is.
NOISE = np.random.default_rng(1).integers(-(2**62), 2**62, 4000)
TABLE = pa.table(
    {
        "t": pa.array(range(4000)),
        "noise": NOISE,
        "text": pa.array(["a", None] * 2000),
        "list": pa.array([[1, 2, 3], []] * 2000),
        "pairs": pa.array([{"a": 1, "b": None}, None] * 2000, pa.struct([("a", "i4"), ("b", "f8")])),
        "label": pa.array(["on", "off"] * 2000).dictionary_encode(),
    }
)


def record(folder: Path, **settings: Any) -> Path:
    """Record three instruments, one of them without rows and one without columns."""
    with HDF5Storage(output_dir=folder, ring_bytes="1MiB", chunk_rows=500, **settings) as storage:
        storage.write_batch("camera", TABLE)
        storage.write_batch("camera", TABLE.slice(0, 777))
        storage.write_batch("empty", TABLE.schema.empty_table())
        storage.write_batch("bare", pa.RecordBatch.from_struct_array(pa.array([{}] * 5, pa.struct([]))))
        storage.set_instrument_metadata("silent", "gain", 4)
    return storage.path


@pytest.fixture
def recording(output_dir: Path) -> Path:
    return record(output_dir)


def stored_chunks(dataset: h5py.Dataset) -> list[Any]:
    chunks: list[Any] = []
    dataset.id.chunk_iter(chunks.append)
    return chunks


def drop_checksums(path: Path) -> None:
    """Make a file as one is whose writer could not write its end."""
    with h5py.File(path, "r+") as file:
        del file["_shmstore/checksums"]


def flip(path: Path, dataset: str, chunk: int) -> None:
    """Change one byte in the middle of a chunk as it is in the file."""
    with h5py.File(path) as file:
        info = stored_chunks(file[dataset])[chunk]
    with path.open("r+b") as stored:
        place = info.byte_offset + info.size // 2
        byte = os.pread(stored.fileno(), 1, place)
        os.pwrite(stored.fileno(), bytes([byte[0] ^ 0x40]), place)


def problems(path: Path) -> str:
    """Return what is wrong with a file, which must be something."""
    report = shmstore.verify(path)
    assert not report.ok
    assert report.problems
    return "\n".join(report.problems)


@pytest.mark.parametrize("compression", ["gzip", "none", "zstd", "blosc:lz4"])
@pytest.mark.parametrize("strings", ["vlen", "packed"])
def test_a_whole_recording_is_ok(output_dir: Path, compression: str, strings: str) -> None:
    path = record(output_dir, compression=compression, strings=strings)
    report = shmstore.verify(path)
    assert (report.ok, report.problems, report.notes, report.state) == (True, (), (), "complete")
    rows = {item.name: (item.rows, item.columns) for item in report.instruments}
    assert rows == {"camera": (4777, 6), "empty": (0, 6), "bare": (5, 0), "silent": (0, 0)}
    with h5py.File(path) as file:
        found: list[h5py.Dataset] = []
        file["camera"].visititems(
            lambda _, each: found.append(each) if isinstance(each, h5py.Dataset) and each.chunks else None
        )
        camera = report.instruments[0]
        assert camera.chunks == sum(each.id.get_num_chunks() for each in found)
        assert camera.bytes == sum(each.id.get_storage_size() for each in found)
    drop_checksums(path)
    without = shmstore.verify(path)
    assert without == VerifyReport(str(path), "complete", report.instruments, (), without.notes)
    assert [note for note in without.notes if "no checksums" in note]


def test_what_went_on_in_another_group_is_accounted_to_the_first(output_dir: Path) -> None:
    with HDF5Storage(output_dir=output_dir, ring_bytes="1MiB", schema_policy="new") as storage:
        for columns in ({"a": [1, 2]}, {"b": [1.5]}, {"a": [3]}):
            storage.write_batch("run", pa.table(columns))
    report = shmstore.verify(storage.path)
    assert {item.name: item.rows for item in report.instruments} == {"run": 3, "run~2": 1}
    assert report.ok


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_a_chunk_that_is_not_as_it_was_written_is_named(output_dir: Path, compression: str) -> None:
    path = record(output_dir, compression=compression)
    flip(path, "camera/noise", 3)
    flip(path, "camera/t", 0)
    text = problems(path)
    assert "instrument 'camera', column 'noise', chunk 3 of '/camera/noise': has the checksum " in text
    assert "column 't', chunk 0 of '/camera/t'" in text
    assert text.count("\n") == 1  # each is said once, although it cannot be decoded either


def test_without_checksums_damage_is_found_by_decoding(recording: Path) -> None:
    drop_checksums(recording)
    flip(recording, "camera/t", 3)
    text = problems(recording)
    assert "instrument 'camera', column 't': " in text
    assert "column 't', chunk 3 of '/camera/t' cannot be decoded" in text
    assert "chunk 2" not in text


def test_damage_to_what_is_no_column_of_its_own_is_found(recording: Path) -> None:
    flip(recording, "camera/list/OFFSETS", 1)
    assert "column 'list', chunk 1 of '/camera/list/OFFSETS': has the checksum" in problems(recording)


def test_many_damaged_chunks_are_not_all_named(output_dir: Path) -> None:
    with HDF5Storage(output_dir=output_dir, ring_bytes="1MiB", chunk_rows=10) as storage:
        storage.write_batch("x", pa.table({"noise": NOISE}))
    for chunk in range(0, 400, 20):
        flip(storage.path, "x/noise", chunk)
    lines = problems(storage.path).splitlines()
    assert len(lines) == 9
    assert "more chunks of '/x/noise' are damaged" in lines[-1]


# -- a file whose parts do not go together -------------------------------------------------------------------


def cut(name: str, rows: int) -> Callable[[h5py.File], None]:
    return lambda file: file[name].resize(rows, 0)


def change(name: str, attribute: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file[name].attrs.__setitem__(attribute, value)


def account(**changes: Any) -> Callable[[h5py.File], None]:
    """Change the account: of the first producer, or ``ok`` and ``problems``."""

    def apply(file: h5py.File) -> None:
        found = json.loads(file["_shmstore"].attrs["accounting"])
        for key, value in changes.items():
            (found if key in found else found["producers"][0])[key] = value
        file["_shmstore"].attrs["accounting"] = json.dumps(found)

    return apply


def rename_a_field(file: h5py.File) -> None:
    document = json.loads(file["camera/schema"].asstr()[()])
    document["fields"][1]["name"] = "nose"
    file["camera/schema"][()] = json.dumps(document)


def drop(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


CHANGES: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "a column is shorter": (
        cut("camera/t", 4000),
        "column 't': 4000 rows can be read and its extent is 4000",
    ),
    "a column is longer": (cut("camera/t", 5000), "extent is 5000, where 4777 were recorded"),
    "items of lists are gone": (
        cut("camera/list/VALUES", 100),
        "column 'list': 66 rows can be read and its extent is 4777",
    ),
    "a column is gone": (drop("camera/t"), "column 't': 0 rows can be read"),
    "rows without columns": (change("bare", "NROWS", np.uint64(2**60)), "'bare', column ''"),
    "no count": (lambda file: file["camera"].attrs.__delitem__("NROWS"), "'camera' has no NROWS"),
    "another schema": (
        rename_a_field,
        "schema: the JSON and the Arrow schema beside it tell different columns",
    ),
    "no schema": (drop("camera/schema"), "instrument 'camera', schema: damaged"),
    "no layout": (lambda file: file["camera/_arrow/layout"].__setitem__((), "{"), "_arrow/layout is damaged"),
    "lost rows": (account(ok=False, problems=["3 rows are lost"]), "accounting: 3 rows are lost"),
    "lost, unsaid": (account(ok=False), "accounting: something was lost"),
    "accepted": (account(accepted=5), "5 rows accepted are not 4777 committed + 0 dropped"),
    "committed": (
        account(committed=3999, accepted=3999),
        "'camera' has 4777 rows in the file, but 3999 were",
    ),
    "another producer": (account(instrument="cam"), "'cam' has 0 rows in the file, but 4777 were committed"),
    "no numbers": (account(accepted="many"), "its account of rows is damaged"),
    "no account": (
        lambda file: file["_shmstore"].attrs.__delitem__("accounting"),
        "it has no account of its rows",
    ),
    "a strange state": (change("/", "state", "fine"), "its state is 'fine', which is none"),
    "partial, unsaid": (change("/", "state", "partial"), "says that it is partial"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_parts_that_do_not_go_together_are_named(recording: Path, case: str) -> None:
    apply, wanted = CHANGES[case]
    with h5py.File(recording, "r+") as file:
        apply(file)
    text = problems(recording)
    assert wanted in text
    assert "Traceback" not in text


def test_types_spelled_otherwise_are_not_wrong(recording: Path) -> None:
    with h5py.File(recording, "r+") as file:
        document = json.loads(file["camera/schema"].asstr()[()])
        document["fields"][0]["type"] = "int64_t"
        file["camera/schema"][()] = json.dumps(document)
    report = shmstore.verify(recording)
    assert report.ok
    assert any("spelled otherwise" in note for note in report.notes)


def test_checksums_that_do_not_go_with_the_file_are_named(recording: Path) -> None:
    with h5py.File(recording, "r+") as file:
        group = file["_shmstore/checksums"]
        names = {str(group[name].attrs["path"]): name for name in group}
        group[names["/camera/t"]].attrs["path"] = "/camera/other"
        del group[names["/camera/noise"]]
        assert "/empty/t" not in names  # it has no chunks
        short = group.create_dataset("short", data=np.ones(3, np.uint32))
        short.attrs["path"] = "/camera/noise"
        wide = group.create_dataset("wide", data=np.zeros(0))
        wide.attrs["path"] = "/empty/t"
    text = problems(recording)
    assert "dataset '/camera/other' has checksums but is not there" in text
    assert "'/camera/noise': has 10 chunks where 3 were recorded" in text
    assert "'/empty/t': its checksums are damaged" in text


def checksums_of(file: h5py.File, path: str) -> h5py.Dataset:
    group = file["_shmstore/checksums"]
    return next(group[name] for name in group if group[name].attrs["path"] == path)


def test_a_chunk_that_was_never_written_has_no_checksum_and_is_not_missed(output_dir: Path) -> None:
    """A mask begins with the first null; what comes before is the fill value."""
    values = pa.array([*range(5000), None, *range(4000)])
    with HDF5Storage(output_dir=output_dir, ring_bytes="1MiB", chunk_rows=500) as storage:
        for start in range(0, len(values), 1000):
            storage.write_batch("x", pa.table({"n": values.slice(start, 1000)}))
    with h5py.File(storage.path) as file:
        mask = file["x/_arrow/validity/0"]
        checksums = checksums_of(file, "/x/_arrow/validity/0")[:].tolist()
        offsets = [chunk.chunk_offset[0] // mask.chunks[0] for chunk in stored_chunks(mask)]
    assert offsets == [number for number, value in enumerate(checksums) if value] == [1, 2]
    report = shmstore.verify(storage.path)
    assert (report.ok, report.notes) == (True, ())


def test_a_chunk_that_is_missing_is_named(recording: Path) -> None:
    with h5py.File(recording, "r+") as file:
        old = checksums_of(file, "/camera/t")
        name, values = old.name, [*old[:].tolist(), 0, 77]
        del file[name]
        file.create_dataset(name, data=np.array(values, np.uint32)).attrs["path"] = "/camera/t"
    assert "'/camera/t': has 10 chunks where 11 were recorded" in problems(recording)


def test_a_chunk_that_was_not_recorded_is_named(recording: Path) -> None:
    with h5py.File(recording, "r+") as file:
        checksums_of(file, "/camera/t")[3] = 0
    text = problems(recording)
    assert "column 't', chunk 3 of '/camera/t': has the checksum " in text
    assert "where 00000000 was recorded" in text


def test_damage_to_one_instrument_leaves_the_others_to_be_read(recording: Path) -> None:
    with h5py.File(recording, "r+") as file:
        file["camera/_arrow/layout"][()] = "{"
    report = shmstore.verify(recording)
    assert len(report.problems) == 1  # no rows are missed because they could not be counted
    assert {item.name: item.rows for item in report.instruments}["bare"] == 5


def test_links_that_lead_elsewhere_or_round_are_not_followed(recording: Path, tmp_path: Path) -> None:
    before = shmstore.verify(recording)
    with h5py.File(recording, "r+") as file:
        file["camera/round"] = file["camera"]
        file["camera/again"] = file["camera/t"]
        file["camera/outside"] = h5py.ExternalLink(str(tmp_path / "none.h5"), "/x")
        file["camera/soft"] = h5py.SoftLink("/nowhere")
    assert shmstore.verify(recording) == before


def test_a_chunk_beyond_the_end_of_the_file_is_named(output_dir: Path) -> None:
    path = output_dir / "cut.h5"
    recording = record(output_dir)
    with h5py.File(recording) as file:
        last = max(stored_chunks(file["camera/noise"]), key=lambda chunk: chunk.byte_offset)
        ends = [info.byte_offset + info.size for info in stored_chunks(file["camera/t"])]
    assert last.byte_offset + last.size > max(ends)
    # A file that is cut is refused as a whole, so a chunk's place is moved beyond the end instead.
    whole = recording.read_bytes()
    place = last.byte_offset.to_bytes(8, "little")
    assert whole.count(place) == 1
    path.write_bytes(whole.replace(place, (len(whole) + 4096).to_bytes(8, "little")))
    repair_superblock(path)
    with pytest.raises(OSError), h5py.File(path) as file:
        file["camera/noise"][:]
    assert "column 'noise'" in problems(path)


# -- while it grows, and after a kill ------------------------------------------------------------------------


def test_a_recording_that_grows_is_ok(output_dir: Path) -> None:
    with HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        storage.write_batch("camera", TABLE)
        storage.flush()
        report = shmstore.verify(storage.path)
        assert (report.ok, report.state, report.instruments[0].rows) == (True, "recording", 4000)
        assert any("being recorded, or its writer was killed" in note for note in report.notes)


def test_what_a_killed_writer_left_is_read(output_dir: Path, shared_folder: Path) -> None:
    left = wreck(output_dir, shared_folder, "put", "put", "flush", "put")
    report = shmstore.verify(left.path)
    assert (report.ok, report.state) == (True, "recording")
    assert report.instruments[0].rows >= 2 * ROWS


def test_an_aborted_recording_is_ok(output_dir: Path) -> None:
    storage = HDF5Storage(output_dir=output_dir, ring_bytes="1MiB").start()
    storage.write_batch("camera", TABLE)
    storage.abort()
    report = shmstore.verify(storage.path)
    assert (report.ok, report.state) == (True, "aborted")
    assert any("aborted" in note for note in report.notes)


# -- the report, and what is no recording --------------------------------------------------------------------


def test_progress_goes_on_to_the_end(recording: Path) -> None:
    for verify, least in ((verify_here, 20), (shmstore.verify, 0)):
        seen: list[tuple[int, int]] = []
        verify(recording, lambda done, total, seen=seen: seen.append((done, total)))
        done = [each for each, _ in seen]
        assert done == sorted(done)
        assert len(seen) > least
        assert seen[-1][0] == seen[-1][1] > 2 * NOISE.nbytes


def test_a_report_is_json_and_text(recording: Path) -> None:
    drop_checksums(recording)
    report = shmstore.verify(recording)
    document = json.loads(json.dumps(report.to_dict()))
    assert (document["ok"], document["state"], document["problems"]) == (True, "complete", [])
    assert document["instruments"][0]["rows"] == 4777
    lines = str(report).splitlines()
    assert lines[0] == f"{recording}: complete, ok"
    assert lines[1].split() == ["instrument", "rows", "columns", "chunks", "bytes"]
    assert lines[2].split()[:3] == ["camera", "4,777", "6"]
    assert lines[-1].startswith("  note: ")
    with h5py.File(recording, "r+") as file:
        file.attrs["state"] = "fine"
    lines = str(shmstore.verify(recording)).splitlines()
    assert lines[0].endswith("fine, 1 problems")
    assert "  problem: its state is 'fine', which is none: restore it from a copy" in lines


def test_what_is_no_recording_is_refused_in_one_line(recording: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.h5").touch()
    (tmp_path / "text.h5").write_text("no HDF5 at all")
    (tmp_path / "cut.h5").write_bytes(recording.read_bytes()[:-100])
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    for name in ("empty.h5", "text.h5", "cut.h5", "other.h5"):
        with pytest.raises(IncompleteFileError) as caught:
            shmstore.verify(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(StorageError):
        shmstore.verify(tmp_path / "none.h5")


def test_a_damaged_root_is_refused_wherever_the_damage_is(recording: Path) -> None:
    whole = recording.read_bytes()
    root = int.from_bytes(whole[36:44], "little")
    for place in range(root, root + 120, 7):
        recording.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(IncompleteFileError, match="is damaged"):
            shmstore.verify(recording)


def test_damaged_metadata_of_a_live_file_are_noticed_and_not_waited_for(output_dir: Path) -> None:
    """Left to itself, HDF5 would read them 100 times, with pauses that double from 1 ns."""
    with HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        storage.write_batch("camera", TABLE)
        storage.flush()
        copy = output_dir / "copy.h5"
        copy.write_bytes(storage.path.read_bytes())
    with h5py.File(copy, "r", swmr=True, locking=False) as file:
        at = h5py.h5o.get_info(file["camera/t"].id).addr
    with copy.open("r+b") as stream:
        stream.seek(at + 24)
        byte = stream.read(1)[0]
        stream.seek(at + 24)
        stream.write(bytes([byte ^ 1]))
    problems = shmstore.verify(copy).problems
    assert any("'camera'" in problem and "checksum" in problem for problem in problems)
