"""The data that benchmarks record: small frozen descriptions that make the same batches in every process.

A stream is a handful of distinct batches, recorded round and round. It knows no recorder. No codec here looks
back further than one batch, so recording a batch again costs what a new one would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

MIB = 1 << 20


class Stream(Protocol):
    """What an instrument delivers; picklable, so that a producer process can make it itself."""

    @property
    def schema(self) -> pa.Schema:
        """The schema of every batch."""

    def batches(self) -> list[pa.RecordBatch]:
        """Make the distinct batches, the same each time; all of one size."""


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
    """Float64 columns that wander: slow control readings.

    Attributes
    ----------
    rows, columns : int
        Shape of a batch.
    distinct : int
        Distinct batches.
    """

    rows: int = 100
    columns: int = 4
    distinct: int = 64

    @property
    def schema(self) -> pa.Schema:
        """Columns ``reading_0``, ``reading_1`` and so on."""
        return pa.schema([(f"reading_{number}", pa.float64()) for number in range(self.columns)])

    def batches(self) -> list[pa.RecordBatch]:
        """Make the batches; each column is a random walk over all of them."""
        rng = np.random.default_rng(0)
        walk = rng.normal(0, 0.01, (self.columns, self.distinct * self.rows)).cumsum(axis=1)
        return [
            pa.record_batch([pa.array(part) for part in parts], schema=self.schema)
            for parts in np.split(walk, self.distinct, axis=1)
        ]


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


def labels(count: int) -> list[str]:
    """Return so many different words of 5 to 12 letters, the same each time."""
    rng = np.random.default_rng(1)
    words: dict[str, None] = {}
    while len(words) < count:
        letters = rng.integers(ord("a"), ord("z") + 1, size=rng.integers(5, 13), dtype=np.uint8)
        words[letters.tobytes().decode()] = None
    return list(words)


def columns(batch: pa.RecordBatch) -> dict[str, npt.NDArray[Any]]:
    """Return a batch's columns as numpy arrays over its own memory."""
    return {
        name: column.to_numpy_ndarray() if isinstance(column, pa.FixedShapeTensorArray) else column.to_numpy()
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }


def batch_bytes(stream: Stream) -> int:
    """Return the bytes of one batch's columns."""
    return int(stream.batches()[0].nbytes)
