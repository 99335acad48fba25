"""Resumption: a writer that goes on where another one ended, killed at whatever instruction.

What the last commit covers is told by the ledger, and what had been done until then by the journal. The file
is taken up as it is, if HDF5's structures bear that out, and made anew from the journal else. What was sealed
and not committed is still in the rings.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from shmstore.checkpoint import Checkpoint, durable_checkpoint
from shmstore.chronicle import LAST_CHUNKS, LAST_ITEMS, Chronicle, ToldDataset
from shmstore.config import StorageConfig
from shmstore.dataset import Dataset
from shmstore.disk import DiskFile, sync_folder
from shmstore.errors import BrokenError, IncompleteFileError, StorageError, refusal, storage_error
from shmstore.journal import Journal
from shmstore.ledger import Ledger
from shmstore.rebuilding import rebuild
from shmstore.recordingfile import RecordingFile
from shmstore.recoveryfolder import recovery_folder
from shmstore.session import Session
from shmstore.signature import crc32
from shmstore.steps import step
from shmstore.tailfile import TailFile
from shmstore.tails import Tails
from shmstore.writer import Suspect, Writer

log = logging.getLogger("shmstore.writer")

#: Room for a checkpoint at first; a larger one gets a larger ledger.
LEDGER_BYTES = 256 * 1024


def resume_writer(
    session: Session,
    config: StorageConfig,
    path: Path,
    listener: socket.socket,
    owner_fd: int,
    suspect: Suspect | None,
    ending: str,
) -> Writer | None:
    """Return a writer that goes on with a recording whose writer has died.

    ``None``: the file was finished, and what was left to do for that is to leave the closing report.

    Parameters
    ----------
    session, config, listener, owner_fd
        As for `Writer`.
    path
        The recording's file.
    suspect, ending
        As for `Writer.resume`.

    Raises
    ------
    StorageError
        The disk or shared memory refuses.
    IncompleteFileError
        The journal is gone, or tells too little.
    """
    finish_replacing(path)
    ledger, checkpoint = open_ledger(session)
    journal = recovery_folder(path) / "journal"
    chronicle = _told(journal, checkpoint)
    if chronicle.short:  # it is not to be cut to what is left of it
        raise IncompleteFileError(f"{journal} is damaged: it ends at {chronicle.end}")
    step("recovery.resuming")
    if chronicle.finished and chronicle.report is not None:
        report = chronicle.report
        report["stats"]["file_bytes"] = path.stat().st_size
        session.leave_report(report)
        return None
    file = None
    if not chronicle.torn:
        try:
            file = _take_up(path, chronicle, checkpoint)
        except (OSError, IncompleteFileError, RuntimeError, KeyError, ValueError) as error:
            if (refused := refusal(error)) is not None:  # that is no damage: it may do the next time
                raise storage_error(refused, "go on with the recording", path) from None
            log.warning("the file is made anew from its journal: %s", " ".join(str(error).split()))
    if file is None:
        file, checkpoint = _replace(session, path, chronicle, checkpoint)
    step("recovery.taken_up")
    writer = Writer(session, config, file, listener, owner_fd, ledger)
    writer.resume(chronicle, checkpoint, suspect, ending)
    step("recovery.resumed")
    return writer


def _told(journal: Path, checkpoint: Checkpoint) -> Chronicle:
    """Return what the journal tells to who goes on from a commit."""
    with DiskFile.waiting():  # it may be long
        return Chronicle(journal, checkpoint.position, items=checkpoint.items, journal=checkpoint.journal)


def open_ledger(session: Session) -> tuple[Ledger, Checkpoint]:
    """Return a session's ledger and what it holds; an empty checkpoint if nothing was committed yet."""
    for ledger, data in _ledgers(session):
        if data is not None:
            return ledger, Checkpoint.unpack(data)
        ledger.close()
        ledger.unlink()
    session.ledger_path(1).unlink(missing_ok=True)
    return Ledger.create(session.ledger_path(1), LEDGER_BYTES), Checkpoint(0, {}, {})


def ledger_of(session: Session) -> Checkpoint:
    """Return what a session's ledger holds, and leave it as it is."""
    for ledger, data in _ledgers(session):
        ledger.close()
        if data is not None:
            return Checkpoint.unpack(data)
    return Checkpoint(0, {}, {})


def _ledgers(session: Session) -> Iterator[tuple[Ledger, bytes | None]]:
    """Give a session's ledgers with what they hold, the one that counts first."""
    numbers = sorted(int(path.name.rpartition("-")[2]) for path in session.folder.glob("ledger-*"))
    for number in reversed(numbers):
        try:
            ledger = Ledger.attach(session.ledger_path(number))
        except (BrokenError, StorageError):
            continue  # its maker was killed before it held anything
        yield ledger, ledger.load()


# -- the file as it is -----------------------------------------------------------------------------------


def _take_up(path: Path, chronicle: Chronicle, checkpoint: Checkpoint) -> RecordingFile:
    """Open the file where it was left; refuse if it is not what the journal tells."""
    file = RecordingFile.resume(path, Journal.reopen(chronicle.path, chronicle.end))
    try:
        committed = checkpoint.items
        for number, told in enumerate(chronicle.datasets):
            if told.path is None:
                file.datasets.append(None)
                continue
            dataset = file.restore_dataset(told.path, told.stream, told.chunk_items, told.codec)
            _restore_counts(dataset, told, committed.get(number, 0))
        for number, items in committed.items():
            restored, told = file.datasets[number], chronicle.datasets[number]
            if restored is None:
                raise IncompleteFileError(f"dataset {number} is gone")
            if restored.variable:
                _check_values(restored, told, chronicle, items)
            else:
                _check_chunks(restored, told, items)
    except BaseException:
        file.close()
        raise
    return file


def _restore_counts(dataset: Dataset, told: ToldDataset, items: int) -> None:
    dataset.known_items = int(dataset.id.shape[0])
    dataset.bytes_written = told.bytes_written
    whole = items // told.chunk_items
    # Chunks of the fill value that it was made with were never written.
    dataset.chunks_written = max(0, whole - told.items // told.chunk_items)
    dataset.places = {
        number: (chunk.offset, chunk.length)
        for number, chunk in told.last_chunks.items()
        if number >= whole and chunk.offset >= 0
    }


def _check_chunks(dataset: Dataset, told: ToldDataset, items: int) -> None:
    """Refuse a dataset whose last committed chunks are not what the journal says."""
    whole = items // dataset.chunk_items
    if dataset.known_items < whole * dataset.chunk_items:
        raise IncompleteFileError(f"{dataset.path} has {dataset.known_items} items, {items} were committed")
    for number in range(max(0, whole - LAST_CHUNKS), whole):
        chunk = told.last_chunks.get(number)
        if chunk is None:
            continue  # of the fill value
        _, payload = dataset.stored_chunk(number)
        if len(payload) != chunk.length or crc32(payload) != chunk.crc:
            raise IncompleteFileError(f"chunk {number} of {dataset.path} is not what was written")


def _check_values(dataset: Dataset, told: ToldDataset, chronicle: Chronicle, items: int) -> None:
    """Refuse a variable-length dataset whose last committed items are not what the journal says.

    HDF5 writes the heap that holds them in no order with the references to it. References beyond what was
    committed may lead nowhere, and HDF5 would follow them when they are overwritten: they are blanked.
    """
    if dataset.known_items < items:
        raise IncompleteFileError(f"{dataset.path} has {dataset.known_items} items, {items} were committed")
    dataset.blank_references(items)
    start = max(0, items - LAST_ITEMS)
    expected: dict[int, bytes] = {}
    for record in told.last_items:
        expected.update(enumerate(chronicle.values(record), record.first))
    found = dataset.read(start, items)
    for number, value in enumerate(found.tolist(), start):
        stored = value if isinstance(value, bytes) else bytes(value)
        if stored != expected.get(number):
            raise IncompleteFileError(f"item {number} of {dataset.path} is not what was written")


# -- the file made anew ----------------------------------------------------------------------------------


def _replace(
    session: Session, path: Path, chronicle: Chronicle, checkpoint: Checkpoint
) -> tuple[RecordingFile, Checkpoint]:
    """Make the file anew beside the old one, put it in its place, and open it again.

    Returns the checkpoint too, as the new journal goes with it.
    """
    beside = path_beside(path)
    discard(beside)
    made, damages = rebuild(chronicle, checkpoint, path, beside, lambda *_: session.beat())
    for damage in damages:
        made.note("problem", {"text": str(damage)})
        chronicle.problems.append(str(damage))
    checkpoint = dataclasses.replace(checkpoint, position=made.flush(), journal=made.journal.number)
    made.sync()
    made.close()
    # What a flush had returned for has to outlast the exchange.
    numbers, contents = _unfinished_chunks(session, chronicle, checkpoint)
    tail_file = TailFile(recovery_folder(beside))
    tail_file.save(durable_checkpoint(checkpoint.pack(), numbers), contents)
    tail_file.close()
    step("recovery.made_anew")
    if damages:
        log.error("%s was damaged on the disk: it is kept in %s", path, keep_aside(path).parent)
    replace_recording(path)
    journal = recovery_folder(path) / "journal"
    return _take_up(path, _told(journal, checkpoint), checkpoint), checkpoint


def _unfinished_chunks(
    session: Session, chronicle: Chronicle, checkpoint: Checkpoint
) -> tuple[list[int], list[bytes]]:
    """Return what was committed of chunks that were not full, and the numbers of their datasets."""
    standings = {
        number: where
        for instrument in checkpoint.instruments.values()
        for number, *where in instrument["streams"]
        if len(where) > 1 and where[1] >= 0
    }
    numbers, contents = [], []
    for told in chronicle.tails:
        if standings.keys().isdisjoint(told.datasets):
            continue
        tails = Tails.attach(session.tails_path_of(told.name), told.sizes, told.buffers)
        for number, own in zip(told.datasets, tails.buffers, strict=True):
            if number in standings:
                items, buffer, *_ = standings[number]
                dataset = chronicle.datasets[number]
                size = items % dataset.chunk_items * dataset.stream.item_bytes
                numbers.append(number)
                contents.append(own[buffer][:size].tobytes())
        tails.leave()
    return numbers, contents


def path_beside(path: Path) -> Path:
    """Return where a recording's file is made anew."""
    return path.with_name(path.name + ".recovering")


def outdated_folder(path: Path) -> Path:
    """Return where a recovery folder is put, from when its file was made anew until it is exchanged."""
    return path.with_name(path.name + ".recovery.old")


def keep_aside(path: Path) -> Path:
    """Give a damaged recording, and what lies beside it, other names under which they stay.

    Returns the file's name: in the folder ``<recording>.damaged``, beside what was kept there before. May be
    called again for the same file.

    Raises
    ------
    StorageError
        The folder does not allow it.
    """
    folder = path.with_name(path.name + ".damaged")
    kept = folder / path.name
    number = 1
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        while kept.exists() and not kept.samefile(path):
            number += 1
            kept = folder / f"{path.stem}~{number}{path.suffix}"
        if not kept.exists():
            _link(path, kept)
        if recovery_folder(path).is_dir():
            recovery_folder(kept).mkdir(mode=0o700, exist_ok=True)
            for source in recovery_folder(path).iterdir():
                target = recovery_folder(kept) / source.name
                if not target.exists():
                    _link(source, target)
            sync_folder(recovery_folder(kept))
        sync_folder(folder)
    except OSError as error:
        raise storage_error(error, "keep the damaged recording", kept) from None
    return kept


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        part = target.with_name(target.name + ".part")  # a filesystem without hard links
        shutil.copyfile(source, part)
        part.replace(target)


def replace_recording(path: Path) -> None:
    """Exchange a file, and what lies beside it, for the one that was made anew, which is on the disk.

    The old recovery folder goes first: so which file belongs to which journal can be told at every moment.

    Raises
    ------
    StorageError
        The folder does not allow it.
    """
    try:
        recovery_folder(path).rename(outdated_folder(path))
        step("recovery.folder_set_aside")
    except OSError as error:
        raise storage_error(error, "replace the recording", path) from None
    finish_replacing(path)


def finish_replacing(path: Path) -> None:
    """Complete the exchange of a file for one that was made anew, if one was begun.

    Raises
    ------
    StorageError
        The folder does not allow it.
    """
    beside, outdated = path_beside(path), outdated_folder(path)
    if not outdated.exists():
        return
    # The disk must learn of these steps one by one: after a power cut it may know any that were not synced.
    try:
        sync_folder(path.parent)
        if recovery_folder(beside).exists() and not recovery_folder(path).exists():
            recovery_folder(beside).rename(recovery_folder(path))
            sync_folder(path.parent)
        step("recovery.folder_exchanged")
        if beside.exists():
            beside.replace(path)
            sync_folder(path.parent)
        step("recovery.file_exchanged")
        shutil.rmtree(outdated)
    except OSError as error:
        raise storage_error(error, "replace the recording", path) from None


def discard(path: Path) -> None:
    """Remove a recording that came to nothing, with all beside it."""
    path.unlink(missing_ok=True)
    shutil.rmtree(recovery_folder(path), ignore_errors=True)
