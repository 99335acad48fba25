"""Steps: the names of the moments at which a process may be killed, for the tests that do it there.

Between any two changes of state that a crash can part from each other stands a call of `step` with a name
from `STEPS`. It does nothing, unless the environment says so when shmstore is imported::

    SHMSTORE_STEP=<name>[:<n>]=kill|stop|exit|note[,...]    at the n-th time, by default the first
    SHMSTORE_STEP_ONCE=<folder>                             where a file of the step's name is made then

``kill`` and ``stop`` send the process SIGKILL or SIGSTOP, ``exit`` ends it at once with code 70, ``note``
only makes the file. All processes of a recording inherit the variables; whoever comes to a step first makes
its file, and nobody does it again. This is a fault hook for tests, in the spirit of SQLite's, and for nothing
else.

What the steps mean is told here, and nowhere what becomes of who dies there: see ``docs/crash-table.md``.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

#: What the hook listens to, and no setting of a recording.
VARIABLES = ("SHMSTORE_STEP", "SHMSTORE_STEP_ONCE")
_ACTIONS = ("kill", "stop", "exit", "note")
_EXIT_CODE = 70

#: Every step, and what is so at that moment.
STEPS: Mapping[str, str] = MappingProxyType(
    {
        "producer.ring_made": "its ring is made, and the writer knows nothing of it",
        "producer.ring_attached": "the writer has its ring, and knows no schema for it",
        "producer.claimed": "it holds the place of the ring's producer, and has not put anything",
        "producer.declared": "the writer has taken its schema, and it does not know that yet",
        "producer.waiting": "the ring is full, and it has said that it waits",
        "producer.pad_written": "the end of the lap is filled, and the next slot still stands before it",
        "producer.reserved": "there is room for a batch, and nothing is written",
        "producer.body_written": "the batch is written, its slot has no header",
        "producer.loan_open": "a loan is open",
        "producer.header_written": "the header is written, its seal is not",
        "producer.sealed": "the slot is sealed, and not counted",
        "producer.half_counted": "the slot is counted, its rows are not",
        "producer.counted": "slot and rows are counted, and the head stands before the slot",
        "producer.before_bell": "a batch is put, and not announced",
        "producer.after_bell": "a batch is put and announced",
        "producer.ended": "it has said that nothing more comes, and still holds its place",
        "writer.slot_taken": "a slot is taken, nothing of it is read",
        "writer.distributed": "the rows of a slot are in tails and on their way to codecs",
        "writer.chunk_due": "the extent covers a chunk that is not written",
        "writer.chunk_written": "a chunk is in the file, the journal does not tell of it",
        "writer.chunk_noted": "a chunk is in the file and among what the journal is to be told",
        "writer.items_written": "items of variable length are in the file, the journal does not tell of them",
        "writer.commit_begun": "it is settled what a commit may cover, nothing of it is published",
        "writer.journal_written": "the journal tells of a commit, the file is not flushed",
        "writer.file_flushed": "the file is flushed, the ledger does not tell of it",
        "writer.ledger_half_stored": "the ledger's older slot is half overwritten",
        "writer.ledger_stored": "the ledger tells of a commit, its slots are not released",
        "writer.slot_released": "one of several slots is released",
        "writer.released": "all slots of a commit are released",
        "writer.structure_begun": "the journal tells that structure changes, the file is open for SWMR",
        "writer.structure_opened": "the file is open for changes of structure, none is made",
        "writer.structure_changed": "groups and datasets are made, the file is open for changes of structure",
        "writer.structure_closed": "the file is open for SWMR again, the journal does not tell of that",
        "writer.structure_ended": "the journal tells that a change of structure has ended",
        "writer.instrument_made": "the group of an instrument is made, its ring is not known",
        "writer.ring_taken": "a ring is taken in, the journal does not tell of it",
        "writer.ring_noted": "the journal tells of a ring, its producer was not answered",
        "writer.schema_made": "a schema is in the file, the journal does not say whose slots follow it",
        "writer.schema_noted": "the journal tells which slots follow a schema, the producer was not answered",
        "writer.tails_made": "there is shared memory for unfinished chunks, and no dataset for them",
        "writer.evolution_begun": "a schema is about to change, all before is committed",
        "writer.columns_added": "new columns are filled with nulls, the schema is the old one",
        "writer.columns_widened": "wider columns are copied, the old ones hold still",
        "writer.evolution_flushed": "what the new schema needs is in the file, which says the old one",
        "writer.evolution_shown": "the file says the new schema, no commit covers it",
        "writer.evolved": "a commit covers the new schema, the producer was not answered",
        "writer.tail_published": "an unfinished chunk is in the file, the extent is as it was",
        "writer.tails_published": "unfinished chunks are shown, nothing is synced",
        "writer.file_synced": "the disk has the file, not yet the journal",
        "writer.journal_synced": "the disk has file and journal, not yet the unfinished chunks",
        "writer.tail_file_written": "a tail file is written and not synced",
        "writer.flushed": "the disk has everything, who asked was not answered",
        "writer.quarantine_written": "a refused batch is on the disk under a name that does not count",
        "writer.quarantined": "a refused batch is in quarantine, nobody was told",
        "writer.detach_noted": "the journal has the account of a ring that ended, its name is still there",
        "writer.detached": "a ring that ended is gone",
        "close.begun": "the recording says that it closes",
        "close.drained": "everything sealed is taken from the rings",
        "close.last_word": "the rings say what was taken of them",
        "close.assembled": "the last chunks are written",
        "close.committed": "the last commit is in the ledger",
        "close.accounted": "all rings are let go, their accounts are in the journal",
        "close.begun_stamping": "the journal tells that structure changes, the file is open for SWMR",
        "close.stamped": "the file says its state and the account, and is open",
        "close.checksums_written": "the checksums of chunks are in the file, which is open",
        "close.file_closed": "the file is closed, and not synced",
        "close.file_finished": "the disk has the finished file, the session has no report",
        "close.report_written": "the report is in the session, the journal is still there",
        "close.journal_removed": "tail files and journal are gone, the folder is still there",
        "close.files_removed": "beside the file is nothing more, tails and ledger are still there",
        "close.memory_freed": "tails and ledger are gone, the session does not say that it is closed",
        "close.state_closed": "the session says that the recording is closed, nobody was answered",
        "close.answered": "who asked for the end was answered",
        "close.session_removed": "the writer of a dead owner has removed the session",
        "owner.session_made": "there is a session, and no writer",
        "owner.writer_started": "the first writer's process runs, and was told nothing",
        "owner.writer_booted": "the first writer was told what to do",
        "owner.writer_answered": "the first writer has made the file",
        "owner.standby_started": "a standby was started",
        "owner.death_noticed": "the writer was found dead, nothing is done about it",
        "owner.restart_counted": "the writer's death is counted, there is none in its place",
        "owner.replacement_begun": "a writer in its place was told what to do",
        "owner.ending_noted": "the session says that the end was asked for, nobody was asked",
        "owner.close_answered": "the writer has answered that the recording is closed",
        "owner.writer_gone": "the last writer has ended",
        "owner.session_removed": "the session is gone",
        "recovery.resuming": "a writer in a dead one's place knows what was committed, nothing is touched",
        "recovery.taken_up": "it has the file open, and took nothing from the rings",
        "recovery.resumed": "it has all that the dead one had, and was not heard of",
        "recovery.made_anew": "a torn file is made anew, and lies beside the old one",
        "recovery.folder_set_aside": "the old file's journal is set aside, the new one's not in its place",
        "recovery.folder_exchanged": "the new file's journal is in its place, the file is not",
        "recovery.file_exchanged": "the new file is in the old one's place, whose journal is still there",
        "recovery.begun": "a recovery has a session of its own, with the dead one's rings in it",
        "recovery.operations_repeated": "the new file has the structure of the old one, and no rows",
        "recovery.chunk_copied": "one chunk is copied",
        "recovery.rebuilt": "the new file is as it was at the last commit",
        "recovery.finished": "the rings are drained into the new file, which is finished",
        "recovery.verified": "the new file was read through, the old one is in its place",
        "recovery.folder_removed": "the old file's journal is gone, the dead session is still there",
        "recovery.session_removed": "the dead session is gone, and nobody was told",
    }
)


class _Armed(NamedTuple):
    """What happens at a step: at which time, and what."""

    turn: int
    action: str


def _parse(text: str) -> dict[str, _Armed]:
    """Read ``SHMSTORE_STEP``.

    Examples
    --------
    >>> _parse("writer.released:3=kill,close.begun=stop")["writer.released"]
    _Armed(turn=3, action='kill')
    """
    armed = {}
    for part in text.split(","):
        place, _, action = part.strip().partition("=")
        name, _, turn = place.partition(":")
        if name not in STEPS or action not in _ACTIONS or not (turn or "1").isdigit() or turn == "0":
            raise ValueError(
                f"SHMSTORE_STEP has {part!r}: give <name>[:<n>]={'|'.join(_ACTIONS)} with a name that is in "
                "shmstore.steps.STEPS, or unset it"
            )
        armed[name] = _Armed(int(turn or 1), action)
    return armed


def _armed_step(armed: Mapping[str, _Armed], once: Path) -> Callable[[str], None]:
    """Return a `step` that does what was asked for."""
    passed: Counter[str] = Counter()

    def step(name: str) -> None:
        wanted = armed.get(name)
        if wanted is None:
            return
        passed[name] += 1
        if passed[name] < wanted.turn:
            return
        try:
            fd = os.open(once / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return
        os.write(fd, str(os.getpid()).encode())
        os.close(fd)
        if wanted.action == "exit":
            os._exit(_EXIT_CODE)
        if wanted.action == "note":
            return
        os.kill(os.getpid(), signal.SIGKILL if wanted.action == "kill" else signal.SIGSTOP)
        # The signal goes to the process: this thread may be the last that it reaches.
        time.sleep(0.1)

    return step


def _pass(name: str) -> None:
    """Do nothing."""


#: Says that a step is reached: nothing, unless ``SHMSTORE_STEP`` is set.
step: Callable[[str], None] = _pass

if _text := os.environ.get("SHMSTORE_STEP", ""):
    _armed = _parse(_text)
    _once = os.environ.get("SHMSTORE_STEP_ONCE", "")
    if not _once:
        raise ValueError("SHMSTORE_STEP is set without SHMSTORE_STEP_ONCE: name a folder there, or unset it")
    step = _armed_step(_armed, Path(_once))
