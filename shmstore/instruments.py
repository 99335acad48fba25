"""The instruments of one recording: their groups in the file, their schemas and their metadata."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from shmstore.assembly import InstrumentAssembly, Ticket
from shmstore.batch import PlainLayout, read_ipc
from shmstore.buffers import Items
from shmstore.config import ResolvedInstrument, StorageConfig
from shmstore.errors import BrokenError, ConfigError, InvalidValueError, SchemaMismatchError
from shmstore.evolution import Evolution, evolve, history_from_json, project
from shmstore.form import Forms, plain_items
from shmstore.names import RESERVED_INSTRUMENT_ATTRIBUTES, instrument_link
from shmstore.physical import physical_schema
from shmstore.pipeline import CodecPipeline
from shmstore.planning import plan
from shmstore.recordingfile import RecordingFile
from shmstore.ring import Kind, Run
from shmstore.schema import first_difference
from shmstore.session import Session
from shmstore.stats import InstrumentStats
from shmstore.tails import Tails

_METADATA_LIMIT_BYTES = 16 * 2**20
#: An escaped NUL, and not the six characters by which it is escaped: those come behind an escaped backslash.
_NUL_IN_JSON = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
#: Options that belong to each producer; all others must agree among the producers of an instrument.
_PRODUCER_OPTIONS = ("ring_bytes", "on_full", "put_timeout_s", "validate")
#: More slots than anybody takes at once.
_ANY = 1 << 30


class Instrument:
    """One instrument in the writer.

    Parameters
    ----------
    instrument_id
        Its id.
    assembly
        Takes its rows.
    options
        What was asked for it.

    Attributes
    ----------
    high_water : int
        Highest use of a ring that has gone.
    successors : list of Instrument
        Those that took other schemas, under the policy ``new``.
    first : bool
        Whether it is no such successor itself.
    """

    def __init__(self, instrument_id: str, assembly: InstrumentAssembly, options: dict[str, Any]) -> None:
        self.instrument_id = instrument_id
        self.assembly = assembly
        self.options = options
        self.high_water = 0
        self.successors: list[Instrument] = []
        self.first = True
        self._physical: pa.Schema | None = None

    @property
    def schema(self) -> pa.Schema | None:
        """The schema that holds; ``None`` as long as none was declared."""
        layout = self.assembly.layout
        return layout.schema if layout else None

    def declare(self, schema: pa.Schema, image: bytes | None = None) -> None:
        """Take a producer's schema, as the instrument's policy says.

        Parameters
        ----------
        schema, image
            As for `InstrumentAssembly.declare`.

        Raises
        ------
        SchemaMismatchError
            The instrument has another one already, and does not take this one besides.
        UnsupportedTypeError
            A column cannot be recorded.
        """
        current = self.schema
        if current is None:
            self.assembly.declare(schema, image)
            self._physical = physical_schema(schema)
        elif self._evolves:
            evolution = self._evolution(current, schema)
            if evolution.changed:
                self.assembly.evolve(evolution)
                self._physical = physical_schema(evolution.schema)
        elif difference := first_difference(current, schema):
            raise SchemaMismatchError(
                f"instrument {self.instrument_id!r} is recorded with another schema: {difference}; "
                "cast the batch, use another instrument id, or set schema_policy to 'evolve' or 'new'"
            )

    def resume(
        self,
        image: bytes,
        history: str,
        standing: Mapping[str, Any],
        tails: Sequence[tuple[Tails, Sequence[int]]],
    ) -> None:
        """Go on where another writer made its last commit.

        Parameters
        ----------
        image
            The schema that holds, serialized.
        history
            JSON of those before, or empty.
        standing
            Where the instrument stood, as `InstrumentAssembly.standing` told it.
        tails
            Segments of unfinished chunks, each with the numbers of the datasets that they are of.
        """
        schema = _read_schema(self.instrument_id, image)
        layout = plan(schema, lambda name: self.assembly.config.column(name).strings)
        buffers = {
            number: own
            for segment, numbers in tails
            for number, own in zip(numbers, segment.buffers, strict=True)
        }
        past = history_from_json(history) if history else []
        self.assembly.resume(layout, past, standing, buffers, [segment for segment, _ in tails])
        self._physical = physical_schema(schema)

    def follows(self, image: bytes) -> Follows:
        """Return what slots follow that were declared to have a schema, given serialized."""
        schema = _read_schema(self.instrument_id, image)
        return Follows(self, schema, physical_schema(schema), image)

    def append(self, batch: pa.RecordBatch) -> Ticket:
        """Take a batch in, in its physical form and of a schema that was declared before."""
        return self.assembly.append(project(batch, self._physical) if self._evolves else batch)

    def append_plain(self, body: memoryview, rows: int, follows: Follows) -> Ticket:
        """Take in what a loan left.

        Raises
        ------
        BrokenError
            The body is too small for its rows.
        """
        plain = follows.plain
        plain.check(body, rows)
        arrays = plain.arrays(body, rows)
        if self._evolves and not follows.schema.equals(self.schema):
            return self.append(plain.batch(arrays, rows, follows.physical))
        return self.assembly.append_plain(arrays, rows)

    def longest_run(self, rows: int) -> int:
        """Return how many slots of so many rows `append_run` takes at most; 0: none."""
        longest = self.assembly.longest_run
        if not rows or not longest:
            return 0
        if rows >= longest and self.assembly.takes_whole(rows):
            return _ANY
        return max(1, longest // rows)

    def fitting(self, run: Run, follows: Follows) -> int:
        """Return how many slots of a run, from the first on, `append_run` can take; up to `longest_run`."""
        layout = self.assembly.layout
        form = follows.forms.find(run, layout)
        fitting = form.count(run) if form is not None else 0
        if not fitting and layout is not None:
            # What Arrow cannot read is taken by itself, and kept aside.
            with contextlib.suppress(BrokenError, InvalidValueError):
                form = follows.forms.learn(run, layout, self._items(run.first_body, run, follows))
                fitting = form.count(run) if form is not None else 0
        return fitting

    def append_run(self, run: Run, follows: Follows) -> Ticket:
        """Take slots in that `fitting` has counted."""
        form = follows.forms.find(run, self.assembly.layout)
        if form is None:
            raise BrokenError(f"slots of {self.instrument_id!r} are not of the form that they had")
        return self.assembly.append_run(form.blocks(run), run.rows)

    def _items(self, body: memoryview, run: Run, follows: Follows) -> dict[str, Items]:
        """Return the items in the first body of a run, by the path of their stream; none if it is no such."""
        layout = self.assembly.layout
        if layout is None or (self._evolves and not follows.schema.equals(self.schema)):
            return {}
        if run.kind == Kind.PLAIN:
            follows.plain.check(body, run.slot_rows)
            return {column.path: values for column, values in follows.plain.arrays(body, run.slot_rows)}
        if run.kind == Kind.IPC:
            return plain_items(layout, read_ipc(body, run.skip, follows.physical, run.slot_rows))
        return {}

    @property
    def _evolves(self) -> bool:
        return self.assembly.config.schema_policy == "evolve"

    def _evolution(self, current: pa.Schema, schema: pa.Schema) -> Evolution:
        try:
            return evolve(current, schema)
        except SchemaMismatchError as error:
            raise SchemaMismatchError(f"instrument {self.instrument_id!r}: {error}") from None

    @property
    def rows(self) -> int:
        """Rows taken in, by its successors too."""
        return self.assembly.rows + sum(instrument.assembly.rows for instrument in self.successors)

    def counts(self) -> dict[str, int]:
        """Return the counts that are the instrument's own; those of its producers are 0 yet."""
        counts = InstrumentStats().to_dict()
        counts |= {
            "rows_written": self.assembly.rows,
            "bytes_in": self.assembly.bytes_in,
            "bytes_written": self.assembly.bytes_written,
            "chunks_written": self.assembly.chunks_written,
            "ring_high_water": self.high_water,
        }
        if self.assembly.effort is not None:
            counts |= self.assembly.effort.counts()
        return counts


@dataclass(frozen=True)
class Follows:
    """What the slots of one schema number follow.

    Attributes
    ----------
    instrument : Instrument
        Where they go.
    schema : pyarrow.Schema
        As it was declared.
    physical : pyarrow.Schema
        The form in which they are recorded.
    image : bytes
        The schema, serialized, as the producer made it.
    forms : Forms
        Where the values lie in them, as far as that is known.
    """

    instrument: Instrument
    schema: pa.Schema
    physical: pa.Schema
    image: bytes
    forms: Forms = field(default_factory=Forms, compare=False)

    @cached_property
    def plain(self) -> PlainLayout:
        """Where columns lie in loaned slots."""
        config = self.instrument.assembly.config
        return PlainLayout(plan(self.schema, lambda name: config.column(name).strings))


class Instruments:
    """All instruments of a recording, by id.

    Parameters
    ----------
    file, pipeline, config, session
        What they share.
    commit
        Commits all that is written.
    """

    def __init__(
        self,
        file: RecordingFile,
        pipeline: CodecPipeline,
        config: StorageConfig,
        session: Session,
        commit: Callable[[], None],
    ) -> None:
        self._file = file
        self._pipeline = pipeline
        self._config = config
        self._session = session
        self._make_room = commit
        self._by_id: dict[str, Instrument] = {}
        self._tails = 0

    def __getitem__(self, instrument_id: str) -> Instrument:
        """Return a known instrument."""
        return self._by_id[instrument_id]

    def __iter__(self) -> Iterator[Instrument]:
        """Go through all of them, oldest first."""
        return iter(self._by_id.values())

    def adaptive(self) -> list[tuple[str, Instrument]]:
        """Return those whose compression adapts, each with the id that the rings have which feed it."""
        return [
            (first.instrument_id, instrument)
            for first in self
            if first.first
            for instrument in (first, *first.successors)
            if instrument.assembly.effort is not None
        ]

    def ensure(self, instrument_id: str, options: dict[str, Any], *, alone: bool = False) -> Instrument:
        """Return the instrument, with its group made if it is new.

        Parameters
        ----------
        instrument_id
            Its id.
        options
            What is asked for it; nothing asks for what holds already.
        alone
            Whether nobody else feeds it: then the options hold if nothing is declared yet, whatever was asked
            for before.

        Raises
        ------
        InvalidValueError
            The id cannot be used.
        ConfigError
            An option is wrong, or another producer of the instrument was made with other ones.
        """
        options = {key: value for key, value in options.items() if key not in _PRODUCER_OPTIONS}
        instrument = self._by_id.get(instrument_id)
        if instrument is not None and not instrument.first:
            raise InvalidValueError(
                f"instrument id {instrument_id!r} is taken by what another instrument recorded under a "
                "changed schema: use another id"
            )
        if instrument is None:
            resolved: ResolvedInstrument = self._config.instrument(instrument_id, **options)
            instrument = self._create(instrument_id, resolved, options, {})
        elif alone and instrument.assembly.layout is None:
            # Made by its metadata, or for a producer that came to nothing.
            instrument.assembly.config = self._config.instrument(instrument_id, **options)
            instrument.options = options
            self._note_options(instrument)
        elif options and options != instrument.options:
            raise ConfigError(
                f"instrument {instrument_id!r} is recorded with options {instrument.options}, not "
                f"{options}: all its producers "
                "must agree"
            )
        return instrument

    def declare(self, instrument_id: str, image: bytes) -> Follows:
        """Let slots of an instrument follow a schema.

        Parameters
        ----------
        instrument_id
            A known instrument.
        image
            The schema, serialized.

        Raises
        ------
        BrokenError
            It is no schema.
        SchemaMismatchError, UnsupportedTypeError
            As for `Instrument.declare`.
        """
        schema = _read_schema(instrument_id, image)
        instrument = self._by_id[instrument_id]
        if instrument.assembly.config.schema_policy == "new":
            instrument = self._of_schema(instrument, schema)
        instrument.declare(schema, image)
        return instrument.follows(image)

    def _of_schema(self, first: Instrument, schema: pa.Schema) -> Instrument:
        """Return the one among an instrument's groups that has a schema; under the policy ``new``."""
        for instrument in [first, *first.successors]:
            if instrument.schema is None or not first_difference(instrument.schema, schema):
                return instrument
        number = len(first.successors) + 2
        while (name := f"{first.instrument_id}~{number}") in self._by_id:
            number += 1
        successor = self._create(
            name, first.assembly.config, first.options, {"continues": first.instrument_id}
        )
        successor.first = False
        first.successors.append(successor)
        return successor

    def _create(
        self,
        instrument_id: str,
        config: ResolvedInstrument,
        options: dict[str, Any],
        attributes: dict[str, str],
    ) -> Instrument:
        link = instrument_link(instrument_id)
        created = datetime.now().astimezone().isoformat()
        with self._file.structure():
            self._file.create_instrument(
                link, {"instrument_id": instrument_id, "created_at": created, **attributes}
            )
        instrument = self._add(instrument_id, link, config, options)
        self._note_options(instrument)
        return instrument

    def _note_options(self, instrument: Instrument) -> None:
        self._file.note("options", {"instrument": instrument.instrument_id, "options": instrument.options})

    def _add(
        self, instrument_id: str, link: str, config: ResolvedInstrument, options: dict[str, Any]
    ) -> Instrument:
        interval = self._config.auto_flush_interval_secs or 1.0
        assembly = InstrumentAssembly(
            self._file, self._pipeline, link, config, interval, self._next_tails, self._make_room
        )
        instrument = self._by_id[instrument_id] = Instrument(instrument_id, assembly, options)
        return instrument

    def restore(self, instrument_id: str, link: str, options: dict[str, Any], continues: str) -> Instrument:
        """Take up an instrument that another writer made.

        Parameters
        ----------
        instrument_id, link, options
            Its id, the name of its group, and what was asked for it.
        continues
            Under the policy ``new``, the id of the instrument that it took another schema of; else empty.
        """
        first = self._by_id[continues] if continues else None
        config = first.assembly.config if first else self._config.instrument(instrument_id, **options)
        instrument = self._add(instrument_id, link, config, options)
        if first is not None:
            instrument.first = False
            first.successors.append(instrument)
        return instrument

    def set_metadata(self, instrument_id: str | None, key: str, value: Any) -> None:
        """Set session metadata (``None``) or an instrument's, in the file.

        Raises
        ------
        InvalidValueError
            The key or value cannot be kept, or the key is one of ours.
        """
        check_metadata(key, value)
        if instrument_id is None:
            path = "metadata"
        else:
            if key in RESERVED_INSTRUMENT_ATTRIBUTES:
                raise InvalidValueError(
                    f"metadata key {key!r} of {instrument_id!r} belongs to shmstore: choose another"
                )
            path = self.ensure(instrument_id, {}).assembly.link
        with self._file.structure():
            self._file.set_metadata(path, {key: value})

    def _next_tails(self) -> Path:
        self._tails += 1
        return self._session.tails_path(self._tails)

    def tails_exist(self, path: Path) -> None:
        """Give no more tails the name that these have."""
        self._tails = max(self._tails, int(path.name.rpartition("-")[2]))


def decoded_schema(instrument_id: str, declared: str) -> bytes:
    """Return a serialized schema that came over the control connection, in base64."""
    try:
        return base64.b64decode(declared, validate=True)
    except ValueError as error:
        raise BrokenError(f"what was declared for {instrument_id!r} is no Arrow schema: {error}") from None


def _read_schema(instrument_id: str, image: bytes) -> pa.Schema:
    try:
        return pa.ipc.read_schema(pa.py_buffer(image))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BrokenError(f"what was declared for {instrument_id!r} is no Arrow schema: {error}") from None


def check_metadata(key: str, value: Any) -> None:
    """Refuse a key or value that an HDF5 attribute cannot hold.

    Raises
    ------
    InvalidValueError
        The key is empty, ours, or holds a NUL; the value does too, or is too large; or one is no Unicode.
    """
    text = json.dumps(value, ensure_ascii=False)
    try:
        key_bytes, size = len(key.encode()), len(text.encode())
    except UnicodeEncodeError:
        raise InvalidValueError(
            f"metadata {key[:40]!r} is no valid Unicode: remove lone surrogates from key and value"
        ) from None
    if not key or "\0" in key or key == "_json_keys" or key_bytes > 1024:
        raise InvalidValueError(f"metadata key {key[:40]!r} cannot be used: take 1 to 1024 bytes without NUL")
    if size > _METADATA_LIMIT_BYTES:
        raise InvalidValueError(f"metadata {key!r} has {size} bytes: keep it below {_METADATA_LIMIT_BYTES}")
    if _NUL_IN_JSON.search(text):
        raise InvalidValueError(
            f"metadata {key!r} holds a NUL character, which HDF5 strings cannot: remove it"
        )
