"""The live view of a recording: a table that moves in a terminal, else a line a second."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Any, Self

from shmstore.cli.screen import Screen
from shmstore.stats import InstrumentStats, StorageStats

#: How often the view is worth updating, in seconds.
TICK_S = 0.25
_LINE_S = 1.0


class LiveView:
    """Shows one :class:`StorageStats` after the other. A context manager; what moves is gone when it ends.

    Parameters
    ----------
    screen
        Where it is shown.
    title
        What is recorded, and into which file.
    seconds
        How long it will take; ``inf`` if nobody knows.
    """

    def __init__(self, screen: Screen, title: str, seconds: float = math.inf) -> None:
        self._screen = screen
        self._title = title
        self._seconds = seconds
        self._start_s = time.monotonic()
        self._line_due_s = self._start_s + _LINE_S
        self._rates = Rates()
        self._live: Any = None

    def __enter__(self) -> Self:
        """Begin."""
        self._start_s = time.monotonic()
        self._line_due_s = self._start_s + _LINE_S
        if self._screen.animated:
            from rich.live import Live

            self._live = Live(console=self._screen.console, auto_refresh=False, transient=True)
            self._live.start()
        else:
            self._screen.line(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the moving part away."""
        if self._live is not None:
            self._live.stop()

    def update(self, stats: StorageStats) -> None:
        """Show these counts."""
        now_s = time.monotonic()
        self._rates.update(stats, now_s)
        if self._live is not None:
            self._live.update(self._table(stats, now_s - self._start_s), refresh=True)
        elif now_s >= self._line_due_s:
            self._line_due_s += _LINE_S * max(1, math.ceil((now_s - self._line_due_s) / _LINE_S))
            self._screen.line(self._line(stats, now_s - self._start_s))

    def _line(self, stats: StorageStats, elapsed_s: float) -> str:
        rows_per_s, bytes_per_s = self._rates.of("")
        return (
            f"{elapsed_s:6.1f} s  {stats.rows_written:>11,} rows  {rows_per_s:>9,.0f} rows/s"
            f"  {bytes_per_s / 1e6:>8,.2f} MB/s in  {stats.file_bytes / 1e6:>9,.2f} MB on disk"
            f"  ring {ring_fill(stats):3.0%}  {stats.dropped:,} dropped{eased_now(stats)}"
        )

    def _table(self, stats: StorageStats, elapsed_s: float) -> Any:
        from rich import box
        from rich.console import Group
        from rich.table import Table

        until = f" of {self._seconds:g}" if math.isfinite(self._seconds) else ""
        title = f"{self._title}  ·  {elapsed_s:.1f}{until} s"
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("instrument", no_wrap=True)
        for heading in ("rows", "rows/s", "MB/s in", "MB on disk", "ring", "dropped"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, counts in stats.instruments.items():
            table.add_row(f"{name}{eased_now(counts)}", *self._cells(counts, name, counts.bytes_written))
        table.add_section()
        table.add_row("all", *self._cells(stats, "", stats.file_bytes), style="bold")
        return Group(title, table)

    def _cells(self, counts: InstrumentStats, name: str, disk_bytes: int) -> list[str]:
        rows_per_s, bytes_per_s = self._rates.of(name)
        return [
            f"{counts.rows_written:,}",
            f"{rows_per_s:,.0f}",
            f"{bytes_per_s / 1e6:,.2f}",
            f"{disk_bytes / 1e6:,.2f}",
            f"{ring_fill(counts):.0%}",
            f"{counts.dropped:,}",
        ]


class Rates:
    """Rows and bytes a second between updates, smoothed over about a second."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, int, int]] = {}
        self._rates: dict[str, tuple[float, float]] = {}

    def update(self, stats: StorageStats, now_s: float) -> None:
        """Take in the counts of this moment."""
        for name, counts in (("", stats), *stats.instruments.items()):
            before = self._last.get(name)
            self._last[name] = (now_s, counts.rows_written, counts.bytes_in)
            if before is None or now_s <= before[0]:
                continue
            passed_s = now_s - before[0]
            fresh = min(1.0, passed_s)
            rows, size = (
                (counts.rows_written - before[1]) / passed_s,
                (counts.bytes_in - before[2]) / passed_s,
            )
            old_rows, old_size = self._rates.get(name, (rows, size))
            self._rates[name] = (
                old_rows + fresh * (rows - old_rows),
                old_size + fresh * (size - old_size),
            )

    def of(self, name: str) -> tuple[float, float]:
        """Return rows and bytes a second of an instrument, or of all for ``""``."""
        return self._rates.get(name, (0.0, 0.0))


def eased_now(counts: InstrumentStats) -> str:
    """Return how far adaptive compression is below what is configured; empty if it is not."""
    below = counts.steps_below
    return f"  compression {below} {'step' if below == 1 else 'steps'} down" if below else ""


def ring_fill(counts: InstrumentStats) -> float:
    """Return how full the rings are, from 0 to 1."""
    return counts.ring_bytes_used / counts.ring_bytes if counts.ring_bytes else 0.0
