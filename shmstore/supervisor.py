"""The supervisor: keeps a writer running as long as its owner lives, whatever ends the one before.

It owns the control socket, which stays open all along (who asks something meanwhile waits in its backlog),
the writer's process, a standby that can take its place within milliseconds, and the thread that watches
them. That a writer has ended is heard from the kernel; that one hangs, from its own heartbeat in the
session's page.

It judges and replaces. What a replacement does with what the dead writer left is not known here: it is told
in its boot document that it resumes, which ending was asked for, how many died before it, and over what.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

from shmstore._version import __version__
from shmstore.config import StorageConfig
from shmstore.control import Message, raise_error
from shmstore.errors import ShmStoreError, StorageError, storage_error
from shmstore.session import Session, State
from shmstore.steps import step
from shmstore.writerprocess import WriterProcess

log = logging.getLogger("shmstore.supervisor")

_START_TIMEOUT_S = 60.0
_EXIT_TIMEOUT_S = 10.0
#: Time between two looks at the heartbeat. One look counts for at most `_LONGEST_LOOK_S`: an owner that was
#: stopped itself, in the debugger or with its container, has not seen what the writer did.
_LOOK_S, _LONGEST_LOOK_S = 0.05, 0.25
#: How long the loop of an idle writer may sleep: no sign of a hang.
_LONGEST_SLEEP_S = 0.5
#: A standby is started this long after a writer is ready: its imports take a core for half a second.
_STANDBY_DELAY_S = 2.0
#: Before a writer is replaced whose predecessors died too: doubled each time, up to the last.
_DEATH_DELAYS_S = (0.1, 2.0)
_DISK_DELAYS_S = (0.1, 1.0)
_KEPT_RESTARTS = 1000
_LONGEST_REASON = 500

Reason = tuple[str, str, int | None]


class Restart(NamedTuple):
    """One replacement of the writer.

    Attributes
    ----------
    time : float
        When, in seconds since the epoch.
    reason : str
        What ended the one before, as in ``"was killed by signal 9"``.
    """

    time: float
    reason: str


class Supervisor:
    """Starts the writer, and replaces it when it dies or hangs.

    Parameters
    ----------
    session
        The recording's session, made by this process; it stays the caller's.
    config
        The recording's configuration.

    Raises
    ------
    StorageError
        The control socket cannot be opened.
    """

    def __init__(self, session: Session, config: StorageConfig) -> None:
        self._session = session
        self._config = config
        # As they are now: the program may change its working directory before a writer is replaced.
        self._paths = [str(Path(entry).absolute()) for entry in sys.path]
        self._listener = _listen(session.control_path)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._writer: WriterProcess | None = None
        self._standby: WriterProcess | None = None
        self._standby_at = 0.0
        self._thread = threading.Thread(target=self._run, name="shmstore-supervisor", daemon=True)
        self._restarts: deque[Restart] = deque(maxlen=_KEPT_RESTARTS)
        self._stopping = self._forgotten = False
        # How it went since the last commit.
        self._deaths = self._disk_failures = 0
        self._first_disk_failure = 0.0
        self._commits = 0
        self._culprit: tuple[int, int] | None = None
        self._deaths_at_culprit = 0

    @property
    def restarts(self) -> tuple[Restart, ...]:
        """The replacements so far, the last thousand of them."""
        return tuple(self._restarts)

    @property
    def standby_pid(self) -> int | None:
        """Process that stands by; ``None`` if none does now."""
        standby = self._standby
        return None if standby is None else standby.pid

    # -- the owner's side ------------------------------------------------------------------------------------

    def start(self) -> Path:
        """Start the first writer, and watch over it from then on; return the path of the file it has made.

        Raises
        ------
        BrokenError
            The writer did not come up.
        ShmStoreError
            What it answered.
        """
        try:
            self._writer = WriterProcess(self._listener, self._paths)
            step("owner.writer_started")
            self._writer.begin(self._document(resume=False), _START_TIMEOUT_S)
            step("owner.writer_booted")
            pulse = _Pulse(self._session, self._writer, self._config.writer_hang_s)
            reply = self._writer.await_answer(_START_TIMEOUT_S, pulse.look, _LOOK_S)
            step("owner.writer_answered")
            if "error" in reply:
                raise_error(reply["error"], reply["message"], reply.get("errno"), reply.get("filename"))
        except BaseException:
            self._let_go(patience_s=0.0)
            raise
        self._standby_at = time.monotonic() + _STANDBY_DELAY_S
        self._thread.start()
        return Path(reply["path"])

    def stop(self, *, ask: bool) -> None:
        """Watch no longer, wait until the writer has ended, kill it if it does not. May be called twice.

        Parameters
        ----------
        ask
            Whether it has yet to be asked to end.
        """
        self._stopping = True
        standby = self._standby
        if standby is not None and self._session.state == State.CLOSED:
            standby.kill()  # so that its end and the writer's, which take the kernel a while, take it once
        if self._thread.ident is not None:
            self._wake()
            self._thread.join()
        if ask and self._writer is not None and not self._writer.ended:
            self._writer.terminate()
        self._let_go(patience_s=_EXIT_TIMEOUT_S)

    def finish(self) -> None:
        """End a recording that nobody closed: have the writer drain and finish, and clear up.

        Waits up to ``close_timeout_s``; a writer that needs longer finishes by itself after its owner's end.
        """
        if (
            self._session.owner_pid != os.getpid()
        ):  # a child that was forked meanwhile leaves its parent's alone
            return
        self._session.ending = "close"
        self._forgotten = True
        self._wake()
        if threading.current_thread() is not self._thread:  # which may be where the storage was collected
            self._thread.join(self._config.close_timeout_s)

    def _wake(self) -> None:
        if self._wake_fd >= 0:  # or else there is nobody to wake any more
            os.eventfd_write(self._wake_fd, 1)

    def _let_go(self, patience_s: float) -> None:
        if self._writer is not None:
            self._writer.end(patience_s)
        self._end_standby()
        self._listener.close()
        wake_fd, self._wake_fd = self._wake_fd, -1
        if wake_fd >= 0:
            os.close(wake_fd)

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._supervise()
        except BaseException as error:
            log.exception("the supervisor of %s failed", self._session.name)
            self._session.fail(
                "BrokenError", f"the supervisor of the writer failed ({error!r}); {self._session.kept}"
            )
        if self._session.state == State.BROKEN:
            self._end_standby()
            self._listener.close()
        elif self._forgotten and self._session.state == State.CLOSED:
            self._let_go(patience_s=_EXIT_TIMEOUT_S)
            self._session.remove()
            self._session.close()

    def _supervise(self) -> None:
        """Replace writer after writer, until one has closed the recording, or there is no hope."""
        how = self._watch()
        while how is not None and self._session.state != State.CLOSED:
            step("owner.death_noticed")
            reason = self._take_note(how)
            if hopeless := self._lose_hope(reason):
                kind = reason[0] if reason[0] == "StorageError" else "BrokenError"
                text = f"the writer {reason[1]}, and {hopeless}; {self._session.kept}"
                if self._config.spill_dir is not None:
                    text += f", or with `--shm-dir {self._config.spill_dir}`, where a copy of it is"
                # First of all: what a producer seals from here on it is told to be refused.
                self._session.fail(kind, text, reason[2])
                self._spill()
                return
            if not self._rest(self._delay_s(reason)):
                return
            how = self._replace(reason[1]) or self._watch()

    def _watch(self) -> str | None:
        """Wait until the writer has ended, and return how; ``None``: this is to stop. Kill one that hangs."""
        writer = self._writer
        if writer is None:
            return None
        poll = select.poll()
        for fd in (writer.exit_fd, self._wake_fd, *(() if writer.answered else (writer.ready_fd,))):
            poll.register(fd, select.POLLIN)
        pulse = _Pulse(self._session, writer, self._config.writer_hang_s)
        hung = refused = ""
        asked = False
        while True:
            ready = [fd for fd, _ in poll.poll(_LOOK_S * 1000)]
            if self._wake_fd in ready:
                os.eventfd_read(self._wake_fd)
            if self._stopping:
                return None
            if not writer.answered and writer.ready_fd in ready:
                refused = str(writer.answer().get("message", ""))
                poll.unregister(writer.ready_fd)
                self._standby_at = time.monotonic() + _STANDBY_DELAY_S
            if writer.exit_fd in ready:
                return hung or (f"failed: {refused}" if refused else writer.how_it_ended)
            if self._forgotten and writer.answered and not asked:
                writer.terminate()
                asked = True
            if not hung and (hung := pulse.look()):
                writer.kill()
            self._keep_standby(time.monotonic())

    def _take_note(self, how: str) -> Reason:
        """Count the death of the writer, and return why it died."""
        session, writer = self._session, self._writer
        # What the page says is of the last process that became the writer, which need not be this one.
        its_own = writer is not None and session.writer_pid == writer.pid
        reason = (session.reason() if its_own else None) or ("BrokenError", how, None)
        # Whatever slot it was at is not to blame for the disk.
        culprit = session.taking if its_own and not _is_of_the_disk(reason) else None
        commits = session.commits
        again = culprit is not None and culprit == self._culprit
        if commits != self._commits and not again:
            self._deaths = self._disk_failures = 0
        self._deaths_at_culprit = self._deaths_at_culprit + 1 if again else int(culprit is not None)
        self._commits, self._culprit = commits, culprit
        if _is_of_the_disk(reason):
            if not self._disk_failures:
                self._first_disk_failure = time.monotonic()
            self._disk_failures += 1
        else:
            self._deaths += 1
        return reason[0], reason[1][:_LONGEST_REASON], reason[2]

    def _lose_hope(self, reason: Reason) -> str:
        """Return why the writer is not replaced any more; empty if it is."""
        if not self._config.recoverable:
            return "is not replaced, since recoverable is off"
        if not _is_of_the_disk(reason):
            limit = self._config.writer_deaths
            again = f" after {self._deaths} deaths in a row" if self._deaths > 1 else ""
            return f"is not replaced{again}" if self._deaths > limit else ""
        patience_s = self._config.disk_patience_s
        if patience_s is None or time.monotonic() - self._first_disk_failure < patience_s:
            return ""
        return f"the disk was given {patience_s:g} s"

    def _spill(self) -> None:
        """Bring what is in shared memory to another disk, if one is configured."""
        if self._config.spill_dir is None:
            return
        try:
            log.warning("what was accepted is copied to %s", self._session.spill(self._config.spill_dir))
        except StorageError as error:
            log.error("what was accepted is in shared memory only: %s", error)

    def _delay_s(self, reason: Reason) -> float:
        if _is_of_the_disk(reason):
            return _doubled(_DISK_DELAYS_S, self._disk_failures - 1)
        return _doubled(_DEATH_DELAYS_S, self._deaths - 2) if self._deaths > 1 else 0.0

    def _rest(self, seconds: float) -> bool:
        """Wait; false if this is to stop."""
        deadline = time.monotonic() + seconds
        while not self._stopping and (left := deadline - time.monotonic()) > 0:
            if select.select([self._wake_fd], [], [], left)[0]:
                os.eventfd_read(self._wake_fd)
        return not self._stopping

    def _replace(self, reason: str) -> str:
        """Have the standby, or a new process, take the writer's place; return why it cannot, if so."""
        dead, self._writer = self._writer, None
        pid = 0
        if dead is not None:
            pid = dead.pid
            dead.end(_EXIT_TIMEOUT_S)
        log.warning("the writer of %s (process %d) %s: it is replaced", self._session.name, pid, reason)
        self._restarts.append(Restart(time.time(), reason))
        self._session.count_restart(reason)
        step("owner.restart_counted")
        writer, self._standby = self._standby, None
        if writer is not None and writer.ended:
            writer.end(0.0)
            writer = None
        try:
            self._writer = writer or WriterProcess(self._listener, self._paths)
            self._writer.begin(self._document(resume=True), _START_TIMEOUT_S)
            step("owner.replacement_begun")
        except (OSError, RuntimeError, ShmStoreError) as error:
            if self._writer is not None:
                self._writer.end(0.0)
            return f"could not be started: {error}"
        return ""

    def _document(self, *, resume: bool) -> Message:
        """Return a writer's boot document; `WriterProcess` adds the descriptors that it hands over."""
        session = self._session
        document: Message = {
            "session": os.fspath(session.folder),
            "config": self._config.to_dict(),
            "application": f"shmstore {__version__}",
            "owner_pid": os.getpid(),
            "resume": resume,
        }
        if resume:
            # A writer that was told to finish by a signal has said so in the state alone.
            ending = session.ending or ("close" if session.state == State.CLOSING else "")
            culprit = self._culprit
            document |= {
                "ending": ending,
                "suspect": {
                    "deaths": self._deaths,
                    "ring": -1 if culprit is None else culprit[0],
                    "sequence": -1 if culprit is None else culprit[1],
                    "deaths_at_it": self._deaths_at_culprit,
                },
            }
        return document

    # -- the standby -----------------------------------------------------------------------------------------

    def _keep_standby(self, now: float) -> None:
        """Start a standby when it is due."""
        writer = self._writer
        if (
            not (self._config.standby and self._config.recoverable)
            or self._standby is not None
            or now < self._standby_at
            or writer is None
            or not writer.answered
            or self._session.state != State.RECORDING
        ):
            return
        try:
            self._standby = WriterProcess(self._listener, self._paths)
            step("owner.standby_started")
        except (OSError, RuntimeError) as error:
            log.warning("no standby for the writer of %s: %s", self._session.name, error)
            self._standby_at = now + _START_TIMEOUT_S

    def _end_standby(self) -> None:
        standby, self._standby = self._standby, None
        if standby is not None:
            standby.end(0.0)


class _Pulse:
    """Tells whether a writer hangs, from one look to the next.

    Its loop beats. Before it has one, what counts is whether the kernel gives it time, or has it wait for
    its turn or for the disk: imports may be slow. And while it says that it waits for the disk it has not
    hung, unless it was stopped.

    Parameters
    ----------
    session
        Where it beats.
    writer
        Its process.
    limit_s
        How long it may be still; ``None``: for ever.
    """

    def __init__(self, session: Session, writer: WriterProcess, limit_s: float | None) -> None:
        self._session = session
        self._writer = writer
        self._limit_s = limit_s
        self._beat = session.heartbeat
        self._processor_ns = writer.processor_ns
        self._looked = time.monotonic()
        self._still_s = self._silent_s = 0.0  # without any sign of life; without a beat

    def look(self) -> str:
        """Return how it hangs, in words; empty if it does not."""
        session, writer, now = self._session, self._writer, time.monotonic()
        passed_s = min(now - self._looked, _LONGEST_LOOK_S)
        self._looked = now
        if session.heartbeat != self._beat or session.state == State.CLOSED or self._is_at_disk():
            self._beat = session.heartbeat
            self._still_s = self._silent_s = 0.0
        else:
            self._still_s += passed_s
            self._silent_s += passed_s
        starting = not writer.answered
        if starting and self._is_working():
            self._still_s = 0.0
        if self._limit_s is None:
            return ""
        if self._still_s > self._limit_s + _LONGEST_SLEEP_S:
            return f"did not move for {self._limit_s:g} s" + (" while it started" if starting else "")
        longest_s = max(self._limit_s, _START_TIMEOUT_S)
        return f"did not come up within {longest_s:g} s" if starting and self._silent_s > longest_s else ""

    def _is_at_disk(self) -> bool:
        session, writer = self._session, self._writer
        # The page may still say so of a writer that was killed there.
        waits = session.is_at_disk and session.writer_pid == writer.pid
        return waits and writer.kernel_state not in ("T", "t")

    def _is_working(self) -> bool:
        before, self._processor_ns = self._processor_ns, self._writer.processor_ns
        return self._processor_ns != before or self._writer.kernel_state in ("R", "D")


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(os.fspath(path))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise storage_error(error, "open the control socket", path) from None
    return listener


def _is_of_the_disk(reason: Reason) -> bool:
    """Whether the machine refused: that may pass, and says nothing of what was written."""
    return reason[0] == "StorageError"


def _doubled(delays_s: tuple[float, float], times: int) -> float:
    """Return a delay after so many doublings.

    Examples
    --------
    >>> [_doubled((0.1, 2.0), times) for times in (0, 1, 2, 100)]
    [0.1, 0.2, 0.4, 2.0]
    """
    first, last = delays_s
    return float(min(last, first * 2 ** min(times, 30)))
