"""Processes around a measurement: started so that they end with it, and watched while they run.

The watch looks at the kernel's own counts now and then, from a thread; what the processes do is not known.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from shmstore.errors import BrokenError

#: spawn: a fork of a process in which Arrow has started threads is unsafe.
CONTEXT = multiprocessing.get_context("spawn")
_READY_S = 60.0

_LOOK_S = 0.05
#: A standby has started when it has taken so much of a processor, and no more for so long.
_START_CPU_S, _REST_S = 0.1, 0.1


class Watch:
    """Looks at the writer, and at other children of this process, every 50 ms.

    Parameters
    ----------
    writer_pid
        The writer.
    known
        Children of this process that are no concern: the producers.

    Attributes
    ----------
    peak_bytes : int
        Most memory that the writer had mapped and touched, rings included (``VmHWM``).
    private_peak_bytes : int
        Most that it had for itself, as seen (``RssAnon``).
    others_cpu_s : float
        Processor seconds of other children that have ended meanwhile, each when it was last seen.
    """

    def __init__(self, writer_pid: int, known: set[int | None]) -> None:
        self.peak_bytes = 0
        self.private_peak_bytes = 0
        self.others_cpu_s = 0.0
        self._writer_pid = writer_pid
        self._known = known | {writer_pid}
        self._others: dict[int, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._look()
        self._thread.start()

    def stop(self) -> None:
        """End; may be called twice."""
        if self._thread.is_alive():
            self._ended.set()
            self._thread.join()
            alive = _children()
            self.others_cpu_s = sum(cpu_s for pid, cpu_s in self._others.items() if pid not in alive)

    def writer_cpu_s(self) -> float:
        """Processor seconds of the writer so far."""
        return _cpu_s(self._writer_pid)

    def _look_on(self) -> None:
        while not self._ended.wait(_LOOK_S):
            self._look()

    def _look(self) -> None:
        sizes = memory_of(self._writer_pid)
        self.peak_bytes = max(self.peak_bytes, sizes.get("VmHWM", 0))
        self.private_peak_bytes = max(self.private_peak_bytes, sizes.get("RssAnon", 0))
        for pid in _children() - self._known:
            self._others[pid] = _cpu_s(pid) or self._others.get(pid, 0.0)


def memory_of(pid: int) -> dict[str, int]:
    """Return ``VmHWM`` and ``RssAnon`` of a process, see proc(5), in bytes; nothing once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {
        name: int(value.split()[0]) * 1024
        for name, _, value in (line.partition(":") for line in status.splitlines())
        if name in {"VmHWM", "RssAnon"}
    }


def _children() -> set[int]:
    """Return the children of all threads of this process."""
    found: set[int] = set()
    for thread in Path("/proc/self/task").iterdir():
        try:
            found.update(map(int, (thread / "children").read_text().split()))
        except OSError:  # the thread has ended, or this kernel does not tell
            continue
    return found


def await_standby(known: set[int | None], timeout_s: float) -> None:
    """Wait until a child that is not known has started and come to rest: the writer's standby.

    Returns after the timeout without one. Nothing that is measured depends on it but by its start, which
    takes a third of a second of a processor, two seconds after the writer's.
    """
    deadline = time.monotonic() + timeout_s
    before: dict[int, float] = {}
    while time.monotonic() < deadline:
        now = {pid: _cpu_s(pid) for pid in _children() - known}
        if any(cpu_s > _START_CPU_S and before.get(pid) == cpu_s for pid, cpu_s in now.items()):
            return
        before = now
        time.sleep(_REST_S)


class Companion:
    """A process that a run hands its data to: it says that it is ready, and in the end what it needed.

    Blocks until it is ready.

    Parameters
    ----------
    target
        What it does: called with ``arguments`` and its end of a pipe, through which it speaks.
    arguments
        What can be pickled.

    Raises
    ------
    BrokenError
        It ended, or was not ready in a minute.
    """

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=target, args=(*arguments, theirs), daemon=True)
        with deaf_to_interrupts():
            self._process.start()
        theirs.close()
        try:
            if not self._pipe.poll(_READY_S):
                raise BrokenError(f"the process that writes was not ready in {_READY_S:g} s")
            self.answer()
        except BrokenError:
            self.end()
            raise

    def check(self) -> None:
        """Raise `BrokenError` if it has ended."""
        if not self._process.is_alive():
            raise BrokenError("the process that writes ended too early: see what it said above")

    def answer(self) -> Any:
        """Wait for what it says next; raise `BrokenError` if it ends without a word."""
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            raise BrokenError("the process that writes ended too early: see what it said above") from None

    def end(self) -> None:
        """Wait for its end, or kill it."""
        self._pipe.close()
        self._process.join(1.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Have processes that are started within never hear Ctrl-C: it is for their owner, who ends them."""
    resource_tracker.ensure_running()  # which clears the mask when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ended_children_cpu_s() -> float:
    """Processor seconds of this process's children that have ended and been waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _cpu_s(pid: int) -> float:
    """Processor seconds of a process; 0 once it has ended."""
    try:
        # The clock of another process, as clock_getcpuclockid(3) of the C library spells it.
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0
