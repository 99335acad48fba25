"""What a benchmark under pytest found: lines of a table, bounds, and the JSON of pytest-benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from shmstore.bench.harness import Run, Series, foreign_cpu_s, in_turn


@dataclass(frozen=True, slots=True)
class Result:
    """A line of the report: a figure, the baseline that it is held against, and the bound.

    Attributes
    ----------
    case : str
        What was measured.
    figure, baseline_figure : float
        Ours and the baseline's, in ``unit``.
    baseline : str
        The baseline's name; empty: there is none, the figure stands for itself.
    ratio : float
        Median over the rounds of figure ÷ baseline.
    bound : str
        What is asked of it, in words; empty: nothing, it is reported only.
    met : bool
        Whether it is so.
    foreign : float
        Processors that others kept busy meanwhile, on average over the rounds; filled in by `Report.add`.
    """

    case: str
    figure: float
    unit: str
    baseline: str
    baseline_figure: float
    ratio: float
    bound: str = ""
    met: bool = True
    foreign: float = 0.0

    def cells(self, *, judge: bool) -> tuple[str, ...]:
        """Return the line as texts: case, figure, baseline, ratio, bound and verdict."""
        verdict = "" if not self.bound or not judge else "ok" if self.met else "missed"
        return (
            self.case,
            f"{_shown(self.figure)} {self.unit}",
            f"{self.baseline}: {_shown(self.baseline_figure)} {self.unit}" if self.baseline else "",
            f"{self.ratio:.3g}" if self.baseline else "",
            f"{self.bound} {verdict}".strip(),
        )


def _shown(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.3g}"


class Report:
    """What one benchmark found: lines for the summary, and everything for the JSON.

    Parameters
    ----------
    benchmark
        The fixture of pytest-benchmark.
    folder
        Where the runs write.
    rounds
        Rounds of each comparison.
    results
        Takes the lines.
    """

    def __init__(self, benchmark: Any, folder: Path, rounds: int, results: list[Result]) -> None:
        self.rounds = rounds
        self._benchmark = benchmark
        self._folder = folder
        self._results = results
        self._foreign: list[float] = []
        benchmark.extra_info["results"] = []

    def alternate(self, ours: Run, baseline: Run, *others: Series) -> tuple[Series, Series]:
        """Run both in turn: baseline, others, ours, baseline, …; pytest-benchmark clocks ours too."""
        mine, theirs = Series(ours), Series(baseline)

        def before() -> None:
            in_turn(self._folder, [theirs, *others], lambda _: None)
            mine.ready(self._folder)

        self._benchmark.pedantic(mine.clocked, setup=before, teardown=mine.done, rounds=self.rounds)
        self._foreign = mine.foreign + theirs.foreign
        self._benchmark.extra_info["ours"] = mine.to_dict()
        self._benchmark.extra_info["baseline"] = theirs.to_dict()
        return mine, theirs

    def compare(
        self, case: str, unit: str, ours: Run, baseline: Run, at_least: float | None = None
    ) -> tuple[Series, Series]:
        """Alternate the two and report the median of the ratios of their rates."""
        mine, theirs = self.alternate(ours, baseline)
        self.judge(case, unit, mine.rates, baseline.label, theirs.rates, at_least=at_least)
        return mine, theirs

    def judge(
        self,
        case: str,
        unit: str,
        figures: Sequence[float],
        baseline: str = "",
        others: Sequence[float] = (),
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        plus: float = 0.0,
    ) -> None:
        """Hold a figure against a baseline, round by round, or by itself against a fixed one; report it.

        Parameters
        ----------
        case, unit
            What was measured, and in what.
        figures
            Ours, one of each round.
        baseline, others
            What it is held against, and its figures in the same rounds; neither: the bounds are in ``unit``.
        at_least, at_most
            What is asked of the median over the rounds of figure ÷ baseline.
        plus
            In ``unit``: so much more than ``at_most`` times the baseline the figure may be.
        """
        rounds = list(zip(figures, others or [1.0] * len(figures), strict=True))
        ratio = median(ours / theirs for ours, theirs in rounds)
        allowed = median((ours - plus) / theirs for ours, theirs in rounds)
        met = (at_least is None or ratio >= at_least) and (at_most is None or allowed <= at_most)
        bounds = [
            f"{sign} {bound:,g}" for sign, bound in (("≥", at_least), ("≤", at_most)) if bound is not None
        ]
        words = ", ".join(bounds) + (f", + {plus:g} {unit}" if plus else "" if baseline else f" {unit}")
        middle = median(ours for ours, _ in rounds), median(theirs for _, theirs in rounds)
        self.add(Result(case, middle[0], unit, baseline, middle[1], ratio, words if bounds else "", met))

    def repeat(self, measure: Callable[[], None]) -> None:
        """Run something that takes its own times, once a round."""

        def clocked() -> None:
            foreign, began = foreign_cpu_s(), time.perf_counter()
            measure()
            self._foreign.append(max(0.0, (foreign_cpu_s() - foreign) / (time.perf_counter() - began)))

        self._benchmark.pedantic(clocked, rounds=self.rounds)

    def add(self, result: Result, foreign: float | None = None) -> None:
        """Report a line; ``foreign``: processors that others kept busy, if not as the rounds here saw it."""
        result = replace(result, foreign=fmean(self._foreign) if foreign is None else foreign)
        self._results.append(result)
        self._benchmark.extra_info["results"].append(asdict(result))
