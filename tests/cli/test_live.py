"""What the live view says besides counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from shmstore.cli.live import eased_now
from shmstore.cli.screen import Screen
from shmstore.cli.summary import Outcome, show
from shmstore.stats import InstrumentStats, StorageStats


@pytest.mark.parametrize(
    ("down", "up", "text"),
    [(0, 0, ""), (3, 3, ""), (3, 2, "  compression 1 step down"), (3, 0, "  compression 3 steps down")],
)
def test_compression_that_is_eased_is_told(down: int, up: int, text: str) -> None:
    assert eased_now(InstrumentStats(steps_down=down, steps_up=up)) == text


def test_the_summary_tells_what_was_eased(capsys: pytest.CaptureFixture[str]) -> None:
    eased = InstrumentStats(steps_down=2, steps_up=1, chunks_cheaper=1200, chunks_stored=7)
    stats = StorageStats(instruments={"c": eased, "slow": InstrumentStats()})
    show(Screen(), Outcome(Path("run.h5"), 1.0, stats))
    lines = [line for line in capsys.readouterr().out.splitlines() if "adaptive" in line]
    assert lines == [
        "c: adaptive compression took 2 steps down and 1 up: 1,200 chunks at a cheaper level, 7 uncompressed"
    ]
