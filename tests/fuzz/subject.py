"""A process that is given damaged bytes, case after case: if one kills or hangs it, the case is known.

The parent's side is `Subject`; a module of cases has ``main`` call :func:`serve`. Cases and answers are lines
of JSON. A case ends *right* (``"right"``) or *refused* (``"refused: …"``, with a clear error); all else, and
the death of the process, is a defect.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fuzz.damage import Damage
from processes.programs import environment

from shmstore.errors import ShmStoreError

#: What a case may take of address space beyond what the process has when it starts.
MEMORY_BYTES = 1 << 30

#: Where Python was, as its faulthandler says it first.
_PLACE = re.compile(r'\(most recent call first\):\s+File "([^"]*)"')

Case = Callable[..., str | None]


class Subject:
    """The process; started at the first case, and again after one that killed it.

    Parameters
    ----------
    module
        What it runs: a module of cases.
    *arguments
        Of its command line.
    timeout_s
        What a case may take before it has hung; all take milliseconds.
    after_hdf5
        Called with a case in which HDF5 hung, or took the process along; returns how it is refused where
        that is provided for. By default it is a defect.
    """

    def __init__(
        self,
        module: str,
        *arguments: object,
        timeout_s: float = 20.0,
        after_hdf5: Callable[..., str] | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._after_hdf5 = after_hdf5
        self._command = [sys.executable, "-P", "-X", "faulthandler", "-m", module, *map(str, arguments)]
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the subject)
        self.counts: dict[str, int] = {}

    def judge(self, damages: Sequence[Damage], **more: Any) -> str:
        """Have a case tried; return its ending. Fails if that is neither right nor refused."""
        process = self._process or self._start()
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"damages": damages, **more}).encode() + b"\n")
            process.stdin.flush()
        hung = not select.select([process.stdout], [], [], self._timeout_s)[0]
        answer = b"" if hung else process.stdout.readline()
        ending = str(json.loads(answer)) if answer else self._end_of_process(hung)
        kind = ending.partition(":")[0]
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind == "hdf5" and self._after_hdf5:
            return f"refused: {self._after_hdf5(damages, **more)}"
        assert kind in ("right", "refused"), ending
        return ending

    def _end_of_process(self, hung: bool) -> str:
        """Say how the process ended, or that it was about to hang for ever, and where it was then."""
        if hung and self._process:
            self._process.send_signal(signal.SIGABRT)
        code = self.end()
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace")
        how = f"hung for {self._timeout_s} s" if hung else f"died, exit code {code}"
        place = _PLACE.search(words)
        return f"{'hdf5' if place and '/h5py/' in place[1] else 'process'}: {how}: {words[-3000:]}"

    def _start(self) -> subprocess.Popen[bytes]:
        self._errors.seek(0)
        self._errors.truncate()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment() | {"MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"},
        )
        return self._process

    def end(self) -> int:
        """Kill it, and return its exit code; the next case starts another."""
        process, self._process = self._process, None
        if process is None:
            return 0
        # One that died says how by itself.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return process.wait(30)

    def __enter__(self) -> Self:
        """Return the subject itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing of it behind."""
        if self._process and self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self.end()
        self._errors.close()


def serve(case: Case) -> None:
    """Try cases as they come on standard input, and answer on standard output; for the subject's process.

    Parameters
    ----------
    case
        Called with the damages and what else was sent. Returns ``None`` if all was right, or how it was
        refused; may raise a `ShmStoreError`, which is a refusal too, and must raise nothing else.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    limit_memory()
    for line in sys.stdin:
        said = json.loads(line)
        damages = [Damage(*damage) for damage in said.pop("damages")]
        print(json.dumps(ending_of(case, damages, **said)), file=answers, flush=True)


def ending_of(case: Case, damages: Sequence[Damage], **more: Any) -> str:
    """Return how a case ends."""
    try:
        refused = case(damages, **more)
    except ShmStoreError as error:
        return f"refused: {error}"
    except AssertionError:
        return f"wrong: {traceback.format_exc()}"
    except Exception:  # noqa: BLE001 (it is told to the test)
        return f"raised: {traceback.format_exc()}"
    return "right" if refused is None else f"refused: {refused}"


def limit_memory() -> None:
    """Let this process grow by `MEMORY_BYTES` at most."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
