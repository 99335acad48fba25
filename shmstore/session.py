"""The session: a private folder in shared memory where rings, queues, tails and sockets have their names.

``<shm_dir>/shmstore-<name>/`` is made 0700, its files 0600. It holds ``page`` (state that every producer can
read without asking), ``recording`` (the path of the HDF5 file), ``control`` (the writer's socket),
``ring-<n>``, ``queue-<n>`` and ``tails-<n>``. Whether owner and writer live is asked of the kernel, through
locks on ``page``, never of a clock.

The page, little-endian: words of 8 bytes, each with one writer, then three texts with length and CRC::

    0      words            see ``_W_*``
    4096   failure          why the recording is broken     (whoever finds that it is)
    12288  reason           why this writer ends            (the writer)
    20480  restart reason   why the last one was replaced   (the owner)
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import re
import shutil
import struct
import threading
import time
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from shmstore.control import Message, raise_error
from shmstore.errors import BrokenError, ClosedError, ConfigError, storage_error
from shmstore.segment import Segment, byte_is_locked

#: How the folders of sessions begin.
PREFIX = "shmstore-"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
#: Its number grows with the layout of anything in a session, tails included: no other version may misread it.
_MAGIC = int.from_bytes(b"SHMPAGE3", "little")
_W_MAGIC, _W_STATE, _W_OWNER, _W_WRITER = range(4)
#: Length and CRC of each text: two words.
_W_FAILURE, _W_REASON, _W_RESTART_REASON = 4, 6, 8
#: The writer's: turns of its loop; commits, over all writers; what is being taken (0: nothing).
_W_HEARTBEAT, _W_COMMITS, _W_TAKING_RING, _W_TAKING_SEQUENCE = 10, 11, 12, 13
#: The owner's: how often the writer was replaced; the ending asked for.
_W_RESTARTS, _W_ENDING = 14, 15
#: The writer's: how many of its threads wait for the disk; how often it fell asleep or woke, odd while awake.
_W_AT_DISK, _W_SLEEP = 16, 17
_WORDS = 32
_TEXT_BYTES = 8192
_TEXTS_AT = {_W_FAILURE: 4096, _W_REASON: 12288, _W_RESTART_REASON: 20480}
_PAGE_BYTES = 28672
_ENDINGS = ("", "close", "abort")
#: Bytes of the page whose locks tell who lives.
OWNER_LOCK, WRITER_LOCK = 0, 1
#: How long the kernel may take to free the lock of a writer that was killed, and others to let go of a name.
_TEAR_DOWN_S = 1.0


class State(enum.IntEnum):
    """Where a recording stands, as the page says it."""

    STARTING = 0
    RECORDING = 1
    CLOSING = 2
    CLOSED = 3
    BROKEN = 4


_RECORDING = int(State.RECORDING)  # a look into the enumeration takes longer than the load


class Session:
    """One recording's folder and page, in this process.

    Made by :meth:`create` (the owner) or :meth:`attach` (writer, producers, clients). Close it in each
    process; the owner also removes it.
    """

    def __init__(self, folder: Path, page: Segment) -> None:
        self.folder = folder
        self.name = folder.name.removeprefix(PREFIX)
        self._page = page
        #: Whether rings and tails stay as they are, whatever is done to them: for who recovers a recording.
        self.private = False
        self._is_owner = False
        self._inode = _inode_of(folder)
        self._at_disk, self._at_disk_lock = 0, threading.Lock()
        if page.size < _PAGE_BYTES or page.words(0, 1)[_W_MAGIC] != _MAGIC:
            raise BrokenError(f"{folder} is no session of this version of shmstore")
        self._words = page.words(0, _WORDS)

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
        name = name or os.urandom(6).hex()
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
        session._is_owner = True
        _owned.add(session)
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
        """Where the recording stands; one load from shared memory. What is no state is a damaged page."""
        word: int = self._words[_W_STATE]
        return State(word) if word <= State.BROKEN else State.BROKEN

    @state.setter
    def state(self, state: State) -> None:
        self._words[_W_STATE] = state

    @property
    def recording(self) -> bool:
        """Whether batches are taken now; the check on every `put`."""
        return bool(self._words[_W_STATE] == _RECORDING)

    @property
    def owner_pid(self) -> int:
        """Process that owns the recording."""
        pid: int = self._words[_W_OWNER]
        return pid

    @property
    def owner_lives(self) -> bool:
        """Whether the owner holds its lock; asked of the kernel."""
        return self._is_owner or self._page.is_locked(OWNER_LOCK)

    @property
    def writer_pid(self) -> int:
        """Process that writes; while it is being replaced, the one that did."""
        pid: int = self._words[_W_WRITER]
        return pid

    @property
    def writer_lives(self) -> bool:
        """Whether a writer holds its lock; asked of the kernel."""
        return self._page.is_locked(WRITER_LOCK)

    @property
    def attended(self) -> bool:
        """Whether a writer lives, or an owner who replaces it; asked of the kernel."""
        return self.writer_lives or self.owner_lives

    def become_writer(self) -> None:
        """Hold the writer's lock until this process ends; nothing is said to be taken, and no reason left.

        Raises
        ------
        BrokenError
            Another writer lives. One that was killed gets a second to be gone.
        """
        deadline = time.monotonic() + _TEAR_DOWN_S
        while not self._page.try_lock(WRITER_LOCK):
            if time.monotonic() > deadline:
                raise BrokenError(
                    f"the session {self.name!r} has a living writer already, process {self.writer_pid}: "
                    "end that one first"
                )
            time.sleep(0.005)
        self._words[_W_WRITER] = os.getpid()
        self.taking = None
        self.awake = False
        self._words[_W_AT_DISK] = 0
        self._words[_W_REASON] = 0

    # -- progress --------------------------------------------------------------------------------------------

    @property
    def heartbeat(self) -> int:
        """Turns of the writer's loop so far, over all writers; written by the writer."""
        turns: int = self._words[_W_HEARTBEAT]
        return turns

    def beat(self) -> None:
        """Count a turn, or any other sign of life; for the writer."""
        self._words[_W_HEARTBEAT] += 1

    @property
    def awake(self) -> bool:
        """Whether the writer looks into all rings before it sleeps: none needs to be announced a slot.

        Written by the writer.
        """
        return self.sleep is None

    @awake.setter
    def awake(self, awake: bool) -> None:
        word: int = self._words[_W_SLEEP] | 1
        self._words[_W_SLEEP] = word if awake else word + 1

    @property
    def sleep(self) -> int | None:
        """Which of its sleeps the writer is in, over all writers; ``None`` while it is `awake`.

        Asked by a producer after each slot, with a `fence` in between. One bell ends a sleep: who has rung in
        it need not ring again.
        """
        word: int = self._words[_W_SLEEP]
        return None if word & 1 else word

    @property
    def is_at_disk(self) -> bool:
        """Whether a thread of the writer waits for the disk, or did when the writer died; written by it."""
        return bool(self._words[_W_AT_DISK])

    @contextlib.contextmanager
    def at_disk(self) -> Iterator[None]:
        """Say so while a thread of the writer waits for the disk: no kill would make that shorter."""
        self._count_at_disk(1)
        try:
            yield
        finally:
            self._count_at_disk(-1)

    def _count_at_disk(self, more: int) -> None:
        with self._at_disk_lock:
            self._at_disk += more
            self._words[_W_AT_DISK] = self._at_disk

    @property
    def commits(self) -> int:
        """Commits so far, over all writers; written by the writer."""
        commits: int = self._words[_W_COMMITS]
        return commits

    @commits.setter
    def commits(self, commits: int) -> None:
        self._words[_W_COMMITS] = commits

    @property
    def taking_ring(self) -> int:
        """Number of the ring of the slot being taken; 0 also if none is. Written by the writer."""
        ring: int = self._words[_W_TAKING_RING]
        return ring

    @property
    def taking_sequence(self) -> int:
        """Sequence number, plus 1, of the slot being taken; 0: none is. Written by the writer."""
        sequence: int = self._words[_W_TAKING_SEQUENCE]
        return sequence

    @property
    def taking(self) -> tuple[int, int] | None:
        """Ring and sequence number of the slot being taken now, or when the writer died; written by it."""
        return (self.taking_ring, self.taking_sequence - 1) if self.taking_sequence else None

    @taking.setter
    def taking(self, slot: tuple[int, int] | None) -> None:
        self._words[_W_TAKING_SEQUENCE] = 0
        if slot is not None:
            self._words[_W_TAKING_RING] = slot[0]
            self._words[_W_TAKING_SEQUENCE] = slot[1] + 1

    @property
    def restarts(self) -> int:
        """How often the writer was replaced; written by the owner."""
        restarts: int = self._words[_W_RESTARTS]
        return restarts

    @property
    def restart_reason(self) -> str:
        """Why the writer was replaced last; empty if it never was."""
        left = self._text(_W_RESTART_REASON)
        return left[1] if left else ""

    def count_restart(self, reason: str) -> None:
        """Count a replacement of the writer, and say why; for the owner."""
        self._set_text(_W_RESTART_REASON, "", reason, None)
        self._words[_W_RESTARTS] += 1

    @property
    def ending(self) -> str:
        """The ending asked for: ``""``, ``"close"`` or ``"abort"``; written by the owner."""
        word: int = self._words[_W_ENDING]
        if word >= len(_ENDINGS):
            raise BrokenError(f"the page of {self.name!r} is damaged: it asks for ending {word}")
        return _ENDINGS[word]

    @ending.setter
    def ending(self, how: str) -> None:
        self._words[_W_ENDING] = _ENDINGS.index(how)

    # -- failures --------------------------------------------------------------------------------------------

    def adopt(self) -> bool:
        """Hold the place of an owner that has died; ``False`` if it lives."""
        return self._page.try_lock(OWNER_LOCK)

    def fail(self, kind: str, message: str, errno: int | None = None) -> None:
        """Latch a failure: from now on every `put`, `flush` and `close` raises it. The first one stays."""
        if self.state == State.BROKEN:
            return
        self._set_text(_W_FAILURE, kind, message, errno)
        self.state = State.BROKEN

    def failure(self) -> tuple[str, str, int | None]:
        """Return the latched failure: the name of its class, its message, and the system's error number."""
        return self._text(_W_FAILURE) or ("BrokenError", "the writer failed and could not say why", None)

    def leave_reason(self, kind: str, message: str, errno: int | None = None) -> None:
        """Say why this writer ends; its owner decides what becomes of the recording."""
        self._set_text(_W_REASON, kind, message, errno)

    def reason(self) -> tuple[str, str, int | None] | None:
        """Return what the last writer left, as :meth:`failure`; ``None`` if it could not say anything."""
        return self._text(_W_REASON)

    def check_attended(self) -> None:
        """Return if requests are answered, now or by a writer that is to come.

        Raises
        ------
        ClosedError
            The recording has ended.
        BrokenError, StorageError
            It is broken, or nobody is left.
        """
        state = self.state
        if state == State.BROKEN:
            raise_error(*self.failure())
        if state == State.CLOSED:
            raise ClosedError(f"the recording {self.name!r} has ended")
        if not self.attended and self.state == state:  # a writer says how it ends before it does
            raise BrokenError(f"the writer and the owner of {self.name!r} have died: {self.kept}")

    @property
    def kept(self) -> str:
        """What a user is told when a recording cannot go on."""
        try:
            path = str(self.recording_path)
        except BrokenError:
            path = "PATH"
        return f"everything accepted is kept in shared memory, run `shmstore recover {path}`"

    def spill(self, folder: Path) -> Path:
        """Copy all that a recording can be recovered from into a folder on a disk; return its path there.

        The copy is a session that nobody lives in: `shmstore.recover` takes it with ``shm_dir=folder``.

        Raises
        ------
        StorageError
            The folder cannot be written to; what was copied of it is removed.
        """
        copy = folder / self.folder.name
        try:
            copy.mkdir(mode=0o700, parents=True)
            for file in sorted(self.folder.iterdir()):
                if file.is_file() and not file.is_symlink():
                    shutil.copyfile(file, copy / file.name)
                    with (copy / file.name).open("rb") as copied:
                        os.fsync(copied.fileno())
        except OSError as error:
            shutil.rmtree(copy, ignore_errors=True)
            raise storage_error(error, "spill what was accepted", copy) from None
        return copy

    def _set_text(self, word: int, kind: str, message: str, errno: int | None) -> None:
        # At most 6 bytes a character: it fits whole, whatever the message holds.
        text = json.dumps([kind, message[:1300], errno], ensure_ascii=False).encode("utf-8", "replace")
        at = _TEXTS_AT[word]
        self._words[word] = 0
        self._page.view[at : at + len(text)] = text
        self._words[word + 1] = zlib.crc32(text)
        self._words[word] = len(text)

    def _text(self, word: int) -> tuple[str, str, int | None] | None:
        at = _TEXTS_AT[word]
        text = bytes(self._page.view[at : at + min(self._words[word], _TEXT_BYTES)])
        if not text or zlib.crc32(text) != self._words[word + 1]:
            return None
        kind, message, errno = json.loads(text)
        return str(kind), str(message), errno

    # -- names -----------------------------------------------------------------------------------------------

    @property
    def recording_path(self) -> Path:
        """The HDF5 file, absolute; set once by the first writer.

        Raises
        ------
        BrokenError
            There is none yet.
        """
        try:
            return Path(os.fsdecode((self.folder / "recording").read_bytes()))
        except OSError:
            raise BrokenError(
                f"{self.folder} does not say which file it records: there is none yet"
            ) from None

    @recording_path.setter
    def recording_path(self, path: Path) -> None:
        new = self.folder / "recording.new"
        new.touch(0o600)
        new.write_bytes(os.fsencode(path.absolute()))
        new.replace(self.folder / "recording")

    @property
    def control_path(self) -> Path:
        """Where the writer's control socket is."""
        return self.folder / "control"

    @property
    def report(self) -> Message | None:
        """The writer's closing report: once it is there, the file is finished; ``None`` before."""
        try:
            report: Message = json.loads((self.folder / "report").read_bytes())
        except FileNotFoundError:
            return None
        return report

    def leave_report(self, report: Message) -> None:
        """Leave the closing report, for whoever asks when the writer has gone."""
        new = self.folder / "report.new"
        new.touch(0o600)
        new.write_text(json.dumps(report))
        new.replace(self.folder / "report")

    def ring_path(self, number: int) -> Path:
        """Where a ring's segment is."""
        return self.folder / f"ring-{number}"

    def queue_path(self, number: int) -> Path:
        """Where a ring's descriptor queue is."""
        return self.folder / f"queue-{number}"

    def tails_path(self, number: int) -> Path:
        """Where a segment of tails is."""
        return self.folder / f"tails-{number}"

    def tails_path_of(self, name: str) -> Path:
        """Where the tails of that name are, which must be one that `tails_path` gives."""
        if not re.fullmatch(r"tails-\d{1,9}", name):
            raise BrokenError(f"{name!r} is no name of a segment of tails")
        return self.folder / name

    def ledger_path(self, number: int) -> Path:
        """Where a ledger is; the one with the highest number counts."""
        return self.folder / f"ledger-{number}"

    def next_ledger_path(self) -> Path:
        """Where a ledger goes that is to count instead of those that are there, whoever made them."""
        numbers = [int(path.name.rpartition("-")[2]) for path in self.folder.glob("ledger-*")]
        return self.ledger_path(max(numbers, default=0) + 1)

    # -- end -------------------------------------------------------------------------------------------------

    def disown(self) -> None:
        """In a forked child: leave being the owner to the parent."""
        if self._is_owner:
            self._is_owner = False
            self._page.disown()

    def close(self) -> None:
        """Unmap the page in this process; an owner's lock ends with it."""
        _owned.discard(self)
        self._words.release()
        self._page.close()

    def remove(self) -> None:
        """Remove the folder with all names in it; mappings elsewhere stay valid. May be called twice.

        Somebody who does not know of the end yet may be making a name in it: then it is tried again, for a
        second.
        """
        deadline = time.monotonic() + _TEAR_DOWN_S
        # Not that of another session, which may have the name by now.
        while self._inode is not None and _inode_of(self.folder) == self._inode:
            _remove_all(self.folder)
            if time.monotonic() > deadline:
                break
            if self.folder.exists():
                time.sleep(0.001)

    def __repr__(self) -> str:
        return f"<Session {self.name}>"


def _inode_of(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _remove_all(folder: Path) -> None:
    """Remove a folder; should this be interrupted, the page is still there and tells what the rest is."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name != "page":
                path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


#: Sessions whose owner this process is; a child that is forked is not.
_owned: weakref.WeakSet[Session] = weakref.WeakSet()


def _disown() -> None:
    """In a forked child: an owner's lock must not outlive the owner there."""
    for session in list(_owned):
        session.disown()
    _owned.clear()


os.register_at_fork(after_in_child=_disown)


def session_folder(shm_dir: Path, name: str) -> Path:
    """Return the folder of the session ``name``, which must be a plain file name of up to 64 characters."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"session name {name!r} is not plain: use letters, digits, '.', '_' and '-', at most 64 of them"
        )
    return shm_dir / (PREFIX + name)


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
