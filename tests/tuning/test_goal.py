"""Which figures are better, and whether a rate was held."""

from __future__ import annotations

import pytest
from made_up_figures import made_up

from shmstore.tuning.goal import HEADROOM, Goal, lacking_mb_s


def test_rate_takes_the_fastest_and_of_those_alike_the_smallest() -> None:
    fast, alike, smallest = made_up(1000, 0.60), made_up(980, 0.55), made_up(500, 0.30)
    assert Goal("rate").best([smallest, fast, alike]) is alike
    assert Goal("rate").best([smallest, fast]) is fast


def test_size_takes_the_smallest_that_holds_the_rate() -> None:
    fast, middle, smallest = made_up(1000, 0.60), made_up(500, 0.40), made_up(100, 0.30)
    assert Goal("size").best([fast, middle, smallest]) is smallest
    assert Goal("size", 200).best([fast, middle, smallest]) is middle
    assert Goal("size", 500 / HEADROOM).best([fast, middle, smallest]) is middle
    assert Goal("size", 501 / HEADROOM).best([fast, middle, smallest]) is fast


def test_what_holds_nothing_is_judged_by_its_rate() -> None:
    fast, small = made_up(1000, 0.60), made_up(100, 0.30)
    for kind in ("size", "rate", "latency"):
        assert Goal(kind, 5000).best([small, fast]) is fast


def test_latency_takes_the_shortest_that_keeps_up() -> None:
    quick_but_late = made_up(200, p99_ms=5.0, late_s=3.0)
    quick, alike, slow = (
        made_up(200, 0.5, p99_ms=20.0),
        made_up(200, 0.4, p99_ms=21.0),
        made_up(200, p99_ms=60.0),
    )
    goal = Goal("latency", 200)
    assert goal.best([quick_but_late, slow, quick]) is quick
    assert goal.best([quick, alike, slow]) is alike


def test_a_challenger_must_be_clearly_better() -> None:
    goal = Goal("rate")
    assert goal.better(made_up(106), made_up(100))
    assert not goal.better(made_up(104), made_up(100))
    assert not goal.better(made_up(104, 0.4999), made_up(100, 0.5))


@pytest.mark.parametrize(
    ("figures", "lacking"),
    [
        (made_up(100, p99_ms=1.0), 0.0),
        (made_up(100, p99_ms=1.0, late_s=0.15), 0.0),  # less than 2 % of 10 s
        (made_up(100, p99_ms=1.0, late_s=5.0), 50.0),
        (made_up(100, p99_ms=1.0, growth_mb_s=7.0), 7.0),
        (made_up(100, p99_ms=1.0, growth_mb_s=-7.0), 0.0),
        (made_up(100, p99_ms=1.0, late_s=50.0, growth_mb_s=70.0), 100.0),  # no more than all of it
    ],
)
def test_what_is_lacking(figures: object, lacking: float) -> None:
    assert lacking_mb_s(figures, 100) == pytest.approx(lacking)  # type: ignore[arg-type]


def test_drops_never_hold() -> None:
    assert lacking_mb_s(made_up(100, p99_ms=1.0, dropped=1), 100) > 0


def test_without_a_rate_everything_holds() -> None:
    assert Goal("rate").holds(made_up(1))
    assert Goal("rate").needed_mb_s is None


def test_costs_are_what_the_front_is_taken_by() -> None:
    assert Goal("rate").costs(made_up(100, 0.5)) == (0.01, 0.5)
    assert Goal("latency").costs(made_up(100, 0.5, p99_ms=12.0)) == (12.0, 0.5)
