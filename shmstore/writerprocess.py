"""The writer's process, seen by its owner: started, given its boot document, listened to, ended.

It is a fresh interpreter, never forked and never spawned through `multiprocessing`: so the owner may be a
script without a ``__main__`` guard, a REPL, a notebook, a thread or a daemon, under any start method. It
loads all of the writer's modules, then waits for one line on its standard input. Until then it is a standby.
When it is replaced, and why, is not known here; the other half is in `shmstore.boot`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from shmstore.control import Message
from shmstore.errors import BrokenError

# -P keeps the working directory off sys.path: a stray numpy.py in a data folder must not be imported.
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from shmstore.boot import main; main()"


class WriterProcess:
    """One process that is the writer, or stands by to become it.

    Parameters
    ----------
    listener
        The control socket, listening; it stays the caller's.
    paths
        The process's ``sys.path``.

    Attributes
    ----------
    exit_fd : int
        Readable once the process has ended (a pidfd).
    ready_fd : int
        Readable once the writer has answered its boot document, or has ended without.
    answered : bool
        Whether :meth:`answer` has brought a good answer.

    Raises
    ------
    BrokenError, OSError
        It cannot be started.
    """

    def __init__(self, listener: socket.socket, paths: Sequence[str]) -> None:
        if not sys.executable:
            raise BrokenError(
                "this interpreter does not know its own executable: set sys.executable to start the writer"
            )
        self.answered = False
        self.ready_fd, ready_writer = os.pipe()
        self._descriptors = {"listener_fd": listener.fileno(), "ready_fd": ready_writer}
        # A Ctrl-C in the owner's terminal is for the owner. The new session is a moment late for one that
        # comes just now; blocked, it waits until the writer ignores it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # may raise what came just before
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, json.dumps(list(paths)), str(os.getpid())],
                stdin=subprocess.PIPE,
                pass_fds=tuple(self._descriptors.values()),
                start_new_session=True,
            )
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)  # raises what came for the owner meanwhile
                self.exit_fd = os.pidfd_open(self._process.pid)
            except BaseException:
                with self._process:  # waits for it, and closes its pipe
                    self._process.kill()
                raise
        except BaseException:
            os.close(self.ready_fd)
            raise
        finally:
            os.close(ready_writer)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._is_open = True

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    @property
    def how_it_ended(self) -> str:
        """What the kernel says of its end, as in "was killed by signal 9"; waits for it."""
        code = self._process.wait()
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

    @property
    def processor_ns(self) -> int:
        """Time that it has had on a processor, as of all its threads."""
        try:
            # The clock of another process, as clock_getcpuclockid(3) of the C library spells it.
            return time.clock_gettime_ns((~self.pid << 3) | 2)
        except OSError:  # where it cannot be told, nobody is to be blamed
            return time.monotonic_ns()

    @property
    def kernel_state(self) -> str:
        """What the kernel says of its main thread, a letter: see proc_pid_stat(5); empty if it does not."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b") ")[2][:1].decode()
        except OSError:
            return ""

    def begin(self, document: Message, timeout_s: float) -> None:
        """Give it its boot document: from now on it is the writer.

        One that has ended meanwhile is not noticed here, but by ``exit_fd``.

        Raises
        ------
        BrokenError
            It does not read within the timeout.
        """
        # One line: its end must not depend on the pipe's, which a forked child of the owner may hold open.
        data = json.dumps(document | self._descriptors).encode() + b"\n"
        pipe = self._process.stdin
        if pipe is None:
            return
        fd = pipe.fileno()
        os.set_blocking(fd, False)
        deadline = time.monotonic() + timeout_s
        try:
            while data:
                if not select.select([], [fd], [], max(0.0, deadline - time.monotonic()))[1]:
                    raise BrokenError(f"the writer did not come up within {timeout_s:.0f} s")
                data = data[os.write(fd, data) :]
        except BrokenPipeError:
            pass
        finally:
            pipe.close()

    def answer(self) -> Message:
        """Return its answer to the boot document, once ``ready_fd`` is readable; empty: it ended without."""
        data = os.read(self.ready_fd, 1 << 16)
        message: Message = json.loads(data) if data else {}
        self.answered = bool(message) and "error" not in message
        return message

    def await_answer(
        self, timeout_s: float, look: Callable[[], str] = lambda: "", look_s: float = 1.0
    ) -> Message:
        """Wait for its answer to the boot document.

        Parameters
        ----------
        timeout_s
            Longest wait.
        look
            Called every so often, says why there is no use in waiting on; empty: there is.
        look_s
            How often, in seconds.

        Raises
        ------
        BrokenError
            It ended without, is silent, or there is no use in waiting.
        """
        poll = select.poll()
        poll.register(self.ready_fd, select.POLLIN)
        deadline = time.monotonic() + timeout_s
        while not poll.poll(min(look_s, timeout_s) * 1000):
            if why := look():
                raise BrokenError(f"the writer {why}")
            if time.monotonic() > deadline:
                raise BrokenError(f"the writer did not come up within {timeout_s:.0f} s")
        if message := self.answer():
            return message
        raise BrokenError(
            f"the writer {self.how_it_ended} before it came up: see its message on standard error"
        )

    def terminate(self) -> None:
        """Ask a writer to finish the recording and end."""
        self._process.terminate()

    def kill(self) -> None:
        """Kill it, at whatever it is."""
        self._process.kill()

    def end(self, timeout_s: float) -> None:
        """Wait for its exit, kill it when that takes longer, and let go of it. May be called twice."""
        if not self._is_open:
            return
        self._is_open = False
        # Popen.wait() with a timeout looks every 50 ms; the kernel tells at once.
        poll = select.poll()
        poll.register(self.exit_fd, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        os.close(self.exit_fd)
        os.close(self.ready_fd)

    def __repr__(self) -> str:
        return f"<WriterProcess {self.pid}: {'ended' if self.ended else 'running'}>"
