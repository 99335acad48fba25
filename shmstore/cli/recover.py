"""``shmstore recover``: recordings made whole after their processes were killed, or the power went."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shmstore.cli.exits import LOSS, WRONG_CALL, file_exit_code
from shmstore.cli.info import plain_table, printable
from shmstore.cli.screen import Screen
from shmstore.cli.verify import file_progress
from shmstore.errors import BrokenError, ShmStoreError

if TYPE_CHECKING:
    from shmstore.leftovers import LeftSession
    from shmstore.recovery import RecoveryReport


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "recover",
        help="make recordings whole whose processes were killed, or whose machine lost its power",
        description="Make recordings whole: from what is beside them, and what is still in shared memory. "
        "Needs as much room again on the disk as the file takes; may be interrupted, and run again. Exit "
        "codes: 0 whole; 1 something was lost; 2 no such recording, or still being recorded; 3 the disk or "
        "memory failed.",
    )
    parser.add_argument(
        "recordings",
        metavar="FILE_FOLDER_OR_SESSION",
        nargs="*",
        help="an HDF5 file; a folder: all that was left behind in it; or the name of a session (default: "
        "this folder)",
    )
    parser.add_argument("--shm-dir", metavar="DIR", type=Path, help="shared memory (default: as configured)")
    parser.add_argument("--json", action="store_true", help="as one JSON document on standard output")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from shmstore.config import StorageConfig
    from shmstore.recoveryprocess import recover

    logging.getLogger("shmstore.writer").addHandler(logging.NullHandler())  # the report says the same
    screen = Screen(as_json=options.json)
    shm_dir = options.shm_dir or StorageConfig.load().shm_dir
    documents, codes = [], [0]
    recordings = []
    for name in options.recordings or ["."]:
        try:
            recordings += _meant_by(name, shm_dir, screen)
        except ShmStoreError as error:
            screen.error(str(error))
            documents.append({"recording": name, "ok": False, "error": str(error)})
            codes.append(file_exit_code(error))
    for recording in recordings:
        try:
            with file_progress(screen, Path(recording)) as progress:
                report = recover(recording, shm_dir=shm_dir, progress=progress)
        except (ShmStoreError, OSError) as error:
            screen.error(printable(f"{recording}: {' '.join(str(error).split())}"))
            documents.append({"recording": recording, "ok": False, "error": str(error)})
            codes.append(_code(error))
            continue
        if not screen.as_json:
            show(screen, report)
        for problem in report.problems:
            screen.error(f"{printable(report.path)}: {printable(problem)}")
        documents.append({"recording": recording, **report.to_dict()})
        codes.append(0 if report.ok else LOSS)
    screen.document({"ok": max(codes) == 0, "recordings": documents})
    return max(codes)


def show(screen: Screen, report: RecoveryReport) -> None:
    """Show a report; what was lost is said elsewhere."""
    if report.source == "nothing":
        screen.line(f"{printable(report.path)}: {report.state}, there was nothing to recover")
        return
    screen.line(f"{printable(report.path)}: {report.state}, recovered from {report.source}")
    table = plain_table(None)
    table.add_column("instrument", overflow="fold")
    table.add_column("rows", justify="right")
    for name, rows in report.rows.items():
        table.add_row(printable(name), f"{rows:,}")
    if report.rows:
        screen.table(table)
    screen.line(f"  {report.drained:,} rows of these were still in rings")
    if report.kept:
        screen.line(f"  the damaged file is kept: {printable(report.kept)}")


def _meant_by(name: str, shm_dir: Path, screen: Screen) -> list[str]:
    """Return the recordings that a word means: a folder, all that was left behind in it."""
    from shmstore.leftovers import find_sessions

    if not os.path.isdir(name):  # noqa: PTH112 (a name too long for a path may come, or none)
        return [name]
    sessions = find_sessions(shm_dir)
    found = _left_behind(Path(name), sessions)
    # A session may have the name of a folder.
    found += [each.recording for each in sessions if each.name == name and each.recording]
    if not found:
        screen.line(f"nothing was left behind {'here' if name == '.' else f'in {printable(name)}'}")
    return found


def _left_behind(folder: Path, sessions: Iterable[LeftSession]) -> list[str]:
    """Return the recordings in a folder that nobody has any more and of which something lies around."""
    from shmstore.leftovers import find_files

    found = {
        file.recording for file in find_files(folder, sessions) if file.kind not in ("quarantine", "damaged")
    }
    for session in sessions:
        path = Path(session.recording) if session.recording else None
        if path is not None and session.left_behind and path.parent.resolve() == folder.resolve():
            found.add(str(folder / path.name))
    return sorted(found)


def _code(error: Exception) -> int:
    # Both mean a recording that somebody else has.
    return WRONG_CALL if isinstance(error, BrokenError) else file_exit_code(error)
