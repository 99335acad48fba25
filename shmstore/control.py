"""The control channel: small JSON requests to the writer over a local socket, each answered once.

Carries what is rare: attach a ring, declare a schema, set metadata, flush, stats, close. Batches never come
here. No pickle crosses it; every frame is a 4-byte length and that many bytes of JSON, and the length is
checked first.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmstore import errors
from shmstore.errors import BrokenError, ShmStoreError, storage_error

MAX_FRAME_BYTES = 64 * 2**20
_LENGTH = struct.Struct("<I")
#: Longest time between two looks at whether anybody may still answer, and between two tries to connect.
_LOOK_S, _RETRY_S = 0.1, 0.02

Message = dict[str, Any]


def frame(message: Message) -> bytes:
    """Return a message as it goes over the wire."""
    data = json.dumps(message).encode()
    if len(data) > MAX_FRAME_BYTES:
        raise errors.InvalidValueError(
            f"a request of {len(data)} bytes is larger than {MAX_FRAME_BYTES}: make it smaller"
        )
    return _LENGTH.pack(len(data)) + data


class FrameReader:
    """Puts messages together from what a non-blocking socket brings."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes in, give whole messages out.

        Raises
        ------
        BrokenError
            The peer sends something else: an oversized frame or no JSON object.
        """
        self._pending += data
        messages = []
        while len(self._pending) >= 4:
            (length,) = _LENGTH.unpack_from(self._pending)
            if length > MAX_FRAME_BYTES:
                raise BrokenError(f"the peer announces a frame of {length} bytes: it is no shmstore")
            if len(self._pending) < 4 + length:
                break
            try:
                message = json.loads(bytes(self._pending[4 : 4 + length]))
            except (ValueError, RecursionError):
                raise BrokenError("the peer sent a frame that is no JSON: it is no shmstore") from None
            del self._pending[: 4 + length]
            if not isinstance(message, dict):
                raise BrokenError("the peer sent a frame that is no JSON object: it is no shmstore")
            messages.append(message)
        return messages


def error_reply(error: Exception) -> Message:
    """Describe an error for the other side."""
    kind = type(error).__name__ if isinstance(error, ShmStoreError) else "BrokenError"
    message = str(error) if isinstance(error, ShmStoreError) else f"{type(error).__name__}: {error}"
    code = error.errno if isinstance(error, errors.StorageError) else None
    text = error.strerror if isinstance(error, errors.StorageError) else message
    return {"error": kind, "message": text, "errno": code, "filename": getattr(error, "filename", None)}


def raise_error(kind: str, message: str, errno: int | None = None, filename: str | None = None) -> None:
    """Raise the error that the other side described; unknown kinds become `BrokenError`."""
    class_ = getattr(errors, kind, BrokenError)
    if not (isinstance(class_, type) and issubclass(class_, ShmStoreError)):
        class_ = BrokenError
    if issubclass(class_, errors.StorageError):
        raise class_(errno or 5, message, filename)
    raise class_(message)


class ControlConnection:
    """One process's connection to the writer; requests from several threads take turns.

    Parameters
    ----------
    path
        The writer's socket.
    timeout_s
        How long connecting may take, without a ``check``.
    check
        Called while nobody answers; it raises when nobody ever will. As long as it returns, the writer is
        being replaced: the connection is made anew, as it is for the first request, and the request sent
        again, until its timeout. So a request must mean the same when it comes twice. Without it, the end of
        the connection is the end of all requests.
    """

    def __init__(self, path: Path, timeout_s: float = 10.0, check: Callable[[], None] | None = None) -> None:
        self._path = path
        self._check = check
        self._lock = threading.Lock()
        self._frames = FrameReader()
        self._socket: socket.socket | None = None
        if check is None:
            self._connect(time.monotonic() + timeout_s)

    def request(self, operation: str, timeout_s: float | None = 30.0, **arguments: Any) -> Message:
        """Ask the writer and wait for its answer.

        Parameters
        ----------
        operation
            What to do.
        timeout_s
            Longest wait in seconds; ``None`` waits as long as somebody may answer.
        **arguments
            JSON-ready values.

        Raises
        ------
        TimeoutError
            No answer within the timeout; a late one will not be taken for that of another request.
        BrokenError
            The writer has gone, and nobody replaces it.
        ShmStoreError
            What the writer answered, or what ``check`` raised.
        """
        data = frame({"operation": operation, **arguments})
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            try:
                reply = self._ask(data, deadline)
            except TimeoutError:
                self.close()
                raise TimeoutError(f"the writer did not answer {operation!r} within {timeout_s} s") from None
            except OSError as error:
                if isinstance(error, ShmStoreError):
                    raise
                raise BrokenError(f"the writer has gone ({error}) before it answered {operation!r}") from None
        if "error" in reply:
            raise_error(reply["error"], reply["message"], reply.get("errno"), reply.get("filename"))
        return reply

    def _ask(self, data: bytes, deadline: float | None) -> Message:
        """Send a request and return its answer, over as many connections as it takes."""
        while True:
            try:
                connection = self._socket
                if connection is None:
                    if self._check is None:
                        raise ConnectionResetError("the connection was closed")
                    connection = self._connect(deadline)
                connection.settimeout(_left(deadline))
                connection.sendall(data)
                while not (replies := self._frames.feed(self._receive(connection, deadline))):
                    pass
                return replies[0]
            except TimeoutError:
                raise
            except OSError:
                self.close()
                if self._check is None:
                    raise
                self._check()
                time.sleep(min(_RETRY_S, _left(deadline) or _RETRY_S))

    def _connect(self, deadline: float | None) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(_left(deadline))
            connection.connect(os.fspath(self._path))
        except OSError as error:
            connection.close()
            raise storage_error(error, "reach the writer", self._path, "its recording has ended") from None
        self._frames = FrameReader()
        self._socket = connection
        return connection

    def _receive(self, connection: socket.socket, deadline: float | None) -> bytes:
        """Return what the writer sends next; raises TimeoutError at the deadline."""
        while True:
            left = _left(deadline)
            # In slices, if there is somebody to ask: a listener that a forked child inherited stays open for
            # ever, and nobody serves it.
            look = left if self._check is None else min(_LOOK_S, left or _LOOK_S)
            connection.settimeout(look)
            try:
                data = connection.recv(1 << 16)
            except TimeoutError:
                if self._check is not None:
                    self._check()
                continue
            if not data:
                raise ConnectionResetError("end of connection")
            return data

    def close(self) -> None:
        """Hang up. A connection with a ``check`` is made anew by the next request."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _left(deadline: float | None) -> float | None:
    """Return the seconds until a deadline; raises TimeoutError when there are none."""
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
