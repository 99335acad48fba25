"""``shmstore verify``: whether recordings are whole, as tables or as JSON."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shmstore.cli.exits import LOSS, file_exit_code
from shmstore.cli.info import megabytes, plain_table, printable
from shmstore.cli.screen import Screen
from shmstore.errors import BrokenError, IncompleteFileError, StorageError

if TYPE_CHECKING:
    from shmstore.verdict import VerifyReport


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "verify",
        help="read everything in files and check it: chunks, columns, schemas, account",
        description="Read everything in recordings and check it: chunks against their checksums, columns, "
        "schemas, and the account of rows. Exit codes: 0 all is well; 1 something is wrong; 2 no such file, "
        "or no recording.",
    )
    parser.add_argument("files", metavar="FILE", type=Path, nargs="+", help="an HDF5 file")
    parser.add_argument("--json", action="store_true", help="as one JSON document on standard output")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from shmstore.verificationprocess import verify

    screen = Screen(as_json=options.json)
    documents, codes = [], [0]
    for path in options.files:
        try:
            with file_progress(screen, path) as progress:
                report = verify(path, progress)
        except (BrokenError, StorageError, IncompleteFileError) as error:
            screen.error(str(error))
            documents.append({"path": str(path), "ok": False, "error": str(error)})
            codes.append(file_exit_code(error))
            continue
        if not screen.as_json:
            show(screen, report)
        for problem in report.problems:
            screen.error(f"{path}: {printable(problem)}")
        documents.append(report.to_dict())
        codes.append(0 if report.ok else LOSS)
    screen.document({"ok": max(codes) == 0, "files": documents})
    return max(codes)


def show(screen: Screen, report: VerifyReport) -> None:
    """Show a report as a table; problems are said elsewhere."""
    verdict = "ok" if report.ok else f"{len(report.problems)} problems"
    screen.line(f"{printable(report.path)}: {report.state}, {verdict}")
    table = plain_table(None)
    table.add_column("instrument", overflow="fold")
    for heading in ("rows", "columns", "chunks", "stored"):
        table.add_column(heading, justify="right")
    for item in report.instruments:
        counts = (f"{count:,}" for count in (item.rows, item.columns, item.chunks))
        table.add_row(printable(item.name), *counts, megabytes(item.bytes))
    if report.instruments:
        screen.table(table)
    for note in report.notes:
        screen.line(f"  note: {printable(note)}")


class _Bar:
    """How far a file is, as a bar in a terminal; cheap to call."""

    def __init__(self, screen: Screen, path: Path) -> None:
        from rich import progress

        columns = [
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TimeRemainingColumn(),
        ]
        self._view = progress.Progress(*columns, console=screen.console, transient=True)
        self._task = self._view.add_task(printable(path.name), total=None)

    def __enter__(self) -> _Bar:
        self._view.__enter__()
        return self

    def __exit__(self, *ending: Any) -> None:
        self._view.__exit__(*ending)

    def __call__(self, done: int, total: int) -> None:
        """Show it."""
        self._view.update(self._task, completed=done, total=total)


def file_progress(screen: Screen, path: Path) -> AbstractContextManager[Any]:
    """Show how far a file is, where that can be shown; gives what is called with bytes done and in all."""
    return _Bar(screen, path) if screen.animated else nullcontext()
