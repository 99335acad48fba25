"""Items of one stream: whole chunks are borrowed, the remainder is copied, kept and published."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore.codec import Codec
from shmstore.dataset import Dataset
from shmstore.errors import BrokenError
from shmstore.journal import Journal, JournalReader
from shmstore.layout import Stream
from shmstore.pipeline import Chunk, CodecPipeline, Encode
from shmstore.recordingfile import RecordingFile
from shmstore.recoveryfolder import recovery_folder
from shmstore.streams import ChunkAssembler, Rank, Standing, VariableAssembler
from shmstore.tails import TailBuffers, Tails

CHUNK = 8
NUMBERS = Stream("values", "n", "<i8")


@dataclass
class Stage:
    """A file with a pipeline, and what a stream needs of them.

    Attributes
    ----------
    marks : list of (int, int)
        After each batch put: chunks that must be written before it is covered, and the stream's items.
    standing : Standing or None
        Where the stream stood at the last commit.
    commits : int
        How many there were.
    """

    file: RecordingFile
    pipeline: CodecPipeline
    tails: list[Tails]
    shared: Path
    marks: list[tuple[int, int]] = field(default_factory=list)
    assemblers: list[ChunkAssembler] = field(default_factory=list)
    standing: Standing | None = None
    commits: int = 0
    ended: bool = False

    def dataset(self, stream: Stream, items: int = 0) -> Dataset:
        with self.file.structure():
            return self.file.create_dataset(f"/{stream.path}", stream, CHUNK, Codec.parse("gzip"), items)

    def assembler(self, stream: Stream, encode: Encode | None = None, items: int = 0) -> ChunkAssembler:
        """Return an assembler with three buffers; when it needs room, everything put is committed."""
        dataset = self.dataset(stream, items)
        tails = Tails.create(self.shared / stream.path, [dataset.chunk_bytes], 3)
        self.tails.append(tails)
        return self.place(dataset, stream, tails.buffers[0], encode or raw(dataset.skip_mask))

    def place(
        self,
        dataset: Dataset,
        stream: Stream,
        buffers: TailBuffers,
        encode: Encode,
        standing: Standing | None = None,
    ) -> ChunkAssembler:
        number = len(self.assemblers)

        def make_room() -> None:
            self.commit(self.assemblers[number])

        self.assemblers.append(
            ChunkAssembler(dataset, stream, buffers, self.pipeline, encode, make_room, standing)
        )
        return self.assemblers[-1]

    def close(self) -> None:
        """Let go of everything but the file."""
        self.pipeline.close()
        self.assemblers.clear()
        for tails in self.tails:
            tails.close()

    def put(self, assembler: ChunkAssembler, items: npt.NDArray[Any]) -> None:
        """Append a batch that a commit may end after."""
        assembler.append(items)
        self.marks.append((self.pipeline.submitted, assembler.total))

    def commit(self, assembler: ChunkAssembler) -> int | None:
        """Commit what is written; returns how many items that covers, if there are more now."""
        self.commits += 1
        commit = self.pipeline.commit(self.file.flush)
        self.pipeline.finish(commit)
        covered = None
        while self.marks and self.marks[0][0] <= commit.written:
            covered = self.marks.pop(0)[1]
        if covered is not None:
            standing = assembler.standing(covered)
            assert standing
            self.standing = standing
            assembler.committed(covered)
        return covered

    def read(self, path: str) -> Any:
        """Close the file, once all is written, and read a dataset of it."""
        self.pipeline.drain()
        self.ended = True
        self.file.finish("complete", "{}", {})
        with h5py.File(self.file.path) as file:
            return file[path][:]


def raw(mask: int) -> Encode:
    """Encode a chunk as itself, after a copy on the codec thread."""
    return lambda chunk: (bytes(chunk), mask)


def numbers(start: int, stop: int) -> npt.NDArray[Any]:
    return np.arange(start, stop, dtype="<i8")


@pytest.fixture
def stage(tmp_path: Path, shared_folder: Path) -> Iterator[Stage]:
    file = RecordingFile.create(tmp_path / "recording.h5", {}, "{}")
    made = Stage(file, CodecPipeline(2, 1 << 20, lambda: None), [], shared_folder)
    yield made
    made.close()
    if not made.ended:
        file.close()


def test_whole_chunks_are_borrowed_where_they_lie_and_the_rest_is_copied(stage: Stage) -> None:
    chunks: list[Chunk] = []

    def encode(chunk: Chunk) -> tuple[bytes, int]:
        chunks.append(chunk)
        return bytes(chunk), 3

    assembler = stage.assembler(NUMBERS, encode)
    head, body = numbers(0, 3), numbers(3, 31)
    assembler.append(head)
    assembler.append(body)
    stage.pipeline.drain()
    assert sorted(np.shares_memory(chunk, body) for chunk in chunks) == [False, True, True]
    assert not any(np.shares_memory(chunk, head) for chunk in chunks)
    assert assembler.total == 31
    head[:] = -1  # what was copied may change
    body[-7:] = -1
    assembler.finish()
    np.testing.assert_array_equal(stage.read("n"), numbers(0, 31))


def test_a_tail_is_not_written_over_while_its_chunk_is_under_way(stage: Stage) -> None:
    """Codec threads that take their time; items one by one, so that every chunk is a tail."""

    def encode(chunk: Chunk) -> tuple[bytes, int]:
        time.sleep(0.01)
        return bytes(chunk), 3

    assembler = stage.assembler(NUMBERS, encode)
    for number in range(10 * CHUNK + 1):
        stage.put(assembler, numbers(number, number + 1))
    assert stage.commits
    assembler.finish()
    np.testing.assert_array_equal(stage.read("n"), numbers(0, 10 * CHUNK + 1))


def test_a_published_tail_is_written_again_only_when_it_has_grown(stage: Stage) -> None:
    assembler = stage.assembler(NUMBERS)
    dataset = assembler.dataset
    assembler.publish()
    assert (dataset.bytes_written, dataset.known_items) == (0, 0)
    assembler.append(numbers(0, 3))
    assembler.publish(older_than_s=3600)
    assert dataset.bytes_written == 0
    written = []
    for _ in range(2):
        assembler.publish()
        written.append((dataset.bytes_written, dataset.known_items))
    assembler.append(numbers(3, 5))
    assembler.publish()
    written.append((dataset.bytes_written, dataset.known_items))
    assert written == [(64, 3), (64, 3), (128, 5)]
    assembler.finish()  # nothing is left to write
    assert dataset.bytes_written == 128
    np.testing.assert_array_equal(stage.read("n"), numbers(0, 5))


def test_a_chunk_that_was_published_stays_unfiltered_and_the_next_is_filtered(stage: Stage) -> None:
    encoder = Codec.parse("gzip").encoder(8, 64)
    assert encoder
    assembler = stage.assembler(NUMBERS, encoder)
    assembler.append(numbers(0, 3))
    assembler.publish()
    assembler.append(numbers(3, 2 * CHUNK))
    assembler.finish()
    np.testing.assert_array_equal(stage.read("n"), numbers(0, 2 * CHUNK))
    with h5py.File(stage.file.path) as file:
        masks = [file["n"].id.get_chunk_info(chunk).filter_mask for chunk in range(2)]
    assert masks == [3, 0]


def test_publishing_waits_for_the_chunks_before(stage: Stage) -> None:
    """The extent must not reach over a chunk that is not written."""
    assembler = stage.assembler(NUMBERS)
    assembler.append(numbers(0, 20 * CHUNK + 1))
    assembler.publish()
    assert not stage.pipeline.busy
    assert (assembler.dataset.chunks_written, assembler.dataset.known_items) == (20, 20 * CHUNK + 1)
    assembler.finish()


def test_the_lead_comes_first(stage: Stage) -> None:
    stream = Stream("offsets", "offsets", "<u8", lead=1)
    assembler = stage.assembler(stream)
    assert assembler.total == 1
    assembler.append(np.array([5, 9], "<u8"))
    assembler.finish()
    assert stage.read("offsets").tolist() == [0, 5, 9]


@pytest.mark.parametrize("before", [0, 3, CHUNK, 2 * CHUNK + 3])
def test_a_mask_that_begins_late_is_true_before(stage: Stage, before: int) -> None:
    stream = Stream("validity", "mask", "|b1", (), 1, lazy=True)
    assembler = stage.assembler(stream, items=before)
    assembler.begin_at(before)
    assert assembler.total == before
    assembler.append(np.array([False, True, False]))
    assembler.finish()
    stage.pipeline.drain()
    assert assembler.dataset.chunks_written == (before % CHUNK + 3 + CHUNK - 1) // CHUNK
    assert stage.read("mask").tolist() == [True] * before + [False, True, False]


def test_items_of_several_dimensions_keep_their_shape(stage: Stage) -> None:
    stream = Stream("values", "frame", "<u2", (2, 3))
    frames = np.arange(21 * 6, dtype="<u2").reshape(21, 2, 3)
    assembler = stage.assembler(stream)
    for start, stop in itertools.pairwise([0, 1, 1, 12, 21]):
        assembler.append(frames[start:stop])
    assembler.finish()
    np.testing.assert_array_equal(stage.read("frame"), frames)


# -- commits ---------------------------------------------------------------------------------------------


def test_a_buffer_is_filled_again_only_when_a_commit_covers_what_is_in_it(stage: Stage) -> None:
    """Who follows a killed writer goes on from the last commit: what that needs must still be there."""
    assembler = stage.assembler(NUMBERS)
    committed = 0
    for number in range(40 * CHUNK):
        before = stage.commits
        stage.put(assembler, numbers(number, number + 1))
        stage.pipeline.drain()  # being written is not enough
        if number % 37 == 36:
            committed = stage.commit(assembler) or committed
        elif stage.commits > before:
            # It was asked for because there was no room: nothing was left to be covered but this batch.
            committed = number // CHUNK * CHUNK
        standing = assembler.standing(committed)
        assert standing
        assert standing.items == committed
        expected = numbers(committed // CHUNK * CHUNK, committed)
        np.testing.assert_array_equal(assembler.tail(standing).view("<i8"), expected)
    assert stage.commits > 40 * CHUNK // 37 + 5
    assembler.finish()
    np.testing.assert_array_equal(stage.read("n"), numbers(0, 40 * CHUNK))


@settings(max_examples=60, deadline=None)
@given(
    runs=st.lists(st.tuples(st.integers(1, 11), st.integers(1, 9), st.booleans()), max_size=15),
    commits=st.booleans(),
)
def test_batches_taken_together_are_what_they_are_one_by_one(
    runs: list[tuple[int, int, bool]], commits: bool
) -> None:
    """Of up to 11 rows, so that some are longer than a chunk, and as many as a chunk has rows for."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-streams-") as folder:
        file = RecordingFile.create(Path(folder) / "recording.h5", {}, "{}")
        stage = Stage(file, CodecPipeline(2, 1 << 20, lambda: None), [], Path(folder))
        assembler = stage.assembler(NUMBERS)
        total = 0
        for rows, most, together in runs:
            batches = min(most, max(CHUNK // rows, 1))
            # As in a ring: something else between the batches.
            spaced = np.full((batches, rows + 3), -1)
            spaced[:, :rows] = numbers(total, total + rows * batches).reshape(batches, rows)
            items = spaced[:, :rows]
            if together:
                assembler.append_run(items)
                stage.marks.append((stage.pipeline.submitted, assembler.total))
            else:
                for batch in items:
                    stage.put(assembler, batch)
            total += rows * batches
            if commits:
                stage.commit(assembler)
            stage.pipeline.drain()
            spaced[:] = -1
        assert assembler.total == total
        assembler.finish()
        np.testing.assert_array_equal(stage.read("n"), numbers(0, total))
        stage.close()


@settings(max_examples=60, deadline=None)
@given(
    runs=st.lists(st.tuples(st.integers(1, 11), st.integers(1, 9), st.integers(-1, 2)), max_size=15),
    commits=st.booleans(),
)
def test_streams_in_step_take_what_each_would(runs: list[tuple[int, int, int]], commits: bool) -> None:
    """Also where one of them comes first, now and then, and is ahead until the others follow."""
    width = 3
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-streams-") as folder:
        file = RecordingFile.create(Path(folder) / "recording.h5", {}, "{}")
        stage = Stage(file, CodecPipeline(2, 1 << 20, lambda: None), [], Path(folder))
        streams = [Stream("values", f"n{number}", "<i8") for number in range(width)]
        datasets = [stage.dataset(stream) for stream in streams]
        tails = Tails.create(stage.shared / "tails", [dataset.chunk_bytes for dataset in datasets], 3)
        stage.tails.append(tails)
        covered = [0]

        def commit() -> None:
            stage.pipeline.finish(stage.pipeline.commit(stage.file.flush))
            for assembler in stage.assemblers:
                assembler.committed(covered[0])

        for dataset, stream, buffers in zip(datasets, streams, tails.buffers, strict=True):
            encode = raw(dataset.skip_mask)
            stage.assemblers.append(ChunkAssembler(dataset, stream, buffers, stage.pipeline, encode, commit))
        rank = Rank.of(stage.assemblers)
        assert rank is not None
        total = 0
        for rows, most, ahead in runs:
            batches = min(most, max(CHUNK // rows, 1))
            covered[0] = total
            spaced = np.full((batches, width, rows + 3), -1)
            for number in range(width):
                values = numbers(total, total + rows * batches) + 1000 * number
                spaced[:, number, :rows] = values.reshape(batches, rows)
            items = spaced[..., :rows]
            if ahead < 0:
                rank.append_run(items)
            else:
                stage.assemblers[ahead].append_run(items[:, ahead])
                for number in set(range(width)) - {ahead}:
                    stage.assemblers[number].append_run(items[:, number])
            total += rows * batches
            if commits:
                commit()
            stage.pipeline.drain()
            spaced[:] = -1
            for number, assembler in enumerate(stage.assemblers):
                check_tail(assembler, numbers(total // CHUNK * CHUNK, total) + 1000 * number)
        assert [assembler.total for assembler in stage.assemblers] == [total] * width
        for assembler in stage.assemblers:
            assembler.finish()
        stage.pipeline.drain()
        stage.ended = True
        stage.file.finish("complete", "{}", {})
        with h5py.File(stage.file.path) as made:
            for number in range(width):
                np.testing.assert_array_equal(made[f"n{number}"][:], numbers(0, total) + 1000 * number)
        del rank, buffers
        stage.close()


def check_tail(assembler: ChunkAssembler, expected: npt.NDArray[Any]) -> None:
    """What a commit now would say of the chunk that is not full must be where it says."""
    standing = assembler.standing(assembler.total)
    assert standing is not None
    np.testing.assert_array_equal(assembler.tail(standing).view("<i8"), expected)


def test_streams_in_step_may_go_on_in_different_buffers(stage: Stage) -> None:
    streams = [Stream("values", name, "<i8") for name in ("n", "m")]
    datasets = [stage.dataset(stream) for stream in streams]
    tails = Tails.create(stage.shared / "tails", [datasets[0].chunk_bytes] * 2, 3)
    stage.tails.append(tails)
    first, second = (
        stage.place(dataset, stream, buffers, raw(dataset.skip_mask))
        for dataset, stream, buffers in zip(datasets, streams, tails.buffers, strict=True)
    )
    rank = Rank.of([first, second])
    assert rank is not None
    first.guarded = False  # its buffers are free as soon as they are written, not with a commit
    total = 0
    for rows in (CHUNK, 3, 2, CHUNK - 5, 1, CHUNK):
        mine = numbers(total, total + rows)
        rank.append_run(np.stack([mine, -mine])[None])
        total += rows
        stage.pipeline.drain()
        begun = numbers(total // CHUNK * CHUNK, total)
        check_tail(first, begun)
        check_tail(second, -begun)
    assert first.standing(total - CHUNK) != second.standing(total - CHUNK)
    for assembler in (first, second):
        assembler.finish()
    stage.pipeline.drain()
    np.testing.assert_array_equal(stage.read("n"), numbers(0, total))
    with h5py.File(stage.file.path) as made:
        np.testing.assert_array_equal(made["m"][:], -numbers(0, total))


def test_streams_that_do_not_lie_alike_are_no_rank(stage: Stage) -> None:
    first, second = stage.assembler(NUMBERS), stage.assembler(Stream("values", "m", "<i8"))
    assert Rank.of([first, second]) is None, "in two segments"
    assert Rank.of([first, stage.assembler(Stream("values", "k", "<i4"))]) is None, "of two widths"


def test_of_a_single_batch_whole_chunks_are_borrowed(stage: Stage) -> None:
    assembler = stage.assembler(NUMBERS)
    items = numbers(0, 3 * CHUNK + 1).reshape(1, -1)
    assembler.append_run(items)
    assert (assembler.total, stage.pipeline.submitted) == (3 * CHUNK + 1, 3)
    assembler.finish()
    np.testing.assert_array_equal(stage.read("n"), items[0])


def test_who_goes_on_has_memory_behind_the_buffer_that_it_goes_on_in(stage: Stage) -> None:
    """Of a segment that was copied, what was never written may be a hole."""
    dataset = stage.dataset(NUMBERS)
    path = stage.shared / "tails"
    tails = Tails.create(path, [dataset.chunk_bytes], 3, sparse=True)
    stage.tails.append(tails)
    assert path.stat().st_blocks == 0
    assembler = stage.place(dataset, NUMBERS, tails.buffers[0], raw(dataset.skip_mask), Standing(3, 1))
    assert path.stat().st_blocks > 0
    assert assembler.total == 3
    assembler.finish()


def test_no_commit_is_asked_for_while_buffers_are_free(stage: Stage) -> None:
    assembler = stage.assembler(NUMBERS)
    for number in range(3 * CHUNK):
        stage.put(assembler, numbers(number, number + 1))
    assert stage.commits == 0  # each of three buffers was filled once
    stage.pipeline.drain()
    assert stage.commit(assembler) == 3 * CHUNK
    for number in range(3 * CHUNK, 6 * CHUNK):
        stage.put(assembler, numbers(number, number + 1))
    assert stage.commits == 1
    stage.put(assembler, numbers(6 * CHUNK, 6 * CHUNK + 1))
    assert stage.commits == 2
    assembler.finish()


def test_whole_chunks_of_a_batch_need_no_buffers(stage: Stage) -> None:
    assembler = stage.assembler(NUMBERS)
    for start in range(0, 100 * CHUNK, 10 * CHUNK):
        stage.put(assembler, numbers(start, start + 10 * CHUNK))
    assert stage.commits == 0
    assembler.finish()


def test_a_commit_that_makes_no_room_is_an_error(stage: Stage) -> None:
    assembler = stage.assembler(NUMBERS)
    for _ in range(3 * CHUNK):
        assembler.append(numbers(0, 1))  # of which nobody ever says that they are covered
    with pytest.raises(BrokenError, match="n: a commit left none of its buffers free") as caught:
        assembler.append(numbers(0, 1))
    del caught  # the frames in its traceback look at the buffers
    assert stage.commits == 1


def test_a_stream_that_no_commit_covers_asks_for_none(stage: Stage) -> None:
    """As while a new column is filled up: its buffers come free when they are written."""

    def encode(chunk: Chunk) -> tuple[bytes, int]:
        time.sleep(0.005)
        return bytes(chunk), 3

    assembler = stage.assembler(NUMBERS, encode)
    assembler.guarded = False
    for number in range(20 * CHUNK + 3):
        assembler.append(numbers(number, number + 1))
    assert stage.commits == 0
    assembler.finish()
    np.testing.assert_array_equal(stage.read("n"), numbers(0, 20 * CHUNK + 3))


def test_where_a_stream_stood_is_told_of_every_commit_since_the_last(stage: Stage) -> None:
    assembler = stage.assembler(NUMBERS)
    assert assembler.standing(0) == Standing(0)
    for start, stop in itertools.pairwise([0, 3, 7, CHUNK, CHUNK + 2, 2 * CHUNK + 5]):
        assembler.append(numbers(start, stop))
    assert [assembler.standing(items) for items in (3, 7, CHUNK, CHUNK + 2, 2 * CHUNK + 5)] == [
        Standing(3, 0),
        Standing(7, 0),
        Standing(CHUNK),
        Standing(CHUNK + 2, 1),
        Standing(2 * CHUNK + 5, 2),
    ]
    assert len(assembler.tail(Standing(CHUNK))) == 0
    assembler.publish()
    assert assembler.standing(2 * CHUNK + 5) == Standing(2 * CHUNK + 5, 2, True)
    assert assembler.standing(CHUNK + 2) == Standing(CHUNK + 2, 1, False)
    with pytest.raises(BrokenError, match=f"item {3 * CHUNK + 1} is in none of its buffers"):
        assembler.standing(3 * CHUNK + 1)
    assembler.finish()


def test_a_mask_that_begins_late_stood_nowhere_before(stage: Stage) -> None:
    stream = Stream("validity", "mask", "|b1", (), 1, lazy=True)
    assembler = stage.assembler(stream, items=CHUNK + 3)
    assembler.begin_at(CHUNK + 3)
    assembler.append(np.array([False, True]))
    assert [assembler.standing(items) for items in (0, CHUNK, CHUNK + 2)] == [None] * 3
    standing = assembler.standing(CHUNK + 5)
    assert standing == Standing(CHUNK + 5, 0)
    assert standing
    assert assembler.tail(standing).tolist() == [1, 1, 1, 0, 1]
    assembler.finish()


# -- one that follows another ----------------------------------------------------------------------------


def run(stage: Stage, assembler: ChunkAssembler, batches: list[tuple[int, str]]) -> None:
    """Put batches of so many numbers; after each, commit or publish if told so."""
    for size, what in batches:
        stage.put(assembler, numbers(assembler.total, assembler.total + size))
        if what == "publish":
            assembler.publish()
        elif what:
            stage.commit(assembler)


BATCHES = st.lists(st.tuples(st.integers(0, 3 * CHUNK), st.sampled_from(["", "", "commit", "publish"])))


@settings(max_examples=40, deadline=None)
@given(before=BATCHES, after=BATCHES, compressed=st.booleans())
def test_who_goes_on_from_a_commit_makes_the_same_file(
    before: list[tuple[int, str]], after: list[tuple[int, str]], compressed: bool
) -> None:
    """The writer before is gone at any moment; its file, its journal and its buffers are what is left."""
    codec = Codec.parse("gzip")
    encode = codec.encoder(8, 8 * CHUNK) if compressed else raw(3)
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="shmstore-test-") as shared,
    ):
        path, tails_path = Path(folder) / "recording.h5", Path(shared) / "n"
        file = RecordingFile.create(path, {}, "{}")
        stage = Stage(file, CodecPipeline(2, 1 << 20, lambda: None), [], Path(shared))
        assembler = stage.assembler(NUMBERS, encode)
        run(stage, assembler, before)
        standing = stage.standing
        # Between commits the pipeline goes on writing, so there may be more in the file than they cover.
        stage.pipeline.drain()
        stage.pipeline.close()
        file.flush()
        file.close()
        del assembler
        stage.assemblers.clear()
        stage.tails[0].leave()

        with JournalReader(recovery_folder(path) / "journal") as reader:
            list(reader)
            end = reader.end
        file = RecordingFile.resume(path, Journal.reopen(recovery_folder(path) / "journal", end))
        stage = Stage(file, CodecPipeline(2, 1 << 20, lambda: None), [], Path(shared))
        dataset = file.restore_dataset("/n", NUMBERS, CHUNK, codec)
        dataset.known_items = int(dataset.id.shape[0])
        tails = Tails.attach(tails_path, [8 * CHUNK], 3)
        stage.tails.append(tails)
        follower = stage.place(dataset, NUMBERS, tails.buffers[0], encode, standing)
        assert follower.total == (standing.items if standing else 0)
        run(stage, follower, after)
        total = follower.total
        follower.finish()
        stage.pipeline.drain()
        del follower
        stage.close()
        file.finish("complete", "{}", {})
        with h5py.File(path) as found:
            # The extent may reach further: over what was put before and not committed, and not put again.
            np.testing.assert_array_equal(found["n"][:total], numbers(0, total))


# -- variable-length items -------------------------------------------------------------------------------


def objects(*values: Any) -> npt.NDArray[Any]:
    made = np.empty(len(values), object)
    made[:] = values
    return made


def test_variable_items_appear_when_published(stage: Stage) -> None:
    assembler = VariableAssembler(stage.dataset(Stream("values", "text", "utf8")))
    assembler.append(objects("ä", ""))
    assert (assembler.total, assembler.dataset.known_items) == (2, 0)
    assembler.publish()
    assembler.publish()
    assert assembler.dataset.known_items == 2
    assembler.append(objects("c" * 70_000))
    assembler.append(objects())
    assembler.publish()
    assert [text.decode() for text in stage.read("text")] == ["ä", "", "c" * 70_000]


def test_variable_items_are_gathered_up_to_a_bound(stage: Stage) -> None:
    assembler = VariableAssembler(stage.dataset(Stream("values", "text", "utf8")))
    batch = objects(*["x"] * 40_000)
    assembler.append(batch)
    assert assembler.dataset.known_items == 0
    assembler.append(batch)
    assert assembler.dataset.known_items == assembler.total == 80_000
    assert len(stage.read("text")) == 80_000


def test_variable_items_go_on_where_they_were_committed(stage: Stage) -> None:
    dataset = stage.dataset(Stream("values", "text", "utf8"))
    one = VariableAssembler(dataset)
    one.append(objects("a", "b", "c"))
    one.publish()
    assert one.standing(2) == Standing(2)
    assert len(one.tail(Standing(2))) == 0
    one.committed(2)
    follower = VariableAssembler(dataset, 2)
    assert follower.total == 2
    follower.publish()
    follower.append(objects("C", "d"))
    follower.publish()
    assert follower.total == 4
    assert [text.decode() for text in stage.read("text")] == ["a", "b", "C", "d"]
