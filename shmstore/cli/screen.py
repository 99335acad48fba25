"""Where the command line's words go: lines, tables, warnings, the one JSON document. Knows no recording."""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType
from typing import Any, TextIO

from shmstore.errors import ShmStoreError

#: Tables that nobody looks at in a terminal are never folded or cut.
_UNFOLDED_COLUMNS = 500


class DependencyError(ShmStoreError, ImportError):
    """An optional package is missing; the message says how to install it."""


class Screen:
    """What a command says.

    Under ``--json`` standard output belongs to the document, and everything for people goes to standard
    error. A reader that goes away (``| head``) ends the output, never the recording.

    Parameters
    ----------
    as_json
        Whether the result is asked for as JSON.
    quiet
        Whether to leave out everything but results, warnings and errors.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._stream = Sturdy(sys.stderr if as_json else sys.stdout)
        #: Whether something that moves can be shown.
        self.animated = not as_json and not quiet and self._stream.isatty()
        self._console: Any = None
        if not as_json:
            require("rich", "demo")  # now rather than after the recording

    @property
    def console(self) -> Any:
        """The console of rich; plain and wide where there is no terminal."""
        if self._console is None:
            require("rich", "demo")
            from rich.console import Console

            width = None if self._stream.isatty() else _UNFOLDED_COLUMNS
            stream: Any = self._stream
            self._console = Console(file=stream, width=width, highlight=False, markup=False, emoji=False)
        return self._console

    def line(self, text: str = "") -> None:
        """Say a line to people, unless quiet."""
        if not self.quiet:
            self.result_line(text)

    def result_line(self, text: str) -> None:
        """Say a line to people, quiet or not."""
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def table(self, table: Any) -> None:
        """Show one of rich's renderables, unless quiet."""
        if self.quiet:
            return
        if self._stream.isatty():
            self.console.print(table)
            return
        with self.console.capture() as captured:
            self.console.print(table)
        # rich fills every line up with blanks, which nobody wants in a file.
        self.result_line("\n".join(line.rstrip() for line in captured.get().splitlines()))

    def document(self, content: Any) -> None:
        """Write the JSON document, if that was asked for."""
        if self.as_json:
            out = Sturdy(sys.stdout)
            out.write(json.dumps(content, indent=2, default=str) + "\n")
            out.flush()

    @staticmethod
    def error(text: str) -> None:
        """Say on standard error what went wrong, in one line."""
        err = Sturdy(sys.stderr)
        err.write(f"shmstore: error: {' '.join(text.split())}\n")
        err.flush()

    @staticmethod
    def warning(text: str) -> None:
        """Say on standard error what is doubtful, in one line."""
        err = Sturdy(sys.stderr)
        err.write(f"shmstore: warning: {' '.join(text.split())}\n")
        err.flush()


class Sturdy:
    """A text stream whose reader may go away: what is written from then on goes nowhere.

    Parameters
    ----------
    stream
        What is written to; not owned.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        """Write text; return its length."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        """Flush."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._give_up()

    def isatty(self) -> bool:
        """Whether a terminal is at the other end."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._stream.fileno()

    def _give_up(self) -> None:
        # The interpreter flushes once more when it exits; that has to succeed.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def require(package: str, extra: str) -> ModuleType:
    """Import an optional package.

    Raises
    ------
    DependencyError
        It is not installed; the message names the extra that has it.
    """
    import importlib

    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise DependencyError(
            f"this command needs {package}, which is not installed: pip install 'shmstore[{extra}]'"
        ) from None
