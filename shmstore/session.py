"""The session: a private folder in shared memory where rings, queues, tails and sockets have their names.

``<shm_dir>/shmstore-<name>/`` is made 0700, its files 0600. It holds ``page`` (state that every producer can
read without asking), ``control`` (the writer's socket), ``ring-<n>``, ``queue-<n>`` and ``tails-<n>``.
Whether the owner lives is asked of the kernel, through a lock on ``page``, never of a clock.
"""

from __future__ import annotations

import enum
import json
import os
import re
import secrets
import shutil
import struct
import zlib
from pathlib import Path
from typing import Self

from shmstore.errors import BrokenError, ConfigError, storage_error
from shmstore.segment import Segment, byte_is_locked

#: How the folders of sessions begin.
PREFIX = "shmstore-"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_PAGE_BYTES = 4096
_MAGIC = int.from_bytes(b"SHMPAGE1", "little")
_W_MAGIC, _W_STATE, _W_OWNER, _W_WRITER, _W_FAILURE_LENGTH, _W_FAILURE_CRC = range(6)
_FAILURE_AT = 64
#: Bytes of the page whose locks tell who lives.
OWNER_LOCK, WRITER_LOCK = 0, 1


class State(enum.IntEnum):
    """Where a recording stands, as the page says it."""

    STARTING = 0
    RECORDING = 1
    CLOSING = 2
    CLOSED = 3
    BROKEN = 4


class Session:
    """One recording's folder and page, in this process.

    Made by :meth:`create` (the owner) or :meth:`attach` (writer, producers, clients). Close it in each
    process; the owner also removes it.
    """

    def __init__(self, folder: Path, page: Segment) -> None:
        self.folder = folder
        self.name = folder.name.removeprefix(PREFIX)
        self._page = page
        self._words = page.words(0, 8)
        if self._words[_W_MAGIC] != _MAGIC:
            raise BrokenError(f"{folder} is no session of this version of shmstore")

    @classmethod
    def create(cls, shm_dir: Path, name: str | None = None) -> Self:
        """Make the folder and the page, and hold the owner's lock.

        Raises
        ------
        ConfigError
            The name is no plain name, or in use.
        StorageError
            There is no room or no permission.
        """
        name = name or secrets.token_hex(6)
        folder = session_folder(shm_dir, name)
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            raise ConfigError(
                f"a recording named {name!r} is running, or was left behind, in {folder}: choose another "
                "name, or see `shmstore doctor`"
            ) from None
        except OSError as error:
            raise storage_error(error, "make the session folder", folder) from None
        try:
            page = Segment.create(folder / "page", _PAGE_BYTES)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        page.try_lock(OWNER_LOCK)  # before it is a session: one that has begun always had a living owner
        struct.pack_into("<Q", page.view, 0, _MAGIC)
        session = cls(folder, page)
        session._words[_W_OWNER] = os.getpid()
        return session

    @classmethod
    def attach(cls, folder: Path) -> Self:
        """Open the session of a running recording.

        Raises
        ------
        StorageError
            There is none: the recording has ended, or never began.
        """
        page = Segment.attach(folder / "page")
        try:
            return cls(folder, page)
        except BrokenError:
            page.close()
            raise

    # -- state -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Where the recording stands; one load from shared memory."""
        return State(self._words[_W_STATE])

    @state.setter
    def state(self, state: State) -> None:
        self._words[_W_STATE] = state

    @property
    def recording(self) -> bool:
        """Whether batches are taken now; the check on every `put`."""
        return bool(self._words[_W_STATE] == State.RECORDING)

    @property
    def owner_pid(self) -> int:
        """Process that owns the recording."""
        pid: int = self._words[_W_OWNER]
        return pid

    @property
    def owner_lives(self) -> bool:
        """Whether the owner holds its lock; asked of the kernel. Of no use in the owner itself."""
        return self._page.is_locked(OWNER_LOCK)

    @property
    def writer_pid(self) -> int:
        """Process that writes."""
        pid: int = self._words[_W_WRITER]
        return pid

    @property
    def writer_lives(self) -> bool:
        """Whether a writer holds its lock; asked of the kernel."""
        return self._page.is_locked(WRITER_LOCK)

    def become_writer(self) -> None:
        """Hold the writer's lock until this process ends."""
        self._words[_W_WRITER] = os.getpid()
        self._page.try_lock(WRITER_LOCK)

    def fail(self, kind: str, message: str, errno: int | None = None) -> None:
        """Latch a failure: from now on every `put`, `flush` and `close` raises it. The first one stays."""
        if self.state == State.BROKEN:
            return
        # At most 6 bytes a character: it fits the page whole, whatever the message holds.
        text = json.dumps([kind, message[:600], errno], ensure_ascii=False).encode("utf-8", "replace")
        self._page.view[_FAILURE_AT : _FAILURE_AT + len(text)] = text
        self._words[_W_FAILURE_LENGTH] = len(text)
        self._words[_W_FAILURE_CRC] = zlib.crc32(text)
        self.state = State.BROKEN

    def failure(self) -> tuple[str, str, int | None]:
        """Return the latched failure: the name of its class, its message, and the system's error number."""
        length = min(self._words[_W_FAILURE_LENGTH], _PAGE_BYTES - _FAILURE_AT)
        text = bytes(self._page.view[_FAILURE_AT : _FAILURE_AT + length])
        if not text or zlib.crc32(text) != self._words[_W_FAILURE_CRC]:
            return "BrokenError", "the writer failed and could not say why", None
        kind, message, errno = json.loads(text)
        return str(kind), str(message), errno

    # -- names -----------------------------------------------------------------------------------------------

    @property
    def control_path(self) -> Path:
        """Where the writer's control socket is."""
        return self.folder / "control"

    @property
    def report_path(self) -> Path:
        """Where the writer leaves its closing report."""
        return self.folder / "report"

    def ring_path(self, number: int) -> Path:
        """Where a ring's segment is."""
        return self.folder / f"ring-{number}"

    def queue_path(self, number: int) -> Path:
        """Where a ring's descriptor queue is."""
        return self.folder / f"queue-{number}"

    def tails_path(self, number: int) -> Path:
        """Where a segment of tails is."""
        return self.folder / f"tails-{number}"

    # -- end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Unmap the page in this process; an owner's lock ends with it."""
        self._words.release()
        self._page.close()

    def remove(self) -> None:
        """Remove the folder with all names in it; mappings elsewhere stay valid. May be called twice."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __repr__(self) -> str:
        return f"<Session {self.name}>"


def session_folder(shm_dir: Path, name: str) -> Path:
    """Return the folder of the session ``name``, which must be a plain file name of up to 64 characters."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"session name {name!r} is not plain: use letters, digits, '.', '_' and '-', at most 64 of them"
        )
    return shm_dir / (PREFIX + name)


def owner_lives(folder: Path) -> bool:
    """Whether the owner of the session in ``folder`` lives, asked of the kernel without mapping anything."""
    return lock_is_held(folder, OWNER_LOCK)


def lock_is_held(folder: Path, lock: int) -> bool:
    """Whether a living process holds a lock of the session in ``folder``; not asked by the holder itself."""
    try:
        fd = os.open(folder / "page", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return byte_is_locked(fd, lock)
    finally:
        os.close(fd)
