"""The search, on a machine that is a formula: what it finds, what it says, what it leaves out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from made_up_figures import made_up

from shmstore.settings import MIB
from shmstore.tuning.goal import Goal
from shmstore.tuning.point import Point
from shmstore.tuning.search import SETTINGS, Bounds, Search
from shmstore.tuning.trial import Figures

RATES = {"none": (900.0, 1.0), "gzip": (300.0, 0.50), "zstd": (600.0, 0.52)}
POINTS = [Point("none"), Point("zstd", 1), Point("gzip", 6)]


class Machine:
    """Records by formula; fast with large rings, and with large chunks once, never again."""

    def __init__(self, recordings: int = 1000) -> None:
        self.points: list[Point] = []
        self.left = recordings

    def record(self, point: Point) -> Figures:
        mb_s, size = RATES[point.compression]
        if point.ring_bytes >= 256 * MIB:
            mb_s *= 1.5
        if point.chunk_bytes == 4 * MIB and point not in self.points:
            mb_s *= 1.2  # by chance
        self.points.append(point)
        return made_up(mb_s, size, point)

    def time_left(self) -> bool:
        self.left -= 1
        return self.left > 0


def searched(machine: Machine, goal: Goal, **options: object) -> tuple[Search, Figures]:
    search = Search(goal, machine.record, machine.time_left, **options)  # type: ignore[arg-type]
    return search, search.run(POINTS)


def test_finds_the_best_codec_then_the_best_of_each_setting() -> None:
    search, best = searched(Machine(), Goal("size", 400))
    assert best.point == replace(Point("zstd", 1), ring_bytes=256 * MIB)
    assert best.mb_s == 900
    assert set(search.choices) == {"codec", *SETTINGS}
    assert "smallest file of those that record 480 MB/s" in search.choices["codec"].reason
    assert "gzip-6+shuffle: 300 MB/s, 50.0 %" in search.choices["codec"].reason
    assert "hdf5plugin is needed" in search.choices["codec"].reason
    assert "better, and so when repeated" in search.choices["ring_bytes"].reason
    assert "nothing else was better" in search.choices["commit_bytes"].reason


def test_luck_is_recorded_twice_and_counts_once() -> None:
    machine = Machine()
    search, best = searched(machine, Goal("rate"))
    assert best.point.chunk_bytes is None
    lucky = [figures for figures in search.figures if figures.point.chunk_bytes == 4 * MIB]
    assert [figures.mb_s for figures in lucky] == [900]  # the worse of both
    assert machine.points.count(lucky[0].point) == 2


def test_the_best_codec_is_looked_at_twice() -> None:
    """What was fast for a moment only is not what everything else is held against."""
    rates = iter([400.0, 900.0, 300.0, 350.0])  # none, zstd, gzip, and zstd again

    def record(point: Point) -> Figures:
        return made_up(next(rates, 100.0), 0.5, point)

    search = Search(Goal("rate"), record, lambda: True)
    assert search.run(POINTS).point == POINTS[0]
    assert [figures.mb_s for figures in search.figures[:3]] == [400, 350, 300]


def test_no_compression_needs_no_threads() -> None:
    search, best = searched(Machine(), Goal("rate"))
    assert best.point.compression == "none"
    assert not search.choices["codec_threads"].measured
    assert "nothing for them to do" in search.choices["codec_threads"].reason


def test_one_recording_is_made_without_any_time() -> None:
    machine = Machine(recordings=0)
    search, best = searched(machine, Goal("rate"))
    assert machine.points == [POINTS[0]]
    assert best.point == POINTS[0]
    assert "2 more were not recorded" in search.choices["codec"].reason
    assert "the time was used up" in search.choices["ring_bytes"].reason


def test_what_is_fixed_stays() -> None:
    machine = Machine()
    search, best = searched(machine, Goal("rate"), fixed=["ring_bytes"])
    assert best.point.ring_bytes == 64 * MIB
    assert {point.ring_bytes for point in machine.points} == {64 * MIB}
    assert search.choices["ring_bytes"].reason == "As it was given."


def test_bounds_keep_out_what_does_not_fit() -> None:
    machine = Machine()
    searched(machine, Goal("rate"), bounds=Bounds(MIB, 32 * MIB, 128 * MIB))
    assert {point.ring_bytes for point in machine.points} == {64 * MIB}
    assert {point.chunk_bytes for point in machine.points} == {None, MIB // 16, MIB // 4, MIB}


@pytest.mark.parametrize("kind", ["rate", "latency"])
def test_the_interval_matters_to_latency_only(kind: str) -> None:
    machine = Machine()
    search, _ = searched(machine, Goal(kind))
    assert search.choices["commit_interval_ms"].measured == (kind == "latency")
    assert (next(iter(search.choices.values())).setting, len(search.choices)) == ("codec", 1 + len(SETTINGS))


def test_a_rate_that_nothing_holds_is_said() -> None:
    search, best = searched(Machine(), Goal("size", 5000))
    assert best.point.compression == "none"
    assert "nothing reached 6,000 MB/s" in search.choices["codec"].reason


def test_stopping_comes_through() -> None:
    class Asked(Exception):
        pass

    def record(point: Point) -> Figures:
        raise Asked

    always: Callable[[], bool] = lambda: True  # noqa: E731
    with pytest.raises(Asked):
        Search(Goal("rate"), record, always).run(POINTS)
