"""The picture of a tuning: codecs alone, and recordings, each with its Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from shmstore.errors import storage_error
from shmstore.pictures import COLOURS, INK, drawing
from shmstore.tuning.codecs import CodecFigures
from shmstore.tuning.goal import amount
from shmstore.tuning.trial import Figures
from shmstore.tuning.tuner import Tuning

Place: TypeAlias = tuple[float, float]

_CLOUD, _FRONT, _CHOSEN = "#9aa7b3", COLOURS[0], COLOURS[1]
#: Files larger by this factor than all that counts are told, not drawn.
_TALLEST = 1.6
#: Sizes that differ by more than this factor go on a logarithmic axis.
_WIDE = 3.0
#: Where a name may stand beside its dot, the best place first.
_OFFSETS = (
    ((7, 4), "left", "bottom"),
    ((7, -4), "left", "top"),
    ((-7, 4), "right", "bottom"),
    ((-7, -4), "right", "top"),
    ((0, 14), "center", "bottom"),
    ((0, -14), "center", "top"),
    ((7, 18), "left", "bottom"),
    ((7, -18), "left", "top"),
)


def draw(tuning: Tuning, picture: Path) -> Path:
    """Draw a tuning.

    Parameters
    ----------
    tuning
        What was measured.
    picture
        The PNG to write; replaced if it is there.

    Raises
    ------
    StorageError
        It cannot be written.
    """
    with drawing() as pyplot:
        figure, (alone, recorded) = pyplot.subplots(1, 2, figsize=(13, 5.6), layout="constrained")
        _draw_alone(alone, tuning)
        _draw_recorded(recorded, tuning)
        figure.suptitle(_title(tuning), x=0.01, ha="left", fontsize=11)
        try:
            figure.savefig(picture, dpi=110)
        except OSError as error:
            raise storage_error(error, "write the picture", picture) from None
    return picture


def _title(tuning: Tuning) -> str:
    what = f"{Path(tuning.sample.name).name}, {tuning.producers} producer{'s' * (tuning.producers > 1)}"
    return f"{what}   chosen: {_name(tuning.chosen)}, {tuning.goal.shown(tuning.chosen)} of the data's size"


def _draw_alone(axes: Any, tuning: Tuning) -> None:
    def at(each: CodecFigures) -> Place:
        return each.mb_s, each.size * 100

    figures = [each for each in tuning.alone if each.point.codec.name != "none"]
    best = [each for each in tuning.alone_front if each.point.codec.name != "none"]
    own = [each for each in figures if each.point.codec == tuning.chosen.point.codec]
    axes.set(title="codecs alone, one thread", xlabel="MB/s of data", ylabel="size, % of the data")
    _dots(axes, [at(each) for each in figures], color=_CLOUD, s=18, zorder=2)
    _line(axes, [at(each) for each in best])
    _dots(axes, [at(each) for each in own], color=_CHOSEN, s=34, zorder=4, label="chosen, by chunk size")
    if figures:
        axes.legend(loc="best", frameon=False)
    _finish(axes, [(_name(each), at(each)) for each in [*best, *own]])


def _draw_recorded(axes: Any, tuning: Tuning) -> None:
    goal, chosen = tuning.goal, tuning.chosen
    latency = goal.kind == "latency"

    def at(each: Figures) -> Place:
        return (each.p99_ms or math.inf) if latency else each.mb_s, each.size * 100

    # What is far above all that counts would press the rest together.
    counts = [*tuning.front, chosen, *([tuning.default] if tuning.default else [])]
    ceiling = _TALLEST * max(each.size for each in counts)
    shown = [each for each in tuning.figures if each.size <= ceiling and math.isfinite(at(each)[0])]
    hidden = {
        _name(each): f"{_name(each)} {goal.shown(each)}" for each in tuning.figures if each not in shown
    }
    title = f"recordings at {amount(goal.asked_mb_s or 0)} MB/s" if latency else "recordings, close included"
    if hidden:
        title += f"\nnot shown: {'; '.join(hidden.values())}"
    axes.set(
        title=title,
        xlabel="ms from seal to commit, 99 % of batches" if latency else "MB/s of data",
        ylabel="size, % of the data",
    )
    _dots(axes, [at(each) for each in shown], color=_CLOUD, s=18, zorder=2)
    _line(axes, [at(each) for each in tuning.front if each in shown])
    _dots(
        axes, [at(each) for each in [chosen] if each in shown], color=_CHOSEN, s=90, zorder=5, label="chosen"
    )
    if tuning.default is not None:
        style = {"facecolors": "none", "edgecolors": INK, "s": 110, "zorder": 6}
        _dots(axes, [at(tuning.default)], **style, label="where it began")
    if goal.asked_mb_s is not None and not latency:
        axes.axvline(goal.asked_mb_s, color=_CHOSEN, lw=1, ls="--", label="asked for")
    axes.legend(loc="best", frameon=False)
    # Of each codec what matters most carries its name.
    _finish(axes, [(_name(each), at(each)) for each in [chosen, *tuning.front, *shown] if each in shown])


def _name(figures: Figures | CodecFigures) -> str:
    # A shuffle by bytes goes without saying.
    return str(figures.point.codec).removesuffix("+shuffle")


def _dots(axes: Any, places: Sequence[Place], **style: Any) -> None:
    if places:
        axes.scatter(*zip(*places, strict=True), **style)


def _line(axes: Any, places: Sequence[Place]) -> None:
    if places:
        style = {"color": _FRONT, "lw": 1.4, "marker": "o", "ms": 5, "zorder": 3, "label": "Pareto front"}
        axes.plot(*zip(*places, strict=True), **style)


def _plain_logarithms(axis: Any) -> None:
    """Write 1, 2, 3, 5, 7, 10 on a logarithmic axis, and no powers."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())


def _finish(axes: Any, names: Sequence[tuple[str, Place]]) -> None:
    """Scale the axes, then write each name once, where it covers nothing that was written before."""
    axes.margins(x=0.15, y=0.15)
    axes.set_xscale("log")
    _plain_logarithms(axes.xaxis)
    low, high = axes.dataLim.intervaly
    if math.isfinite(high) and high > _WIDE * low > 0:
        axes.set_yscale("log")
        _plain_logarithms(axes.yaxis)
    figure = axes.figure
    figure.canvas.draw()  # from here on it is known where things are
    renderer = figure.canvas.get_renderer()
    legend = axes.get_legend()
    taken = [legend.get_window_extent(renderer)] if legend else []
    written: set[str] = set()
    for name, place in names:
        if name in written:
            continue
        for offset, horizontal, vertical in _OFFSETS:
            note = axes.annotate(
                name, place, offset, textcoords="offset points", ha=horizontal, va=vertical, fontsize=8
            )
            box = note.get_window_extent(renderer)
            if axes.bbox.containsx(box.x1) and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                written.add(name)
                break
            note.remove()
