"""The report of a benchmark as files: pictures, the document, and one page that needs nothing else."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from shmstore.bench.plots import case_figure, overview
from shmstore.bench.results import best_peer, doubts, run_of
from shmstore.errors import storage_error
from shmstore.pictures import drawing

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22303c }
body { max-width: 1180px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em }
h2 { font-size: 1.2em; margin-top: 2.5em; border-top: 1px solid #d5dbe1; padding-top: 1em }
svg { width: 100%; height: auto }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 0.87em; margin: 0.8em 0 }
th, td { padding: 0.25em 0.8em; border-bottom: 1px solid #d5dbe1; text-align: right; white-space: nowrap }
th { vertical-align: bottom; white-space: normal }
th:first-child, td:first-child, .text { text-align: left }
td.text { white-space: normal }
tr.shmstore { font-weight: 600 }
tr.limit { color: #5c6b73 }
.doubt { background: #fdecea; padding: 0.6em 1em; border-left: 4px solid #e4572e }
.met { color: #2a7d6f }
.missed { color: #c43d1b }
dl { display: grid; grid-template-columns: max-content auto }
dt { color: #5c6b73; padding-right: 1.5em }
dd { margin: 0 }
p.small { color: #5c6b73; font-size: 0.87em }
"""
_TAKEN = """
Each round runs limits, peers and shmstore in turn, so a machine that slows down slows all; ratios are
medians of the rounds' own ratios. The clock runs from the first put until the file is closed and synced
and the writer has exited; of a peer, from opening its file until it is closed and synced. MB are those
of the Arrow columns put. The machine's limit is its cores divided by the processor seconds that memcpy,
the codec and pwrite of its result take for 1 GB, each measured alone in the same rounds.
"""


def write(document: Mapping[str, Any], folder: Path) -> Path:
    """Write ``bench.html``, ``bench.json``, ``overview.png`` and a PNG for each case.

    Parameters
    ----------
    document
        As `shmstore.bench.results.document` makes it.
    folder
        Where to; made if it is not there.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    StorageError
        A file cannot be written.
    """
    page = folder / "bench.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "bench.json").write_text(json.dumps(document, indent=2, default=str) + "\n")
        with drawing() as pyplot:
            glance = overview(pyplot, document)
            glance.savefig(folder / "overview.png", dpi=110)
            sections = []
            for case in document["cases"]:
                figure = case_figure(pyplot, case)
                figure.savefig(folder / f"{file_name(case)}.png", dpi=110)
                sections.append(_section(case, _svg(figure)))
                pyplot.close(figure)
            page.write_text(_page(document, _svg(glance), sections))
    except OSError as error:
        raise storage_error(error, "write the report", error.filename or folder) from None
    return page


def file_name(case: Mapping[str, Any]) -> str:
    """Return the name of a case's picture, without its suffix.

    Examples
    --------
    >>> file_name({"name": "adc/zstd/4MiB-chunks", "filesystem": "tmpfs"})
    'adc-zstd-4MiB-chunks-tmpfs'
    """
    return re.sub(r"[^\w.-]+", "-", f"{case['name']}-{case['filesystem']}").strip("-.") or "case"


def _svg(figure: Any) -> str:
    text = io.StringIO()
    # Without a date the same document gives the same page.
    figure.savefig(text, format="svg", metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]


def _page(document: Mapping[str, Any], glance: str, sections: Iterable[str]) -> str:
    doubt = doubts(document)
    banner = f'<p class="doubt">{escape(doubt)}</p>' if doubt else ""
    machine = document["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    facts = {
        "taken": document["taken_at"],
        "processor": f"{machine['processor']}, {machine['cores']} cores usable",
        "memory": f"{machine['memory_bytes'] / 1e9:,.1f} GB",
        "system": f"Linux {machine['kernel']}, Python {machine['python']}",
        "shmstore": f"{machine['shmstore']}, commit {machine['commit'] or 'unknown'}",
        "with": packages,
    }
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>shmstore: how fast it is here</title>
<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>
<h1>shmstore: how fast it is here</h1>
{banner}
{_definitions(facts)}
{glance}
<div class="wide">{_summary(document["cases"])}</div>
<p class="small">{_TAKEN}</p>
{"".join(sections)}
</body></html>
"""


def _definitions(facts: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>"


def _table(headings: Iterable[str], rows: Iterable[tuple[str, Iterable[str]]], texts: Iterable[str]) -> str:
    """Return a table; each row is its class and its cells, which are HTML; below ``texts`` stands text."""
    headings, texts = list(headings), set(texts)
    kinds = [' class="text"' if heading in texts else "" for heading in headings]
    head = "".join(f"<th{kind}>{escape(text)}</th>" for kind, text in zip(kinds, headings, strict=True))
    lines = (
        (row, "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, cells, strict=True)))
        for row, cells in rows
    )
    body = "".join(f'<tr class="{row}">{cells}</tr>' for row, cells in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _summary(cases: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for case in cases:
        ours, limit, peer = case["runs"][0], run_of(case, "machine limit"), best_peer(case)
        rows.append(
            (
                "",
                [
                    f'<a href="#{escape(file_name(case))}">{escape(case["name"])}</a>',
                    escape(case["filesystem"]),
                    f"{ours['mb_per_s']:,.0f}",
                    f"{limit['ratio']:.2f}" if limit else "",
                    f"{escape(peer['label'])}, {peer['mb_per_s']:,.0f}" if peer else "",
                    f"{peer['ratio']:.2f}×" if peer else "",
                    f"{ours['stored_share']:.3f}",
                    f"{case['latency']['put_us']['p50']:,.0f} / {case['latency']['put_us']['p99']:,.0f}",
                    _bounds(case),
                ],
            )
        )
    headings = (
        "case",
        "on",
        "MB/s",
        "of the machine's limit",
        "fastest peer as small, MB/s",
        "against it",
        "B/B",
        "put p50 / p99, µs",
        "asked",
    )
    return _table(headings, rows, ("on", "fastest peer as small, MB/s", "asked"))


def _bounds(case: Mapping[str, Any]) -> str:
    return "; ".join(
        f'<span class="{"met" if judged["met"] else "missed"}">{escape(judged["against"])}: '
        f"{judged['ratio']:.2f}, asked {judged['at_least']:g}</span>"
        for judged in case["judged"]
    )


def _section(case: Mapping[str, Any], picture: str) -> str:
    ours = case["runs"][0]
    rows = [
        (
            run["kind"],
            [
                escape(run["label"]),
                escape(run["codec"]),
                f"{run['mb_per_s']:,.0f}",
                "" if run is ours else f"{run['ratio']:.2f}×",
                f"{run['stored_share']:.3f}" if "stored_share" in run else "",
                escape(", ".join(f"{part} {value:.2f}" for part, value in run["cpu_s_per_gb"].items())),
            ],
        )
        for run in case["runs"]
    ]
    headings = ("", "codec", "MB/s", "shmstore against it", "B in the file / B", "processor s/GB")
    producers = f"{case['producers']} producer(s)" + (", one instrument" if case["shared_instrument"] else "")
    facts = {
        "stream": f"{case['stream']}, {case['batches']:,} batches, {case['stream_bytes'] / 1e6:,.0f} MB",
        "by": producers,
        "recorded": f"{case['codec']}, to {case['filesystem'] or 'an unknown filesystem'}"
        + "".join(f", {name} = {value}" for name, value in case["settings"].items()),
        "in the file": f"{ours['file_bytes'] / 1e6:,.1f} MB, {ours['chunks']:,} chunks, "
        f"{ours['commits']:,} commits",
        "writer's peak memory": f"{ours['writer_peak_bytes'] / 1e6:,.0f} MB with rings, "
        f"{ours['writer_private_peak_bytes'] / 1e6:,.0f} MB of its own",
        "put, ring not full": _times(case["latency"]["put_us"]),
        "copy of the same batch": _times(case["latency"]["copy_us"]),
        "put at full rate": f"{_times(ours['put_us'])}; waited for space {ours['producer_waits']:,} times",
        "others' work": f"{case['foreign_processors']:.3f} processors",
    }
    absent = "".join(f"{label}: {why}. " for label, why in case["absent"].items())
    return f"""<h2 id="{escape(file_name(case))}">{escape(case["name"])}</h2>
{picture}
<div class="wide">{_table(headings, rows, ("codec", "processor s/GB"))}</div>
{_definitions(facts)}
{f'<p class="small">Not taking part: {escape(absent)}</p>' if absent else ""}
"""


def _times(times: Mapping[str, Any]) -> str:
    return (
        f"p50 {times['p50']:,.1f}, p90 {times['p90']:,.1f}, p99 {times['p99']:,.1f}, "
        f"most {times['max']:,.1f} µs, of {times['count']:,}"
    )
