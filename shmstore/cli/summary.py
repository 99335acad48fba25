"""What a recording came to: the outcome, its table, its JSON and its exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shmstore.cli.screen import Screen
from shmstore.stats import InstrumentStats, StorageStats


@dataclass(slots=True)
class Outcome:
    """A finished recording.

    Attributes
    ----------
    path : Path
        The file.
    seconds : float
        From the first reading to the last.
    stats : StorageStats
        The final counts.
    problems : list of str
        What was lost, refused or went wrong, one line each.
    interrupted : str or None
        The signal that ended it.
    exit_code : int
        0 if all is well, else 1, 2 or 3.
    stored_bytes : dict of str to int
        What each instrument takes in the file, variable-length values not counted.
    details : dict
        More for the JSON document.
    """

    path: Path
    seconds: float
    stats: StorageStats
    problems: list[str] = field(default_factory=list)
    interrupted: str | None = None
    exit_code: int = 0
    stored_bytes: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document."""
        counts = self.stats.to_dict()
        counts["compression_ratio"] = _ratio(self.stats.bytes_in, self.stats.file_bytes)
        for name, entry in counts["instruments"].items():
            entry["stored_bytes"] = stored = self.stored_bytes.get(name, 0)
            entry["compression_ratio"] = _ratio(entry["bytes_in"], stored)
        return {
            "path": str(self.path),
            "seconds": round(self.seconds, 3),
            "interrupted": self.interrupted,
            "exit_code": self.exit_code,
            "problems": self.problems,
            "stats": counts,
            **self.details,
        }


def show(screen: Screen, outcome: Outcome) -> None:
    """Show the outcome to people: a table, then what went wrong, then the path."""
    if not screen.as_json:
        screen.table(_table(outcome))
        for name, counts in outcome.stats.instruments.items():
            if counts.steps_down:
                screen.line(f"{name}: {eased(counts.to_dict())}")
    for problem in outcome.problems:
        screen.error(problem)
    if outcome.interrupted:
        how = "Ctrl-C" if outcome.interrupted == "SIGINT" else outcome.interrupted
        screen.line(f"ended by {how} after {outcome.seconds:.1f} s; the file is {outcome.stats.state}")
    if not screen.as_json:
        screen.result_line(str(outcome.path))


def eased(counts: Mapping[str, Any]) -> str:
    """Return in words what adaptive compression did to an instrument.

    Examples
    --------
    >>> eased({"steps_down": 2, "steps_up": 1, "chunks_cheaper": 7, "chunks_stored": 1200})
    'adaptive compression took 2 steps down and 1 up: 7 chunks at a cheaper level, 1,200 uncompressed'
    """
    down, up, cheaper, stored = (
        f"{int(counts.get(name, 0)):,}"
        for name in ("steps_down", "steps_up", "chunks_cheaper", "chunks_stored")
    )
    return (
        f"adaptive compression took {down} steps down and {up} up: {cheaper} chunks at a cheaper level, "
        f"{stored} uncompressed"
    )


def _table(outcome: Outcome) -> Any:
    from rich import box
    from rich.table import Table

    stats = outcome.stats
    table = Table(
        title=f"{outcome.seconds:.1f} s recorded, {stats.file_bytes / 1e6:,.2f} MB, {stats.state}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("instrument", no_wrap=True)
    for heading in ("rows", "rows/s", "MB in", "MB in file", "ratio", "dropped", "rejected"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, counts in stats.instruments.items():
        table.add_row(name, *_cells(counts, outcome.seconds, outcome.stored_bytes.get(name, 0)))
    if len(stats.instruments) > 1:
        table.add_section()
        table.add_row("all", *_cells(stats, outcome.seconds, stats.file_bytes))
    return table


def _cells(counts: InstrumentStats, seconds: float, stored_bytes: int) -> Sequence[str]:
    ratio = _ratio(counts.bytes_in, stored_bytes)
    return (
        f"{counts.rows_written:,}",
        f"{counts.rows_written / seconds:,.0f}" if seconds > 0 else "",
        f"{counts.bytes_in / 1e6:,.2f}",
        f"{stored_bytes / 1e6:,.2f}",
        f"{ratio:.2f}" if ratio else "",
        f"{counts.dropped:,}",
        f"{counts.rejected:,}",
    )


def _ratio(bytes_in: int, stored_bytes: int) -> float | None:
    return round(bytes_in / stored_bytes, 3) if stored_bytes else None
