"""The pictures of a benchmark: all cases at a glance, and one case in full. Draws from the document alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shmstore.bench.results import best_peer, run_of
from shmstore.pictures import COLOURS, FAINT, INK

_OURS, _PEER, _WRITE, _COPY = COLOURS
_KINDS = {"shmstore": _OURS, "limit": "#9aa7b2", "peer": _PEER}
#: What a processor does in the machine's limit, and whom a process is of.
_PARTS = {
    "memcpy": _COPY,
    "codec alone": "#9aa7b2",
    "pwrite": _WRITE,
    "pwrite of the result": _WRITE,
    "producer": "#74a9cf",
    "writer": _OURS,
    "process": _PEER,
}
_PHASES = (*COLOURS, "#c9a227", "#5c6b73", "#9ecae1", "#f4a582")


def overview(pyplot: Any, document: Mapping[str, Any]) -> Any:
    """Draw each case as a line: shmstore, the machine's limit, pwrite, the fastest peer as small.

    Parameters
    ----------
    pyplot
        As `shmstore.pictures.drawing` gives it.
    document
        As `shmstore.bench.results.document` makes it.

    Returns
    -------
    matplotlib.figure.Figure
        Not saved.
    """
    cases = document["cases"]
    figure, axes = pyplot.subplots(figsize=(11, 1.6 + 0.36 * len(cases)), layout="constrained")
    marks: dict[str, list[tuple[float, int]]] = {}
    for place, case in enumerate(cases):
        for name, run in _marked(case).items():
            if run is not None:
                marks.setdefault(name, []).append((run["mb_per_s"], place))
    bar = {"marker": "|", "s": 170, "linewidths": 2.2, "zorder": 3}
    looks: dict[str, dict[str, Any]] = {
        "shmstore": {"marker": "o", "color": _OURS, "s": 60, "zorder": 4},
        "machine limit": {"color": INK, **bar},
        "bare pwrite of the stream": {"color": _WRITE, **bar},
        "fastest peer that leaves as few bytes": {"marker": "D", "color": _PEER, "s": 34, "zorder": 3},
    }
    for name, look in looks.items():
        if name in marks:
            rates, places = zip(*marks[name], strict=True)
            axes.scatter(rates, places, label=name, **look)
    axes.set_xscale("log")
    _count_on(axes.xaxis)
    axes.set_yticks(range(len(cases)), [_place(case) for case in cases])
    axes.set_ylim(len(cases) - 0.4, -0.6)
    axes.set(title="Rate of each case, farther right is faster", xlabel="MB of the stream a second")
    figure.legend(loc="outside lower center", frameon=False, ncols=4)
    return figure


def _marked(case: Mapping[str, Any]) -> dict[str, Mapping[str, Any] | None]:
    return {
        "shmstore": case["runs"][0],
        "machine limit": run_of(case, "machine limit"),
        "bare pwrite of the stream": run_of(case, "pwrite"),
        "fastest peer that leaves as few bytes": best_peer(case),
    }


def _place(case: Mapping[str, Any]) -> str:
    return f"{case['name']} ({case['filesystem']})" if case["filesystem"] else str(case["name"])


def case_figure(pyplot: Any, case: Mapping[str, Any]) -> Any:
    """Draw a case: rates; times of puts; where the time went; processor time of each process.

    Parameters
    ----------
    pyplot
        As `shmstore.pictures.drawing` gives it.
    case
        One case of a document.

    Returns
    -------
    matplotlib.figure.Figure
        Not saved.
    """
    runs = case["runs"]
    figure = pyplot.figure(figsize=(13, max(6.4, 2.2 + 0.36 * len(runs))), layout="constrained")
    left, right = figure.add_gridspec(1, 2, width_ratios=(1.1, 1))
    lines = len(_phase_lines(runs[0]))
    rows = left.subgridspec(2, 1, height_ratios=(max(5, 0.62 * len(runs)), lines))
    _draw_rates(figure.add_subplot(rows[0]), case)
    _draw_phases(figure.add_subplot(rows[1]), runs[0])
    rows = right.subgridspec(2, 1)
    _draw_puts(figure.add_subplot(rows[0]), case)
    _draw_processors(figure.add_subplot(rows[1]), runs)
    ratio = 1 / max(runs[0]["stored_share"], 1e-9)
    figure.suptitle(
        f"{_place(case)}   {runs[0]['mb_per_s']:,.0f} MB/s, {ratio:.2f} : 1, median of {case['rounds']}",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    return figure


def _count_on(axis: Any) -> None:
    """Write the numbers of a logarithmic axis in full, and so many that one can read it."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    # Fewer than three decades have too few powers of ten in them.
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_minor_formatter(NullFormatter())


def _draw_rates(axes: Any, case: Mapping[str, Any]) -> None:
    runs = case["runs"]
    rates = [run["mb_per_s"] for run in runs]
    names = [f"{run['label']}  {run['codec']}".rstrip() for run in runs]
    axes.barh(range(len(runs)), rates, color=[_KINDS[run["kind"]] for run in runs], height=0.72)
    for place, run in enumerate(runs):
        spread = run.get("mb_per_s_of_rounds", [])
        if len(spread) > 1:
            axes.plot([min(spread), max(spread)], [place, place], color=INK, lw=1)
        text = f" {run['mb_per_s']:,.0f}"
        if run["kind"] != "shmstore":
            text += f"  (shmstore {run['ratio']:.2f}×)"
        if run["kind"] == "peer":
            text += f", {run['stored_share']:.2f} B/B"
        axes.text(max([run["mb_per_s"], *spread]), place, text, va="center", fontsize=7.5)
    axes.set_yticks(range(len(runs)), names, fontsize=8)
    axes.set_ylim(len(runs) - 0.4, -0.6)
    # Limits that are far away must not squeeze what is to be compared.
    compared = [run["mb_per_s"] for run in runs if run["label"] not in {"memcpy", "pwrite of the result"}]
    axes.set_xlim(0, 1.45 * max(compared))
    for text in axes.texts:
        if text.get_position()[0] > axes.get_xlim()[1]:
            text.set(x=0.99 * axes.get_xlim()[1], ha="right", color="white")
    axes.grid(visible=False, axis="y")
    axes.set(title="rate: shmstore, limits (grey), peers", xlabel="MB of the stream a second")


def _draw_puts(axes: Any, case: Mapping[str, Any]) -> None:
    from matplotlib.ticker import NullFormatter

    latency = case["latency"]
    curves = (
        ("put, ring not full", latency.get("put_us"), _OURS, "-"),
        ("copy of the same batch", latency.get("copy_us"), _COPY, "-"),
        ("put at full rate, waits for space included", case["runs"][0].get("put_us"), _OURS, ":"),
    )
    for name, times, colour, style in curves:
        if times:
            shares, values = zip(*times["quantiles"], strict=True)
            rest = [max(1 - share, 0.5 / times["count"]) for share in shares]
            label = f"{name}: p50 {times['p50']:,.0f}, p99 {times['p99']:,.0f} µs"
            axes.plot(values, rest, color=colour, ls=style, lw=1.6, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _count_on(axes.xaxis)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=8)
    axes.set_title("time of one put", pad=52)
    axes.set(xlabel="µs", ylabel="share that takes longer")


def _phase_lines(ours: Mapping[str, Any]) -> dict[str, list[tuple[str, float]]]:
    """Return what is drawn of the phases: lines, and the parts of each with their seconds."""
    phases = dict(ours["phases_s"])
    put, wait, close = (phases.pop(name) for name in ("put_s", "ring_wait_s", "close_s"))
    parts = [("put", max(put - wait, 0.0)), ("wait for space", wait), ("drain and close", close)]
    lines = {"from first put to close": parts}
    if phases:
        lines["threads of the writer"] = [(_words(name), seconds) for name, seconds in phases.items()]
    return lines


def _draw_phases(axes: Any, ours: Mapping[str, Any]) -> None:
    lines = _phase_lines(ours)
    colours = iter(_PHASES * 2)
    for place, parts in enumerate(lines.values()):
        left = 0.0
        for name, seconds in parts:
            label = f"{name} {seconds:.2f} s"
            axes.barh(place, seconds, left=left, color=next(colours), height=0.6, label=label)
            left += seconds
    axes.set_yticks(range(len(lines)), list(lines), fontsize=8)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.5 / len(lines)), frameon=False, fontsize=8, ncols=3)
    axes.set(title="where the time went, in seconds")


def _words(name: str) -> str:
    return name.removesuffix("_s").replace("_", " ")


def _draw_processors(axes: Any, runs: Sequence[Mapping[str, Any]]) -> None:
    shown = [run for run in runs if run["kind"] != "limit" or run["label"] == "machine limit"]
    seen: set[str] = set()
    for place, run in enumerate(shown):
        left = 0.0
        for part, seconds in run["cpu_s_per_gb"].items():
            name = "peer" if part == "process" else part
            axes.barh(
                place,
                seconds,
                left=left,
                color=_PARTS.get(part, FAINT),
                height=0.72,
                label=None if name in seen else name,
            )
            seen.add(name)
            left += seconds
        axes.text(left, place, f" {left:.2f}", va="center", fontsize=7.5)
    axes.set_yticks(range(len(shown)), [run["label"] for run in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=8, ncols=3)
    axes.set_title("processor time", pad=40)
    axes.set(xlabel="seconds for 1 GB of the stream")
