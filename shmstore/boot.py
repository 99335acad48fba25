"""The writer process, from its boot document to its exit; the other half is in `shmstore.writerprocess`.

A process whose document has not come yet is a standby: it has loaded all modules, and waits.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import shmstore.payload  # noqa: F401 (loaded before the recording begins, not while its first chunk waits)
from shmstore.config import StorageConfig
from shmstore.control import Message, error_reply
from shmstore.disk import DiskFile
from shmstore.errors import BrokenError, ShmStoreError, StorageError, refusal, storage_error
from shmstore.ledger import Ledger
from shmstore.recordingfile import RecordingFile
from shmstore.recoveryfolder import remove_recovery_folder
from shmstore.resumption import LEDGER_BYTES, resume_writer
from shmstore.session import Session, State
from shmstore.steps import step
from shmstore.writer import Suspect, Writer

log = logging.getLogger("shmstore.writer")


#: What the C library keeps of freed memory, and up to which size it takes it from there. What codecs make is
#: freed once it is written; given back to the kernel each time, and faulted in anew, it took a quarter of the
#: processor time of lz4. See mallopt(3): M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, which has this maximum.
_MALLOPT = {-1: 256 << 20, -3: 32 << 20}
#: How long a thread may keep the interpreter while another waits for it. Whoever writes needs it for
#: microseconds between two chunks, and in the default of 5 ms the kernel would take ten of them.
_SWITCH_S = 0.00005


def main() -> None:
    """Wait for the boot document on standard input, then be the writer; started by the owner."""
    owner_fd = _open_owner(int(sys.argv[2]))
    boot = None if owner_fd is None else _await_document(owner_fd)
    if boot is None or owner_fd is None:  # the owner has gone, or has no use for a standby any more
        os._exit(0)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="shmstore writer: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(_SWITCH_S)
    boot["owner_fd"] = owner_fd
    session = Session.attach(Path(boot["session"]))
    config = StorageConfig.from_dict(boot["config"])
    try:
        session.become_writer()
        DiskFile.waiting = session.at_disk
        if boot["resume"] and session.report is not None:
            _end_finished(session, boot["ready_fd"], owner_fd)
        writer = _resume(session, config, boot) if boot["resume"] else _first_writer(session, config, boot)
        if writer is None:
            _end_finished(session, boot["ready_fd"], owner_fd)
    except (ShmStoreError, OSError) as error:
        if boot["resume"]:
            _report_failure(session, owner_fd, error)
        _answer(boot["ready_fd"], error_reply(error))
        sys.exit(1)
    signal.signal(signal.SIGTERM, lambda *_: writer.stop())
    if not boot["resume"]:  # a replacement leaves the state as it was: it may have been closing
        session.state = State.RECORDING
    _answer(boot["ready_fd"], {"path": str(session.recording_path)})
    keep_freed_memory()  # from here on: what it takes to resume is needed once
    gc.freeze()  # what there is by now stays: it need not be looked through again and again
    code = 0
    try:
        writer.run()
    except BaseException as error:  # noqa: BLE001 (nothing is hidden: the owner, or every caller, hears it)
        _report_failure(session, owner_fd, error)
        code = 1
    if not code and _is_gone(owner_fd):
        session.remove()
        step("close.session_removed")
    sys.stderr.flush()
    # Not through the interpreter's own end: it would take its time, which the owner waits for, and after a
    # failure it would close the file and so publish extents whose rows were never written.
    os._exit(code)


def keep_freed_memory() -> None:
    """Have the C library keep what codecs free, for the next chunk; glibc only."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries than glibc have none
        for option, value in _MALLOPT.items():
            mallopt(option, value)


def _end_finished(session: Session, ready_fd: int, owner_fd: int) -> NoReturn:
    """Do what was left to do for a writer that was killed when it had finished the file."""
    remove_recovery_folder(session.recording_path)
    session.state = State.CLOSED
    _answer(ready_fd, {"path": str(session.recording_path)})
    if _is_gone(owner_fd):
        session.remove()
    os._exit(0)


def _open_owner(pid: int) -> int | None:
    """Return a pidfd of the owner, who started this process; ``None`` if it has died since."""
    try:
        owner_fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    return owner_fd if os.getppid() == pid else None  # or else the pid is another process's by now


def _await_document(owner_fd: int) -> Message | None:
    """Wait for one line on standard input; ``None``: there will be none."""
    data = b""
    while not data.endswith(b"\n"):
        ready = select.select([0, owner_fd], [], [])[0]
        # The pipe alone does not tell that the owner has died: a forked child of it may hold the other end.
        part = os.read(0, 1 << 16) if 0 in ready else b""
        if not part:
            return None
        data += part
    document: Message = json.loads(data)
    return document


def _first_writer(session: Session, config: StorageConfig, boot: Message) -> Writer:
    """Make the file, and a writer for it."""
    listener = socket.socket(fileno=boot["listener_fd"])
    listener.setblocking(False)
    _check_space(config)
    file = _create_file(config, boot["application"])
    session.recording_path = file.path
    ledger = Ledger.create(session.ledger_path(1), LEDGER_BYTES)
    return Writer(session, config, file, listener, boot["owner_fd"], ledger)


def _resume(session: Session, config: StorageConfig, boot: Message) -> Writer | None:
    """Make a writer that goes on where another one ended; ``None``: the file was finished.

    Raises
    ------
    ShmStoreError
        It cannot, for whatever reason.
    """
    listener = socket.socket(fileno=boot["listener_fd"])
    listener.setblocking(False)
    suspect = Suspect(**boot["suspect"])
    try:
        return resume_writer(
            session, config, session.recording_path, listener, boot["owner_fd"], suspect, boot["ending"]
        )
    except (ShmStoreError, OSError):
        raise
    except Exception as error:
        if (refused := refusal(error)) is not None:
            raise storage_error(refused, "go on with the recording", session.recording_path) from None
        log.exception("a writer cannot resume")
        raise BrokenError(f"cannot resume: {error!r}") from error


def _is_gone(owner_fd: int) -> bool:
    return bool(select.select([owner_fd], [], [], 0)[0])


def _report_failure(session: Session, owner_fd: int, error: BaseException) -> None:
    """Say what went wrong: to the owner, who may have this writer replaced, or else to whoever asks next."""
    if not isinstance(error, ShmStoreError):
        # HDF5's own text has many lines, and says of many an error of the disk that it is another one.
        refused = refusal(error) or (error if isinstance(error, OSError) else None)
        if refused is not None:
            error = storage_error(refused, "write the recording", session.recording_path)
    reason = " ".join(str(error).split()) if isinstance(error, ShmStoreError) else repr(error)
    if isinstance(error, StorageError):
        reason = error.strerror or reason  # the number and the path travel beside it
    kind = type(error).__name__ if isinstance(error, ShmStoreError) else "BrokenError"
    code = error.errno if isinstance(error, StorageError) else None
    trace = None if isinstance(error, ShmStoreError) else error
    if _is_gone(owner_fd):
        text = f"the writer failed: {reason}; {session.kept}"
        log.error(text, exc_info=trace)
        session.fail(kind, text, code)
    else:
        if trace is not None:  # the rest is the supervisor's to tell
            log.error("the writer failed", exc_info=trace)
        session.leave_reason(kind, f"failed: {reason}", code)


def _check_space(config: StorageConfig) -> None:
    """Refuse to begin a recording that would have to stop at once."""
    try:
        filesystem = os.statvfs(config.output_dir)
    except OSError as error:
        raise storage_error(error, "create the recording", config.output_dir) from None
    if not filesystem.f_blocks:  # no disk at all: what cannot be written there is found on the way
        return
    free = filesystem.f_bavail * filesystem.f_frsize
    if free < config.disk_reserve_bytes:
        raise storage_error(
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "create the recording",
            config.output_dir,
            f"{free} bytes are left there, disk_reserve_bytes are {config.disk_reserve_bytes}: free some "
            "space, or set that lower",
        )
    if free < config.disk_warn_bytes:
        log.warning("only %d bytes are left on the disk of %s", free, config.output_dir)


def _create_file(config: StorageConfig, application: str) -> RecordingFile:
    """Make the file under the first free name; a name that the user chose must be free."""
    now = datetime.now().astimezone()
    attributes = {
        "created_at": now.isoformat(),
        "created_timestamp_ns": time.time_ns(),
        "application": config.application or application,
        "state": "recording",
    }
    stem = f"daq_session_{now:%Y%m%d_%H%M%S}"
    count = 0
    while True:
        name = config.filename or (f"{stem}_{count}.h5" if count else f"{stem}.h5")
        try:
            return RecordingFile.create(
                config.output_dir.absolute() / name,
                attributes,
                json.dumps(config.to_dict()),
                recoverable=config.recoverable,
            )
        except StorageError as error:
            if config.filename or not isinstance(error.__context__, FileExistsError):
                raise
            count += 1


def _answer(fd: int, message: Message) -> None:
    os.write(fd, json.dumps(message).encode())  # in one piece: it fits a pipe
    os.close(fd)
