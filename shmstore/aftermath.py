"""The aftermath: what dead recordings left in a folder is recovered while a new one records there.

Owns the process that does it: of low priority, apart from owner and writer, so that neither waits for it, and
with a log in the folder. Who lives is asked of :mod:`shmstore.leftovers`; how a recording is recovered is
:mod:`shmstore.recovery`'s to know, which nobody else needs to load.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from shmstore.errors import ShmStoreError
from shmstore.leftovers import find_sessions, recoverable

log = logging.getLogger("shmstore.storage")

LOG_NAME = "shmstore-recovery.log"
_NICE = 10
# -P keeps the working directory off sys.path: a stray numpy.py in a data folder must not be imported.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from shmstore.aftermath import main; main(sys.argv[2], sys.argv[3:])"
)


def recover_left_behind(output_dir: Path, shm_dir: Path) -> subprocess.Popen[bytes] | None:
    """Have another process recover what dead recordings left in a folder; does not wait for it.

    What is still being recorded, or recovered by somebody else, is left alone. Whatever goes wrong is said in
    a warning, and does not concern the recording that begins.

    Parameters
    ----------
    output_dir
        Where recordings are.
    shm_dir
        Folder for shared memory.

    Returns
    -------
    subprocess.Popen or None
        The process, for `await_recovery`; ``None`` if nothing was left behind.
    """
    log_path = output_dir.absolute() / LOG_NAME
    try:
        left = recoverable(output_dir.absolute(), shm_dir.absolute())
        if not left:
            return None
        with log_path.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, _search_path(), str(shm_dir.absolute()), *left],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C in the owner's terminal is for the owner
            )
    except (ShmStoreError, OSError) as error:
        log.warning("what was left behind in %s is not recovered: %s", output_dir, error)
        return None
    names = ", ".join(recording.name for recording in left)
    log.warning(
        "left behind in %s by processes that have died: %s; recovered meanwhile by process %d, see %s",
        output_dir,
        names,
        process.pid,
        log_path,
    )
    return process


def await_recovery(process: subprocess.Popen[bytes] | None, timeout_s: float) -> None:
    """Wait until a recovery has ended; one that takes longer goes on by itself, and a warning says so."""
    if process is None:
        return
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        log.warning("process %d goes on recovering what was left behind", process.pid)
        threading.Thread(target=process.wait, name="shmstore-recovery", daemon=True).start()  # reaps it


def main(shm_dir: str, recordings: Sequence[str]) -> None:
    """Recover recordings, one after the other, and say on standard output what came of it."""
    os.nice(_NICE)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not without letting go of shared memory
    logging.getLogger("shmstore.writer").addHandler(logging.NullHandler())  # the report says the same
    from shmstore.recovery import recover

    _say(f"recovering, as process {os.getpid()} at niceness {os.nice(0)}")
    for recording in recordings:
        # Its owner and writer have gone, but a producer may live: then it is not left behind.
        if _in_use(Path(recording), Path(shm_dir)):
            _say(f"left alone: {recording} is in use: see `shmstore doctor`")
            continue
        try:
            _say(str(recover(recording, shm_dir=shm_dir)))
        except ShmStoreError as error:
            _say(f"not recovered: {recording}: {error}")
    _say("done")


def _in_use(recording: Path, shm_dir: Path) -> bool:
    return any(
        session.in_use and session.recording and Path(session.recording).resolve() == recording.resolve()
        for session in find_sessions(shm_dir)
    )


def _search_path() -> str:
    return json.dumps([entry or str(Path.cwd()) for entry in sys.path])


def _say(text: str) -> None:
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    sys.stdout.write("".join(f"{now} {line}\n" for line in text.splitlines()))
    sys.stdout.flush()
