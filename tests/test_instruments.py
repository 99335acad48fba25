"""Instruments: who may join one, what their metadata may be, and what is refused."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import pyarrow as pa
import pytest

from shmstore.config import StorageConfig
from shmstore.dataset import RecordingFile
from shmstore.errors import (
    BrokenError,
    ConfigError,
    InvalidValueError,
    SchemaMismatchError,
    UnsupportedTypeError,
)
from shmstore.instruments import Instruments, check_metadata
from shmstore.pipeline import CodecPipeline
from shmstore.session import Session

SCHEMA = pa.schema([pa.field("n", pa.int64()), pa.field("x", pa.float32(), nullable=False)])


def serialized(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize()).decode()


class Recording:
    """What instruments share, and a look at the file at the end."""

    def __init__(self, path: Path, shm_dir: Path) -> None:
        self.file = RecordingFile.create(path, {}, "{}")
        self.pipeline = CodecPipeline(1, 1 << 20, lambda: None)
        self.session = Session.create(shm_dir, "test")
        config = StorageConfig(instruments={"cam": {"compression": "zstd"}})
        self.instruments = Instruments(self.file, self.pipeline, config, self.session)
        self.ended = False

    def end(self) -> Any:
        """Finish the file and open it."""
        self.ended = True
        for instrument in self.instruments:
            instrument.assembly.finish()
            instrument.assembly.close()
        self.file.finish("complete", "{}", {})
        return h5py.File(self.file.path)


@pytest.fixture
def recording(tmp_path: Path, shared_folder: Path) -> Iterator[Recording]:
    made = Recording(tmp_path / "recording.h5", shared_folder)
    yield made
    if not made.ended:
        made.end().close()
    made.pipeline.close()
    made.session.close()
    made.session.remove()


# -- joining ---------------------------------------------------------------------------------------------


def test_an_instrument_is_made_once_with_what_is_configured_for_it(recording: Recording) -> None:
    made = recording.instruments.ensure("cam", {"chunk_rows": 10})
    assert recording.instruments.ensure("cam", {"chunk_rows": 10}) is made
    assert recording.instruments.ensure("cam", {}) is made
    assert recording.instruments["cam"] is made
    assert list(recording.instruments) == [made]
    config = made.assembly.config
    assert (config.chunk_rows, config.default_column.codec.name) == (10, "zstd")


def test_producers_of_an_instrument_agree_but_for_their_rings(recording: Recording) -> None:
    made = recording.instruments.ensure("cam", {"chunk_rows": 10, "ring_bytes": 1 << 20, "on_full": "raise"})
    assert recording.instruments.ensure("cam", {"chunk_rows": 10, "ring_bytes": 1 << 21}) is made
    assert recording.instruments.ensure("cam", {"put_timeout_s": 3}) is made
    with pytest.raises(ConfigError, match=r"'cam'.*'chunk_rows': 10.*'chunk_rows': 20"):
        recording.instruments.ensure("cam", {"chunk_rows": 20})


@pytest.mark.parametrize("instrument_id", ["", "x" * 5000, "\ud800"])
def test_an_id_that_cannot_be_used_is_refused(recording: Recording, instrument_id: str) -> None:
    with pytest.raises(InvalidValueError, match="instrument id"):
        recording.instruments.ensure(instrument_id, {})
    assert not list(recording.instruments)


def test_ids_of_any_kind_have_their_own_group(recording: Recording) -> None:
    ids = ["metadata", "%6Detadata", "_shmstore", "a/b", "a%2Fb", "..", ".", "ä", "x" * 4000, "x" * 4001]
    for instrument_id in ids:
        recording.instruments.ensure(instrument_id, {})
    with recording.end() as file:
        found = [group.attrs["instrument_id"] for group in file.values() if "instrument_id" in group.attrs]
        assert found == ids
        assert len(file) == len(ids) + 2


def test_wrong_options_leave_no_group(recording: Recording) -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        recording.instruments.ensure("new", {"nonsense": 1})
    with recording.end() as file:
        assert set(file) == {"metadata", "_shmstore"}


# -- schemas ---------------------------------------------------------------------------------------------


def test_the_first_schema_counts(recording: Recording) -> None:
    cam = recording.instruments.ensure("cam", {})
    assert cam.declare(serialized(SCHEMA)).equals(SCHEMA)
    assert cam.declare(serialized(SCHEMA.with_metadata({"by": "someone else"}))).equals(SCHEMA)
    with pytest.raises(SchemaMismatchError, match=r"'cam'.*'x' is double, expected float"):
        cam.declare(serialized(SCHEMA.set(1, pa.field("x", pa.float64(), nullable=False))))
    with pytest.raises(SchemaMismatchError, match="nullable"):
        cam.declare(serialized(SCHEMA.set(1, pa.field("x", pa.float32()))))


@pytest.mark.parametrize("text", ["", "no base 64!", "äö", base64.b64encode(b"\xff" * 64).decode(), "AAAA"])
def test_what_is_no_schema_is_refused(recording: Recording, text: str) -> None:
    cam = recording.instruments.ensure("cam", {})
    with pytest.raises(BrokenError, match="no Arrow schema"):
        cam.declare(text)
    assert cam.declare(serialized(SCHEMA)).equals(SCHEMA)


def test_a_refused_schema_leaves_room_for_another(recording: Recording) -> None:
    cam = recording.instruments.ensure("cam", {})
    with pytest.raises(UnsupportedTypeError, match="odd"):
        cam.declare(serialized(pa.schema([("odd", pa.list_(pa.int8()))])))
    with pytest.raises(BrokenError, match="no schema yet"):
        _ = cam.plain_layout
    cam.declare(serialized(SCHEMA))
    assert cam.plain_layout.size(10) == 128 + 64


def test_counts_are_those_of_the_assembly(recording: Recording) -> None:
    cam = recording.instruments.ensure("cam", {"chunk_rows": 4, "compression": "none"})
    cam.declare(serialized(SCHEMA))
    cam.assembly.append(pa.record_batch([range(6), [0.5] * 6], schema=SCHEMA))
    recording.pipeline.drain()
    counts = cam.counts()
    expected = {"rows_written": 6, "bytes_in": 72, "bytes_written": 48, "chunks_written": 2}
    assert {key: counts[key] for key in expected} == expected
    assert not any(counts[key] for key in ("accepted", "committed", "producers"))


# -- metadata --------------------------------------------------------------------------------------------


def test_metadata_goes_to_the_session_or_to_its_instrument(recording: Recording) -> None:
    recording.instruments.set_metadata(None, "operator", "night shift")
    recording.instruments.set_metadata("new", "gain", 4)  # an instrument that has no producer yet
    recording.instruments.set_metadata("new", "gain", 5)
    with recording.end() as file:
        assert dict(file["metadata"].attrs) == {"operator": "night shift"}
        assert file["new"].attrs["gain"] == 5
        assert file["new"].attrs["instrument_id"] == "new"


@pytest.mark.parametrize("key", ["instrument_id", "num_rows", "created_at"])
def test_our_own_attributes_of_an_instrument_are_kept_from_harm(recording: Recording, key: str) -> None:
    with pytest.raises(InvalidValueError, match="belongs to shmstore"):
        recording.instruments.set_metadata("cam", key, "mine")
    recording.instruments.set_metadata(None, key, "mine")  # of the session it may be
    with recording.end() as file:
        assert file["metadata"].attrs[key] == "mine"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("", 1),
        ("a\0b", 1),
        ("_json_keys", []),
        ("ä" * 513, 1),
        ("key", "a\0b"),
        ("key", ["fine", "a\0b"]),
        ("key", {"a\0b": 1}),
        ("key", "x" * (16 * 2**20)),
        ("key", "\ud800"),
        ("key", ["fine", "\ud800"]),
        ("\ud800", 1),
    ],
)
def test_metadata_that_hdf5_cannot_hold_is_refused(key: str, value: Any) -> None:
    with pytest.raises(InvalidValueError, match="metadata"):
        check_metadata(key, value)


@pytest.mark.parametrize("value", ["C:\\u0000", "x" * 2**20, ["\\u0000"], "\x01", "\N{GRINNING FACE}"])
def test_metadata_that_only_looks_odd_is_taken(recording: Recording, value: Any) -> None:
    recording.instruments.set_metadata("cam", "key", value)
    with recording.end() as file:
        stored = file["cam"].attrs["key"]
        assert (stored.tolist() if isinstance(value, list) else stored) == value


def test_metadata_may_come_before_the_first_producer(recording: Recording) -> None:
    recording.instruments.set_metadata("new", "gain", 4)
    made = recording.instruments.ensure("new", {"compression": "lz4"}, alone=True)
    assert made.assembly.config.default_column.codec.name == "lz4"
    with pytest.raises(ConfigError, match="must agree"):
        recording.instruments.ensure("new", {"compression": "none"})
