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

#: Share of the fastest peer's rate that an uncompressed recording is to have.
_KEPT_UP = 0.95


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(report: Report, benchmark: Any, scale: Scale, output: Path, case: Case) -> None:
    """One case; a line for each bound, and one for the fastest peer that leaves as few bytes.

    That one is to be outrun; kept up with, where all that can be done is to write the bytes as they are.
    """
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
        least = _KEPT_UP if case.codec == "none" else 1.0
        line = {"ratio": fastest["ratio"], "at_least": least, "met": fastest["ratio"] >= least}
        lines.setdefault(fastest["label"], line)
    for label, line in lines.items():
        rate, theirs = runs["shmstore"]["mb_per_s"], runs[label]["mb_per_s"]
        report.add(
            Result(
                case.name, rate, "MB/s", label, theirs, line["ratio"], f"≥ {line['at_least']:g}", line["met"]
            ),
            found["foreign_processors"],
        )
