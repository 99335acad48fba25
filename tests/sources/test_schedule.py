"""The schedule against the clock and a real pipe."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from shmstore.sources.schedule import Schedule


@pytest.fixture
def line() -> Iterator[tuple[Connection, Connection]]:
    near, far = multiprocessing.Pipe()
    with near, far:
        yield near, far


def test_never_early_and_never_drifts(line: tuple[Connection, Connection]) -> None:
    schedule = Schedule(100.0, line[0])
    ticks = iter(schedule)
    start_s = time.monotonic()
    assert [next(ticks) for _ in range(10)] == list(range(10))
    # Ticks are due at multiples of the period after the first; none may come before that.
    assert time.monotonic() - start_s >= 9 * 0.01
    time.sleep(0.05)  # a slow reading: the next five are due already, and all of them come
    assert [next(ticks) for _ in range(5)] == [10, 11, 12, 13, 14]
    assert schedule.ticks == 15
    assert schedule.late >= 3
    assert schedule.missed == 0


def test_leaves_out_what_is_long_over(
    line: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shmstore.sources.schedule._LONGEST_CATCH_UP_S", 0.05)
    schedule = Schedule(100.0, line[0])
    ticks = iter(schedule)
    next(ticks)
    time.sleep(0.2)
    number = next(ticks)
    assert number >= 19
    assert schedule.missed == number - 1
    assert schedule.ticks == 2


def test_ends_at_a_word(line: tuple[Connection, Connection]) -> None:
    threading.Timer(0.1, line[1].send_bytes, [b"stop"]).start()
    assert sum(1 for _ in Schedule(50.0, line[0])) >= 3


def test_ends_with_the_other_side(line: tuple[Connection, Connection]) -> None:
    line[1].close()
    assert list(Schedule(50.0, line[0])) == []
