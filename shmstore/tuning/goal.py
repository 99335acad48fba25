"""Goals: which figures are better, and whether they are enough for the rate that is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shmstore.tuning.trial import Figures

KINDS = ("rate", "size", "latency")
#: What a recording as fast as it goes must have to spare over the rate that is asked for: a disk that is busy
#: for a moment must not leave rings full for good.
HEADROOM = 1.2
#: Figures that differ by less are the same: recordings of a second or two repeat to about that.
_SAME_RATE, _SAME_SIZE, _SAME_LATENCY = 0.05, 0.01, 0.10
#: A producer that is so far behind its pace at the end, in seconds and as a share of the time, is too slow.
_LATE_S, _LATE_SHARE = 0.1, 0.02


@dataclass(frozen=True, slots=True)
class Goal:
    """What is wanted.

    Attributes
    ----------
    kind : str
        ``"rate"``: the fastest recording; ``"size"``: the smallest file; ``"latency"``: the shortest time
        from seal to commit. ``"size"`` and ``"latency"`` only among those that hold ``asked_mb_s``.
    asked_mb_s : float or None
        The rate that must be held, in 10⁶ bytes a second; None: none.
    """

    kind: str
    asked_mb_s: float | None = None

    @property
    def needed_mb_s(self) -> float | None:
        """What a recording without a pace must reach to hold the rate that is asked for."""
        return None if self.asked_mb_s is None else self.asked_mb_s * HEADROOM

    @property
    def legend(self) -> str:
        """What the figures of `shown` are, for people."""
        first = "ms from seal to commit for 99 % of batches" if self.kind == "latency" else "MB/s of data"
        return f"{first}, and the file's size as a share of the data's"

    def holds(self, figures: Figures) -> bool:
        """Whether the rate that is asked for was held; without one, always."""
        if self.asked_mb_s is None or self.needed_mb_s is None:
            return True
        if figures.p99_ms is not None:  # at a pace: it cannot be faster
            return lacking_mb_s(figures, self.asked_mb_s) == 0
        return figures.mb_s >= self.needed_mb_s

    def best(self, figures: Sequence[Figures]) -> Figures:
        """Return the best of some; of those that are the same, the first."""
        enough = [each for each in figures if self.holds(each)]
        if not enough or self.kind == "rate":
            most = max(each.mb_s for each in figures)
            same = [each for each in figures if each.mb_s >= most * (1 - _SAME_RATE)]
            return min(same, key=_rough_size)
        if self.kind == "size":
            least = min(each.size for each in enough)
            same = [each for each in enough if each.size <= least * (1 + _SAME_SIZE)]
            return max(same, key=lambda each: round(math.log(each.mb_s) / _SAME_RATE))
        least = min(_latency(each) for each in enough)
        return min(
            (each for each in enough if _latency(each) <= least * (1 + _SAME_LATENCY)), key=_rough_size
        )

    def better(self, challenger: Figures, incumbent: Figures) -> bool:
        """Whether the challenger is clearly the better one."""
        return self.best([incumbent, challenger]) is challenger

    def costs(self, figures: Figures) -> tuple[float, float]:
        """Return what the Pareto front is taken by: time for the data, or latency, and size."""
        first = _latency(figures) if self.kind == "latency" else 1 / max(figures.mb_s, 1e-9)
        return first, figures.size

    def shown(self, figures: Figures) -> str:
        """Return the figures that matter, for people."""
        size = f"{figures.size * 100:.1f} %"
        if self.kind == "latency" and figures.p99_ms is not None:
            return f"{amount(figures.p99_ms)} ms, {size}"
        return f"{amount(figures.mb_s)} MB/s, {size}"


def lacking_mb_s(figures: Figures, asked_mb_s: float) -> float:
    """Return by how much a recording at a pace fell short of it, in 10⁶ bytes a second; 0 if it kept up.

    What producers were behind at the end, and what went into rings that only filled.
    """
    put_s = figures.seconds - figures.close_s
    late = figures.late_s > max(_LATE_S, _LATE_SHARE * put_s)
    behind = asked_mb_s * figures.late_s / max(put_s, figures.late_s) if late else 0.0
    lost = asked_mb_s * 1e-6 if figures.dropped else 0.0
    return min(asked_mb_s, behind + max(0.0, figures.growth_mb_s) + lost)


def amount(figure: float) -> str:
    """Return a figure for people: three digits, none of them behind a point where there are more in front.

    Examples
    --------
    >>> amount(1234.5), amount(12.345), amount(0.5)
    ('1,234', '12.3', '0.5')
    """
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def _latency(figures: Figures) -> float:
    return math.inf if figures.p99_ms is None else figures.p99_ms


def _rough_size(figures: Figures) -> int:
    return round(math.log(max(figures.size, 1e-9)) / _SAME_SIZE)
