"""Finished recordings, written by plain h5py, read back: equal, or an error that names what is damaged."""

from __future__ import annotations

import errno
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from plain_file import CREATED, add_instrument, add_table, finish_file, start_file

from shmstore import reader
from shmstore.errors import ClosedError, IncompleteFileError, InvalidValueError, StorageError
from shmstore.planning import plan


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "daq_session_20260102_030405.h5"


ROWS = 40
NUMBERS: dict[str, pa.DataType] = {
    str(type_): type_
    for type_ in [
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.float16(), pa.float32(), pa.float64()),
    ]
}
TIMES: dict[str, pa.DataType] = {
    str(type_): type_
    for type_ in [
        *(pa.timestamp("ns", "UTC"), pa.timestamp("s"), pa.date32(), pa.time32("ms"), pa.time64("ns")),
        pa.duration("us"),
    ]
}


def everything() -> pa.Table:
    """Return a table of every type, each with a null in row 5 and in the last."""
    holes = np.zeros(ROWS, bool)
    holes[[5, ROWS - 1]] = True
    numbers = np.arange(ROWS)
    columns: dict[str, pa.Array] = {}
    for name, type_ in NUMBERS.items():
        columns[name] = pa.array(numbers.astype(type_.to_pandas_dtype()), type_, mask=holes)
    for name, type_ in TIMES.items():
        raw = pa.array(numbers, pa.int64() if type_.bit_width == 64 else pa.int32(), mask=holes)
        columns[name] = raw.cast(type_)
    columns["bool"] = pa.array(numbers % 3 == 0, mask=holes)
    words = np.array([f"wörd {number}"[: number % 9] for number in numbers], dtype=object)
    columns["text"] = pa.array(words, pa.string(), mask=holes)
    columns["large text"] = pa.array(words, pa.large_string(), mask=holes)
    triples: list[Any] = [
        None if hole else [i, None if i == 7 else i + 1, -i] for i, hole in enumerate(holes)
    ]
    columns["triples"] = pa.array(triples, pa.list_(pa.int32(), 3))
    columns["flags"] = pa.array([[i % 2 == 0, i % 3 == 0] for i in range(ROWS)], pa.list_(pa.bool_(), 2))
    columns["raw"] = pa.array(
        [None if hole else bytes([i, 0, i]) for i, hole in enumerate(holes)], pa.binary(3)
    )
    images = np.arange(ROWS * 6, dtype=np.uint16).reshape(ROWS, 2, 3)
    columns["frame"] = pa.FixedShapeTensorArray.from_numpy_ndarray(images)
    schema = pa.schema(
        [pa.field(name, array.type, metadata={"units": "V"}) for name, array in columns.items()],
        metadata={"origin": "test"},
    )
    return pa.Table.from_arrays(list(columns.values()), schema=schema)


@pytest.fixture
def finished(path: Path) -> Path:
    """Return a finished file with the instruments ``everything`` and ``camera/1``."""
    with start_file(path) as file:
        add_table(file, "everything", everything(), "packed", compression="gzip", shuffle=True)
        table = pa.table({"time": pa.array(range(100), pa.int64()), "name": [f"n{i}" for i in range(100)]})
        add_table(file, "camera/1", table, "vlen")
        finish_file(file)
    return path


# -- finished ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strings", ["vlen", "packed", "fixed:12"])
def test_a_table_of_every_type_comes_back_equal(path: Path, strings: str) -> None:
    table = everything()
    with start_file(path) as file:
        add_table(file, "x", table, strings, compression="gzip", shuffle=True)
        finish_file(file)
    found = reader.read(path, "x")
    assert found.equals(table, check_metadata=True)
    found.validate(full=True)


@pytest.mark.parametrize("strings", ["vlen", "packed"])
def test_binary_values_come_back_equal(path: Path, strings: str) -> None:
    table = pa.table(
        {
            "b": pa.array([b"", None, b"\0a", b"b\0"], pa.binary()),
            "l": pa.array([b"x"] * 4, pa.large_binary()),
        }
    )
    with start_file(path) as file:
        add_table(file, "x", table, strings)
        finish_file(file)
    assert reader.read(path, "x").equals(table)


def test_datasets_made_by_hand_are_understood(path: Path) -> None:
    schema = pa.schema([("number", pa.int16()), ("word", pa.string())])
    with start_file(path) as file:
        group = add_instrument(file, "x", plan(schema, lambda _: "packed"))
        group["number"] = np.array([1, 2, 3, 4], "<i2")
        # Shorter than the values: what lies beyond is valid.
        group["_arrow/validity/0"] = np.array([True, False])
        group["word/OFFSETS"] = np.array([0, 2, 2, 5, 5], "<u8")
        group["word/CHARS"] = np.frombuffer(b"abcde", np.uint8)
        group["word/MASK"] = np.array([True, True, True, False])
        group.attrs["NROWS"] = np.uint64(4)
        finish_file(file)
    expected = pa.table({"number": [1, None, 3, 4], "word": ["ab", "", "cde", None]}, schema=schema)
    assert reader.read(path, "x").equals(expected)
    assert reader.read(path, "x", start=2).equals(expected.slice(2))


SLICES = [
    (0, None),
    (5, 9),
    (6, 8),
    (-3, None),
    (-200, 3),
    (10, 10_000),
    (30, 10),
    (40, 41),
    (None, None),
    (0, 0),
]


@pytest.mark.parametrize(("start", "stop"), SLICES)
def test_row_ranges_are_those_of_a_slice(finished: Path, start: int | None, stop: int | None) -> None:
    table = everything()
    first, last, _ = slice(start, stop).indices(ROWS)
    found = reader.read(finished, "everything", start=start, stop=stop)
    assert found.equals(table.slice(first, max(0, last - first)), check_metadata=True)


def test_columns_come_in_the_order_asked(finished: Path) -> None:
    with reader.open(finished) as recording:
        found = recording["everything"].read(columns=["text", 0, "frame", -1])
        assert found.column_names == ["text", "int8", "frame", "frame"]
        assert found.schema.metadata == {b"origin": b"test"}
        assert found.column("text").equals(everything().column("text"))


def test_a_selection_of_no_columns_has_rows(finished: Path) -> None:
    assert reader.read(finished, "camera/1", columns=[], start=10).num_rows == 90


def test_doubled_columns_are_read_by_position(path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1, 2]), pa.array(["a", "b"])], names=["x", "x"])
    with start_file(path) as file:
        add_table(file, "d", table, "vlen")
        finish_file(file)
    with reader.open(path) as recording:
        assert recording["d"].read().equals(table)
        assert recording["d"].columns == ["x", "x"]
        assert recording["d"].read(columns=[1]).column(0).to_pylist() == ["a", "b"]
        with pytest.raises(InvalidValueError, match=r"2 columns 'x'.*position, 0 or 1"):
            recording["d"].read(columns=["x"])


def test_instrument_without_columns_has_the_rows_that_were_counted(path: Path) -> None:
    with start_file(path) as file:
        add_instrument(file, "ticks", plan(pa.schema([]), lambda _: "vlen")).attrs["NROWS"] = np.uint64(12)
        finish_file(file)
    with reader.open(path) as recording:
        assert recording["ticks"].num_rows == recording["ticks"].read().num_rows == 12


def test_instrument_without_rows_has_its_schema(path: Path) -> None:
    table = everything().slice(0, 0)
    with start_file(path) as file:
        add_instrument(file, "x", plan(table.schema, lambda _: "packed")).attrs["NROWS"] = np.uint64(0)
        finish_file(file)
    with reader.open(path) as recording:
        assert recording["x"].read().equals(table, check_metadata=True)
        assert list(recording["x"].iter_batches()) == []


def test_batches_are_the_table_in_pieces(finished: Path) -> None:
    with reader.open(finished) as recording:
        batches = list(recording["everything"].iter_batches(batch_rows=9))
        assert [batch.num_rows for batch in batches] == [9, 9, 9, 9, 4]
        assert pa.Table.from_batches(batches).equals(everything(), check_metadata=True)
        with pytest.raises(InvalidValueError, match="batch_rows=0"):
            recording["everything"].iter_batches(batch_rows=0)


def test_an_instrument_is_an_arrow_stream(finished: Path) -> None:
    with reader.open(finished) as recording:
        stream = pa.RecordBatchReader.from_stream(recording["everything"])
        assert stream.read_all().equals(everything(), check_metadata=True)


def test_what_was_read_outlives_the_file(finished: Path) -> None:
    with reader.open(finished) as recording:
        instrument = recording["everything"]
        table = instrument.read()
    assert table.equals(everything())
    for use in (
        lambda: instrument.num_rows,
        instrument.read,
        recording.refresh,
        lambda: recording["everything"],
    ):
        with pytest.raises(ClosedError, match="was closed: open it again"):
            use()
    recording.close()


@pytest.mark.parametrize("locking", [None, True, False])
def test_h5py_may_have_the_file_open_too(finished: Path, locking: bool | None) -> None:
    with h5py.File(finished, "r", locking=locking) as file, reader.open(finished) as recording:
        assert recording["camera/1"].read().column("time").to_pylist() == file["camera%2F1/time"][:].tolist()
    with reader.open(finished) as recording, h5py.File(finished, "r") as file:
        assert recording["camera/1"].num_rows == len(file["camera%2F1/time"])


def test_a_recording_says_what_it_is(finished: Path) -> None:
    with reader.open(finished) as recording:
        assert recording.path == finished
        assert (recording.state, recording.live) == ("complete", False)
        assert recording.instruments == list(recording) == ["everything", "camera/1"]
        assert len(recording) == 2
        assert "camera/1" in recording
        assert recording.created_at == datetime.fromisoformat(CREATED)
        assert recording.application == "shmstore 0.1.0"
        assert recording.accounting == {"producers": [], "ok": True, "problems": []}
        assert repr(recording) == f"<Recording {str(finished)!r}, complete, 2 instruments>"
        assert recording["camera/1"].datasets("time") == {"values": "/camera%2F1/time"}
        assert recording["everything"].datasets("text") == {
            "offsets": "/everything/text/OFFSETS",
            "chars": "/everything/text/CHARS",
            "validity": "/everything/text/MASK",
        }


def test_metadata_are_the_values_that_were_set(path: Path) -> None:
    plain = {"text": "ä", "yes": True, "count": -4, "gain": 0.5, "list": [1, 2], "words": ["a", "b"]}
    with start_file(path) as file:
        group = add_table(file, "x", pa.table({"a": [1]}), "vlen")
        for attributes in (file["metadata"].attrs, group.attrs):
            for key, value in plain.items():
                attributes[key] = np.array(value, h5py.string_dtype()) if key == "words" else value
            attributes["blob"] = np.void(b"a\0b")
            attributes["nothing"], attributes["tree"] = "null", '{"a": [1, "b"]}'
            attributes["_json_keys"] = np.array(["nothing", "tree"], h5py.string_dtype())
        finish_file(file)
    expected = plain | {"blob": b"a\0b", "nothing": None, "tree": {"a": [1, "b"]}}
    with reader.open(path) as recording:
        for found in (recording.metadata, recording["x"].metadata):
            assert found == expected
            assert {key: type(value) for key, value in found.items()} == {
                k: type(v) for k, v in expected.items()
            }


# -- what is wrong -------------------------------------------------------------------------------------------


def test_unknown_names_are_answered_with_the_nearest(finished: Path) -> None:
    with reader.open(finished) as recording:
        with pytest.raises(IncompleteFileError, match="no instrument 'camera_1': did you mean 'camera/1'"):
            recording["camera_1"]
        with pytest.raises(IncompleteFileError, match="no column 'tim': did you mean 'time'"):
            recording["camera/1"].read(columns=["tim"])
        with pytest.raises(IncompleteFileError, match="no column 2: it has 2"):
            recording["camera/1"].read(columns=[2])
        with pytest.raises(InvalidValueError, match="'time' is one name"):
            recording["camera/1"].read(columns="time")


def test_a_file_that_is_not_there_keeps_the_systems_errno(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="check its name") as caught:
        reader.open(tmp_path / "nothing.h5")
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == str(tmp_path / "nothing.h5")
    with pytest.raises(StorageError, match="name a file in it") as caught:
        reader.open(tmp_path)
    assert caught.value.errno == errno.EISDIR


def test_what_is_no_recording_is_named(path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(IncompleteFileError, match=r"\.h5 is empty"):
        reader.open(path)
    path.write_bytes(b"time,value\n1,2\n" * 100)
    with pytest.raises(IncompleteFileError, match="is no HDF5 file: name a file that shmstore recorded"):
        reader.open(path)
    with h5py.File(path, "w") as file:
        file["x"] = [1]
    with pytest.raises(IncompleteFileError, match="no shmstore recording: open it with h5py"):
        reader.open(path)


def test_a_newer_format_is_refused(finished: Path) -> None:
    with h5py.File(finished, "r+") as file:
        file["_shmstore"].attrs["format_version"] = "1.9"
    reader.open(finished).close()
    with h5py.File(finished, "r+") as file:
        file["_shmstore"].attrs["format_version"] = "2.0"
    with pytest.raises(IncompleteFileError, match=r"has format 2.0, newer .*: update shmstore"):
        reader.open(finished)


def test_a_file_cut_in_half_is_named(finished: Path) -> None:
    content = finished.read_bytes()
    finished.write_bytes(content[: len(content) // 2])
    with pytest.raises(IncompleteFileError, match=r"is cut off .*copy it again"):
        reader.open(finished)


def shrink(group: h5py.Group) -> None:
    group["time"].resize(99, 0)


def stretch(group: h5py.Group) -> None:
    group["time"].resize(101, 0)


def remove(group: h5py.Group) -> None:
    del group["time"]


def retype(group: h5py.Group) -> None:
    del group["time"]
    group["time"] = np.arange(100, dtype="<i4")


def reshape(group: h5py.Group) -> None:
    del group["time"]
    group["time"] = np.zeros((100, 2), dtype="<i8")


def regroup(group: h5py.Group) -> None:
    del group["time"]
    group.create_group("time")


def leave_a_hole(group: h5py.Group) -> None:
    values = group["time"][:]
    del group["time"]
    dataset = group.create_dataset("time", (100,), "<i8", maxshape=(None,), chunks=(10,))
    dataset[20:] = values[20:]


DAMAGES = {
    shrink: "has 99 rows where 100 were recorded",
    stretch: "has 101 rows where 100 were recorded",
    remove: "has 0 rows where 100 were recorded",
    retype: "items of type int32.*layout says <i8",
    reshape: r"shape \(2,\)",
    regroup: "is no dataset",
    leave_a_hole: "has 8 chunks where 10 belong",
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.items(), ids=lambda item: getattr(item, "__name__", ""))
def test_a_damaged_column_is_named_and_the_others_are_readable(
    finished: Path, damage: Callable[[h5py.Group], None], words: str
) -> None:
    with h5py.File(finished, "r+") as file:
        damage(file["camera%2F1"])
    with reader.open(finished) as recording:
        camera = recording["camera/1"]
        with pytest.raises(
            IncompleteFileError, match=f"instrument 'camera/1', column 'time': .*{words}"
        ) as caught:
            camera.read(start=0, stop=5)
        assert str(caught.value).startswith(str(finished))
        assert "\n" not in str(caught.value)
        assert camera.read(columns=["name"]).num_rows == 100


def test_a_broken_chunk_is_an_error(finished: Path) -> None:
    with h5py.File(finished, "r+") as file:
        info = file["everything/int64"].id.get_chunk_info(2)
    with finished.open("r+b") as raw:
        raw.seek(info.byte_offset)
        raw.write(b"\xff" * info.size)
    with reader.open(finished) as recording:
        assert recording["everything"].read(columns=["int64"], stop=14).num_rows == 14
        with pytest.raises(IncompleteFileError, match=r"column 'int64': damaged .*filter"):
            recording["everything"].read(columns=["int64"])


def test_packed_offsets_that_lead_nowhere_are_an_error(finished: Path) -> None:
    with h5py.File(finished, "r+") as file:
        file["everything/text/CHARS"].resize(10, 0)
    with pytest.raises(IncompleteFileError, match="column 'text': 'text/CHARS' has 10 items where"):
        reader.read(finished, "everything")
    with h5py.File(finished, "r+") as file:
        file["everything/text/OFFSETS"][3] = 2**40
    with pytest.raises(IncompleteFileError, match="column 'text'"):
        reader.read(finished, "everything", columns=["text"], stop=4)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 1, "columns": [{"name": "time"}]}', '{"version": 99}']
)
def test_a_broken_layout_is_an_error(finished: Path, text: str) -> None:
    with h5py.File(finished, "r+") as file:
        file["camera%2F1/_arrow/layout"][()] = text
    with (
        reader.open(finished) as recording,
        pytest.raises(IncompleteFileError, match="instrument 'camera/1'"),
    ):
        recording["camera/1"].read()


def test_a_broken_schema_is_an_error(finished: Path) -> None:
    with h5py.File(finished, "r+") as file:
        file["camera%2F1/_arrow/schema"][:] = 0
    with (
        reader.open(finished) as recording,
        pytest.raises(IncompleteFileError, match="instrument 'camera/1'"),
    ):
        _ = recording["camera/1"].schema


def test_a_missing_schema_is_an_error_once_rows_are_wanted(finished: Path) -> None:
    with h5py.File(finished, "r+") as file:
        del file["camera%2F1/_arrow"]
    with reader.open(finished) as recording, pytest.raises(IncompleteFileError, match="has no schema"):
        recording["camera/1"].read()


def test_broken_root_attributes_are_an_error(finished: Path) -> None:
    with h5py.File(finished, "r+") as file:
        file.attrs["created_at"] = "yesterday"
    with pytest.raises(IncompleteFileError, match=r"root attributes: damaged .*yesterday"):
        reader.open(finished)
