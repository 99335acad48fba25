"""Disks that are full, failing, read-only or gone: producers go on, the writer tries again, nothing is lost.

A short recording with a bit of everything is made in the test's own process, whose writers have a disk that
is broken by the shim.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from faults.disk import WRITES, Call, Shim, Trace

import shmstore
from shmstore import HDF5Storage

pytestmark = pytest.mark.crash

ROWS, MANY_ROWS, TURNS = 3000, 100_000, 3
STRINGS = ("vlen", "packed")
TIMEOUT_S = 60
EIO_PLACES, SHORT_PLACES = 25, 10
MIB = 2**20
#: What needs space, all of it; a full disk lets everything else through.
GROWING = ("write", "pwrite", "writev", "pwritev", "fallocate", "mkdir")


def columns(start: int, stop: int) -> pa.RecordBatch:
    numbers = np.arange(start, stop)
    return pa.record_batch({"number": numbers, "noise": np.sqrt(numbers), "text": numbers.astype(str)})


def storage_in(folder: Path, **options: Any) -> HDF5Storage:
    chosen: dict[str, Any] = {"auto_flush_interval_secs": 0.2, "standby": False, "disk_patience_s": None}
    return HDF5Storage(output_dir=folder, filename="daq.h5", **chosen | options)


def record(storage: HDF5Storage) -> None:
    """Record everything that changes a file, as shortly as that goes."""
    with storage:
        made = [storage.producer(strings, strings=strings, compression="none") for strings in STRINGS]
        for turn in range(TURNS):
            for producer in made:
                producer.put(columns(turn * ROWS, (turn + 1) * ROWS))
            storage.write_batch(f"late {turn}", pa.record_batch({"x": [turn]}))
            storage.set_metadata(f"turn {turn}", turn)
            storage.flush()


def check(path: Path) -> None:
    """Check that all of it is there, and nothing beside."""
    with h5py.File(path) as file:
        assert file.attrs["state"] == "complete"
        assert [file["metadata"].attrs[f"turn {turn}"] for turn in range(TURNS)] == list(range(TURNS))
        assert (file["packed/number"][:] == np.arange(TURNS * ROWS)).all()
    for strings in STRINGS:
        check_rows(path, strings, TURNS * ROWS)
    for turn in range(TURNS):
        assert shmstore.read(path, f"late {turn}")["x"].to_pylist() == [turn]
    check_whole(path)


def check_rows(path: Path, instrument: str, rows: int) -> None:
    expected = pa.Table.from_batches([columns(0, rows)])
    found = shmstore.read(path, instrument)
    assert found.num_rows == rows
    for name in expected.column_names:
        assert found[name].to_pylist() == expected[name].to_pylist()


def check_whole(path: Path) -> None:
    verdict = shmstore.verify(path)
    assert verdict.ok, verdict.problems
    assert [left.name for left in path.parent.iterdir()] == [path.name]


@pytest.fixture
def under(tmp_path: Path) -> Path:
    folder = tmp_path / "under"
    folder.mkdir()
    return folder


Break = Callable[..., None]


@pytest.fixture
def break_disk(shim: Shim, under: Path, monkeypatch: pytest.MonkeyPatch) -> Break:
    """Return what gives the writers that are started from now on a disk that breaks."""

    def set_up(**given: Any) -> None:
        for name, value in shim.env(under, **given).items():
            monkeypatch.setenv(name, value)

    return set_up


@pytest.fixture(scope="module")
def calls(shim: Shim, tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """Return what the writer calls when nothing breaks."""
    folder = tmp_path_factory.mktemp("calls")
    (folder / "under").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in shim.env(folder / "under", trace=folder / "trace").items():
            patch.setenv(name, value)
        record(storage := storage_in(folder / "under"))
    check(storage.path)
    return [call for call in Trace.read(folder / "trace") if call.sequence]


# -- at the n-th call ------------------------------------------------------------------------------------


def break_at(break_disk: Break, under: Path, number: int, action: str) -> str:
    """Record with one call that goes wrong; return what was raised, or what the writer was replaced for."""
    break_disk(plan=f"any:{number}:{action}", once=under.parent / "once")
    storage = storage_in(under)
    refused = None
    try:
        record(storage)
    except shmstore.StorageError as error:
        refused = error
    if refused is not None:  # before there was a recording: it is told, and nothing is left
        assert storage.state == "new", refused
        assert "\n" not in str(refused)
        assert list(under.iterdir()) == []
        return str(refused)
    check(storage.path)
    return " ".join(reason for _, reason in storage.restarts)


def spread(numbers: list[int], count: int) -> list[int]:
    """Return so many of the numbers, the first and the last among them."""
    return [numbers[at] for at in np.linspace(0, len(numbers) - 1, count).astype(int)]


@pytest.mark.parametrize("place", range(EIO_PLACES))
def test_an_error_at_any_call_costs_nothing(
    calls: list[Call], break_disk: Break, under: Path, place: int
) -> None:
    number = spread([call.sequence for call in calls], EIO_PLACES)[place]
    told = break_at(break_disk, under, number, "EIO")
    # HDF5 itself may fall over a close that fails.
    assert not told or os.strerror(errno.EIO) in told or "signal" in told


@pytest.mark.parametrize("place", range(SHORT_PLACES))
def test_a_short_write_at_any_call_costs_nothing(
    calls: list[Call], break_disk: Break, under: Path, place: int
) -> None:
    written = [call.sequence for call in calls if call.op in WRITES and call.length > 7]
    assert break_at(break_disk, under, spread(written, SHORT_PLACES)[place], "short:7") == ""


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("action", ["EIO", "short:7"])
def test_every_call(
    calls: list[Call],
    shim: Shim,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    action: str,
) -> None:
    failed = []
    for call in calls:
        if action != "EIO" and call.op not in WRITES:
            continue
        folder = tmp_path / str(call.sequence) / "under"
        folder.mkdir(parents=True)

        def set_up(folder: Path = folder, **given: Any) -> None:
            for name, value in shim.env(folder, **given).items():
                monkeypatch.setenv(name, value)

        try:
            told = break_at(set_up, folder, call.sequence, action)
        except Exception as error:  # noqa: BLE001 (all are told at the end)
            told = f"FAILED: {error!r}"
            failed.append(f"{call.sequence} ({call.op} of {call.path}): {error!r}")
        with capsys.disabled():
            print(f"[{call.sequence}/{len(calls)}] {call.op} of {call.path}: {told}", flush=True)
    assert not failed, "\n".join(failed)


# -- for a while -----------------------------------------------------------------------------------------


class Trouble:
    """A disk that refuses for a while.

    Parameters
    ----------
    break_disk, under
        As the fixtures.
    error
        What it says.
    only
        Which files are concerned, by a part of their path.
    """

    def __init__(
        self, break_disk: Break, under: Path, error: str = "ENOSPC", only: str | None = None
    ) -> None:
        self._file = under.parent / "trouble"
        plan = ",".join(f"{op}:1:{error}*inf" for op in GROWING)
        break_disk(plan=plan, only=only, holds_while=self._file)

    def begin(self) -> None:
        self._file.touch()

    def end(self) -> None:
        self._file.unlink(missing_ok=True)


@contextlib.contextmanager
def ending(trouble: Trouble, storage: HDF5Storage) -> Iterator[None]:
    """Whatever becomes of the test: the trouble ends, and the recording too, with nothing left of it."""
    try:
        yield
    finally:
        trouble.end()
        storage.close()


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.01)


class Meanwhile(threading.Thread):
    """Something that is done beside, and its error."""

    def __init__(self, action: Callable[[], object]) -> None:
        super().__init__()
        self._action = action
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._action()
        except Exception as error:  # noqa: BLE001 (raised by who waits)
            self._error = error

    def end(self) -> None:
        self.join(TIMEOUT_S)
        assert not self.is_alive(), "it does not return"
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize(
    ("error", "only", "doing"),
    [
        ("ENOSPC", None, "put"),
        ("ENOSPC", "journal", "put"),
        ("ENOSPC", "tails-", "flush"),
        ("ENOSPC", None, "flush"),
        ("ENOSPC", None, "structure"),
        ("ENOSPC", "journal", "structure"),
        ("ENOSPC", None, "close"),
        ("EIO", None, "put"),
        ("EROFS", None, "flush"),
        ("EDQUOT", None, "close"),
    ],
)
def test_recording_goes_on_by_itself_when_the_trouble_is_over(
    break_disk: Break, under: Path, error: str, only: str | None, doing: str
) -> None:
    trouble = Trouble(break_disk, under, error, only)
    storage = storage_in(under, compression="none").start()
    with ending(trouble, storage):
        made = {strings: storage.producer(strings, strings=strings) for strings in STRINGS}
        for producer in made.values():
            producer.put(columns(0, ROWS))
        storage.flush()
        trouble.begin()
        for producer in made.values():  # there is room in the rings, and they notice nothing
            for turn in range(1, TURNS):
                producer.put(columns(turn * ROWS, (turn + 1) * ROWS))
        beside = Meanwhile(
            {
                "put": lambda: None,
                "flush": storage.flush,
                "structure": lambda: storage.write_batch("late", pa.record_batch({"x": [1]})),
                "close": storage.close,
            }[doing]
        )
        # More than are needed to blame the batch that they are at, which is none's fault here.
        wait_until(lambda: len(storage.restarts) >= (5 if only == "journal" else 2))
        assert storage.state == "recording"
        told = os.strerror(getattr(errno, error))
        assert any(told in reason for _, reason in storage.restarts)
        trouble.end()
        beside.end()
        if doing != "close":
            storage.flush()
            assert storage.stats().state == "recording"
    assert storage.state == "complete"
    for strings in STRINGS:
        check_rows(storage.path, strings, TURNS * ROWS)
    if doing == "structure":
        assert shmstore.read(storage.path, "late")["x"].to_pylist() == [1]
    check_whole(storage.path)


#: A flush that waits for the one before; the end of the file, and what is removed then.
SLOW = [
    ("fdatasync:1", 0.05),
    ("fdatasync:4", 0.05),
    ("fsync:5", 0),
    *((f"unlink:{n}", 0) for n in (1, 2, 3)),
]


@pytest.mark.parametrize(("call", "interval_s"), SLOW)
def test_a_disk_that_is_slow_to_sync_is_waited_for(
    break_disk: Break, under: Path, call: str, interval_s: float
) -> None:
    once = under.parent / "once"
    break_disk(plan=f"{call}:wait:2500", once=once)
    storage = storage_in(under, writer_hang_s=0.5, auto_flush_interval_secs=interval_s)
    with storage:
        producer = storage.producer("a")
        producer.put(columns(0, ROWS))
        storage.flush()
        producer.put(columns(ROWS, 2 * ROWS))
        if interval_s:
            wait_until(once.exists)
        storage.flush()
    assert once.exists()
    assert storage.restarts == ()
    check_rows(storage.path, "a", 2 * ROWS)
    check_whole(storage.path)


def test_patience_has_an_end_and_what_was_sealed_is_recovered(
    break_disk: Break, under: Path, shared_folder: Path
) -> None:
    trouble = Trouble(break_disk, under)
    storage = storage_in(under, disk_patience_s=0.5, shm_dir=shared_folder).start()
    try:
        producer = storage.producer("a")
        producer.put(columns(0, ROWS))
        storage.flush()
        trouble.begin()
        producer.put(columns(ROWS, 2 * ROWS))
        wait_until(lambda: storage.state == "broken")
        for refused in (
            storage.flush,
            lambda: producer.put(columns(2 * ROWS, 3 * ROWS)),
            storage.close,
        ):
            with pytest.raises(shmstore.StorageError) as caught:
                refused()
            assert caught.value.errno == errno.ENOSPC
            assert f"shmstore recover {storage.path}" in str(caught.value)
            assert "\n" not in str(caught.value)
    finally:
        trouble.end()
        with contextlib.suppress(shmstore.ShmStoreError):
            storage.close()
    assert list(shared_folder.iterdir())
    report = shmstore.recover(storage.path, shm_dir=shared_folder)
    assert report.ok, report
    check_rows(storage.path, "a", 2 * ROWS)
    check_whole(storage.path)
    assert not list(shared_folder.iterdir())


# -- no patience at all ---------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_write_that_fails_is_one_line_and_shows_no_row_that_was_not_put(
    tmp_path: Path, shared_folder: Path, compression: str
) -> None:
    storage = shmstore.HDF5Storage(
        output_dir=tmp_path,
        compression=compression,
        strings="packed",
        shm_dir=shared_folder,
        disk_patience_s=0,
    ).start()
    # The kernel refuses the writer's file beyond this, in the middle of whatever it writes then. What it has
    # in shared memory is smaller.
    resource.prlimit(storage.writer_pid, resource.RLIMIT_FSIZE, (20 * MIB + 4321, 20 * MIB + 4321))
    noise = np.random.default_rng(1)
    errors = []
    try:
        for start in range(0, 400 * MANY_ROWS, MANY_ROWS):
            numbers = np.arange(start, start + MANY_ROWS)
            columns = {
                "number": numbers,
                "noise": noise.integers(0, 2**62, MANY_ROWS),
                "text": numbers.astype(str),
            }
            storage.write_batch("a", pa.record_batch(columns))
    except shmstore.StorageError as error:
        errors.append(error)
    with pytest.raises(shmstore.StorageError) as caught:
        storage.close()
    errors.append(caught.value)
    for error in errors:
        assert error.errno == errno.EFBIG
        assert "\n" not in str(error)
        assert "ulimit" in str(error)
        assert f"shmstore recover {storage.path}" in str(error)
    assert storage.state == "broken"
    with h5py.File(storage.path, "r", swmr=True) as file:
        numbers = file["a/number"][:]
        assert len(numbers) > 0
        assert (numbers == np.arange(len(numbers))).all()
        assert (file["a/noise"][:] != 0).all()
    table = shmstore.read(storage.path, "a")
    assert (
        table["number"].to_pylist() == table["text"].cast(pa.int64()).to_pylist() == list(range(len(table)))
    )


# -- little space ----------------------------------------------------------------------------------------


def fill(producer: Any) -> None:
    for _ in range(100):
        producer.put(columns(2 * ROWS, 3 * ROWS))


def test_no_recording_starts_on_a_disk_with_too_little_space(under: Path) -> None:
    storage = storage_in(under, disk_reserve_bytes=2**40)
    with pytest.raises(shmstore.StorageError, match="disk_reserve_bytes are 1099511627776: ") as caught:
        storage.start()
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)
    assert list(under.iterdir()) == []


def test_what_comes_stays_in_the_rings_as_long_as_there_is_too_little_space(
    break_disk: Break, under: Path
) -> None:
    free = under.parent / "free"
    break_disk(free=free)
    storage = storage_in(under, disk_reserve_bytes=MIB, ring_bytes="1MiB").start()
    try:
        producer = storage.producer("a", on_full="raise")
        producer.put(columns(0, ROWS))
        storage.flush()
        free.write_text(str(MIB // 2))
        wait_until(lambda: storage.stats().state == "waiting for space")
        before = storage.stats()
        producer.put(columns(ROWS, 2 * ROWS))
        flushing = Meanwhile(storage.flush)
        time.sleep(0.3)
        with shmstore.connect(storage.name) as another:
            stats = another.stats()
        assert stats.committed == before.committed == ROWS
        assert flushing.is_alive()
        with pytest.raises(shmstore.RingFullError):
            fill(producer)
        free.write_text(str(2 * MIB))
        flushing.end()
        assert storage.stats().state == "recording"
    finally:
        free.unlink(missing_ok=True)
        storage.close()
    assert not storage.restarts
    rows = shmstore.read(storage.path, "a")["number"].to_numpy()
    assert (rows[: 2 * ROWS] == np.arange(2 * ROWS)).all()
    assert len(rows) == storage.final_stats.committed > 2 * ROWS
    check_whole(storage.path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 24 MiB; only root can."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("doing", ["put", "flush", "close"])
def test_a_disk_that_is_really_full_for_a_while(small_disk: Path, doing: str) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(19 * MIB))
    options: dict[str, Any] = {"compression": "none", "disk_reserve_bytes": 0, "disk_warn_bytes": 0}
    storage = storage_in(small_disk, **options).start()
    turns = 90  # 24 bytes a row: 6 MiB, and as much again if the file must be made anew
    try:
        producer = storage.producer("a", strings="packed")
        for turn in range(turns):
            producer.put(columns(turn * ROWS, (turn + 1) * ROWS))
        beside = Meanwhile({"put": lambda: None, "flush": storage.flush, "close": storage.close}[doing])
        wait_until(lambda: len(storage.restarts) >= 3)
        assert os.strerror(errno.ENOSPC) in storage.restarts[-1].reason
        filler.unlink()
        beside.end()
    finally:
        filler.unlink(missing_ok=True)
        storage.close()
    check_rows(storage.path, "a", turns * ROWS)
    check_whole(storage.path)


# -- a folder that is gone -------------------------------------------------------------------------------


def test_a_folder_that_is_gone_for_a_while_costs_nothing(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    storage = storage_in(folder).start()
    try:
        producer = storage.producer("a")
        producer.put(columns(0, ROWS))
        storage.flush()
        folder.rename(elsewhere)
        os.kill(storage.writer_pid, 9)  # it could go on with the files that it has open
        producer.put(columns(ROWS, 2 * ROWS))
        wait_until(lambda: len(storage.restarts) >= 2)
        assert os.strerror(errno.ENOENT) in storage.restarts[-1].reason
        elsewhere.rename(folder)
        storage.flush()
    finally:
        if elsewhere.exists():
            elsewhere.rename(folder)
        storage.close()
    check_rows(storage.path, "a", 2 * ROWS)
    check_whole(storage.path)


def test_a_folder_that_does_not_come_back_is_told(tmp_path: Path, shared_folder: Path) -> None:
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    storage = storage_in(folder, disk_patience_s=0.5, shm_dir=shared_folder).start()
    try:
        storage.write_batch("a", columns(0, ROWS))
        storage.flush()
        folder.rename(elsewhere)
        os.kill(storage.writer_pid, 9)
        storage.write_batch("a", columns(ROWS, 2 * ROWS))
        with pytest.raises(shmstore.StorageError) as caught:
            storage.flush()
        assert caught.value.errno == errno.ENOENT
    finally:
        elsewhere.rename(folder)
        with contextlib.suppress(shmstore.ShmStoreError):
            storage.close()
    assert shmstore.recover(storage.path, shm_dir=shared_folder).ok
    check_rows(storage.path, "a", 2 * ROWS)
    check_whole(storage.path)
