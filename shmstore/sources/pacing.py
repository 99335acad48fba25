"""At what pace batches are handed on: so many bytes a second, or as their time column says. No files."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shmstore.errors import ConfigError
from shmstore.settings import size_in_bytes

_SPEED = re.compile(r"([0-9]*\.?[0-9]+) *[x×]", re.IGNORECASE)
#: Rows that are due within this time go together: a put costs microseconds, but not nothing.
_PIECE_S = 0.02
#: Longest sleep before looking again whether to stop, in seconds.
_NAP_S = 0.1
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


class Pace(Protocol):
    """When what is due. An object is good for one run through a source."""

    def pieces(self, batch: pa.RecordBatch) -> Iterator[tuple[float, pa.RecordBatch]]:
        """Yield slices of the batch, each with when it is due, in seconds since the start."""


@dataclass(slots=True)
class BytesPace:
    """So many bytes a second, evenly.

    Attributes
    ----------
    bytes_per_s : float
        The pace; bytes are those of the columns, without compression.
    """

    bytes_per_s: float
    _passed_bytes: int = field(default=0, init=False)

    def pieces(self, batch: pa.RecordBatch) -> Iterator[tuple[float, pa.RecordBatch]]:
        """Yield slices of about 20 ms each."""
        row_bytes = batch.nbytes / max(1, batch.num_rows)
        rows = max(1, int(self.bytes_per_s * _PIECE_S / max(1.0, row_bytes)))
        for start in range(0, max(1, batch.num_rows), rows):
            piece = batch.slice(start, rows)
            self._passed_bytes += piece.nbytes
            yield self._passed_bytes / self.bytes_per_s, piece


@dataclass(slots=True)
class ReplayPace:
    """As fast as it was taken, by a time column, or so many times faster.

    Attributes
    ----------
    column : str
        Name of the time column: a timestamp, date, time or duration, or a number of seconds. A time that goes
        back, or is null, is due at once.
    speed : float
        2 is twice as fast.
    """

    column: str
    speed: float = 1.0
    _first_s: float | None = field(default=None, init=False)
    _last_due_s: float = field(default=0.0, init=False)

    def pieces(self, batch: pa.RecordBatch) -> Iterator[tuple[float, pa.RecordBatch]]:
        """Yield slices of at most 20 ms each, due when their last row is.

        Raises
        ------
        ConfigError
            There is no such column, or it holds no times.
        """
        if batch.num_rows == 0:
            return
        times_s = seconds(batch, self.column)
        times_s[~np.isfinite(times_s)] = np.nan
        known = times_s[~np.isnan(times_s)]
        if self._first_s is None and known.size:
            self._first_s = float(known[0])
        due_s = np.fmax.accumulate((times_s - (self._first_s or 0.0)) / self.speed)
        due_s = np.fmax(due_s, self._last_due_s)
        self._last_due_s = float(due_s[-1])
        ends = [*(np.flatnonzero(np.diff(np.floor(due_s / _PIECE_S))) + 1).tolist(), batch.num_rows]
        start = 0
        for end in ends:
            yield float(due_s[end - 1]), batch.slice(start, end - start)
            start = end


def parse_rate(text: str) -> float | int:
    """Return a speed (a float) for ``"2x"``, or bytes a second (an int) for ``"50MB/s"`` and ``"50MB"``.

    Raises
    ------
    ConfigError
        It is neither, or not above zero.

    Examples
    --------
    >>> parse_rate("2x"), parse_rate("50MB/s"), parse_rate("1.5kB")
    (2.0, 50000000, 1500)
    """
    found = _SPEED.fullmatch(text.strip())
    try:
        rate = float(found[1]) if found else size_in_bytes(text.strip().removesuffix("/s"))
    except ValueError:
        rate = 0
    if rate <= 0:
        raise ConfigError(
            f"rate {text!r} is neither bytes a second such as '50MB/s' nor a speed such as '2x'"
        )
    return rate


def seconds(batch: pa.RecordBatch, column: str) -> np.ndarray:
    """Return a time column in seconds, float64 of shape ``(rows,)``, NaN for null.

    The origin is that of the type (1970 for timestamps), and float64 keeps a timestamp of today to 0.3 µs.

    Raises
    ------
    ConfigError
        There is no such column, or it holds no times.
    """
    check_time_column(batch.schema, column)
    values: Any = batch.column(batch.schema.get_field_index(column))
    type_ = values.type
    scale = _ticks_per_second(type_)
    if pa.types.is_temporal(type_):
        values = pc.cast(values, pa.int32() if type_.bit_width == 32 else pa.int64())
    ticks: np.ndarray = pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return ticks / scale


def check_time_column(schema: pa.Schema, column: str) -> None:
    """Raise `ConfigError` unless the schema has exactly one column of that name and it can tell the time."""
    if len(schema.get_all_field_indices(column)) != 1:
        found = ", ".join(repr(name) for name in schema.names[:8]) or "none"
        raise ConfigError(
            f"there is no single column {column!r} to take the time from: the columns are {found}"
        )
    type_ = schema.field(column).type
    numeric = pa.types.is_integer(type_) or pa.types.is_floating(type_)
    if not numeric and not (pa.types.is_temporal(type_) and not pa.types.is_interval(type_)):
        raise ConfigError(
            f"column {column!r} ({type_}) tells no time: name a timestamp, or a number of seconds"
        )


def paced(
    batches: Iterable[pa.RecordBatch], pace: Pace | None, stopped: Callable[[], bool]
) -> Iterator[pa.RecordBatch]:
    """Yield the batches, or slices of them, no earlier than they are due; end once ``stopped()`` is true.

    Blocks between them. The clock starts with the first batch.
    """
    start_s: float | None = None
    for batch in batches:
        for due_s, piece in pace.pieces(batch) if pace else ((0.0, batch),):
            start_s = time.monotonic() if start_s is None else start_s
            while (ahead_s := start_s + due_s - time.monotonic()) > 0 and not stopped():
                time.sleep(min(ahead_s, _NAP_S))
            if stopped():
                return
            yield piece


def _ticks_per_second(type_: pa.DataType) -> float:
    if pa.types.is_date32(type_):
        return 1 / 86_400
    if pa.types.is_date64(type_):
        return 1_000
    return _PER_SECOND[type_.unit] if pa.types.is_temporal(type_) else 1
