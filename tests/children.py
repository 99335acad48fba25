"""A real second process for tests: runs a few statements, says lines, waits for lines, and can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parent.parent

_PRELUDE = """
import sys
from pathlib import Path
def say(*values):
    print(*values, flush=True)
def wait():
    return sys.stdin.readline()
"""


class Child:
    """A process that runs the statements; its answers come line by line.

    Parameters
    ----------
    statements
        Python, one after the other. ``say(...)`` sends a line, ``wait()`` waits for one.
    also
        A folder of modules that they import, beside the package's.
    """

    def __init__(self, *statements: str, also: Path | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", "\n".join((_PRELUDE, *statements))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(str(path) for path in (ROOT, also) if path)},
        )

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def hear(self) -> str:
        """Wait for the next line that it says; empty when it has gone."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def tell(self, line: str = "") -> None:
        """Let it go on from its ``wait()``."""
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self, number: int = signal.SIGKILL) -> int:
        """Send it a signal, wait until it is gone, and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)

    def __enter__(self) -> Self:
        """Return the child itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing of it behind."""
        if self.process.poll() is None:
            self.end()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
