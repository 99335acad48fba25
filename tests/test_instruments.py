"""Instruments: who may join one, what their metadata may be, and what is refused."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest

from shmstore.checkpoint import Checkpoint
from shmstore.chronicle import Chronicle
from shmstore.config import StorageConfig
from shmstore.errors import (
    BrokenError,
    ConfigError,
    InvalidValueError,
    SchemaMismatchError,
)
from shmstore.instruments import Instruments, check_metadata, decoded_schema
from shmstore.pipeline import CodecPipeline
from shmstore.rebuilding import rebuild
from shmstore.recordingfile import RecordingFile
from shmstore.recoveryfolder import recovery_folder
from shmstore.session import Session
from shmstore.tails import Tails

SCHEMA = pa.schema([pa.field("n", pa.int64()), pa.field("x", pa.float32(), nullable=False)])


def serialized(schema: pa.Schema) -> bytes:
    return schema.serialize().to_pybytes()


class Recording:
    """What instruments share, and a look at the file at the end."""

    def __init__(self, path: Path, shm_dir: Path) -> None:
        self.session = Session.create(shm_dir, "test")
        self.begin(RecordingFile.create(path, {}, "{}"))

    def begin(self, file: RecordingFile) -> None:
        """Let a writer begin with a file."""
        self.file = file
        self.pipeline = CodecPipeline(1, 1 << 20, lambda: None)
        config = StorageConfig(instruments={"cam": {"compression": "zstd"}})
        self.instruments = Instruments(file, self.pipeline, config, self.session, self.commit)
        self.ended = False

    def follow(self, position: int) -> None:
        """Let another writer go on from a commit, in a file made anew."""
        standings = {one.assembly.link: one.assembly.standing() for one in self.instruments}
        left = {path: path.read_bytes() for path in self.session.folder.glob("tails-*")}
        self.pipeline.close()
        for one in self.instruments:
            one.assembly.close()
        self.file.close()
        for path, data in left.items():
            path.write_bytes(data)
        chronicle = Chronicle(recovery_folder(self.file.path) / "journal", position)
        path = self.file.path.with_name("anew.h5")
        file, problems = rebuild(chronicle, Checkpoint(position, {}, standings), self.file.path, path)
        assert not problems
        self.begin(file)
        for told in chronicle.instruments.values():
            made = self.instruments.restore(told.instrument_id, told.link, told.options, told.continues)
            tails = []
            for segment in chronicle.tails:
                numbers = {number for number, *_ in standings[told.link]["streams"]}
                path = self.session.tails_path_of(segment.name)
                self.instruments.tails_exist(path)
                if not numbers.isdisjoint(segment.datasets):
                    tails.append((Tails.attach(path, segment.sizes, segment.buffers), segment.datasets))
            if told.schema:
                made.resume(told.schema, told.history, standings[told.link], tails)

    def commit(self) -> int:
        """Commit what is written, as the writer does; returns how far the journal is then."""
        for instrument in self.instruments:
            instrument.assembly.publish_variable()
            instrument.assembly.ripen()
        commit = self.pipeline.commit(self.file.flush)
        self.pipeline.finish(commit)
        for instrument in self.instruments:
            instrument.assembly.cut(commit.written)
            instrument.assembly.committed()
        return commit.position

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


@pytest.mark.parametrize("instrument_id", ["a\0b", "x" * 5000, "\ud800"])
def test_an_id_that_cannot_be_used_is_refused(recording: Recording, instrument_id: str) -> None:
    with pytest.raises(InvalidValueError, match="instrument id"):
        recording.instruments.ensure(instrument_id, {})
    assert not list(recording.instruments)


def test_ids_of_any_kind_have_their_own_group(recording: Recording) -> None:
    ids = [
        "",
        "%",
        "metadata",
        "%6Detadata",
        "_shmstore",
        "a/b",
        "a%2Fb",
        "..",
        ".",
        "ä",
        "x" * 4000,
        "x" * 4001,
    ]
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
    assert cam.schema is None
    for schema in (SCHEMA, SCHEMA.with_metadata({"by": "someone else"})):
        follows = recording.instruments.declare("cam", serialized(schema))
        assert follows.instrument is cam
        assert follows.schema.equals(schema, check_metadata=True)
        assert cam.schema is not None
        assert cam.schema.equals(SCHEMA, check_metadata=True)
    double = SCHEMA.set(1, pa.field("x", pa.float64(), nullable=False))
    with pytest.raises(SchemaMismatchError, match=r"'cam'.*'x' is double, expected float.*'evolve' or 'new'"):
        recording.instruments.declare("cam", serialized(double))
    with pytest.raises(SchemaMismatchError, match="nullable"):
        recording.instruments.declare("cam", serialized(SCHEMA.set(1, pa.field("x", pa.float32()))))


@pytest.mark.parametrize("image", [b"", b"no schema", b"\xff" * 64, b"\0\0\0"])
def test_what_is_no_schema_is_refused(recording: Recording, image: bytes) -> None:
    recording.instruments.ensure("cam", {})
    with pytest.raises(BrokenError, match="no Arrow schema"):
        recording.instruments.declare("cam", image)
    assert recording.instruments.declare("cam", serialized(SCHEMA)).schema.equals(SCHEMA)


def test_a_schema_travels_as_text() -> None:
    assert decoded_schema("cam", base64.b64encode(serialized(SCHEMA)).decode()) == serialized(SCHEMA)
    for text in ("no base 64!", "äö", "AAA"):
        with pytest.raises(BrokenError, match="declared for 'cam' is no Arrow schema"):
            decoded_schema("cam", text)


def test_a_refused_schema_leaves_room_for_another(recording: Recording) -> None:
    cam = recording.instruments.ensure("cam", {"columns": {"x": {"compression": "none"}}})
    with pytest.raises(ConfigError, match="'x'"):
        recording.instruments.declare("cam", serialized(pa.schema([("y", pa.int8())])))
    assert cam.schema is None
    assert recording.instruments.declare("cam", serialized(SCHEMA)).plain.size(10) == 128 + 64


def test_what_travels_is_the_physical_form(recording: Recording) -> None:
    cam = recording.instruments.ensure("cam", {})
    schema = pa.schema([("t", pa.time64("ns"))])
    follows = recording.instruments.declare("cam", serialized(schema))
    assert follows.schema.equals(schema)
    assert follows.physical.equals(pa.schema([("t", pa.int64())]))
    cam.append(pa.record_batch([pa.array([-1, None], pa.int64())], schema=follows.physical))
    with recording.end() as file:
        assert file["cam/t"][:].tolist() == [-1, -(2**63)]


# -- policies --------------------------------------------------------------------------------------------


def test_an_instrument_that_evolves_takes_batches_of_every_schema_it_had(recording: Recording) -> None:
    cam = recording.instruments.ensure("cam", {"schema_policy": "evolve"})
    first = pa.schema([("n", pa.int8())])
    second = pa.schema([("x", pa.float32()), ("n", pa.int16())])
    one = recording.instruments.declare("cam", serialized(first))
    cam.append(pa.record_batch([pa.array([1, 2], pa.int8())], schema=first))
    two = recording.instruments.declare("cam", serialized(second))
    assert one.instrument is two.instrument is cam
    assert (one.schema, two.schema) == (first, second)
    assert cam.schema == pa.schema([("n", pa.int16()), ("x", pa.float32())])
    cam.append(pa.record_batch([pa.array([0.5], pa.float32()), pa.array([300], pa.int16())], schema=second))
    cam.append(pa.record_batch([pa.array([-3], pa.int8())], schema=first))
    with pytest.raises(SchemaMismatchError, match=r"'cam'.*'n'"):
        recording.instruments.declare("cam", serialized(pa.schema([("n", pa.string())])))
    assert cam.rows == 4
    with recording.end() as file:
        assert file["cam/n"][:].tolist() == [1, 2, 300, -3]
        assert file["cam/n"].dtype == np.dtype("<i2")
        assert file["cam/_arrow/validity/1"][:].tolist() == [False, False, True, False]
        assert file["cam/x"][2] == 0.5


def test_what_a_loan_left_under_an_older_schema_is_projected(recording: Recording) -> None:
    cam = recording.instruments.ensure("cam", {"schema_policy": "evolve", "chunk_rows": 2})
    first = pa.schema([("t", pa.timestamp("s")), ("frame", pa.list_(pa.int8(), 2))])
    old = recording.instruments.declare("cam", serialized(first))
    new = recording.instruments.declare("cam", serialized(first.append(pa.field("x", pa.int8()))))
    for follows in (old, new):
        body = memoryview(bytearray(follows.plain.size(3)))
        for column, values in follows.plain.arrays(body, 3):
            values[...] = np.arange(values.size).reshape(values.shape) + column.index
        cam.append_plain(body, 3, follows)
    with recording.end() as file:
        group = file["cam"]
        assert group["t"][:].tolist() == [0, 1, 2] * 2
        assert group["frame"][:].tolist() == [[1, 2], [3, 4], [5, 6]] * 2
        assert group["x"][:].tolist() == [0, 0, 0, 2, 3, 4]
        assert group["_arrow/validity/2"][:].tolist() == [False] * 3 + [True] * 3


def test_under_the_policy_new_each_schema_has_a_group_of_its_own(recording: Recording) -> None:
    recording.instruments.ensure("cam~2", {})  # its name is taken by another
    cam = recording.instruments.ensure("cam", {"schema_policy": "new"})
    schemas = [pa.schema([("n", type_)]) for type_ in (pa.int8(), pa.int16(), pa.string())]
    made = [recording.instruments.declare("cam", serialized(schema)).instrument for schema in schemas * 2]
    assert made[0] is cam
    assert made[:3] == made[3:]
    assert [one.instrument_id for one in made[:3]] == ["cam", "cam~3", "cam~4"]
    assert [one.first for one in made[:3]] == [True, False, False]
    for number, (one, schema) in enumerate(zip(made, schemas * 2, strict=True)):
        one.append(pa.record_batch([pa.nulls(number, schema.types[0])], schema=schema))
    assert (cam.rows, made[1].rows) == (15, 1 + 4)
    with pytest.raises(InvalidValueError, match="'cam~3' is taken"):
        recording.instruments.ensure("cam~3", {})
    with recording.end() as file:
        assert "continues" not in file["cam"].attrs
        assert file["cam~3"].attrs["continues"] == file["cam~4"].attrs["continues"] == "cam"
        assert [len(file[name]["n"]) for name in ("cam", "cam~3", "cam~4")] == [3, 5, 7]


def test_as_many_slots_are_taken_at_once_as_a_chunk_holds_or_any_number_of_whole_ones(
    recording: Recording,
) -> None:
    schema = pa.schema([("n", pa.int64())])
    instrument = recording.instruments.ensure("cam", {"chunk_rows": 100})
    assert instrument.longest_run(10) == 0
    instrument.declare(schema)
    instrument.append(pa.record_batch([np.arange(100)], schema=schema))
    assert [instrument.longest_run(rows) for rows in (0, 10, 40, 99, 150)] == [0, 10, 2, 1, 1]
    assert min(instrument.longest_run(rows) for rows in (100, 200)) >= 1024
    instrument.append(pa.record_batch([np.arange(1)], schema=schema))
    assert [instrument.longest_run(rows) for rows in (10, 100, 200)] == [10, 1, 1]


def test_counts_are_those_of_the_assembly(recording: Recording) -> None:
    cam = recording.instruments.ensure("cam", {"chunk_rows": 4, "compression": "none"})
    recording.instruments.declare("cam", serialized(SCHEMA))
    cam.append(pa.record_batch([range(6), [0.5] * 6], schema=SCHEMA))
    recording.pipeline.drain()
    counts = cam.counts()
    expected = {"rows_written": 6, "bytes_in": 72, "bytes_written": 48, "chunks_written": 2}
    assert {key: counts[key] for key in expected} == expected
    assert not any(counts[key] for key in ("accepted", "committed", "producers"))


def test_those_whose_compression_adapts_are_told_with_the_rings_that_feed_them(recording: Recording) -> None:
    def schema(type_: pa.DataType) -> bytes:
        return serialized(pa.schema([("n", type_)]))

    instruments = recording.instruments
    for name, options in (
        ("cam", {}),
        ("slow", {"columns": {"n": {"compression": "adaptive:zstd"}}}),
        ("other", {"columns": {"n": {"compression": "gzip"}}, "compression": "adaptive"}),
        ("many", {"compression": "adaptive:lz4", "schema_policy": "new"}),
    ):
        instruments.ensure(name, options)
        assert name not in dict(instruments.adaptive())  # nothing is known of its columns
        instruments.declare(name, schema(pa.int64()))
    instruments.declare("many", schema(pa.int8()))
    found = instruments.adaptive()
    assert [(feeds, one.instrument_id) for feeds, one in found] == [
        ("slow", "slow"),
        ("many", "many"),
        ("many", "many~2"),
    ]
    efforts = [one.assembly.effort for _, one in found]
    assert [effort and effort.lowest for effort in efforts] == [2, 1, 1]
    assert efforts[1] is not efforts[2]


def test_what_effort_did_is_counted(recording: Recording) -> None:
    cam = recording.instruments.ensure("cam", {"chunk_rows": 4, "compression": "adaptive"})
    recording.instruments.declare("cam", serialized(SCHEMA))
    effort = cam.assembly.effort
    assert effort is not None
    for grade in range(4):
        effort.grade = grade
        cam.append(pa.record_batch([range(4), [0.5] * 4], schema=SCHEMA))
        recording.pipeline.drain()
    assert (effort.lowest, cam.counts()["chunks_written"]) == (3, 8)
    assert (cam.counts()["chunks_cheaper"], cam.counts()["chunks_stored"]) == (4, 2)
    with recording.end() as file:
        for name in SCHEMA.names:
            assert file["cam"][name].id.get_chunk_info(3).filter_mask == 3
            assert len(set(file["cam"][name][:].reshape(4, 4)[:, 0])) == 1


# -- a writer that follows another -----------------------------------------------------------------------


def test_options_are_told_to_the_journal(recording: Recording) -> None:
    recording.instruments.ensure("cam", {"chunk_rows": 10, "ring_bytes": 1 << 20})
    recording.instruments.set_metadata("bare", "gain", 4)
    recording.instruments.ensure("bare", {"compression": "none"}, alone=True)
    recording.file.flush()
    chronicle = Chronicle(recovery_folder(recording.file.path) / "journal")
    assert {told.instrument_id: told.options for told in chronicle.instruments.values()} == {
        "cam": {"chunk_rows": 10},
        "bare": {"compression": "none"},
    }


def test_instruments_go_on_as_they_were(recording: Recording) -> None:
    options = {"run/1": {"schema_policy": "new", "chunk_rows": 4}, "cam": {"schema_policy": "evolve"}}
    for instrument_id, own in options.items():
        recording.instruments.ensure(instrument_id, own)
    recording.instruments.ensure("idle", {})
    narrow, wide = pa.schema([("n", pa.int8())]), pa.schema([("n", pa.int16())])
    other = pa.schema([("t", pa.string())])

    def put(instrument_id: str, schema: pa.Schema, *values: Any) -> None:
        follows = recording.instruments.declare(instrument_id, serialized(schema))
        follows.instrument.append(pa.record_batch([pa.array(values, schema.types[0])], schema=schema))

    put("run/1", narrow, *range(6))
    put("run/1", other, "a", None)
    put("cam", narrow, 1, 2)
    put("cam", wide, 300)
    for instrument in recording.instruments:
        instrument.assembly.settle()
    recording.pipeline.drain()
    position = recording.commit()
    put("run/1", narrow, 99)  # which no commit covers
    recording.follow(position)
    names = ["run/1", "cam", "idle", "run/1~2"]
    assert [one.instrument_id for one in recording.instruments] == names
    assert [recording.instruments[name].rows for name in names] == [8, 3, 0, 2]
    assert [recording.instruments[name].first for name in names] == [True, True, True, False]
    assert recording.instruments["cam"].schema == wide
    assert recording.instruments["run/1"].successors == [recording.instruments["run/1~2"]]
    for instrument_id, own in options.items():
        assert recording.instruments.ensure(instrument_id, own).options == own
    with pytest.raises(ConfigError, match="must agree"):
        recording.instruments.ensure("cam", {"chunk_rows": 5})
    with pytest.raises(InvalidValueError, match="'run/1~2' is taken"):
        recording.instruments.ensure("run/1~2", {})
    put("run/1", other, "b")
    put("run/1", narrow, 6)
    put("run/1", wide, 7)
    put("cam", narrow, -3)
    put("idle", narrow, 5)
    with recording.end() as file:
        assert file["run%2F1/n"][:].tolist() == list(range(7))
        assert file["run%2F1~2/t"].asstr()[:].tolist() == ["a", "", "b"]
        assert file["run%2F1~3/n"][:].tolist() == [7]
        assert file["cam/n"][:].tolist() == [1, 2, 300, -3]
        assert file["idle/n"][:].tolist() == [5]
        assert file["run%2F1~2"].attrs["continues"] == "run/1"


# -- metadata --------------------------------------------------------------------------------------------


def test_metadata_goes_to_the_session_or_to_its_instrument(recording: Recording) -> None:
    recording.instruments.set_metadata(None, "operator", "night shift")
    recording.instruments.set_metadata("new", "gain", 4)  # an instrument that has no producer yet
    recording.instruments.set_metadata("new", "gain", 5)
    with recording.end() as file:
        assert dict(file["metadata"].attrs) == {"operator": "night shift"}
        assert file["new"].attrs["gain"] == 5
        assert file["new"].attrs["instrument_id"] == "new"


@pytest.mark.parametrize(
    "key", ["instrument_id", "created_at", "continues", "CLASS", "VERSION", "NROWS", "column-order"]
)
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
