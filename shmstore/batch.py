"""Between Arrow and the bytes of a slot: the one module that knows both.

Three kinds of body. ``IPC``: an encapsulated Arrow record-batch message, after ``skip`` bytes; what `put`
writes. ``STREAM``: an Arrow IPC stream of schema, dictionaries and one record batch, without an end mark;
what `put` writes when a column holds dictionaries, since each slot must be readable alone. ``PLAIN``: the
columns' values laid end to end, each at a multiple of 64, without nulls, for fixed-width columns only; what
`loan` hands out as numpy views. Reading any borrows: the arrays are views over the body.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shmstore.compaction import compact, has_views, types_in
from shmstore.decoding import decode
from shmstore.errors import BrokenError, UnsupportedTypeError
from shmstore.layout import Column, Layout, Stream
from shmstore.physical import empty_batch, physical_schema, retyped
from shmstore.segment import align
from shmstore.soundness import check_batch

#: Below this many bytes a copy through Arrow's own buffer is quicker than opening a stream over the slot
#: (measured: 4 against 14 µs up to 100 KiB, 99 against 48 µs at 1 MiB).
_SERIALIZE_BELOW = 128 * 1024
#: And below this many bytes a column, than looking for the pieces one by one (measured, 500 columns of 4,000
#: bytes: 0.35 against 1.2 ms).
_SERIALIZE_COLUMNS_BELOW = 16 * 1024
#: Where the values of a large batch should begin: the kernel takes half as long again for a copy that begins
#: anywhere else (measured: `pwrite` of 1 MiB to tmpfs 200 against 134 µs).
_VALUES_ALIGNMENT = 64
#: Batches of fewer bytes are not searched for texts that they drag along: these cannot be many.
_COMPACT_FROM = 16 * 1024
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def has_dictionaries(schema: pa.Schema) -> bool:
    """Say whether a column of a schema holds dictionaries, at any depth."""
    return any(pa.types.is_dictionary(type_) for field in schema for type_ in types_in(field.type))


class Pieces(NamedTuple):
    """What a body of kind IPC will hold, and does not yet.

    Attributes
    ----------
    size : int
        Bytes of the body.
    skip : int
        Where in it the record-batch message begins.
    pieces : list of (int, memoryview)
        What has to be copied where; borrowed from the batch.
    """

    size: int
    skip: int
    pieces: list[tuple[int, memoryview]]

    def copy(self, body: memoryview) -> None:
        """Copy them into a body of their size."""
        for start, piece in self.pieces:
            body[start : start + len(piece)] = piece


class _Written(NamedTuple):
    """What a large batch became, for the next one of as many rows: all but its values stays the same."""

    rows: int
    size: int
    skip: int
    metadata: memoryview
    starts: list[int]


class BatchWriter:
    """Writes the batches of one schema into slots.

    Parameters
    ----------
    schema
        Schema of every batch to come.

    Attributes
    ----------
    streams : bool
        Whether the bodies are of kind STREAM, not IPC.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.streams = has_dictionaries(schema)
        self._schema = schema
        self._schema_bytes = int(schema.serialize().size)
        #: What is left free in front of a large batch, so that its values are aligned; learnt from the last.
        self._lead = 0
        self._last: _Written | None = None
        self._is_flat = all(map(_is_flat, schema.types))
        self._row_bytes = None if self.streams else _row_bytes(schema)
        self._message_below = max(_SERIALIZE_BELOW, _SERIALIZE_COLUMNS_BELOW * len(schema))
        self._viewing = [index for index, field in enumerate(schema) if has_views(field.type)]

    def compact(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return an equal batch that leaves behind what its rows do not show; usually ``batch`` itself."""
        if not self._viewing or pa.ipc.get_record_batch_size(batch) < _COMPACT_FROM:
            return batch
        for index in self._viewing:  # one by one: some of the others may be of types without an array class
            batch = batch.set_column(index, batch.schema.field(index), compact(batch.column(index)))
        return batch

    def size(self, batch: pa.RecordBatch) -> int:
        """Return the bytes that a body for ``batch`` needs at most; reads no values."""
        if self.streams:
            sink = pa.MockOutputStream()
            pa.ipc.new_stream(sink, self._schema).write_batch(batch)
            return int(sink.size())
        size: int = pa.ipc.get_record_batch_size(batch)
        return size if size < _SERIALIZE_BELOW else size + self._schema_bytes + _VALUES_ALIGNMENT

    def message(self, batch: pa.RecordBatch) -> memoryview | None:
        """Return all that a body of kind IPC for a batch of small columns holds, if all rows have one size.

        ``None``: see `pieces`.
        """
        if self._row_bytes is None or batch.num_rows * self._row_bytes >= self._message_below:
            return None
        return memoryview(batch.serialize()).cast("B")

    def pieces(self, batch: pa.RecordBatch) -> Pieces | None:
        """Return what a body for a large batch of numbers without nulls holds, if the last had as many rows.

        ``None``: see `size` and `write`.
        """
        last, rows = self._last, batch.num_rows
        if last is None or last.rows != rows:
            return None
        pieces = [(last.skip, last.metadata)]
        for column, start in zip(batch.columns, last.starts, strict=True):
            if column.null_count:
                return None
            width = column.type.byte_width
            values = memoryview(column.buffers()[1]).cast("B")
            pieces.append((start, values[column.offset * width : (column.offset + rows) * width]))
        return Pieces(last.size, last.skip, pieces)

    def write(self, batch: pa.RecordBatch, body: memoryview) -> int:
        """Copy ``batch`` into ``body``, which has `size` bytes; one copy.

        Returns
        -------
        int
            Where in the body the record-batch message begins; 0 in one of kind STREAM.
        """
        if not self.streams and len(body) < _SERIALIZE_BELOW:
            message = memoryview(batch.serialize()).cast("B")
            body[: len(message)] = message
            return 0
        lead = 0 if self.streams else self._lead
        # It is not closed: an end-of-stream mark has no place here.
        pa.ipc.new_stream(pa.FixedSizeBufferWriter(pa.py_buffer(body[lead:])), self._schema).write_batch(
            batch
        )
        if self.streams:
            return 0
        # In a body of kind IPC nobody reads the schema in front; the message behind it is what counts: a
        # mark, the length of its metadata, that, and the values.
        skip = lead + self._schema_bytes
        metadata = int.from_bytes(body[skip + 4 : skip + 8], "little")
        self._lead = -(self._schema_bytes + 8 + metadata) % _VALUES_ALIGNMENT
        self._last = self._written(batch, body, skip) if self._is_flat and lead == self._lead else None
        return skip

    def _written(self, batch: pa.RecordBatch, body: memoryview, skip: int) -> _Written | None:
        if any(column.null_count for column in batch.columns):
            return None
        data = pa.py_buffer(body)
        written = pa.ipc.read_record_batch(pa.ipc.read_message(data.slice(skip)), self._schema)
        starts = [column.buffers()[1].address - data.address for column in written.columns]
        metadata = memoryview(bytes(body[skip : min(starts)]))
        return _Written(batch.num_rows, len(body), skip, metadata, starts)


def _is_flat(type_: pa.DataType) -> bool:
    """Whether values of a type are numbers to Arrow, side by side in one buffer."""
    types = pa.types
    return bool(types.is_integer(type_) or types.is_floating(type_) or types.is_timestamp(type_))


def _row_bytes(schema: pa.Schema) -> int | None:
    """Return the bytes of a row at most, if all have the same; without validity."""
    sizes = [_value_bytes(field.type) for field in schema]
    return sum(size for size in sizes if size is not None) if None not in sizes else None


def _value_bytes(type_: pa.DataType) -> int | None:
    while isinstance(type_, pa.BaseExtensionType):
        type_ = type_.storage_type
    if pa.types.is_fixed_size_list(type_):
        inner = _value_bytes(type_.value_type)
        return None if inner is None else type_.list_size * inner
    if pa.types.is_boolean(type_):
        return 1
    try:
        return int(type_.byte_width)
    except ValueError:  # it has none
        return None


def read_ipc(body: memoryview, skip: int, schema: pa.Schema, rows: int) -> pa.RecordBatch:
    """Return the record batch in a body of kind IPC; a view over the body, which must outlive it.

    Raises
    ------
    BrokenError
        The bytes are no such batch.
    """
    try:
        # Sliced as an Arrow buffer, not as a memoryview: so the body itself knows that arrays look at it.
        message = pa.ipc.read_message(pa.py_buffer(body).slice(skip))
        batch = pa.ipc.read_record_batch(message, schema)
        check_batch(batch)  # text too: what cannot be decoded must not get as far as the columns
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise BrokenError(f"a slot holds no readable record batch: {error}") from None
    return _of_rows(batch, rows)


def read_stream(
    body: memoryview, schema: pa.Schema, rows: int, physical: pa.Schema | None = None
) -> pa.RecordBatch:
    """Return the record batch in a body of kind STREAM, with the dictionaries that came with it.

    As `read_ipc`: a view over the body, which must outlive it. It travels under ``schema``, and is returned
    in its ``physical`` form, if that is another.

    Raises
    ------
    BrokenError
        The bytes are no such batch, or it follows another schema.
    """
    try:
        stream = pa.ipc.open_stream(pa.py_buffer(body))
        if not stream.schema.equals(schema):
            raise BrokenError("a slot's batch follows another schema than the one declared for it")
        batch = stream.read_next_batch()
        batch = batch if physical is None or physical is schema else retyped(batch, physical)
        check_batch(batch)
    except StopIteration:
        raise BrokenError("a slot holds no readable record batch: its stream ends before one") from None
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise BrokenError(f"a slot holds no readable record batch: {error}") from None
    return _of_rows(batch, rows)


def slot_stream(body: memoryview, skip: int, image: bytes, *, streams: bool) -> list[bytes | memoryview]:
    """Return an Arrow IPC stream of what a body of kind IPC or STREAM holds, without looking at it.

    Parameters
    ----------
    body, skip
        As the slot has them.
    image
        The schema, serialized.
    streams
        Whether it is of kind STREAM.
    """
    if streams:
        return [body, _END_OF_STREAM]
    return [image, body[skip:], _END_OF_STREAM]


def _of_rows(batch: pa.RecordBatch, rows: int) -> pa.RecordBatch:
    if batch.num_rows != rows:
        raise BrokenError(f"a slot's header says {rows} rows, its batch {batch.num_rows}")
    return batch


class PlainLayout:
    """Where the columns lie in a body of kind PLAIN: fixed by the schema and the number of rows alone.

    Parameters
    ----------
    layout
        Layout of the instrument.

    Raises
    ------
    UnsupportedTypeError
        A column has no fixed width; the message names it.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.columns: list[tuple[Column, np.dtype[Any], tuple[int, ...]]] = []
        for column in layout.columns:
            if column.encoding not in ("plain", "bool"):
                raise UnsupportedTypeError(
                    f"column {column.name!r} ({layout.schema.field(column.index).type}) has no fixed "
                    "width, so it cannot be "
                    "loaned: use put()"
                )
            stream = column.streams[0]
            self.columns.append((column, stream.numpy_dtype, stream.item_shape))
        self._row_bytes = [_item_bytes(dtype, shape) for _, dtype, shape in self.columns]

    def size(self, rows: int) -> int:
        """Return the bytes of a body with ``rows`` rows."""
        return sum([align(rows * size) for size in self._row_bytes])

    def arrays(self, body: memoryview, rows: int) -> Iterator[tuple[Column, npt.NDArray[Any]]]:
        """Give each column's array ``(rows, *item_shape)``: a view over the body, writable if that is."""
        start = 0
        for (column, dtype, shape), size in zip(self.columns, self._row_bytes, strict=True):
            yield column, np.ndarray((rows, *shape), dtype, body, start)
            start += align(rows * size)

    def batch(
        self, arrays: Iterator[tuple[Column, npt.NDArray[Any]]], rows: int, schema: pa.Schema
    ) -> pa.RecordBatch:
        """Return the arrays as a record batch of that schema, which has their types; a view over them."""
        columns = [
            decode(column.node, schema.field(column.index).type, _Given(values), 0, rows)
            for column, values in arrays
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def check(self, body: memoryview, rows: int) -> None:
        """Raise `BrokenError` unless the body has room for ``rows`` rows."""
        if len(body) < self.size(rows):
            raise BrokenError(f"a slot of {len(body)} bytes cannot hold the {rows} rows that its header says")


class _Given:
    """Values of one column without nulls, as `shmstore.decoding.decode` wants them."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self._values = values

    def items(self, stream: Stream, start: int, stop: int) -> npt.NDArray[Any]:
        return self._values[start:stop]

    def mask(self, stream: Stream, start: int, stop: int) -> None:
        return None

    def all_items(self, stream: Stream) -> npt.NDArray[Any]:
        return self._values


def _item_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    return dtype.itemsize * math.prod(shape)


def batches_of(data: Any) -> Iterator[pa.RecordBatch]:
    """Give the record batches of whatever carries Arrow data, without copying it.

    Parameters
    ----------
    data
        A ``RecordBatch``, ``Table`` or ``RecordBatchReader``; anything with ``__arrow_c_array__`` or
        ``__arrow_c_stream__``; or a serialized Arrow IPC stream (bytes-like).

    Raises
    ------
    TypeError
        It is none of these.
    ValueError
        The serialized stream is empty, cut or damaged; what came before the damage has been given already.
    """
    if isinstance(data, pa.RecordBatch):
        yield data
    elif isinstance(data, pa.Table):
        yield from data.to_batches() or [empty_batch(data.schema)]
    elif isinstance(data, pa.RecordBatchReader):
        yield from data
    elif isinstance(data, (bytes, bytearray, memoryview, pa.Buffer)):
        yield from _stream_batches(data)
    elif hasattr(data, "__arrow_c_array__"):
        yield pa.record_batch(data)
    elif hasattr(data, "__arrow_c_stream__"):
        yield from pa.RecordBatchReader.from_stream(data)
    else:
        raise TypeError(
            f"{type(data).__name__} carries no Arrow data: give a RecordBatch, a Table, or an object with "
            "__arrow_c_array__ or __arrow_c_stream__"
        )


def _stream_batches(data: Any) -> Iterator[pa.RecordBatch]:
    try:
        with pa.ipc.open_stream(pa.py_buffer(data)) as stream:
            for batch in stream:
                # Arrow itself checks hardly more than that the message is whole.
                retyped(batch, physical_schema(batch.schema)).validate(full=True)
                yield batch
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the bytes are no whole Arrow IPC stream: {reason}") from None
