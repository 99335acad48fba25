"""The recovery's process: `recover` as users call it, which has the work done by an interpreter of its own.

When a disk refuses a write in the wrong place, HDF5 takes the process along in which it runs, or leaves files
open in it that cannot be closed any more. So the caller's process is not the one. How a recording is
recovered is not known here.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from dataclasses import asdict
from typing import NoReturn

from shmstore.errors import BrokenError, StorageError, storage_error
from shmstore.opening import wait_for_hdf5
from shmstore.rebuilding import Progress
from shmstore.recovery import RecoveryReport, clear_up
from shmstore.recovery import recover as recover_here
from shmstore.watchedprocess import Say, Words, ask

_ERRNO = re.compile(r"\berrno = (\d+)")
#: Time between two looks at whether HDF5 has come back; in it, all processors together use seconds at most.
_BEAT_S = 0.1


def recover(
    recording: str | os.PathLike[str],
    *,
    shm_dir: str | os.PathLike[str] = "/dev/shm",
    progress: Progress | None = None,
) -> RecoveryReport:
    """Make a recording whole whose processes were killed, or whose machine lost its power.

    Takes as long as copying the file and reading it, and needs as much room again on its disk. Until all is
    done the original is not touched. May be called again at any time, also after it was killed itself.

    Parameters
    ----------
    recording
        The HDF5 file, or the name of the session that was recording it.
    shm_dir
        Folder for shared memory, if the recording used another.
    progress
        Called now and then with the bytes copied and those in all.

    Returns
    -------
    RecoveryReport
        What was found and done.

    Raises
    ------
    IncompleteFileError
        There is no such recording, or nothing that it could be made whole from.
    BrokenError
        It is still being recorded, or recovered by somebody else; or the process that did it was killed.
    StorageError
        The disk or shared memory refuses.
    """

    def hear(words: Words) -> None:
        if progress is not None and "done" in words:
            progress(words["done"], words["total"])

    ending = ask(__name__, os.fspath(recording), os.fspath(shm_dir), hear=hear)
    if ending.answer is not None:
        return RecoveryReport(**ending.answer | {"problems": tuple(ending.answer["problems"])})
    if ending.hung:
        clear_up(recording, shm_dir)  # the next one would end in the same way
        raise BrokenError(
            f"the process that recovered {recording} was ended, as HDF5 came to no end in it"
            f"{_while(ending.at)}: the file is damaged, and untouched: restore it from a copy, "
            "or start again"
        )
    how = f"was killed by signal {-ending.code}" if ending.code < 0 else str(ending)
    raise BrokenError(
        f"the process that recovered {recording} {how}{_while(ending.at)}, and can be started again"
        + (f": {ending.last_line}" if ending.last_line else "")
    )


def _while(at: str) -> str:
    return f" while it read {at}" if at else ""


def _with_errno(error: Exception) -> Exception:
    """Return the system's error that HDF5 tells of in its text only; any other as it is."""
    told = _ERRNO.search(str(error))
    if isinstance(error, RuntimeError) and told:
        number = int(told[1])
        return OSError(number, os.strerror(number))
    return error


def _beat(say: Say) -> NoReturn:
    """Keep the watch from ending this process as long as HDF5 comes back from each call."""
    while True:
        wait_for_hdf5()
        say.alive()
        time.sleep(_BEAT_S)


def main(say: Say, recording: str, shm_dir: str) -> Words:
    """Recover for whoever is told; in the process."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # if the caller has gone: it is good to end what was begun
    threading.Thread(target=_beat, args=(say,), name="shmstore-beat", daemon=True).start()
    try:
        report = recover_here(recording, shm_dir=shm_dir, progress=say.progress, tell=say)
    except Exception as error:
        error = _with_errno(error)
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            error = storage_error(error, "recover the recording", recording)
        raise error
    return asdict(report)
