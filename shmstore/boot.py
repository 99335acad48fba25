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

from shmstore.config import StorageConfig
from shmstore.control import Message, error_reply
from shmstore.dataset import RecordingFile
from shmstore.errors import ShmStoreError, StorageError
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
    try:
        writer.run()
    except BaseException as error:
        reply = (
            error_reply(error)
            if isinstance(error, Exception)
            else {"error": "BrokenError", "message": repr(error)}
        )
        session.fail(reply["error"], f"the writer failed: {reply['message']}")
        expected = isinstance(error, (ShmStoreError, OSError))
        log.error("the writer failed: %s", error, exc_info=not expected)
        sys.exit(1)
    if writer.owner_gone:
        session.remove()
    sys.stderr.flush()
    # Nothing is left to do but for the interpreter to take itself apart, and the owner waits for this
    # process.
    os._exit(0)


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
