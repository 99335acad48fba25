"""The errors that shmstore raises, each with the built-in parent that a caller would catch already.

This module knows nothing of the rest of the package. A message says what happened, to which instrument, and
what to do next; translation from ``errno`` happens once, in :func:`storage_error`.
"""

from __future__ import annotations

import errno
import os
import re

__all__ = [
    "BatchTooLargeError",
    "BrokenError",
    "ClosedError",
    "ConfigError",
    "IncompleteFileError",
    "InvalidValueError",
    "RingFullError",
    "SchemaMismatchError",
    "ShmStoreError",
    "StorageError",
    "UnsupportedTypeError",
    "refusal",
    "storage_error",
]


class ShmStoreError(Exception):
    """Root of everything that shmstore raises on purpose."""


class ClosedError(ShmStoreError):
    """This side was closed before: by :meth:`close`, :meth:`abort`, or the end of the recording."""


class BrokenError(ShmStoreError):
    """The other side failed: the writer, the owner or a producer died or reported a failure."""


class RingFullError(ShmStoreError, TimeoutError):
    """No space came free in the ring: at once (``on_full="raise"``) or within the timeout (``"block"``)."""


class BatchTooLargeError(ShmStoreError, ValueError):
    """A single row, or a loan, is larger than the whole ring."""


class SchemaMismatchError(ShmStoreError, ValueError):
    """A batch has another schema than its instrument; the message shows the first difference."""


class InvalidValueError(ShmStoreError, ValueError):
    """A value does not fit its place: a string longer than ``fixed:N``, a reserved metadata key."""


class UnsupportedTypeError(ShmStoreError, TypeError):
    """A column has an Arrow type that cannot be recorded; the message names the column."""


class StorageError(ShmStoreError, OSError):
    """The machine refused: disk, shared memory, permissions. ``errno`` and ``filename`` are kept."""


class IncompleteFileError(ShmStoreError):
    """The file is no shmstore recording, is damaged, or lacks what was asked for."""


class ConfigError(ShmStoreError, ValueError):
    """A configuration is wrong; the message names the culprit, its source and the nearest valid key."""


_ADVICE = {
    errno.ENOSPC: "free some space or choose another place",
    errno.EDQUOT: "the quota is used up: free some space or ask for more",
    errno.EROFS: "the filesystem is read-only: choose another output_dir",
    errno.EACCES: "check the permissions of the folder, or choose another one",
    errno.EPERM: "check the permissions of the folder, or choose another one",
    errno.ENOTDIR: "a part of the path is a file: choose another folder",
    errno.ENOENT: "create the folder first, or check its name",
    errno.EEXIST: "it exists already and is never overwritten: choose another name",
    errno.EMFILE: "too many open files: raise the limit with `ulimit -n`",
    errno.EFBIG: "the file may not grow further: raise the limit with `ulimit -f`, or use another filesystem",
    errno.EIO: "the device reported an input/output error: check the disk",
}


def refusal(error: BaseException) -> OSError | None:
    """Return what the system said if that is why something failed; ``None``: something else is wrong.

    HDF5 reports a system's error in its text, under whatever class h5py finds for where it happened.

    Examples
    --------
    >>> refusal(
    ...     RuntimeError("Unable to flush file (file write failed: errno = 28, error message = 'No space")
    ... )
    OSError(28, 'No space left on device')
    >>> refusal(RuntimeError("Unable to flush file")), refusal(FileNotFoundError(2, "No such file")).errno
    (None, 2)
    """
    if isinstance(error, OSError) and error.errno:
        return error
    told = re.search(r"errno = (\d+)", str(error))
    code = int(told[1]) if told else 0
    return OSError(code, os.strerror(code)) if code else None


def storage_error(error: OSError, doing: str, path: object, advice: str | None = None) -> StorageError:
    """Translate an ``OSError`` into a one-line :class:`StorageError` that says what to do.

    Parameters
    ----------
    error
        What the system said; its ``errno`` is kept.
    doing
        What was attempted, as in ``"create the recording"``.
    path
        The file or folder concerned.
    advice
        What to do next; by default chosen from the ``errno``.

    Examples
    --------
    >>> error = storage_error(PermissionError(13, "Permission denied"), "create the recording", "data")
    >>> print(error.strerror)
    cannot create the recording: Permission denied: check the permissions of the folder, or choose another one
    """
    code = error.errno or errno.EIO
    # HDF5 puts a report of many lines where the system's own words would stand.
    reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
    advice = advice or _ADVICE.get(code, "see the system's error above")
    return StorageError(code, f"cannot {doing}: {reason}: {advice}", os.fspath(path) if path else None)  # type: ignore[call-overload]
