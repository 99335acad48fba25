"""Batches of any sizes become columns that plain h5py reads, whatever the chunks, codecs and moments."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers its filters for plain h5py
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shmstore.assembly import InstrumentAssembly
from shmstore.checkpoint import Checkpoint
from shmstore.chronicle import Chronicle
from shmstore.config import StorageConfig
from shmstore.dataset import Dataset
from shmstore.encoding import Block
from shmstore.errors import (
    BrokenError,
    ConfigError,
    IncompleteFileError,
    InvalidValueError,
    UnsupportedTypeError,
)
from shmstore.evolution import evolve, history_from_json, project
from shmstore.journal import Journal
from shmstore.opening import OpenedFile
from shmstore.physical import physical_schema, retyped
from shmstore.pipeline import Chunk, CodecPipeline
from shmstore.planning import plan
from shmstore.rebuilding import rebuild
from shmstore.recorded import Instrument
from shmstore.recordingfile import RecordingFile
from shmstore.recoveryfolder import recovery_folder
from shmstore.tails import Tails

WIDTH = 3


class Recorder:
    """A real file and pipeline, with one instrument ``cam``."""

    def __init__(self, folder: Path, shared: Path, **options: Any) -> None:
        self.options = options
        self._begin(RecordingFile.create(folder / "recording.h5", {}, "{}"), shared)
        with self.file.structure():
            self.file.create_instrument("cam", {"instrument_id": "cam"})

    def _begin(self, file: RecordingFile, shared: Path) -> None:
        self.path, self.shared, self.file = file.path, shared, file
        self.pipeline = CodecPipeline(2, 1 << 20, lambda: None)
        self.commits = self.position = 0
        taken = len(list(shared.iterdir()))
        names = (shared / f"tails-{number}" for number in itertools.count(taken))
        config = StorageConfig(**self.options).instrument("cam")
        self.cam = InstrumentAssembly(
            file, self.pipeline, "cam", config, 1.0, lambda: next(names), self.commit
        )
        self.standing = self.cam.standing()

    @classmethod
    def follow(cls, killed: Recorder, *, anew: bool) -> Recorder:
        """Go on from another's last commit, with what it would leave if it were killed now.

        Parameters
        ----------
        killed
            The other; it is let go of here.
        anew
            Whether its file is made anew from its journal, or taken up as it is.
        """
        folder, shared = killed.path.parent / "left", killed.shared / "left"
        for each in (folder, shared):
            each.mkdir()
        path = folder / "recording.h5"
        with killed.file.lock:
            killed.file.journal.write()  # it may tell more than counts
            shutil.copy(killed.path, path)
            shutil.copytree(recovery_folder(killed.path), recovery_folder(path))
            for tails in killed.shared.glob("tails-*"):
                shutil.copy(tails, shared)
        killed.let_go()
        chronicle = Chronicle(recovery_folder(path) / "journal", killed.position)
        standing = json.loads(json.dumps(killed.standing))
        if anew or chronicle.torn:
            checkpoint = Checkpoint(killed.position, {}, {"cam": standing})
            file, problems = rebuild(chronicle, checkpoint, path, folder / "anew.h5")
            assert not problems
        else:
            file = _taken_up(path, chronicle, standing)
        made = cls.__new__(cls)
        made.options = killed.options
        made._begin(file, shared)
        instrument = chronicle.instruments["cam"]
        schema = pa.ipc.read_schema(pa.py_buffer(instrument.schema))
        layout = plan(schema, lambda name: made.cam.config.column(name).strings)
        used = {number for number, *_ in standing["streams"]}
        told_tails = [told for told in chronicle.tails if not used.isdisjoint(told.datasets)]
        for left in set(shared.iterdir()) - {shared / told.name for told in told_tails}:
            left.unlink()
        segments = [Tails.attach(shared / told.name, told.sizes, told.buffers) for told in told_tails]
        buffers = {
            number: own
            for told, segment in zip(told_tails, segments, strict=True)
            for number, own in zip(told.datasets, segment.buffers, strict=True)
        }
        history = history_from_json(instrument.history) if instrument.history else []
        made.cam.resume(layout, history, standing, buffers, segments)
        made.standing, made.position = standing, killed.position
        return made

    def let_go(self) -> None:
        """Leave the recording as it is."""
        self.pipeline.close()
        self.cam.close()
        self.file.close()

    def commit(self) -> dict[str, Any]:
        """Commit what is written, as the writer does; returns where the instrument stood then."""
        self.commits += 1
        self.cam.publish_variable()
        self.cam.ripen()
        commit = self.pipeline.commit(self.file.flush)
        self.pipeline.finish(commit)
        self.cam.cut(commit.written)
        self.standing, self.position = self.cam.standing(), commit.position
        self.cam.committed()
        return self.standing

    def finish(self) -> None:
        self.cam.finish()
        self.cam.close()
        self.file.finish("complete", "{}", {"cam": self.cam.rows})
        self.pipeline.close()


def _taken_up(path: Path, chronicle: Chronicle, standing: dict[str, Any]) -> RecordingFile:
    """Open a file as it was left, with the datasets that the journal tells of."""
    file = RecordingFile.resume(path, Journal.reopen(chronicle.path, chronicle.end))
    counts = {number: items for number, items, *_ in standing["streams"]}
    for told in chronicle.datasets:
        if told.path is None:
            file.datasets.append(None)
            continue
        dataset = file.restore_dataset(told.path, told.stream, told.chunk_items, told.codec)
        dataset.known_items = int(dataset.id.shape[0])
        if dataset.variable:
            dataset.blank_references(counts.get(dataset.number, 0))
    return file


@contextmanager
def recorder(**options: Any) -> Iterator[Recorder]:
    """Record in new folders; on leaving, all is in a closed file, and nothing in shared memory."""
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="shmstore-test-") as shared,
    ):
        made = Recorder(Path(folder), Path(shared), **options)
        try:
            yield made
        except BaseException:
            made.file.close()
            made.pipeline.close()
            raise
        assert not [path for path in Path(shared).rglob("*") if path.is_file()]
        assert shared not in Path("/proc/self/maps").read_text()


@contextmanager
def recorded(made: Recorder) -> Iterator[Any]:
    """Finish, and open what was recorded with plain h5py."""
    made.finish()
    with h5py.File(made.path) as file:
        yield file["cam"]


SCHEMA = pa.schema(
    [
        ("n", pa.int64()),
        ("volt", pa.float64()),
        ("frame", pa.list_(pa.int16(), WIDTH)),
        ("packed", pa.string()),
        ("name", pa.string()),
        ("blob", pa.binary()),
        ("tag", pa.string()),
        ("flag", pa.bool_()),
    ]
)
STRINGS: dict[str, Any] = {
    "packed": {"strings": "packed"},
    "tag": {"strings": "fixed:6"},
}


def text_of(row: int) -> str:
    return "ä" * (row % 5) + str(row)


def rows_of(start: int, count: int, first_null: int) -> pa.RecordBatch:
    """Rows that say which they are; from ``first_null`` on, every third has nulls."""
    rows = range(start, start + count)

    def unless_null(row: int, value: Any) -> Any:
        return None if row >= first_null and row % 3 == 0 else value

    return pa.record_batch(
        [
            pa.array(rows, pa.int64()),
            pa.array([unless_null(row, row / 2) for row in rows], pa.float64()),
            pa.array([unless_null(row, [row % 100, 1, 2]) for row in rows], SCHEMA.field("frame").type),
            pa.array([unless_null(row, text_of(row)) for row in rows], pa.string()),
            pa.array([unless_null(row, text_of(row)) for row in rows], pa.string()),
            pa.array([unless_null(row, bytes([0, row % 256])) for row in rows], pa.binary()),
            pa.array([f"t{row % 1000}" for row in rows], pa.string()),
            pa.array([row % 2 == 0 for row in rows], pa.bool_()),
        ],
        schema=SCHEMA,
    )


def mask_of(group: Any, path: str, rows: int) -> Any:
    """Return a mask as readers see it: rows that it does not cover are valid."""
    mask = np.ones(rows, np.bool_)
    if path in group:
        stored = group[path][:]
        mask[: len(stored)] = stored
    return mask


def check_rows(group: Any, rows: int, first_null: int) -> None:
    """Compare every column, as plain h5py gives it, with what `rows_of` made."""
    numbers = np.arange(rows)
    valid = (numbers < first_null) | (numbers % 3 != 0)
    np.testing.assert_array_equal(group["n"][:], numbers)
    np.testing.assert_array_equal(group["volt"][:], np.where(valid, numbers / 2, np.nan))
    assert group["frame"].shape == (rows, WIDTH)
    frames = np.stack([numbers % 100, np.ones(rows), np.full(rows, 2)], axis=1)
    np.testing.assert_array_equal(group["frame"][:], np.where(valid[:, None], frames, 0))
    assert group["flag"].dtype == np.bool_
    np.testing.assert_array_equal(group["flag"][:], numbers % 2 == 0)
    texts = [text_of(row) if ok else "" for row, ok in enumerate(valid)]
    assert list(group["name"].asstr()[:]) == texts
    assert [bytes(blob) for blob in group["blob"][:]] == [
        bytes([0, row % 256]) if ok else b"" for row, ok in enumerate(valid)
    ]
    assert list(group["tag"].asstr()[:]) == [f"t{row % 1000}" for row in range(rows)]
    offsets, chars = group["packed/OFFSETS"][:], group["packed/CHARS"][:].tobytes()
    pieces = [
        chars[start:end].decode()
        for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    ]
    assert (offsets[0], offsets[-1], pieces) == (0, len(chars), texts)
    for path in ("_arrow/validity/1", "_arrow/validity/2", "packed/MASK", "_arrow/validity/4"):
        np.testing.assert_array_equal(mask_of(group, path, rows), valid, path)
    assert "_arrow/validity/0" not in group


# -- rows ------------------------------------------------------------------------------------------------


STEPS = st.lists(
    st.one_of(st.integers(0, 40), st.sampled_from(["publish", "variable", "settle"])), max_size=12
)


@settings(max_examples=30, deadline=None)
@given(
    steps=STEPS,
    chunk_rows=st.sampled_from([1, 2, 7, 16, 1000, None]),
    compression=st.sampled_from(["none", "gzip", "lzf"]),
    first_null=st.integers(0, 200),
)
def test_rows_of_any_batch_sizes_come_out_in_order(
    steps: list[int | str], chunk_rows: int | None, compression: str, first_null: int
) -> None:
    instruments = {"cam": {"columns": STRINGS}}
    with recorder(chunk_rows=chunk_rows, compression=compression, instruments=instruments) as made:
        made.cam.declare(SCHEMA)
        rows = 0
        for step in steps:
            if isinstance(step, int):
                made.cam.append(rows_of(rows, step, first_null))
                rows += step
            elif step == "publish":
                made.cam.publish_tails()
                made.file.flush()
            elif step == "variable":
                made.cam.publish_variable()
            else:
                made.cam.settle()
        assert made.cam.rows == rows
        with recorded(made) as group:
            check_rows(group, rows, first_null)


@pytest.mark.parametrize("batch", [1, 100, 5000])
def test_chunks_that_follow_the_rate_hold_what_chunks_of_a_set_size_hold(batch: int) -> None:
    """Enough rows that datasets are made while recording, at the rate that was seen."""
    total = max(2 * batch, 1500)
    with recorder(compression="none", instruments={"cam": {"columns": STRINGS}}) as made:
        made.cam.declare(SCHEMA)
        for start in range(0, total, batch):
            made.cam.append(rows_of(start, min(batch, total - start), 700))
        with recorded(made) as group:
            check_rows(group, total, 700)


ALL_TYPES = {
    "half": (pa.float16(), [np.float16(row % 50) for row in range(100)]),
    "byte": (pa.uint8(), list(range(100))),
    "wide": (pa.uint64(), [2**64 - 1 - row for row in range(100)]),
    "flag": (pa.bool_(), [row % 3 == 0 for row in range(100)]),
    "id": (pa.binary(5), [b"\0" + bytes([row]) * 4 for row in range(100)]),
    "tag": (pa.string(), [f"{row:03}" for row in range(100)]),
    "cube": (pa.list_(pa.list_(pa.int32(), 2), 2), [[[row, 1], [2, row]] for row in range(100)]),
}


@pytest.mark.parametrize(
    "codec",
    ["none", "gzip", "zstd", "lz4", "blosc:lz4", "blosc2:lz4", "bitshuffle:lz4", "lzf", "bzip2"],
)
@pytest.mark.parametrize("published", [False, True])
def test_every_codec_stores_every_fixed_width_type(codec: str, published: bool) -> None:
    schema = pa.schema([(name, type_) for name, (type_, _) in ALL_TYPES.items()])
    batch = pa.record_batch([pa.array(values, type_) for type_, values in ALL_TYPES.values()], schema=schema)
    with recorder(compression=codec, strings="fixed:3", chunk_rows=32) as made:
        made.cam.declare(schema)
        made.cam.append(batch.slice(0, 37))
        if published:
            made.cam.publish_tails()
        made.cam.append(batch.slice(37))
        with recorded(made) as group:
            for name, (_, values) in ALL_TYPES.items():
                found = group[name].asstr()[:].tolist() if name == "tag" else group[name][:].tolist()
                assert found == values, name
                assert group[name].chunks[0] == 32
                second = group[name].id.get_chunk_info_by_coord((32, *[0] * (group[name].ndim - 1)))
                assert second.filter_mask != 0 or not published or codec == "none"


# -- commits, and one that goes on from there ------------------------------------------------------------


NUMBERS = pa.schema([("n", pa.int64())])


def numbers_of(start: int, count: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array(range(start, start + count), pa.int64())], schema=NUMBERS)


def test_a_commit_ends_with_a_batch_whose_chunks_are_all_written() -> None:
    with recorder(chunk_rows=4, compression="none") as made:
        made.cam.declare(NUMBERS)
        nothing = {"counts": {}, "bytes_in": 0, "streams": []}
        assert made.commit() == nothing
        for start in (0, 6, 12):
            made.cam.append(numbers_of(start, 6))
        made.cam.ripen()
        made.cam.append(numbers_of(18, 6))
        made.pipeline.drain()
        assert made.cam.standing()["counts"] == {}
        made.cam.cut(0)  # not even the first chunk was written when it began
        assert made.cam.standing()["counts"] == {}
        made.cam.cut(3)
        assert made.cam.standing() == {"counts": {"": 12}, "bytes_in": 96, "streams": [[0, 12, -1, False]]}
        made.cam.cut(100)  # the last batch came when the commit had begun
        assert made.cam.standing()["counts"] == {"": 18}
        assert [(number, tail.view("<i8").tolist()) for number, tail in made.cam.tails()] == [(0, [16, 17])]
        made.cam.committed()
        made.commit()
        assert made.cam.standing() == {"counts": {"": 24}, "bytes_in": 192, "streams": [[0, 24, -1, False]]}
        assert not list(made.cam.tails())
        with recorded(made) as group:
            assert group["n"][:].tolist() == list(range(24))


def test_rows_that_wait_for_their_datasets_are_in_no_commit() -> None:
    with recorder() as made:
        made.cam.declare(NUMBERS)
        made.cam.append(numbers_of(0, 5))
        assert made.commit() == {"counts": {}, "bytes_in": 0, "streams": []}
        made.cam.settle()
        assert made.commit() == {"counts": {"": 5}, "bytes_in": 40, "streams": [[0, 5, 0, False]]}
        made.cam.publish_tails()
        assert made.commit() == {"counts": {"": 5}, "bytes_in": 40, "streams": [[0, 5, 0, True]]}
        with recorded(made):
            pass


def test_a_stream_that_needs_room_has_everything_committed() -> None:
    """Many small batches, and nobody else who commits."""
    with recorder(chunk_rows=4, compression="none", instruments={"cam": {"columns": STRINGS}}) as made:
        made.cam.declare(SCHEMA)
        for start in range(0, 400, 3):
            made.cam.append(rows_of(start, 3, 100))
        assert made.commits
        assert made.standing["counts"][""] > 300
        with recorded(made) as group:
            check_rows(group, 402, 100)


FOLLOWED = st.lists(
    st.one_of(st.integers(0, 40), st.sampled_from(["publish", "settle", "commit", "commit"])), max_size=12
)


@settings(max_examples=25, deadline=None)
@given(
    steps=FOLLOWED,
    more=st.lists(st.integers(0, 40), max_size=5),
    chunk_rows=st.sampled_from([1, 7, 16, 1000, None]),
    compression=st.sampled_from(["none", "gzip", "lzf"]),
    first_null=st.integers(0, 200),
    anew=st.booleans(),
)
@example(  # a mask that is made with an extent, published, and missing in a file that is made anew
    steps=[1, 3, "publish", "commit"],
    more=[],
    chunk_rows=1,
    compression="none",
    first_null=1,
    anew=True,
)
def test_who_goes_on_from_a_commit_makes_the_same_file(
    steps: list[int | str],
    more: list[int],
    chunk_rows: int | None,
    compression: str,
    first_null: int,
    anew: bool,
) -> None:
    """Killed at any moment after it; what was not committed is put again, in batches of other sizes."""
    instruments = {"cam": {"columns": STRINGS}}
    with recorder(chunk_rows=chunk_rows, compression=compression, instruments=instruments) as killed:
        killed.cam.declare(SCHEMA)
        rows = 0
        for step in steps:
            if isinstance(step, int):
                killed.cam.append(rows_of(rows, step, first_null))
                rows += step
            elif step == "publish":
                killed.cam.publish_tails()
            elif step == "settle":
                killed.cam.settle()
            else:
                killed.commit()
        made = Recorder.follow(killed, anew=anew)
        assert made.cam.rows == made.standing["counts"].get("", 0)
        assert made.cam.bytes_in == made.standing["bytes_in"]
        # In a file that was made anew nothing is published yet.
        streams = [
            [number, items, buffer, published and not anew]
            for number, items, buffer, published in made.standing["streams"]
        ]
        assert made.cam.standing() == made.standing | {"streams": streams}
        total = max(rows, made.cam.rows + sum(more))
        for count in [*more, total - made.cam.rows - sum(more)]:
            made.cam.append(rows_of(made.cam.rows, count, first_null))
        made.commit()
        with recorded(made) as group:
            check_rows(group, total, first_null)


def run_of(start: int, batches: int, rows: int) -> list[Block]:
    """The items of several batches of numbers, as they would lie in a ring."""
    spaced = np.full((batches, rows + 1), -1)
    spaced[:, :rows] = np.arange(start, start + batches * rows).reshape(batches, rows)
    return [Block(("n",), spaced[:, None, :rows])]


@settings(max_examples=15, deadline=None)
@given(
    runs=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 40), st.booleans()), max_size=12),
    chunk_rows=st.sampled_from([1, 7, 64, None]),
    anew=st.booleans(),
)
def test_columns_taken_in_together_stay_apart(
    runs: list[tuple[int, int, bool]], chunk_rows: int | None, anew: bool
) -> None:
    """Before and after the datasets are made, and for a writer that goes on from a commit."""
    schema = pa.schema([(name, pa.int64()) for name in "abc"])
    options = {"chunk_rows": chunk_rows} if chunk_rows else {}

    def append(recorder: Recorder, batches: int, each: int) -> None:
        (block,) = run_of(recorder.cam.rows, batches, each)
        items = block.items + np.arange(3)[:, None] * 100_000
        recorder.cam.append_run([Block(("a", "b", "c"), items)], batches * each)

    with recorder(compression="none", **options) as killed:
        killed.cam.declare(schema)
        killed.cam.append(pa.record_batch([[0], [100_000], [200_000]], schema=schema))
        for most, each, commits in runs:
            batches = min(most, killed.cam.longest_run // each)
            if batches:
                append(killed, batches, each)
            if commits:
                killed.commit()
        made = Recorder.follow(killed, anew=anew)
        append(made, 1, 100)
        rows = made.cam.rows
        made.commit()
        with recorded(made) as group:
            for number, name in enumerate("abc"):
                np.testing.assert_array_equal(group[name][:], np.arange(rows) + 100_000 * number)


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.integers(1, 30), st.integers(1, 40)),
            st.integers(0, 40),
            st.sampled_from(["publish", "settle", "commit", "commit"]),
        ),
        max_size=15,
    ),
    chunk_rows=st.sampled_from([1, 7, 16, 1000, None]),
    first_null=st.integers(0, 300),
    anew=st.booleans(),
)
def test_batches_taken_together_are_as_good_as_single_ones(
    steps: list[int | str | tuple[int, int]], chunk_rows: int | None, first_null: int, anew: bool
) -> None:
    """Before and after the datasets are made, and the mask; and for a writer that goes on from a commit."""
    column = {"columns": {"n": {"chunk_rows": chunk_rows}}} if chunk_rows else {}

    def single(start: int, count: int) -> pa.RecordBatch:
        numbers = np.arange(start, start + count)
        return pa.record_batch([pa.array(numbers, mask=numbers == first_null)], schema=NUMBERS)

    with recorder(compression="none", instruments={"cam": column}) as killed:
        killed.cam.declare(NUMBERS)
        rows, nulls = 0, []
        for step in steps:
            if isinstance(step, tuple):
                batches, each = step
                if not killed.cam.takes_whole(each):
                    batches = min(batches, killed.cam.longest_run // each)
                if batches:
                    killed.cam.append_run(run_of(rows, batches, each), batches * each)
                    rows += batches * each
            elif isinstance(step, int):
                killed.cam.append(single(rows, step))
                nulls += [first_null] if rows <= first_null < rows + step else []
                rows += step
            elif step == "publish":
                killed.cam.publish_tails()
            elif step == "settle":
                killed.cam.settle()
            else:
                killed.commit()
        assert killed.cam.rows == rows
        made = Recorder.follow(killed, anew=anew)
        assert made.cam.rows == made.standing["counts"].get("", 0)
        start = made.cam.rows
        kept = [row for row in nulls if row < start]
        total = max(rows, start)
        while made.cam.rows < total:
            batches = min(made.cam.longest_run, total - made.cam.rows)
            if batches:
                made.cam.append_run(run_of(made.cam.rows, batches, 1), batches)
            else:
                made.cam.append(numbers_of(made.cam.rows, 1))
        made.commit()
        with recorded(made) as group:
            found = group["n"][:]
            expected = np.arange(total)
            expected[kept] = 0
            assert found.tolist() == expected.tolist()
            if kept:
                mask = group["_arrow/validity/0"][:]
                assert np.flatnonzero(~mask.astype(bool)).tolist() == kept


def test_batches_are_taken_together_where_chunks_are_large_enough() -> None:
    with recorder(compression="none") as made:
        assert made.cam.longest_run == 0
        made.cam.declare(NUMBERS)
        assert made.cam.longest_run == 512  # the smallest chunk that may come of it
        made.cam.append(numbers_of(0, 5))
        made.cam.settle()
        assert made.cam.longest_run == 8192
        with recorded(made):
            pass
    with recorder(compression="none") as made:
        made.cam.declare(pa.schema([("n", pa.int64()), ("text", pa.string())]))
        assert made.cam.longest_run == 0
        with recorded(made):
            pass
    with recorder(chunk_rows=100) as made:
        made.cam.declare(NUMBERS)
        assert made.cam.longest_run == 0
        made.cam.append(numbers_of(0, 5))
        assert made.cam.longest_run == 100
        with recorded(made):
            pass


def test_any_number_of_whole_chunks_is_taken_together_and_none_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = run_of(100, 5, 200)
    borrowed: list[bool] = []
    submit = CodecPipeline.submit

    def watched(
        self: CodecPipeline, dataset: Dataset, index: int, chunk: Chunk, *rest: Any, **more: Any
    ) -> None:
        borrowed.append(np.shares_memory(chunk, blocks[0].items))
        submit(self, dataset, index, chunk, *rest, **more)

    monkeypatch.setattr(CodecPipeline, "submit", watched)
    with recorder(chunk_rows=100) as made:
        made.cam.declare(NUMBERS)
        assert not made.cam.takes_whole(100)  # there is no dataset yet
        made.cam.append(numbers_of(0, 100))
        assert [made.cam.takes_whole(rows) for rows in (50, 100, 150, 300)] == [False, True, False, True]
        made.cam.append_run(blocks, 1000)
        assert borrowed == [False, *[True] * 10]
        made.cam.append(numbers_of(1100, 1))
        assert not made.cam.takes_whole(100)  # these would lie across the ends of chunks
        made.pipeline.drain()
        made.commit()
        with recorded(made) as group:
            assert group["n"][:].tolist() == list(range(1101))


def test_many_columns_that_bring_much_are_fast_however_little_each_brings() -> None:
    with recorder(compression="none") as made:
        made.cam.declare(pa.schema([(str(number), pa.int64()) for number in range(200)]))
        made.cam.append(pa.record_batch({str(number): np.arange(3000) for number in range(200)}))
        assert made.cam.waiting_since is not None, "24 KB a column"
        made.cam.settle()
        assert {dataset.chunk_bytes for dataset in made.file.datasets if dataset} == {256 * 1024}
        with recorded(made) as group:
            assert group["199"][:].tolist() == list(range(3000))


# -- what is configured ----------------------------------------------------------------------------------


def test_chunks_are_as_configured_and_a_column_outranks_its_instrument() -> None:
    schema = pa.schema([("a", pa.int64()), ("b", pa.int64()), ("s", pa.string())])
    columns = {"b": {"chunk_rows": 10, "compression": "none"}, "s": {"strings": "packed"}}
    with recorder(chunk_rows=100, instruments={"cam": {"columns": columns}}) as made:
        made.cam.declare(schema)
        made.cam.append(pa.record_batch([[1], [2], ["x"]], schema=schema))
        with recorded(made) as group:
            assert (group["a"].chunks, group["b"].chunks) == ((100,), (10,))
            assert group["s/OFFSETS"].chunks == (100,)
            assert (group["a"].compression, group["b"].compression) == ("gzip", None)


def test_a_chunk_size_in_bytes_is_met() -> None:
    with recorder(chunk_bytes="8KiB") as made:
        made.cam.declare(pa.schema([("a", pa.int64()), ("b", pa.int8())]))
        made.cam.append(pa.record_batch({"a": pa.array([1]), "b": pa.array([1], pa.int8())}))
        with recorded(made) as group:
            assert (group["a"].chunks, group["b"].chunks) == ((1024,), (8192,))


NESTED_DICTIONARY = pa.dictionary(pa.int8(), pa.dictionary(pa.int8(), pa.string()))


@pytest.mark.parametrize(
    ("schema", "error", "culprit"),
    [
        (pa.schema([("ok", pa.int8()), ("odd", NESTED_DICTIONARY)]), UnsupportedTypeError, "odd"),
        (pa.schema([("ok", pa.int8())]), ConfigError, "missing"),
    ],
)
def test_a_refused_schema_leaves_no_trace(schema: pa.Schema, error: type[Exception], culprit: str) -> None:
    with recorder(instruments={"cam": {"columns": {"missing": {"strings": "packed"}}}}) as made:
        with pytest.raises(error, match=culprit):
            made.cam.declare(schema)
        assert made.cam.layout is None
        made.cam.declare(pa.schema([("missing", pa.string())]))
        with recorded(made) as group:
            assert group["missing/OFFSETS"][:].tolist() == [0]


def test_a_refused_batch_leaves_no_row_of_any_column() -> None:
    """The packed column stands before the one that refuses: its offsets must not move either."""
    schema = pa.schema([("packed", pa.string()), ("tag", pa.string())])
    with recorder(instruments={"cam": {"columns": STRINGS}}) as made:
        made.cam.declare(schema)
        made.cam.append(pa.record_batch([["abc"], ["short"]], schema=schema))
        before = (made.cam.rows, made.cam.bytes_in)
        with pytest.raises(InvalidValueError, match="tag"):
            made.cam.append(pa.record_batch([["lost", "x"], ["short", "much too long"]], schema=schema))
        assert (made.cam.rows, made.cam.bytes_in) == before
        made.cam.append(pa.record_batch([["de"], ["end"]], schema=schema))
        with recorded(made) as group:
            assert group["packed/OFFSETS"][:].tolist() == [0, 3, 5]
            assert group["packed/CHARS"][:].tobytes() == b"abcde"
            assert group["tag"].asstr()[:].tolist() == ["short", "end"]


@pytest.mark.parametrize("schema", [pa.schema([]), SCHEMA])
def test_an_instrument_without_rows_has_its_columns(schema: pa.Schema) -> None:
    with recorder(instruments={"cam": {"columns": STRINGS if len(schema) else {}}}) as made:
        made.cam.declare(schema)
        if not len(schema):
            batch = pa.RecordBatch.from_struct_array(pa.array([{}] * 3, pa.struct([])))
            made.cam.append(batch)
            assert made.cam.rows == batch.num_rows == 3
        with recorded(made) as group:
            for name in schema.names:
                path = "packed/CHARS" if name == "packed" else name
                assert group[path].shape[0] == 0


# -- tails, masks and memory -----------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["none", "gzip", "lzf"])
def test_publishing_again_and_again_takes_no_more_of_the_file(codec: str) -> None:
    schema = pa.schema([("n", pa.int64())])
    with recorder(chunk_rows=1000, compression=codec) as made:
        made.cam.declare(schema)
        sizes = set()
        for row in range(1000):  # the last of them completes the chunk
            made.cam.append(pa.record_batch([[row]], schema=schema))
            if row % 10 == 9:
                made.cam.publish_tails()
                made.file.flush()
                sizes.add(made.file.size)
        assert len(sizes) == 1
        with recorded(made) as group:
            np.testing.assert_array_equal(group["n"][:], np.arange(1000))
            assert group["n"].id.get_storage_size() == 8000  # where it was published, and as it was


def test_a_mask_is_made_at_the_first_null_and_costs_nothing_for_the_rows_before() -> None:
    schema = pa.schema([("n", pa.int64()), ("m", pa.int64())])
    rows, null = 3 * 4096 + 100, 3 * 4096 + 50
    with recorder(chunk_rows=512, compression="none") as made:
        made.cam.declare(schema)
        made.cam.append(pa.record_batch([np.arange(null), np.arange(null)], schema=schema))
        generation = made.file.generation
        late = [None, *range(null + 1, rows)]
        made.cam.append(pa.record_batch([range(null, rows), late], schema=schema))
        assert made.file.generation > generation
        made.cam.append(pa.record_batch([range(4096), range(4096)], schema=schema))
        with recorded(made) as group:
            assert "_arrow/validity/0" not in group
            mask = group["_arrow/validity/1"]
            assert mask.shape == (rows + 4096,)
            assert np.flatnonzero(~mask[:]).tolist() == [null]
            assert mask.id.get_num_chunks() == 2
            assert group["m"][null] == 0


def test_a_batch_is_borrowed_until_its_whole_chunks_are_written() -> None:
    schema = pa.schema([("n", pa.int64())])
    with recorder(chunk_rows=4, compression="none") as made:
        made.cam.declare(schema)
        tickets = [made.cam.append(rows_of(start, 6, 99).select(["n"])).chunks for start in (0, 6, 12)]
        assert tickets == [1, 3, 4]  # chunks that end within the batch
        with recorded(made) as group:
            assert group["n"].shape == (18,)


def test_rows_that_wait_for_their_datasets_say_so_and_get_their_tickets_later() -> None:
    schema = pa.schema([("n", pa.int64())])
    with recorder(compression="none") as made:
        made.cam.declare(schema)
        assert made.cam.waiting_since is None
        first = made.cam.append(rows_of(0, 3, 99).select(["n"]))
        since = made.cam.waiting_since
        second = made.cam.append(rows_of(3, 3, 99).select(["n"]))
        assert (first.chunks, second.chunks, made.cam.rows) == (None, None, 6)
        assert since is not None
        assert made.cam.waiting_since == since
        made.cam.settle()
        assert (first.chunks, second.chunks, made.cam.waiting_since) == (0, 0, None)
        with recorded(made) as group:
            assert group["n"][:].tolist() == list(range(6))


def test_a_short_recording_takes_no_more_than_its_rows() -> None:
    with recorder(compression="none") as made:
        made.cam.declare(pa.schema([("n", pa.int64())]))
        made.cam.append(rows_of(0, 13, 99).select(["n"]))
        with recorded(made) as group:
            assert group["n"].id.get_storage_size() == 13 * 8


def test_loaned_arrays_are_stored_as_they_lie() -> None:
    schema = pa.schema([("n", pa.int32()), ("frame", pa.list_(pa.uint8(), 2))])
    with recorder(chunk_rows=3, compression="gzip") as made:
        layout = made.cam.declare(schema)
        values = [np.arange(7, dtype="<i4"), np.arange(14, dtype="|u1").reshape(7, 2)]
        made.cam.append_plain(zip(layout.columns, values, strict=True), 7)
        with recorded(made) as group:
            for name, array in zip(("n", "frame"), values, strict=True):
                np.testing.assert_array_equal(group[name][:], array)


def test_bytes_and_chunks_are_counted() -> None:
    with recorder(chunk_rows=10, compression="none") as made:
        made.cam.declare(pa.schema([("n", pa.int64())]))
        made.cam.append(rows_of(0, 25, 99).select(["n"]))
        made.pipeline.drain()
        assert (made.cam.bytes_in, made.cam.bytes_written, made.cam.chunks_written) == (200, 160, 2)
        made.cam.publish_tails()
        assert (made.cam.bytes_written, made.cam.chunks_written) == (240, 2)
        with recorded(made):
            pass


def test_items_under_a_null_are_left_out_of_what_arrow_cannot_take_itself() -> None:
    raw = pa.array([b"x" * 16, b"y" * 16, b"z" * 16], pa.binary(16))
    items = pa.RunEndEncodedArray.from_arrays([1, 2, 3], pa.ExtensionArray.from_storage(pa.uuid(), raw))
    offsets = pa.py_buffer(np.array([0, 1, 2, 3], "i4"))
    type_ = pa.list_(items.type)
    hidden = pa.Array.from_buffers(type_, 3, [pa.py_buffer(b"\x05"), offsets], children=[items])
    with recorder() as made:
        made.cam.declare(pa.schema([("c", type_)]))
        for _ in range(2):
            made.cam.append(pa.record_batch([hidden], names=["c"]))
        with recorded(made) as group:
            assert group["c/OFFSETS"][:].tolist() == [0, 1, 1, 2, 3, 3, 4]
            assert group["c/VALUES/RUN_ENDS"][:].tolist() == [1, 2, 3, 4]
            assert [bytes(value)[:1] for value in group["c/VALUES/VALUES"][:]] == [b"x", b"z"] * 2


# -- another schema --------------------------------------------------------------------------------------


class OpenGroup(OpenedFile):
    """A file that is open already, for an `Instrument` to read from."""

    def __init__(self, group: Any) -> None:
        self.path, self._file, self._closed = Path(group.file.filename), group.file, False


class Evolving:
    """An instrument that takes batches of any schema that goes with those before."""

    def __init__(self, made: Recorder) -> None:
        self.made = made

    def put(self, **columns: pa.Array) -> None:
        batch = pa.record_batch(list(columns.values()), names=list(columns))
        self.put_batch(batch)

    def put_batch(self, batch: pa.RecordBatch) -> None:
        cam = self.made.cam
        if cam.layout is None:
            cam.declare(batch.schema)
        else:
            evolution = evolve(cam.layout.schema, batch.schema)
            if evolution.changed:
                cam.evolve(evolution)
        assert cam.layout
        cam.append(project(batch, physical_schema(cam.layout.schema)))


def stored_schemas(group: Any) -> tuple[pa.Schema, list[str], list[int]]:
    """Return the schema that holds, the columns in the layout, and until which rows others held."""
    schema = pa.ipc.read_schema(pa.py_buffer(group["_arrow/schema"][:].tobytes()))
    layout = json.loads(group["_arrow/layout"].asstr()[()])
    history = history_from_json(group["_arrow/history"].asstr()[()]) if "_arrow/history" in group else []
    assert json.loads(group["schema"].asstr()[()])["fields"][-1]["name"] == schema.names[-1]
    assert [name.decode() for name in group.attrs["column-order"]] == [
        column["node"]["path"] for column in layout["columns"]
    ]
    return schema, [column["name"] for column in layout["columns"]], [past.row for past in history]


@pytest.mark.parametrize(
    "options", [{}, {"chunk_rows": 3}, {"compression": "none", "chunk_rows": 4}, {"compression": "lzf"}]
)
@pytest.mark.parametrize("before", [0, 1, 4, 10])
def test_a_column_that_is_added_is_null_before(options: dict[str, Any], before: int) -> None:
    with recorder(**options) as made:
        cam = Evolving(made)
        cam.put(n=pa.array(range(before), pa.int64()))
        cam.put(
            n=pa.array([before, before + 1]),
            x=pa.array([0.5, None]),
            f=pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)),
        )
        cam.put(n=pa.array([before + 2]))
        cam.put(x=pa.array([2.5]), n=pa.array([before + 3]))
        with recorded(made) as group:
            assert group["n"][:].tolist() == list(range(before + 4))
            expected = [np.nan] * before + [0.5, np.nan, np.nan, 2.5]
            np.testing.assert_array_equal(group["x"][:], expected)
            np.testing.assert_array_equal(
                mask_of(group, "_arrow/validity/1", before + 4), ~np.isnan(expected)
            )
            assert group["f"][:].tolist() == [[0, 0]] * before + [[1, 2], [3, 4], [0, 0], [0, 0]]
            assert group["_arrow/validity/2"][:].tolist() == [False] * before + [True, True, False, False]
            schema, names, history = stored_schemas(group)
            assert (schema.names, names, history) == (["n", "x", "f"], ["n", "x", "f"], [before])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunk_rows": 3},
        {"compression": "none", "chunk_rows": 4},
        {"compression": "lzf", "chunk_rows": 3},
    ],
)
@pytest.mark.parametrize("before", [0, 1, 4, 10])
def test_a_column_that_is_widened_keeps_its_values(options: dict[str, Any], before: int) -> None:
    small = [row - 3 if row % 4 else None for row in range(before)]
    with recorder(**options) as made:
        cam = Evolving(made)
        cam.put(n=pa.array(small, pa.int8()), x=pa.array([row / 2 for row in range(before)], pa.float32()))
        cam.put(n=pa.array([40_000, None], pa.int32()), x=pa.array([1e300, -0.0], pa.float64()))
        cam.put(n=pa.array([-5], pa.int8()), x=pa.array([0.25], pa.float32()))
        cam.put(n=pa.array([2**62], pa.int64()), x=pa.array([0.75], pa.float32()))
        with recorded(made) as group:
            assert (group["n"].dtype, group["x"].dtype) == (np.dtype("<i8"), np.dtype("<f8"))
            numbers = [*small, 40_000, None, -5, 2**62]
            assert group["n"][:].tolist() == [number or 0 for number in numbers]
            valid = mask_of(group, "_arrow/validity/0", before + 4)
            assert valid.tolist() == [number is not None for number in numbers]
            found = group["x"][:]
            assert found.tolist() == [row / 2 for row in range(before)] + [1e300, 0.0, 0.25, 0.75]
            assert np.signbit(found[before + 1])
            schema, names, history = stored_schemas(group)
            assert schema.types == [pa.int64(), pa.float64()]
            assert (names, history) == (["n", "x"], [before, before + 3])
            assert "_arrow/widened" not in group or not len(group["_arrow/widened"])


def test_a_column_that_may_be_null_from_now_on() -> None:
    strict = pa.schema([pa.field("n", pa.int16(), nullable=False)])
    with recorder(chunk_rows=4) as made:
        cam = Evolving(made)
        cam.put_batch(pa.record_batch([pa.array(range(6), pa.int16())], schema=strict))
        cam.put(n=pa.array([None, 7], pa.int16()))
        with recorded(made) as group:
            assert group["n"][:].tolist() == [0, 1, 2, 3, 4, 5, 0, 7]
            assert group["_arrow/validity/0"][:].tolist() == [True] * 6 + [False, True]
            schema, _, history = stored_schemas(group)
            assert (schema.field("n").nullable, history) == (True, [6])


NESTED_ADDED: dict[str, Any] = {
    "list": pa.array([["a", None], []], pa.list_(pa.string())),
    "struct": pa.array([{"x": 1, "y": ["q"]}, {"x": None, "y": None}]),
    "packed": pa.array(["äb", None]),
    "name": pa.array(["äb", None]),
    "blob": pa.array([b"\0", None]),
    "tag": pa.array(["ab", None]),
    "label": pa.DictionaryArray.from_arrays(pa.array([1, None], pa.int8()), ["one", "two"]),
    "runs": pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int16()), pa.array(["r"])),
    "union": pa.UnionArray.from_sparse(pa.array([1, 0], pa.int8()), [pa.array([0, 5]), pa.array(["u", ""])]),
    "pairs": pa.array([[["a"], ["b"]], None], pa.list_(pa.list_(pa.string()), 2)),
    "money": pa.array(["1.50", None]).cast(pa.decimal128(9, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", NESTED_ADDED)
@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_a_column_of_any_kind_may_be_added_late(name: str, chunk_rows: int | None) -> None:
    added = NESTED_ADDED[name]
    strings = {"packed": "packed", "tag": "fixed:6"}.get(name, "vlen")
    with recorder(chunk_rows=chunk_rows, strings=strings) as made:
        cam = Evolving(made)
        cam.put(n=pa.array(range(5), pa.int8()))
        both = pa.record_batch({"n": pa.array([5, 6], pa.int8()), name: added})
        assert made.cam.layout
        made.cam.evolve(evolve(made.cam.layout.schema, both.schema))
        made.cam.append(retyped(both, physical_schema(both.schema)))
        cam.put(n=pa.array([7], pa.int8()))
        with recorded(made) as group:
            assert group["n"][:].tolist() == list(range(8))
            assert stored_schemas(group)[1:] == (["n", name], [5])
            stored = Instrument(OpenGroup(group), "cam", "cam").read()
        assert stored["n"].to_pylist() == list(range(8))
        stored.validate(full=True)
        assert stored[name].to_pylist() == [*[None] * 5, *added.to_pylist(), None]


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("name", NESTED_ADDED)
def test_a_column_of_any_kind_goes_on_from_a_commit(name: str, anew: bool) -> None:
    strings = {"packed": "packed", "tag": "fixed:6"}.get(name, "vlen")
    values = NESTED_ADDED[name]
    schema = pa.schema([("n", pa.int8()), (name, values.type)])

    def put(made: Recorder, number: int) -> None:
        batch = pa.record_batch([pa.array([number, number], pa.int8()), values], schema=schema)
        made.cam.append(retyped(batch, physical_schema(schema)))

    with recorder(chunk_rows=3, strings=strings) as killed:
        killed.cam.declare(schema)
        for number in range(4):
            put(killed, number)
            if number == 2:
                killed.pipeline.drain()
                killed.commit()
        killed.pipeline.drain()
        killed.file.flush()  # readers saw more than counts
        made = Recorder.follow(killed, anew=anew)
        assert made.cam.rows == 6
        for number in range(3, 6):
            put(made, number)
            made.commit()
        with recorded(made) as group:
            stored = Instrument(OpenGroup(group), "cam", "cam").read()
        stored.validate(full=True)
        assert stored["n"].to_pylist() == [number for number in range(6) for _ in range(2)]
        assert stored[name].to_pylist() == values.to_pylist() * 6


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("chunk_rows", [None, 3])
def test_a_schema_that_was_changed_holds_for_who_goes_on(chunk_rows: int | None, anew: bool) -> None:
    with recorder(chunk_rows=chunk_rows) as killed:
        cam = Evolving(killed)
        cam.put(n=pa.array(range(5), pa.int8()))
        cam.put(n=pa.array([5, 300], pa.int16()), x=pa.array([0.5, None]))
        assert killed.standing["counts"][""] == 5  # a change commits what was before, and itself
        made = Recorder.follow(killed, anew=anew)
        assert made.cam.layout
        assert made.cam.layout.schema.names == ["n", "x"]
        cam = Evolving(made)
        cam.put(n=pa.array([5, 300], pa.int16()), x=pa.array([0.5, None]))
        cam.put(n=pa.array([2**40], pa.int64()))
        with recorded(made) as group:
            assert group["n"][:].tolist() == [0, 1, 2, 3, 4, 5, 300, 2**40]
            np.testing.assert_array_equal(group["x"][:], [*[np.nan] * 5, 0.5, np.nan, np.nan])
            schema, _, history = stored_schemas(group)
            assert (schema.types, history) == ([pa.int64(), pa.float64()], [5, 7])


def test_a_change_of_schema_that_came_after_the_commit_never_was() -> None:
    """Its writer was killed before the commit that it ends with: who goes on makes the file anew."""
    with recorder(chunk_rows=3) as killed:
        cam = Evolving(killed)
        cam.put(n=pa.array(range(5), pa.int8()))
        killed.pipeline.drain()  # a commit waits for no codec
        killed.commit()
        before = killed.standing, killed.position
        cam.put(n=pa.array([300], pa.int16()), x=pa.array([0.5]))
        killed.standing, killed.position = before
        made = Recorder.follow(killed, anew=False)
        assert made.path.name == "anew.h5"
        assert made.cam.layout
        assert made.cam.layout.schema.types == [pa.int8()]
        cam = Evolving(made)
        cam.put(n=pa.array([300], pa.int16()), x=pa.array([0.5]))
        with recorded(made) as group:
            assert group["n"][:].tolist() == [0, 1, 2, 3, 4, 300]
            assert group["x"][-1] == 0.5
            assert stored_schemas(group)[2] == [5]


def test_a_dataset_that_is_gone_is_said_to_who_goes_on() -> None:
    with recorder() as made:
        layout = made.cam.declare(NUMBERS)
        made.cam.append(numbers_of(0, 5))
        made.cam.settle()
        standing = made.commit()
        config = made.cam.config
        other = InstrumentAssembly(
            made.file, made.pipeline, "cam", config, 1.0, lambda: made.path, made.commit
        )
        made.file.datasets[0] = None
        with pytest.raises(IncompleteFileError, match="dataset 0 of 'cam' is gone"):
            other.resume(layout, [], standing, {}, [])
        with recorded(made):
            pass


def test_a_refusal_leaves_the_schema_as_it_was() -> None:
    with recorder() as made:
        with pytest.raises(BrokenError, match="no schema"):
            made.cam.evolve(evolve(pa.schema([]), pa.schema([("n", pa.int8())])))
        cam = Evolving(made)
        cam.put(n=pa.array([1], pa.int8()))
        odd = pa.DictionaryArray.from_arrays(
            pa.array([0], pa.int8()), pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), ["a"])
        )
        with pytest.raises(UnsupportedTypeError, match="'odd'"):
            cam.put(n=pa.array([2], pa.int8()), odd=odd)
        assert made.cam.layout
        assert made.cam.layout.schema.names == ["n"]
        cam.put(n=pa.array([3], pa.int8()), x=pa.array([0.5]))
        with recorded(made) as group:
            assert group["n"][:].tolist() == [1, 3]
            assert stored_schemas(group)[1:] == (["n", "x"], [1])
