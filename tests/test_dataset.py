"""HDF5's door: what readers see and when, what is refused, and what the file says at its end."""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
import signal
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from children import Child

from shmstore import recordingfile as recordingfile_module
from shmstore.chronicle import Chronicle
from shmstore.codec import Codec
from shmstore.dataset import Dataset
from shmstore.errors import StorageError
from shmstore.journal import ENTRY, Chunks, Inline, Items, Journal, JournalReader, Operation, Record
from shmstore.largepages import BLOCK_BYTES
from shmstore.layout import Link, Stream, stream_from_dict
from shmstore.recordingfile import RecordingFile
from shmstore.recoveryfolder import recovery_folder

NUMBERS = Stream("values", "n", "<i8")
NONE, GZIP = Codec.parse("none"), Codec.parse("gzip")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[RecordingFile]:
    made = RecordingFile.create(tmp_path / "recording.h5", {"state": "recording", "n": 7}, "{}")
    yield made
    if made.path.exists():
        made.close()


def make(file: RecordingFile, path: str = "n", codec: Codec = NONE, stream: Stream = NUMBERS) -> Dataset:
    with file.structure():
        return file.create_dataset(path, stream, 4, codec)


def chunk(*numbers: int) -> bytes:
    return np.array(numbers, "<i8").tobytes()


def reopened(file: RecordingFile) -> Any:
    """Open a copy of the file as it is on disk now; the file itself is shared within a process."""
    copy = shutil.copy(file.path, file.path.with_name("copy.h5"))
    return h5py.File(copy, "r", libver="v110", swmr=True)


def told(file: RecordingFile) -> list[Record]:
    """Return what the journal tells, as far as it is written."""
    with JournalReader(recovery_folder(file.path) / "journal", payloads_from=0) as journal:
        return list(journal)


def operations(file: RecordingFile) -> list[str]:
    return [record.name for record in told(file) if isinstance(record, Operation)]


def reader(file: RecordingFile) -> Child:
    """Start a process that keeps the file open, and answers each line with the numbers it sees."""
    return Child(
        "import h5py",
        f"file = h5py.File({str(file.path)!r}, 'r', libver='v110', swmr=True)",
        "numbers = file['n']",
        "say('open')",
        "while wait().strip():",
        "    numbers.refresh()",
        "    say(numbers[:].tolist())",
    )


def seen(child: Child) -> Any:
    child.tell("look")
    return json.loads(child.hear())


# -- making ----------------------------------------------------------------------------------------------


def test_a_new_file_has_its_groups_and_attributes_at_once(file: RecordingFile) -> None:
    with reopened(file) as found:
        assert dict(found.attrs) == {"state": "recording", "n": 7}
        assert list(found) == ["metadata", "_shmstore"]
        assert dict(found["_shmstore"].attrs) == {"format_version": "1.0", "config": "{}"}


def test_a_file_in_memory_holds_and_tells_the_same_and_takes_no_more_than_its_bytes(
    shared_folder: Path,
) -> None:
    file = RecordingFile.create(shared_folder / "recording.h5", {}, "{}")
    stream, items = Stream("values", "n", "<i8"), 2**17
    with file.structure():
        dataset = file.create_dataset("n", stream, items, NONE)
    numbers = np.random.default_rng(5).integers(2**62, size=(12, items))
    for index, each in enumerate(numbers):
        with file.lock:
            dataset.grow((index + 1) * items)
            dataset.write_chunk(index, each.tobytes(), 0)
        file.flush()
    places = [entry for record in told(file) if isinstance(record, Chunks) for entry in record.entries]
    content = file.path.read_bytes()
    for entry, each in zip(places, numbers, strict=True):
        assert content[int(entry["offset"]) :][: int(entry["length"])] == each.tobytes()
    file.finish("complete", "{}", {})
    with h5py.File(file.path) as found:
        assert np.array_equal(found["n"][:], numbers.ravel())
    assert file.path.stat().st_blocks * 512 < file.path.stat().st_size + mmap.PAGESIZE


def test_an_existing_file_is_never_touched(tmp_path: Path) -> None:
    path = tmp_path / "precious.h5"
    path.write_text("precious")
    with pytest.raises(StorageError, match="never overwritten") as error:
        RecordingFile.create(path, {}, "{}")
    assert (error.value.errno, error.value.filename) == (errno.EEXIST, str(path))
    assert path.read_text() == "precious"


def test_a_folder_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="create the folder first") as error:
        RecordingFile.create(tmp_path / "no" / "where.h5", {}, "{}")
    assert error.value.errno == errno.ENOENT


def test_a_read_only_folder_is_said(tmp_path: Path) -> None:
    """Tried as nobody: whoever may do everything may write anywhere."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    with Child(
        "import os",
        "from shmstore.recordingfile import RecordingFile",
        "from shmstore.errors import StorageError",
        "if os.getuid() == 0: os.setuid(65534)",
        "try:",
        f"    RecordingFile.create(Path({str(folder / 'a.h5')!r}), {{}}, '{{}}')",
        "except StorageError as error:",
        "    say(error.errno, 'check the permissions' in str(error))",
    ) as child:
        assert child.hear() == f"{errno.EACCES} True"
    assert not list(folder.iterdir())


# -- what readers see ------------------------------------------------------------------------------------


def test_readers_see_rows_at_the_flush_and_not_before(file: RecordingFile) -> None:
    dataset = make(file)
    with reader(file) as child:
        assert child.hear() == "open"
        dataset.grow(4)
        dataset.write_chunk(0, chunk(0, 1, 2, 3), 0)
        assert seen(child) == []
        file.flush()
        assert seen(child) == [0, 1, 2, 3]


def test_readers_stay_with_the_file_while_objects_are_added(file: RecordingFile) -> None:
    dataset = make(file)
    with reader(file) as child:
        assert child.hear() == "open"
        for number in range(5):
            other = make(file, f"group/other-{number}", GZIP)
            other.grow(1)
            other.write_chunk(0, chunk(number, 0, 0, 0), other.skip_mask)
            dataset.grow(4 * number + 4)
            dataset.write_chunk(number, chunk(*range(4 * number, 4 * number + 4)), 0)
            file.flush()
            assert seen(child) == list(range(4 * number + 4))
    with reopened(file) as found:
        assert [found[f"group/other-{number}"][0] for number in range(5)] == list(range(5))


def test_a_window_within_a_window_is_the_same_one(file: RecordingFile) -> None:
    generation = file.generation
    with file.structure():
        with file.structure():
            file.create_group("a", {})
        inner = file.generation
        file.create_group("a/b", {})  # still open for that
    assert (inner, file.generation) == (generation + 1, generation + 2)
    make(file)


def test_a_window_that_fails_leaves_the_file_recording_and_what_was_done_before(file: RecordingFile) -> None:
    dataset = make(file)
    generation = file.generation
    with pytest.raises(KeyError), file.structure():  # noqa: PT012  the window closes around it
        file.create_group("done", {})
        file.set_metadata("nowhere", {"a": 1})
    assert file.generation > generation
    dataset.grow(1)
    dataset.write_chunk(0, chunk(5, 0, 0, 0), 0)
    file.flush()
    with reopened(file) as found:
        assert found["n"][:].tolist() == [5]
        assert "done" in found
    names = operations(file)
    assert names[names.index("create_group") - 1 :] == ["begin", "create_group", "end"]


def test_what_is_made_again_takes_the_place_of_what_was_there(file: RecordingFile) -> None:
    """A writer that was killed may have left it, in a window of which the journal does not tell."""
    old = make(file)
    old.grow(4)
    old.write_chunk(0, chunk(1, 2, 3, 4), 0)
    new = make(file, codec=GZIP)
    assert (old.number, new.number, file.datasets) == (0, 1, [None, new])
    with file.structure():
        for attribute in ("old", "new"):
            file.create_instrument("cam", {"instrument_id": attribute})
            inner = file.create_dataset("cam/n", NUMBERS, 4, NONE)
    file.flush()
    assert file.datasets == [None, new, None, inner]
    with reopened(file) as found:
        assert found["n"].shape == (0,)
        assert found["cam"].attrs["instrument_id"] == "new"


def test_what_was_flushed_outlives_a_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / "killed.h5"
    with Child(
        "from shmstore.codec import Codec",
        "from shmstore.recordingfile import RecordingFile",
        "from shmstore.layout import Stream",
        f"file = RecordingFile.create(Path({str(path)!r}), {{}}, '{{}}')",
        "with file.structure():",
        "    numbers = file.create_dataset('/n', Stream('values', 'n', '<i8'), 4, Codec.parse('none'))",
        "for index in range(200):",
        "    numbers.grow(4 * index + 4)",
        "    numbers.write_chunk(index, index.to_bytes(8, 'little') * 4, 0)",
        "    if index == 99:",
        "        file.flush()",
        "say('flushed')",
        "wait()",
    ) as child:
        assert child.hear() == "flushed"
        child.end(signal.SIGKILL)
    with h5py.File(path, "r", libver="v110", swmr=True) as found:
        np.testing.assert_array_equal(found["n"][:], np.repeat(np.arange(100), 4))


# -- rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [NONE, GZIP])
@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_an_unfiltered_chunk_of_the_wrong_length_is_refused(
    file: RecordingFile, codec: Codec, size: int
) -> None:
    """HDF5 itself would take it, and overwrite what lies behind."""
    dataset = make(file, codec=codec)
    dataset.grow(8)
    for index in range(2):
        dataset.write_chunk(index, chunk(*[index] * 4), dataset.skip_mask)
    with pytest.raises(StorageError, match=rf"n: an unfiltered chunk has 32 bytes, not {size}"):
        dataset.write_chunk(0, bytes(size), dataset.skip_mask)
    assert dataset.bytes_written == 64
    file.flush()
    with reopened(file) as found:
        assert found["n"][:].tolist() == [0] * 4 + [1] * 4


def test_an_extent_never_shrinks(file: RecordingFile) -> None:
    dataset = make(file)
    dataset.grow(6)
    dataset.grow(2)
    assert dataset.known_items == 6
    file.flush()
    with reopened(file) as found:
        assert found["n"].shape == (6,)


@pytest.mark.parametrize(
    ("dtype", "fill", "expected"),
    [("<f4", float("nan"), None), ("<i8", -(2**63), -(2**63)), ("|b1", 1, True), ("<u2", None, 0)],
)
def test_items_never_written_are_the_fill_value(
    file: RecordingFile, dtype: str, fill: Any, expected: Any
) -> None:
    with file.structure():
        made = file.create_dataset("n", Stream("values", "n", dtype, (2,), fill), 4, GZIP, items=3)
    assert made.known_items == 3
    with reopened(file) as found:
        assert found["n"].shape == (3, 2)
        assert found["n"].dtype == np.dtype(dtype)
        values = found["n"][:]
        assert np.isnan(values).all() if expected is None else (values == expected).all()


def test_attributes_of_a_column_are_those_of_cf(file: RecordingFile) -> None:
    attributes = {"units": "seconds since 1970-01-01"}
    make(file, "t", NONE, Stream("values", "t", "<i8", (), -(2**63), attributes=attributes))
    with file.structure():
        file.create_group("packed", {"CLASS": "STRING_VALUES", "VERSION": 1})
        file.create_document("cam/schema", "ä{}")
        file.create_bytes("cam/raw", b"\0\1\xff")
    with reopened(file) as found:
        assert dict(found["t"].attrs) == attributes | {"_FillValue": -(2**63)}
        class_type = found["packed"].attrs.get_id("CLASS").get_type()
        # As HEP001 asks: with room for a NUL at the end.
        assert (class_type.get_size(), class_type.get_strpad()) == (14, h5py.h5t.STR_NULLTERM)
        assert class_type.get_cset() == h5py.h5t.CSET_ASCII
        assert found["packed"].attrs["CLASS"] == b"STRING_VALUES"
        assert found["packed"].attrs["VERSION"] == 1
        assert found["cam/schema"][()].decode() == "ä{}"
        assert found["cam/raw"][:].tobytes() == b"\0\1\xff"


def test_an_instrument_is_marked_as_a_column_table(file: RecordingFile) -> None:
    with file.structure():
        file.create_instrument("cam", {"instrument_id": "cam"})
        file.set_columns("cam", ["ä", "long name"])
        file.set_columns("cam", ["ä", "b", "a longer name"])
        file.create_instrument("bare", {"instrument_id": "bare"})
        file.set_columns("bare", [])
    with reopened(file) as found:
        attributes = found["cam"].attrs
        assert (attributes["CLASS"], attributes["VERSION"]) == (b"COLUMN_TABLE", b"1.0")
        assert [name.decode() for name in attributes["column-order"]] == ["ä", "b", "a longer name"]
        order = h5py.check_string_dtype(attributes.get_id("column-order").dtype)
        assert order
        assert (order.encoding, order.length) == ("utf-8", 13)
        assert found["bare"].attrs["column-order"].shape == (0,)


def test_a_document_takes_the_place_of_the_one_before(file: RecordingFile) -> None:
    with file.structure():
        for text in ("first", "second, longer"):
            file.create_document("cam/schema", text)
            file.create_bytes("cam/raw", text.encode())
    with reopened(file) as found:
        assert found["cam/schema"][()] == b"second, longer"
        assert found["cam/raw"][:].tobytes() == b"second, longer"


def test_a_reference_leads_to_what_it_names(file: RecordingFile) -> None:
    stream = Stream("values", "label", "<i4", fill=-1, attributes={"CATEGORIES": Link("CATEGORIES/label")})
    labels = Stream("values", "CATEGORIES/label", "|u1")
    with file.structure():
        for one in (stream, labels):
            file.create_dataset(f"cam/{one.path}", one, 4, NONE)
        file.link("cam/", [stream, labels])
    with reopened(file) as found:
        codes = found["cam/label"]
        assert found[codes.attrs["CATEGORIES"]].name == "/cam/CATEGORIES/label"
        assert codes.fillvalue == -1
        assert set(codes.attrs) == {"CATEGORIES", "_FillValue"}


def test_a_dataset_that_replaces_another_is_written_on_at_its_new_place(file: RecordingFile) -> None:
    old, beside = make(file), make(file, "beside", GZIP)
    old.grow(4)
    old.write_chunk(0, chunk(1, 2, 3, 4), 0)
    beside.grow(4)
    beside.filter_chunk(0, np.frombuffer(chunk(5, 6, 7, 8), np.uint8))
    with file.structure():
        file.replace(beside, "n")
    beside.grow(8)
    beside.filter_chunk(1, np.frombuffer(chunk(9, 10, 11, 12), np.uint8))
    file.flush()
    with reopened(file) as found:
        assert found["n"][:].tolist() == list(range(5, 13))
        assert "beside" not in found


def test_chunks_that_were_written_take_no_memory(file: RecordingFile) -> None:
    dataset = make(file)
    payload = chunk(1, 2, 3, 4)

    def write(chunks: range) -> None:
        for index in chunks:
            dataset.grow(4 * index + 4)
            dataset.write_chunk(index, payload, dataset.skip_mask)
            if index % 1000 == 999:
                file.flush()

    write(range(1000))
    tracemalloc.start()
    write(range(1000, 11_000))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 10_000  # less than a byte each


def test_memory_of_the_index_of_chunks_is_given_back_by_the_flush(file: RecordingFile) -> None:
    dataset = make(file)
    generation = file.generation
    dataset.grow(4 * 2_000_000)
    file.flush()
    assert file.generation > generation
    assert file.index_bytes == 0
    dataset.write_chunk(1_999_999, chunk(1, 2, 3, 4), dataset.skip_mask)
    file.flush()
    with reopened(file) as found:
        assert found["n"][-5:].tolist() == [0, 1, 2, 3, 4]


def test_memory_of_variable_items_is_given_back_by_the_flush(file: RecordingFile) -> None:
    dataset = make(file, "text", NONE, Stream("values", "text", "utf8"))
    generation = file.generation
    text = np.array(["x" * 2**20], object)
    for row in range(40):
        dataset.grow(row + 1)
        dataset.write_variable(row, text)
        file.flush()
        assert file.heap_bytes < 2**25 + 2**21
    assert file.generation > generation
    assert dataset.bytes_written >= 40 * 2**20
    with reopened(file) as found:
        assert found["text"].shape == (40,)
        assert found["text"][39] == b"x" * 2**20


@pytest.mark.parametrize("in_memory", [False, True])
def test_the_disk_is_told_to_begin_with_what_it_has_not_been_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    """A file in memory has no disk to be told anything."""
    monkeypatch.setattr(recordingfile_module, "is_in_memory", lambda fd: in_memory)
    file = RecordingFile.create(tmp_path / "told.h5", {}, "{}")
    dataset = make(file)
    file.start_writing_back()
    assert file.unwritten_bytes == 0
    dataset.grow(4)
    dataset.write_chunk(0, chunk(1, 2, 3, 4), dataset.skip_mask)
    file.flush()
    assert (file.unwritten_bytes >= 4 * 8) is not in_memory
    file.start_writing_back()
    assert file.unwritten_bytes == 0
    with reopened(file) as found:
        assert found["n"][:].tolist() == [1, 2, 3, 4]
    file.close()


# -- what the journal is told ----------------------------------------------------------------------------


def test_the_journal_says_what_the_file_is(file: RecordingFile) -> None:
    (header,) = told(file)
    assert header.identity == {"attributes": {"state": "recording", "n": 7}, "config": "{}"}  # type: ignore[union-attr]
    assert recovery_folder(file.path).stat().st_mode & 0o777 == 0o700


def test_a_window_is_told_before_and_after(file: RecordingFile) -> None:
    """Killed in between, HDF5's structures may be torn: that must be on record by then."""
    with file.structure():
        assert operations(file) == ["begin"]
        file.create_instrument("cam", {"instrument_id": "cam"})
        with file.structure():
            file.set_columns("cam", ["n"])
        assert operations(file) == ["begin"]
    assert operations(file) == ["begin", "create_instrument", "set_columns", "end"]


def test_everything_that_is_made_is_told_with_all_that_it_takes_to_make_it_again(file: RecordingFile) -> None:
    stream = Stream("values", "label", "<i4", (2,), -1, attributes={"CATEGORIES": Link("c"), "units": "m"})
    with file.structure():
        file.create_instrument("cam", {"instrument_id": "cam", "created_at": "now"})
        file.create_group("cam/packed", {"CLASS": "STRING_VALUES", "VERSION": 1})
        file.create_group("cam/packed", {"CLASS": "STRING_VALUES", "VERSION": 1})  # which is there already
        file.create_document("cam/schema", "ä{}")
        file.create_bytes("cam/raw", b"\0\1\xff")
        made = file.create_dataset("cam/label", stream, 4, GZIP, 3)
        labels = file.create_dataset("cam/c", NUMBERS, 4, NONE)
        file.link("cam/", [stream])
        file.replace(labels, "cam/d")
        file.set_metadata("metadata", {"key": [1, {"a": None}]})
    file.note("attach", {"ring": 3}, b"blob")
    found = [record for record in told(file) if isinstance(record, Operation)]
    arguments = {record.name: record.arguments for record in found}
    assert [record.name for record in found[1:]] == [
        "create_instrument",
        "create_group",
        "create_document",
        "create_bytes",
        "create_dataset",
        "create_dataset",
        "link",
        "replace",
        "set_metadata",
        "end",
        "attach",
    ]
    assert arguments["create_instrument"]["attributes"] == {"instrument_id": "cam", "created_at": "now"}
    assert arguments["create_group"]["attributes"] == {"CLASS": "STRING_VALUES", "VERSION": 1}
    assert arguments["create_document"] == {"path": "cam/schema", "text": "ä{}"}
    assert arguments["replace"] == {"number": 1, "path": "cam/d"}
    assert arguments["set_metadata"] == {"path": "metadata", "values": {"key": [1, {"a": None}]}}
    told_dataset = found[5].arguments
    assert stream_from_dict(told_dataset.pop("stream")) == stream
    assert Codec(**told_dataset.pop("codec")) == GZIP
    assert told_dataset == {"path": "cam/label", "chunk_items": 4, "items": 3}
    assert (made.number, labels.number) == (0, 1)
    with JournalReader(recovery_folder(file.path) / "journal") as journal:
        blobs = [journal.load(record) for record in found if record.length]
    assert blobs == [b"\0\1\xff", b"blob"]


def test_a_flush_puts_the_journal_down_and_says_how_far_it_is(file: RecordingFile) -> None:
    dataset = make(file)
    before = told(file)
    dataset.grow(8)
    for index in range(2):
        dataset.write_chunk(index, chunk(*[index] * 4), 0)
    assert told(file) == before
    position = file.flush()
    assert position == (recovery_folder(file.path) / "journal").stat().st_size
    (record,) = told(file)[len(before) :]
    assert isinstance(record, Chunks)
    assert record.end == position
    assert record.entries[["dataset", "index", "filter_mask", "items", "length"]].tolist() == [
        (0, 0, 0, 8, 32),
        (0, 1, 0, 8, 32),
    ]
    assert file.flush() == position


def check_places(file: RecordingFile, *, inline: int = 0) -> None:
    """Hold the journal's chunks against the bytes of the file, and against what HDF5 itself says of them."""
    file.flush()
    chronicle = Chronicle(recovery_folder(file.path) / "journal", payloads=True)
    stored = file.path.read_bytes()
    found_inline = 0
    with reopened(file) as found:
        for number, entries in chronicle.chunks().items():
            told_dataset, dataset = chronicle.datasets[number], file.datasets[number]
            if told_dataset.path is None:
                continue
            assert dataset
            infos: dict[int, Any] = {}
            found[told_dataset.path].id.chunk_iter(
                lambda info, infos=infos, told=told_dataset: infos.update(
                    {info.chunk_offset[0] // told.chunk_items: info}
                )
            )
            assert entries.dtype == ENTRY
            assert sorted(infos) == entries["index"].tolist()
            for entry in entries:
                info = infos[int(entry["index"])]
                payload = stored[info.byte_offset : info.byte_offset + info.size]
                assert (len(payload), zlib.crc32(payload)) == (int(entry["length"]), int(entry["crc"]))
                assert info.filter_mask == int(entry["filter_mask"])
                if entry["reserved"]:
                    found_inline += 1
                    assert chronicle.load_chunk(entry) == payload
                else:
                    assert info.byte_offset == int(entry["offset"])
    assert found_inline == inline


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd", "lzf"])
@pytest.mark.parametrize("items", [3, 500, 40_000])
def test_chunks_are_where_the_journal_says(file: RecordingFile, codec: str, items: int) -> None:
    """Whatever else is in the file, and however large they are; large ones begin on a page."""
    random = np.random.default_rng(1)
    parsed = Codec.parse(codec)
    encode = parsed.encoder(8, 8 * items) if parsed.direct else None
    datasets: list[Dataset] = []
    for number in range(3):
        with file.structure():  # objects between the chunks
            datasets.append(file.create_dataset(f"d{number}", NUMBERS, items, parsed))
            file.create_document(f"text{number}", "x" * 5000)
        for dataset in datasets:
            for index in range(dataset.known_items // items, dataset.known_items // items + 3):
                data = random.integers(0, 2 ** (5 * index + 5), items).view(np.uint8)
                dataset.grow((index + 1) * items)
                if encode:
                    dataset.write_chunk(index, *encode(data))
                elif dataset.skip_mask:
                    dataset.filter_chunk(index, data)
                else:
                    dataset.write_chunk(index, data, 0)
            file.flush()
    check_places(file)


def test_a_chunk_that_is_written_again_in_its_place_is_told_anew(file: RecordingFile) -> None:
    """As the tails are that readers are shown."""
    dataset, other = make(file, codec=GZIP), make(file, "other")
    for index in range(2):
        for number in range(3):
            for each in (dataset, other):
                each.grow(4 * index + 3)
                each.write_chunk(index, chunk(index, number, 0, 0), each.skip_mask)
            check_places(file)
        make(file, f"beside-{index}")
    with reopened(file) as found:
        assert found["n"][:].tolist() == [0, 2, 0, 0, 1, 2, 0]


def test_a_chunk_whose_place_is_not_known_is_in_the_journal_itself(file: RecordingFile) -> None:
    """Of the length that it had before, it goes where it was, and HDF5 does not say where that is."""
    dataset, small = make(file, codec=GZIP), zlib.compress(b"0" * 32)
    dataset.grow(8)
    for index in (0, 1):
        dataset.write_chunk(index, small, 0)
    check_places(file)
    dataset.write_chunk(0, zlib.compress(b"1" * 32), 0)
    check_places(file, inline=1)
    dataset.write_chunk(0, zlib.compress(bytes(range(32))), 0)  # longer: it goes to the end
    check_places(file)
    assert [type(record) for record in told(file) if isinstance(record, Chunks | Inline)] == [
        Chunks,
        Inline,
        Chunks,
    ]


def pages_file(folder: Path, *, recoverable: bool) -> tuple[RecordingFile, Dataset, bytes]:
    """Make a file in memory with a dataset whose chunks reach over a large page, and such a chunk."""
    file = RecordingFile.create(folder / "recording.h5", {}, "{}", recoverable=recoverable)
    data = np.random.default_rng(3).integers(256, size=3 * BLOCK_BYTES, dtype=np.uint8).tobytes()
    with file.structure():
        return file, file.create_dataset("n", NUMBERS, len(data) // 8, NONE), data


@pytest.mark.parametrize("recoverable", [True, False])
def test_a_tail_that_is_shown_again_and_again_takes_its_place_once(
    shared_folder: Path, recoverable: bool
) -> None:
    file, dataset, data = pages_file(shared_folder, recoverable=recoverable)
    dataset.grow(5)
    dataset.write_chunk(0, data, 0)
    size = file.size
    for items in (6, 7, dataset.chunk_items):  # in the end it is whole, and no tail any more
        dataset.grow(items)
        dataset.write_chunk(0, data, 0)
        file.flush()
        assert file.size < size + BLOCK_BYTES // 2
    if recoverable:
        check_places(file)
    file.close()


def test_a_place_is_not_mistaken_where_a_page_was_prepared_for_what_went_elsewhere(
    shared_folder: Path,
) -> None:
    file, dataset, data = pages_file(shared_folder, recoverable=True)
    dataset.grow(5)
    dataset.write_chunk(0, data, 0)
    dataset.places.clear()  # as if it were whole
    dataset.write_chunk(0, data, 0)
    check_places(file, inline=1)
    dataset.grow(2 * dataset.chunk_items)
    for _ in range(2):
        dataset.write_chunk(1, data[::-1], 0)
    file.flush()
    file.finish("complete", "{}", {})
    with h5py.File(file.path) as found:
        assert found["n"][:].tobytes() == data + data[::-1]


def test_items_that_hdf5_places_are_told_themselves(file: RecordingFile) -> None:
    texts = make(file, "text", NONE, Stream("values", "text", "utf8"))
    blobs = make(file, "blob", NONE, Stream("values", "blob", "bytes"))
    values = np.empty(3, object)
    values[:] = [np.frombuffer(blob, np.uint8) for blob in (b"\0", b"", b"\xff" * 300)]
    for start in (0, 3):
        texts.grow(start + 3)
        texts.write_variable(start, np.array(["ä", "", "x" * 300], object))
        blobs.grow(start + 3)
        blobs.write_variable(start, values)
    file.flush()
    records = [record for record in told(file) if isinstance(record, Items)]
    assert [(record.dataset, record.first, record.items) for record in records] == [
        (0, 0, 3),
        (1, 0, 3),
        (0, 3, 3),
        (1, 3, 3),
    ]
    with JournalReader(recovery_folder(file.path) / "journal") as journal:
        assert journal.values(records[2]) == ["ä".encode(), b"", b"x" * 300]
        assert journal.values(records[3]) == [b"\0", b"", b"\xff" * 300]


def test_checksums_stand_at_the_numbers_of_their_chunks(file: RecordingFile) -> None:
    with file.structure():
        file.create_instrument("cam", {})
    dataset = make(file, "cam/n", GZIP)
    make(file, "cam/empty")
    gone = make(file, "cam/gone")
    gone.grow(4)
    gone.write_chunk(0, chunk(1, 2, 3, 4), 0)
    make(file, "cam/gone")
    dataset.grow(16)
    for index in (3, 1):
        dataset.write_chunk(index, chunk(index, 0, 0, 0), dataset.skip_mask)
    file.finish("complete", "{}", {"cam": 16})
    with h5py.File(file.path) as found:
        checksums = found["_shmstore/checksums"]
        assert {checksums[name].attrs["path"]: checksums[name][:].tolist() for name in checksums} == {
            "/cam/n": [0, zlib.crc32(chunk(1, 0, 0, 0)), 0, zlib.crc32(chunk(3, 0, 0, 0))]
        }
    file.path.unlink()


def test_of_a_damaged_journal_no_checksum_is_kept(file: RecordingFile) -> None:
    """Those in front of the damage would make the chunks behind it look damaged."""
    dataset = make(file)
    dataset.grow(8)
    for index in range(2):
        dataset.write_chunk(index, chunk(index, 0, 0, 0), dataset.skip_mask)
        file.flush()
    with (recovery_folder(file.path) / "journal").open("r+b") as journal:
        journal.seek(-10, os.SEEK_END)  # in the second record
        journal.write(b"damage")
    file.finish("complete", "{}", {})
    with h5py.File(file.path) as found:
        assert list(found["_shmstore/checksums"]) == []
        assert found["n"][::4].tolist() == [0, 1]
    file.path.unlink()


# -- one that goes on ------------------------------------------------------------------------------------


def test_a_file_is_taken_up_where_it_was_left(file: RecordingFile) -> None:
    encode = GZIP.encoder(8, 32)
    assert encode
    dataset, gone = make(file, codec=GZIP), make(file, "gone")
    make(file, "gone")
    for index in range(2):
        dataset.grow(4 * index + 4)
        dataset.write_chunk(index, *encode(chunk(*[index] * 4)))
    end = file.flush()
    assert file.datasets[1] is None
    assert gone.number == 1
    # A copy of what a kill would leave now; what the journal has behind its end does not count.
    path = file.path.with_name("left.h5")
    shutil.copy(file.path, path)
    shutil.copytree(recovery_folder(file.path), recovery_folder(path))
    with (recovery_folder(path) / "journal").open("ab") as journal:
        journal.write(b"torn")
    again = RecordingFile.resume(path, Journal.reopen(recovery_folder(path) / "journal", end))
    taken = again.restore_dataset("n", NUMBERS, 4, GZIP)
    assert (taken.number, taken.skip_mask, taken.chunk_bytes, taken.id.shape) == (0, 3, 32, (8,))
    assert [taken.stored_chunk(index) for index in range(2)] == [
        (mask, bytes(payload)) for payload, mask in (encode(chunk(*[index] * 4)) for index in range(2))
    ]
    taken.known_items = 8
    taken.grow(12)
    taken.write_chunk(2, chunk(2, 2, 2, 2), taken.skip_mask)
    again.note("attach", {"ring": 1})
    again.flush()
    with reopened(again) as found:
        assert found["n"][:].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [record.end for record in told(again)][: len(told(file))] == [record.end for record in told(file)]
    assert operations(again) == [*operations(file), "attach"]
    again.close()
    again.path.unlink()


def test_references_beyond_what_counts_are_blanked(file: RecordingFile) -> None:
    """They may lead nowhere, and HDF5 would follow them when their items are written again."""
    dataset = make(file, "text", NONE, Stream("values", "text", "utf8"))
    texts = np.array([f"text {row}" for row in range(5000)], object)
    dataset.grow(10_000)  # of which a whole chunk was never written
    dataset.write_variable(0, texts)
    file.flush()
    dataset.blank_references(3)
    file.flush()
    with reopened(file) as found:
        assert found["text"][:5].tolist() == [b"text 0", b"text 1", b"text 2", b"", b""]
        assert not any(found["text"][5:])


# -- metadata --------------------------------------------------------------------------------------------

PLAIN: dict[str, Any] = {
    "text": "naïve",
    "empty": "",
    "long": "x" * 100_000,
    "yes": True,
    "small": -(2**63),
    "large": 2**64 - 1,
    "real": 0.1,
    "infinite": float("inf"),
    "integers": [1, -2, 2**63 - 1],
    "reals": [0.5] * 20_000,
    "flags": [True, False],
    "words": ["a", "", "ß"],
    "a/b": 1,
    ".": 2,
}
AS_JSON: dict[str, Any] = {
    "nothing": None,
    "nested": {"a": [1, {"b": None}]},
    "mixed": [1, "a", 2.5],
    "huge": 2**64,
    "huge list": [2**63],
    "no items": [],
    "matrix": [[1, 2], [3, 4]],
}


def test_metadata_of_every_kind_comes_back(file: RecordingFile) -> None:
    with file.structure():
        for key, value in (PLAIN | AS_JSON).items():
            file.set_metadata("metadata", {key: value})
    with reopened(file) as found:
        attributes = found["metadata"].attrs
        assert set(attributes) == {*PLAIN, *AS_JSON, "_json_keys"}
        for key, value in PLAIN.items():
            stored = attributes[key]
            plain = stored.tolist() if hasattr(stored, "tolist") else stored
            assert (plain, type(plain)) == (value, type(value)), key
        assert sorted(attributes["_json_keys"]) == sorted(AS_JSON)
        for key, value in AS_JSON.items():
            assert json.loads(attributes[key]) == value


def test_metadata_may_change_its_kind(file: RecordingFile) -> None:
    for value in (1, {"a": 1}, "text", None, [1, 2]):
        with file.structure():
            file.set_metadata("metadata", {"key": value, "other": {}})
    with reopened(file) as found:
        attributes = found["metadata"].attrs
        assert attributes["key"].tolist() == [1, 2]
        assert attributes["_json_keys"].tolist() == ["other"]
    with file.structure():
        file.set_metadata("metadata", {"other": 1})
    with reopened(file) as found:
        assert set(found["metadata"].attrs) == {"key", "other"}


# -- the end ---------------------------------------------------------------------------------------------


def test_the_end_is_stamped_and_plain_h5py_opens_the_file(file: RecordingFile) -> None:
    with file.structure():
        file.create_instrument("cam", {"instrument_id": "cam"})
    dataset = make(file, "cam/n")
    dataset.grow(3)
    dataset.write_chunk(0, chunk(1, 2, 3, 0), 0)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    file.finish("partial", '{"ok": false}', {"cam": 3})
    assert len(os.listdir("/proc/self/fd")) < before  # noqa: PTH208
    with h5py.File(file.path) as found:
        assert found.attrs["state"] == "partial"
        assert found["_shmstore"].attrs["accounting"] == '{"ok": false}'
        assert found["cam"].attrs["NROWS"] == 3
        assert found["cam/n"][:].tolist() == [1, 2, 3]
    file.path.unlink()


def test_checksums_that_the_disk_refuses_are_no_end_of_the_file(tmp_path: Path) -> None:
    """For a moment only, and those of the first dataset: HDF5 says so when they are flushed, or never."""
    with Child(
        "import os, resource",
        "from pathlib import Path",
        "import numpy as np",
        "import shmstore.recordingfile as module",
        "from shmstore.codec import Codec",
        "from shmstore.layout import Stream",
        f"file = module.RecordingFile.create(Path({str(tmp_path / 'recording.h5')!r}), {{}}, '{{}}')",
        "with file.structure():",
        "    made = [file.create_dataset(name, Stream('values', name, '<i8'), 4, Codec.parse('none'))",
        "            for name in ('a', 'b')]",
        "for dataset in made:",
        "    dataset.grow(4)",
        "    dataset.write_chunk(0, np.arange(4), 0)",
        "limits = resource.getrlimit(resource.RLIMIT_FSIZE)",
        "step = module.step",
        "def limited(name):",
        "    step(name)",
        "    if name == 'close.stamped':",
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (file.size, limits[1]))",
        "    if name == 'close.checksums_written':",
        "        resource.setrlimit(resource.RLIMIT_FSIZE, limits)",
        "module.step = limited",
        "try:",
        "    file.finish('complete', '{}', {})",
        "    say('finished')",
        "except (OSError, RuntimeError):",
        "    say('refused')",
        "os._exit(0)",
    ) as child:
        assert child.hear() == "refused"
