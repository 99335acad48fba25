"""Loans: rows that are made in the ring itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from processes.rows import SCHEMA, batch

import shmstore

FRAMES = pa.schema(
    [
        ("time", pa.timestamp("ns")),
        ("frame", pa.fixed_shape_tensor(pa.uint16(), (4, 6))),
        ("good", pa.bool_()),
        ("pair", pa.list_(pa.float32(), 2)),
    ]
)


def frames_of(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    return (numbers[:, None, None] * 100 + np.arange(24).reshape(4, 6)).astype(np.uint16)


def fill(loan: shmstore.Loan, first: int) -> None:
    numbers = np.arange(first, first + loan.rows)
    loan["time"][...] = numbers
    loan["frame"][...] = frames_of(numbers)
    loan["good"][...] = numbers % 2 == 0
    loan["pair"] = np.stack([numbers, -numbers], axis=1)


def interrupted(loan: shmstore.Loan) -> None:
    with loan:
        fill(loan, 1000)
        raise KeyboardInterrupt


def check(path: Path, rows: int) -> None:
    table = shmstore.read(path, "x")
    numbers = np.arange(rows)
    assert table.schema.equals(FRAMES)
    assert table["time"].cast(pa.int64()).to_pylist() == numbers.tolist()
    frames = table["frame"].combine_chunks().to_numpy_ndarray()
    assert np.array_equal(frames, frames_of(numbers))
    assert table["good"].to_pylist() == (numbers % 2 == 0).tolist()
    assert table["pair"].to_pylist() == [[number, -number] for number in numbers.tolist()]


def test_what_is_filled_in_is_recorded(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="64KiB") as storage:
        producer = storage.producer("x", FRAMES)
        first = 0
        for sequence, rows in enumerate([1, 64, 100, 0, 7, 300, 300, 300, 300]):
            with producer.loan(rows) as loan:
                assert loan["frame"].shape == (rows, 4, 6)
                assert loan["pair"].shape == (rows, 2)
                fill(loan, first)
            assert loan.sequence == sequence
            first += rows
    check(storage.path, first)


def test_loans_and_puts_take_turns(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="64KiB") as storage:
        producer = storage.producer("x", FRAMES)
        with producer.loan(5) as loan:
            fill(loan, 0)
        producer.put(arrow_rows(5, 5))
        with producer.loan(5) as loan:
            fill(loan, 10)
    check(storage.path, 15)


def arrow_rows(first: int, rows: int) -> pa.RecordBatch:
    numbers = np.arange(first, first + rows)
    columns = [
        pa.array(numbers).cast(pa.timestamp("ns")),
        pa.FixedShapeTensorArray.from_numpy_ndarray(frames_of(numbers)),
        pa.array(numbers % 2 == 0),
        pa.array([[number, -number] for number in numbers.tolist()], pa.list_(pa.float32(), 2)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=FRAMES)


def test_an_exception_gives_the_loan_back_unseen(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="64KiB") as storage:
        producer = storage.producer("x", FRAMES)
        with producer.loan(5) as loan:
            fill(loan, 0)
        used = producer.stats().sealed
        for _ in range(50):  # far more than the ring holds: the space must have come back
            loan = producer.loan(200)
            with pytest.raises(KeyboardInterrupt):
                interrupted(loan)
            assert loan.sequence is None
        assert producer.stats().sealed == used
        with producer.loan(5) as loan:
            fill(loan, 5)
        assert loan.sequence == 1
    check(storage.path, 10)
    assert storage.final_stats.accepted == 10


def test_one_loan_at_a_time(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="64KiB") as storage:
        producer = storage.producer("x", FRAMES)
        with producer.loan(5) as loan:
            with pytest.raises(shmstore.ShmStoreError, match="a loan of 'x' is open: leave its block"):
                producer.loan(1)
            with pytest.raises(shmstore.ShmStoreError, match="a loan of 'x' is open: leave its block"):
                producer.put(arrow_rows(0, 1))
            fill(loan, 0)
    check(storage.path, 5)


def test_what_was_lent_cannot_be_changed_afterwards(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="64KiB") as storage:
        producer = storage.producer("x", FRAMES)
        with producer.loan(5) as loan:
            fill(loan, 0)
            frame = loan["frame"]
        with pytest.raises(ValueError, match="read-only"):
            frame[...] = 0
        with pytest.raises(shmstore.ClosedError, match="given back"):
            loan["frame"]
        del frame
    check(storage.path, 5)


def test_a_column_that_is_not_there(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="64KiB") as storage:
        producer = storage.producer("x", FRAMES)
        with (
            pytest.raises(shmstore.SchemaMismatchError, match="no column 'tim': it has 'time'"),
            producer.loan(5) as loan,
        ):
            loan["tim"] = 0
    assert storage.final_stats.rows_written == 0


def test_a_column_of_strings_cannot_be_lent(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="64KiB") as storage:
        producer = storage.producer("x", SCHEMA)
        with pytest.raises(
            shmstore.UnsupportedTypeError, match=r"column 'label' \(string\).*use put\(\)"
        ) as caught:
            producer.loan(5)
        assert "\n" not in str(caught.value)
        producer.put(batch(1, 0, 5))
    assert storage.final_stats.rows_written == 5


def test_a_loan_without_a_schema_says_what_to_do(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="64KiB") as storage:
        producer = storage.producer("x")
        with pytest.raises(shmstore.ShmStoreError, match=r"give one to storage.producer\(\)"):
            producer.loan(5)
        with pytest.raises(ValueError, match="'x': a loan has 0 rows or more, not -1"):
            producer.loan(-1)
    assert storage.state == "complete"


def test_a_loan_that_is_open_at_the_end_is_given_back(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes="64KiB") as storage:
        producer = storage.producer("x", FRAMES)
        with producer.loan(5) as loan:
            fill(loan, 0)
        loan = producer.loan(5)
        fill(loan, 5)
        storage.close()
        with pytest.raises(shmstore.ClosedError, match="'x'"), loan:
            pass
    check(storage.path, 5)
