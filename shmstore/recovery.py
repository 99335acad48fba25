"""Recovery: a whole recording out of what a killed one left, or what a power cut left of it.

The file is made anew beside the damaged one (`shmstore.rebuilding`), as it was at the last commit; a writer
goes on from there with what is left in the rings, and finishes it. Only when the result is complete, and has
been read through, does it take the damaged file's place. Until then nothing of the original is changed: the
rings are mapped privately. So it can be killed, and begun again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shmstore.checkpoint import Checkpoint
from shmstore.chronicle import Chronicle
from shmstore.config import StorageConfig
from shmstore.damage import losses
from shmstore.dataset import note_losses, recovery_folder, remove_recovery_folder
from shmstore.errors import BrokenError, IncompleteFileError, ShmStoreError, StorageError, storage_error
from shmstore.journal import JournalReader
from shmstore.ledger import Ledger
from shmstore.leftovers import is_written
from shmstore.queue import DescriptorQueue
from shmstore.rebuilding import Damage, Progress, rebuild
from shmstore.resumption import (
    LEDGER_BYTES,
    discard,
    finish_replacing,
    keep_aside,
    ledger_of,
    outdated_folder,
    path_beside,
    replace_recording,
)
from shmstore.segment import lock_byte
from shmstore.session import OWNER_LOCK, PREFIX, Session, State, lock_is_held, session_folder
from shmstore.steps import step
from shmstore.tailfile import TailFile
from shmstore.tails import Tails
from shmstore.verification import verify
from shmstore.writer import Writer

#: What a recording says of itself at its end, and how `verify` begins what it finds in the account.
_FINISHED = ("complete", "partial", "aborted")
_ACCOUNTING = "accounting: "


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What a recovery found and did.

    Attributes
    ----------
    path : str
        The recording.
    state : str
        What it says of itself now: ``"complete"``, or ``"partial"`` if something was lost.
    source : str
        What it was recovered from: ``"shared memory"`` (nothing that was accepted is lost), ``"disk"`` (the
        last durable flush, after a power cut), or ``"nothing"``: it was whole.
    rows : dict of str to int
        Rows in it now, by instrument.
    drained : int
        Rows among them that were still in rings.
    problems : tuple of str
        What was lost or found damaged, in words.
    kept : str or None
        Where the damaged file is kept, if not everything of it could be brought over: it may be worth another
        look, and is nobody's to remove but yours.
    """

    path: str
    state: str
    source: str
    rows: dict[str, int]
    drained: int = 0
    problems: tuple[str, ...] = ()
    kept: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing was lost."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain, JSON-ready values."""
        return {"ok": self.ok, **asdict(self), "problems": list(self.problems)}

    def __str__(self) -> str:
        if self.source == "nothing":
            return f"{self.path} is {self.state}: there was nothing to recover"
        lines = [
            f"{self.path} is {self.state}, recovered from {self.source}",
            f"{sum(self.rows.values()):,} rows, {self.drained:,} of them out of rings:",
            *(f"  {name}: {count:,} rows" for name, count in self.rows.items()),
            *(f"lost: {problem}" for problem in self.problems),
            *([f"the damaged file is kept: {self.kept}"] if self.kept else []),
        ]
        return "\n".join(lines)


def recover(
    recording: str | os.PathLike[str],
    *,
    shm_dir: str | os.PathLike[str] = "/dev/shm",
    progress: Progress | None = None,
) -> RecoveryReport:
    """Make a recording whole whose processes were killed, or whose machine lost its power.

    Takes as long as copying the file, and needs as much room again on its disk. May be called again at any
    time, also after it was killed itself.

    Parameters
    ----------
    recording
        The HDF5 file, or the name of the session that was recording it.
    shm_dir
        Folder for shared memory, if the recording used another.
    progress
        Called with the bytes copied and those in all.

    Returns
    -------
    RecoveryReport
        What was found and done.

    Raises
    ------
    IncompleteFileError
        There is no such recording, or nothing that it could be made whole from.
    BrokenError
        It is still being recorded, or recovered by somebody else.
    StorageError
        The disk or shared memory refuses.
    """
    path, folder = _find(Path(recording), Path(shm_dir))
    with contextlib.ExitStack() as held:
        left = held.enter_context(_left_session(folder)) if folder is not None else None
        if left is None and is_written(path):
            raise BrokenError(f"{path} is being written by another process: end that one first")
        outdated = outdated_folder(path) / "journal"
        if outdated.exists():
            held.enter_context(_exclusive(outdated))
        finish_replacing(path)
        _remove_work_session(path, Path(shm_dir))
        journal = recovery_folder(path) / "journal"
        if journal.exists():
            held.enter_context(_exclusive(journal))
            # Rings can be linked within their own filesystem only.
            work_dir = Path(shm_dir) if folder is None else folder.parent
            report = _Recovery(path, left, work_dir, progress).run()
        else:
            report = _as_it_is(path)
            remove_recovery_folder(path)
        if left is not None:
            left.remove()
            step("recovery.session_removed")
    return report


def _find(recording: Path, shm_dir: Path) -> tuple[Path, Path | None]:
    """Return the file, and the folder of its session, if that is still there."""
    if not _exists(recording) and recording.name == str(recording):
        with contextlib.suppress(ShmStoreError):
            folder = session_folder(shm_dir, recording.name)
            session = Session.attach(folder)
            try:
                return session.recording_path, folder
            finally:
                session.close()
    path = recording.absolute()
    if not path.name or not (_exists(path) or _exists(recovery_folder(path))):
        raise IncompleteFileError(
            f"there is no recording {recording}: check its name, or see `shmstore doctor`"
        )
    shm_dirs = {shm_dir, _own_shm_dir(path) or shm_dir}
    for folder in (folder for shm_dir in shm_dirs for folder in shm_dir.glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):
            told = Path(os.fsdecode((folder / "recording").read_bytes()))
            if told == path or (path.exists() and told.exists() and told.samefile(path)):
                return path, folder
    return path, None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no file can have such a name
        return False


def _own_shm_dir(path: Path) -> Path | None:
    """Return where the session of a recording is, by the word of its journal.

    Without its rings it would be recovered as after a power cut, and what is in them be lost.
    """
    journal = recovery_folder(path) / "journal"
    with (
        contextlib.suppress(ShmStoreError, LookupError, TypeError, ValueError),
        JournalReader(journal) as reader,
    ):
        return Path(json.loads(reader.header.identity["config"])["shm_dir"])
    return None


@contextlib.contextmanager
def _left_session(folder: Path) -> Iterator[Session]:
    """Hold a session that nobody lives in any more."""
    session = Session.attach(folder)
    try:
        if session.writer_lives or not session.adopt():
            raise BrokenError(
                f"the recording of session {session.name!r} goes on (owner {session.owner_pid}, writer "
                f"{session.writer_pid}): end it first"
            )
        if session.state < State.CLOSED:
            # A producer may have outlived them all: what it puts from now on would come too late.
            session.fail("BrokenError", "owner and writer have died, and the recording was recovered")
        yield session
    finally:
        session.close()


def _work_name(path: Path) -> str:
    """Return the name of the session that a recovery records in: the same each time, for a killed one's."""
    return f"recover-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"


def _remove_work_session(path: Path, shm_dir: Path) -> None:
    """Remove the session in which a recovery recorded that was killed."""
    folder = session_folder(shm_dir, _work_name(path))
    if not lock_is_held(folder, OWNER_LOCK):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _exclusive(journal: Path) -> Iterator[None]:
    """Let nobody else recover the same recording meanwhile."""
    try:
        fd = os.open(journal, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise storage_error(error, "recover the recording", journal) from None
    try:
        if not lock_byte(fd, 0):
            raise BrokenError(f"{journal.parent.name} is being recovered by another process: wait for it")
        if not _has_name(fd, journal):
            raise BrokenError(f"{journal.parent.name} was recovered by another process meanwhile")
        yield
    finally:
        os.close(fd)


def _as_it_is(path: Path) -> RecoveryReport:
    """Report on a recording that left no journal: it was finished."""
    verdict = verify(path)
    if verdict.state == "recording":
        raise IncompleteFileError(
            f"{path} was not finished, and its journal ({recovery_folder(path).name}/) is gone: what was "
            "flushed can still be read with shmstore.open"
        )
    rows = {instrument.name: instrument.rows for instrument in verdict.instruments}
    return RecoveryReport(str(path), str(verdict.state), "nothing", rows, 0, tuple(verdict.problems))


def _has_name(fd: int, path: Path) -> bool:
    """Whether an open file is still the one of that name; it may live on under another."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


class _Recovery:
    """One recovery, from the wreck to the whole file."""

    def __init__(self, path: Path, left: Session | None, shm_dir: Path, progress: Progress | None) -> None:
        self._path = path
        self._left = left
        self._shm_dir = shm_dir
        self._progress = progress
        self._beside = path_beside(path)
        self._journal = recovery_folder(path) / "journal"

    def run(self) -> RecoveryReport:
        """Do it."""
        discard(self._beside)
        if Chronicle(self._journal).finished:
            report = _as_it_is(self._path)
            remove_recovery_folder(self._path)
            return report
        self._require_space()
        work = Session.create(self._shm_dir, _work_name(self._path))
        work.private = True
        try:
            return self._make_anew(work)
        except BaseException as error:
            discard(self._beside)
            if isinstance(error, OSError | RuntimeError) and not isinstance(error, ShmStoreError):
                raise _refused(error, self._beside) from error
            raise
        finally:
            work.remove()
            work.close()

    def _require_space(self) -> None:
        """Refuse to begin what cannot end well: the new file is about as large as the old one."""
        found = os.statvfs(self._path.parent)
        needed = self._path.stat().st_size if self._path.exists() else 0
        if found.f_bavail * found.f_frsize < needed:
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            advice = f"free {needed / 1e6:,.0f} MB: the file is made anew beside the old one"
            raise storage_error(full, "recover the recording", self._path, advice)

    def _make_anew(self, work: Session) -> RecoveryReport:
        checkpoint, problems = self._checkpoint(work)
        step("recovery.begun")
        report, before, damages = self._record(work, checkpoint, problems)
        lost = losses(self._beside, damages) if damages else []
        if lost:
            note_losses(self._beside, [loss.text for loss in lost])
        step("recovery.finished")
        problems = [*report["problems"], *(loss.text for loss in lost)]
        verdict = verify(self._beside)
        # What the account says is lost is no surprise; nor that a column cannot be read that is damaged.
        told = {f"accounting: {problem}" for problem in problems}
        places = tuple(loss.place for loss in lost)
        found = [problem for problem in verdict.problems if problem not in told]
        surprises = [problem for problem in found if not problem.startswith(places)]
        if surprises:
            raise IncompleteFileError(
                f"{self._beside} was recovered and does not hold: {surprises[0]}; the original is untouched"
            )
        step("recovery.verified")
        kept = str(keep_aside(self._path)) if lost else None
        replace_recording(self._path)
        step("recovery.folder_removed")
        rows = {instrument.name: instrument.rows for instrument in verdict.instruments}
        return RecoveryReport(
            str(self._path),
            verdict.state,
            "shared memory" if self._left is not None else "disk",
            rows,
            sum(rows.values()) - before,
            (*problems, *found),
            kept,
        )

    def _checkpoint(self, work: Session) -> tuple[Checkpoint, list[str]]:
        """Return the last commit that can be gone back to, with its tails and rings in the work session."""
        if self._left is not None:
            for file in sorted(self._left.folder.iterdir()):
                if file.name.startswith(("ring-", "queue-", "tails-")):
                    os.link(file, work.folder / file.name)
            for ring in work.folder.glob("ring-*"):
                queue = work.queue_path(int(ring.name.rpartition("-")[2]))
                if not queue.exists():  # a copy on a disk has none
                    DescriptorQueue.create(queue).close()
            return ledger_of(self._left), []
        tail_file = TailFile(recovery_folder(self._path))
        saved = tail_file.load()
        tail_file.close()
        lost = "what was accepted after the last durable flush went with the machine's memory"
        if saved is None:
            return Checkpoint(0, {}, {}), [lost]
        checkpoint = Checkpoint.unpack(saved[0])
        _fill_tails(
            work,
            Chronicle(self._journal, checkpoint.position),
            checkpoint,
            saved[1],
        )
        return checkpoint, [lost]

    def _record(
        self, work: Session, checkpoint: Checkpoint, problems: list[str]
    ) -> tuple[dict[str, Any], int, list[Damage]]:
        """Make the file anew, drain the rings into it, and finish it.

        Returns the report, how many rows there were before, and what could not be brought over.
        """
        chronicle = Chronicle(
            self._journal, checkpoint.position, journal=checkpoint.journal, payloads=self._left is None
        )
        if chronicle.short:
            raise IncompleteFileError(f"{self._journal} is damaged: it ends at {chronicle.end}")
        file, damages = rebuild(chronicle, checkpoint, self._path, self._beside, self._progress)
        step("recovery.rebuilt")
        config = StorageConfig.from_dict(_config_of(chronicle))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            owner = os.pidfd_open(os.getpid())
            try:
                ledger = Ledger.create(work.ledger_path(1), LEDGER_BYTES)
                writer = Writer(work, config, file, listener, owner, ledger, self._path)
                writer.resume(chronicle, checkpoint)
                for problem in problems:
                    writer.note_problem(problem)
                before = sum(
                    int(standing["counts"].get("", 0)) for standing in checkpoint.instruments.values()
                )
                return writer.recover(), before, damages
            finally:
                os.close(owner)
        finally:
            listener.close()


def _refused(error: OSError | RuntimeError, path: Path) -> StorageError:
    """Translate what HDF5 says when the disk refuses: the system's number stands in its report."""
    number = re.search(r"errno = (\d+)", str(error))
    code = getattr(error, "errno", None) or (int(number[1]) if number else errno.EIO)
    return storage_error(OSError(code, os.strerror(code)), "recover the recording", path)


def _config_of(chronicle: Chronicle) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(chronicle.identity["config"])
    return config


def _fill_tails(work: Session, chronicle: Chronicle, checkpoint: Checkpoint, contents: list[bytes]) -> None:
    """Lay the contents of unfinished chunks out in shared memory, as they were."""
    by_number = dict(zip(checkpoint.tails, contents, strict=True))
    buffers = {
        number: standing[1]
        for instrument in checkpoint.instruments.values()
        for number, *standing in instrument["streams"]
    }
    for told in chronicle.tails:
        tails = Tails.create(work.tails_path_of(told.name), told.sizes, told.buffers)
        for number, own in zip(told.datasets, tails.buffers, strict=True):
            content = by_number.get(number)
            if content:
                own[buffers[number]][: len(content)] = memoryview(content)
        tails.leave()
