"""Items of one stream: whole chunks are borrowed, the remainder is copied, kept and published."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from shmstore.codec import Codec
from shmstore.dataset import Dataset, RecordingFile
from shmstore.layout import Stream
from shmstore.pipeline import Chunk, CodecPipeline, Encode
from shmstore.streams import ChunkAssembler, VariableAssembler
from shmstore.tails import Tails

CHUNK = 8
NUMBERS = Stream("values", "n", "<i8")


@dataclass
class Stage:
    """A file with a pipeline, and what a stream needs of them."""

    file: RecordingFile
    pipeline: CodecPipeline
    tails: list[Tails]
    shared: Path
    ended: bool = False

    def dataset(self, stream: Stream, items: int = 0) -> Dataset:
        with self.file.structure():
            return self.file.create_dataset(f"/{stream.path}", stream, CHUNK, Codec.parse("gzip"), items)

    def assembler(self, stream: Stream, encode: Encode | None = None, items: int = 0) -> ChunkAssembler:
        dataset = self.dataset(stream, items)
        self.tails.append(Tails(self.shared / stream.path, [dataset.chunk_bytes]))
        return ChunkAssembler(
            dataset, stream, self.tails[-1].pairs[0], self.pipeline, encode or raw(dataset.skip_mask)
        )

    def read(self, path: str) -> Any:
        """Close the file and read a dataset of it."""
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
    if not made.ended:
        file.close()
    made.pipeline.close()
    for tails in made.tails:
        tails.close()


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
        assembler.append(numbers(number, number + 1))
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
