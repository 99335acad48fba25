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
from typing import Any, NamedTuple

from shmstore.accounting import SourceStanding
from shmstore.checkpoint import Checkpoint
from shmstore.chronicle import Chronicle
from shmstore.config import StorageConfig
from shmstore.damage import losses
from shmstore.disk import sync_folder
from shmstore.errors import BrokenError, IncompleteFileError, ShmStoreError, StorageError, storage_error
from shmstore.journal import JournalReader, is_of_another_version
from shmstore.ledger import Ledger
from shmstore.leftovers import is_written
from shmstore.queue import DescriptorQueue
from shmstore.reader import Recording
from shmstore.rebuilding import Damage, Progress, mend_tails, rebuild
from shmstore.recordingfile import note_losses
from shmstore.recoveryfolder import recovery_folder, remove_recovery_folder
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
from shmstore.ring import Ring
from shmstore.salvage import salvage
from shmstore.segment import lock_byte
from shmstore.session import OWNER_LOCK, PREFIX, Session, State, lock_is_held, session_folder
from shmstore.steps import step
from shmstore.superblock import read_superblock
from shmstore.tailfile import TailFile
from shmstore.tails import Tails
from shmstore.verification import Tell, verify
from shmstore.writer import Writer

#: How `verify` begins what it finds in the account.
_ACCOUNTING = "accounting: "
_MEMORY_LOST = "what was accepted after the last durable flush went with the machine's memory"


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
        last durable flush, after a power cut), ``"file"`` (the file alone: its journal was gone), or
        ``"nothing"``: it was whole.
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
    tell: Tell | None = None,
) -> RecoveryReport:
    """Recover in this process, which HDF5 may take along if the disk refuses a write in the wrong place.

    Parameters, result and errors are those of `shmstore.recover`, which runs this in a process of its own;
    but ``progress`` is called after each chunk, and ``tell`` told what is read, as by the verification.
    """
    path, folder = _find(Path(recording), Path(shm_dir))
    with contextlib.ExitStack() as held:
        left = held.enter_context(_left_session(folder)) if folder is not None else None
        if left is None and is_written(path):
            raise BrokenError(f"{path} is being written by another process: end that one first")
        outdated = outdated_folder(path) / "journal"
        if outdated.exists():
            held.enter_context(_exclusive(outdated, path))
        finish_replacing(path)
        _remove_work_session(path, Path(shm_dir))
        journal = recovery_folder(path) / "journal"
        if journal.exists():
            held.enter_context(_exclusive(journal, path))
            # Rings can be linked within their own filesystem only.
            work_dir = Path(shm_dir) if folder is None else folder.parent
            report = _Recovery(path, left, work_dir, progress, tell).run()
        elif _is_finished(path):
            report = _as_it_is(path, tell)
            remove_recovery_folder(path)
        else:
            held.enter_context(_exclusive(path, path))
            report = _salvaged(path, left, progress, tell)
        if left is not None:
            left.remove()
            step("recovery.session_removed")
    return report


def clear_up(recording: str | os.PathLike[str], shm_dir: str | os.PathLike[str]) -> None:
    """Remove what a recovery had begun that was ended in the middle of it, unless another has begun since."""
    # What cannot be removed now is for the next one.
    with contextlib.suppress(ShmStoreError, OSError):
        path, _ = _find(Path(recording), Path(shm_dir))
        if outdated_folder(path).exists():
            return  # what it had made was about to take the old one's place: the next one ends that
        journal = recovery_folder(path) / "journal"
        with _exclusive(journal if journal.exists() else path, path):
            _remove_work_session(path, Path(shm_dir))
            discard(path_beside(path))


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
def _exclusive(file: Path, recording: Path) -> Iterator[None]:
    """Let nobody else recover the same recording meanwhile, by a lock on one of its files."""
    try:
        fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise storage_error(error, "recover the recording", file) from None
    try:
        if not lock_byte(fd, 0):
            raise BrokenError(f"{recording.name} is being recovered by another process: wait for it")
        if not _has_name(fd, file):
            raise BrokenError(f"{recording.name} was recovered by another process meanwhile")
        yield
    finally:
        os.close(fd)


def _is_finished(path: Path) -> bool:
    """Whether a recording says so; one that cannot be opened does if its writer has closed it."""
    try:
        with Recording(path) as recording:
            return not recording.live
    except IncompleteFileError:
        return not read_superblock(path).flags


def _as_it_is(path: Path, tell: Tell | None) -> RecoveryReport:
    """Report on a recording that was finished."""
    verdict = verify(path, tell=tell)
    rows = {instrument.name: instrument.rows for instrument in verdict.instruments}
    return RecoveryReport(str(path), str(verdict.state), "nothing", rows, 0, tuple(verdict.problems))


def _salvaged(
    path: Path, left: Session | None, progress: Progress | None, tell: Tell | None
) -> RecoveryReport:
    """Make a recording whole of whose journal nothing is known, and put it in its place."""
    if not path.exists():
        raise IncompleteFileError(
            f"{path} is gone, and the journal beside it is damaged: there is nothing to recover it from"
        )
    if _is_finished(path):
        report = _as_it_is(path, tell)
        shutil.rmtree(recovery_folder(path), ignore_errors=True)
        return report
    beside = path_beside(path)
    discard(beside)
    _require_space(path)
    checkpoints, waiting = _commits(path, left), _Waiting()
    if left is not None:
        waiting = _waiting(left, checkpoints[0])
    committed: dict[str, int] = {}
    for checkpoint in checkpoints:
        for link, count in _committed(checkpoint).items():
            committed[link] = max(committed.get(link, 0), count)
    problems = []
    if waiting.batches:
        problems.append(
            f"{waiting.rows} rows in {waiting.batches} batches were still in rings, and whose they are is "
            f"not known: they are kept in {path.name}.damaged"
        )
    problems += [
        f"a ring cannot be read, it is kept in {path.name}.damaged: {reason}" for reason in waiting.unreadable
    ]
    try:
        salvage(path, beside, committed, problems, progress, tell)
        verdict = verify(beside, tell=tell)
        surprises = [text for text in verdict.problems if not text.startswith(_ACCOUNTING)]
        if surprises:
            raise IncompleteFileError(
                f"{beside} was made from the file alone and does not hold: {surprises[0]}; the original is "
                "untouched"
            )
        kept = keep_aside(path)
        if left is not None and (waiting.batches or waiting.unreadable):
            memory = kept.with_name(kept.name + ".memory")
            shutil.rmtree(memory, ignore_errors=True)  # of one that was killed in here
            left.spill(memory)
        beside.replace(path)
        sync_folder(path.parent)
        shutil.rmtree(recovery_folder(path), ignore_errors=True)
    except BaseException as error:
        discard(beside)
        if isinstance(error, OSError | RuntimeError) and not isinstance(error, ShmStoreError):
            raise _refused(error, beside) from error
        raise
    rows = {instrument.name: instrument.rows for instrument in verdict.instruments}
    lost = tuple(text.removeprefix(_ACCOUNTING) for text in verdict.problems)
    return RecoveryReport(str(path), verdict.state, "file", rows, 0, lost, str(kept))


def _commits(path: Path, left: Session | None) -> list[Checkpoint]:
    """Return what else is known of commits: from the ledger, then from the tail files."""
    found = [] if left is None else [ledger_of(left)]
    tail_file = TailFile(recovery_folder(path))
    with contextlib.suppress(IncompleteFileError):
        saved = tail_file.load()
        if saved is not None:
            found.append(Checkpoint.unpack(saved[0]))
    tail_file.close()
    return found


class _Waiting(NamedTuple):
    """Batches and rows in rings that were not committed, and why rings cannot be read."""

    batches: int = 0
    rows: int = 0
    unreadable: tuple[str, ...] = ()


def _waiting(left: Session, checkpoint: Checkpoint) -> _Waiting:
    """Return what is in a session's rings, of those that can be read."""
    batches = rows = 0
    unreadable = []
    for path in sorted(left.folder.glob("ring-*")):
        try:
            ring = Ring.attach(path, private=True)
            try:
                ring.pass_over(checkpoint.sources.get(ring.number, SourceStanding()).slots)
                found = ring.unreleased()
            finally:
                ring.close()
        except BrokenError as error:
            unreadable.append(str(error))
        else:
            batches, rows = batches + found[0], rows + found[1]
    return _Waiting(batches, rows, tuple(unreadable))


def _require_space(path: Path) -> None:
    """Refuse to begin what cannot end well: the new file is about as large as the old one."""
    found = os.statvfs(path.parent)
    needed = path.stat().st_size if path.exists() else 0
    if found.f_bavail * found.f_frsize < needed:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        advice = f"free {needed / 1e6:,.0f} MB: the file is made anew beside the old one"
        raise storage_error(full, "recover the recording", path, advice)


def _has_name(fd: int, path: Path) -> bool:
    """Whether an open file is still the one of that name; it may live on under another."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


class _Recovery:
    """One recovery, from the wreck to the whole file."""

    def __init__(
        self,
        path: Path,
        left: Session | None,
        shm_dir: Path,
        progress: Progress | None,
        tell: Tell | None,
    ) -> None:
        self._path = path
        self._left = left
        self._shm_dir = shm_dir
        self._progress = progress
        self._tell = tell
        self._beside = path_beside(path)
        self._journal = recovery_folder(path) / "journal"

    def run(self) -> RecoveryReport:
        """Do it."""
        discard(self._beside)
        checkpoint, contents = self._last_commit()
        chronicle = self._told(checkpoint)
        if chronicle is None:
            return _salvaged(self._path, self._left, self._progress, self._tell)
        if chronicle.finished:
            report = _as_it_is(self._path, self._tell)
            remove_recovery_folder(self._path)
            return report
        _require_space(self._path)
        work = Session.create(self._shm_dir, _work_name(self._path))
        work.private = True
        try:
            self._set_up(work, chronicle, checkpoint, contents)
            return self._make_anew(work, chronicle, checkpoint)
        except BaseException as error:
            discard(self._beside)
            if isinstance(error, OSError | RuntimeError) and not isinstance(error, ShmStoreError):
                raise _refused(error, self._beside) from error
            raise
        finally:
            work.remove()
            work.close()

    def _last_commit(self) -> tuple[Checkpoint, list[bytes]]:
        """Return the last commit that can be gone back to; after a power cut, with unfinished chunks."""
        if self._left is not None:
            return ledger_of(self._left), []
        tail_file = TailFile(recovery_folder(self._path))
        saved = tail_file.load()
        tail_file.close()
        return (Checkpoint(0, {}, {}), []) if saved is None else (Checkpoint.unpack(saved[0]), saved[1])

    def _told(self, checkpoint: Checkpoint) -> Chronicle | None:
        """Return what the journal tells; ``None`` if it is damaged before what the commit covers."""
        try:
            chronicle = Chronicle(
                self._journal,
                checkpoint.position,
                journal=checkpoint.journal,
                payloads=self._left is None,
            )
        except IncompleteFileError:
            if is_of_another_version(self._journal):
                raise
            return None
        return None if chronicle.short else chronicle

    def _set_up(
        self, work: Session, chronicle: Chronicle, checkpoint: Checkpoint, contents: list[bytes]
    ) -> None:
        """Have the work session hold rings and unfinished chunks, as they were."""
        if self._left is None:
            _fill_tails(work, chronicle, checkpoint, contents)
            return
        for file in sorted(self._left.folder.iterdir()):
            if file.name.startswith(("ring-", "queue-", "tails-")):
                os.link(file, work.folder / file.name)
        for ring in work.folder.glob("ring-*"):
            queue = work.queue_path(int(ring.name.rpartition("-")[2]))
            if not queue.exists():  # a copy on a disk has none
                DescriptorQueue.create(queue).close()

    def _make_anew(self, work: Session, chronicle: Chronicle, checkpoint: Checkpoint) -> RecoveryReport:
        step("recovery.begun")
        report, damages = self._record(work, chronicle, checkpoint)
        lost = losses(self._beside, damages) if damages else []
        if lost:
            note_losses(self._beside, [loss.text for loss in lost])
        step("recovery.finished")
        problems = [*report["problems"], *(loss.text for loss in lost)]
        verdict = verify(self._beside, tell=self._tell)
        # What the account says is lost is no surprise; nor that a column cannot be read that is damaged.
        told = {_ACCOUNTING + problem for problem in problems}
        places = tuple(loss.place for loss in lost)
        found = [problem for problem in verdict.problems if problem not in told]
        surprises = [problem for problem in found if not problem.startswith(places)]
        if surprises:
            raise IncompleteFileError(
                f"{self._beside} was recovered and does not hold: {surprises[0]}; the original is untouched"
            )
        step("recovery.verified")
        kept = str(keep_aside(self._path)) if any(damage.on_disk for damage in damages) else None
        replace_recording(self._path)
        step("recovery.folder_removed")
        rows = {instrument.name: instrument.rows for instrument in verdict.instruments}
        return RecoveryReport(
            str(self._path),
            verdict.state,
            "shared memory" if self._left is not None else "disk",
            rows,
            sum(rows.values()) - sum(_committed(checkpoint).values()),
            (*problems, *found),
            kept,
        )

    def _record(
        self, work: Session, chronicle: Chronicle, checkpoint: Checkpoint
    ) -> tuple[dict[str, Any], list[Damage]]:
        """Make the file anew, drain the rings into it, and finish it.

        Returns the report, and what could not be brought over.
        """
        file, damages = rebuild(chronicle, checkpoint, self._path, self._beside, self._progress)
        step("recovery.rebuilt")
        damages += mend_tails(file, chronicle, checkpoint, work.folder)
        config = StorageConfig.from_dict(_config_of(chronicle))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            owner = os.pidfd_open(os.getpid())
            try:
                ledger = Ledger.create(work.ledger_path(1), LEDGER_BYTES)
                writer = Writer(work, config, file, listener, owner, ledger, self._path)
                writer.resume(chronicle, checkpoint)
                if self._left is None:
                    writer.note_problem(_MEMORY_LOST)
                return writer.recover(), damages
            finally:
                os.close(owner)
        finally:
            listener.close()


def _committed(checkpoint: Checkpoint) -> dict[str, int]:
    """Return the rows that a commit covers, by the link of the instrument."""
    return {link: int(standing["counts"].get("", 0)) for link, standing in checkpoint.instruments.items()}


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
