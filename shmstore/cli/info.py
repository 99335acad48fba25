"""``shmstore info``: what is in a file, as tables or as JSON."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shmstore.cli.exits import LOSS, file_exit_code
from shmstore.cli.screen import Screen
from shmstore.cli.summary import eased
from shmstore.errors import StorageError

if TYPE_CHECKING:
    from shmstore.inspection import DatasetReport, FileReport, InstrumentReport

_SHOWN_CHARS = 200
#: Arrow's own extension types, whose spelling is long.
_EXTENSION = re.compile(r"extension<arrow\.(.*)>")


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "info",
        help="show what is in a file: instruments, columns, chunks, filters, accounting",
        description="Show what is in a recording, finished or still growing.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the HDF5 file")
    parser.add_argument("--json", action="store_true", help="as one JSON document on standard output")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from shmstore.inspection import describe

    screen = Screen(as_json=options.json)
    try:
        report = describe(options.file)
    except StorageError as error:
        screen.error(str(error))
        return file_exit_code(error)
    if not screen.as_json:
        show(screen, report)
    screen.document(report.to_dict())
    problems = [instrument.problem for instrument in report.instruments if instrument.problem]
    for problem in problems:
        screen.error(problem)
    return LOSS if problems else 0


def show(screen: Screen, report: FileReport) -> None:
    """Show a report as tables."""
    screen.line(printable(report.path))
    about = {
        "state": report.state,
        "size": megabytes(report.file_bytes),
        "created": report.created_at,
        "application": report.application,
    }
    screen.table(_pairs(about))
    if report.metadata:
        screen.table(_pairs(report.metadata, "metadata"))
    for instrument in report.instruments:
        screen.table(_instrument(instrument))
        if instrument.metadata:
            screen.table(_pairs(instrument.metadata))
    if report.accounting is not None:
        screen.table(_accounting(report.accounting))
        for name, counts in report.accounting.get("compression", {}).items():
            screen.line(f"  {printable(name)}: {eased(counts)}")
        for problem in report.accounting.get("problems", ()):
            screen.line(f"  problem: {printable(str(problem))}")


def megabytes(count: int) -> str:
    """Return a size for people: megabytes, or kilobytes of small ones."""
    return f"{count / 1e6:,.2f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def printable(text: str) -> str:
    """Return text that cannot steer a terminal: what cannot be printed is escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _instrument(instrument: InstrumentReport) -> Any:
    ratio = f", ratio {instrument.ratio:.2f}" if instrument.ratio else ""
    title = (
        f"{printable(instrument.instrument_id)}: {instrument.rows:,} rows, "
        f"{len(instrument.columns)} columns, {megabytes(instrument.storage_bytes)}{ratio}"
    )
    table = plain_table(title)
    table.add_column("column", overflow="fold")
    table.add_column("type", overflow="fold")
    table.add_column("shape", overflow="fold")
    table.add_column("chunk", overflow="fold")
    table.add_column("chunks", justify="right")
    table.add_column("filters", overflow="fold")
    table.add_column("stored", justify="right")
    table.add_column("ratio", justify="right")
    for column in instrument.columns:
        name, type_ = printable(column.name), printable(_EXTENSION.sub(r"\1", column.type))
        for dataset in column.datasets:
            table.add_row(name, type_, *_dataset(dataset))
            name, type_ = "", ""
    return table


def _dataset(dataset: DatasetReport) -> list[str]:
    filters = dataset.filters or "-"
    return [
        _shape(dataset.shape) + ("" if dataset.role == "values" else f" {dataset.role}"),
        _shape(dataset.chunk_shape) if dataset.chunk_shape else "-",
        f"{dataset.chunks:,}",
        # HDF5 places such values by itself, outside the chunks and their filters.
        f"{filters} (references)" if dataset.dtype in ("utf8", "bytes") else filters,
        megabytes(dataset.storage_bytes),
        f"{dataset.ratio:.2f}" if dataset.ratio else "-",
    ]


def _accounting(accounting: Mapping[str, Any]) -> Any:
    counts = ("accepted", "committed", "dropped", "rejected", "quarantined")
    table = plain_table(
        "accounting, in rows" + ("" if accounting.get("ok", True) else ": it does not add up")
    )
    table.add_column("producer of", overflow="fold")
    for name in counts:
        table.add_column(name, justify="right")
    for producer in accounting.get("producers", ()):
        table.add_row(
            printable(str(producer.get("instrument", "?"))),
            *(f"{int(producer.get(name, 0)):,}" for name in counts),
        )
    return table


def _pairs(values: Mapping[str, Any], title: str | None = None) -> Any:
    table = plain_table(title)
    table.show_header = False
    table.add_column("key", style="bold", overflow="fold")
    table.add_column("value", overflow="fold")
    for key, value in values.items():
        text = printable(value if isinstance(value, str) else repr(value))
        table.add_row(printable(key), text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…")
    return table


def plain_table(title: str | None) -> Any:
    """Return an empty table in the style of all commands."""
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(f"{size:,}" for size in shape)
