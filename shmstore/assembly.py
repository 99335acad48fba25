"""Chunk assembly: rows of one instrument become whole chunks of its streams.

Whole chunks go straight from the ring to the codec pipeline; a ragged remainder is copied once, into the
stream's tail. The datasets themselves are made when the first rows have shown how fast they come, or at the
first flush.

Here rows of Arrow meet datasets; rings, producers and the writer's loop are not known here.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from shmstore import chunking
from shmstore.codec import Codec
from shmstore.config import ResolvedInstrument
from shmstore.dataset import RecordingFile
from shmstore.encoding import Items, encode
from shmstore.layout import Column, Layout, Stream, plan
from shmstore.pipeline import CodecPipeline
from shmstore.schema import to_json
from shmstore.streams import ChunkAssembler, VariableAssembler
from shmstore.tails import Tails

_VALIDITY_CHUNK_ITEMS = 4096


@dataclass(slots=True)
class Ticket:
    """Says when a batch's memory is free: once so many chunks are written; ``None``: not known yet."""

    chunks: int | None = None


class InstrumentAssembly:
    """All columns of one instrument on their way into the file.

    Parameters
    ----------
    file
        The file.
    pipeline
        Compresses and writes chunks.
    link
        Name of the instrument's group.
    config
        What holds for the instrument.
    known_after_s
        Seconds after which the rate of a new instrument counts as known.
    tails_path
        Gives the path for a new segment of tails.

    Attributes
    ----------
    rows : int
        Rows taken in.
    bytes_in : int
        Bytes of their columns, unencoded.
    layout : Layout or None
        How they are stored; ``None`` until the schema is declared.
    """

    def __init__(
        self,
        file: RecordingFile,
        pipeline: CodecPipeline,
        link: str,
        config: ResolvedInstrument,
        known_after_s: float,
        tails_path: Callable[[], Path],
    ) -> None:
        self.link = link
        self.config = config
        self.layout: Layout | None = None
        self.rows = 0
        self.bytes_in = 0
        self._file = file
        self._pipeline = pipeline
        self._known_after_s = known_after_s
        self._tails_path = tails_path
        self._tails: list[Tails] = []
        self._streams: dict[str, ChunkAssembler | VariableAssembler] = {}
        self._eager: list[tuple[str, ChunkAssembler | VariableAssembler]] = []
        self._lazy: list[Stream] = []
        self._waiting: list[tuple[dict[str, Items], int, Ticket]] = []
        self._waiting_since = 0.0
        self._waiting_items: Counter[str] = Counter()

    def declare(self, schema: pa.Schema) -> Layout:
        """Fix the schema and write it down; rows can come.

        Raises
        ------
        UnsupportedTypeError
            A column's type cannot be recorded.
        ConfigError
            Something is configured for a column that the schema does not have.
        """
        layout = plan(schema, lambda name: self.config.column(name).strings)
        self.config.require_columns(schema.names)
        with self._file.structure():
            self._file.create_document(f"{self.link}/schema", to_json(schema))
            self._file.create_bytes(f"{self.link}/_arrow/schema", schema.serialize().to_pybytes())
            self._file.create_document(f"{self.link}/_arrow/layout", layout.to_json())
            for column in layout.columns:
                if column.is_group:
                    self._file.create_group(f"{self.link}/{column.path}", column.attributes)
        self.layout = layout
        return layout

    # -- rows in ---------------------------------------------------------------------------------------------

    def append(self, batch: pa.RecordBatch) -> Ticket:
        """Take a batch in; its memory is borrowed until the ticket is due.

        Raises
        ------
        InvalidValueError
            A value does not fit its column; nothing of the batch was taken.
        """
        items: dict[str, Items] = {}
        for column in self._columns():
            before = self._chars_before(column) if column.encoding == "packed" else 0
            for role, values in encode(column, batch.column(column.index), before).items():
                items[column.stream(role).path] = values
        return self._take(items, batch.num_rows)

    def append_plain(self, arrays: Iterator[tuple[Column, Items]], rows: int) -> Ticket:
        """Take in arrays without nulls, one a column, as `loan` leaves them."""
        return self._take({column.streams[0].path: values for column, values in arrays}, rows)

    def _take(self, items: dict[str, Items], rows: int) -> Ticket:
        ticket = Ticket()
        self.bytes_in += sum(values.nbytes for values in items.values())
        if self._streams or not self._columns():
            self._distribute(items, self.rows, rows)
            ticket.chunks = self._pipeline.submitted
        else:
            if not self._waiting:
                self._waiting_since = time.monotonic()
            self._waiting.append((items, rows, ticket))
            self._waiting_items.update({path: len(values) for path, values in items.items()})
            largest = max(
                values.nbytes // max(len(values), 1) * self._waiting_items[path]
                for path, values in items.items()
            )
            if largest >= chunking.UNKNOWN or self.config.chunk_rows or self.config.chunk_bytes:
                self.settle()
        self.rows += rows
        return ticket

    def _distribute(self, items: dict[str, Items], row: int, rows: int) -> None:
        """Append a batch's items; masks first: a reader takes a value that no mask covers for valid."""
        for stream in self._lazy:
            mask = items.get(stream.path)
            assembler = self._streams.get(stream.path)
            if mask is None and assembler is None:
                continue
            if assembler is None:
                assembler = self._make_lazy(stream, row)
            assembler.append(np.ones((rows, *stream.item_shape), np.bool_) if mask is None else mask)
        for path, assembler in self._eager:
            assembler.append(items[path])

    # -- datasets --------------------------------------------------------------------------------------------

    @property
    def waiting_since(self) -> float | None:
        """When the first row came of those that wait for their datasets (monotonic clock)."""
        return self._waiting_since if self._waiting else None

    def settle(self, *, last: bool = False) -> None:
        """Make the datasets, with chunks that suit the rate seen so far, and let the waiting rows in.

        Parameters
        ----------
        last
            No more rows come: one chunk takes all there are.
        """
        if self._streams or not self._columns():
            return
        elapsed = time.monotonic() - self._waiting_since if self._waiting else 0.0
        eager = [
            (column, stream) for column in self._columns() for stream in column.streams if not stream.lazy
        ]
        if last:
            chunks = [max(self._waiting_items[stream.path] + stream.lead, 1) for _, stream in eager]
        else:
            largest = chunking.largest_bytes(len(eager))
            widest = max(stream.item_bytes for _, stream in eager)
            chunks = [self._chunk_items(column, stream, largest, widest, elapsed) for column, stream in eager]
        self._make_streams([(stream, items) for (_, stream), items in zip(eager, chunks, strict=True)])
        self._eager = [(stream.path, self._streams[stream.path]) for _, stream in eager]
        self._lazy = [stream for column in self._columns() for stream in column.streams if stream.lazy]
        row = 0
        waiting, self._waiting = self._waiting, []
        self._waiting_items.clear()
        for items, rows, ticket in waiting:
            self._distribute(items, row, rows)
            ticket.chunks = self._pipeline.submitted
            row += rows

    def _make_streams(self, streams: list[tuple[Stream, int]], items: int = 0) -> None:
        made = [(stream, self._codec(stream), chunk_items) for stream, chunk_items in streams]
        fixed = [(stream, chunk_items) for stream, chunk_items in streams if not stream.variable]
        tails = Tails(self._tails_path(), [chunk_items * stream.item_bytes for stream, chunk_items in fixed])
        self._tails.append(tails)
        pairs = iter(tails.pairs)
        with self._file.structure():
            datasets = [
                self._file.create_dataset(f"{self.link}/{stream.path}", stream, chunk_items, codec, items)
                for stream, codec, chunk_items in made
            ]
        for dataset, (stream, codec, _) in zip(datasets, made, strict=True):
            if stream.variable:
                self._streams[stream.path] = VariableAssembler(dataset)
                continue
            encoder = (
                codec.encoder(stream.numpy_dtype.itemsize, dataset.chunk_bytes) if codec.direct else None
            )
            self._streams[stream.path] = ChunkAssembler(dataset, stream, next(pairs), self._pipeline, encoder)

    def _make_lazy(self, stream: Stream, row: int) -> ChunkAssembler | VariableAssembler:
        """Make the dataset of a mask at its first null; its extent covers the rows before from the start."""
        values = self._streams[self._column_of(stream).streams[0].path].dataset
        self._make_streams([(stream, max(values.chunk_items, _VALIDITY_CHUNK_ITEMS))], items=row)
        assembler = self._streams[stream.path]
        if isinstance(assembler, ChunkAssembler):
            assembler.begin_at(row)
        return assembler

    def _chunk_items(self, column: Column, stream: Stream, largest: int, widest: int, elapsed: float) -> int:
        configured = self.config.column(column.name).chunk_rows or self.config.chunk_rows
        if configured and stream.role != "chars":
            return configured
        if self.config.chunk_bytes:
            return chunking.items_per_chunk(stream.item_bytes, self.config.chunk_bytes)
        largest = chunking.largest_beside(stream.item_bytes, widest, largest)
        seen = self._waiting_items[stream.path]
        size = chunking.bytes_for_rate(seen, stream.item_bytes, elapsed, largest, self._known_after_s)
        return chunking.items_per_chunk(stream.item_bytes, size)

    def _codec(self, stream: Stream) -> Codec:
        return self.config.column(self._column_of(stream).name).codec

    def _column_of(self, stream: Stream) -> Column:
        return next(column for column in self._columns() if stream in column.streams)

    def _columns(self) -> tuple[Column, ...]:
        return self.layout.columns if self.layout else ()

    def _chars_before(self, column: Column) -> int:
        path = column.stream("chars").path
        return self._streams[path].total if path in self._streams else self._waiting_items[path]

    @property
    def bytes_written(self) -> int:
        """Bytes handed to the file for this instrument, published tails included."""
        return sum(assembler.dataset.bytes_written for assembler in self._streams.values())

    @property
    def chunks_written(self) -> int:
        """Whole chunks handed to the file."""
        return sum(assembler.dataset.chunks_written for assembler in self._streams.values())

    # -- rows out --------------------------------------------------------------------------------------------

    def publish_variable(self) -> None:
        """Write what variable-length columns gathered; part of every commit."""
        for assembler in self._streams.values():
            if isinstance(assembler, VariableAssembler):
                assembler.publish()

    def publish_tails(self, older_than_s: float = 0.0) -> None:
        """Show tails to readers that began at least so many seconds ago."""
        for assembler in self._streams.values():
            if isinstance(assembler, ChunkAssembler):
                assembler.publish(older_than_s)

    def finish(self) -> None:
        """Write everything that is left, with exact extents."""
        self.settle(last=True)
        for assembler in self._streams.values():
            if isinstance(assembler, ChunkAssembler):
                assembler.finish()
            else:
                assembler.publish()

    def close(self) -> None:
        """Give the tails' memory back; the pipeline must have nothing of this instrument any more."""
        self._streams.clear()
        self._eager.clear()
        for tails in self._tails:
            tails.close()
