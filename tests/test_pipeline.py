"""The codec pipeline: order and bounds are kept, memory comes free, and nothing fails unheard."""

from __future__ import annotations

import resource
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shmstore.codec import Codec
from shmstore.dataset import Dataset, RecordingFile
from shmstore.errors import StorageError
from shmstore.layout import Stream
from shmstore.pipeline import Chunk, CodecPipeline

ITEMS = 512
CHUNK_BYTES = 8 * ITEMS
RAW = 3  # gzip and shuffle, both skipped


def chunk_of(index: int) -> Chunk:
    return np.full(ITEMS, index, "<i8").view(np.uint8)


def as_it_is(chunk: Chunk) -> tuple[Any, int]:
    return chunk.tobytes(), RAW


@pytest.fixture
def file(tmp_path: Path) -> Iterator[RecordingFile]:
    made = RecordingFile.create(tmp_path / "recording.h5", {}, "{}")
    yield made
    made.close()


@pytest.fixture
def dataset(file: RecordingFile) -> Dataset:
    with file.structure():
        return file.create_dataset("/n", Stream("values", "n", "<i8"), ITEMS, Codec.parse("gzip"))


@pytest.fixture
def pipeline() -> Iterator[CodecPipeline]:
    made = CodecPipeline(2, 4 * CHUNK_BYTES, lambda: None)
    yield made
    made.close()


def stored(file: RecordingFile) -> list[int]:
    """Return the first item of each chunk, as a reader elsewhere sees it.

    Of a copy: opened twice in one process, HDF5 shares what it knows of a file.
    """
    file.flush()
    copy = shutil.copy(file.path, file.path.with_name("copy.h5"))
    with h5py.File(copy, "r", libver="v110", swmr=True) as reader:
        return list(map(int, reader["n"][::ITEMS]))


def test_chunks_are_written_in_order_though_later_ones_are_ready_first(
    pipeline: CodecPipeline, dataset: Dataset, file: RecordingFile
) -> None:
    first_may_end, second_ended = threading.Event(), threading.Event()

    def slow(chunk: Chunk) -> tuple[Any, int]:
        first_may_end.wait(60)
        return as_it_is(chunk)

    def quick(chunk: Chunk) -> tuple[Any, int]:
        second_ended.set()
        return as_it_is(chunk)

    pipeline.submit(dataset, 0, chunk_of(10), slow)
    pipeline.submit(dataset, 1, chunk_of(11), quick)
    assert second_ended.wait(60)
    pipeline.write_ready()
    assert (pipeline.submitted, pipeline.written, dataset.known_items) == (2, 0, 0)
    assert pipeline.busy
    first_may_end.set()
    pipeline.wait_for(1)
    assert dataset.known_items >= ITEMS
    pipeline.drain()
    assert (pipeline.written, pipeline.busy, dataset.chunks_written) == (2, False, 2)
    assert stored(file) == [10, 11]


def test_no_more_is_under_way_than_the_window_holds(dataset: Dataset) -> None:
    pipeline = CodecPipeline(2, 2 * CHUNK_BYTES, lambda: None)

    def slow(chunk: Chunk) -> tuple[Any, int]:
        time.sleep(0.003)
        return as_it_is(chunk)

    under_way = []
    for index in range(30):
        pipeline.submit(dataset, index, chunk_of(index), slow)
        under_way.append(pipeline.submitted - pipeline.written)
    assert max(under_way) == 2
    pipeline.drain()
    pipeline.close()


def test_a_chunk_larger_than_the_window_still_passes(dataset: Dataset, file: RecordingFile) -> None:
    pipeline = CodecPipeline(1, 100, lambda: None)
    for index in range(3):
        pipeline.submit(dataset, index, chunk_of(index), as_it_is)
    pipeline.drain()
    pipeline.close()
    assert stored(file) == [0, 1, 2]


def test_whoever_waits_is_told_of_every_chunk(dataset: Dataset) -> None:
    told = threading.Semaphore(0)
    pipeline = CodecPipeline(2, 1 << 20, told.release)
    for index in range(5):
        pipeline.submit(dataset, index, chunk_of(index), as_it_is)
    assert all(told.acquire(timeout=60) for _ in range(5))
    pipeline.drain()
    assert not told.acquire(blocking=False)
    pipeline.close()


def test_the_memory_of_a_chunk_is_free_once_it_is_written(dataset: Dataset) -> None:
    """Although the codec thread has not come to its end yet, and still holds on to its work."""
    submitted, may_end = threading.Event(), threading.Event()

    def encode(chunk: Chunk) -> tuple[Any, int]:
        submitted.wait(10)
        return chunk.data, RAW

    def linger() -> None:
        may_end.wait(10)

    pipeline = CodecPipeline(1, 1 << 20, linger)
    memory = bytearray(CHUNK_BYTES)
    pipeline.submit(dataset, 0, np.frombuffer(memory, np.uint8), encode)
    submitted.set()
    pipeline.drain()
    try:
        memory.append(0)  # BufferError while anything looks at it
    finally:
        may_end.set()
        pipeline.close()


def test_the_last_chunk_counts_only_the_items_it_has(
    pipeline: CodecPipeline, dataset: Dataset, file: RecordingFile
) -> None:
    pipeline.submit(dataset, 0, chunk_of(1), as_it_is)
    pipeline.submit(dataset, 1, chunk_of(2), as_it_is, items=3)
    pipeline.drain()
    assert dataset.known_items == ITEMS + 3
    assert stored(file) == [1, 2]


def test_as_it_is_goes_before_the_encoder(
    pipeline: CodecPipeline, dataset: Dataset, file: RecordingFile
) -> None:
    def never(chunk: Chunk) -> tuple[Any, int]:
        raise AssertionError("not to be called")

    pipeline.submit(dataset, 0, chunk_of(7), never, as_it_is=True)
    pipeline.drain()
    assert dataset.bytes_written == CHUNK_BYTES
    assert stored(file) == [7]


def test_chunks_without_encoder_go_through_the_filters_of_hdf5(
    pipeline: CodecPipeline, dataset: Dataset, file: RecordingFile
) -> None:
    pipeline.submit(dataset, 0, chunk_of(7), None)
    pipeline.write_ready()
    assert pipeline.written == 1
    assert 0 < dataset.bytes_written < CHUNK_BYTES // 4
    assert stored(file) == [7]


# -- what fails ------------------------------------------------------------------------------------------


def test_an_encoder_that_fails_is_heard_and_heard_again(pipeline: CodecPipeline, dataset: Dataset) -> None:
    def broken(chunk: Chunk) -> tuple[Any, int]:
        raise ValueError("the codec failed")

    pipeline.submit(dataset, 0, chunk_of(0), broken)
    for _ in range(2):
        with pytest.raises(ValueError, match="codec failed"):
            pipeline.drain()
    assert (pipeline.written, dataset.known_items, pipeline.busy) == (0, 0, True)


def test_a_payload_of_the_wrong_length_never_reaches_the_file(
    pipeline: CodecPipeline, dataset: Dataset
) -> None:
    pipeline.submit(dataset, 0, chunk_of(0), lambda chunk: (bytes(chunk[1:]), RAW))
    with pytest.raises(StorageError, match="unfiltered chunk has 4096 bytes, not 4095"):
        pipeline.drain()
    assert (pipeline.written, dataset.bytes_written) == (0, 0)


def test_a_write_that_failed_can_be_tried_again(
    pipeline: CodecPipeline, dataset: Dataset, file: RecordingFile
) -> None:
    """The file may not grow for a moment, as on a full disk."""
    pipeline.submit(dataset, 0, chunk_of(5), as_it_is)
    pipeline.drain()
    file.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.size, hard))
    pipeline.submit(dataset, 1, chunk_of(6), as_it_is)
    try:
        with pytest.raises(OSError, match=r"Errno 27|File too large"):
            pipeline.drain()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (pipeline.written, pipeline.busy, dataset.chunks_written) == (1, True, 1)
    pipeline.drain()
    assert (pipeline.written, dataset.chunks_written) == (2, 2)
    assert stored(file) == [5, 6]


def test_closing_forgets_what_is_not_written(dataset: Dataset) -> None:
    pipeline = CodecPipeline(1, 1 << 20, lambda: None)
    gate = threading.Event()

    def held(chunk: Chunk) -> tuple[Any, int]:
        gate.wait(60)
        return as_it_is(chunk)

    for index in range(3):
        pipeline.submit(dataset, index, chunk_of(index), held)
    gate.set()
    pipeline.close()
    assert not pipeline.busy
    with pytest.raises(RuntimeError):
        pipeline.submit(dataset, 3, chunk_of(3), as_it_is)
