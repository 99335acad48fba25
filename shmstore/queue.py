"""The descriptor queue: one `multiprocessing` pipe per producer, fixed records, never blocking.

`multiprocessing.Queue` cannot serve: a process killed while it waits in ``get()`` takes the reader lock
along, and the queue is dead for everyone. Here there is no lock. Records are 64 bytes, below ``PIPE_BUF``, so
the kernel writes each whole or not at all; each queue has one producer. The pipe has a name in the session's
folder, so that it reaches any process under any start method, and both sides hold both of its ends, so that
neither notices when the other is replaced.

The module moves descriptors and wakes whoever waits; the ring is the truth.
"""

from __future__ import annotations

import contextlib
import os
import select
from multiprocessing.connection import Connection
from pathlib import Path

from shmstore.descriptor import PAYLOAD_BYTES, RECORD_BYTES, Descriptor
from shmstore.errors import BrokenError, storage_error

_LENGTH_PREFIX = PAYLOAD_BYTES.to_bytes(4, "big")
#: Records read at once; the kernel's default pipe holds 1,024.
_BATCH = 256


class DescriptorQueue:
    """Descriptors one way, and a bell that says "space came free" the other way.

    Made by :meth:`create` in one process, opened by :meth:`attach` in others; each object belongs to one
    process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptors = _open_pipe(path)
        self._space = _open_pipe(_space_path(path))
        self._unread = b""

    @classmethod
    def create(cls, path: Path) -> DescriptorQueue:
        """Make the named pipes (mode 0600) and open them."""
        for name in (path, _space_path(path)):
            try:
                os.mkfifo(name, 0o600)
            except OSError as error:
                raise storage_error(error, "make a descriptor queue", name) from None
        return cls(path)

    @classmethod
    def attach(cls, path: Path) -> DescriptorQueue:
        """Open the pipes that somebody else made."""
        return cls(path)

    # -- the producer's side ---------------------------------------------------------------------------------

    def ring(self, descriptor: Descriptor) -> None:
        """Announce a sealed slot. Never blocks: when the pipe is full, the writer is awake already."""
        # The record of `Connection.send_bytes`, without its way there (measured: 1.7 against 2.3 µs).
        with contextlib.suppress(BlockingIOError):
            os.write(self._descriptors.fileno(), _LENGTH_PREFIX + descriptor.pack())

    def wait_for_space(self, timeout_s: float) -> bool:
        """Wait until the writer says that it released something; ``False`` after ``timeout_s`` seconds."""
        poll = select.poll()
        poll.register(self._space.fileno(), select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            return False
        _drain(self._space)
        return True

    # -- the writer's side -----------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the descriptor to select on: readable while descriptors wait."""
        return self._descriptors.fileno()

    def receive(self) -> list[Descriptor]:
        """Take up to 256 waiting descriptors, checked; an empty list when there are none. Never blocks.

        Raises
        ------
        BrokenError
            What came is no descriptor.
        """
        try:
            data = self._unread + os.read(self._descriptors.fileno(), _BATCH * RECORD_BYTES)
        except BlockingIOError:
            return []
        whole = len(data) - len(data) % RECORD_BYTES
        self._unread = data[whole:]
        descriptors = []
        for start in range(0, whole, RECORD_BYTES):
            if data[start : start + 4] != _LENGTH_PREFIX:
                self._unread = b""
                raise BrokenError(f"{self.path.name} carries something that is no descriptor")
            descriptors.append(Descriptor.unpack(data[start + 4 : start + RECORD_BYTES]))
        return descriptors

    def silence(self) -> None:
        """Take all waiting descriptors, for whoever looks into the ring anyway. Never blocks.

        Raises
        ------
        BrokenError
            Something that came is no descriptor.
        """
        while len(self.receive()) == _BATCH:
            pass

    def announce_space(self) -> None:
        """Wake the producer that waits for space. Never blocks."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._space.fileno(), b"\0")

    # -- both ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close this process's ends."""
        self._descriptors.close()
        self._space.close()

    def unlink(self) -> None:
        """Remove the names."""
        self.path.unlink(missing_ok=True)
        _space_path(self.path).unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"<DescriptorQueue {self.path.name}>"


def _space_path(path: Path) -> Path:
    return path.with_name(path.name + ".space")


def _open_pipe(path: Path) -> Connection:
    # Opened for both reading and writing (Linux): it then never blocks at open and never reports end of file.
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise storage_error(error, "open a descriptor queue", path, "its recording has ended") from None
    return Connection(fd)


def _drain(pipe: Connection) -> None:
    with contextlib.suppress(BlockingIOError):
        while len(os.read(pipe.fileno(), 4096)) == 4096:
            pass
