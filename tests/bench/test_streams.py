from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from shmstore.bench.streams import (
    Adc,
    Frames,
    Hits,
    Labels,
    Recorded,
    Stream,
    Telemetry,
    Times,
    Words,
    batch_bytes,
    columns,
    pieces,
    total_bytes,
    total_rows,
)
from shmstore.errors import UnsupportedTypeError

STREAMS = [
    Adc(batch_bytes=4096, distinct=3),
    Frames(16, 16, distinct=3),
    Telemetry(rows=7, columns=3, distinct=3),
    Telemetry(rows=7, columns=3, distinct=3, dtype="float32", within=0.02),
    Times(rows=9, distinct=3),
    Words(rows=5, distinct=3),
    Hits(events=21, distinct=3),
    Labels(rows=11, distinct=3),
]


@pytest.mark.parametrize("stream", STREAMS, ids=str)
def test_a_stream_makes_the_same_batches_again(stream: Stream) -> None:
    first, again = stream.batches(), stream.batches()
    assert len(first) == 3
    assert first == again
    assert all(batch.schema.equals(stream.schema) for batch in first)
    assert first[0] != first[1]


@pytest.mark.parametrize("stream", STREAMS, ids=str)
def test_totals_count_round_and_round(stream: Stream) -> None:
    batches = stream.batches()
    assert total_rows(stream, 7) == sum(batches[number % 3].num_rows for number in range(7))
    assert total_bytes(stream, 7) == sum(batches[number % 3].nbytes for number in range(7))
    assert batch_bytes(stream) == max(batch.nbytes for batch in batches)


def test_times_run_on() -> None:
    ticks = np.concatenate([columns(batch)["time"] for batch in Times(rows=100, distinct=3).batches()])
    assert (np.diff(ticks) > 0).all()


def test_readings_turn_back_where_they_are_told_to() -> None:
    made = Telemetry(rows=20_000, columns=1, distinct=2, within=0.5).batches()
    walk = np.concatenate([columns(batch)["reading_0"] for batch in made])
    assert (walk.min(), walk.max()) == pytest.approx((-0.5, 0.5), abs=0.01)
    assert abs(np.diff(walk)).max() < 0.06  # they turn, and do not jump


def test_columns_are_over_the_batch_s_own_memory() -> None:
    batch = Adc(batch_bytes=64).batches()[0]
    array = columns(batch)["adc"]
    assert array.__array_interface__["data"][0] == batch.column(0).buffers()[1].address


@pytest.mark.parametrize(
    "column",
    [pa.array([1, None]), pa.array(["a"]), pa.array([True]), pa.array([[1.0]])],
    ids=lambda column: str(column.type),
)
def test_what_is_no_array_of_numbers_is_refused(column: pa.Array) -> None:
    batch = pa.record_batch([column], names=["odd one"])
    with pytest.raises(UnsupportedTypeError, match="'odd one'"):
        columns(batch)
    assert sum(map(len, pieces(batch))) > 0


def test_recorded_reads_the_file_and_cuts_what_is_large(tmp_path) -> None:
    table = pa.table({"a": np.arange(1_500_000), "b": np.arange(1_500_000) % 7})
    path = tmp_path / "run.arrow"
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
        writer.write_batch(pa.record_batch({"a": [-1], "b": [-1]}))
    stream = Recorded(str(path))
    batches = stream.batches()
    assert stream.schema == table.schema
    assert max(batch.nbytes for batch in batches) <= 4 << 20
    assert pa.Table.from_batches(batches).slice(0, len(table)) == table
    assert batches[-1].to_pylist() == [{"a": -1, "b": -1}]
