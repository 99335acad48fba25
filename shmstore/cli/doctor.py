"""``shmstore doctor``: what killed recordings left behind, what to do with it, and the room for new ones."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shmstore.cli.exits import LOSS, file_exit_code
from shmstore.cli.info import megabytes, plain_table, printable
from shmstore.cli.screen import Screen
from shmstore.errors import StorageError

if TYPE_CHECKING:
    from shmstore.leftovers import LeftFile, LeftSession, SharedMemory


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "doctor",
        help="show what killed recordings left behind, and reclaim shared memory",
        description="Show what killed recordings left behind in shared memory and beside their files, and "
        "what to do with it. Exit codes: 0 nothing lies around; 1 something does; 2 wrong call.",
    )
    parser.add_argument(
        "folders",
        metavar="FOLDER",
        type=Path,
        nargs="*",
        help="where recordings are (default: this folder, and the configured output_dir)",
    )
    parser.add_argument("--json", action="store_true", help="as one JSON document on standard output")
    parser.add_argument(
        "--reclaim",
        action="store_true",
        help="remove sessions that no living process has a part in and that hold no data",
    )
    parser.add_argument(
        "--discard", action="store_true", help="with --reclaim: those that hold data too, which are lost then"
    )
    parser.add_argument("--shm-dir", metavar="DIR", type=Path, help="shared memory (default: as configured)")
    parser.set_defaults(run=run, usage_error=parser.error)


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from shmstore import leftovers
    from shmstore.config import StorageConfig

    if options.discard and not options.reclaim:
        options.usage_error("--discard goes with --reclaim only")
    screen = Screen(as_json=options.json)
    config = StorageConfig.load()
    shm_dir = options.shm_dir or config.shm_dir
    folders = options.folders or [Path(), config.output_dir]
    folders = list({folder.resolve(): folder for folder in folders}.values())
    try:
        memory = leftovers.shared_memory(shm_dir)
        sessions = leftovers.find_sessions(shm_dir)
        # A configured folder that nobody recorded to yet is not there.
        looked_at = [folder for folder in folders if options.folders or folder.is_dir()]
        files = [file for folder in looked_at for file in leftovers.find_files(folder, sessions)]
        reclaimed = _reclaim(sessions, discard=options.discard) if options.reclaim else []
    except StorageError as error:
        screen.error(str(error))
        return file_exit_code(error)
    remaining = [session for session in sessions if session not in reclaimed]
    if not screen.as_json:
        _show(screen, memory, remaining, files, reclaimed)
    around = any(session.left_behind for session in remaining) or bool(files)
    screen.document(
        {
            "clean": not around,
            "shared_memory": asdict(memory),
            "sessions": [_document(session) for session in remaining],
            "files": [asdict(file) for file in files],
            "reclaimed": [session.folder for session in reclaimed],
        }
    )
    return LOSS if around else 0


def _reclaim(sessions: list[LeftSession], *, discard: bool) -> list[LeftSession]:
    from shmstore.leftovers import reclaim

    return [session for session in sessions if session.left_behind and reclaim(session, discard=discard)]


def _document(session: LeftSession) -> dict[str, Any]:
    judged = {name: getattr(session, name) for name in ("in_use", "holds_data", "left_behind", "remedy")}
    return asdict(session) | judged


def _show(
    screen: Screen,
    memory: SharedMemory,
    sessions: list[LeftSession],
    files: list[LeftFile],
    reclaimed: list[LeftSession],
) -> None:
    screen.line(
        f"shared memory in {printable(memory.path)}: {megabytes(memory.size_bytes)}, "
        f"{megabytes(memory.free_bytes)} free"
    )
    if memory.advice:
        screen.line(f"  little: {printable(memory.advice)}")
    for session in reclaimed:
        screen.line(f"removed {printable(session.folder)}: {megabytes(session.size_bytes)}")
    if sessions:
        screen.table(_sessions(sessions))
    if files:
        screen.table(_files(files))
    if not files and not any(session.left_behind for session in sessions):
        screen.line("nothing lies around")


def _sessions(sessions: list[LeftSession]) -> Any:
    table = plain_table("sessions in shared memory")
    for heading in ("folder", "owner", "writer", "size", "holds", "recording", "remedy"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "size" else "left")
    for session in sessions:
        if session.foreign:
            table.add_row(printable(session.folder), f"user {session.user}", *("",) * 5)
            continue
        table.add_row(
            printable(session.folder),
            _process(session.owner_pid, session.owner_lives),
            _process(session.writer_pid, session.writer_lives),
            megabytes(session.size_bytes),
            printable(_contents(session)),
            printable(session.recording or "?") + (", finished" if session.finished else ""),
            printable(session.remedy or "none: in use"),
        )
    return table


def _process(pid: int, lives: bool) -> str:
    if lives:
        return f"lives, {pid}" if pid else "lives"
    return f"gone, was {pid}" if pid else "none"


def _contents(session: LeftSession) -> str:
    """Return in words what may be lost with a session."""
    found = []
    if session.batches:
        found.append(f"{session.rows:,} rows in {session.batches:,} batches")
    if session.tails:
        found.append("unfinished chunks")
    if session.problem:
        found.append(session.problem)
    return ", ".join(found) or "nothing"


def _files(files: list[LeftFile]) -> Any:
    table = plain_table("left beside recordings")
    table.add_column("path", overflow="fold")
    table.add_column("what")
    table.add_column("size", justify="right")
    table.add_column("remedy", overflow="fold")
    what = {
        "recording": "says it is recorded, and nobody does",
        "recovery": "what it can be recovered from",
        "recovering": "a recovery that did not end",
        "quarantine": "batches that the file could not take",
    }
    for file in files:
        table.add_row(
            printable(file.path), what[file.kind], megabytes(file.size_bytes), printable(file.remedy)
        )
    return table
