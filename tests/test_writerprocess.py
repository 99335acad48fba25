"""A writer's process before it is the writer, and how its end is told."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from children import ROOT

from shmstore.errors import BrokenError
from shmstore.writerprocess import WriterProcess


@pytest.fixture
def standby(shared_folder: Path) -> Iterator[WriterProcess]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        listener.bind(str(shared_folder / "control"))
        process = WriterProcess(listener, [str(ROOT), *sys.path])
        yield process
        process.end(0.0)


def await_end(process: WriterProcess) -> None:
    assert select.select([process.exit_fd], [], [], 60)[0]


def test_a_standby_that_is_never_needed_ends_quietly(
    standby: WriterProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "running" in repr(standby)
    assert standby._process.stdin
    standby._process.stdin.close()
    await_end(standby)
    assert standby.how_it_ended == "ended with exit code 0"
    assert standby.ended
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_while_it_starts_is_for_its_owner(standby: WriterProcess) -> None:
    os.kill(standby.pid, signal.SIGINT)
    assert standby._process.stdin
    standby._process.stdin.close()
    await_end(standby)
    assert standby.how_it_ended == "ended with exit code 0"


def test_ctrl_c_for_the_owner_just_then_leaves_no_process_behind(
    shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, before = subprocess.Popen, psutil.Process().children()

    def interrupted(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = start(*arguments, **options)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        listener.bind(str(shared_folder / "control"))
        with pytest.raises(KeyboardInterrupt):
            WriterProcess(listener, [str(ROOT), *sys.path])
    assert psutil.Process().children() == before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_one_that_is_killed_says_so_and_takes_no_document(standby: WriterProcess) -> None:
    standby.kill()
    await_end(standby)
    assert standby.how_it_ended == "was killed by signal 9"
    standby.begin({"text": "x" * 1_000_000}, 60.0)
    assert standby.answer() == {}
    assert not standby.answered


def test_one_that_does_not_read_its_document_is_not_waited_for(standby: WriterProcess) -> None:
    psutil.Process(standby.pid).suspend()
    with pytest.raises(BrokenError, match="did not come up within 0 s"):
        standby.begin({"text": "x" * 1_000_000}, 0.1)


def test_one_that_does_not_answer_is_not_waited_for(standby: WriterProcess) -> None:
    with pytest.raises(BrokenError, match="did not come up within 0 s"):
        standby.await_answer(0.1)
    standby.kill()
    with pytest.raises(BrokenError, match="was killed by signal 9 before it came up"):
        standby.await_answer(60.0)


def test_ending_kills_what_does_not_end(standby: WriterProcess) -> None:
    pid = standby.pid
    for _ in range(2):
        standby.end(0.0)
    assert standby.how_it_ended == "was killed by signal 9"
    assert not psutil.pid_exists(pid)


def test_an_interpreter_that_does_not_know_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with socket.socket() as listener, pytest.raises(BrokenError, match=r"set sys\.executable"):
        WriterProcess(listener, [])
