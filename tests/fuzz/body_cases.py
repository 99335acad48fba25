"""Cases of a damaged slot body: read as the writer reads it, encoded, decoded again and compared.

Behind each body lies memory that nobody may touch: an array that reaches beyond its body ends the process.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from fuzz.damage import Damage, damaged
from fuzz.subject import serve
from properties.exactness import tokens
from stored_items import StoredItems

from shmstore.batch import BatchWriter, PlainLayout, read_ipc, read_stream
from shmstore.physical import physical_schema, retyped
from shmstore.planning import plan
from shmstore.ring import Kind
from shmstore.segment import align

ROWS, MANY_ROWS = 12, 1500
_BODY_BYTES = 1 << 20


class Body(NamedTuple):
    """A whole body, and what its slot's header says of it."""

    schema: pa.Schema
    kind: Kind
    data: bytes
    skip: int
    rows: int


def column_of_each_kind(rows: int) -> dict[str, pa.Array]:
    """Return a column of each kind of type there is."""
    numbers = list(range(rows))
    words = [None if row % 5 == 3 else f"word {row} µ" * (row % 4) for row in numbers]
    lists = [None if row % 7 == 2 else words[: row % 5] for row in numbers]
    structs = [None if row % 6 == 1 else {"a": row, "b": words[row]} for row in numbers]
    halves = pa.array(np.arange(rows, dtype=np.int32) // 2)
    codes = pa.array(np.arange(rows, dtype=np.int8) % 2)
    ends = pa.array(np.arange(2, rows + 2, 2, dtype=np.int32))
    return {
        "int": pa.array(numbers, pa.int64()),
        "bool": pa.array([None if row % 5 == 0 else row % 3 == 0 for row in numbers]),
        "time": pa.array(numbers, pa.timestamp("ns", "UTC")),
        "decimal": pa.array([Decimal(row) / 4 for row in numbers], pa.decimal128(12, 3)),
        "text": pa.array(words),
        "large": pa.array(words, pa.large_string()),
        "view": pa.array([f"{word} and more than twelve" for word in words], pa.string_view()),
        "bytes": pa.array([bytes([row % 256]) * (row % 9) for row in numbers], pa.binary()),
        "fixed": pa.array([row.to_bytes(4, "big") for row in numbers], pa.binary(4)),
        "list": pa.array(lists, pa.list_(pa.string())),
        "large_list": pa.array(lists, pa.large_list(pa.string())),
        "list_view": pa.array(lists, pa.list_view(pa.string())),
        "fixed_list": pa.array([[row, row + 1, None] for row in numbers], pa.list_(pa.int16(), 3)),
        "struct": pa.array(structs, pa.struct([("a", pa.int32()), ("b", pa.string())])),
        "map": pa.array([[("k", row)] * (row % 3) for row in numbers], pa.map_(pa.string(), pa.int32())),
        "null": pa.nulls(rows),
        "dictionary": pa.array([word or "none" for word in words]).dictionary_encode(),
        "lists of labels": pa.ListArray.from_arrays(
            pa.array(np.arange(rows + 1, dtype=np.int32)), pa.array(["on", "off"] * rows).dictionary_encode()
        )[:rows],
        "dense": pa.UnionArray.from_dense(codes, halves, [pa.array(numbers), pa.array(words)]),
        "sparse": pa.UnionArray.from_sparse(codes, [pa.array(numbers), pa.array(words)]),
        "runs": pa.RunEndEncodedArray.from_arrays(ends, pa.array(words[: len(ends)])),
    }


def bodies() -> list[Body]:
    """Return a body of each kind of type, one of them all, larger ones, and loans."""
    few, many = column_of_each_kind(ROWS), column_of_each_kind(MANY_ROWS)
    batches = [pa.record_batch({name: array}) for name, array in few.items()]
    batches.append(pa.record_batch({name: few[name] for name in ("int", "text", "list", "struct", "bool")}))
    batches += [
        pa.record_batch({name: many[name]}) for name in ("text", "large", "dictionary", "list", "dense")
    ]
    found = []
    for batch in batches:
        writer = BatchWriter(batch.schema)
        room = bytearray(writer.size(batch))
        skip = writer.write(batch, memoryview(room))
        kind = Kind.STREAM if writer.streams else Kind.IPC
        found.append(Body(batch.schema, kind, bytes(room), skip, batch.num_rows))
    schema = pa.schema([("a", pa.int64()), ("b", pa.bool_()), ("c", pa.list_(pa.float32(), 3))])
    size = PlainLayout(plan(schema, lambda _: "vlen")).size(ROWS)
    found.append(Body(schema, Kind.PLAIN, bytes(range(256))[:size] * (1 + size // 256), 0, ROWS))
    return found


class Cases:
    """The bodies as they were, and the memory that they are put into, damaged."""

    def __init__(self) -> None:
        self._bodies = bodies()
        self._memory = mmap.mmap(-1, _BODY_BYTES + mmap.PAGESIZE)
        self._view = memoryview(self._memory)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        libc = ctypes.CDLL(None, use_errno=True)
        nothing = 0  # PROT_NONE
        fence = ctypes.c_void_p(start + _BODY_BYTES)
        assert libc.mprotect(fence, ctypes.c_size_t(mmap.PAGESIZE), nothing) == 0

    def __call__(self, damages: Sequence[Damage], body: int, rows: int) -> str | None:
        """Try one.

        Parameters
        ----------
        damages
            What is done to the body.
        body
            Which one.
        rows
            How many more rows the header says than there were.
        """
        whole = self._bodies[body % len(self._bodies)]
        data = damaged(whole.data, damages, _regions(whole))
        assert len(data) <= _BODY_BYTES
        start = _BODY_BYTES - align(len(data))
        self._view[start : start + len(data)] = data
        read = self._view[start : start + len(data)].toreadonly()
        slot = whole._replace(rows=max(0, whole.rows + rows), skip=min(whole.skip, len(data)))
        try:
            batch = _batch(slot, read)
            for field, column in zip(slot.schema, batch.columns, strict=True):
                _store(column, field.type)
            _keep_aside(batch, slot.schema)
        except pa.ArrowException as error:  # as `InstrumentAssembly.append` says it
            return f"{type(error).__name__}: {error}"
        return None


def _regions(body: Body) -> list[tuple[int, int]]:
    """Return where in the body its metadata are, and all of it."""
    if body.kind == Kind.PLAIN:
        return []
    (length,) = struct.unpack_from("<I", body.data, body.skip + 4)
    values = body.skip + 8 + length
    return [
        (body.skip, body.skip + 8),
        (body.skip + 8, values),
        (values, len(body.data)),
        (0, len(body.data)),
    ]


def _batch(slot: Body, data: memoryview) -> pa.RecordBatch:
    """Read a body as `shmstore.writer` does."""
    physical = physical_schema(slot.schema)
    if slot.kind == Kind.STREAM:
        return read_stream(data, slot.schema, slot.rows, physical)
    if slot.kind == Kind.IPC:
        return read_ipc(data, slot.skip, physical, slot.rows)
    plain = PlainLayout(plan(slot.schema, lambda _: "vlen"))
    plain.check(data, slot.rows)
    arrays = list(plain.arrays(data, slot.rows))
    for _, values in arrays:
        values.tobytes()  # all of it is there
    return plain.batch(iter(arrays), slot.rows, slot.schema)


def _store(column: pa.Array, type_: pa.DataType) -> None:
    """Encode and decode a column twice over: what comes out is what Arrow says is in it."""
    expected = tokens(column)
    stored = StoredItems(type_, "packed")
    for _ in range(2):
        stored.append(column)
    assert tokens(stored.read(len(column), 2 * len(column))) == expected


def _keep_aside(batch: pa.RecordBatch, schema: pa.Schema) -> None:
    """Write a batch as it is written into quarantine, should the file not take it."""
    kept = retyped(batch, schema)
    with pa.ipc.new_file(pa.BufferOutputStream(), kept.schema) as file:
        file.write_batch(kept)


if __name__ == "__main__":
    serve(Cases())
