"""Recording from a process that is no relative of the owner, and what `write_batch` takes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from processes.ledger import check_instrument
from processes.programs import run_script
from processes.rows import SCHEMA, batch, sizes

import shmstore

STRANGER = """
import sys
import shmstore
from processes.rows import SCHEMA, batch, sizes

with shmstore.connect(sys.argv[1]) as client:
    producer = client.producer("x", SCHEMA)
    for sequence, rows in enumerate(sizes(7, 0, 20, 50)):
        producer.put(batch(7, sequence, int(rows)))
    client.write_batch("y", batch(7, 0, 5))
    client.set_metadata("stranger", [1, 2])
    client.set_instrument_metadata("x", "gain", 2.5)
    client.flush()
    counts = client.stats().instruments["x"]
    assert counts.accepted == counts.committed == 30 + sum(sizes(7, 0, 20, 50)), counts
    print(client.path)
"""

STRANGER_THAT_LEAVES = """
import os, sys
import shmstore
from processes.rows import batch

client = shmstore.connect(sys.argv[1])
client.write_batch("x", batch(1, 0, 10))
os._exit(3)
"""


class ArrayCarrier:
    """What another library's record batch looks like."""

    def __init__(self, held: pa.RecordBatch) -> None:
        self._held = held

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return self._held.__arrow_c_array__(requested_schema)


class StreamCarrier:
    """What another library's table looks like."""

    def __init__(self, *held: pa.RecordBatch) -> None:
        self._held = pa.Table.from_batches(held)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._held.__arrow_c_stream__(requested_schema)


def ipc(*batches: pa.RecordBatch) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, SCHEMA) as stream:
        for each in batches:
            stream.write_batch(each)
    return sink.getvalue()


def test_a_stranger_records_into_the_same_file(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        storage.write_batch("x", batch(1, 0, 30))
        printed = run_script(STRANGER, output_dir, storage.name)
        assert Path(printed.strip()) == storage.path
        storage.write_batch("x", batch(1, 1, 30))
    with shmstore.open(storage.path) as recording:
        assert recording.metadata == {"stranger": [1, 2]}
        assert recording["x"].metadata == {"gain": 2.5}
        check_instrument(recording["x"], {1: [30, 30], 7: sizes(7, 0, 20, 50)})
        assert recording["y"].num_rows == 5


def test_a_stranger_that_leaves_without_a_word_loses_nothing(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        run_script(STRANGER_THAT_LEAVES, output_dir, storage.name, code=3)
        storage.write_batch("x", batch(2, 0, 10))
    with shmstore.open(storage.path) as recording:
        check_instrument(recording["x"], {1: [10], 2: [10]})


@pytest.mark.parametrize(
    ("name", "error"),
    [("nobody", shmstore.StorageError), ("../x", shmstore.ConfigError), ("", shmstore.ConfigError)],
)
def test_a_wrong_name_is_an_error_of_one_line(name: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"its recording has ended, or never began|is not plain") as caught:
        shmstore.connect(name)
    assert "\n" not in str(caught.value)


def test_the_name_of_an_ended_recording_is_an_error(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        name = storage.name
    with pytest.raises(shmstore.StorageError, match="has ended"):
        shmstore.connect(name)


def test_whatever_carries_arrow_data_is_recorded(output_dir: Path) -> None:
    parts = [batch(1, sequence, 3 + sequence) for sequence in range(12)]
    table = pa.Table.from_batches(parts[1:3])
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        storage.write_batch("x", parts[0])
        storage.write_batch("x", table)
        storage.write_batch("x", ArrayCarrier(parts[3]))
        storage.write_batch("x", StreamCarrier(*parts[4:6]))
        storage.write_batch("x", ipc(*parts[6:8]))
        storage.write_batch("x", memoryview(ipc(parts[8])))
        storage.write_batch("x", pa.py_buffer(ipc(parts[9])))
        storage.write_batch("x", pa.RecordBatchReader.from_batches(SCHEMA, parts[10:]))
    with shmstore.open(storage.path) as recording:
        assert recording["x"].read().equals(pa.Table.from_batches(parts))


def test_two_batches_with_rows_of_a_parent_are_recorded_without_it(output_dir: Path) -> None:
    whole = batch(1, 0, 100)
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        storage.write_batch("x", whole.slice(0, 33))
        storage.write_batch("x", whole.slice(33))
    with shmstore.open(storage.path) as recording:
        assert recording["x"].read().equals(pa.Table.from_batches([whole]))


def test_garbage_is_an_error_of_one_line_that_names_the_instrument(output_dir: Path) -> None:
    garbage: list[tuple[Any, type[Exception]]] = [
        (b"", ValueError),
        (b"no Arrow at all, but of some length", ValueError),
        (b"\xff" * 100, ValueError),
        (ipc(batch(1, 0, 50))[:40], ValueError),
        ("text", TypeError),
        (None, TypeError),
        (42, TypeError),
    ]
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        for sequence, (data, error) in enumerate(garbage):
            storage.write_batch("x", batch(1, sequence, 5))
            with pytest.raises(error, match="'x'") as caught:
                storage.write_batch("x", data)
            assert "\n" not in str(caught.value)
    with shmstore.open(storage.path) as recording:
        check_instrument(recording["x"], {1: [5] * len(garbage)})


def test_a_stream_cut_in_half_is_an_error_and_what_came_before_is_recorded(output_dir: Path) -> None:
    parts = [batch(1, sequence, 500) for sequence in range(8)]
    data = ipc(*parts)
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="1MiB") as storage:
        with pytest.raises(ValueError, match="'x': the bytes are no whole Arrow IPC stream") as caught:
            storage.write_batch("x", data[: len(data) // 2])
        assert "\n" not in str(caught.value)
    with shmstore.open(storage.path) as recording:
        found = recording["x"].num_rows
        assert found in {500 * count for count in range(1, 5)}
        check_instrument(recording["x"], {1: [500] * (found // 500)})
        assert recording.accounting
        assert recording.accounting["ok"]
