"""The producer: puts batches into its own ring, and waits for nothing but space in it.

A producer is picklable: it travels by name, and the process that first uses it becomes its only user. The
kernel holds that place, so a producer that dies gives it up.
"""

from __future__ import annotations

import base64
import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import pyarrow as pa

from shmstore.batch import BatchWriter, PlainLayout, batches_of
from shmstore.compaction import types_in
from shmstore.config import ResolvedInstrument
from shmstore.control import ControlConnection, raise_error
from shmstore.descriptor import Descriptor
from shmstore.encoding import check, has_plain_strings
from shmstore.errors import (
    BatchTooLargeError,
    BrokenError,
    ClosedError,
    InvalidValueError,
    RingFullError,
    SchemaMismatchError,
    ShmStoreError,
)
from shmstore.layout import Layout
from shmstore.loan import Loan
from shmstore.physical import physical_schema, retyped
from shmstore.planning import plan
from shmstore.queue import DescriptorQueue
from shmstore.ring import SLOT_HEADER_BYTES, Kind, Life, Ring
from shmstore.sameness import same_types
from shmstore.schema import first_difference
from shmstore.segment import align, fence
from shmstore.session import Session, State
from shmstore.stats import ProducerStats
from shmstore.steps import step
from shmstore.validity import check_full

#: Number of a schema that the writer has not heard of.
_UNDECLARED = -1
#: Longest time between two looks at whether the recording still lives, while waiting for space.
_LOOK_S = 0.1
#: How long the writer may take to say, at the end of a recording, which slots it took.
_LAST_WORD_S = 30.0
#: A put is cut so that at least this many slots fit the ring: the writer empties one while the next is
#: filled.
_SLOTS_PER_RING = 4


class _Attachment(NamedTuple):
    """What a producer holds in the process that uses it."""

    pid: int
    session: Session
    ring: Ring
    queue: DescriptorQueue
    easy_bytes: int  # of the largest body that a put is not cut for


class _Declared(NamedTuple):
    """What a producer knows of its schema once the writer has taken it."""

    schema: pa.Schema
    physical: pa.Schema  # the form in which its batches are recorded
    schema_id: int
    layout: Layout
    writer: BatchWriter
    kind: Kind  # of the slots that hold its batches
    encoded: bool  # whether it has types that Arrow's own comparison may take for one another
    checked: tuple[int, ...]  # columns whose values have to be looked at before they are accepted

    def is_for(self, schema: pa.Schema) -> bool:
        """Whether batches of a schema follow this one as they are."""
        same: bool = same_types(schema, self.schema) if self.encoded else schema.equals(self.schema)
        return same


class Producer:
    """Puts the batches of one instrument into shared memory. Made by ``storage.producer()``.

    Not thread-safe beyond what a lock gives: concurrent calls take turns. Picklable as long as this process
    has not used it.

    Attributes
    ----------
    instrument_id : str
        What it feeds.
    """

    def __init__(
        self, folder: Path, number: int, config: ResolvedInstrument, schema: pa.Schema | None, schema_id: int
    ) -> None:
        self.instrument_id = config.instrument_id
        self._folder = folder
        self._number = number
        self._config = config
        self._given = (schema, schema_id)
        self._declared: _Declared | None = None
        self._attachment: _Attachment | None = None
        self._known: list[_Declared] = []  # every schema declared so far
        self._plain: PlainLayout | None = None
        self._loaned = False
        self._ended: Life | None = None
        self._finalizer: weakref.finalize[Any, Producer] | None = None
        self._rung: int | None = None  # the last of the writer's sleeps that was rung in
        self._waits = self._wait_ns = 0
        self._lock = threading.RLock()

    @property
    def schema(self) -> pa.Schema | None:
        """The schema of every batch; ``None`` until the first batch, if none was given."""
        return self._declared.schema if self._declared else self._given[0]

    # -- putting ---------------------------------------------------------------------------------------------

    def put(self, batch: Any, timeout: float | None = None) -> int | None:
        """Copy a batch into the ring; it is recorded whatever happens to this process afterwards.

        Parameters
        ----------
        batch
            A ``RecordBatch``, ``Table``, anything with ``__arrow_c_array__`` or ``__arrow_c_stream__``, or a
            serialized Arrow IPC stream. Not kept: the caller may change or free it at once. What does not fit
            the ring as a whole is cut into slices of rows.
        timeout
            Longest wait for space in seconds, under the policy ``block``; by default ``put_timeout_s``.

        Returns
        -------
        int or None
            Sequence number of the (last) slot; ``None`` if the policy ``drop_newest`` dropped rows.

        Raises
        ------
        SchemaMismatchError
            The batch has another schema; the message shows the first difference.
        InvalidValueError
            A value does not fit its column.
        BatchTooLargeError
            A single row is larger than the ring.
        RingFullError
            No space: at once (``raise``) or within the timeout (``block``). Slices already sealed stay.
        ClosedError
            The producer or the recording was closed.
        BrokenError
            The recording is broken, or neither its writer nor its owner is left: what was put before is kept
            in shared memory. A writer that dies is replaced, and not noticed here.
        """
        with self._lock:
            sequence: int | None = -1
            try:
                if isinstance(batch, pa.RecordBatch):
                    return self._put_batch(batch, timeout)
                for part in batches_of(batch):
                    taken = self._put_batch(part, timeout)
                    sequence = None if sequence is None else taken  # rows dropped before stay dropped
            except (TypeError, ValueError) as error:
                if not isinstance(error, ShmStoreError):
                    # Not of its own type: that of some, such as UnicodeDecodeError, takes other arguments.
                    kind = TypeError if isinstance(error, TypeError) else ValueError
                    raise kind(f"{self.instrument_id!r}: {error}") from None
                raise
            return sequence

    def _put_batch(self, batch: pa.RecordBatch, timeout: float | None) -> int | None:
        attachment = self._attach()
        ring = attachment.ring
        if self._ended is not None or not attachment.session.recording:
            self._check_alive()
        if self._loaned:
            raise ShmStoreError(f"a loan of {self.instrument_id!r} is open: leave its block before put()")
        try:
            declared, batch = self._check_batch(batch)
            message = declared.writer.message(batch)
            pieces = declared.writer.pieces(batch) if message is None else None
            size = pieces.size if pieces is not None else len(message or b"")
            if size and size <= attachment.easy_bytes:
                sizes = [(batch, size)]
            else:
                sizes, message, pieces = self._cut(batch, declared, attachment), None, None
        except ShmStoreError:
            ring.count_rejected(batch.num_rows)
            raise
        sequence: int | None = -1
        left = batch.num_rows
        for part, size in sizes:
            body = ring.reserve(size) or self._room(size, left, timeout)
            if body is None:
                return None
            step("producer.reserved")
            if message is not None:
                body[:], skip = message, 0
            elif pieces is not None:
                pieces.copy(body)
                skip = pieces.skip
            else:
                skip = declared.writer.write(part, body)
            body.release()
            step("producer.body_written")
            left -= part.num_rows
            sequence = self._seal(attachment, declared.kind, size, part.num_rows, declared.schema_id, skip)
        return sequence

    def _check_batch(self, batch: pa.RecordBatch) -> tuple[_Declared, pa.RecordBatch]:
        """Refuse what does not fit; return what the batch follows, and the batch under exactly that."""
        declared = self._declared or self._describe(batch.schema, _UNDECLARED)
        if batch.schema is not declared.schema and not declared.is_for(batch.schema):
            if difference := first_difference(declared.schema, batch.schema):
                declared = self._other_schema(batch.schema, difference)
            # Metadata may differ, or a column be declared free of nulls here: the same columns all the same.
            batch = _under(batch, declared.schema)
        if self._config.validate == "full" and (fault := check_full(batch)):
            raise InvalidValueError(f"a batch for {self.instrument_id!r} is not valid: {fault}")
        for index in declared.checked:
            _check_column(declared, batch, index)
        if declared.schema_id == _UNDECLARED:  # only now: what is refused leaves no trace
            return self._declare(declared.schema), batch
        return declared, batch

    def _other_schema(self, schema: pa.Schema, difference: str) -> _Declared:
        """Return what a batch of another schema follows from now on, if the instrument takes it."""
        if self._config.schema_policy == "strict":
            raise SchemaMismatchError(
                f"a batch for {self.instrument_id!r} has another schema: {difference}; cast it, use "
                "another instrument id, or set schema_policy to 'evolve' or 'new'"
            )
        for known in self._known:
            if not first_difference(known.schema, schema):
                self._declared = known
                return known
        return self._describe(schema, _UNDECLARED)

    def _cut(
        self, batch: pa.RecordBatch, declared: _Declared, attachment: _Attachment
    ) -> list[tuple[pa.RecordBatch, int]]:
        """Cut a batch into slices that the ring takes easily; each with the bytes that it needs."""
        batch = declared.writer.compact(batch)
        size = declared.writer.size(batch)
        ring, easy = attachment.ring, attachment.easy_bytes
        if size <= easy:
            return [(batch, size)]
        # Dictionaries travel with every slice: where they are large, larger slots carry fewer copies of them.
        one = declared.writer.compact(batch.slice(0, 1))
        fixed = declared.writer.size(one) - pa.ipc.get_record_batch_size(one)
        limit = easy if 2 * fixed <= easy else min(2 * fixed, ring.largest_body)
        if size <= limit:
            return [(batch, size)]
        if batch.num_rows <= 1 or fixed >= limit:
            if size > ring.largest_body:
                what = "one row" if batch.num_rows == 1 else "the dictionary"
                raise BatchTooLargeError(
                    f"{what} of {self.instrument_id!r} has {size} bytes, more than its ring of "
                    f"{ring.capacity} takes: set "
                    f"ring_bytes to at least {_SLOTS_PER_RING * align(size)}"
                )
            return [(batch, size)]
        parts = min(batch.num_rows, -(-(size - fixed) // (limit - fixed)))
        step = -(-batch.num_rows // parts)
        slices = [batch.slice(start, step) for start in range(0, batch.num_rows, step)]
        return [cut for part in slices for cut in self._cut(part, declared, attachment)]

    # -- loans -----------------------------------------------------------------------------------------------

    def loan(self, rows: int, timeout: float | None = None) -> Loan:
        """Lend the ring's own memory for ``rows`` rows, to be filled in place: no copy at all.

        Use it as a context manager: leaving the block seals it, an exception in the block gives the space
        back unseen. The arrays are valid within the block only.

        Parameters
        ----------
        rows
            Number of rows; the same number must be filled.
        timeout
            As for :meth:`put`.

        Raises
        ------
        UnsupportedTypeError
            A column has no fixed width.
        RingFullError
            As for :meth:`put`; under ``drop_newest`` too, since there is nothing to drop yet.
        BatchTooLargeError
            So many rows do not fit the ring.
        """
        with self._lock:
            attachment = self._attach()
            ring = attachment.ring
            if self._ended is not None or not attachment.session.recording:
                self._check_alive()
            if self._loaned:
                raise ShmStoreError(
                    f"a loan of {self.instrument_id!r} is open: leave its block before the next"
                )
            if rows < 0:
                raise ValueError(f"{self.instrument_id!r}: a loan has 0 rows or more, not {rows}")
            declared = self._declared or self._declare(self._given[0])
            if self._plain is None or self._plain.layout is not declared.layout:
                self._plain = PlainLayout(declared.layout)
            size = self._plain.size(rows)
            if size > ring.largest_body:
                raise BatchTooLargeError(
                    f"{rows} rows of {self.instrument_id!r} have {size} bytes, more than its ring of "
                    f"{ring.capacity} takes: loan fewer, or set ring_bytes to at least "
                    f"{_SLOTS_PER_RING * align(size)}"
                )
            body = ring.reserve(size)
            if body is None:
                body = self._room(size, rows, timeout, may_drop=False)
            if body is None:
                raise RingFullError(f"the ring of {self.instrument_id!r} is full")
            self._loaned = True
            step("producer.loan_open")
            return Loan(self.instrument_id, body, self._plain, rows, self._return_loan)

    def _return_loan(self, body: memoryview, rows: int, seal: bool) -> int | None:
        with self._lock:
            self._loaned = False
            if not seal:
                return None
            declared = self._declared
            if declared is None:
                raise ClosedError(
                    f"the producer of {self.instrument_id!r} was closed while a loan was open: its "
                    "rows are gone"
                )
            return self._seal(self._attach(), Kind.PLAIN, len(body), rows, declared.schema_id, 0)

    # -- the ring --------------------------------------------------------------------------------------------

    def _room(
        self, size: int, rows: int, timeout: float | None, *, may_drop: bool = True
    ) -> memoryview | None:
        """Reserve a body, waiting as the policy says; ``None``: the rows were dropped by policy."""
        attachment = self._attach()
        ring, queue = attachment.ring, attachment.queue
        body = ring.reserve(size)
        if body is not None:
            return body
        # A dead writer is replaced, but when nobody is left to do it, nothing may be dropped or waited for.
        self._check_alive(rows, ask_kernel=True)
        policy = self._config.on_full
        if policy == "drop_newest" and may_drop:
            ring.count_dropped(rows)
            return None
        wait_s = (self._config.put_timeout_s if timeout is None else timeout) if policy == "block" else 0.0
        deadline = None if wait_s is None else time.monotonic() + wait_s
        began = time.monotonic_ns()
        self._waits += 1
        rung = False
        try:
            while True:
                ring.set_waiting(True)
                step("producer.waiting")
                # Once more: the writer may have released before it saw that we wait.
                body = ring.reserve(size)
                if body is not None:
                    return body
                if not rung:  # it may sleep: what it has was not pressing before
                    queue.ring(Descriptor(ring.number, ring.sealed_slots, ring.position, size, 0, 0))
                    rung = True
                left = _LOOK_S if deadline is None else min(_LOOK_S, deadline - time.monotonic())
                if left <= 0:
                    ring.count_rejected(rows)
                    raise RingFullError(
                        f"the ring of {self.instrument_id!r} stayed full for {wait_s} s ({ring.used} "
                        f"of {ring.capacity} bytes): "
                        "enlarge ring_bytes, use a faster codec, or choose on_full='drop_newest'"
                    )
                if not queue.wait_for_space(left):
                    self._check_alive(rows, ask_kernel=True)
        finally:
            ring.set_waiting(False)
            self._wait_ns += time.monotonic_ns() - began

    def _seal(
        self, attachment: _Attachment, kind: Kind, size: int, rows: int, schema_id: int, skip: int
    ) -> int:
        session, ring = attachment.session, attachment.ring
        sequence = ring.seal(kind, size, rows, schema_id, skip)
        step("producer.before_bell")
        fence()  # a writer that falls asleep meanwhile sees the slot, or is heard of here
        sleep = session.sleep
        if sleep is not None and sleep != self._rung:
            position = ring.position - SLOT_HEADER_BYTES - align(size)
            attachment.queue.ring(Descriptor(ring.number, sequence, position, size, schema_id, rows))
            self._rung = sleep
        step("producer.after_bell")
        # Sealed first, looked second: a recording that ends meanwhile either took the slot or says that it
        # did not.
        if not session.recording:
            self._await_last_word(sequence, rows)
        return sequence

    def _await_last_word(self, sequence: int, rows: int) -> None:
        _, session, ring, queue, _ = self._attach()
        deadline = time.monotonic() + _LAST_WORD_S
        while (taken := ring.taken_at_end()) is None and session.state == State.CLOSING:
            if time.monotonic() > deadline or not session.attended:
                raise BrokenError(
                    f"the writer does not say whether it took batch {sequence} of {self.instrument_id!r}; "
                    f"if not, {session.kept}"
                )
            queue.wait_for_space(0.01)
        if taken is not None and sequence < taken:
            return
        ring.count_refused(rows)
        self._raise_end()

    def _check_alive(self, rows: int = 0, *, ask_kernel: bool = False) -> None:
        """Raise unless the recording takes batches; ``rows`` are then counted as rejected."""
        if self._ended is not None:
            raise ClosedError(
                f"this producer of {self.instrument_id!r} was closed: make a new one with storage.producer()"
            )
        attachment = self._attach()
        if attachment.session.recording and (not ask_kernel or attachment.session.attended):
            return
        attachment.ring.count_rejected(rows)
        self._raise_end()

    def _raise_end(self) -> None:
        session = self._attach().session
        if session.state == State.BROKEN:
            raise_error(*session.failure())
        if session.recording:
            raise BrokenError(
                f"the writer and the owner of {self.instrument_id!r}'s recording have died; {session.kept}"
            )
        raise ClosedError(
            f"the recording that {self.instrument_id!r} belongs to has ended: these rows were not taken"
        )

    # -- attaching -------------------------------------------------------------------------------------------

    def _attach(self) -> _Attachment:
        """Map ring and queue in this process, and become the ring's only user."""
        attachment = self._attachment
        if attachment is not None and attachment.pid == os.getpid():
            return attachment
        if self._ended is not None:
            raise ClosedError(
                f"this producer of {self.instrument_id!r} was closed: make a new one with storage.producer()"
            )
        # After a fork the inherited maps belong to the parent's place: leave them alone and open anew.
        session = Session.attach(self._folder)
        ring = Ring.attach(session.ring_path(self._number))
        if not ring.claim(os.getpid()):
            pid = ring.producer_pid
            ring.close()
            session.close()
            raise ShmStoreError(
                f"this producer of {self.instrument_id!r} is in use by process {pid}: each process "
                "needs its own, from "
                "storage.producer()"
            )
        step("producer.claimed")
        self._attachment = _Attachment(
            os.getpid(),
            session,
            ring,
            DescriptorQueue.attach(session.queue_path(self._number)),
            ring.capacity // _SLOTS_PER_RING - SLOT_HEADER_BYTES,
        )
        # Whoever forgets close() gives its place and its memory back all the same.
        self._finalizer = weakref.finalize(self, _let_go, self._attachment, Life.CLOSED)
        self._lock = threading.RLock() if attachment is not None else self._lock
        if self._declared is None and self._given[0] is not None:
            self._declared = self._describe(*self._given)
            self._known.append(self._declared)
        return self._attachment

    def _declare(self, schema: pa.Schema | None) -> _Declared:
        """Tell the writer the schema of what comes; once."""
        if schema is None:
            raise ShmStoreError(
                f"{self.instrument_id!r} has no schema yet: give one to storage.producer(), or put() a "
                "batch before loan()"
            )
        described = self._describe(schema, -1)  # refuses what it cannot be before the writer hears of it
        self._plan(schema)  # refuses what cannot be recorded before anybody else hears of it
        session = self._attach().session
        connection = ControlConnection(session.control_path, check=session.check_attended)
        try:
            serialized = base64.b64encode(schema.serialize()).decode()
            reply = connection.request("declare", ring=self._number, schema=serialized)
        finally:
            connection.close()
        step("producer.declared")
        self._given = (schema, int(reply["schema_id"]))
        self._declared = described._replace(schema_id=self._given[1])
        self._known.append(self._declared)
        return self._declared

    def _plan(self, schema: pa.Schema) -> Layout:
        return plan(schema, lambda name: self._config.column(name).strings)

    def _describe(self, schema: pa.Schema, schema_id: int) -> _Declared:
        layout = self._plan(schema)
        checked = tuple(column.index for column in layout.columns if column.encoding not in ("plain", "bool"))
        physical = physical_schema(schema)
        encoded = any(_is_encoded(type_) for field in schema for type_ in types_in(field.type))
        writer = BatchWriter(schema)
        kind = Kind.STREAM if writer.streams else Kind.IPC
        return _Declared(schema, physical, schema_id, layout, writer, kind, encoded, checked)

    # -- counts and the end ----------------------------------------------------------------------------------

    def stats(self) -> ProducerStats:
        """Return this producer's counts; reads shared memory only, and waits for no `put` under way."""
        ring = self._attach().ring
        used = ring.used
        return ProducerStats(
            instrument_id=self.instrument_id,
            accepted=ring.sealed_rows + ring.dropped_rows + ring.rejected_rows,
            dropped=ring.dropped_rows,
            rejected=ring.rejected_rows,
            sealed=ring.sealed_rows,
            batches=ring.sealed_slots,
            sealed_bytes=ring.sealed_bytes,
            waits=self._waits,
            wait_ns=self._wait_ns,
            ring_bytes=ring.capacity,
            ring_bytes_used=used,
            released_bytes=ring.position - used,
        )

    def close(self) -> None:
        """Say that nothing more comes; does not wait until what was put is recorded. May be called twice."""
        self._end(Life.CLOSED)

    def abort(self) -> None:
        """End without ceremony: an open loan is given back unseen. What was put is recorded all the same."""
        self._end(Life.ABORTED)

    def _end(self, life: Life) -> None:
        with self._lock:
            attachment = self._attachment
            if self._ended is not None:
                return
            self._ended = life
            if attachment is None or attachment.pid != os.getpid():
                return  # not used in this process: whoever uses it ends it
            self._attachment = self._declared = None
            if self._finalizer is not None:
                self._finalizer.detach()
            _let_go(attachment, life)

    def __enter__(self) -> Self:
        """Return the producer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, or abort after an exception."""
        self._end(Life.ABORTED if kind else Life.CLOSED)

    def __reduce__(self) -> tuple[Callable[..., Producer], tuple[Any, ...]]:
        """Travel by name: the process that unpickles it attaches when it first uses it."""
        if self._attachment is not None and self._attachment.pid == os.getpid():
            raise ShmStoreError(
                f"this producer of {self.instrument_id!r} is in use in this process: send it on before "
                "its first put(), or make "
                "another"
            )
        schema, schema_id = self._given
        # Not the schema itself: some of its types cannot be pickled.
        image = None if schema is None else schema.serialize().to_pybytes()
        return _unpickle, (str(self._folder), self._number, self._config, image, schema_id)

    def __repr__(self) -> str:
        state = (
            self._ended.name.lower()
            if self._ended is not None
            else "attached"
            if self._attachment
            else "not in use yet"
        )
        return f"<Producer of {self.instrument_id!r}: {state}>"


def _is_encoded(type_: pa.DataType) -> bool:
    """Whether values of a type stand for others."""
    return bool(pa.types.is_dictionary(type_) or pa.types.is_run_end_encoded(type_))


def _under(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch under a schema with the same columns, but other metadata."""
    try:
        columns = batch.columns
    except KeyError:  # a type without an array class
        return retyped(batch, schema)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _check_column(declared: _Declared, batch: pa.RecordBatch, index: int) -> None:
    """Refuse a column that could not be recorded exactly."""
    column, field = declared.layout.columns[index], declared.physical.field(index)
    if field.type != declared.schema.field(index).type:
        part = batch.select([index])
        try:
            part.validate(full=True)
        except pa.ArrowException:
            # Arrow refuses some values of such a type that are recorded all the same. If it is more than
            # that, it is so in the physical form too.
            check(column, retyped(part, pa.schema([field])).column(0))
            return
        if not has_plain_strings(column.node):
            return
    check(column, batch.column(index))


def _let_go(attachment: _Attachment, life: Life) -> None:
    """End the use of a ring in this process; a child that was forked meanwhile leaves its parent's alone."""
    if attachment.pid != os.getpid():
        return
    attachment.ring.end(life)
    attachment.queue.close()
    attachment.ring.close()
    attachment.session.close()


def _unpickle(
    folder: str, number: int, config: ResolvedInstrument, image: bytes | None, schema_id: int
) -> Producer:
    schema = None if image is None else pa.ipc.read_schema(pa.py_buffer(image))
    return Producer(Path(folder), number, config, schema, schema_id)
