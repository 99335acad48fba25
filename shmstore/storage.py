"""The storage: owns a recording, has its writer supervised, hands out producers, checks the account."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shmstore.aftermath import await_recovery, recover_left_behind
from shmstore.client import Client
from shmstore.config import StorageConfig
from shmstore.control import Message
from shmstore.errors import ClosedError, IncompleteFileError, ShmStoreError, storage_error
from shmstore.session import Session, State
from shmstore.stats import StorageStats
from shmstore.steps import step
from shmstore.supervisor import Restart, Supervisor


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
        self._supervisor: Supervisor | None = None
        self._client: Client | None = None
        self._path: Path | None = None
        self._state = "new"
        self._final: StorageStats | None = None
        self._finalizer: weakref.finalize[Any, HDF5Storage] | None = None
        self._recovery: subprocess.Popen[bytes] | None = None

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
            step("owner.session_made")
            supervisor = None
            try:
                supervisor = Supervisor(session, self._config)
                self._path = supervisor.start()
                self._client = Client(session.folder)
            except BaseException:
                if supervisor is not None:
                    supervisor.stop(ask=True)
                session.remove()
                session.close()
                raise
            self._session, self._supervisor = session, supervisor
            self._state = "recording"
            # Whoever forgets close() still gets a finished file, before the interpreter is gone.
            self._finalizer = weakref.finalize(self, supervisor.finish)
            if self._config.recover_at_start:
                self._recovery = recover_left_behind(self._config.output_dir, self._config.shm_dir)
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
            The recording is broken. What was committed before is in the file, and everything else that was
            accepted stays in shared memory: the message says how to have it in the file.
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
            self._session.ending = how  # said first: a writer that dies over it is replaced by one that knows
            step("owner.ending_noted")
            failure: Exception | None = None
            report: Message = {}
            try:
                report = self._client.end(how, self._config.close_timeout_s if timeout is None else timeout)
            except TimeoutError:
                raise
            except ShmStoreError as error:
                # An earlier close() may have run out of patience; what the writer had to say then is kept.
                if self._session.state == State.CLOSED:
                    report = self._session.report or {}
                else:
                    failure = error
            if failure is not None:
                self._take_down()
                self._state = "broken"
                raise failure
            step("owner.close_answered")
            self._final = self._client.counted(report["stats"])
            self._state = report["state"]
            self._take_down()
            if self._state == "partial":
                problems = report["problems"]
                more = (
                    f" (and {len(problems) - 1} more, see the file's accounting)" if len(problems) > 1 else ""
                )
                raise IncompleteFileError(f"{self._path} is incomplete: {problems[0]}{more}")

    def _take_down(self) -> None:
        """Let go of everything that was started; nothing in here waits for the writer's goodwill."""
        client, self._client = self._client, None
        session, self._session = self._session, None
        if self._finalizer is not None:
            self._finalizer.detach()
        if client is not None:
            client.close()
        if session is not None:
            if self._supervisor is not None:
                self._supervisor.stop(ask=session.state != State.CLOSED)
            step("owner.writer_gone")
            # What did not get into the file is in there, and nowhere else.
            if session.state == State.CLOSED:
                session.remove()
                step("owner.session_removed")
            session.close()
        await_recovery(self._recovery, self._config.close_timeout_s)

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
    def restarts(self) -> tuple[Restart, ...]:
        """When and why the writer was replaced, the last thousand times."""
        return self._supervisor.restarts if self._supervisor is not None else ()

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
