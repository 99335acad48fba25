"""Leftovers: what recordings that were killed left behind, in shared memory and beside their files.

Owns the finding, what each find holds and what to do with it, and the removal of sessions that nobody
needs. Whether somebody lives is asked of the kernel, of locks and leases, never of a process id: these are
used again. Looks only, but for :func:`reclaim`; what belongs to another user is named and not looked into.
Knows no terminal, and nothing of how a recording is recovered.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shmstore.errors import BrokenError, IncompleteFileError, ShmStoreError, StorageError, storage_error
from shmstore.ring import Ring
from shmstore.segment import lock_byte
from shmstore.session import OWNER_LOCK, PREFIX, WRITER_LOCK, Session, lock_is_held
from shmstore.superblock import read_superblock

#: What a session's folder may hold. One that holds none of it is not ours, whatever its name.
_SESSION_FILE = re.compile(r"page|control|(report|recording)(\.new)?|(ledger|ring|queue|tails)-\d+")
#: What lies beside a recording, by the end of its name; a recovery has a journal of its own.
_BESIDE = {
    ".recovering.recovery": "recovering",
    ".recovering": "recovering",
    ".recovery": "recovery",
    ".recovery.old": "recovery",
    ".quarantine": "quarantine",
    ".damaged": "damaged",
}
_BLOCK_BYTES = 1 << 20
#: How long a folder may be without a page, or its page without its mark, before nobody is making it.
_BIRTH_S = 0.5
#: A writer that adds objects has its file closed for < 1 ms; one that is seen closed for longer has gone.
_WINDOW_S, _LOOKS = 0.02, 4
#: Below this there is room for few rings: 64 MiB each by default, and 64 MiB is all that Docker gives.
_AMPLE_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """The room for rings.

    Attributes
    ----------
    path : str
        The folder.
    size_bytes, free_bytes : int
        Of its filesystem.
    advice : str or None
        How to enlarge it, if it is small.
    """

    path: str
    size_bytes: int
    free_bytes: int
    advice: str | None


@dataclass(frozen=True, slots=True)
class LeftSession:
    """One session's folder in shared memory, in use or left behind.

    Attributes
    ----------
    name, folder : str
        The session's name, and its folder.
    user : int
        The user id that it belongs to; another user's is not looked into.
    foreign : bool
        Whether that is another one than ours.
    size_bytes : int
        Memory that it takes.
    state : str
        By its own page: ``"starting"``, ``"recording"``, ``"closing"``, ``"closed"`` or ``"broken"``;
        ``"unknown"`` if the page cannot be read.
    owner_pid, writer_pid : int
        By its own page, 0 if there was none. Another process may have the number by now.
    owner_lives, writer_lives : bool
        Whether they hold their locks.
    producers : tuple of int
        Living processes that hold the place of a producer.
    recording : str or None
        The file that it records to, if it says so.
    finished : bool
        Whether that file is finished: what is still in shared memory then counts for nothing.
    batches, rows : int
        Sealed by producers and not given back by a writer.
    tails : bool
        Whether there are chunks that may not be in the file yet.
    problem : str or None
        What could not be read.
    """

    name: str
    folder: str
    user: int
    foreign: bool
    size_bytes: int
    state: str = "unknown"
    owner_pid: int = 0
    writer_pid: int = 0
    owner_lives: bool = False
    writer_lives: bool = False
    producers: tuple[int, ...] = ()
    recording: str | None = None
    finished: bool = False
    batches: int = 0
    rows: int = 0
    tails: bool = False
    problem: str | None = None

    @property
    def in_use(self) -> bool:
        """Whether a living process has a part in it."""
        return self.owner_lives or self.writer_lives or bool(self.producers)

    @property
    def holds_data(self) -> bool:
        """Whether rows may be lost with it; what cannot be read counts as such."""
        return not self.finished and (self.batches > 0 or self.tails or self.problem is not None)

    @property
    def left_behind(self) -> bool:
        """Whether it lies around: ours, and nobody's any more."""
        return not self.foreign and not self.in_use

    @property
    def remedy(self) -> str | None:
        """What to do with it; ``None`` if nothing is to be done."""
        if not self.left_behind:
            return None
        if not self.holds_data:
            return "shmstore doctor --reclaim"
        return f"shmstore recover {self.recording or 'PATH'}"


@dataclass(frozen=True, slots=True)
class LeftFile:
    """One file or folder that a recording left on the disk.

    Attributes
    ----------
    path : str
        Where it is.
    kind : str
        ``"recording"`` (says that it is being recorded, and nobody does), ``"recovery"`` (what it can be
        recovered from), ``"recovering"`` (a recovery that did not end), ``"quarantine"`` or ``"damaged"``
        (kept by a recovery that could not bring everything over).
    recording : str
        The recording that it belongs to.
    size_bytes : int
        On the disk.
    remedy : str
        What to do with it.
    """

    path: str
    kind: str
    recording: str
    size_bytes: int
    remedy: str


# -- shared memory -------------------------------------------------------------------------------------------


def shared_memory(folder: Path) -> SharedMemory:
    """Return how large the filesystem of ``folder`` is, and how to enlarge it if it is small.

    Raises
    ------
    StorageError
        There is no such folder.
    """
    try:
        found = os.statvfs(folder)
    except OSError as error:
        raise storage_error(
            error, "look at shared memory", folder, "name the folder of shared memory"
        ) from None
    size, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    advice = None
    if free < _AMPLE_BYTES:
        advice = (
            f"enlarge it for more or larger rings: `mount -o remount,size=8G {folder}`, in Docker "
            "`--shm-size=8g`, or lower ring_bytes"
        )
    return SharedMemory(str(folder), size, free, advice)


def find_sessions(shm_dir: Path) -> list[LeftSession]:
    """Return all sessions in a folder of shared memory, by name.

    Raises
    ------
    StorageError
        There is no such folder.
    """
    try:
        folders = sorted(path for path in shm_dir.iterdir() if path.name.startswith(PREFIX))
    except OSError as error:
        raise storage_error(error, "look for sessions", shm_dir, "name the folder of shared memory") from None
    found = (_session_in(folder) for folder in folders)
    return [session for session in found if session is not None]


def reclaim(session: LeftSession, *, discard: bool = False) -> bool:
    """Remove a session that no living process has a part in, and that holds no data.

    It is looked at once more, with the owner's and the writer's lock in hand: nobody takes it up meanwhile.

    Parameters
    ----------
    session
        As found.
    discard
        Remove it even if it holds data, which are lost then.

    Returns
    -------
    bool
        Whether it is gone.

    Raises
    ------
    StorageError
        The system refuses.
    """
    folder = Path(session.folder)
    if session.foreign or session.in_use:
        return False
    try:
        page = os.open(folder / "page", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        page = -1
    except OSError as error:
        raise storage_error(error, "look at the session", folder) from None
    try:
        if page < 0 or session.state == "unknown":
            time.sleep(_BIRTH_S)  # perhaps somebody is only beginning
        if page >= 0 and not (lock_byte(page, OWNER_LOCK) and lock_byte(page, WRITER_LOCK)):
            return False
        now = _session_in(folder)
        if now is None:
            return not folder.exists()
        if now.foreign or now.producers or not _is_page_of(folder, page) or (now.holds_data and not discard):
            return False
        # The page goes last: should this be interrupted, the rest is found again.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == "page"):
            path.unlink(missing_ok=True)
        folder.rmdir()
    except OSError as error:
        raise storage_error(error, "remove the session", folder) from None
    finally:
        if page >= 0:
            os.close(page)
    return True


def _is_page_of(folder: Path, page: int) -> bool:
    """Whether a folder's page is still the open file, or still missing: no new session has the same name."""
    try:
        found = (folder / "page").lstat()
    except FileNotFoundError:
        return page < 0
    return page >= 0 and os.path.samestat(os.fstat(page), found)


def _session_in(folder: Path) -> LeftSession | None:
    """Return what a folder holds; ``None`` if it is no session's, or gone."""
    try:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode):
            return None
        name, foreign = folder.name.removeprefix(PREFIX), status.st_uid != os.geteuid()
        if foreign:
            return LeftSession(name, str(folder), status.st_uid, foreign, 0)
        files = sorted(folder.iterdir())
    except OSError:
        return None
    if files and not any(_SESSION_FILE.fullmatch(path.name) for path in files):
        return None
    page, problem = _read_page(folder)
    rings = [path for path in files if path.name.startswith("ring-")]
    tails = [path for path in files if path.name.startswith("tails-")]
    # One that was never begun has nothing to say, and nothing to lose.
    problems = [problem] if problem and (rings or tails) else []
    recording = _recording_of(folder)
    producers, batches, rows = [], 0, 0
    for path in rings:
        try:
            ring = Ring.attach(path)
        except (ShmStoreError, ValueError) as error:
            problems.append(_one_line(error))
            continue
        try:
            if ring.producer_lives:
                producers.append(ring.producer_pid)
            waiting = ring.unreleased()
            batches, rows = batches + waiting[0], rows + waiting[1]
        except BrokenError as error:
            problems.append(_one_line(error))
        finally:
            ring.close()
    found = LeftSession(
        name,
        str(folder),
        status.st_uid,
        foreign,
        sum(_size(path) for path in files),
        *page,
        producers=tuple(producers),
        recording=None if recording is None else str(recording),
        finished=page.state == "closed" or (recording is not None and _is_finished(recording)),
        batches=batches,
        rows=rows,
        tails=any(_has_content(path) for path in tails),
        problem="; ".join(problems) or None,
    )
    return found if folder.exists() else None


class _Page(NamedTuple):
    """What a session's page, and the locks on it, tell."""

    state: str
    owner_pid: int
    writer_pid: int
    owner_lives: bool
    writer_lives: bool


def _read_page(folder: Path) -> tuple[_Page, str | None]:
    """Return the page, and what is wrong with it."""
    # First without a look at what it says: a session of another version has the same locks.
    lives = lock_is_held(folder, OWNER_LOCK), lock_is_held(folder, WRITER_LOCK)
    try:
        session = Session.attach(folder)
    except ShmStoreError as error:
        return _Page("unknown", 0, 0, *lives), _one_line(error)
    try:
        return _Page(session.state.name.lower(), session.owner_pid, session.writer_pid, *lives), None
    except ValueError as error:
        return _Page("unknown", 0, 0, *lives), _one_line(error)
    finally:
        session.close()


def _recording_of(folder: Path) -> Path | None:
    """Return the file that a session records to, by its own word."""
    try:
        with (folder / "recording").open("rb") as file:
            text = os.fsdecode(file.read(os.pathconf("/", "PC_PATH_MAX"))).strip("\n")
    except OSError:
        return None
    return Path(text) if text and "\0" not in text else None


def _is_finished(recording: Path) -> bool:
    return _state_of(recording) not in (None, "recording")


def _has_content(path: Path) -> bool:
    """Whether anything was ever written into a segment."""
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK_BYTES):
                if block.count(0) != len(block):
                    return True
    except OSError:
        return True
    return False


# -- the disk ------------------------------------------------------------------------------------------------


def find_files(folder: Path, sessions: Iterable[LeftSession] = ()) -> list[LeftFile]:
    """Return what recordings left in a folder and is in nobody's use, by name.

    Parameters
    ----------
    folder
        Where recordings are; folders in it are not searched.
    sessions
        As found: what one of them records to is in use as long as a process has a part in it.

    Raises
    ------
    StorageError
        There is no such folder.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise storage_error(error, "look for leftovers", folder, "check its name and permissions") from None
    used = {Path(session.recording).resolve() for session in sessions if session.recording and session.in_use}
    return list(_leftovers(paths, used))


def recoverable(folder: Path, shm_dir: Path) -> list[Path]:
    """Return the recordings of a folder that can be recovered and whose owner and writer have gone, by name.

    Asks only the kernel, and opens nothing that a recording holds: in a folder in which nothing was left, it
    costs no more than listing it.

    Raises
    ------
    StorageError
        There is no such folder.
    """
    try:
        found = {recording for kind, recording in map(_kind, folder.iterdir()) if kind == "recovery"}
    except OSError as error:
        raise storage_error(error, "look for leftovers", folder, "check its name and permissions") from None
    if not found:
        return []
    lives: dict[Path, bool] = {}
    for session in shm_dir.glob(f"{PREFIX}*"):
        recording = _recording_of(session)
        if recording is not None:
            held = lock_is_held(session, OWNER_LOCK) or lock_is_held(session, WRITER_LOCK)
            lives[recording.resolve()] = held or lives.get(recording.resolve(), False)
    return sorted(recording for recording in found if _is_left(recording, lives.get(recording.resolve())))


def _is_left(recording: Path, lives: bool | None) -> bool:
    """Whether nobody has a recording any more; ``lives``: what its session says, if there is one."""
    if lives:
        return False
    written = is_written(recording)
    # Where the kernel does not tell, it may be recorded in another container, or on another machine.
    return written is False or (written is None and lives is False)


def _leftovers(paths: list[Path], used: set[Path]) -> Iterator[LeftFile]:
    for path in paths:
        kind, recording = _kind(path)
        if kind is None or recording.resolve() in used:
            continue
        remedy = f"shmstore recover {recording}"
        if kind == "quarantine":
            remedy = f"shmstore ingest {path}/*.arrow, then remove it"
        elif kind == "damaged":
            remedy = "remove it, once it is not worth another look"
        elif kind == "recording":
            if not _lies_unfinished(path):
                continue
        elif is_written(recording) or (path.is_file() and is_written(path)):
            continue
        yield LeftFile(str(path), kind, str(recording), _size(path), remedy)


def _kind(path: Path) -> tuple[str | None, Path]:
    """Return what a path is by its name, and the recording that it belongs to."""
    for ending, kind in _BESIDE.items():
        if path.name.endswith(ending) and path.name != ending:
            return kind, path.with_name(path.name.removesuffix(ending))
    return ("recording" if path.is_file() else None), path


def _lies_unfinished(path: Path) -> bool:
    """Whether a file is a recording that says it is being recorded, while nobody has it open for writing."""
    try:
        flags = read_superblock(path).flags
    except (IncompleteFileError, StorageError):
        return False  # not ours
    if _has_writer(path):
        return False
    state = _state_of(path)
    # One that cannot be opened was left in the moment when it was made: its flags say enough.
    unfinished = state == "recording" or (state is None and flags != 0)
    return unfinished and is_written(path) is False


def _state_of(recording: Path) -> str | None:
    """Return the state that a recording's file says; ``None`` if it cannot be read or is no recording."""
    from shmstore.opening import open_file  # brings HDF5, which nobody needs who only asks what lies around

    try:
        with open_file(recording) as file:
            return str(file.attrs["state"])
    except (ShmStoreError, OSError, LookupError, RuntimeError, ValueError):
        return None


def is_written(path: Path) -> bool | None:
    """Whether any process has a file open for writing; ``None`` if the kernel does not tell.

    Asks for a read lease, which the kernel refuses while there is a writer (fcntl(2), "Leases"), and gives it
    back. It tells of one's own files only, and not on every filesystem.
    """
    answer: bool | None = None
    for look in range(_LOOKS):
        if look:
            time.sleep(_WINDOW_S)
        answer = _has_writer(path)
        if answer is not False:
            break
    return answer


def _has_writer(path: Path) -> bool | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        # A writer that comes in this moment waits until the lease is back; the kernel says so by a signal, by
        # default one that would end this process.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    finally:
        os.close(fd)
    return False


def _size(path: Path) -> int:
    """Return the bytes that a file, or a folder with all in it, takes."""
    with contextlib.suppress(OSError):
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            return status.st_blocks * 512
        return sum(_size(inner) for inner in path.iterdir())
    return 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
