"""The search: codecs first, then one setting after the other from the best so far (coordinate descent).

Which values there are, which order, when a change counts, and why: in a sentence for each. How a point is
recorded is not known here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shmstore.settings import MIB
from shmstore.tuning.codecs import CHUNK_SIZES, chunk_sizes
from shmstore.tuning.goal import Goal, amount
from shmstore.tuning.point import Point
from shmstore.tuning.trial import Figures

#: What is varied after the codec, in the order of what it changes.
SETTINGS = ("codec_threads", "chunk_bytes", "ring_bytes", "commit_bytes", "commit_interval_ms")
#: Once more: the best codec, and a value or two that looked better.
_SECOND_LOOKS = 3
_RINGS = (16 * MIB, 64 * MIB, 256 * MIB)
_COMMITS = (4 * MIB, 16 * MIB, 64 * MIB)
_INTERVALS_MS = (5.0, 20.0, 50.0)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What data and machine allow.

    Attributes
    ----------
    largest_chunk : int
        Largest chunk that the sample can stand for, in bytes.
    smallest_ring, largest_ring : int
        What holds some batches, and what shared memory has room for, in bytes.
    """

    largest_chunk: int = CHUNK_SIZES[-1]
    smallest_ring: int = 0
    largest_ring: int = _RINGS[-1]

    def values(self, setting: str, point: Point, goal: Goal) -> list[Any]:
        """Return what else to try for a setting; empty: it makes no difference."""
        found: Sequence[Any] = ()
        if setting == "codec_threads":
            cores = len(os.sched_getaffinity(0))
            found = () if point.codec.name == "none" else sorted({1, cores // 2, cores + 1} - {0, cores})
        elif setting == "chunk_bytes":
            found = chunk_sizes(self.largest_chunk)
        elif setting == "ring_bytes":
            found = [size for size in _RINGS if self.smallest_ring <= size <= self.largest_ring]
        elif setting == "commit_bytes":
            found = _COMMITS
        elif goal.kind == "latency":
            found = _INTERVALS_MS
        return [value for value in found if value != getattr(point, setting)]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for one setting, and why.

    Attributes
    ----------
    setting : str
        Its name; ``"codec"`` for the three that make it.
    reason : str
        Why, in a sentence.
    measured : bool
        Whether anything else was recorded.
    """

    setting: str
    reason: str
    measured: bool = True


def planned(points: Sequence[Point], bounds: Bounds, goal: Goal, fixed: Sequence[str]) -> int:
    """Return about how many recordings a `Search` makes: codecs, other values, and second looks."""
    others = [bounds.values(setting, points[-1], goal) for setting in SETTINGS if setting not in fixed]
    return len(points) + sum(map(len, others)) + _SECOND_LOOKS


@dataclass(slots=True)
class Search:
    """A search under way.

    Attributes
    ----------
    goal : Goal
        What is better.
    record : callable
        Records at a point; returns the figures.
    time_left : callable
        Whether there is time for another recording.
    bounds : Bounds
        What may be tried.
    fixed : sequence of str
        Settings that stay as they are.
    figures : list of Figures
        Of all recordings so far.
    choices : dict of str to Choice
        What was chosen so far.
    """

    goal: Goal
    record: Callable[[Point], Figures]
    time_left: Callable[[], bool]
    bounds: Bounds = field(default_factory=Bounds)
    fixed: Sequence[str] = ()
    figures: list[Figures] = field(default_factory=list)
    choices: dict[str, Choice] = field(default_factory=dict)

    def run(self, points: Sequence[Point]) -> Figures:
        """Record each point, then vary the best; returns the figures of what is chosen.

        Parameters
        ----------
        points
            Codecs, each with its chunk size; the first is recorded whatever time there is.
        """
        best = self._choose_codec(points)
        # What time leaves out should be what matters least.
        first = ("commit_interval_ms", "commit_bytes") if self.goal.kind == "latency" else ()
        for setting in (*first, *(setting for setting in SETTINGS if setting not in first)):
            best = self._choose(setting, best)
        return best

    def _measure(self, point: Point) -> Figures:
        figures = self.record(point)
        self.figures.append(figures)
        return figures

    def _choose_codec(self, points: Sequence[Point]) -> Figures:
        found: list[Figures] = []
        for point in points:
            if not found or self.time_left():
                found.append(self._measure(point))
        best = self.goal.best(found)
        if len(found) > 1 and self.time_left():
            # What follows is held against it, and should not have a lucky moment to beat.
            place = next(number for number, each in enumerate(found) if each is best)
            found[place] = self._worse(best, self.record(best.point))
            self.figures[self.figures.index(best)] = found[place]
            best = self.goal.best(found)
        self.choices["codec"] = Choice("codec", self._why_codec(best, found, len(points)), len(found) > 1)
        return best

    def _choose(self, setting: str, best: Figures) -> Figures:
        if setting in self.fixed:
            self.choices[setting] = Choice(setting, "As it was given.", measured=False)
            return best
        values = self.bounds.values(setting, best.point, self.goal)
        if not values:
            self.choices[setting] = Choice(setting, _why_untried(setting, best.point), measured=False)
            return best
        before, tried = best, []
        for value in values:
            if not self.time_left():
                break
            challenger = self._measure(replace(before.point, **{setting: value}))
            if self.goal.better(challenger, best):
                challenger = self._confirmed(challenger)
            tried.append(challenger)
            if self.goal.better(challenger, best):
                best = challenger
        self.choices[setting] = Choice(setting, self._why(setting, best, before, tried), measured=bool(tried))
        return best

    def _confirmed(self, challenger: Figures) -> Figures:
        """Record a challenger once more, if there is time; of the two figures the worse one counts."""
        if not self.time_left():
            return challenger
        self.figures[-1] = worse = self._worse(challenger, self.record(challenger.point))
        return worse

    def _worse(self, one: Figures, other: Figures) -> Figures:
        return one if self.goal.better(other, one) else other

    # -- sentences -------------------------------------------------------------------------------------------

    def _why_codec(self, best: Figures, found: Sequence[Figures], wanted: int) -> str:
        shown, goal = self.goal.shown, self.goal
        if goal.needed_mb_s is not None and not goal.holds(best):
            what = (
                f"nothing reached {amount(goal.needed_mb_s)} MB/s, the rate asked and 20 % to spare; this "
                "was the fastest"
            )
        elif goal.kind == "size" and goal.needed_mb_s is not None:
            what = (
                f"the smallest file of those that record {amount(goal.needed_mb_s)} MB/s, the rate asked and "
                "20 % to spare"
            )
        else:
            what = {
                "rate": "the fastest of those recorded; of two within 5 % the smaller file",
                "size": "the smallest file of those recorded",
                "latency": "the shortest time from seal to commit; of two within 10 % the smaller file",
            }[goal.kind]
        others = [each for each in found if each is not best]
        nearest = sorted(
            others, key=lambda each: abs(each.mb_s / best.mb_s - 1) + abs(each.size / best.size - 1)
        )
        beside = "; ".join(f"{each.point.codec}: {shown(each)}" for each in nearest[:3])
        left = (
            f" {wanted - len(found)} more were not recorded: the time was used up."
            if wanted > len(found)
            else ""
        )
        reader = (
            "" if best.point.codec.name in ("none", "gzip") else " To read the file, hdf5plugin is needed."
        )
        beside = f" Beside it {beside}." if beside else ""
        return f"{best.point.codec}: {shown(best)}, {what}.{beside}{left}{reader}"

    def _why(self, setting: str, best: Figures, before: Figures, tried: Sequence[Figures]) -> str:
        if not tried:
            return "Not measured: the time was used up before its turn."
        point, shown = best.point, self.goal.shown
        beside = "; ".join(
            f"{each.point.shown(setting)}: {shown(each)}"
            for each in (before, *tried)
            if getattr(each.point, setting) != getattr(point, setting)
        )
        verdict = "nothing else was better" if best is before else "better, and so when repeated"
        return f"{point.shown(setting)}: {shown(best)}, {verdict}. Beside it {beside}."


def _why_untried(setting: str, point: Point) -> str:
    if setting == "codec_threads":
        return "Without compression there is nothing for them to do."
    if setting == "commit_interval_ms":
        return "It matters to latency: try --goal latency."
    return f"{point.shown(setting)}: data or machine leave no other value to try."
