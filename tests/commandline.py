"""The real command line in a process of its own, for the tests of its commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

COMMAND = [sys.executable, "-m", "shmstore"]
TIMEOUT_S = 90


def shmstore(
    *arguments: str | Path, cwd: Path, stdin: IO[bytes] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its standard input is empty unless given."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        stdin=stdin or subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=environment(),
    )


@contextmanager
def running(*arguments: str | Path, cwd: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a process group of its own, as a terminal does; killed at the end if it still runs."""
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        stdin=options.pop("stdin", subprocess.DEVNULL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        env=environment(),
        **options,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def environment() -> dict[str, str]:
    """Return this process's environment without settings of ours, with the package that is under test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SHMSTORE_")}
    import shmstore as package

    kept["PYTHONPATH"] = str(Path(package.__file__).parent.parent)
    return kept


def read_until(stream: IO[str], wanted: Callable[[str], bool]) -> str:
    """Return the first line that is wanted; the process's end is an error."""
    for line in stream:
        if wanted(line):
            return line
    raise AssertionError("the output ended without the line")


def document(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the JSON document on standard output, which holds nothing else."""
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def only_error(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line on standard error."""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("shmstore: error: ")
    return lines[0]
