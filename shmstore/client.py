"""The client: what any process may ask of a running recording, relative of the owner or not."""

from __future__ import annotations

import base64
import contextlib
import os
import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from shmstore.config import StorageConfig
from shmstore.control import ControlConnection, Message
from shmstore.errors import ClosedError, InvalidValueError, ShmStoreError
from shmstore.planning import plan
from shmstore.producer import Producer
from shmstore.queue import DescriptorQueue
from shmstore.ring import Ring
from shmstore.session import Session, session_folder
from shmstore.stats import StorageStats
from shmstore.steps import step

_FLUSH_TIMEOUT_S = 60.0


class Client:
    """A connection to a running recording: producers, metadata, flush, stats. Made by :func:`connect`.

    May be used from several threads. After a fork the child gets a connection of its own. Requests outlive
    the writer: while it is being replaced, they wait for the next one.

    Attributes
    ----------
    name : str
        Name of the recording's session.
    path : Path
        The HDF5 file being written.
    """

    def __init__(self, folder: Path) -> None:
        self._session = Session.attach(folder)
        self._lock = threading.Lock()
        self._connection: tuple[int, ControlConnection] | None = None
        self._writers: dict[str, Producer] = {}
        self._producers: weakref.WeakSet[Producer] = weakref.WeakSet()
        self._is_open = True
        try:
            described = self._request("describe")
        except BaseException:
            self.close()
            raise
        self.path = Path(described["path"])
        self._config = StorageConfig.from_dict(described["config"])

    @property
    def name(self) -> str:
        """Name of the recording's session."""
        return self._session.name

    @property
    def writer_pid(self) -> int:
        """Process that writes the file: for pinning, priorities and profilers."""
        return self._session.writer_pid

    @property
    def config(self) -> StorageConfig:
        """The recording's configuration."""
        return self._config

    # -- recording -------------------------------------------------------------------------------------------

    def producer(
        self, instrument_id: str, schema: pa.Schema | None = None, **instrument_options: Any
    ) -> Producer:
        """Make a producer for an instrument; the instrument's group appears in the file.

        Parameters
        ----------
        instrument_id
            Any text up to 4,096 bytes. Several producers may feed one instrument; rows of one producer keep
            their order.
        schema
            Schema of every batch, or anything with ``__arrow_c_schema__``; by default the first batch's.
        **instrument_options
            Fields of `InstrumentConfig`: ``compression``, ``chunk_rows``, ``ring_bytes``, ``on_full``,
            ``columns``, …

        Returns
        -------
        Producer
            Picklable: it can go to the process that will use it.

        Raises
        ------
        ConfigError
            An option is wrong, or another producer of the instrument was made with other ones.
        UnsupportedTypeError, SchemaMismatchError
            The schema cannot be recorded, or is not the instrument's.
        StorageError
            Shared memory is too small for the ring; the message says how to enlarge it.
        """
        if schema is not None and not isinstance(schema, pa.Schema):
            schema = pa.schema(schema)
        resolved = self._config.instrument(instrument_id, **instrument_options)
        if schema is not None:  # refused here, by what it is: serialized, some types turn into others
            plan(schema, lambda name: resolved.column(name).strings)
        options = {
            key: _plain_option(value) for key, value in instrument_options.items() if value is not None
        }
        number = int.from_bytes(os.urandom(4))
        ring = Ring.create(self._session.ring_path(number), resolved.ring_bytes, number)
        try:
            queue = DescriptorQueue.create(self._session.queue_path(number))
            queue.close()
            step("producer.ring_made")
            self._request("attach", ring=number, instrument=instrument_id, options=options)
            step("producer.ring_attached")
            schema_id = -1
            if schema is not None:
                serialized = base64.b64encode(schema.serialize()).decode()
                schema_id = int(self._request("declare", ring=number, schema=serialized)["schema_id"])
        except BaseException:
            with contextlib.suppress(ShmStoreError, TimeoutError):
                self._request("withdraw", ring=number)
            self._forget_ring(number)
            raise
        finally:
            ring.close()
        producer = Producer(self._session.folder, number, resolved, schema, schema_id)
        self._producers.add(producer)
        return producer

    def _forget_ring(self, number: int) -> None:
        """Take back a ring that came to nothing."""
        queue = self._session.queue_path(number)
        for path in (self._session.ring_path(number), queue, queue.with_name(queue.name + ".space")):
            path.unlink(missing_ok=True)

    def write_batch(self, instrument_id: str, batch: Any, timeout: float | None = None) -> int | None:
        """Record a batch without holding a producer; one is kept for each instrument.

        Parameters
        ----------
        instrument_id
            Where it goes.
        batch
            As for :meth:`Producer.put`: Arrow data, or a serialized Arrow IPC stream.
        timeout
            As for :meth:`Producer.put`.

        Returns
        -------
        int or None
            As for :meth:`Producer.put`.
        """
        with self._lock:
            self._check_open()
            producer = self._writers.get(instrument_id)
        if producer is None:
            made = self.producer(instrument_id)
            with self._lock:
                producer = self._writers.setdefault(instrument_id, made)
            if producer is not made:
                made.close()
        return producer.put(batch, timeout)

    def set_metadata(self, key: str, value: Any) -> None:
        """Set session metadata, found in the file under ``metadata``; at any time.

        Parameters
        ----------
        key
            Name of the attribute.
        value
            Text, numbers, booleans and flat lists of them are kept as HDF5 attributes; anything else that
            JSON can say is kept as JSON. Dates and times become ISO 8601 text, numpy values plain ones.

        Raises
        ------
        InvalidValueError
            The key or the value cannot be kept.
        """
        self._request("metadata", instrument=None, key=key, value=_plain(key, value))

    def set_instrument_metadata(self, instrument_id: str, key: str, value: Any) -> None:
        """Set metadata of an instrument, found as attributes of its group; the group is made if it is new."""
        self._request("metadata", instrument=instrument_id, key=key, value=_plain(key, value))

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything accepted so far is in the file, visible to readers, and on the disk (fsync).

        Parameters
        ----------
        timeout
            Longest wait in seconds; 60 by default.

        Raises
        ------
        TimeoutError
            It took longer; recording goes on.
        BrokenError, StorageError
            The writer failed.
        """
        self._request("flush", _FLUSH_TIMEOUT_S if timeout is None else timeout)

    def stats(self) -> StorageStats:
        """Return the recording's counts, by instrument and in total; asks the writer."""
        return self.counted(self._request("stats"))

    def counted(self, counts: Message) -> StorageStats:
        """Return the writer's counts, and beside them how often it was replaced."""
        return replace(
            StorageStats.from_dict(counts),
            writer_restarts=self._session.restarts,
            last_restart_reason=self._session.restart_reason,
        )

    def end(self, how: str, timeout_s: float | None) -> Message:
        """Have the writer ``"close"`` or ``"abort"``, and return its report; for the owner."""
        return self._request(how, timeout_s)

    # -- the connection --------------------------------------------------------------------------------------

    def _request(self, operation: str, timeout_s: float | None = 30.0, **arguments: Any) -> Message:
        self._check_open()
        with self._lock:
            if self._connection is None or self._connection[0] != os.getpid():
                connection = ControlConnection(self._session.control_path, check=self._session.check_attended)
                self._connection = (os.getpid(), connection)
            connection = self._connection[1]
        return connection.request(operation, timeout_s, **arguments)

    def _check_open(self) -> None:
        if not self._is_open:
            raise ClosedError(f"this connection to {self._session.name!r} was closed")

    def _hang_up(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection[1].close()
                self._connection = None

    def close(self) -> None:
        """Hang up, and close the producers that were made here and are used here. May be called twice."""
        if not self._is_open:
            return
        self._is_open = False
        for producer in list(self._producers):
            producer.close()
        self._hang_up()
        self._session.close()

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.path}>"


def connect(name: str, shm_dir: str | os.PathLike[str] = "/dev/shm") -> Client:
    """Connect to a running recording from a process that is no relative of its owner.

    Parameters
    ----------
    name
        ``storage.name`` of the recording.
    shm_dir
        Folder for shared memory, if the recording uses another.

    Raises
    ------
    ConfigError
        The name is no session name.
    StorageError
        There is no such recording, or it belongs to another user.
    """
    return Client(session_folder(Path(shm_dir), name))


def _plain(key: str, value: Any) -> Any:
    """Return a metadata value as JSON can say it."""
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(key, value.tolist())
    if isinstance(value, Mapping):
        return {str(name): _plain(key, inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(key, inner) for inner in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value  # NaN and infinity too: Python's JSON spells them, both ways
    raise InvalidValueError(
        f"metadata {key!r} is a {type(value).__name__}: give text, a number, a boolean, or a list or "
        "mapping of them"
    )


def _plain_option(value: Any) -> Any:
    """Return an instrument option as JSON can say it."""
    if isinstance(value, Mapping):
        return {name: _plain_option(inner) for name, inner in value.items()}
    return value.to_dict() if hasattr(value, "to_dict") else value
