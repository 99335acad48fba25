"""Writers that die or hang while the owner lives: replaced, and nobody but the log notices; or given up."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes.programs import TIMEOUT_S, line_from, started
from processes.rows import SCHEMA, batch

import shmstore
from shmstore import HDF5Storage
from shmstore.supervisor import Supervisor

ROWS = 50


def recording_of(folder: Path, **options: Any) -> HDF5Storage:
    return HDF5Storage(output_dir=folder, filename="daq.h5", ring_bytes="1MiB", **options)


def supervisor_of(storage: HDF5Storage) -> Supervisor:
    assert storage._supervisor
    return storage._supervisor


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.01)


def await_exit(pid: int) -> None:
    """Wait until a process has gone, whoever takes its exit code."""
    try:
        exit_fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([exit_fd], [], [], TIMEOUT_S)[0], "it does not end"
    finally:
        os.close(exit_fd)


def kill_writer(storage: HDF5Storage) -> int:
    writer = storage.writer_pid
    os.kill(writer, signal.SIGKILL)
    return writer


# -- replaced ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda storage: storage.flush(),
        lambda storage: storage.stats(),
        lambda storage: storage.set_metadata("key", 1),
        lambda storage: storage.producer("y", SCHEMA).put(batch(0, 0, 1)),
        lambda storage: storage.write_batch("y", batch(0, 0, 1)),
        lambda storage: storage.close(),
    ],
    ids=["flush", "stats", "set_metadata", "producer", "write_batch", "close"],
)
def test_what_asks_for_a_killed_writer_is_answered_by_the_next(
    output_dir: Path, use: Callable[[HDF5Storage], Any]
) -> None:
    storage = recording_of(output_dir).start()
    kill_writer(storage)
    use(storage)
    storage.close()
    assert storage.state == "complete"
    assert storage.final_stats.writer_restarts == 1
    assert storage.final_stats.last_restart_reason == "was killed by signal 9"


def test_a_replacement_is_told_logged_and_counted(
    output_dir: Path, caplog: pytest.LogCaptureFixture, record_property: Callable[[str, object], None]
) -> None:
    with caplog.at_level(logging.WARNING, "shmstore.supervisor"), recording_of(output_dir) as storage:
        killed_at = time.time()
        writer = kill_writer(storage)
        stats = storage.stats()
        ((restarted_at, reason),) = storage.restarts
        record_property("noticed_s", restarted_at - killed_at)
        record_property("replaced_s", time.time() - killed_at)
        assert (stats.writer_restarts, stats.last_restart_reason) == (1, reason)
        assert reason == "was killed by signal 9"
        assert killed_at <= restarted_at
        assert storage.writer_pid != writer
        assert storage.state == "recording"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"(process {writer}) was killed by signal 9: it is replaced" in record.getMessage()
    assert len(storage.restarts) == 1


def test_puts_do_not_notice(output_dir: Path) -> None:
    with recording_of(output_dir) as storage:
        producer = storage.producer("x", SCHEMA)
        assert producer.put(batch(0, 0, ROWS)) == 0
        writer = kill_writer(storage)
        await_exit(writer)
        for sequence in range(1, 5):
            assert producer.put(batch(0, sequence, ROWS)) == sequence
        storage.flush()
        assert storage.restarts
        assert shmstore.read(storage.path, "x").num_rows == 5 * ROWS


def test_a_writer_that_dies_while_closing_is_replaced_by_one_that_closes(output_dir: Path) -> None:
    storage = recording_of(output_dir).start()
    storage.producer("x", SCHEMA).put(batch(0, 0, ROWS))
    os.kill(storage.writer_pid, signal.SIGSTOP)
    closing = threading.Thread(target=storage.close)
    closing.start()
    assert storage._session
    wait_until(lambda session=storage._session: session.ending)
    kill_writer(storage)
    closing.join(TIMEOUT_S)
    assert storage.state == "complete"
    assert storage.final_stats.writer_restarts == 1
    assert shmstore.read(storage.path, "x").num_rows == ROWS


def test_a_writer_that_hangs_is_killed_and_replaced(output_dir: Path) -> None:
    options = {"writer_hang_s": 0.3, "auto_flush_interval_secs": 0.1}
    with recording_of(output_dir, **options) as storage:
        for number in (1, 2):
            hung = storage.writer_pid
            os.kill(hung, signal.SIGSTOP)
            await_exit(hung)
            storage.flush()
            assert [reason for _, reason in storage.restarts] == ["did not move for 0.3 s"] * number
            assert storage.writer_pid != hung
        steady = storage.writer_pid
        time.sleep(2.0)  # several times the limit, and idle all along
        assert storage.writer_pid == steady


def test_a_ledger_goes_on_growing_after_writers_were_replaced(output_dir: Path, shared_folder: Path) -> None:
    with recording_of(output_dir, shm_dir=shared_folder, standby=False) as storage:
        producer = storage.producer("x", SCHEMA)
        sizes, counts = [], (5, 450, 650)
        for turn in range(3):
            for number in range(counts[turn]):  # each takes 600 bytes of a checkpoint
                storage.set_instrument_metadata(f"{'µ' * 90} {turn} {number}", "number", number)
            producer.put(batch(0, turn, ROWS))
            storage.flush()
            (ledger,) = shared_folder.glob("*/ledger-*")
            sizes.append(ledger.stat().st_size)
            kill_writer(storage)
            storage.stats()
        assert sizes == sorted(set(sizes))
    assert [reason for _, reason in storage.restarts] == ["was killed by signal 9"] * 3
    assert shmstore.read(storage.path, "x").num_rows == 3 * ROWS
    with shmstore.open(storage.path) as recording:
        assert len(recording) == 1 + sum(counts)


# -- the standby ---------------------------------------------------------------------------------------------


def test_the_standby_takes_the_writers_place(output_dir: Path) -> None:
    with recording_of(output_dir) as storage:
        supervisor = supervisor_of(storage)
        wait_until(lambda: supervisor.standby_pid)
        standby = supervisor.standby_pid
        kill_writer(storage)
        storage.flush()
        assert storage.writer_pid == standby
        wait_until(lambda: supervisor.standby_pid)
        another = supervisor.standby_pid
        assert another
        assert another != standby
    assert not psutil.pid_exists(another)


def test_a_standby_that_has_died_is_not_missed(output_dir: Path) -> None:
    with recording_of(output_dir) as storage:
        supervisor = supervisor_of(storage)
        wait_until(lambda: supervisor.standby_pid)
        standby = supervisor.standby_pid
        assert standby
        os.kill(standby, signal.SIGKILL)
        await_exit(standby)
        kill_writer(storage)
        storage.flush()
        assert storage.writer_pid != standby
        assert len(storage.restarts) == 1


OWNER = """
import os, sys, time
import shmstore

storage = shmstore.HDF5Storage(output_dir=".", filename="daq.h5").start()
while storage._supervisor.standby_pid is None:
    time.sleep(0.01)
if not (child := os.fork()):  # holds the other end of the standby's pipe, and the control socket, open
    time.sleep(600)
print(storage.writer_pid, storage._supervisor.standby_pid, child, flush=True)
sys.stdin.readline()
"""


def test_the_standby_ends_with_the_owner(output_dir: Path) -> None:
    with started(OWNER, output_dir) as owner:
        writer, standby, child = map(int, line_from(owner).split())
        try:
            assert psutil.pid_exists(standby)
            owner.kill()
            await_exit(standby)
            await_exit(writer)
        finally:
            os.kill(child, signal.SIGKILL)
    with shmstore.open(output_dir / "daq.h5") as recording:
        assert recording.state == "complete"


def test_no_standby_if_none_is_wanted(output_dir: Path) -> None:
    with recording_of(output_dir, standby=False) as storage:
        time.sleep(2.5)  # one would have been started after two seconds
        assert supervisor_of(storage).standby_pid is None


# -- given up ------------------------------------------------------------------------------------------------


def check_given_up(storage: HDF5Storage, folder: Path, said: str) -> None:
    """Check that a recording is broken, says what to do, and leaves its rings where they are."""
    name = storage.name
    assert storage.state == "broken"
    with pytest.raises(shmstore.BrokenError) as caught:
        storage.close()
    storage.close()
    assert said in str(caught.value)
    assert f"run `shmstore recover {storage.path}`" in str(caught.value)
    assert "\n" not in str(caught.value)
    session = folder / f"shmstore-{name}"
    assert [path for path in session.iterdir() if path.name.startswith("ring-")]


def test_a_writer_that_dies_again_and_again_is_given_up(output_dir: Path, shared_folder: Path) -> None:
    options = {"writer_deaths": 2, "shm_dir": shared_folder, "auto_flush_interval_secs": 0}  # no idle commits
    storage = recording_of(output_dir, **options).start()
    producer = storage.producer("x", SCHEMA)
    for number in range(3):
        wait_until(lambda number=number: len(storage.restarts) == number)
        storage.stats()  # answered: the replacement is there
        kill_writer(storage)
    wait_until(lambda: storage.state == "broken")
    with pytest.raises(shmstore.BrokenError, match="after 3 deaths in a row"):
        producer.put(batch(0, 0, ROWS))
    check_given_up(
        storage, shared_folder, "was killed by signal 9, and is not replaced after 3 deaths in a row"
    )
    report = shmstore.recover(storage.path, shm_dir=shared_folder)
    assert report.ok


def test_a_writer_that_may_not_die_at_all_is_given_up_at_once(output_dir: Path, shared_folder: Path) -> None:
    storage = recording_of(output_dir, writer_deaths=0, shm_dir=shared_folder).start()
    storage.producer("x", SCHEMA).put(batch(0, 0, ROWS))
    kill_writer(storage)
    with pytest.raises(shmstore.BrokenError, match="was killed by signal 9"):
        storage.flush()
    assert storage.restarts == ()
    check_given_up(storage, shared_folder, "was killed by signal 9, and is not replaced")
