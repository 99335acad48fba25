"""The recovery's process: `recover` as users call it, which has the work done by an interpreter of its own.

When a disk refuses a write in the wrong place, HDF5 takes the process along in which it runs, or leaves files
open in it that cannot be closed any more. So the caller's process is not the one. How a recording is
recovered is not known here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from shmstore.control import error_reply, raise_error
from shmstore.errors import BrokenError, ShmStoreError, StorageError, storage_error
from shmstore.rebuilding import Progress
from shmstore.recovery import RecoveryReport
from shmstore.recovery import recover as recover_here

# -P keeps the working directory off sys.path: a stray numpy.py in a data folder must not be imported.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from shmstore.recoveryprocess import main; main()"
)
_ERRNO = re.compile(r"\berrno = (\d+)")
#: Time between two words on the progress.
_PROGRESS_S = 0.1


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
    if not sys.executable:
        raise BrokenError("this interpreter does not know its own executable: set sys.executable to recover")
    paths = json.dumps([entry or str(Path.cwd()) for entry in sys.path])
    # HDF5 has much to say on standard error when a disk fails; it is of use only if there is no answer.
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, paths, os.fspath(recording), os.fspath(shm_dir)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # a Ctrl-C in the caller's terminal is for the caller
        )
        try:
            answer = _listen(process, progress)
        except BaseException:
            process.kill()
            raise
        finally:
            code = process.wait()
        errors.seek(0)
        last_words = errors.read().decode(errors="replace").strip().splitlines()[-1:]
    if "report" in answer:
        report = answer["report"]
        return RecoveryReport(**report | {"problems": tuple(report["problems"])})
    if "error" in answer:
        raise_error(**{{"error": "kind"}.get(key, key): value for key, value in answer.items()})
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    raise BrokenError(
        f"the process that recovered {recording} {how}, and can be started again"
        + "".join(f": {line}" for line in last_words)
    )


def _listen(process: subprocess.Popen[bytes], progress: Progress | None) -> dict[str, Any]:
    """Return the last word of the process: its report, or what went wrong; empty if it came to none."""
    answer: dict[str, Any] = {}
    if process.stdout is not None:
        with process.stdout as lines:
            for line in lines:
                said = json.loads(line)
                if "done" not in said:
                    answer = said
                elif progress is not None:
                    progress(said["done"], said["total"])
    return answer


def _with_errno(error: Exception) -> Exception:
    """Return the system's error that HDF5 tells of in its text only; any other as it is."""
    told = _ERRNO.search(str(error))
    if isinstance(error, RuntimeError) and told:
        number = int(told[1])
        return OSError(number, os.strerror(number))
    return error


def main() -> None:
    """Recover what the command line names, and tell the caller on standard output; never returns."""
    recording, shm_dir = sys.argv[2:4]
    logging.disable()  # what was lost is in the report
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nobody else may talk there
    last = 0.0

    def say(**words: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # whoever asked has gone: it is good to end what was begun
            print(json.dumps(words), file=out, flush=True)

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _PROGRESS_S or done == total:
            last = time.monotonic()
            say(done=done, total=total)

    code = 0
    try:
        report = recover_here(recording, shm_dir=shm_dir, progress=progress)
        say(report={name: getattr(report, name) for name in report.__slots__})
    except Exception as error:  # noqa: BLE001 (nothing is hidden: it is said to the caller's process)
        error = _with_errno(error)
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            error = storage_error(error, "recover the recording", recording)
        if not isinstance(error, ShmStoreError):
            traceback.print_exc()
        say(**error_reply(error))
        code = 1
    # Not through the interpreter's own end: HDF5 would write to a file that could not be written to.
    os._exit(code)
