"""Opening a recording's HDF5 file to read: finished, being written, or left by a writer that was killed.

Owns how HDF5's many ways to refuse a file become one line with a remedy, how long a file is held, and the
wait for the moments in which the writer has it to itself. Knows nothing of instruments, columns and Arrow.

No lock is taken on a live file: a reader's lock, however short, would make the writer's own reopening fail.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import h5py
import hdf5plugin  # noqa: F401  registers the filters that files may need
from h5py._objects import phil  # the lock that h5py takes around every call of HDF5

from shmstore.errors import ClosedError, IncompleteFileError, StorageError, storage_error

#: Newest major version of the format that is understood here.
FORMAT_MAJOR = 1
#: How long to wait for a writer, which takes < 1 ms to add objects, before that counts as an error.
WINDOW_S = 2.0
_RETRY_S = 0.002
#: How often HDF5 reads metadata of a live file whose checksum is wrong. It pauses between, twice as long each
#: time, from 1 ns: so many attempts take 1 ms, and its own choice of 100 would take a damaged file for ever.
_METADATA_ATTEMPTS = 20
_OWN_GROUP = "_shmstore"
#: What HDF5 says if this process has the file open with another choice of locking.
_OPEN_OTHERWISE = "file locking"
#: What HDF5 says of a file that has a writer, or had one that was killed.
_WRITER_HAS_IT = ("already open for", "SWMR", "unable to lock")
# Handles of one process on one file share what HDF5 has cached: a second one would see the first one's past.
_ONE_LIVE_FILE = threading.RLock()

Result = TypeVar("Result")


class OpenedFile:
    """A recording's file while somebody reads it.

    A finished file is held open until :meth:`close`. A live one is opened anew for each :meth:`look`, at a
    cost of 0.4 ms: a handle shows neither groups nor datasets that were made after it was opened.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    StorageError
        The system refuses: no such file, no permission; ``errno`` is kept.
    IncompleteFileError
        It is no shmstore recording, is cut off or damaged, or of a newer format.

    Attributes
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._closed = False
        self._file: h5py.File | None = None
        self.refresh()

    @property
    def live(self) -> bool:
        """Whether the file says that it is being recorded. So does one that a killed writer left behind."""
        return self._file is None

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def refresh(self) -> None:
        """Notice that a live file is finished; from then on it is held open."""
        if self._file is not None or self._closed:
            return
        with _ONE_LIVE_FILE:
            file = open_file(self.path)
            if file.swmr_mode:
                file.close()
            else:
                self._file = file

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._closed = True
        if self._file is not None:
            self._file.close()

    def look(self, attempt: Callable[[h5py.File], Result]) -> Result:
        """Return what ``attempt`` makes of the file; it must not keep anything of it.

        If the file is live and the writer gets in between, tries again for up to `WINDOW_S`. Blocks while
        another thread looks at a live file.

        Raises
        ------
        ClosedError
            It was closed before.
        StorageError
            This process has the live file open by other means.
        """
        if self._closed:
            raise ClosedError(f"the recording {self.path} was closed: open it again")
        if self._file is not None:
            return attempt(self._file)

        def look() -> Result:
            with _ONE_LIVE_FILE, open_file(self.path, live=True) as file:
                if file.swmr_mode and h5py.h5f.get_obj_count(file.id, h5py.h5f.OBJ_FILE) > 1:
                    raise _busy(self.path)
                return attempt(file)

        return _persist(look, lambda error: isinstance(error, IncompleteFileError))


def open_file(path: Path, *, live: bool = False) -> h5py.File:
    """Open a recording's file, in SWMR mode if its state is ``"recording"``; the caller closes it.

    Parameters
    ----------
    path
        The file.
    live
        Whether it is known to be recorded still: saves one attempt.

    Raises
    ------
    StorageError, IncompleteFileError
        As `OpenedFile`.
    """
    _check_readable(path)
    try:
        file = _persist(lambda: _open(path, live), _writer_has_it)
    # Which of these h5py raises for a damaged root depends on the place of the damage.
    except (OSError, LookupError, RuntimeError, ValueError, TypeError) as error:
        raise _refusal(path, error) from None
    try:
        _check_recording(path, file)
    except BaseException:
        file.close()
        raise
    return file


def wait_for_hdf5() -> None:
    """Wait until no thread of this process is in HDF5: for ever, if one does not come back from it."""
    with phil:
        pass


@contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
    """Turn what h5py raises within the block into an `IncompleteFileError` that names the file and the part.

    Parameters
    ----------
    path
        The file that is read.
    what
        The part of it, as in ``"instrument 'camera_1', column 'time'"``.
    """
    try:
        yield
    except IncompleteFileError as error:
        message = str(error)
        raise IncompleteFileError(
            message if message.startswith(str(path)) else f"{path}: {what}: {message}"
        ) from None
    except StorageError:
        raise
    # Which of these h5py raises for a damaged file depends on the place of the damage.
    except (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise IncompleteFileError(
            f"{path}: {what}: damaged ({_reason(error)}): restore it from a copy; the rest may be readable"
        ) from None


def _persist(attempt: Callable[[], Result], passing: Callable[[Exception], bool]) -> Result:
    """Call ``attempt`` until it succeeds, its error is not a ``passing`` one, or `WINDOW_S` is over."""
    deadline = time.monotonic() + WINDOW_S
    while True:
        try:
            return attempt()
        except Exception as error:
            if not passing(error) or time.monotonic() > deadline:
                raise
        time.sleep(_RETRY_S)


def _check_readable(path: Path) -> None:
    """Let the system speak first: its errors carry an errno, HDF5's often do not."""
    advice = "check its name and permissions"
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            advice = "name a file in it"
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if not stat.S_ISREG(mode):
            advice = "name an HDF5 file"
            raise OSError(errno.EINVAL, "it is no regular file")
        with path.open("rb") as file:
            first = file.read(8)
    except OSError as error:
        raise storage_error(error, "open the recording", path, advice) from None
    if not first:
        raise IncompleteFileError(
            f"{path} is empty: it was not copied whole, or nothing was recorded into it"
        )


def _open(path: Path, live: bool) -> h5py.File:
    if not live:
        try:
            if not _says_recording(path):
                return _open_finished(path)
        except OSError as error:
            if not _writer_has_it(error):
                raise
    return _open_live(path)


def _open_live(path: Path) -> h5py.File:
    """Open in SWMR mode, without a lock."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_file_locking(False, False)
    with phil:
        # h5py has no word for it; the symbol is found among the libraries that its module needs.
        refused = ctypes.PyDLL(h5py.h5p.__file__).H5Pset_metadata_read_attempts(
            ctypes.c_int64(access.id), ctypes.c_uint(_METADATA_ATTEMPTS)
        )
    if refused:
        raise RuntimeError("HDF5 does not take the number of its attempts to read metadata")
    flags = h5py.h5f.ACC_RDONLY | h5py.h5f.ACC_SWMR_READ
    return h5py.File(h5py.h5f.open(os.fsencode(path), flags, access))


def _says_recording(path: Path) -> bool:
    """Return whether the file is live: between two steps of its writer it opens like any other."""
    with _open_plainly(path, (False, None, True)) as file:
        return bool(file.attrs.get("state") == "recording")


def _open_finished(path: Path) -> h5py.File:
    """Open with h5py's own choice of locking, so that the caller can use h5py beside."""
    return _open_plainly(path, (None, False, True))


def _open_plainly(path: Path, lockings: Sequence[bool | None]) -> h5py.File:
    """Open with the first choice of locking that goes: HDF5 wants the same for all handles of a process."""
    *others, last = lockings
    for locking in others:
        try:
            return h5py.File(path, "r", locking=locking)
        except OSError as error:
            # Only these: on a live file no choice may be tried that takes a lock.
            if not any(words in str(error) for words in (_OPEN_OTHERWISE, "unable to lock file")):
                raise
    return h5py.File(path, "r", locking=last)


def _writer_has_it(error: Exception) -> bool:
    return any(words in str(error) for words in _WRITER_HAS_IT)


def _busy(path: Path) -> StorageError:
    text = "this process has the live recording open through h5py too, which would show old rows: close that"
    return StorageError(errno.EBUSY, text, str(path))


def _refusal(path: Path, error: Exception) -> IncompleteFileError | StorageError:
    reason = _reason(error)
    if _OPEN_OTHERWISE in reason:
        return _busy(path)
    if _writer_has_it(error):
        return IncompleteFileError(
            f"{path} is not readable ({reason}): its writer is changing it, or was killed doing so; "
            "try again, or repair a copy with `h5clear -s`"
        )
    if "signature not found" in reason:
        return IncompleteFileError(f"{path} is no HDF5 file: name a file that shmstore recorded")
    if "truncated file" in reason:
        return IncompleteFileError(f"{path} is cut off ({reason}): copy it again, whole")
    return IncompleteFileError(f"{path} is damaged ({reason}): restore it from a copy")


def _reason(error: BaseException) -> str:
    """Return HDF5's own words on one line, without the part that every message has."""
    text = " ".join(str(error).split())
    if text.startswith("Unable to") and text.endswith(")") and "(" in text:
        text = text[text.index("(") + 1 : -1]
    return text or type(error).__name__


def _check_recording(path: Path, file: h5py.File) -> None:
    with naming(path, f"group {_OWN_GROUP!r}"):
        own = file.get(_OWN_GROUP)
        version = own.attrs.get("format_version") if isinstance(own, h5py.Group) else None
    if version is None:
        raise IncompleteFileError(f"{path} is HDF5 but no shmstore recording: open it with h5py")
    major = str(version).split(".")[0]
    if not major.isdecimal():
        raise IncompleteFileError(f"{path} has the format version {version!r}, which is none: restore a copy")
    if int(major) > FORMAT_MAJOR:
        raise IncompleteFileError(
            f"{path} has format {version}, newer than this shmstore reads ({FORMAT_MAJOR}.x): update shmstore"
        )
