"""The folder beside a recording: what it takes to make its file whole, as long as it is not.

It is there from the file's making to its clean end. What is in it has modules of its own: the journal, and
the tail files.
"""

from __future__ import annotations

import errno
from pathlib import Path

from shmstore.disk import DiskFile
from shmstore.errors import storage_error
from shmstore.steps import step
from shmstore.tailfile import TailFile


def recovery_folder(path: Path) -> Path:
    """Return the folder beside a recording with what it takes to make it whole; gone after a clean end."""
    return path.with_name(path.name + ".recovery")


def remove_recovery_folder(path: Path) -> None:
    """Remove what lies beside a recording that is whole, but nothing that somebody else put there.

    Raises
    ------
    StorageError
        The folder does not allow it.
    """
    folder = recovery_folder(path)
    TailFile(folder).remove()
    try:
        with DiskFile.waiting():  # it may be long
            (folder / "journal").unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, "remove the journal", folder / "journal") from None
    step("close.journal_removed")
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise storage_error(error, "remove the recovery folder", folder) from None
