"""The codec pipeline: order and bounds are kept, memory comes free, and nothing fails unheard."""

from __future__ import annotations

import resource
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shmstore import pipeline as pipeline_module
from shmstore.codec import Codec
from shmstore.dataset import Dataset
from shmstore.errors import StorageError
from shmstore.layout import Stream
from shmstore.pipeline import Chunk, CodecPipeline, Encode
from shmstore.recordingfile import RecordingFile

ITEMS = 512
CHUNK_BYTES = 8 * ITEMS
RAW = 3  # gzip and shuffle, both skipped


def chunk_of(index: int) -> Chunk:
    return np.full(ITEMS, index, "<i8").view(np.uint8)


def as_it_is(chunk: Chunk) -> tuple[Any, int]:
    return chunk.tobytes(), RAW


class Gate:
    """An encoder that waits to be opened, and says when it has begun."""

    def __init__(self) -> None:
        self.begun, self._opened = threading.Event(), threading.Event()

    def __call__(self, chunk: Chunk) -> tuple[Any, int]:
        self.begun.set()
        assert self._opened.wait(60)
        return as_it_is(chunk)

    def open(self) -> None:
        self._opened.set()


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
    first, second_ended = Gate(), threading.Event()

    def quick(chunk: Chunk) -> tuple[Any, int]:
        second_ended.set()
        return as_it_is(chunk)

    pipeline.submit(dataset, 0, chunk_of(10), first)
    pipeline.submit(dataset, 1, chunk_of(11), quick)
    assert second_ended.wait(60)
    assert (pipeline.submitted, pipeline.written, dataset.known_items) == (2, 0, 0)
    assert (pipeline.busy, pipeline.written_bytes) == (True, 0)
    first.open()
    pipeline.wait_for(1)
    assert dataset.known_items >= ITEMS
    pipeline.drain()
    assert (pipeline.written, pipeline.busy, dataset.chunks_written) == (2, False, 2)
    assert pipeline.written_bytes == 2 * CHUNK_BYTES
    assert stored(file) == [10, 11]


def test_who_has_encoded_a_chunk_writes_it_and_what_waits_behind_it(
    pipeline: CodecPipeline, dataset: Dataset, file: RecordingFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers, write = [], Dataset.write_chunk

    def watched(self: Dataset, index: int, *arguments: Any) -> None:
        writers.append((index, threading.current_thread().name))
        write(self, index, *arguments)

    monkeypatch.setattr(Dataset, "write_chunk", watched)
    first, last, encoders = Gate(), Gate(), []

    def held(chunk: Chunk) -> tuple[Any, int]:
        encoders.append(threading.current_thread().name)
        return first(chunk)

    pipeline.submit(dataset, 0, chunk_of(0), None, as_it_is=True)
    pipeline.wait_for(1)
    pipeline.submit(dataset, 1, chunk_of(1), held)
    await_codec_wait(pipeline)
    pipeline.submit(dataset, 2, chunk_of(2), as_it_is)
    pipeline.submit(dataset, 3, chunk_of(3), last)
    try:
        assert last.begun.wait(60)  # on the other thread, which had to leave the second chunk behind
        first.open()
        pipeline.wait_for(3)
    finally:
        first.open()
        last.open()
    pipeline.drain()
    assert writers[:3] == [(0, "shmstore-file"), (1, encoders[0]), (2, encoders[0])]
    assert stored(file) == [0, 1, 2, 3]


def await_codec_wait(pipeline: CodecPipeline) -> None:
    """Return once the file thread has looked at the first chunk, and left it to who encodes it."""
    deadline = time.monotonic() + 60
    while not pipeline.codec_wait_s(time.monotonic()):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_nothing_is_left_behind_however_the_threads_meet(file: RecordingFile, dataset: Dataset) -> None:
    """Whoever brings a chunk while another thread writes leaves it to that one: which must not miss it."""
    pipeline = CodecPipeline(4, 16 * CHUNK_BYTES, lambda: None)
    rng = np.random.default_rng(5)
    pauses = rng.integers(0, 4, 2000) * 5e-5

    def encoder(pause_s: float) -> Encode:
        def encode(chunk: Chunk) -> tuple[Any, int]:
            time.sleep(pause_s)
            return as_it_is(chunk)

        return encode

    commits = []
    for index, pause_s in enumerate(pauses.tolist()):
        pipeline.submit(
            dataset, index, chunk_of(index), encoder(pause_s) if index % 5 else None, as_it_is=not index % 5
        )
        if index % 50 == 0:
            commits.append(pipeline.commit(lambda: dataset.chunks_written))
            pipeline.finish(commits[-1])
        if index % 300 == 0:
            pipeline.drain()
    pipeline.drain()
    assert pipeline.written == len(pauses)
    assert all(commit.written == commit.position for commit in commits)
    pipeline.close()
    assert stored(file) == list(range(len(pauses)))


def test_time_that_the_file_waits_for_codecs_is_counted(pipeline: CodecPipeline, dataset: Dataset) -> None:
    def waited_s() -> float:
        return pipeline.codec_wait_s(time.monotonic())

    pipeline.submit(dataset, 0, chunk_of(0), None, as_it_is=True)
    pipeline.drain()
    assert waited_s() == 0
    gate = Gate()
    pipeline.submit(dataset, 1, chunk_of(1), gate)
    while waited_s() < 0.05:  # also while it waits
        time.sleep(0.005)
    gate.open()
    pipeline.drain()
    total = waited_s()
    assert total >= 0.05
    time.sleep(0.01)
    assert waited_s() == total


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


def test_the_memory_of_a_chunk_is_free_once_it_is_written(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the codec thread has not come to its end yet, and still holds on to its work."""
    ended, may_end, end = threading.Event(), threading.Event(), pipeline_module._Job.end

    def linger(job: pipeline_module._Job, error: BaseException | None = None) -> None:
        end(job, error)
        if job.index == 0:
            ended.set()
            may_end.wait(60)

    monkeypatch.setattr(pipeline_module._Job, "end", linger)
    pipeline = CodecPipeline(1, 1 << 20, lambda: None)
    memory = bytearray(CHUNK_BYTES)
    pipeline.submit(dataset, 0, np.frombuffer(memory, np.uint8), lambda chunk: (chunk.data, RAW))
    try:
        assert ended.wait(60)
        pipeline.submit(dataset, 1, chunk_of(1), None, as_it_is=True)
        pipeline.drain()  # by the file thread
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
    pipeline.drain()
    assert pipeline.written == 1
    assert 0 < dataset.bytes_written < CHUNK_BYTES // 4
    assert stored(file) == [7]


# -- commits ---------------------------------------------------------------------------------------------


def test_a_commit_comes_between_two_chunks_and_waits_for_no_codec(
    pipeline: CodecPipeline, dataset: Dataset
) -> None:
    found = []

    def action() -> int:
        found.append((pipeline.written, dataset.known_items))
        return 77

    first, second = Gate(), Gate()
    pipeline.submit(dataset, 0, chunk_of(0), first)
    pipeline.submit(dataset, 1, chunk_of(1), second)
    try:
        commit = pipeline.commit(action)
        pipeline.finish(commit)  # both chunks are under way all the time
        assert (commit.done, commit.written, commit.position) == (True, 0, 77)
        first.open()
        pipeline.wait_for(1)
        commit = pipeline.commit(action)
        pipeline.finish(commit)
        assert (commit.done, commit.written, commit.position) == (True, 1, 77)
        assert found == [(0, 0), (1, ITEMS)]
        assert pipeline.busy
    finally:
        first.open()
        second.open()
    pipeline.drain()


def test_a_commit_is_carried_out_by_who_is_writing(
    pipeline: CodecPipeline, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the chunk that is being written, and for nothing else."""
    writing, may_go_on, found = threading.Event(), threading.Event(), []
    write = Dataset.write_chunk

    def slow(self: Dataset, *arguments: Any) -> None:
        writing.set()
        assert may_go_on.wait(60)
        write(self, *arguments)

    monkeypatch.setattr(Dataset, "write_chunk", slow)

    def action() -> int:
        found.append((pipeline.written, threading.current_thread().name.rstrip("01")))
        return 0

    gate = Gate()
    pipeline.submit(dataset, 0, chunk_of(0), gate)
    await_codec_wait(pipeline)
    gate.open()
    assert writing.wait(60)
    commit = pipeline.commit(action)
    time.sleep(0.01)
    assert not commit.done
    may_go_on.set()
    pipeline.finish(commit)
    assert found == [(1, "shmstore-codec_")]


def test_a_commit_is_left_to_a_codec_thread_that_comes_by(
    pipeline: CodecPipeline, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "_PATIENCE_S", 60)
    gate, found = Gate(), []

    def action() -> int:
        found.append((pipeline.written, threading.current_thread().name.rstrip("01")))
        return 0

    pipeline.submit(dataset, 0, chunk_of(0), gate)
    try:
        commit = pipeline.commit(action)
        time.sleep(0.02)
        assert not commit.done
    finally:
        gate.open()
    pipeline.finish(commit)
    assert found == [(1, "shmstore-codec_")]
    pipeline.finish(pipeline.commit(action))
    assert found[1:] == [(1, "shmstore-file")]  # nobody else comes


def test_a_commit_waits_for_no_codec_however_much_comes_meanwhile(
    pipeline: CodecPipeline, dataset: Dataset
) -> None:
    """Each chunk that is not encoded rings for the file thread, whose patience must not begin anew."""
    gate = Gate()
    pipeline.submit(dataset, 0, chunk_of(0), gate)
    try:
        commit = pipeline.commit(lambda: 0)
        deadline = time.monotonic() + 20
        index = 1
        while not commit.done:
            assert time.monotonic() < deadline
            pipeline.submit(dataset, index, chunk_of(index), None, as_it_is=True)
            index += 1
            time.sleep(0.001)
        assert pipeline.written == 0
    finally:
        gate.open()
    pipeline.drain()


def test_what_is_not_encoded_waits_for_no_codec_behind_it(pipeline: CodecPipeline, dataset: Dataset) -> None:
    gate = Gate()
    pipeline.submit(dataset, 0, chunk_of(0), None, as_it_is=True)
    pipeline.submit(dataset, 1, chunk_of(1), gate)
    try:
        pipeline.wait_for(1)
        assert pipeline.busy
    finally:
        gate.open()
    pipeline.drain()


def test_a_commit_needs_no_chunks_and_may_follow_another(pipeline: CodecPipeline, dataset: Dataset) -> None:
    for number in range(50):
        commit = pipeline.commit(lambda number=number: number)  # type: ignore[misc]
        pipeline.finish(commit)
        pipeline.finish(commit)
        assert (commit.written, commit.position) == (number, number)
        pipeline.submit(dataset, number, chunk_of(number), as_it_is)
        pipeline.drain()


def test_a_commit_never_counts_a_chunk_that_is_not_written(pipeline: CodecPipeline, dataset: Dataset) -> None:
    """However the two threads meet: what a commit counts was in the file before its action began."""
    at_action: list[int] = []

    def action() -> int:
        at_action.append(dataset.chunks_written)
        return 0

    counted = []
    for number in range(200):
        pipeline.submit(dataset, number, chunk_of(number), as_it_is)
        if number % 3 == 0:
            commit = pipeline.commit(action)
            pipeline.finish(commit)
            counted.append(commit.written)
    assert counted == at_action
    assert counted == sorted(counted)


def test_who_asked_is_woken_when_a_commit_is_done_and_not_for_every_chunk(dataset: Dataset) -> None:
    woken = threading.Semaphore(0)
    pipeline = CodecPipeline(2, 1 << 20, woken.release)
    for index in range(5):
        pipeline.submit(dataset, index, chunk_of(index), as_it_is)
    pipeline.drain()
    assert not woken.acquire(blocking=False)
    commit = pipeline.commit(lambda: 0)
    assert woken.acquire(timeout=60)
    assert commit.done
    pipeline.close()


def test_who_asked_is_woken_once_as_much_is_written_as_wanted(dataset: Dataset) -> None:
    woken = threading.Semaphore(0)
    pipeline = CodecPipeline(1, 1 << 20, woken.release)
    gates = [Gate() for _ in range(4)]
    for index, gate in enumerate(gates):
        pipeline.submit(dataset, index, chunk_of(index), gate)
    pipeline.wake_when(2 * CHUNK_BYTES)
    gates[0].open()
    pipeline.wait_for(1)
    assert not woken.acquire(blocking=False)
    gates[1].open()
    assert woken.acquire(timeout=60)
    assert pipeline.written_bytes == 2 * CHUNK_BYTES
    gates[2].open()
    pipeline.wait_for(3)
    assert not woken.acquire(blocking=False)  # it is said once
    pipeline.wake_when(100 * CHUNK_BYTES)  # more than comes: then when there is nothing more to wait for
    gates[3].open()
    assert woken.acquire(timeout=60)
    assert not pipeline.busy
    pipeline.close()


def test_who_asks_too_late_is_woken_at_once(dataset: Dataset) -> None:
    woken = threading.Semaphore(0)
    pipeline = CodecPipeline(1, 1 << 20, woken.release)
    pipeline.wake_when(CHUNK_BYTES)  # nothing is under way
    assert woken.acquire(blocking=False)
    gate = Gate()
    pipeline.submit(dataset, 0, chunk_of(0), as_it_is)
    pipeline.submit(dataset, 1, chunk_of(1), gate)
    pipeline.wait_for(1)
    while woken.acquire(blocking=False):
        pass
    pipeline.wake_when(CHUNK_BYTES)
    assert woken.acquire(blocking=False)
    gate.open()
    pipeline.close()


def test_who_asked_for_a_chunk_is_not_woken_before_it_is_written(dataset: Dataset) -> None:
    woken = threading.Semaphore(0)
    pipeline = CodecPipeline(1, 1 << 20, woken.release)
    gates = [Gate() for _ in range(3)]
    for index, gate in enumerate(gates):
        pipeline.submit(dataset, index, chunk_of(index), gate)
    pipeline.wake_when(CHUNK_BYTES, 2)
    gates[0].open()
    pipeline.wait_for(1)
    assert not woken.acquire(blocking=False)  # the bytes are there, the chunk is not
    gates[1].open()
    assert woken.acquire(timeout=60)
    assert pipeline.written == 2
    gates[2].open()
    pipeline.close()


# -- what fails ------------------------------------------------------------------------------------------


def check_that_it_is_latched(pipeline: CodecPipeline, dataset: Dataset, kind: type[Exception]) -> None:
    """Whatever is asked of a pipeline that has failed raises what it failed with."""
    for ask in (
        pipeline.drain,
        pipeline.drain,
        pipeline.check,
        lambda: pipeline.submit(dataset, 9, chunk_of(9), as_it_is),
        lambda: pipeline.wait_for(pipeline.submitted),
        lambda: pipeline.finish(pipeline.commit(lambda: 0)),
    ):
        with pytest.raises(kind):
            ask()


def test_an_encoder_that_fails_is_heard_and_heard_again(dataset: Dataset) -> None:
    woken = threading.Semaphore(0)
    pipeline = CodecPipeline(2, 1 << 20, woken.release)
    pipeline.check()

    def broken(chunk: Chunk) -> tuple[Any, int]:
        raise ValueError("the codec failed")

    pipeline.submit(dataset, 0, chunk_of(0), broken)
    assert woken.acquire(timeout=60)
    with pytest.raises(ValueError, match="codec failed"):
        pipeline.drain()
    check_that_it_is_latched(pipeline, dataset, ValueError)
    assert (pipeline.written, dataset.known_items, pipeline.busy) == (0, 0, True)
    pipeline.close()


def test_what_comes_behind_a_chunk_that_failed_is_not_written(
    pipeline: CodecPipeline, dataset: Dataset, file: RecordingFile
) -> None:
    def broken(chunk: Chunk) -> tuple[Any, int]:
        raise ValueError("the codec failed")

    encoders: list[Encode] = [as_it_is, broken, as_it_is]

    def submit_all() -> None:
        for index, encode in enumerate(encoders):
            pipeline.submit(dataset, index, chunk_of(index), encode)  # raises too, once it is known
        pipeline.drain()

    with pytest.raises(ValueError, match="codec failed"):
        submit_all()
    assert (pipeline.written, dataset.chunks_written) == (1, 1)
    assert stored(file) == [0]


def test_a_payload_of_the_wrong_length_never_reaches_the_file(
    pipeline: CodecPipeline, dataset: Dataset
) -> None:
    pipeline.submit(dataset, 0, chunk_of(0), lambda chunk: (bytes(chunk[1:]), RAW))
    with pytest.raises(StorageError, match="unfiltered chunk has 4096 bytes, not 4095"):
        pipeline.drain()
    assert (pipeline.written, dataset.bytes_written) == (0, 0)


def test_a_write_that_failed_ends_it_though_the_disk_has_room_again(
    pipeline: CodecPipeline, dataset: Dataset, file: RecordingFile
) -> None:
    """HDF5 does not say what became of a write that failed: another writer goes on, from the last commit."""
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
    check_that_it_is_latched(pipeline, dataset, OSError)
    assert (pipeline.written, pipeline.busy, dataset.chunks_written) == (1, True, 1)
    assert stored(file)[0] == 5


def test_a_commit_that_fails_is_never_done_and_ends_it(dataset: Dataset) -> None:
    woken = threading.Semaphore(0)
    pipeline = CodecPipeline(1, 1 << 20, woken.release)

    def action() -> int:
        raise StorageError(28, "the disk is full")

    commit = pipeline.commit(action)
    assert woken.acquire(timeout=60)
    for _ in range(2):
        with pytest.raises(StorageError, match="disk is full"):
            pipeline.finish(commit)
    assert (commit.done, commit.written) == (False, -1)
    check_that_it_is_latched(pipeline, dataset, StorageError)
    pipeline.close()


def test_who_waits_for_room_in_the_window_hears_of_a_failure(dataset: Dataset) -> None:
    gate = Gate()

    def broken(chunk: Chunk) -> tuple[Any, int]:
        gate(chunk)
        raise ValueError("the codec failed")

    pipeline = CodecPipeline(1, CHUNK_BYTES, lambda: None)
    pipeline.submit(dataset, 0, chunk_of(0), broken)
    assert gate.begun.wait(60)
    threading.Timer(0.05, gate.open).start()
    with pytest.raises(ValueError, match="codec failed"):
        pipeline.submit(dataset, 1, chunk_of(1), as_it_is)
    assert pipeline.submitted == 1
    pipeline.close()


def test_closing_forgets_what_is_not_written_and_frees_its_memory(dataset: Dataset) -> None:
    pipeline = CodecPipeline(1, 1 << 20, lambda: None)
    gate = Gate()
    memory = [bytearray(CHUNK_BYTES) for _ in range(3)]
    for index, each in enumerate(memory):
        pipeline.submit(dataset, index, np.frombuffer(each, np.uint8), gate)
    assert gate.begun.wait(60)
    threading.Timer(0.05, gate.open).start()
    pipeline.close()  # the first is on its codec thread, and comes to its end
    for each in memory:
        each.append(0)  # BufferError while anything looks at it
    assert pipeline.written <= 1
    assert dataset.chunks_written == pipeline.written
    with pytest.raises(CancelledError):
        pipeline.check()
