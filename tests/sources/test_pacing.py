"""Paces: what is due when, without looking at the clock; and that nothing is lost by cutting."""

from __future__ import annotations

import datetime
import itertools
import time
from typing import Any

import pyarrow as pa
import pytest

from shmstore.errors import ConfigError
from shmstore.sources.pacing import BytesPace, ReplayPace, check_time_column, paced, parse_rate, seconds


def batch_of(**columns: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("2x", 2.0),
        ("0.5 x", 0.5),
        ("10×", 10.0),
        ("50MB/s", 50_000_000),
        ("64KiB", 65_536),
        (" 1kB/s ", 1000),
    ],
)
def test_rates(text: str, rate: float) -> None:
    parsed = parse_rate(text)
    assert parsed == rate
    assert type(parsed) is type(rate)


@pytest.mark.parametrize("text", ["", "fast", "0x", "0", "-1MB/s", "5 MB/min", "x", "1.2.3x"])
def test_wrong_rates(text: str) -> None:
    with pytest.raises(ConfigError, match="neither bytes a second"):
        parse_rate(text)


def test_bytes_pace_is_even_and_whole() -> None:
    pace = BytesPace(1_000_000)
    batches = [batch_of(a=pa.array(range(start, start + 50_000), pa.int64())) for start in (0, 50_000)]
    pieces = [piece for batch in batches for piece in pace.pieces(batch)]
    due = [due_s for due_s, _ in pieces]
    assert due == sorted(due)
    assert due[-1] == pytest.approx(0.8)  # 800,000 bytes
    assert max(later - earlier for earlier, later in itertools.pairwise(due)) <= 0.021
    assert pa.Table.from_batches([piece for _, piece in pieces])["a"].to_pylist() == list(range(100_000))


def test_bytes_pace_of_a_row_larger_than_a_piece() -> None:
    pieces = list(BytesPace(1000).pieces(batch_of(a=[b"x" * 5000, b"y" * 5000])))
    assert [piece.num_rows for _, piece in pieces] == [1, 1]
    assert pieces[1][0] > 10


def test_bytes_pace_keeps_an_empty_batch() -> None:
    (piece,) = BytesPace(1000).pieces(batch_of(a=pa.array([], pa.int64())))
    assert piece[1].num_rows == 0


NS = 10**9


@pytest.mark.parametrize(
    ("times", "origin"),
    [
        (pa.array([0, NS, 2 * NS], pa.timestamp("ns", tz="UTC")), 0.0),
        (pa.array([5_000_000, 6_000_000, 7_000_000], pa.timestamp("us")), 5.0),
        (pa.array([7, 8, 9], pa.duration("s")), 7.0),
        (pa.array([1000, 2000, 3000], pa.time32("ms")), 1.0),
        (pa.array([1.5, 2.5, 3.5]), 1.5),
        (pa.array([3, 4, 5], pa.int16()), 3.0),
    ],
)
def test_replay_of_every_clock(times: pa.Array, origin: float) -> None:
    batch = batch_of(when=times)
    assert seconds(batch, "when")[0] == origin
    pieces = list(ReplayPace("when", speed=2.0).pieces(batch))
    assert [due_s for due_s, _ in pieces] == [0.0, 0.5, 1.0]
    assert [piece.num_rows for _, piece in pieces] == [1, 1, 1]


def test_replay_of_dates() -> None:
    days = [datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)]
    pieces = list(ReplayPace("when", speed=86_400).pieces(batch_of(when=days)))
    assert [due_s for due_s, _ in pieces] == pytest.approx([0.0, 1.0])


def test_replay_goes_on_over_batches_and_never_back() -> None:
    pace = ReplayPace("t")
    first = list(pace.pieces(batch_of(t=[10.0, None, 11.0, 10.5])))
    second = list(pace.pieces(batch_of(t=[float("inf"), 10.0, 12.0])))
    due = [due_s for due_s, _ in first + second]
    assert due == [0.0, 1.0, 1.0, 2.0]
    assert sum(piece.num_rows for _, piece in first + second) == 7


def test_replay_of_nothing_but_nulls_is_at_once() -> None:
    (piece,) = ReplayPace("t").pieces(batch_of(t=pa.array([None, None], pa.float64())))
    assert piece[0] == 0.0
    assert piece[1].num_rows == 2


def test_dense_rows_go_together() -> None:
    batch = batch_of(t=[index / 10_000 for index in range(10_000)])
    pieces = list(ReplayPace("t").pieces(batch))
    assert 40 <= len(pieces) <= 60
    assert sum(piece.num_rows for _, piece in pieces) == 10_000


@pytest.mark.parametrize("column", ["nowhere", "text", "twice"])
def test_columns_that_tell_no_time(column: str) -> None:
    names = ["text", "twice", "twice"]
    schema = pa.schema(list(zip(names, [pa.string(), pa.int64(), pa.int64()], strict=True)))
    with pytest.raises(ConfigError, match=column):
        check_time_column(schema, column)


def test_paced_keeps_to_the_clock() -> None:
    start_s = time.monotonic()
    pieces = list(paced([batch_of(t=[0.0, 0.1, 0.2])], ReplayPace("t"), lambda: False))
    assert time.monotonic() - start_s >= 0.2
    assert [piece.num_rows for piece in pieces] == [1, 1, 1]


def test_paced_stops_when_asked() -> None:
    seen: list[pa.RecordBatch] = []
    batches = [batch_of(t=[0.0, 3600.0])]
    for piece in paced(batches, ReplayPace("t"), lambda: bool(seen)):
        seen.append(piece)
    assert len(seen) == 1


def test_without_a_pace_batches_pass_as_they_are() -> None:
    batch = batch_of(t=[1.0])
    assert list(paced([batch, batch], None, lambda: False)) == [batch, batch]
