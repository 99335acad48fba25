"""What an error means as an exit code."""

from __future__ import annotations

import errno

from shmstore.cli.screen import DependencyError
from shmstore.errors import IncompleteFileError, ShmStoreError, StorageError

#: Done, but something was lost, refused or found wrong.
LOSS = 1
#: The call or its input was wrong.
WRONG_CALL = 2
#: The environment failed: disk, memory, dependency.
ENVIRONMENT = 3

#: What fails here is the machine's fault; all else that the system refuses is the file's, or its name's.
_MACHINE = {
    errno.EIO,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
}


def exit_code(error: BaseException) -> int:
    """Return the exit code that an error means."""
    if isinstance(error, StorageError | DependencyError | MemoryError):
        return ENVIRONMENT
    # Every error that a wrong argument causes has one of the built-in parents.
    if isinstance(error, ValueError | TypeError | IncompleteFileError):
        return WRONG_CALL
    # A full ring is a loss, although a timeout is an OSError.
    if isinstance(error, ShmStoreError):
        return LOSS
    return ENVIRONMENT


def file_exit_code(error: BaseException) -> int:
    """Return the exit code that an error means of a command to which files or folders were named."""
    if isinstance(error, StorageError):
        return ENVIRONMENT if error.errno in _MACHINE else WRONG_CALL
    return exit_code(error)
