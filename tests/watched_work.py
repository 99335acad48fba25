"""Work for a watched process: what ends well, and each way not to. Run by tests/test_watchedprocess.py."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from typing import Any

from shmstore.errors import StorageError
from shmstore.watchedprocess import Say


def _burn(seconds: float) -> None:
    """Use so much processor time."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def answers(say: Say, *arguments: str) -> dict[str, Any]:
    print("what others print")
    os.write(1, b"is no word of ours\n")
    say(pid=os.getpid())
    return {"arguments": arguments, "folder": os.fspath(os.curdir)}


def loops(say: Say) -> None:
    say(pid=os.getpid())
    say(at="a loop")
    while True:
        pass


def repeats(say: Say) -> None:
    while True:
        say(at="the same")
        say.progress(3, 7)


def waits(say: Say, seconds: str) -> str:
    say(at="a slow disk")
    time.sleep(float(seconds))
    return "waited"


def goes_on(say: Say, pieces: str) -> int:
    """Use more time than there is between two words, but in pieces."""
    for piece in range(int(pieces)):
        say(at=f"piece {piece}")
        _burn(0.25)
    return int(pieces)


def is_alive(say: Say, pieces: str) -> int:
    """Say nothing, but give a sign of life."""
    for _ in range(int(pieces)):
        say.alive()
        _burn(0.25)
    return int(pieces)


def talks(say: Say) -> None:
    say(pid=os.getpid())
    for number in range(10_000):
        say(number=number)
        time.sleep(0.05)


def faults(say: Say) -> None:
    say(at="no address")
    ctypes.string_at(0)


def is_killed(say: Say) -> None:
    say(at="a cell")
    os.kill(os.getpid(), signal.SIGKILL)


def exits(say: Say) -> None:
    sys.stderr.write("first\nlast words\n")
    sys.stderr.flush()
    os._exit(3)


def is_refused(say: Say) -> None:
    raise StorageError(28, "cannot write: No space left on device: free some space", "a.h5")


def raises(say: Say) -> None:
    raise KeyError("a bug")


def main(say: Say, what: str, *arguments: str) -> Any:
    """Do it."""
    return globals()[what](say, *arguments)
