"""Figures made up for the tests of what judges figures."""

from __future__ import annotations

from typing import Any

from shmstore.tuning.point import Point
from shmstore.tuning.trial import Figures


def made_up(mb_s: float, size: float = 0.5, point: Point | None = None, **others: Any) -> Figures:
    """Return the figures of a recording of 10 s that took a second to close."""
    values = {"seconds": 11.0, "close_s": 1.0, "nbytes": int(mb_s * 1e7)}
    return Figures(point=point or Point(), mb_s=mb_s, size=size, **{**values, **others})
