"""The Pareto front: of several things with several costs, those that nothing else beats in all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def front(things: Sequence[T], costs: Callable[[T], tuple[float, ...]]) -> list[T]:
    """Return what no other thing dominates, the cheapest by its first cost first; of equals the first.

    Parameters
    ----------
    things
        What is compared.
    costs
        Gives the costs of one, as many for each; less is better.

    Examples
    --------
    >>> front([(3, 1), (1, 3), (2, 2), (3, 2), (2, 2)], lambda cost: cost)
    [(1, 3), (2, 2), (3, 1)]
    """
    kept: list[T] = []
    for thing in sorted(things, key=costs):
        # What is not dearer by the first cost stands before it, so only the others are left to compare.
        own = costs(thing)
        if not any(all(a <= b for a, b in zip(costs(other), own, strict=True)) for other in kept):
            kept.append(thing)
    return kept
