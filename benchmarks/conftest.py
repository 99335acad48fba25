"""Options, fixtures and the summary of the benchmarks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from benchmarks.report import Report, Result

_RESULTS = pytest.StashKey[list[Result]]()
_Size = TypeVar("_Size")
#: Processors that others may keep busy before the figures are doubted.
_QUIET = 0.05
_HEADINGS = ("case", "shmstore", "baseline", "ratio", "bound")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the benchmarks' own options."""
    group = parser.getgroup("shmstore benchmarks")
    group.addoption("--smoke", action="store_true", help="tiny sizes, one round: does it run, not how fast")
    group.addoption("--rounds", type=int, default=5, help="rounds of each comparison (default: 5)")
    group.addoption("--output", type=Path, help="where files are written (default: a folder in /dev/shm)")
    group.addoption("--check", action="store_true", help="fail where a bound is not met")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what makes no sense together."""
    config.stash[_RESULTS] = []
    if config.getoption("--smoke") and config.getoption("--check"):
        raise pytest.UsageError("--smoke measures nothing, so there is nothing to --check: leave one out")
    if config.getoption("--rounds") < 1:
        raise pytest.UsageError("--rounds must be at least 1")


class Scale:
    """How large a case is: for figures, or for a smoke run."""

    def __init__(self, smoke: bool) -> None:
        self.smoke = smoke

    def pick(self, full: _Size, smoke: _Size) -> _Size:
        """Return the one size or the other."""
        return smoke if self.smoke else full


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> Scale:
    """How large the case is."""
    return Scale(request.config.getoption("--smoke"))


@pytest.fixture
def output(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder of the case's own, on the filesystem asked for; removed with all that is in it."""
    parent = request.config.getoption("--output") or Path("/dev/shm")
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=parent) as folder:
        yield Path(folder)


@pytest.fixture
def report(request: pytest.FixtureRequest, benchmark: Any, output: Path, scale: Scale) -> Iterator[Report]:
    """Takes what the case finds; with ``--check`` a bound that is not met fails the case."""
    config = request.config
    found: list[Result] = []
    yield Report(benchmark, output, 1 if scale.smoke else config.getoption("--rounds"), found)
    config.stash[_RESULTS] += found
    missed = [" | ".join(result.cells(judge=True)) for result in found if not result.met]
    if missed and config.getoption("--check"):
        pytest.fail("; ".join(missed), pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the lines of all cases as one table, in Markdown."""
    results = config.stash[_RESULTS]
    if not results:
        return
    judge = not config.getoption("--smoke")
    lines = [_HEADINGS, *(result.cells(judge=judge) for result in results)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    terminalreporter.section("shmstore" if judge else "shmstore, smoke run: the figures mean nothing")
    for number, line in enumerate(lines):
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        terminalreporter.write_line(f"| {' | '.join(cells)} |")
        if not number:
            terminalreporter.write_line(f"| {' | '.join('-' * width for width in widths)} |")
    foreign = max(result.foreign for result in results)
    if judge and foreign > _QUIET:
        terminalreporter.write_line(
            f"Other work kept {foreign:.2f} processors busy: these are not the figures of a quiet machine."
        )
