"""A process beside the caller's for work that may take it along: asked once, it answers once, and it ends.

Owns both ends: the caller's (`ask`), and the process's own (`serve`), which runs ``main`` of a module. Words
are lines of JSON on its standard output. Whatever becomes of the process, the caller learns how it ended, and
what it said that it was at: HDF5 dies of some damaged files, and of others it never has done with. What the
work is, and what its words mean, is not known here.

The watch is a timer of the kernel's, over processor time and not over the clock's: a process that waits for a
slow disk, or is stopped, has not hung. It needs nobody to look at it, so it also ends one whose caller has
died.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from shmstore.control import error_reply, raise_error
from shmstore.errors import BrokenError, InvalidValueError, ShmStoreError, storage_error

#: Processor time that may pass without a word: the largest chunks decode in 10 s.
HANG_S = 60.0
#: Time between two words on the progress.
_PROGRESS_S = 0.1
# -P keeps the working directory off sys.path: a stray numpy.py in a data folder must not be imported.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from shmstore.watchedprocess import serve; serve(*sys.argv[2:])"
)
#: What the kernel sends at the end of the timer. Unlike a handler of Python's it ends code in C too.
_HUNG = signal.SIGPROF
#: Signals by which a process ends itself; all others come from outside.
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP}

Words = dict[str, Any]


class Ending(NamedTuple):
    """What became of a process.

    Attributes
    ----------
    answer : dict or None
        What ``main`` returned; ``None`` if the process ended before.
    at : str
        What it last said that it was at.
    code : int
        Its exit code; of a signal, the negative number.
    last_line : str
        What was last on its standard error: why it died, as a rule.
    """

    answer: Words | None
    at: str
    code: int
    last_line: str

    @property
    def hung(self) -> bool:
        """Whether it was ended because it had nothing to say for too long."""
        return self.code == -_HUNG

    @property
    def fault(self) -> bool:
        """Whether it died of itself, and not because somebody else would have it."""
        return -self.code in _FAULTS

    def __str__(self) -> str:
        if self.hung:
            return "came to no end"
        return f"died (signal {-self.code})" if self.code < 0 else f"ended with exit code {self.code}"


def ask(
    module: str,
    *arguments: str,
    hear: Callable[[Words], None] | None = None,
    hang_s: float = HANG_S,
) -> Ending:
    """Have ``main`` of a module run by an interpreter of its own; blocks until it has ended.

    It inherits ``sys.path``, the environment and the working directory. Whatever is raised here meanwhile, as
    by Ctrl-C, ends it.

    Parameters
    ----------
    module
        Its ``main(say, *arguments)`` returns the answer, JSON-ready; see `serve`.
    *arguments
        For ``main``.
    hear
        Called with whatever it says, but what it is at.
    hang_s
        Seconds of processor time after which a process has hung that says nothing new.

    Raises
    ------
    ShmStoreError
        What ``main`` raised; of another kind than these, a `BrokenError` that tells it.
    StorageError
        The system refuses another process.
    InvalidValueError
        ``hang_s`` is no time.
    """
    if not sys.executable:
        raise BrokenError("this interpreter does not know its own executable: set sys.executable")
    if not 0 < hang_s < float("inf"):
        raise InvalidValueError(f"hang_s is {hang_s}: give a number of seconds above 0")
    paths = json.dumps([entry or str(Path.cwd()) for entry in sys.path])
    command = [sys.executable, "-P", "-c", _BOOT, paths, module, str(hang_s), *arguments]
    answer: Words = {}
    at = ""
    # HDF5 has much to say on standard error when something fails; it is of use only if there is no answer.
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # a Ctrl-C in the caller's terminal is for the caller
            )
        except OSError as error:
            raise storage_error(error, "start a process", sys.executable) from None
        try:
            if process.stdout is not None:
                with process.stdout as lines:
                    for line in lines:
                        said = _parsed(line)
                        if "at" in said:
                            at = str(said["at"])
                        elif "answer" in said or "error" in said:
                            answer = said
                        elif hear is not None and said:
                            hear(said)
        except BaseException:
            process.kill()
            raise
        finally:
            code = process.wait()
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
    if "error" in answer:
        raise_error(**{{"error": "kind"}.get(key, key): value for key, value in answer.items()})
    return Ending(answer.get("answer"), at, code, *last or [""])


def _parsed(line: bytes) -> Words:
    """Return what a line says; nothing if the process died in the middle of it."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


class Say:
    """What the process says, and by that the watch over it: each new word gives it another ``hang_s``.

    Of the progress, one word in 0.1 s is said; ``done`` and ``total`` tell how far it is. Says nothing to a
    caller that has gone; whether the process then ends is for its SIGPIPE to tell.
    """

    def __init__(self, out: Any, hang_s: float) -> None:
        self._out = out
        self._hang_s = hang_s
        self._last: Words = {}
        self._progress: Words = {}
        self._next = 0.0
        self.alive()

    def __call__(self, **words: Any) -> None:
        """Say something; the same twice is said once, and is no sign of life."""
        if words == self._last:
            return
        self._last = words
        self.alive()
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(words), file=self._out, flush=True)

    def progress(self, done: int, total: int) -> None:
        """Say how far it is, if that was not said just now."""
        now, words = time.monotonic(), {"done": done, "total": total}
        if words == self._progress:
            return
        self._progress = words
        if now >= self._next or done == total:
            self._next = now + _PROGRESS_S
            self(**words)

    def alive(self) -> None:
        """Let the watch begin anew, without a word; may be called in any thread."""
        signal.setitimer(signal.ITIMER_PROF, self._hang_s)


def serve(module: str, hang_s: str, *arguments: str) -> NoReturn:
    """Run ``main`` of a module, and tell the caller what comes of it; the process's side of `ask`.

    Parameters
    ----------
    module
        ``main`` is called with a `Say`, and the arguments. Unless it asks for something else, the process
        ends when it has something to say and its caller has died.
    hang_s
        Processor time without a word after which the process is ended.
    *arguments
        For ``main``.
    """
    logging.disable()  # what there is to tell is in the answer
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nobody else may talk there
    for number in (_HUNG, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {_HUNG})
    say = Say(out, float(hang_s))
    code = 0
    try:
        say(answer=importlib.import_module(module).main(say, *arguments))
    except Exception as error:  # noqa: BLE001 (nothing is hidden: it is said to the caller's process)
        if not isinstance(error, ShmStoreError):
            traceback.print_exc()
        say(**error_reply(error))
        code = 1
    # Not through the interpreter's own end: HDF5 would write to a file that could not be written to.
    os._exit(code)
