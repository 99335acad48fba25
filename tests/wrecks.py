"""Real recordings whose owner and writer were killed, for the tests of what they leave behind."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from children import Child

from shmstore import HDF5Storage, Producer

ROWS = 100
BATCH = pa.record_batch({"t": pa.array(range(ROWS)), "text": ["a", None] * (ROWS // 2)})

REFUSED = pa.record_batch({"text": ["far too long"] * 5})


class Wreck(NamedTuple):
    """What is left of a killed recording."""

    path: Path
    folder: Path
    owner: int
    writer: int


class Faulty:
    """A producer of instrument y that does not check what it puts."""

    def __init__(self, storage: HDF5Storage) -> None:
        self._storage = storage
        self._producer: Producer | None = None

    def put(self) -> None:
        """Put a batch whose text is longer than its column."""
        if self._producer is None:
            self._producer = self._storage.producer("y", REFUSED.schema, strings="fixed:4")
            self._producer.put(pa.record_batch({"text": ["fine"]}))
            assert self._producer._declared
            self._producer._declared = self._producer._declared._replace(checked=())
        self._producer.put(REFUSED)


def owner_in(output_dir: Path, shm_dir: Path, name: str) -> Child:
    """Start a process that owns a recording; it says the file and the writer, then does what it is told.

    ``put``: a batch of instrument x; ``refused``: one of instrument y that the file cannot take; ``flush``;
    and ``stop``: no batch is taken from a ring any more.
    """
    return Child(
        "import os, signal, shmstore",
        "from wrecks import BATCH, Faulty",
        f"storage = shmstore.HDF5Storage(output_dir={str(output_dir)!r}, shm_dir={str(shm_dir)!r},",
        f"    name={name!r}, ring_bytes='256KiB', recover_at_start=False).start()",
        "faulty = Faulty(storage)",
        "say(storage.path)",
        "say(storage.writer_pid)",
        "actions = {",
        "    'put': lambda: storage.write_batch('x', BATCH),",
        "    'refused': faulty.put,",
        "    'flush': storage.flush,",
        "    'stop': lambda: os.kill(storage.writer_pid, signal.SIGSTOP),",
        "}",
        "while order := wait():",
        "    actions[order.strip()]()",
        "    say('done')",
        also=Path(__file__).parent,
    )


def kill_both(owner: Child, writer: int) -> None:
    """Kill a writer and its owner, which must not get to replace it."""
    os.kill(owner.pid, signal.SIGSTOP)
    exited = os.pidfd_open(writer)
    try:
        os.kill(writer, signal.SIGKILL)
        assert select.select([exited], [], [], 30)[0]
    finally:
        os.close(exited)
    owner.end()


def wreck(output_dir: Path, shm_dir: Path, *orders: str, name: str = "wreck") -> Wreck:
    """Record as ordered, then kill the writer and the owner."""
    with owner_in(output_dir, shm_dir, name) as owner:
        path, writer = Path(owner.hear()), int(owner.hear())
        for order in orders:
            owner.tell(order)
            assert owner.hear() == "done"
        kill_both(owner, writer)
    return Wreck(path, shm_dir / f"shmstore-{name}", owner.pid, writer)
