"""The writer: one thread that takes slots from rings, has them assembled, and commits them.

The loop takes a fair share from each ring, writes what the codec threads have ready, and commits on a budget
of bytes and milliseconds: one file flush for all columns, after which the ring space is given back. In
between it answers control requests. Nothing in it waits for a producer, and every wait has an end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from shmstore.accounting import Account, imbalances
from shmstore.batch import read_ipc, read_stream
from shmstore.config import StorageConfig
from shmstore.control import Message, error_reply
from shmstore.dataset import RecordingFile
from shmstore.errors import BrokenError, InvalidValueError, ShmStoreError
from shmstore.instruments import Follows, Instrument, Instruments
from shmstore.physical import retyped
from shmstore.pipeline import CodecPipeline
from shmstore.quarantine import Quarantine
from shmstore.ring import Kind, Slot
from shmstore.service import ControlService, Peer
from shmstore.session import Session, State
from shmstore.source import Source
from shmstore.stats import InstrumentStats, StorageStats

log = logging.getLogger("shmstore.writer")

#: What one ring may bring per round, so that all get their turn.
_ROUND_SLOTS, _ROUND_BYTES = 64, 8 * 2**20
#: Unencoded bytes under way for each codec thread: enough that none runs dry while the file is written.
_WINDOW_BYTES_PER_THREAD = 8 * 2**20
_LONGEST_SLEEP_S = 0.5
_HOUSEKEEPING_S = 1.0


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
    """

    def __init__(
        self,
        session: Session,
        config: StorageConfig,
        file: RecordingFile,
        listener: socket.socket,
        owner_fd: int,
    ) -> None:
        self._session = session
        self._config = config
        self._file = file
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        threads = config.codec_thread_count
        self._pipeline = CodecPipeline(threads, threads * _WINDOW_BYTES_PER_THREAD, self._wake)
        self._instruments = Instruments(file, self._pipeline, config, session)
        self._quarantine = Quarantine(file.path)
        self._sources: dict[int, Source] = {}
        self._accounts: list[Account] = []
        self._selector = selectors.DefaultSelector()
        self._service = ControlService(listener, self._selector, self._serve)
        self._selector.register(self._wake_fd, selectors.EVENT_READ, self._drain_wake)
        self._selector.register(owner_fd, selectors.EVENT_READ, self._owner_died)
        self._sync_pool = ThreadPoolExecutor(1, thread_name_prefix="shmstore-sync")
        self._sync: Future[None] | None = None
        self._flush_waiters: list[Peer] = []
        self._uncommitted = 0
        self._last_commit = self._last_publish = self._last_housekeeping = time.monotonic()
        self._commits = self._flushes = 0
        self._last_flush: float | None = None
        self._problems: list[str] = []
        self._ending = ""
        self.owner_gone = False

    # -- the loop --------------------------------------------------------------------------------------------

    def run(self) -> Message:
        """Record until told to close or abort, or until the owner dies; return the closing report."""
        while not self._ending:
            self._turn()
        return self._finish(self._ending)

    def _turn(self) -> None:
        took = self._take_round()
        self._pipeline.write_ready()
        now = time.monotonic()
        if self._commit_is_due(now):
            self._commit()
        interval = self._config.auto_flush_interval_secs
        if interval and now - self._last_publish >= interval:
            self._publish(older_than_s=interval)
        if now - self._last_housekeeping >= _HOUSEKEEPING_S:
            self._keep_house(now)
        self._answer_flushes()
        self._select(0.0 if took else self._sleep_s())

    def _select(self, timeout_s: float) -> None:
        if timeout_s and any(source.ring.has_sealed() for source in self._sources.values()):
            timeout_s = 0.0
        for key, _ in self._selector.select(timeout_s):
            key.data()

    def _sleep_s(self) -> float:
        if self._uncommitted:
            due = self._last_commit + self._config.commit_interval_ms / 1000
            return min(_LONGEST_SLEEP_S, max(0.001, due - time.monotonic()))
        return min(_LONGEST_SLEEP_S, self._config.auto_flush_interval_secs or _LONGEST_SLEEP_S)

    def _take_round(self) -> int:
        taken = 0
        for source in list(self._sources.values()):
            taken += self._take_from(source, _ROUND_SLOTS, _ROUND_BYTES)
            # Many full rings are more than one commit's worth, and what they hold is memory until then.
            if self._uncommitted >= self._config.commit_bytes:
                self._commit()
        return taken

    def _take_from(self, source: Source, slots: int, size: int) -> int:
        taken = 0
        while taken < slots and size > 0:
            try:
                slot = source.take()
            except BrokenError as error:
                self._give_up(source, error)
                break
            if slot is None:
                break
            taken += 1
            size -= len(slot.body)
            self._uncommitted += len(slot.body)
            self._record(source, slot)
        return taken

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

    def _keep_aside(self, source: Source, slot: Slot, reason: ShmStoreError) -> None:
        """Put a batch that the file cannot take into quarantine, and say so."""
        follows = source.follows.get(slot.schema_id)
        path = None
        if follows is not None and slot.kind != Kind.PLAIN:
            with contextlib.suppress(BrokenError):
                batch = retyped(_batch_of(slot, follows), follows.schema)
                path = self._quarantine.keep(source.instrument_id, batch)
        path = path or self._quarantine.keep_bytes(source.instrument_id, slot.body)
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
        self._problems.append(text)

    # -- commit and flush ------------------------------------------------------------------------------------

    def _commit_is_due(self, now: float) -> bool:
        if not self._uncommitted:
            return False
        if (
            self._uncommitted >= self._config.commit_bytes
            or now - self._last_commit >= self._config.commit_interval_ms / 1000
        ):
            return True
        return any(source.ring.used > source.ring.capacity // 4 for source in self._sources.values())

    def _commit(self) -> None:
        """Publish what is assembled and give its ring space back."""
        for instrument in self._instruments:
            self._settle_if_crowded(instrument)
            instrument.assembly.publish_variable()
        self._file.flush()
        written = self._pipeline.written
        for source in self._sources.values():
            self._uncommitted -= source.release(written)
        self._uncommitted = max(0, self._uncommitted) if self._pipeline.busy else 0
        self._last_commit = time.monotonic()
        self._commits += 1

    def _settle_if_crowded(self, instrument: Instrument) -> None:
        if instrument.assembly.waiting_since is not None and any(
            source.ring.used > source.ring.capacity // 4
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
        self._commit()
        if self._sync is None:
            self._sync = self._sync_pool.submit(self._file.sync)
            self._sync.add_done_callback(lambda _: self._wake())
        self._last_publish = time.monotonic()

    def _flush(self, peer: Peer) -> None:
        """Bring everything sealed by now into the file; the peer is answered when the disk has it."""
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
            while source.account.taken_slots < target and self._take_from(source, _ROUND_SLOTS, _ROUND_BYTES):
                if self._commit_is_due(time.monotonic()):
                    self._commit()

    def _answer_flushes(self) -> None:
        if self._sync is None or not self._sync.done():
            return
        self._sync.result()
        self._finish_sync()

    def _finish_sync(self) -> None:
        self._sync = None
        self._flushes += 1
        self._last_flush = time.time()
        waiters, self._flush_waiters = self._flush_waiters, []
        for peer in waiters:
            self._service.reply(peer, {"last_flush": self._last_flush})

    def _keep_house(self, now: float) -> None:
        """Let go of rings whose producers have ended and whose slots are all in the file."""
        self._last_housekeeping = now
        for source in list(self._sources.values()):
            if source.ended and source.idle:
                self._detach(source)

    def _detach(self, source: Source) -> None:
        self._accounts.append(source.settle_account())
        self._instruments[source.instrument_id].high_water = max(
            self._instruments[source.instrument_id].high_water, source.ring.high_water
        )
        self._selector.unregister(source.queue)
        del self._sources[source.number]
        source.close()

    # -- control ---------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)

    def _owner_died(self) -> None:
        self.owner_gone = True
        self._ending = "close"

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
            if operation == "flush":
                self._flush(peer)
                return
            if serve is None:
                raise BrokenError(f"the writer knows no request {operation!r}: its version is another")
            self._service.reply(peer, serve(**arguments) or {})
        except (TypeError, KeyError, ValueError, ShmStoreError) as error:
            self._service.reply(peer, error_reply(error))

    def _describe(self) -> Message:
        return {"path": str(self._file.path), "config": self._config.to_dict()}

    def _attach(self, ring: int, instrument: str, options: Message) -> None:
        """Take a ring in; its instrument's group is made if it is new."""
        alone = all(source.instrument_id != instrument for source in self._sources.values())
        self._instruments.ensure(instrument, options, alone=alone)
        source = Source(self._session, ring, instrument)
        self._sources[ring] = source
        self._selector.register(source.queue, selectors.EVENT_READ, lambda: self._hear_bell(source))

    def _withdraw(self, ring: int) -> None:
        """Let go of a ring whose producer came to nothing."""
        source = self._sources.get(ring)
        if source is not None and not source.ring.sealed_slots:
            del self._sources[ring]
            self._selector.unregister(source.queue)
            source.close()

    def _hear_bell(self, source: Source) -> None:
        try:
            while source.queue.receive():
                pass
        except BrokenError as error:
            # The ring is the truth; a strange record costs nothing, but it should not go unnoticed.
            log.warning("%s", error)

    def _declare(self, ring: int, schema: str) -> Message:
        """Let a ring's slots follow a schema, if its instrument can take it."""
        source = self._sources.get(ring)
        if source is None:
            raise BrokenError(f"ring {ring} is not attached to this recording")
        number = len(source.follows)
        source.follows[number] = self._instruments.declare(source.instrument_id, schema)
        return {"schema_id": number}

    def _set_metadata(self, instrument: str | None, key: str, value: Any) -> None:
        self._instruments.set_metadata(instrument, key, value)

    def _stats(self) -> Message:
        return self._statistics("recording").to_dict()

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
            instruments={name: InstrumentStats(**entry) for name, entry in counts.items()},
        )

    # -- the end ---------------------------------------------------------------------------------------------

    def _finish(self, ending: str) -> Message:
        """Drain, check the account, stamp and close the file; tell whoever asked."""
        self._session.state = State.CLOSING
        if ending == "close":
            self._drain()
        for source in self._sources.values():
            source.ring.finish(source.account.taken_slots)
        for instrument in self._instruments:
            instrument.assembly.finish()
        self._pipeline.drain()
        if self._sync is not None:
            self._sync.result()
            self._sync = None
        self._commit()
        for source in list(self._sources.values()):
            source.close_account(aborted=ending == "abort")
            self._detach(source)
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
        statistics = self._statistics(state)
        rows = {instrument.assembly.link: instrument.assembly.rows for instrument in self._instruments}
        for instrument in self._instruments:
            instrument.assembly.close()
        self._file.finish(state, json.dumps(accounting), rows)
        size = self._file.path.stat().st_size
        report: Message = {
            "state": state,
            "problems": problems,
            "stats": statistics.to_dict() | {"file_bytes": size},
        }
        # Kept in the session too: an owner that did not wait long enough may come back for it.
        self._session.report_path.write_text(json.dumps(report))
        self._session.state = State.CLOSED
        for peer in self._flush_waiters:
            self._service.reply(peer, report)
        self._pipeline.close()
        self._sync_pool.shutdown()
        return report


def _batch_of(slot: Slot, follows: Follows) -> pa.RecordBatch:
    if slot.kind == Kind.STREAM:
        return read_stream(slot.body, follows.schema, slot.rows, follows.physical)
    # A record-batch message holds no types: it can be read under any schema with the same buffers.
    return read_ipc(slot.body, slot.skip, follows.physical, slot.rows)
