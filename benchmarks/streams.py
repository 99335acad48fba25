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


def columns(batch: pa.RecordBatch) -> dict[str, npt.NDArray[Any]]:
    """Return a batch's columns as numpy arrays over its own memory."""
    return {
        name: column.to_numpy_ndarray() if isinstance(column, pa.FixedShapeTensorArray) else column.to_numpy()
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }


def batch_bytes(stream: Stream) -> int:
    """Return the bytes of one batch's columns."""
    return sum(array.nbytes for array in columns(stream.batches()[0]).values())
