"""The storage: owns a recording, starts its writer process, hands out producers, checks the account.

The writer is started as a fresh interpreter, never forked and never spawned through `multiprocessing`: so the
owner may be a script without a ``__main__`` guard, a REPL, a notebook, a thread or a daemon, under any start
method.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shmstore._version import __version__
from shmstore.client import Client
from shmstore.config import StorageConfig
from shmstore.control import Message, raise_error
from shmstore.errors import BrokenError, ClosedError, IncompleteFileError, ShmStoreError, storage_error
from shmstore.session import Session, State
from shmstore.stats import StorageStats

_START_TIMEOUT_S = 60.0
_EXIT_TIMEOUT_S = 10.0
# -P keeps the working directory off sys.path: a stray numpy.py in a data folder must not be imported.
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from shmstore.boot import main; main()"


class HDF5Storage:
    """One recording: producers in, one HDF5 file out. A context manager; or ``start()`` and ``close()``.

    Parameters
    ----------
    config
        The configuration; by default ``StorageConfig.load()``: environment, ``shmstore.toml``, defaults.
    **overrides
        Fields of `StorageConfig`, above everything else.

    Examples
    --------
    >>> import pyarrow as pa, tempfile
    >>> with HDF5Storage(output_dir=tempfile.mkdtemp()) as storage:
    ...     sequence = storage.write_batch("probe", pa.record_batch({"volts": [1.5, 2.5]}))
    >>> storage.state, storage.final_stats.rows_written
    ('complete', 2)
    """

    def __init__(self, config: StorageConfig | None = None, **overrides: Any) -> None:
        self._config = config.replace(**overrides) if config is not None else StorageConfig.load(**overrides)
        self._lock = threading.RLock()
        self._session: Session | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None
        self._path: Path | None = None
        self._state = "new"
        self._final: StorageStats | None = None
        self._finalizer: weakref.finalize[Any, HDF5Storage] | None = None

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start the writer and make the file; returns when producers can be made. About 0.5 s.

        Raises
        ------
        StorageError
            The output folder cannot be written to, the file exists, or shared memory is too small.
        ConfigError
            The session's name is in use.
        BrokenError
            The writer did not come up.
        """
        with self._lock:
            if self._state != "new":
                raise ClosedError("a storage records once: make a new HDF5Storage for the next file")
            try:
                self._config.output_dir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise storage_error(error, "make the output folder", self._config.output_dir) from None
            session = Session.create(self._config.shm_dir, self._config.name)
            try:
                self._process, self._path = _start_writer(session, self._config)
                self._client = Client(session.folder)
            except BaseException:
                _end_process(self._process)
                session.remove()
                session.close()
                raise
            self._session = session
            self._state = "recording"
            threading.Thread(
                target=_watch_writer, args=(self._process, session), name="shmstore-watch", daemon=True
            ).start()
            # Whoever forgets close() still gets a finished file, before the interpreter is gone.
            self._finalizer = weakref.finalize(self, _finish_forgotten, self._process, session)
            return self

    def close(self, timeout: float | None = None) -> None:
        """Drain, finish the file, check the account. May be called twice.

        Parameters
        ----------
        timeout
            Longest wait in seconds; ``close_timeout_s`` by default.

        Raises
        ------
        IncompleteFileError
            Rows were lost or kept aside; the message says which, and the file says ``partial``.
        BrokenError, StorageError
            The writer failed; what was committed before is in the file.
        TimeoutError
            It took longer; the writer goes on until it has finished, and close() may be called again.
        """
        self._end("close", timeout)

    def abort(self) -> None:
        """End at once: what is not yet in the file is dropped, and the file says ``aborted``."""
        self._end("abort", None)

    def _end(self, how: str, timeout: float | None) -> None:
        with self._lock:
            if self._state == "new":
                self._state = "closed"
            if self._client is None or self._session is None:
                return
            failure: Exception | None = None
            report: Message = {}
            try:
                report = self._client.end(how, self._config.close_timeout_s if timeout is None else timeout)
            except TimeoutError:
                raise
            except ShmStoreError as error:
                # An earlier close() may have run out of patience; what the writer had to say then is kept.
                if self._session.state == State.CLOSED:
                    report = json.loads(self._session.report_path.read_text())
                else:
                    failure = error
            self._take_down(killed=failure is not None)
            if failure is not None:
                self._state = "broken"
                raise failure
            self._state = report["state"]
            self._final = StorageStats.from_dict(report["stats"])
            if self._state == "partial":
                problems = report["problems"]
                more = (
                    f" (and {len(problems) - 1} more, see the file's accounting)" if len(problems) > 1 else ""
                )
                raise IncompleteFileError(f"{self._path} is incomplete: {problems[0]}{more}")

    def _take_down(self, *, killed: bool) -> None:
        """Let go of everything that was started; nothing in here waits for the writer's goodwill."""
        client, self._client = self._client, None
        session, self._session = self._session, None
        if self._finalizer is not None:
            self._finalizer.detach()
        if client is not None:
            client.close()
        if killed and self._process is not None and self._process.poll() is None:
            self._process.terminate()
        _end_process(self._process)
        if session is not None:
            session.remove()
            session.close()

    # -- what the recording offers ---------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The HDF5 file."""
        if self._path is None:
            raise ClosedError("the storage was not started: call start() or use it in a with block")
        return self._path

    @property
    def name(self) -> str:
        """What `connect` takes in another process."""
        return self._running().name

    @property
    def state(self) -> str:
        """``"new"``, ``"recording"``, ``"broken"``, ``"complete"``, ``"partial"`` or ``"aborted"``."""
        if self._session is not None and self._session.state == State.BROKEN:
            return "broken"
        return self._state

    @property
    def writer_pid(self) -> int:
        """The writer process: for pinning, priorities and profilers."""
        return self._running().writer_pid

    @property
    def config(self) -> StorageConfig:
        """The configuration in force."""
        return self._config

    @property
    def final_stats(self) -> StorageStats:
        """The counts at the end, once closed."""
        if self._final is None:
            raise ClosedError("the storage has no final counts: it was not closed, or failed")
        return self._final

    def producer(self, instrument_id: str, schema: Any = None, **instrument_options: Any) -> Any:
        """Make a producer; see `Client.producer`."""
        return self._running().producer(instrument_id, schema, **instrument_options)

    def write_batch(self, instrument_id: str, batch: Any, timeout: float | None = None) -> int | None:
        """Record a batch without holding a producer; see `Client.write_batch`."""
        return self._running().write_batch(instrument_id, batch, timeout)

    def set_metadata(self, key: str, value: Any) -> None:
        """Set session metadata; see `Client.set_metadata`."""
        self._running().set_metadata(key, value)

    def set_instrument_metadata(self, instrument_id: str, key: str, value: Any) -> None:
        """Set metadata of an instrument; see `Client.set_instrument_metadata`."""
        self._running().set_instrument_metadata(instrument_id, key, value)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything accepted so far is in the file and on the disk; see `Client.flush`."""
        self._running().flush(timeout)

    def stats(self) -> StorageStats:
        """Return the counts now, or the final ones once closed."""
        return self._final if self._final is not None else self._running().stats()

    def _running(self) -> Client:
        client = self._client
        if client is None:
            word = (
                "was not started: call start() or use it in a with block"
                if self._state == "new"
                else "was closed"
            )
            raise ClosedError(f"the storage {word}")
        return client

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an exception too, since what was accepted must be in the file."""
        if kind is None:
            self.close()
            return
        with contextlib.suppress(ShmStoreError, TimeoutError):  # the block's own exception is the one to see
            self.close()

    def __repr__(self) -> str:
        return f"<HDF5Storage {self._path or 'not started'}: {self.state}>"


def _start_writer(session: Session, config: StorageConfig) -> tuple[subprocess.Popen[bytes], Path]:
    """Start the writer process and wait until it has made the file."""
    if not sys.executable:
        raise BrokenError(
            "this interpreter does not know its own executable: set sys.executable to start the writer"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        try:
            listener.bind(os.fspath(session.control_path))
        except OSError as error:
            raise storage_error(error, "open the control socket", session.control_path) from None
        listener.listen(64)
        ready, ready_writer = os.pipe()
        path = json.dumps([entry or str(Path.cwd()) for entry in sys.path])
        with os.fdopen(ready, "rb") as answer:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _BOOT, path],
                    stdin=subprocess.PIPE,
                    pass_fds=(listener.fileno(), ready_writer),
                    start_new_session=True,  # a Ctrl-C in the owner's terminal is for the owner
                )
            finally:
                os.close(ready_writer)
            boot = {
                "session": os.fspath(session.folder),
                "config": config.to_dict(),
                "application": f"shmstore {__version__}",
                "owner_pid": os.getpid(),
                "listener_fd": listener.fileno(),
                "ready_fd": ready_writer,
            }
            try:
                if process.stdin is not None:
                    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                        pipe.write(json.dumps(boot).encode())
                reply = _await_answer(answer.fileno(), process)
            except BaseException:
                process.kill()
                _end_process(process)
                raise
    if "error" in reply:
        _end_process(process)
        raise_error(**{{"error": "kind"}.get(key, key): value for key, value in reply.items()})
    return process, Path(reply["path"])


def _await_answer(fd: int, process: subprocess.Popen[bytes]) -> Message:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    data = b""
    while True:
        if not poll.poll(_START_TIMEOUT_S * 1000):
            raise BrokenError(f"the writer did not come up within {_START_TIMEOUT_S:.0f} s")
        part = os.read(fd, 1 << 16)
        if not part:
            break
        data += part
    if not data:
        code = process.wait(_EXIT_TIMEOUT_S)
        raise BrokenError(
            f"the writer ended with exit code {code} before it came up: see its message on standard error"
        )
    message: Message = json.loads(data)
    return message


def _watch_writer(process: subprocess.Popen[bytes], session: Session) -> None:
    """Wait for the writer's exit; one that nobody asked for is latched, so that the next `put` raises it."""
    code = process.wait()
    with contextlib.suppress(ValueError):  # the session was closed meanwhile: the exit was asked for
        if session.state < State.CLOSED:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            session.fail("BrokenError", f"the writer process {how}; what was committed before is in the file")


def _finish_forgotten(process: subprocess.Popen[bytes], session: Session) -> None:
    """End a recording that nobody closed: ask the writer to drain and finish, and clear up."""
    if session.owner_pid != os.getpid():  # a child that was forked meanwhile leaves its parent's alone
        return
    if process.poll() is None:
        process.terminate()
    _end_process(process)
    session.remove()


def _end_process(process: subprocess.Popen[bytes] | None) -> None:
    """Wait for the writer to exit; it has been told to. Kill it when it does not."""
    if process is None or process.poll() is not None:
        return
    # Popen.wait() with a timeout looks every 50 ms; the kernel tells at once.
    with contextlib.suppress(ProcessLookupError):  # the watching thread has seen it end already
        exited = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            poll.register(exited, select.POLLIN)
            if not poll.poll(_EXIT_TIMEOUT_S * 1000):
                process.kill()
        finally:
            os.close(exited)
    process.wait()
