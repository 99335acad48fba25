"""How pictures look: ink, colours, and matplotlib without a screen. What is drawn is not known here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INK, FAINT = "#22303c", "#d5dbe1"
COLOURS = ("#1f77b4", "#e4572e", "#2a9d8f", "#8e5ea2")
_STYLE = {
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 10,
}


@contextmanager
def drawing() -> Iterator[Any]:
    """Give ``matplotlib.pyplot`` in our style; its figures are closed at the end."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(_STYLE):
        try:
            yield pyplot
        finally:
            pyplot.close("all")
