"""What a benchmark under pytest found: lines of a table, bounds, and the JSON of pytest-benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable
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
        The baseline's name.
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
        verdict = "" if not self.bound or not judge else "ok" if self.met else "below"
        return (
            self.case,
            f"{_shown(self.figure)} {self.unit}",
            f"{self.baseline}: {_shown(self.baseline_figure)} {self.unit}",
            f"{self.ratio:.3g}",
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

    def alternate(self, ours: Run, baseline: Run) -> tuple[Series, Series]:
        """Run both in turn: baseline, ours, baseline, ours, …; pytest-benchmark clocks ours too."""
        mine, theirs = Series(ours), Series(baseline)

        def before() -> None:
            in_turn(self._folder, [theirs], lambda _: None)
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
        ratio = median(a / b for a, b in zip(mine.rates, theirs.rates, strict=True))
        bound = "" if at_least is None else f"≥ {at_least:g}"
        met = at_least is None or ratio >= at_least
        figures = median(mine.rates), median(theirs.rates)
        self.add(Result(case, figures[0], unit, baseline.label, figures[1], ratio, bound, met))
        return mine, theirs

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
