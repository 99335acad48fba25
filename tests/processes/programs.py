"""Other processes for the tests: scripts as a user would write them, and children to talk with."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import commandline

TIMEOUT_S = 60


def environment() -> dict[str, str]:
    """Return an environment in which scripts find the package and what these tests share."""
    found = commandline.environment()
    found["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent.parent)
    return found


def run_script(text: str, folder: Path, *arguments: object, code: int = 0) -> str:
    """Run a script to its end, which must have that exit code; return what it printed."""
    script = folder / "script.py"
    script.write_text(text)
    return run_python([str(script), *map(str, arguments)], folder, code=code)


def run_python(arguments: Sequence[str], folder: Path, stdin: str = "", code: int = 0) -> str:
    """Run an interpreter to its end, which must have that exit code; return what it printed."""
    result = subprocess.run(
        [sys.executable, *arguments],
        input=stdin,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=environment(),
    )
    assert result.returncode == code, f"{result.stdout}\n{result.stderr}"
    return result.stdout


@contextmanager
def started(text: str, folder: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a script beside the test, with pipes to its standard input and output; killed at the end."""
    script = folder / "started.py"
    script.write_text(text)
    with subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment(),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_from(process: subprocess.Popen[str]) -> str:
    """Return the next line that a started script prints."""
    assert process.stdout
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], line: str = "") -> None:
    """Send a line to a started script."""
    assert process.stdin
    process.stdin.write(line + "\n")
    process.stdin.flush()


class Child:
    """A process of `multiprocessing`, with a connection to it.

    Attributes
    ----------
    line : Connection
        What the child's target got as its last argument is the other end.
    """

    def __init__(self, target: Callable[..., None], *arguments: Any, method: str = "spawn") -> None:
        context: Any = multiprocessing.get_context(method)
        self.line, other = context.Pipe()
        self.process = context.Process(target=target, args=(*arguments, other))
        self.process.start()
        other.close()

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def hear(self) -> Any:
        """Return what the child says next."""
        assert self.line.poll(TIMEOUT_S), "the child is silent"
        return self.line.recv()

    def ask(self, question: Any) -> Any:
        """Say something and return the answer."""
        self.line.send(question)
        return self.hear()

    def end(self) -> None:
        """Wait for the child's own end, which must be a good one."""
        self.process.join(TIMEOUT_S)
        assert self.process.exitcode == 0

    def clear(self) -> None:
        """Let go of it, killed if need be."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.process.close()
        self.line.close()


@contextmanager
def children(*made: Child) -> Iterator[list[Child]]:
    """Clear children up at the end of the block."""
    try:
        yield list(made)
    finally:
        for child in made:
            child.clear()


def silent(line: Connection) -> None:
    """Wait until the test ends this process."""
    line.poll(None)
