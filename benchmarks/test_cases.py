"""Every case of `shmstore.bench.cases`, limits and peers in the same run; as ``shmstore bench`` has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.conftest import Scale
from benchmarks.report import Report, Result
from shmstore.bench.cases import CASES, Case
from shmstore.bench.results import best_peer
from shmstore.bench.runner import Comparison, Plan

pytestmark = pytest.mark.timeout(1800)  # seconds; slow machines are welcome


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(report: Report, benchmark: Any, scale: Scale, output: Path, case: Case) -> None:
    """One case; a line for each bound, and one for the fastest peer that leaves as few bytes."""
    with Comparison(case, Plan(output, report.rounds, smoke=scale.smoke)) as comparison:
        comparison.prepare()
        benchmark.pedantic(
            comparison.ours.clocked,
            setup=comparison.round_before,
            teardown=comparison.round_after,
            rounds=comparison.rounds,
        )
        found = comparison.found()
    benchmark.extra_info["case"] = found
    runs = {run["label"]: run for run in found["runs"]}
    lines = {judged["against"]: judged for judged in found["judged"]}
    fastest = best_peer(found)
    if fastest is not None:
        lines.setdefault(fastest["label"], {"ratio": fastest["ratio"], "met": True})
    for label, line in lines.items():
        bound = f"≥ {line['at_least']:g}" if "at_least" in line else ""
        rate, theirs = runs["shmstore"]["mb_per_s"], runs[label]["mb_per_s"]
        report.add(
            Result(case.name, rate, "MB/s", label, theirs, line["ratio"], bound, line["met"]),
            found["foreign_processors"],
        )
