"""The writer process, from its boot document to its exit; the other half is in `shmstore.storage`."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np

import shmstore.payload  # noqa: F401 (loaded before the recording begins, not while its first chunk waits)
from shmstore.config import StorageConfig
from shmstore.control import Message, error_reply
from shmstore.dataset import RecordingFile
from shmstore.errors import ShmStoreError, StorageError, storage_error
from shmstore.session import Session, State
from shmstore.writer import Writer

log = logging.getLogger("shmstore.writer")


def main() -> None:
    """Run the writer; started by the owner with a boot document on standard input."""
    boot = json.load(sys.stdin)
    logging.basicConfig(stream=sys.stderr, level=logging.ERROR, format="shmstore writer: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    session = Session.attach(Path(boot["session"]))
    listener = socket.socket(fileno=boot["listener_fd"])
    listener.setblocking(False)
    try:
        config = StorageConfig.from_dict(boot["config"])
        owner_fd = os.pidfd_open(boot["owner_pid"])
        file = _create_file(config, boot["application"])
    except (ShmStoreError, OSError) as error:
        _answer(boot["ready_fd"], error_reply(error))
        sys.exit(1)
    session.become_writer()
    writer = Writer(session, config, file, listener, owner_fd)
    signal.signal(signal.SIGTERM, lambda *_: writer.stop())
    session.state = State.RECORDING
    _answer(boot["ready_fd"], {"path": str(file.path)})
    code = 0
    try:
        writer.run()
    except BaseException as error:  # noqa: BLE001 (nothing is hidden: it is latched for every caller)
        _report_failure(session, file, error)
        code = 1
    if writer.owner_gone and not code:
        session.remove()
    sys.stderr.flush()
    # Not through the interpreter's own end: it would take its time, which the owner waits for, and after a
    # failure it would close the file and so publish extents whose rows were never written.
    os._exit(code)


def _report_failure(session: Session, file: RecordingFile, error: BaseException) -> None:
    """Latch what went wrong, for whoever puts, flushes or closes next."""
    if isinstance(error, OSError) and not isinstance(error, ShmStoreError):
        error = storage_error(error, "write the recording", file.path)  # HDF5's own text has many lines
    reason = " ".join(str(error).split()) if isinstance(error, ShmStoreError) else repr(error)
    if isinstance(error, StorageError):
        reason = error.strerror or reason  # the number and the path travel beside it
    text = f"the writer failed: {reason}"
    log.error(text, exc_info=None if isinstance(error, ShmStoreError) else error)
    kind = type(error).__name__ if isinstance(error, ShmStoreError) else "BrokenError"
    session.fail(kind, text, error.errno if isinstance(error, StorageError) else None)


def _create_file(config: StorageConfig, application: str) -> RecordingFile:
    """Make the file under the first free name; a name that the user chose must be free."""
    now = datetime.now().astimezone()
    attributes = {
        "created_at": now.isoformat(),
        "created_timestamp_ns": np.uint64(time.time_ns()),
        "application": config.application or application,
        "state": "recording",
    }
    stem = f"daq_session_{now:%Y%m%d_%H%M%S}"
    count = 0
    while True:
        name = config.filename or (f"{stem}_{count}.h5" if count else f"{stem}.h5")
        try:
            return RecordingFile.create(
                config.output_dir.absolute() / name, attributes, json.dumps(config.to_dict())
            )
        except StorageError as error:
            if config.filename or not isinstance(error.__context__, FileExistsError):
                raise
            count += 1


def _answer(fd: int, message: Message) -> None:
    os.write(fd, json.dumps(message).encode())
    os.close(fd)
