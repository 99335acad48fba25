"""The command line: one module per command, and here the way in: arguments, errors, exit codes.

A command knows the public interface and a terminal; it knows no ring and no HDF5. What takes long to import
is imported when a command runs.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from shmstore._version import __version__
from shmstore.cli import bench, demo, doctor, info, ingest, record, recover, tune, verify
from shmstore.cli.exits import LOSS, exit_code
from shmstore.cli.options import Parser
from shmstore.cli.screen import Screen
from shmstore.errors import ShmStoreError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        The arguments; by default those of the process.

    Returns
    -------
    int
        0: done and complete. 1: done, but something was lost, refused or found wrong. 2: the call or its
        input was wrong. 3: the environment failed (disk, memory, dependency).
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(
            stream, "reconfigure"
        ):  # a terminal that lacks a letter gets a substitute, not a traceback
            stream.reconfigure(errors="replace")
    parser = _parser()
    try:
        options = parser.parse_args(argv)
    except SystemExit as ending:
        return int(ending.code or 0)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: Screen.warning(str(message))
        try:
            return int(options.run(options))
        except KeyboardInterrupt:
            Screen.error("interrupted: the recording, if there was one, was aborted")
            return LOSS
        except MemoryError as error:
            Screen.error("out of memory: lower ring_bytes, or free some")
            return exit_code(error)
        except (ShmStoreError, OSError) as error:
            Screen.error(str(error))
            return exit_code(error)


def _parser() -> Parser:
    parser = Parser(
        prog="shmstore",
        description="Record Arrow batches from any number of processes into one HDF5 file.",
        epilog="Exit codes: 0 complete; 1 something was lost, refused or wrong; 2 wrong call or input; "
        "3 the environment failed.",
    )
    parser.add_argument("--version", action="version", version=f"shmstore {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for command in (demo, record, ingest, info, verify, recover, tune, bench, doctor):
        command.add_parser(commands)
    return parser
