"""Whatever is put is what is read: batches of any schema, recorded by the real storage, live and closed.

All examples share a storage, each as an instrument of its own, and every so often it is closed and the next
one begins: starting one costs a third of a second. What a recording says while it is live is checked in the
example, where it can be reduced; what it says once it is closed, when it is closed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from properties import arrow_types, arrow_values
from properties.exactness import difference, table_tokens, tokens

import shmstore

PER_FILE = 50  # instruments, before the next storage
SLOW = [pytest.mark.slow, pytest.mark.timeout(3600)]
RING_BYTES = 2**20
ROOM_BYTES = 8192  # of a small ring beyond what a batch needs

pytestmark = pytest.mark.timeout(900)  # reducing a failure takes up to five minutes


@dataclasses.dataclass(frozen=True, repr=False)
class Case:
    """What is recorded, how, and what is read of it.

    Attributes
    ----------
    schema : pa.Schema
    batches : list of pa.RecordBatch
    flushed : list of bool
        After which batches to flush.
    serialized : bool
        Whether all batches are put at once, as an IPC stream.
    options : dict
        Of the instrument.
    picked : list of int
        Columns to read, in that order.
    start, stop : int
        Rows to read, as in a slice.
    batch_rows : int
        Rows of the batches to read.
    """

    schema: pa.Schema
    batches: list[pa.RecordBatch]
    flushed: list[bool]
    serialized: bool
    options: dict[str, Any]
    picked: list[int]
    start: int
    stop: int
    batch_rows: int

    @property
    def rows(self) -> int:
        return sum(batch.num_rows for batch in self.batches)

    def __repr__(self) -> str:
        """Say everything that it takes to put the case together again."""
        lines = [f"schema:\n{arrow_types.describe(self.schema)}"]
        for batch in self.batches:
            values = [f"  {str(tokens(column))[:500]}" for column in batch.columns]
            lines += [f"batch of {batch.num_rows} rows:", *values]
        reading = f"columns {self.picked}, rows [{self.start}:{self.stop}], {self.batch_rows} rows at a time"
        how = "as one IPC stream" if self.serialized else f"flushed {self.flushed}"
        return "\n".join([*lines, f"{self.options}, {how}, read {reading}"])


@st.composite
def cases(draw: st.DrawFn, schemas: st.SearchStrategy[pa.Schema]) -> Case:
    """Draw a case with one of ``schemas``."""
    schema = draw(schemas)
    strings = draw(st.sampled_from(["packed", "vlen"]))
    # HDF5 ends its strings at a NUL: they are refused, which is not the matter here.
    batches = draw(arrow_values.batches(schema, nul=strings == "packed"))
    rows = sum(batch.num_rows for batch in batches)
    options = {
        "strings": strings,
        "compression": draw(st.sampled_from(["none", "gzip", "zstd", "lz4"])),
        "chunk_rows": draw(st.none() | st.integers(1, 20)),
        "ring_bytes": RING_BYTES,
    }
    if draw(st.booleans()):  # large batches do not fit as a whole and are cut
        options["ring_bytes"] = ROOM_BYTES + 2 * max(len(serialized(schema, [batch])) for batch in batches)
    columns = draw(st.permutations(range(len(schema))))
    return Case(
        schema,
        batches,
        flushed=[draw(st.integers(0, 3)) == 3 for _ in batches],
        serialized=draw(st.integers(0, 4)) == 4,
        options=options,
        picked=columns[: draw(st.integers(0, len(schema)))],
        start=draw(st.integers(-rows, rows)),
        stop=draw(st.integers(-rows, rows + 1)),
        batch_rows=draw(st.integers(rows // 10 + 1, rows + 1)),  # ten at most: each looks at the file again
    )


def serialized(schema: pa.Schema, batches: Sequence[pa.RecordBatch]) -> bytes:
    """Return batches as an Arrow IPC stream."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema) as stream:
        for batch in batches:
            stream.write_batch(batch)
    return sink.getvalue()


class Recorder:
    """Records cases into the files of one folder, and looks at each file again when it is closed.

    Attributes
    ----------
    late : list of str
        What was found wrong with closed files.
    """

    def __init__(self, folder: Path) -> None:
        self.late: list[str] = []
        self._folder = folder
        self._files = 0
        self._storage: shmstore.HDF5Storage | None = None
        self._recorded: dict[str, Case] = {}
        self._instruments = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.turn()
        else:
            self.drop()

    def check(self, case: Case) -> None:
        """Record a case, and see what a reader finds as long as the file is live."""
        if self._instruments >= PER_FILE:
            self.turn()
        try:
            storage = self._running()
            self._instruments += 1
            name = f"instrument {self._instruments}"
            with storage.producer(name, case.schema, **case.options) as producer:
                if case.serialized:
                    producer.put(serialized(case.schema, case.batches))
                else:
                    for batch, flushed in zip(case.batches, case.flushed, strict=True):
                        producer.put(batch)
                        if flushed:
                            storage.flush()
            storage.flush()
            with shmstore.open(storage.path) as recording:
                found = look(recording[name], case)
        except Exception:
            self.drop()  # whatever state it is in, the next example shall not suffer
            raise
        assert not found, f"live, {found}"
        self._recorded[name] = case

    def turn(self) -> None:
        """Close the file, look at it again, and be ready for the next."""
        storage, self._storage = self._storage, None
        if storage is None:
            return
        try:
            storage.close()
            with shmstore.open(storage.path) as recording:
                for name, case in self._recorded.items():
                    if found := look(recording[name], case):
                        self.late.append(f"closed, {found}\n{case!r}")
        except shmstore.ShmStoreError as error:
            self.late.append(f"closing: {error}")
        storage.path.unlink()

    def drop(self) -> None:
        """Let go of a storage that may be broken."""
        storage, self._storage = self._storage, None
        if storage is not None:
            with contextlib.suppress(shmstore.ShmStoreError, TimeoutError):
                storage.abort()

    def _running(self) -> shmstore.HDF5Storage:
        if self._storage is None:
            self._files += 1
            self._instruments = 0
            self._recorded = {}
            storage = shmstore.HDF5Storage(
                output_dir=self._folder, filename=f"{self._files}.h5", auto_flush_interval_secs=0
            )
            self._storage = storage.start()
        return self._storage


def look(instrument: shmstore.Instrument, case: Case) -> str | None:
    """Say what is wrong with what is read of a recorded case, if anything."""
    expected = table_tokens(case.batches, range(len(case.schema)))
    if instrument.num_rows != case.rows:
        return f"num_rows: {instrument.num_rows} of {case.rows}"
    if found := difference(instrument.read(), case.schema, case.rows, expected):
        return f"read(): {found}"
    wanted = slice(case.start, case.stop)
    rows = len(range(case.rows)[wanted])
    parts = [expected[index][wanted] for index in case.picked]
    schema = case.batches[0].select(case.picked).schema
    table = instrument.read(case.picked, case.start, case.stop)
    if found := difference(table, schema, rows, parts):
        return f"read({case.picked}, {case.start}, {case.stop}): {found}"
    batches = list(instrument.iter_batches(case.batch_rows))
    if any(batch.num_rows > case.batch_rows for batch in batches):
        return f"iter_batches({case.batch_rows}): batches of {[batch.num_rows for batch in batches]} rows"
    if found := difference(pa.Table.from_batches(batches, case.schema), case.schema, case.rows, expected):
        return f"iter_batches({case.batch_rows}): {found}"
    return None


def run(folder: Path, examples: int, schemas: st.SearchStrategy[pa.Schema]) -> None:
    """Draw cases and check each, live and closed."""
    with Recorder(folder) as recorder:

        @settings(
            max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(cases(schemas))
        def check(case: Case) -> None:
            recorder.check(case)

        check()
    assert not recorder.late, "\n\n".join(recorder.late)


@pytest.mark.parametrize("examples", [200, pytest.param(2000, marks=SLOW)])
def test_what_is_put_is_what_is_read(output_dir: Path, examples: int) -> None:
    run(output_dir, examples, arrow_types.schemas())


def test_every_type_beside_every_other(output_dir: Path) -> None:
    run(output_dir, 15, arrow_types.schemas_of_every_kind())


@pytest.mark.parametrize("mode", ["sparse", "dense"])
def test_a_union_without_members_can_be_there_as_long_as_nobody_needs_a_value(
    output_dir: Path, mode: str
) -> None:
    nothing = pa.union([], mode)
    empty = pa.py_buffer(b"")
    none = pa.Array.from_buffers(nothing, 0, [None, empty] if mode == "sparse" else [None, empty, empty])
    offsets = pa.py_buffer(bytes(4 * 4))
    lists = pa.Array.from_buffers(pa.list_(nothing), 3, [pa.py_buffer(b"\x05"), offsets], children=[none])
    batches = [pa.record_batch({"a": none}), pa.record_batch({"b": lists})]
    with Recorder(output_dir) as recorder:
        for batch in batches:
            options = {"ring_bytes": RING_BYTES}
            recorder.check(Case(batch.schema, [batch], [False], False, options, [0], 0, batch.num_rows, 1))
    assert not recorder.late, "\n\n".join(recorder.late)
