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
from pathlib import Path
from typing import Any

from shmstore import errors
from shmstore.errors import BrokenError, ShmStoreError, storage_error

MAX_FRAME_BYTES = 64 * 2**20
_LENGTH = struct.Struct("<I")

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
        How long connecting may take.
    """

    def __init__(self, path: Path, timeout_s: float = 10.0) -> None:
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._frames = FrameReader()
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(os.fspath(path))
        except OSError as error:
            self._socket.close()
            raise storage_error(error, "reach the writer", path, "its recording has ended") from None

    def request(self, operation: str, timeout_s: float | None = 30.0, **arguments: Any) -> Message:
        """Ask the writer and wait for its answer.

        Parameters
        ----------
        operation
            What to do.
        timeout_s
            Longest wait in seconds; ``None`` waits as long as the writer lives.
        **arguments
            JSON-ready values.

        Raises
        ------
        TimeoutError
            No answer within the timeout; the connection cannot be used any more.
        BrokenError
            The writer has gone.
        ShmStoreError
            What the writer answered.
        """
        data = frame({"operation": operation, **arguments})
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            try:
                self._socket.settimeout(timeout_s)
                self._socket.sendall(data)
                while not (replies := self._frames.feed(self._receive(deadline))):
                    pass
            except TimeoutError:
                self._socket.close()
                raise TimeoutError(f"the writer did not answer {operation!r} within {timeout_s} s") from None
            except OSError as error:
                raise BrokenError(f"the writer has gone ({error}) before it answered {operation!r}") from None
        reply = replies[0]
        if "error" in reply:
            raise_error(reply["error"], reply["message"], reply.get("errno"), reply.get("filename"))
        return reply

    def _receive(self, deadline: float | None) -> bytes:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionResetError("end of connection")
        return data

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
