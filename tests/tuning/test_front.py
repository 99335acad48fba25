"""The Pareto front."""

from __future__ import annotations

import itertools
import random

import pytest

from shmstore.tuning.front import front


def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("costs", [1, 2, 3])
def test_keeps_exactly_what_nothing_dominates(costs: int) -> None:
    chance = random.Random(costs)
    things = [tuple(chance.randrange(8) for _ in range(costs)) for _ in range(60)]
    kept = front(things, lambda thing: thing)
    assert sorted(set(things) - set(kept)) == sorted(
        {thing for thing in things if any(dominates(other, thing) for other in things)}
    )
    assert kept == sorted(kept)
    assert not any(dominates(one, other) for one, other in itertools.permutations(kept, 2))


def test_of_equals_the_first_stays() -> None:
    first, second = [1.0, 2.0], [1.0, 2.0]
    (kept,) = front([first, second], lambda thing: (thing[0], thing[1]))
    assert kept is first


def test_nothing_has_no_front() -> None:
    assert front([], lambda thing: (thing,)) == []
