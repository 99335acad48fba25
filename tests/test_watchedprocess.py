"""A process that hangs, dies or fails is told to its caller as what it did, and nothing of it stays."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from children import Child

from shmstore.errors import BrokenError, InvalidValueError, StorageError
from shmstore.watchedprocess import Ending, ask

TESTS = Path(__file__).parent
WORK = "watched_work"


def test_what_it_says_and_answers_is_heard() -> None:
    heard: list[dict[str, Any]] = []
    odd = "a\nb\u00fc\udc80"  # as names of files may be
    ending = ask(WORK, "answers", odd, "-x", hear=heard.append)
    assert ending.answer == {"arguments": [odd, "-x"], "folder": "."}
    assert [list(words) for words in heard] == [["pid"]]
    assert (ending.code, ending.hung, ending.fault) == (0, False, False)
    assert not psutil.pid_exists(heard[0]["pid"])


@pytest.mark.parametrize(("what", "at"), [("loops", "a loop"), ("repeats", "the same")])
def test_one_that_comes_to_no_end_is_ended_and_says_at_what(what: str, at: str) -> None:
    ending = ask(WORK, what, hang_s=1.0)
    assert (ending.answer, ending.at, ending.hung, ending.fault) == (None, at, True, False)
    assert str(ending) == "came to no end"


@pytest.mark.parametrize("what", ["goes_on", "is_alive"])
def test_one_that_has_much_to_do_is_left_alone(what: str) -> None:
    ending = ask(WORK, what, "8", hang_s=1.0)
    assert (ending.answer, ending.hung) == (8, False)


def test_one_that_waits_is_left_alone() -> None:
    assert ask(WORK, "waits", "2.5", hang_s=1.0) == Ending("waited", "a slow disk", 0, "")


def test_the_watch_does_not_mind_what_the_caller_does_with_its_signal() -> None:
    before = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
    try:
        assert ask(WORK, "loops", hang_s=1.0).hung
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
        signal.signal(signal.SIGPROF, before)


def test_one_that_dies_says_at_what() -> None:
    ending = ask(WORK, "faults")
    assert (ending.answer, ending.at, ending.code, ending.fault) == (None, "no address", -11, True)
    assert str(ending) == "died (signal 11)"
    ending = ask(WORK, "is_killed")
    assert (ending.at, ending.code, ending.fault, ending.hung) == ("a cell", -9, False, False)


def test_one_that_just_leaves_is_quoted() -> None:
    ending = ask(WORK, "exits")
    assert (ending.answer, ending.code, ending.last_line) == (None, 3, "last words")
    assert str(ending) == "ended with exit code 3"


def test_what_it_raises_is_raised_here() -> None:
    with pytest.raises(StorageError) as caught:
        ask(WORK, "is_refused")
    assert (caught.value.errno, caught.value.filename) == (28, "a.h5")
    assert caught.value.strerror == "cannot write: No space left on device: free some space"
    with pytest.raises(BrokenError, match="KeyError: 'a bug'"):
        ask(WORK, "raises")
    with pytest.raises(BrokenError, match="No module named 'none_such'"):
        ask("none_such")


@pytest.mark.parametrize("hang_s", [0.0, -1.0, float("inf"), float("nan")])
def test_a_limit_that_is_none_is_refused(hang_s: float) -> None:
    with pytest.raises(InvalidValueError, match="hang_s"):
        ask(WORK, "answers", hang_s=hang_s)


def test_what_the_listener_raises_ends_it() -> None:
    heard: list[int] = []

    def hear(words: dict[str, Any]) -> None:
        heard.append(words["pid"])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(WORK, "loops", hear=hear)
    assert not psutil.pid_exists(heard[0])


@pytest.mark.parametrize(
    ("number", "what"),
    [(signal.SIGINT, "loops"), (signal.SIGKILL, "loops"), (signal.SIGKILL, "talks")],
)
def test_it_does_not_outlive_its_caller(number: signal.Signals, what: str) -> None:
    """Ctrl-C has the caller end it; that a caller was killed it learns when it speaks, or by its watch."""
    with Child(
        "import json",
        "from shmstore.watchedprocess import ask",
        "def hear(words):",
        "    if 'pid' in words: say(json.dumps(words))",
        f"ask({WORK!r}, {what!r}, hear=hear, hang_s=2.0)",
        also=TESTS,
    ) as caller:
        process = psutil.Process(json.loads(caller.hear())["pid"])
        assert caller.end(number) != 0
        psutil.wait_procs([process], timeout=30)
        assert not process.is_running()
