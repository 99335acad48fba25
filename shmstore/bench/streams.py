"""The data that benchmarks record: small frozen descriptions that make the same batches in every process.

A stream is a handful of distinct batches, recorded round and round; some are made up here, one is read from a
file of the user's. It knows no recorder. No codec here looks back further than one chunk, so where the
distinct batches are more than that, recording a batch again costs what a new one would.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shmstore.errors import UnsupportedTypeError
from shmstore.sources.files import InputError, open_source

MIB = 1 << 20
#: A batch of a user's file that is larger than this is recorded in slices.
_LARGEST_BATCH = 4 * MIB
#: So much of a user's file is recorded, round and round.
_MOST_DATA = 256 * MIB


class Stream(Protocol):
    """What an instrument delivers; picklable, so that a producer process can make it itself; hashable."""

    def __hash__(self) -> int:
        """Of what it is made of."""

    @property
    def schema(self) -> pa.Schema:
        """The schema of every batch."""

    def batches(self) -> list[pa.RecordBatch]:
        """Make the distinct batches, the same each time; those made up here are all of one size."""


@dataclass(frozen=True, slots=True)
class Adc:
    """One int16 column: a sine of amplitude 2,000 with Gaussian noise of σ = 20, in steps of one ADC count.

    Attributes
    ----------
    batch_bytes : int
        Bytes of a batch.
    period : float
        Period of the sine, in samples.
    distinct : int
        Distinct batches.
    """

    batch_bytes: int = MIB
    period: float = 1000.0
    distinct: int = 32

    @property
    def schema(self) -> pa.Schema:
        """One column ``adc``."""
        return pa.schema([("adc", pa.int16())])

    def batches(self) -> list[pa.RecordBatch]:
        """Make the batches; the sine runs on from one to the next."""
        rng = np.random.default_rng(0)
        samples = self.batch_bytes // 2
        made = []
        for number in range(self.distinct):
            phase = 2 * np.pi * (number * samples + np.arange(samples)) / self.period
            values = 2000 * np.sin(phase) + rng.normal(0, 20, samples)
            made.append(pa.record_batch([pa.array(values.astype(np.int16))], schema=self.schema))
        return made


@dataclass(frozen=True, slots=True)
class Frames:
    """One uint32 image column: detector counts, most of them 0 (Poisson, mean 0.05, with a few bright spots).

    Attributes
    ----------
    height, width : int
        Shape of a frame.
    distinct : int
        Distinct batches, of one frame each.
    """

    height: int = 1024
    width: int = 1024
    distinct: int = 8

    @property
    def schema(self) -> pa.Schema:
        """One column ``frame`` of shape ``(rows, height, width)``."""
        return pa.schema([("frame", pa.fixed_shape_tensor(pa.uint32(), (self.height, self.width)))])

    def batches(self) -> list[pa.RecordBatch]:
        """Make the frames."""
        rng = np.random.default_rng(0)
        made = []
        for _ in range(self.distinct):
            frame = rng.poisson(0.05, (1, self.height, self.width)).astype(np.uint32)
            rows, columns = rng.integers(self.height, size=50), rng.integers(self.width, size=50)
            frame[0, rows, columns] += rng.integers(100, 100_000, 50).astype(np.uint32)
            column = pa.FixedShapeTensorArray.from_numpy_ndarray(frame)
            made.append(pa.record_batch([column], schema=self.schema))
        return made


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Columns of floats that wander: slow control readings.

    Attributes
    ----------
    rows, columns : int
        Shape of a batch.
    distinct : int
        Distinct batches.
    dtype : str
        ``"float64"`` or ``"float32"``.
    within : float or None
        Where readings turn back, on both sides of 0. Without, the longer a column, the further it comes
        from 0, and the fewer bits of its values are left for what changes: long columns compress better.
    """

    rows: int = 100
    columns: int = 4
    distinct: int = 64
    dtype: str = "float64"
    within: float | None = None

    @property
    def schema(self) -> pa.Schema:
        """Columns ``reading_0``, ``reading_1`` and so on."""
        type_ = pa.from_numpy_dtype(np.dtype(self.dtype))
        return pa.schema([(f"reading_{number}", type_) for number in range(self.columns)])

    def batches(self) -> list[pa.RecordBatch]:
        """Make the batches; each column is a random walk over all of them."""
        rng = np.random.default_rng(0)
        walk = rng.normal(0, 0.01, (self.columns, self.distinct * self.rows)).cumsum(axis=1)
        if self.within is not None:
            walk = np.abs((walk + self.within) % (4 * self.within) - 2 * self.within) - self.within
        return [
            pa.record_batch([pa.array(part) for part in parts], schema=self.schema)
            for parts in np.split(walk.astype(self.dtype), self.distinct, axis=1)
        ]


@dataclass(frozen=True, slots=True)
class Times:
    """One column of time stamps: a clock of 1 kHz in nanoseconds, each read with a jitter of σ = 2 µs.

    Attributes
    ----------
    rows : int
        Rows of a batch.
    distinct : int
        Distinct batches.
    """

    rows: int = MIB // 8
    distinct: int = 16

    @property
    def schema(self) -> pa.Schema:
        """One column ``time``."""
        return pa.schema([("time", pa.timestamp("ns", tz="UTC"))])

    def batches(self) -> list[pa.RecordBatch]:
        """Make the batches; the clock runs on from one to the next."""
        rng = np.random.default_rng(0)
        start_ns = 1_767_225_600_000_000_000  # 2026-01-01
        made = []
        for number in range(self.distinct):
            ticks = start_ns + 1_000_000 * (number * self.rows + np.arange(self.rows, dtype=np.int64))
            ticks += rng.normal(0, 2000, self.rows).astype(np.int64)
            column = pa.array(ticks).cast(self.schema.field(0).type)
            made.append(pa.record_batch([column], schema=self.schema))
        return made


@dataclass(frozen=True, slots=True)
class Words:
    """One column of short strings as they come from logs: a word of 5–12 letters, half with a number behind.

    The words are 1,000 made-up ones, the numbers have up to 8 digits: 5 to 20 bytes, 11 on average.

    Attributes
    ----------
    rows : int
        Rows of a batch.
    distinct : int
        Distinct batches.
    """

    rows: int = 10_000
    distinct: int = 32

    @property
    def schema(self) -> pa.Schema:
        """One column ``word``."""
        return pa.schema([("word", pa.string())])

    def batches(self) -> list[pa.RecordBatch]:
        """Make the batches."""
        rng = np.random.default_rng(0)
        known = labels(1000)
        made = []
        for _ in range(self.distinct):
            picked = rng.integers(len(known), size=self.rows).tolist()
            numbers = (10 ** rng.uniform(0, 8, self.rows)).astype(np.int64).tolist()
            bare = rng.integers(2, size=self.rows).tolist()
            words = [
                known[word] if alone else f"{known[word]}{number}"
                for word, number, alone in zip(picked, numbers, bare, strict=True)
            ]
            made.append(pa.record_batch([pa.array(words, pa.string())], schema=self.schema))
        return made


@dataclass(frozen=True, slots=True)
class Hits:
    """Energies of hits (exponential, float32): for each event a list of 0–20, or all in a flat column.

    Attributes
    ----------
    flat : bool
        Whether the events' boundaries are left out: the same values in as many batches.
    events : int
        Events of a batch, a multiple of 21: as many of each length, so that all batches have one size.
    distinct : int
        Distinct batches.
    """

    flat: bool = False
    events: int = 25_200
    distinct: int = 32

    @property
    def schema(self) -> pa.Schema:
        """One column ``energy``."""
        return pa.schema([("energy", pa.float32() if self.flat else pa.list_(pa.float32()))])

    def batches(self) -> list[pa.RecordBatch]:
        """Make the batches."""
        rng = np.random.default_rng(0)
        made = []
        for _ in range(self.distinct):
            ends = rng.permutation(np.arange(self.events) % 21).cumsum()
            column = pa.array(rng.exponential(1000.0, ends[-1]).astype(np.float32))
            if not self.flat:
                offsets = np.concatenate(([0], ends)).astype(np.int32)
                column = pa.ListArray.from_arrays(pa.array(offsets), column)
            made.append(pa.record_batch([column], schema=self.schema))
        return made


@dataclass(frozen=True, slots=True)
class Labels:
    """One column that names one of 1,000 labels in each row: as a dictionary column, or its codes alone.

    Attributes
    ----------
    codes : bool
        Whether the labels are left out: an int32 column.
    rows : int
        Rows of a batch.
    distinct : int
        Distinct batches, all with the same dictionary.
    """

    codes: bool = False
    rows: int = 100_000
    distinct: int = 32

    @property
    def schema(self) -> pa.Schema:
        """One column ``label``."""
        return pa.schema([("label", pa.int32() if self.codes else pa.dictionary(pa.int32(), pa.string()))])

    def batches(self) -> list[pa.RecordBatch]:
        """Make the batches."""
        rng = np.random.default_rng(0)
        known = pa.array(labels(1000))
        made = []
        for _ in range(self.distinct):
            column = pa.array(rng.integers(len(known), size=self.rows, dtype=np.int32))
            if not self.codes:
                column = pa.DictionaryArray.from_arrays(column, known)
            made.append(pa.record_batch([column], schema=self.schema))
        return made


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a user's file holds: Arrow IPC, Parquet or CSV, found as `shmstore.sources.files` finds it.

    Batches are those that the file gives; one of more than 4 MiB is cut into slices. Of a file with more than
    256 MiB of data, the beginning is taken.

    Attributes
    ----------
    path : str
        The file.

    Raises
    ------
    InputError
        By `schema` and `batches`: it cannot be read, or holds no rows.
    """

    path: str

    @property
    def schema(self) -> pa.Schema:
        """The file's."""
        with open_source(self.path) as source:
            return source.schema

    def batches(self) -> list[pa.RecordBatch]:
        """Read them."""
        made: list[pa.RecordBatch] = []
        nbytes = 0
        with open_source(self.path) as source:
            for batch in source.batches():
                made += _sliced(batch)
                nbytes += batch.nbytes
                if nbytes >= _MOST_DATA:
                    break
        if not made:
            raise InputError(f"{self.path}: has no rows: there is nothing to measure")
        return made


def _sliced(batch: pa.RecordBatch) -> list[pa.RecordBatch]:
    if not batch.num_rows:
        return []
    rows = max(1, batch.num_rows * _LARGEST_BATCH // max(batch.nbytes, _LARGEST_BATCH))
    return [batch.slice(start, rows) for start in range(0, batch.num_rows, rows)]


@functools.lru_cache(maxsize=2)
def made(stream: Stream) -> list[pa.RecordBatch]:
    """Return a stream's batches, made once for all who use them in this process; not to be changed."""
    return stream.batches()


def labels(count: int) -> list[str]:
    """Return so many different words of 5 to 12 letters, the same each time."""
    rng = np.random.default_rng(1)
    words: dict[str, None] = {}
    while len(words) < count:
        letters = rng.integers(ord("a"), ord("z") + 1, size=rng.integers(5, 13), dtype=np.uint8)
        words[letters.tobytes().decode()] = None
    return list(words)


def columns(batch: pa.RecordBatch) -> dict[str, npt.NDArray[Any]]:
    """Return a batch's columns as numpy arrays over its own memory; times as the int64 that they are.

    Raises
    ------
    UnsupportedTypeError
        A column is no array of numbers: text, lists, nulls, …; the message names it.
    """
    return {
        name: _array(name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }


def _array(name: str, column: pa.Array) -> npt.NDArray[Any]:
    if not column.null_count and isinstance(column, pa.FixedShapeTensorArray):
        array: npt.NDArray[Any] = column.to_numpy_ndarray()
        return array
    kind = column.type
    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_temporal(kind)
    if column.null_count or not plain or pa.types.is_interval(kind):
        nulls = " with nulls" if column.null_count else ""
        raise UnsupportedTypeError(
            f"column {name!r} is {kind}{nulls}, which is no array of numbers: leave out what needs one"
        )
    if pa.types.is_temporal(kind):
        column = column.view(pa.int64() if kind.bit_width == 64 else pa.int32())
    array = column.to_numpy()  # raises where it would have to copy
    if not array.flags.c_contiguous:
        raise UnsupportedTypeError(f"column {name!r} is not in one piece: leave out what needs an array")
    return array


def pieces(batch: pa.RecordBatch) -> list[npt.NDArray[np.uint8]]:
    """Return the bytes that bringing a batch anywhere has to move: its columns', or all of an IPC message."""
    try:
        return [array.reshape(-1).view(np.uint8) for array in columns(batch).values()]
    except UnsupportedTypeError:
        return [np.frombuffer(batch.serialize(), np.uint8)]


def batch_bytes(stream: Stream) -> int:
    """Return the bytes of the columns of one batch; of the largest, where they differ."""
    return max(int(batch.nbytes) for batch in made(stream))


def total_bytes(stream: Stream, batches: int) -> int:
    """Return the bytes of the columns of so many batches, recorded round and round."""
    sizes = [int(batch.nbytes) for batch in made(stream)]
    rounds, rest = divmod(batches, len(sizes))
    return rounds * sum(sizes) + sum(sizes[:rest])


def total_rows(stream: Stream, batches: int) -> int:
    """Return the rows of so many batches, recorded round and round."""
    rows = [int(batch.num_rows) for batch in made(stream)]
    rounds, rest = divmod(batches, len(rows))
    return rounds * sum(rows) + sum(rows[:rest])
