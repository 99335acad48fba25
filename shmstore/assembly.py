"""Chunk assembly: rows of one instrument become whole chunks of its streams.

Whole chunks go straight from the ring to the codec pipeline; a ragged remainder is copied once, into the
stream's tail. The datasets themselves are made when the first rows have shown how fast they come, or at the
first flush.

Here rows of Arrow meet datasets; rings, producers and the writer's loop are not known here.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from shmstore import chunking
from shmstore.buffers import Items
from shmstore.codec import Codec
from shmstore.config import ResolvedInstrument
from shmstore.dataset import Dataset
from shmstore.dictionaries import Dictionaries
from shmstore.effort import AdaptiveEncoder, Effort
from shmstore.encoding import Block, Intake, dictionary_nodes, encode
from shmstore.errors import BrokenError, IncompleteFileError, InvalidValueError
from shmstore.evolution import Evolution, PastSchema, history_to_json
from shmstore.layout import ROWS, Column, Layout, Node, Stream
from shmstore.nulls import nulls
from shmstore.physical import physical_type
from shmstore.pipeline import Chunk, CodecPipeline, Encode
from shmstore.planning import plan
from shmstore.recordingfile import RecordingFile
from shmstore.schema import to_json
from shmstore.steps import step
from shmstore.streams import ChunkAssembler, Rank, Standing, VariableAssembler
from shmstore.tails import TailBuffers, Tails, buffers_for

_VALIDITY_CHUNK_ITEMS = 4096
#: Rows of nulls given to a new column at a time.
_FILL_ROWS = 65536


@dataclass(slots=True)
class Ticket:
    """Says when a batch's memory is free: once so many chunks are written; ``None``: not known yet."""

    chunks: int | None = None


class Cut(NamedTuple):
    """What an instrument had after one of its batches.

    Attributes
    ----------
    counts : dict of str to int
        Items in its streams, by space; the rows at ``""``.
    bytes_in : int
        Bytes of its columns, unencoded.
    """

    counts: dict[str, int]
    bytes_in: int


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
    commit
        Commits all that is written; called when a stream needs room to go on.

    Attributes
    ----------
    rows : int
        Rows taken in.
    bytes_in : int
        Bytes of their columns, unencoded.
    layout : Layout or None
        How they are stored; ``None`` until the schema is declared.
    effort : Effort or None
        How much its adaptive columns are compressed; ``None`` as long as there is no such column.
    """

    def __init__(
        self,
        file: RecordingFile,
        pipeline: CodecPipeline,
        link: str,
        config: ResolvedInstrument,
        known_after_s: float,
        tails_path: Callable[[], Path],
        commit: Callable[[], None],
    ) -> None:
        self.link = link
        self.config = config
        self.layout: Layout | None = None
        self.effort: Effort | None = None
        self.rows = 0
        self.bytes_in = 0
        self._file = file
        self._pipeline = pipeline
        self._known_after_s = known_after_s
        self._tails_path = tails_path
        self._make_room = commit
        self._tails: list[Tails] = []
        self._streams: dict[str, ChunkAssembler | VariableAssembler] = {}
        self._eager: list[tuple[str, ChunkAssembler | VariableAssembler]] = []
        self._lazy: list[Stream] = []
        self._masks: list[Stream] = []  # those of them that exist
        #: What codes need to be understood; published with every commit, as far as it is new.
        self._labels: list[ChunkAssembler | VariableAssembler] = []
        self._waiting: list[tuple[Intake, Ticket]] = []
        self._waiting_since = 0.0
        self._waiting_items: Counter[str] = Counter()
        #: Items taken in by space, those that wait included; and of these the ones distributed.
        self._taken: defaultdict[str, int] = defaultdict(int)
        self._distributed: defaultdict[str, int] = defaultdict(int)
        self._dictionaries: dict[str, Dictionaries] = {}
        self._history: list[PastSchema] = []
        #: After each batch that no commit covers yet: when it is due, and what there was.
        self._marks: deque[tuple[Ticket, Cut]] = deque()
        self._ripe = 0
        self._cut = Cut({}, 0)
        self._distributed_bytes = 0
        self._standing: dict[str, Any] | None = None
        #: All assemblers, each with its stream, in the order of the columns.
        self._placed: list[tuple[ChunkAssembler | VariableAssembler, Stream]] = []
        self._longest_run: int | None = None  # as long as nothing changes
        self._ranks: dict[tuple[str, ...], Rank | None] = {}  # likewise

    def declare(self, schema: pa.Schema, image: bytes | None = None) -> Layout:
        """Fix the schema and write it down; rows can come.

        Parameters
        ----------
        schema
            The schema.
        image
            Its bytes as the producer made them, who may know more of its extension types than this process.

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
            self._write_documents(layout, image)
            self._create_groups(layout.columns)
        self._know(layout.columns)
        self.layout, self._longest_run = layout, None
        return layout

    def evolve(self, evolution: Evolution) -> None:
        """Go on under another schema: new columns are null so far, widened ones are copied.

        Takes as long as it takes to write these columns; what was recorded is not read but for widened ones.
        """
        if self.layout is None:
            raise BrokenError(f"{self.link!r} has no schema yet")
        self.settle()
        self._make_room()  # what a writer that is killed in here goes back to
        self._file.journal.operation("evolve", {"link": self.link})
        step("writer.evolution_begun")
        before, self.layout = (
            self.layout,
            plan(evolution.schema, lambda name: self.config.column(name).strings),
        )
        self._history.append(PastSchema.of(self.rows, before.schema))
        added = [self.layout.columns[index] for index in evolution.added]
        self._know(added)
        with self._file.structure():
            self._create_groups(added)
        made = self._make_streams(
            [(column, stream, self._like_others(column, stream)) for column, stream in _eager(added)]
        )
        for assembler in made:
            assembler.guarded = False
        self._list_streams()
        made += self._fill_up(added)
        step("writer.columns_added")
        copies = [
            (index, self._widened(before.columns[index], self.layout.columns[index]))
            for index in evolution.widened
        ]
        step("writer.columns_widened")
        self._pipeline.drain()
        self.publish_variable()
        self.publish_tails()
        self._file.flush()
        step("writer.evolution_flushed")
        # Only now, when the columns are whole, may readers learn of them.
        with self._file.structure():
            for index, copy in copies:
                path = self.layout.columns[index].path
                self._file.replace(copy.dataset, f"{self.link}/{path}")
                self._streams[path] = copy
                made.append(copy)
            self._file.create_document(f"{self.link}/_arrow/history", history_to_json(self._history))
            self._write_documents(self.layout)
        step("writer.evolution_shown")
        self._list_streams()
        for assembler in made:
            assembler.guarded = True
        self._mark(Ticket(self._pipeline.submitted), 0)
        self._make_room()
        step("writer.evolved")

    def _widened(self, before: Column, after: Column) -> ChunkAssembler:
        """Copy what a column has so far into a dataset of its new type, beside the old one."""
        stream = after.node.streams[0]
        old = self._streams[before.path]
        old.publish()
        self._pipeline.drain()
        beside = dataclasses.replace(stream, path=f"_arrow/widened/{after.index}")
        self._make_streams([(after, beside, old.dataset.chunk_items)])
        copy = self._streams.pop(beside.path)
        if not isinstance(copy, ChunkAssembler):
            raise BrokenError(f"{after.path!r} cannot be widened")
        copy.guarded = False
        for start in range(0, old.total, old.dataset.chunk_items):
            items = old.dataset.read(start, min(start + old.dataset.chunk_items, old.total))
            copy.append(np.ascontiguousarray(items.astype(stream.numpy_dtype)))
        copy.publish()
        return copy

    def _fill_up(self, added: list[Column]) -> list[ChunkAssembler]:
        """Give new columns nulls for all rows so far; returns their streams, uncovered by commits as yet."""
        layout = self.layout
        if layout is None or not added:
            return []
        own = {stream.path for column in added for stream in column.streams}
        eager = [(stream.path, self._streams[stream.path]) for _, stream in _eager(added)]
        lazy = [stream for column in added for stream in column.streams if stream.lazy]
        rows = self.rows
        self._taken[""] = self._distributed[""] = 0
        for start in range(0, rows, _FILL_ROWS):
            count = min(_FILL_ROWS, rows - start)
            intake = Intake(count, self._taken, self._dictionaries)
            for column in added:
                type_ = physical_type(layout.schema.field(column.index).type)
                encode(column.node, nulls(count, type_), intake)
            _add(self._taken, intake.counts)
            intake.accept()
            self._distribute(intake, eager, lazy, guarded=False)
        return [
            assembler
            for path, assembler in self._streams.items()
            if path in own and isinstance(assembler, ChunkAssembler)
        ]

    def _write_documents(self, layout: Layout, image: bytes | None = None) -> None:
        self._file.create_document(f"{self.link}/schema", to_json(layout.schema))
        self._file.create_bytes(f"{self.link}/_arrow/schema", image or layout.schema.serialize().to_pybytes())
        self._file.create_document(f"{self.link}/_arrow/layout", layout.to_json())
        self._file.set_columns(self.link, [column.path for column in layout.columns])

    def _create_groups(self, columns: Iterable[Column]) -> None:
        for column in columns:
            for node in column.node.walk():
                if node.is_group:
                    self._file.create_group(f"{self.link}/{node.path}", node.attributes)

    def _know(self, columns: Sequence[Column]) -> None:
        for column in columns:
            self._dictionaries.update({node.path: Dictionaries() for node in dictionary_nodes(column)})
        if self.effort is None:
            self.effort = Effort.of(self.config.column(column.name).codec for column in columns)

    # -- rows in ---------------------------------------------------------------------------------------------

    def append(self, batch: pa.RecordBatch) -> Ticket:
        """Take a batch in; its memory is borrowed until the ticket is due.

        Raises
        ------
        InvalidValueError
            A value does not fit its column; nothing of the batch was taken.
        """
        intake = Intake(batch.num_rows, self._taken, self._dictionaries)
        for column in self._columns():
            values = nulls(batch.num_rows, pa.null()) if column is ROWS else batch.column(column.index)
            try:
                encode(column.node, values, intake)
            except pa.ArrowException as error:  # some of Arrow's functions do not know all of its types
                reason = " ".join(str(error).split())
                raise InvalidValueError(f"column {column.name!r} cannot be stored: {reason}") from None
        return self._take(intake)

    def append_plain(self, arrays: Iterator[tuple[Column, Items]], rows: int) -> Ticket:
        """Take in arrays without nulls, one a column, as `loan` leaves them."""
        intake = Intake(rows, self._taken)
        intake.items = {column.path: values for column, values in arrays} or {
            ROWS.path: np.zeros(rows, np.bool_)
        }
        return self._take(intake)

    @property
    def longest_run(self) -> int:
        """Most rows that `append_run` takes at once; 0: it takes none."""
        if self._longest_run is None:
            self._longest_run = self._find_longest_run()
        return self._longest_run

    def takes_whole(self, rows: int) -> bool:
        """Whether batches of so many rows, of which `append_run` takes some, are whole chunks in all columns.

        It takes any number of them then.
        """
        return bool(self._streams) and all(
            isinstance(assembler, ChunkAssembler) and assembler.takes_whole(rows)
            for assembler in self._streams.values()
        )

    def _find_longest_run(self) -> int:
        """Return the rows of the smallest chunk that a column has or may get."""
        columns = self.layout.columns if self.layout else ()
        if not columns or any(column.encoding not in ("plain", "bool") for column in columns):
            return 0
        if self._streams:
            return min(assembler.dataset.chunk_items for assembler in self._streams.values())
        if self.config.chunk_rows or self.config.chunk_bytes:
            return 0  # the first batch makes the datasets
        return min(
            self.config.column(column.name).chunk_rows
            or chunking.items_per_chunk(stream.item_bytes, chunking.SMALLEST)
            for column, stream in _eager(columns)
        )

    def append_run(self, blocks: Sequence[Block], rows: int) -> Ticket:
        """Take many batches in at once, of columns that have one stream each, and without nulls.

        They are one to commits: covered together or not at all.

        Parameters
        ----------
        blocks
            Their items.
        rows
            Rows of all of them; of several at most `longest_run`, but where each `takes_whole`.
        """
        return self._take(Intake(rows, self._taken, blocks=blocks))

    def _take(self, intake: Intake) -> Ticket:
        ticket = Ticket()
        size = intake.nbytes
        self.bytes_in += size
        _add(self._taken, intake.counts)
        intake.accept()
        if self._streams:
            self._distribute(intake)
            ticket.chunks = self._pipeline.submitted
            self._mark(ticket, size)
        else:
            if not self._waiting:
                self._waiting_since = time.monotonic()
            self._waiting.append((intake, ticket))
            largest = 0
            for path, count, nbytes in intake.sizes():
                self._waiting_items[path] += count
                largest = max(largest, nbytes // max(count, 1) * self._waiting_items[path])
            if largest >= chunking.UNKNOWN or self.config.chunk_rows or self.config.chunk_bytes:
                self.settle()
        self.rows += intake.counts[""]
        return ticket

    def _distribute(
        self,
        intake: Intake,
        eager: Sequence[tuple[str, ChunkAssembler | VariableAssembler]] | None = None,
        lazy: Sequence[Stream] | None = None,
        *,
        guarded: bool = True,
    ) -> None:
        """Append a batch's items; masks first: a reader takes a value that no mask covers for valid."""
        items, counts = intake.items, intake.counts
        if lazy is None:
            lazy = self._lazy if items else self._masks
        for stream in lazy:
            mask = items.get(stream.path)
            assembler = self._streams.get(stream.path)
            if mask is None and assembler is None:
                continue
            if assembler is None:
                assembler = self._make_lazy(stream, guarded=guarded)
            if mask is None:
                mask = np.ones((counts[stream.space], *stream.item_shape), np.bool_)
            assembler.append(mask)
        alone = []
        for block in intake.blocks:
            rank = self._rank(block.paths)
            if rank is None:
                alone.append(block)
            else:
                rank.append_run(block.items)
        intake.unfold(alone)
        if eager is None:
            eager = self._eager if items else ()  # a rank may have taken all
        for path, assembler in eager:
            values = items.get(path)
            if values is None:
                continue  # a dictionary that did not change brings nothing
            if intake.is_run and isinstance(assembler, ChunkAssembler):
                assembler.append_run(values)
            else:
                assembler.append(values)
        _add(self._distributed, counts)

    def _rank(self, paths: tuple[str, ...]) -> Rank | None:
        """Return some streams as one, if one copy can serve them all."""
        if paths not in self._ranks:
            streams = [self._streams[path] for path in paths]
            fixed = [assembler for assembler in streams if isinstance(assembler, ChunkAssembler)]
            self._ranks[paths] = Rank.of(fixed) if len(fixed) == len(streams) > 1 else None
        return self._ranks[paths]

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
        eager = _eager(self._columns())
        if last:
            chunks = [max(self._waiting_items[stream.path] + stream.lead, 1) for _, stream in eager]
        else:
            largest = chunking.largest_bytes(len(eager))
            widest = max(stream.item_bytes for _, stream in eager)
            seen = sum(self._waiting_items[stream.path] * stream.item_bytes for _, stream in eager)
            known_after_s = 0.0 if seen >= chunking.PLENTY else self._known_after_s
            chunks = [
                self._chunk_items(column, stream, largest, widest, elapsed, known_after_s)
                for column, stream in eager
            ]
        self._make_streams(
            [(column, stream, items) for (column, stream), items in zip(eager, chunks, strict=True)]
        )
        self._list_streams()
        waiting, self._waiting = self._waiting, []
        self._waiting_items.clear()
        for intake, ticket in waiting:
            self._distribute(intake)
            ticket.chunks = self._pipeline.submitted
            self._mark(ticket, intake.nbytes)

    def _list_streams(self) -> None:
        columns = self._columns()
        self._eager = [(stream.path, self._streams[stream.path]) for _, stream in _eager(columns)]
        self._lazy = [stream for column in columns for stream in column.streams if stream.lazy]
        self._masks = [stream for stream in self._lazy if stream.path in self._streams]
        self._placed = [
            (self._streams[stream.path], stream)
            for column in columns
            for stream in column.streams
            if stream.path in self._streams
        ]
        labels = [
            stream for column in columns for node in dictionary_nodes(column) for stream in _labels(node)
        ]
        self._labels = [self._streams[stream.path] for stream in labels]
        self._longest_run = None
        self._ranks.clear()

    def _like_others(self, column: Column, stream: Stream) -> int:
        """Return the items in a chunk of a column that comes later: of the size that the others have."""
        configured = self.config.column(column.name).chunk_rows or self.config.chunk_rows
        if configured and not stream.space:
            return configured
        sizes = [assembler.dataset.chunk_bytes for _, assembler in self._eager]
        return chunking.items_per_chunk(stream.item_bytes, max(sizes, default=chunking.UNKNOWN))

    def _make_streams(
        self, streams: list[tuple[Column, Stream, int]], items: int = 0
    ) -> list[ChunkAssembler]:
        if not streams:
            return []
        made = [
            (stream, self.config.column(column.name).codec, chunk_items)
            for column, stream, chunk_items in streams
        ]
        sizes = [items * stream.item_bytes for stream, _, items in made if not stream.variable]
        buffers = buffers_for(sizes)
        path = self._tails_path()
        tails = Tails.create(path, sizes, buffers, sparse=True)
        self._tails.append(tails)
        step("writer.tails_made")
        with self._file.structure():
            datasets = [
                self._file.create_dataset(f"{self.link}/{stream.path}", stream, chunk_items, codec, items)
                for stream, codec, chunk_items in made
            ]
            self._file.link(f"{self.link}/", [stream for _, stream, _ in streams])
            numbers = [dataset.number for dataset in datasets if not dataset.variable]
            self._file.journal.operation(
                "tails", {"name": path.name, "datasets": numbers, "sizes": sizes, "buffers": buffers}
            )
        pairs = iter(tails.buffers)
        assemblers = []
        for dataset, (stream, codec, _) in zip(datasets, made, strict=True):
            if stream.variable:
                self._streams[stream.path] = VariableAssembler(dataset)
            else:
                assembler = self._chunk_assembler(dataset, stream, codec, next(pairs))
                self._streams[stream.path] = assembler
                assemblers.append(assembler)
        self._standing = None
        return assemblers

    def _chunk_assembler(
        self,
        dataset: Dataset,
        stream: Stream,
        codec: Codec,
        buffers: TailBuffers,
        standing: Standing | None = None,
    ) -> ChunkAssembler:
        encode = self._encoder(dataset, stream, codec) if codec.direct else None
        return ChunkAssembler(dataset, stream, buffers, self._pipeline, encode, self._make_room, standing)

    def _encoder(self, dataset: Dataset, stream: Stream, codec: Codec) -> Encode | None:
        size = stream.numpy_dtype.itemsize, dataset.chunk_bytes
        if not codec.adaptive or self.effort is None:
            return codec.encoder(*size)
        encoders = [eased.encoder(*size) for eased in codec.eased()]
        return AdaptiveEncoder([each for each in encoders if each], self.effort, dataset.skip_mask)

    def _make_lazy(self, stream: Stream, *, guarded: bool) -> ChunkAssembler | VariableAssembler:
        """Make the dataset of a mask at its first null; its extent covers the items before from the start."""
        before = self._distributed[stream.space]
        column = next(column for column in self._columns() if stream in column.streams)
        beside = next(
            self._streams[other.path].dataset.chunk_items
            for other in column.streams
            if other.path in self._streams
        )
        self._make_streams([(column, stream, max(beside, _VALIDITY_CHUNK_ITEMS))], items=before)
        assembler = self._streams[stream.path]
        if isinstance(assembler, ChunkAssembler):
            assembler.guarded = guarded
            assembler.begin_at(before)
        self._list_streams()
        return assembler

    def _chunk_items(
        self, column: Column, stream: Stream, largest: int, widest: int, elapsed: float, known_after_s: float
    ) -> int:
        configured = self.config.column(column.name).chunk_rows or self.config.chunk_rows
        if configured and not stream.space:
            return configured
        if self.config.chunk_bytes:
            return chunking.items_per_chunk(stream.item_bytes, self.config.chunk_bytes)
        largest = chunking.largest_beside(stream.item_bytes, widest, largest)
        seen = self._waiting_items[stream.path]
        size = chunking.bytes_for_rate(seen, stream.item_bytes, elapsed, largest, known_after_s)
        return chunking.items_per_chunk(stream.item_bytes, size)

    def _columns(self) -> tuple[Column, ...]:
        return (self.layout.columns or (ROWS,)) if self.layout else ()

    @property
    def bytes_written(self) -> int:
        """Bytes handed to the file for this instrument, published tails included."""
        return sum(assembler.dataset.bytes_written for assembler in self._streams.values())

    @property
    def chunks_written(self) -> int:
        """Whole chunks handed to the file."""
        return sum(assembler.dataset.chunks_written for assembler in self._streams.values())

    # -- commits ---------------------------------------------------------------------------------------------

    def _mark(self, ticket: Ticket, size: int) -> None:
        """Remember what there is after a batch: when its ticket is due, a commit may end here."""
        self._distributed_bytes += size
        self._marks.append((ticket, Cut(dict(self._distributed), self._distributed_bytes)))

    def ripen(self) -> None:
        """A commit begins: what was taken in by now may be covered by it, and nothing later."""
        self._ripe = len(self._marks)

    def cut(self, chunks_written: int) -> None:
        """Find out how far the commit reaches."""
        marks = self._marks
        while self._ripe and (due := marks[0][0].chunks) is not None and due <= chunks_written:
            self._cut = marks.popleft()[1]
            self._ripe -= 1
            self._standing = None

    def standing(self) -> dict[str, Any]:
        """Return, as JSON can say it, where the instrument stood at the last `cut`."""
        if self._standing is None:
            streams = []
            for assembler, stream in self._placed:
                standing = assembler.standing(self._cut.counts.get(stream.space, 0) + stream.lead)
                if standing is not None:
                    streams.append([assembler.dataset.number, *standing])
            self._standing = {"counts": self._cut.counts, "bytes_in": self._cut.bytes_in, "streams": streams}
            if self.effort is not None:
                self._standing["effort"] = self.effort.counts()
        return self._standing

    def tails(self) -> Iterator[tuple[int, Chunk]]:
        """Give, for each dataset by number, the bytes of the chunk that was not full at the last `cut`."""
        for assembler, stream in self._placed:
            standing = assembler.standing(self._cut.counts.get(stream.space, 0) + stream.lead)
            if standing is not None and standing.buffer >= 0:
                yield assembler.dataset.number, assembler.tail(standing)

    def totals(self) -> Iterator[tuple[int, int]]:
        """Give the items of each dataset, by its number."""
        for assembler, stream in self._placed:
            yield assembler.dataset.number, self._distributed[stream.space] + stream.lead

    def committed(self) -> None:
        """The commit up to the last `cut` is complete: nothing before is needed again."""
        for assembler, stream in self._placed:
            assembler.committed(self._cut.counts.get(stream.space, 0) + stream.lead)

    def resume(
        self,
        layout: Layout,
        history: list[PastSchema],
        standing: Mapping[str, Any],
        tails: Mapping[int, TailBuffers],
        segments: Iterable[Tails],
    ) -> None:
        """Go on where another writer made its last commit.

        Parameters
        ----------
        layout, history
            The schema that holds, and those before.
        standing
            What `standing` said then.
        tails
            The buffers of each dataset, by its number.
        segments
            The segments that they are in; owned by the assembly from here on.
        """
        self.layout, self._history = layout, history
        self._know(layout.columns)
        self._tails = list(segments)
        counts = {str(space): int(count) for space, count in standing["counts"].items()}
        self._cut = Cut(counts, int(standing["bytes_in"]))
        self._standing = None
        if self.effort is not None:
            self.effort.count_on(standing.get("effort", {}))
        self._taken.update(counts)
        self._distributed.update(counts)
        self.rows = counts.get("", 0)
        self.bytes_in = self._distributed_bytes = self._cut.bytes_in
        places = {
            f"{self.link}/{stream.path}": (stream, self.config.column(column.name).codec)
            for column in self._columns()
            for stream in column.streams
        }
        for number, *where in standing["streams"]:
            dataset = self._file.datasets[number]
            if dataset is None or dataset.path not in places:
                raise IncompleteFileError(f"dataset {number} of {self.link!r} is gone")
            stream, codec = places[dataset.path]
            if stream.variable:
                self._streams[stream.path] = VariableAssembler(dataset, where[0])
            else:
                self._streams[stream.path] = self._chunk_assembler(
                    dataset, stream, codec, tails[number], Standing(*where)
                )
        if self._streams:
            self._list_streams()

    # -- rows out --------------------------------------------------------------------------------------------

    def publish_variable(self) -> None:
        """Write what variable-length columns gathered, and new labels; part of every commit."""
        for assembler in self._streams.values():
            if isinstance(assembler, VariableAssembler):
                assembler.publish()
        for assembler in self._labels:
            assembler.publish()

    def publish_tails(self, older_than_s: float = 0.0) -> None:
        """Show tails to readers that began at least so many seconds ago."""
        self._standing = None
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
        self._pipeline.drain()

    def close(self) -> None:
        """Give the tails' memory back; the pipeline must have nothing of this instrument any more."""
        self._streams.clear()
        self._eager.clear()
        self._placed.clear()
        self._labels.clear()
        self._ranks.clear()
        for tails in self._tails:
            tails.close()


def _add(totals: dict[str, int], counts: Mapping[str, int]) -> None:
    for space, count in counts.items():
        totals[space] += count


def _eager(columns: Iterable[Column]) -> list[tuple[Column, Stream]]:
    """Return the streams that are made together, each with its column."""
    return [(column, stream) for column in columns for stream in column.streams if not stream.lazy]


def _labels(node: Node) -> list[Stream]:
    """Return the streams that a dictionary's codes need to be understood."""
    within = [stream for inner in node.children[0].walk() for stream in inner.streams if not stream.lazy]
    return [node.stream("segments"), *within]
