"""The supervisor on a session made by hand: what it starts, whom it tells, and what it leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmstore import writerprocess
from shmstore.config import StorageConfig
from shmstore.control import ControlConnection
from shmstore.errors import BrokenError, ClosedError, StorageError
from shmstore.session import Session, State
from shmstore.supervisor import Supervisor
from shmstore.writerprocess import WriterProcess

TIMEOUT_S = 60


@pytest.fixture
def session(shared_folder: Path) -> Iterator[Session]:
    session = Session.create(shared_folder, "run")
    yield session
    session.close()


def config_of(folder: Path, **options: object) -> StorageConfig:
    return StorageConfig(output_dir=folder, filename="daq.h5", standby=False).replace(**options)


def await_state(session: Session, state: State) -> None:
    wait_until(lambda: session.state == state)


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.01)


def test_a_writer_is_started_and_ends_when_asked(session: Session, output_dir: Path) -> None:
    supervisor = Supervisor(session, config_of(output_dir))
    assert supervisor.start() == output_dir / "daq.h5" == session.recording_path
    assert session.state == State.RECORDING
    assert session.writer_lives
    for _ in range(2):
        supervisor.stop(ask=True)
    assert session.state == State.CLOSED
    assert not session.writer_lives
    assert supervisor.restarts == ()


def test_a_file_that_exists_is_refused_and_nothing_stays(session: Session, output_dir: Path) -> None:
    (output_dir / "daq.h5").touch()
    with pytest.raises(StorageError, match="never overwritten"):
        Supervisor(session, config_of(output_dir)).start()
    assert not session.writer_lives


def test_an_interpreter_that_does_not_know_itself_starts_none(
    session: Session, output_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(BrokenError, match=r"set sys\.executable"):
        Supervisor(session, config_of(output_dir)).start()


def test_no_place_for_the_socket_is_said(session: Session, output_dir: Path) -> None:
    session.control_path.touch()
    with pytest.raises(StorageError, match="open the control socket"):
        Supervisor(session, config_of(output_dir))


def test_a_forgotten_recording_is_finished_and_cleared_up(session: Session, output_dir: Path) -> None:
    supervisor = Supervisor(session, config_of(output_dir))
    supervisor.start()
    supervisor.finish()
    assert not session.folder.exists()
    assert (output_dir / "daq.h5").exists()


def test_a_replacement_that_cannot_be_started_counts_as_a_death(
    session: Session, output_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervisor(session, config_of(output_dir, writer_deaths=1))
    supervisor.start()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    os.kill(session.writer_pid, signal.SIGKILL)
    await_state(session, State.BROKEN)
    kind, message, _ = session.failure()
    assert kind == "BrokenError"
    assert "could not be started" in message
    assert "after 2 deaths in a row" in message
    assert f"`shmstore recover {output_dir / 'daq.h5'}`" in message
    assert [reason for _, reason in supervisor.restarts] == ["was killed by signal 9"]
    supervisor.stop(ask=False)
    assert session.folder.exists()


def test_what_the_disk_said_is_latched_when_patience_ends(session: Session, output_dir: Path) -> None:
    supervisor = Supervisor(session, config_of(output_dir, disk_patience_s=0, writer_deaths=100))
    supervisor.start()
    session.leave_reason("StorageError", "failed: cannot write the recording: no space left", 28)
    os.kill(session.writer_pid, signal.SIGKILL)
    await_state(session, State.BROKEN)
    kind, message, errno = session.failure()
    assert (kind, errno) == ("StorageError", 28)
    assert message.startswith(
        "the writer failed: cannot write the recording: no space left, and the disk was"
    )
    supervisor.stop(ask=False)


def test_who_waits_for_a_writer_that_is_given_up_hears_it(session: Session, output_dir: Path) -> None:
    supervisor = Supervisor(session, config_of(output_dir, writer_deaths=0))
    supervisor.start()
    connection = ControlConnection(session.control_path, check=session.check_attended)
    connection.request("stats")
    os.kill(session.writer_pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(BrokenError, match="was killed by signal 9, and is not replaced;"):
            connection.request("stats", timeout_s=None)
    connection.close()
    supervisor.stop(ask=False)
    with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as late:
        late.connect(str(session.control_path))


def test_who_asks_after_the_end_hears_that_it_has_ended(session: Session, output_dir: Path) -> None:
    supervisor = Supervisor(session, config_of(output_dir))
    supervisor.start()
    supervisor.stop(ask=True)
    with pytest.raises(ClosedError, match="has ended"):
        ControlConnection(session.control_path, check=session.check_attended).request("stats")


# -- a writer that starts, or waits for the disk ------------------------------------------------------------


def test_a_first_writer_that_is_stopped_is_not_waited_for(
    session: Session, output_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = WriterProcess.begin

    def stopped(self: WriterProcess, *arguments: Any) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        begin(self, *arguments)

    monkeypatch.setattr(WriterProcess, "begin", stopped)
    with pytest.raises(BrokenError, match=r"did not move for 0\.5 s while it started"):
        Supervisor(session, config_of(output_dir, writer_hang_s=0.5)).start()


def start_slowly(monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    """Have the imports of the next writer take long."""
    monkeypatch.setattr(writerprocess, "_BOOT", f"import time; {statement}; {writerprocess._BOOT}")


def test_slow_imports_are_no_hang(
    session: Session, output_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_slowly(monkeypatch, "all(time.monotonic() for _ in iter(lambda: time.process_time() < 1.5, False))")
    supervisor = Supervisor(session, config_of(output_dir, writer_hang_s=0.1))
    supervisor.start()
    supervisor.stop(ask=True)
    assert supervisor.restarts == ()


def test_a_replacement_that_hangs_while_it_starts_is_replaced_too(
    session: Session, output_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervisor(session, config_of(output_dir, writer_hang_s=0.5))
    supervisor.start()
    with monkeypatch.context() as patch:
        start_slowly(patch, "time.sleep(600)")
        os.kill(session.writer_pid, signal.SIGKILL)
        wait_until(lambda: len(supervisor.restarts) == 2)
    with contextlib.closing(ControlConnection(session.control_path)) as connection:
        connection.request("stats")  # the third one is there
    supervisor.stop(ask=True)
    assert session.state == State.CLOSED
    assert [reason for _, reason in supervisor.restarts][:2] == [
        "was killed by signal 9",
        "did not move for 0.5 s while it started",
    ]


def test_a_writer_that_is_stopped_while_it_waits_for_the_disk_has_not_just_to_wait(
    session: Session, output_dir: Path
) -> None:
    supervisor = Supervisor(session, config_of(output_dir, writer_hang_s=0.5))
    supervisor.start()
    with session.at_disk():
        os.kill(session.writer_pid, signal.SIGSTOP)
        wait_until(lambda: supervisor.restarts)
    with contextlib.closing(ControlConnection(session.control_path)) as connection:
        connection.request("stats")
    supervisor.stop(ask=True)
    assert [reason for _, reason in supervisor.restarts] == ["did not move for 0.5 s"]
