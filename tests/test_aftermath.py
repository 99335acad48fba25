"""What dead recordings left in a folder is recovered beside a new one, which does not wait for it."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from wrecks import BATCH, ROWS, Wreck, wreck

import shmstore
from shmstore import HDF5Storage
from shmstore.aftermath import LOG_NAME, await_recovery, recover_left_behind
from shmstore.leftovers import recoverable
from shmstore.ring import Ring


@pytest.fixture
def left(output_dir: Path, shared_folder: Path) -> Wreck:
    """Return a recording that was killed with a batch in its file and two in a ring."""
    return wreck(output_dir, shared_folder, "put", "flush", "stop", "put", "put")


@pytest.fixture
def settings(output_dir: Path, shared_folder: Path) -> dict[str, Any]:
    """Return how the next recording in the same folder is made."""
    return {"output_dir": output_dir, "shm_dir": shared_folder, "ring_bytes": "256KiB"}


def record(storage: HDF5Storage) -> None:
    storage.write_batch("x", BATCH)
    storage.close()
    assert shmstore.read(storage.path, "x").num_rows == ROWS


def assert_recovered(left: Wreck) -> None:
    assert shmstore.read(left.path, "x") == pa.Table.from_batches([BATCH] * 3)
    assert not left.path.with_name(left.path.name + ".recovery").exists()
    assert not left.folder.exists()


def test_the_next_start_in_the_folder_recovers_it(
    left: Wreck, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    storage = HDF5Storage(**settings).start()
    (warning,) = [record for record in caplog.records if record.name == "shmstore.storage"]
    log = left.path.with_name(LOG_NAME)
    assert warning.levelno == logging.WARNING
    assert left.path.name in warning.getMessage()
    assert storage.path.name not in warning.getMessage()
    assert str(log) in warning.getMessage()
    record(storage)
    assert_recovered(left)
    told = log.read_text()
    assert "at niceness 10\n" in told
    assert f"{left.path} is complete, recovered from shared memory" in told
    assert f"{3 * ROWS} rows, {2 * ROWS} of them out of rings" in told


def test_not_if_told_so(left: Wreck, settings: dict[str, Any]) -> None:
    record(HDF5Storage(**settings, recover_at_start=False).start())
    assert left.folder.exists()
    assert not left.path.with_name(LOG_NAME).exists()
    assert shmstore.recover(left.path, shm_dir=settings["shm_dir"]).ok
    assert_recovered(left)


def test_two_that_start_at_once_recover_it_once(left: Wreck, settings: dict[str, Any]) -> None:
    storages = [HDF5Storage(**settings).start() for _ in range(2)]
    for storage in storages:
        record(storage)
    assert_recovered(left)
    told = left.path.with_name(LOG_NAME).read_text()
    assert told.count("recovered from shared memory") == 1


def test_what_is_recorded_now_is_left_alone(
    output_dir: Path, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("memory")
    with HDF5Storage(**settings) as storage:
        storage.write_batch("x", BATCH)
        storage.flush()
        assert recover_left_behind(output_dir, settings["shm_dir"]) is None
        assert recover_left_behind(output_dir, elsewhere) is None  # where its session cannot be seen
        record(HDF5Storage(**settings).start())
        storage.write_batch("x", BATCH)
    assert shmstore.read(storage.path, "x").num_rows == 2 * ROWS
    assert not (output_dir / LOG_NAME).exists()


def test_a_living_producer_keeps_its_recording(left: Wreck, settings: dict[str, Any]) -> None:
    ring = Ring.attach(next(left.folder.glob("ring-*")))
    assert ring.claim(os.getpid())
    process = recover_left_behind(left.path.parent, settings["shm_dir"])
    assert process is not None
    await_recovery(process, 60)
    ring.close()
    assert process.returncode == 0
    assert f"left alone: {left.path}" in left.path.with_name(LOG_NAME).read_text()
    assert left.folder.exists()
    assert shmstore.recover(left.path, shm_dir=settings["shm_dir"]).ok


def test_what_cannot_be_recovered_is_said(
    output_dir: Path, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    folder = output_dir / "daq.h5.recovery"
    folder.mkdir()
    (folder / "journal").write_text("no journal")
    record(HDF5Storage(**settings).start())
    assert f"not recovered: {output_dir / 'daq.h5'}: " in (output_dir / LOG_NAME).read_text()
    assert (folder / "journal").read_text() == "no journal"
    assert not (output_dir / "daq.h5").exists()
    caplog.clear()
    assert recover_left_behind(output_dir / "none", settings["shm_dir"]) is None
    assert "is not recovered" in caplog.text


def test_the_wait_for_it_has_an_end(caplog: pytest.LogCaptureFixture) -> None:
    await_recovery(None, 60)
    assert not caplog.records
    process = subprocess.Popen(["sleep", "60"])
    await_recovery(process, 0.01)
    assert f"process {process.pid} goes on" in caplog.text
    process.kill()
    process.wait()


def test_what_lies_beside_a_recording_tells_its_name(output_dir: Path, shared_folder: Path) -> None:
    for name in (
        "a.h5.recovery",
        "b.h5.recovery.old",
        "b.h5.recovering.recovery",
        "c.h5.quarantine",
        ".recovery",
    ):
        (output_dir / name).mkdir()
    assert recoverable(output_dir, shared_folder) == [output_dir / "a.h5", output_dir / "b.h5"]
    with (output_dir / "a.h5").open("wb"):
        assert recoverable(output_dir, shared_folder) == [output_dir / "b.h5"]
