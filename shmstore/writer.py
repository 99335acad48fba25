"""The writer: one thread that takes slots from rings, has them assembled, and commits them.

The loop takes a fair share from each ring and commits on a budget of bytes and milliseconds: one file flush
for all columns, carried out beside it by a thread of the pipeline, then the checkpoint into the ledger, and
then the ring space is given back. In between it answers control requests. Nothing in it waits for a producer,
and every wait has an end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import os
import selectors
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from shmstore.accounting import Account, SourceStanding, imbalances
from shmstore.batch import read_ipc, read_stream, slot_stream
from shmstore.checkpoint import Checkpoint, durable_checkpoint
from shmstore.chronicle import Chronicle
from shmstore.config import StorageConfig
from shmstore.control import Message, error_reply
from shmstore.errors import BrokenError, InvalidValueError, ShmStoreError, storage_error
from shmstore.instruments import Follows, Instrument, Instruments, decoded_schema
from shmstore.ledger import Ledger
from shmstore.physical import retyped
from shmstore.pipeline import Chunk, CodecPipeline, Commit
from shmstore.quarantine import Quarantine
from shmstore.recordingfile import RecordingFile
from shmstore.recoveryfolder import recovery_folder
from shmstore.ring import Kind, Run, Slot
from shmstore.segment import fence
from shmstore.service import ControlService, Peer
from shmstore.session import Session, State
from shmstore.source import Source
from shmstore.stats import InstrumentStats, StorageStats
from shmstore.steps import step
from shmstore.tailfile import TailFile
from shmstore.tails import Tails

log = logging.getLogger("shmstore.writer")

#: What one ring may bring per round, so that all get their turn.
_ROUND_SLOTS, _ROUND_BYTES = 64, 8 * 2**20
#: Unencoded bytes under way for each codec thread: enough that none runs dry while the file is written, also
#: where each chunk is a detector frame of 4 MiB.
_WINDOW_BYTES_PER_THREAD = 16 * 2**20
#: Where an instrument stands of which nothing was committed.
_NOTHING: Message = {"counts": {}, "bytes_in": 0, "streams": []}
_LONGEST_SLEEP_S = 0.5
_HOUSEKEEPING_S = 1.0
#: The disk is to begin with so much at a time.
_WRITE_BACK_BYTES = 16 * 2**20
#: Time between two looks at the disk's free space.
_DISK_LOOK_S = 0.1
#: Time between two looks at the load, where compression adapts to it.
_LOAD_LOOK_S = 0.01
#: After so many deaths in a row at the same slot it is the slot that is to blame.
_DEATHS_TO_BLAME = 3
#: So many slots are taken with care after a death.
_CAREFUL_SLOTS = 256


class Suspect(NamedTuple):
    """The slot that a writer was at when it died.

    Attributes
    ----------
    deaths : int
        How many writers died in a row, with nothing committed in between.
    ring, sequence : int
        The slot that the last one was at; -1 if it was at none.
    deaths_at_it : int
        How many of them in a row were at that slot.
    """

    deaths: int
    ring: int = -1
    sequence: int = -1
    deaths_at_it: int = 0


class Writer:
    """The loop and what it owns.

    Parameters
    ----------
    session
        The recording's session.
    config
        The recording's configuration.
    file
        The file, open.
    listener
        The control socket, listening.
    owner_fd
        A pidfd of the owner; when it becomes readable, the owner has died.
    ledger
        Keeps what the last commit covers, in shared memory.
    recording
        The recording, if that is another file whose place this one will take.
    """

    def __init__(
        self,
        session: Session,
        config: StorageConfig,
        file: RecordingFile,
        listener: socket.socket,
        owner_fd: int,
        ledger: Ledger,
        recording: Path | None = None,
    ) -> None:
        self._session = session
        self._config = config
        self._file = file
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        #: Instruments whose compression adapts, each with the id that its sources have.
        self._adaptive: list[tuple[str, Instrument]] = []
        self._looked_at_load = 0.0
        threads = config.codec_thread_count
        self._pipeline = CodecPipeline(threads, threads * _WINDOW_BYTES_PER_THREAD, self._wake, self._beat)
        self._instruments = Instruments(file, self._pipeline, config, session, self._commit_now)
        self._ledger = ledger
        self._tail_file = TailFile(recovery_folder(file.path))
        self._quarantine = Quarantine(recording or file.path)
        self._sources: dict[int, Source] = {}
        self._accounts: list[Account] = []
        self._selector = selectors.DefaultSelector()
        self._service = ControlService(listener, self._selector, self._serve)
        self._selector.register(self._wake_fd, selectors.EVENT_READ, self._drain_wake)
        self._selector.register(owner_fd, selectors.EVENT_READ, self._owner_died)
        self._sync_pool = ThreadPoolExecutor(1, thread_name_prefix="shmstore-sync")
        self._sync: Future[None] | None = None
        self._write_back: Future[None] | None = None
        self._flush_waiters: list[Peer] = []
        self._stalled: list[Peer] = []
        self._took = 0  # in the last round
        self._uncommitted = 0
        self._checkpoint = Checkpoint(0, {}, {}).pack()
        self._commit: Commit | None = None
        self._committed_bytes = 0
        self._last_commit = self._last_publish = self._last_housekeeping = time.monotonic()
        self._commits = self._flushes = 0
        self._last_flush: float | None = None
        self._problems: list[str] = []
        self._suspect: Suspect | None = None
        self._careful_slots = 0
        self._short_of_space_since: float | None = None
        self._looked_at_disk = 0.0
        self._ending = ""
        self.owner_gone = False

    def resume(
        self,
        chronicle: Chronicle,
        checkpoint: Checkpoint,
        suspect: Suspect | None = None,
        ending: str = "",
    ) -> None:
        """Take up what another writer of the recording had, as of its last commit.

        Parameters
        ----------
        chronicle
            What the journal tells.
        checkpoint
            The last commit.
        suspect
            What the writer before was at when it died.
        ending
            ``"close"`` or ``"abort"``, if the recording was to end.
        """
        self._checkpoint = checkpoint.pack()
        self._suspect, self._ending = suspect, ending
        self._remove_uncommitted(checkpoint)
        self._careful_slots = _CAREFUL_SLOTS
        self._accounts += chronicle.accounts
        self._problems += chronicle.problems
        by_link = {}
        tails = self._resume_tails(chronicle, checkpoint)
        for told in chronicle.instruments.values():
            instrument = self._instruments.restore(
                told.instrument_id, told.link, told.options, told.continues
            )
            by_link[told.link] = instrument
            if told.schema:
                own = [found for link, found in tails if link == told.link]
                standing = checkpoint.instruments.get(told.link, _NOTHING)
                instrument.resume(told.schema, told.history, standing, own)
        for number, instrument_id in chronicle.rings.items():
            taken = checkpoint.sources.get(number)
            if not self._session.ring_path(number).exists():
                # Its producer came to nothing; or a power cut took the ring.
                self._accounts.append(Account.of(instrument_id, number, taken or SourceStanding()))
                continue
            try:
                source = Source(self._session, number, instrument_id, taken)
            except BrokenError as error:
                # One ring must not keep all that is in the others from going on.
                self._accounts.append(Account.of(instrument_id, number, taken or SourceStanding()))
                self._problem(
                    f"a ring of {instrument_id!r} cannot be read, what was in it and in no file is lost: "
                    f"{error}"
                )
                continue
            for (ring, schema_id), (link, image) in chronicle.declared.items():
                if ring == number:
                    source.follows[schema_id] = by_link[link].follows(image)
            self._add_source(source)
        self._adaptive = self._instruments.adaptive()

    def _remove_uncommitted(self, checkpoint: Checkpoint) -> None:
        """Remove datasets that no commit covers: a mask of rows that went elsewhere would hide others."""
        used = {number for standing in checkpoint.instruments.values() for number, *_ in standing["streams"]}
        left = [
            dataset.path
            for dataset in self._file.datasets
            if dataset is not None and dataset.number not in used
        ]
        if left:
            with self._file.structure():
                for path in left:
                    self._file.remove(path)

    def _resume_tails(
        self, chronicle: Chronicle, checkpoint: Checkpoint
    ) -> list[tuple[str, tuple[Tails, list[int]]]]:
        """Return the tails that are still of use, each with its instrument's link; remove the others."""
        used = {number for standing in checkpoint.instruments.values() for number, *_ in standing["streams"]}
        kept = []
        for told in chronicle.tails:
            path = self._session.tails_path_of(told.name)
            self._instruments.tails_exist(path)
            links = {
                dataset.path.partition("/")[0]
                for number in told.datasets
                if number in used and (dataset := chronicle.datasets[number]).path is not None
            }
            if links:
                tails = Tails.attach(path, told.sizes, told.buffers, private=self._session.private)
                kept.append((links.pop(), (tails, told.datasets)))
            else:
                path.unlink(missing_ok=True)
        return kept

    # -- the loop --------------------------------------------------------------------------------------------

    def run(self) -> Message:
        """Record until told to close or abort, or until the owner dies; return the closing report."""
        while not self._ending:
            self._turn()
        return self._finish(self._ending)

    def _turn(self) -> None:
        self._session.beat()
        now = time.monotonic()
        took = self._took = self._take_round() if self._has_space(now) else 0
        self._pipeline.check()
        now = time.monotonic()
        if self._adaptive:
            self._look_at_load(now)
        self._commit_in_passing(now)
        interval = self._config.auto_flush_interval_secs
        if interval and now - self._last_publish >= interval:
            self._publish(older_than_s=interval)
        if now - self._last_housekeeping >= _HOUSEKEEPING_S:
            self._keep_house(now)
        self._answer_flushes()
        self._select(0.0 if took else self._sleep_s())

    def _beat(self) -> None:
        """Say that all is well; called while chunks are waited for, so that the load is looked at as well."""
        self._session.beat()
        if self._adaptive:
            self._look_at_load(time.monotonic())

    def _look_at_load(self, now: float) -> None:
        """Let instruments whose compression adapts know how full their rings are."""
        if now - self._looked_at_load < _LOAD_LOOK_S:
            return
        self._looked_at_load = now
        fills: dict[str, float] = {}
        for source in self._sources.values():
            fills[source.instrument_id] = max(source.fill, fills.get(source.instrument_id, 0.0))
        waited_s = self._pipeline.codec_wait_s(now)
        for source_id, instrument in self._adaptive:
            effort = instrument.assembly.effort
            if effort is None or not effort.observe(now, fills.get(source_id, 0.0), waited_s):
                continue
            if (effort.steps_down, effort.steps_up) == (1, 0):
                log.warning(
                    "codec threads cannot keep up with %r: its chunks are compressed less until they can",
                    instrument.instrument_id,
                )

    def _select(self, timeout_s: float) -> None:
        if timeout_s:
            # Said first, looked second: a producer that seals meanwhile rings, or its slot is seen here.
            self._session.awake = False
            fence()
            if any(source.ring.has_sealed() for source in self._sources.values()):
                timeout_s = 0.0
        ready = self._selector.select(timeout_s)
        self._session.awake = True
        for key, _ in ready:
            key.data()

    def _sleep_s(self) -> float:
        if self._commit_would_free():
            due = self._last_commit + self._config.commit_interval_ms / 1000
            return min(_LONGEST_SLEEP_S, max(0.001, due - time.monotonic()))
        return min(_LONGEST_SLEEP_S, self._config.auto_flush_interval_secs or _LONGEST_SLEEP_S)

    def _take_round(self) -> int:
        taken = 0
        for source in list(self._sources.values()):
            taken += self._take_from(source, _ROUND_SLOTS, _ROUND_BYTES)
            # Many full rings are more than one commit's worth, and what they hold is memory until then.
            if self._uncommitted >= self._config.commit_bytes:
                self._commit_in_passing(time.monotonic())
        return taken

    def _take_from(self, source: Source, slots: int, size: int) -> int:
        taken = 0
        while taken < slots and size > 0:
            self._session.taking = source.number, source.account.taken_slots
            try:
                slot = self._take_run(source) or source.take()
            except BrokenError as error:
                self._give_up(source, error)
                break
            if slot is None:
                break
            taken += 1
            size -= slot.end - slot.position
            self._uncommitted += slot.end - slot.position
            self._session.beat()  # draining a large ring is one turn
            step("writer.slot_taken")
            if isinstance(slot, Run):
                follows = source.follows[slot.schema_id]
                source.hold(slot, follows.instrument.append_run(slot, follows))
            elif self._suspect is None:
                self._record(source, slot)
            else:
                self._record_with_care(source, slot, self._suspect)
            step("writer.distributed")
        self._session.taking = None
        return taken

    def _take_run(self, source: Source) -> Run | None:
        """Take slots that are alike and can be recorded at once; ``None``: the next slot is for itself."""
        run = source.look_ahead() if self._suspect is None else None
        if run is None:
            return None
        follows = source.follows[run.schema_id]
        return source.take_run(run, follows.instrument.fitting(run, follows))

    def _record(self, source: Source, slot: Slot) -> None:
        try:
            follows = source.follows.get(slot.schema_id)
            if follows is None:
                raise BrokenError(
                    f"batch {slot.sequence} of {source.instrument_id!r} follows a schema never declared"
                )
            if slot.kind == Kind.PLAIN:
                ticket = follows.instrument.append_plain(slot.body, slot.rows, follows)
            else:
                ticket = follows.instrument.append(_batch_of(slot, follows))
        except (InvalidValueError, BrokenError) as error:
            self._keep_aside(source, slot, error)
            source.hold(slot, None)
            return
        source.hold(slot, ticket)

    def _record_with_care(self, source: Source, slot: Slot, suspect: Suspect) -> None:
        """Record a slot after a death, so that the next one tells which is to blame; keep that one aside.

        After two deaths in a row every slot is committed before the next is taken, for as many slots as a
        writer may have had on its way.
        """
        is_it = (source.number, slot.sequence) == (suspect.ring, suspect.sequence)
        if is_it and suspect.deaths_at_it >= _DEATHS_TO_BLAME:
            follows = source.follows.get(slot.schema_id)
            error = BrokenError(f"{suspect.deaths_at_it} writers died over it")
            self._keep_aside(source, slot, error, image=None if follows is None else follows.image)
            source.hold(slot, None)
        else:
            self._record(source, slot)
        if suspect.deaths > 1:
            for instrument in self._instruments:
                instrument.assembly.settle()
            self._pipeline.drain()
            self._commit_now()
        self._careful_slots -= 1
        if not self._careful_slots:
            self._suspect = None

    def _keep_aside(
        self, source: Source, slot: Slot, reason: ShmStoreError, image: bytes | None = None
    ) -> None:
        """Put a batch that the file cannot take into quarantine, and say so.

        Parameters
        ----------
        source, slot, reason
            Which batch, and why.
        image
            Its schema, serialized, if the batch must not be looked at: it is kept as it is then.
        """
        follows = source.follows.get(slot.schema_id)
        known = source.instrument_id, source.number, slot.sequence
        path = None
        if image is not None and slot.kind != Kind.PLAIN:
            streams = slot.kind == Kind.STREAM
            parts = slot_stream(slot.body, slot.skip, image, streams=streams)
            path = self._quarantine.keep_stream(*known, parts)
        elif follows is not None and slot.kind != Kind.PLAIN:
            with contextlib.suppress(BrokenError):
                batch = retyped(_batch_of(slot, follows), follows.schema)
                path = self._quarantine.keep(*known, batch)
        path = path or self._quarantine.keep_bytes(*known, slot.body)
        step("writer.quarantined")
        self._problem(
            f"{slot.rows} rows of {source.instrument_id!r} are in {path}, not in the file: {reason}"
        )

    def _give_up(self, source: Source, error: BrokenError) -> None:
        """Stop reading a ring that is damaged; what was taken from it before is recorded."""
        lost = source.give_up()
        self._problem(
            f"a ring of {source.instrument_id!r} cannot be read on, {lost} rows of it are lost: {error}"
        )

    def _problem(self, text: str) -> None:
        log.error(text)
        if text not in self._problems:  # a batch may be kept aside again by who goes on
            self._problems.append(text)
            self._file.note("problem", {"text": text})

    def _has_space(self, now: float) -> bool:
        """Whether the disk has room for what would be taken; else the rings keep it, as long as they can.

        Raises
        ------
        StorageError
            It has had none for ``disk_patience_s``.
        """
        if now - self._looked_at_disk < _DISK_LOOK_S:
            return self._short_of_space_since is None
        self._looked_at_disk = now
        free = self._file.free_bytes
        if free >= self._config.disk_reserve_bytes:
            if self._short_of_space_since is not None:
                log.warning("there is space for %s again: recording goes on", self._file.path)
            self._short_of_space_since = None
            waiting, self._stalled = self._stalled, []
            for peer in waiting:
                self._flush(peer)
            return True
        if self._short_of_space_since is None:
            self._short_of_space_since = now
            log.warning(
                "%s has %d bytes left on its disk, disk_reserve_bytes are %d: what comes stays in the rings "
                "until there is space",
                self._file.path,
                free,
                self._config.disk_reserve_bytes,
            )
        patience_s = self._config.disk_patience_s
        if patience_s is not None and now - self._short_of_space_since > patience_s:
            raise storage_error(
                OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "write the recording", self._file.path
            )
        return False

    # -- commit and flush ------------------------------------------------------------------------------------

    def _commit_in_passing(self, now: float) -> None:
        """Finish the commit under way, if it is done, and begin the next, if it is due; waits for neither."""
        if self._commit is not None and self._commit.done:
            self._end_commit(self._commit)
        if self._commit is None and self._commit_is_due(now):
            self._begin_commit()

    def _commit_is_due(self, now: float) -> bool:
        sources = [source for source in self._sources.values() if source.releasable]
        if not sources:
            return False
        if now - self._last_commit >= self._config.commit_interval_ms / 1000:
            return True
        # Where all columns fill their chunks at once, nothing comes free before the last of these is written.
        first = min(source.next_ticket for source in sources)
        frees = self._pipeline.written >= first
        if frees and self._uncommitted - self._pipeline.under_way_bytes >= self._config.commit_bytes:
            return True
        portion = self._portion_bytes()
        if portion is None:
            return False
        if not self._pipeline.busy:  # all that was taken can be given back
            return self._uncommitted >= portion or not self._took
        wanted = self._committed_bytes + portion
        if frees and self._pipeline.written_bytes >= wanted:
            return True
        self._pipeline.wake_when(wanted, first)
        return False

    def _commit_would_free(self) -> bool:
        """Whether slots are held that a commit may give back."""
        return any(source.releasable for source in self._sources.values())

    def _portion_bytes(self) -> int | None:
        """Return how many bytes should be written before a crowded ring gets space; ``None``: none is."""
        portions = [
            source.portion_bytes
            for source in self._sources.values()
            if source.crowded and not source.stuck  # where no commit would help at once
        ]
        return min(portions, default=None)

    def _commit_now(self) -> None:
        """Publish all that is written, and give its ring space back."""
        if self._commit is not None:
            self._pipeline.finish(self._commit)
            self._end_commit(self._commit)
        commit = self._begin_commit()
        self._pipeline.finish(commit)
        self._end_commit(commit)

    def _begin_commit(self) -> Commit:
        for instrument in self._instruments:
            self._settle_if_crowded(instrument)
            instrument.assembly.publish_variable()
            instrument.assembly.ripen()
        for source in self._sources.values():
            source.ripen()
        step("writer.commit_begun")
        self._commit = self._pipeline.commit(self._file.flush)
        self._last_commit = time.monotonic()
        return self._commit

    def _end_commit(self, commit: Commit) -> None:
        """Write down what was published, and give its ring space back."""
        self._commit = None
        for instrument in self._instruments:
            instrument.assembly.cut(commit.written)
        before = sum(source.account.committed_slots for source in self._sources.values())
        for source in self._sources.values():
            source.cover(commit.written)
        progressed = before < sum(source.account.committed_slots for source in self._sources.values())
        self._checkpoint = Checkpoint(
            commit.position,
            {number: source.standing for number, source in self._sources.items()},
            {instrument.assembly.link: instrument.assembly.standing() for instrument in self._instruments},
            journal=self._file.journal.number,
        ).pack()
        step("writer.file_flushed")
        if self._config.recoverable:
            self._keep(self._checkpoint)
            step("writer.ledger_stored")
        for instrument in self._instruments:
            instrument.assembly.committed()
        for source in self._sources.values():
            self._uncommitted -= source.release()
        step("writer.released")
        self._committed_bytes = self._pipeline.written_bytes
        self._commits += 1
        self._write_back_in_passing()
        if progressed:
            self._session.commits += 1

    def _write_back_in_passing(self) -> None:
        """Keep the disk busy, so that neither a flush nor the end has much to wait for."""
        idle = self._write_back is None or self._write_back.done()
        if idle and self._file.unwritten_bytes >= _WRITE_BACK_BYTES:
            self._write_back = self._sync_pool.submit(self._file.start_writing_back)

    def _keep(self, checkpoint: bytes) -> None:
        """Put a checkpoint into the ledger: from here on the commit counts."""
        if len(checkpoint) > self._ledger.capacity:
            larger = Ledger.create(self._session.next_ledger_path(), 2 * len(checkpoint))
            larger.store(checkpoint)
            self._ledger.unlink()
            self._ledger.close()
            self._ledger = larger
        else:
            self._ledger.store(checkpoint)

    def _settle_if_crowded(self, instrument: Instrument) -> None:
        if instrument.assembly.waiting_since is not None and any(
            source.crowded
            for source in self._sources.values()
            if source.instrument_id == instrument.instrument_id
        ):
            instrument.assembly.settle()

    def _publish(self, older_than_s: float) -> None:
        """Show what is slow, commit, and have the disk catch up in the background."""
        horizon = time.monotonic() - older_than_s
        for instrument in self._instruments:
            since = instrument.assembly.waiting_since
            if since is not None and since <= horizon:
                instrument.assembly.settle()
            instrument.assembly.publish_tails(older_than_s)
        step("writer.tails_published")
        self._commit_now()
        if self._sync is None:
            self._sync = self._sync_pool.submit(self._make_durable, self._checkpoint, self._tails())
            self._sync.add_done_callback(lambda _: self._wake())
        self._last_publish = time.monotonic()

    def _tails(self) -> list[tuple[int, Chunk]]:
        """Return what the last commit covers of unfinished chunks, by the number of their dataset."""
        # Copied: what comes next is written into the same buffers.
        return [
            (number, tail.copy())
            for instrument in self._instruments
            for number, tail in instrument.assembly.tails()
        ]

    def _make_durable(self, checkpoint: bytes, tails: list[tuple[int, Chunk]]) -> None:
        """Bring what a commit covers to the disk, so that a power cut cannot take it; on a thread beside."""
        self._file.sync()
        if not self._config.recoverable:
            return
        self._tail_file.save(
            durable_checkpoint(checkpoint, [number for number, _ in tails]), [tail for _, tail in tails]
        )

    def _flush(self, peer: Peer) -> None:
        """Bring everything sealed by now into the file; the peer is answered when the disk has it."""
        if self._short_of_space_since is not None:
            self._stalled.append(peer)
            return
        self._drain()
        for instrument in self._instruments:
            instrument.assembly.settle()
        self._pipeline.drain()
        if self._sync is not None:  # that one began before these rows were written
            self._sync.result()
            self._finish_sync()
        self._publish(older_than_s=0.0)
        self._flush_waiters.append(peer)

    def _drain(self) -> None:
        for source in list(self._sources.values()):
            target = source.ring.sealed_slots
            # A producer that was killed may have sealed one more than it could count.
            while (
                source.account.taken_slots < target or (source.ended and source.ring.has_sealed())
            ) and self._take_from(source, _ROUND_SLOTS, _ROUND_BYTES):
                self._commit_in_passing(time.monotonic())

    def _answer_flushes(self) -> None:
        if self._sync is None or not self._sync.done():
            return
        self._sync.result()
        self._finish_sync()

    def _finish_sync(self) -> None:
        self._sync = None
        self._flushes += 1
        self._last_flush = time.time()
        step("writer.flushed")
        waiters, self._flush_waiters = self._flush_waiters, []
        for peer in waiters:
            self._service.reply(peer, {"last_flush": self._last_flush})

    def _keep_house(self, now: float) -> None:
        """Let go of rings whose producers have ended and whose slots are all in the file."""
        self._last_housekeeping = now
        for source in list(self._sources.values()):
            if source.ended and source.idle:
                source.close_account(aborted=False)
                self._detach(source)

    def _detach(self, source: Source) -> None:
        """Let go of a ring of which everything is in the file."""
        self._take_leave(source)
        self._let_go(source)

    @staticmethod
    def _let_go(source: Source) -> None:
        source.close()
        step("writer.detached")

    def _take_leave(self, source: Source) -> None:
        account = source.settle_account()
        self._file.note("detach", {"ring": source.number, "account": dataclasses.asdict(account)})
        step("writer.detach_noted")
        self._accounts.append(account)
        self._instruments[source.instrument_id].high_water = max(
            self._instruments[source.instrument_id].high_water, source.ring.high_water
        )
        self._selector.unregister(source.queue)
        del self._sources[source.number]

    # -- control ---------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)

    def _owner_died(self) -> None:
        self.owner_gone = True
        self._ending = "close"

    def recover(self) -> Message:
        """Take in what is left in the rings, finish the file, and return the closing report."""
        try:
            return self._finish("close")
        finally:
            self.close()

    def note_problem(self, text: str) -> None:
        """Have the file say that something is wrong with it."""
        self._problem(text)

    def close(self) -> None:
        """Let go of what a writer process would let go of by its end."""
        self._selector.close()
        os.close(self._wake_fd)

    def stop(self) -> None:
        """End the recording as if the owner had closed it; for signal handlers."""
        self._ending = "close"
        self._wake()

    def _serve(self, peer: Peer, message: Message) -> None:
        arguments = dict(message)
        operation = str(arguments.pop("operation", ""))
        if operation in ("close", "abort"):
            self._ending = operation
            self._flush_waiters.append(peer)
            return
        if operation == "flush":  # what it fails with is not the peer's to hear, unless there is no hope
            self._flush(peer)
            return
        operations: dict[str, Callable[..., Message | None]] = {
            "attach": self._attach,
            "declare": self._declare,
            "withdraw": self._withdraw,
            "metadata": self._set_metadata,
            "stats": self._stats,
            "describe": self._describe,
        }
        serve = operations.get(operation)
        try:
            if serve is None:
                raise BrokenError(f"the writer knows no request {operation!r}: its version is another")
            self._service.reply(peer, serve(**arguments) or {})
        except (TypeError, KeyError, ValueError, ShmStoreError) as error:
            if self._file.failed:  # whoever follows goes on from what is on the disk, and answers
                raise
            self._service.reply(peer, error_reply(error))

    def _describe(self) -> Message:
        return {"path": str(self._file.path), "config": self._config.to_dict()}

    def _attach(self, ring: int, instrument: str, options: Message) -> None:
        """Take a ring in; its instrument's group is made if it is new."""
        alone = all(source.instrument_id != instrument for source in self._sources.values())
        self._instruments.ensure(instrument, options, alone=alone)
        step("writer.instrument_made")
        if ring in self._sources:  # the request was sent again after the writer before had served it
            return
        self._add_source(Source(self._session, ring, instrument))
        step("writer.ring_taken")
        self._file.note("attach", {"ring": ring, "instrument": instrument})
        step("writer.ring_noted")

    def _add_source(self, source: Source) -> None:
        self._sources[source.number] = source
        self._selector.register(source.queue, selectors.EVENT_READ, lambda: self._hear_bell(source))

    def _withdraw(self, ring: int) -> None:
        """Let go of a ring whose producer came to nothing."""
        source = self._sources.get(ring)
        if source is not None and not source.ring.sealed_slots:
            self._file.note("withdraw", {"ring": ring})
            del self._sources[ring]
            self._selector.unregister(source.queue)
            source.close()

    def _hear_bell(self, source: Source) -> None:
        try:
            source.queue.silence()
        except BrokenError as error:
            # The ring is the truth; a strange record costs nothing, but it should not go unnoticed.
            log.warning("%s", error)

    def _declare(self, ring: int, schema: str) -> Message:
        """Let a ring's slots follow a schema, if its instrument can take it."""
        source = self._sources.get(ring)
        if source is None:
            raise BrokenError(f"ring {ring} is not attached to this recording")
        image = decoded_schema(source.instrument_id, schema)
        for number, known in source.follows.items():
            if known.image == image:
                return {"schema_id": number}
        number = len(source.follows)
        follows = source.follows[number] = self._instruments.declare(source.instrument_id, image)
        link = follows.instrument.assembly.link
        self._adaptive = self._instruments.adaptive()
        step("writer.schema_made")
        self._file.note("declare", {"ring": ring, "number": number, "link": link}, image)
        step("writer.schema_noted")
        return {"schema_id": number}

    def _set_metadata(self, instrument: str | None, key: str, value: Any) -> None:
        self._instruments.set_metadata(instrument, key, value)

    def _stats(self) -> Message:
        short = self._short_of_space_since is not None
        return self._statistics("waiting for space" if short else "recording").to_dict()

    def _statistics(self, state: str) -> StorageStats:
        counts: dict[str, dict[str, int]] = {}
        for instrument in self._instruments:
            counts[instrument.instrument_id] = instrument.counts()
        accounts = [*self._accounts, *(source.settle_account() for source in self._sources.values())]
        for account in accounts:
            entry, own = counts[account.instrument_id], account.to_dict()
            for key in ("accepted", "committed", "dropped", "rejected", "quarantined"):
                entry[key] += own[key]
            entry["batches_written"] += account.committed_slots
        for source in self._sources.values():
            entry = counts[source.instrument_id]
            entry["producers"] += 1
            entry["ring_bytes"] += source.ring.capacity
            entry["ring_bytes_used"] += source.ring.used
            entry["ring_high_water"] = max(entry["ring_high_water"], source.ring.high_water)
        totals = {key: sum(entry[key] for entry in counts.values()) for key in InstrumentStats().to_dict()}
        totals["ring_high_water"] = max((entry["ring_high_water"] for entry in counts.values()), default=0)
        return StorageStats(
            **totals,
            state=state,
            commits=self._commits,
            flushes=self._flushes,
            last_flush=self._last_flush,
            file_bytes=self._file.size,
            writer_restarts=self._session.restarts,
            last_restart_reason=self._session.restart_reason,
            instruments={name: InstrumentStats(**entry) for name, entry in counts.items()},
        )

    # -- the end ---------------------------------------------------------------------------------------------

    def _finish(self, ending: str) -> Message:
        """Drain, check the account, stamp and close the file; tell whoever asked."""
        self._session.state = State.CLOSING
        self._adaptive = []  # nobody waits for space any more, and a recovery is in no hurry either
        step("close.begun")
        if ending == "close":
            self._drain()
        step("close.drained")
        for source in self._sources.values():
            source.ring.finish(source.account.taken_slots)
        step("close.last_word")
        for instrument in self._instruments:
            instrument.assembly.finish()
            self._session.beat()
        self._pipeline.drain()
        step("close.assembled")
        if self._sync is not None:
            self._sync.result()
            self._sync = None
        self._commit_now()
        if self._write_back is not None:
            self._write_back.result()  # it looks at a file that is closed below
        self._session.beat()
        step("close.committed")
        # In the background: the kernel takes its time to free a large ring.
        closings = []
        for source in list(self._sources.values()):
            source.close_account(aborted=ending == "abort")
            self._take_leave(source)
            closings.append((source, self._sync_pool.submit(self._let_go, source)))
        self._session.beat()
        step("close.accounted")
        problems = list(self._problems)
        for instrument in self._instruments:
            if instrument.first:
                problems += imbalances(instrument.instrument_id, instrument.rows, self._accounts)
        state = "aborted" if ending == "abort" else "partial" if problems else "complete"
        accounting = {
            "producers": [account.to_dict() for account in self._accounts],
            "ok": not problems,
            "problems": problems,
        }
        efforts = {each.instrument_id: each.assembly.effort for each in self._instruments}
        adapted = {name: effort.counts() for name, effort in efforts.items() if effort is not None}
        if adapted:
            accounting["compression"] = adapted
        statistics = self._statistics(state)
        rows = {instrument.assembly.link: instrument.assembly.rows for instrument in self._instruments}
        if self._file.has_replaced:
            # What goes now may be all that the disk knows of these columns.
            self._make_durable(self._checkpoint, self._tails())
        self._tail_file.close()
        totals = {
            number: total
            for instrument in self._instruments
            for number, total in instrument.assembly.totals()
        }
        counts = statistics.to_dict()
        report: Message = {"state": state, "problems": problems, "stats": counts}
        self._file.finish(state, json.dumps(accounting), rows, totals, report)
        self._session.beat()
        step("close.file_finished")
        counts["file_bytes"] = self._file.path.stat().st_size
        # Kept in the session too: an owner that did not wait long enough may come back for it, and a writer
        # that follows one that was killed from here on finds that all is done.
        self._session.leave_report(report)
        step("close.report_written")
        self._file.discard_journal()
        step("close.files_removed")
        # From the other end: two free large rings sooner than one.
        for source, closing in reversed(closings):
            if closing.cancel():
                self._let_go(source)
            else:
                closing.result()
        # Only now: until then they are what a writer that follows goes on with.
        for instrument in self._instruments:
            instrument.assembly.close()
        self._ledger.unlink()
        self._ledger.close()
        step("close.memory_freed")
        self._session.state = State.CLOSED
        step("close.state_closed")
        for peer in self._flush_waiters:
            self._service.reply(peer, report)
        step("close.answered")
        self._pipeline.close()
        self._sync_pool.shutdown()
        return report


def _batch_of(slot: Slot, follows: Follows) -> pa.RecordBatch:
    if slot.kind == Kind.STREAM:
        return read_stream(slot.body, follows.schema, slot.rows, follows.physical)
    # A record-batch message holds no types: it can be read under any schema with the same buffers.
    return read_ipc(slot.body, slot.skip, follows.physical, slot.rows)
