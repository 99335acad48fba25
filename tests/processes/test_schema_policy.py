"""Batches of another schema, recorded for real: refused, taken into one schema, or given their own group."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from processes.ledger import check_instrument
from processes.rows import SCHEMA, batch

import shmstore
from shmstore.evolution import history_from_json

FIRST = pa.schema([("n", pa.int16()), ("s", pa.string())], metadata={"by": "first"})


def rows_of(schema: pa.Schema, *rows: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=schema)


def numbered(first: int, last: int) -> pa.RecordBatch:
    return rows_of(FIRST, *({"n": n, "s": str(n)} for n in range(first, last)))


def check_accounting(storage: shmstore.HDF5Storage, *, state: str = "complete") -> None:
    """Check that nothing is unaccounted for, as the file and the storage say."""
    stats = storage.final_stats
    assert stats
    assert stats.accepted == stats.committed + stats.dropped + stats.rejected
    with shmstore.open(storage.path) as recording:
        assert recording.state == state
        assert recording.accounting
        assert recording.accounting["ok"] == (state == "complete")


# -- strict ----------------------------------------------------------------------------------------------


def test_strict_refuses_and_says_the_first_difference(output_dir: Path) -> None:
    wider = FIRST.set(0, pa.field("n", pa.int64()))
    with shmstore.HDF5Storage(output_dir=output_dir) as storage:
        one, two = storage.producer("x"), storage.producer("x")
        one.put(numbered(0, 3))
        for attempt in (
            lambda: one.put(rows_of(wider, {"n": 1})),
            lambda: two.put(rows_of(wider, {"n": 1})),
            lambda: storage.producer("x", wider),
        ):
            with pytest.raises(
                shmstore.SchemaMismatchError, match=r"'x'.*'n' is int64, expected int16"
            ) as caught:
                attempt()
            assert "schema_policy to 'evolve' or 'new'" in str(caught.value)
            assert "\n" not in str(caught.value)
        two.put(numbered(3, 5))
        assert (one.stats().rejected, two.stats().rejected) == (1, 1)
    check_accounting(storage)
    table = shmstore.read(storage.path, "x")
    assert table.schema.equals(FIRST, check_metadata=True)
    assert sorted(table["n"].to_pylist()) == list(range(5))


# -- evolve ----------------------------------------------------------------------------------------------


def test_evolve_makes_one_schema_of_all(output_dir: Path) -> None:
    wider = pa.schema([("s", pa.string()), ("n", pa.int32()), ("x", pa.float32())])
    listed = pa.schema([("n", pa.int8()), ("l", pa.list_(pa.string())), ("x", pa.float64())])
    with shmstore.HDF5Storage(output_dir=output_dir, schema_policy="evolve") as storage:
        producer = storage.producer("x", FIRST)
        producer.put(numbered(0, 4))
        producer.put(rows_of(wider, {"s": "w", "n": 70_000, "x": 0.5}))
        producer.put(numbered(5, 6))
        producer.put(
            rows_of(listed, {"n": -1, "l": ["a", None], "x": 1e300}, {"n": None, "l": None, "x": None})
        )
        producer.put(rows_of(wider, {"s": None, "n": 8, "x": 0.25}))
        expected_schema = pa.schema(
            [("n", pa.int32()), ("s", pa.string()), ("x", pa.float64()), ("l", pa.list_(pa.string()))],
            metadata={"by": "first"},
        )
        with pytest.raises(shmstore.SchemaMismatchError, match=r"'x'.*'s'.*'new'"):
            producer.put(rows_of(pa.schema([("s", pa.int8())]), {"s": 1}))
        producer.put(numbered(9, 10))  # the refusal changed nothing
    check_accounting(storage)
    assert storage.final_stats.rejected == 1
    table = shmstore.read(storage.path, "x")
    assert table.schema.equals(expected_schema, check_metadata=True)
    assert table.to_pylist() == [
        *({"n": n, "s": str(n), "x": None, "l": None} for n in range(4)),
        {"n": 70_000, "s": "w", "x": 0.5, "l": None},
        {"n": 5, "s": "5", "x": None, "l": None},
        {"n": -1, "s": None, "x": 1e300, "l": ["a", None]},
        {"n": None, "s": None, "x": None, "l": None},
        {"n": 8, "s": None, "x": 0.25, "l": None},
        {"n": 9, "s": "9", "x": None, "l": None},
    ]
    with h5py.File(storage.path) as file:
        assert file["x/n"][:].tolist() == [0, 1, 2, 3, 70_000, 5, -1, 0, 8, 9]
        history = history_from_json(file["x/_arrow/history"].asstr()[()])
        assert [past.row for past in history] == [4, 6]
        assert [len(past.schema["fields"]) for past in history] == [2, 3]


def test_evolve_shows_plain_readers_the_rows_of_before(output_dir: Path) -> None:
    """Enough rows for whole chunks, compressed, before and after; and flushed in between."""
    with shmstore.HDF5Storage(output_dir=output_dir, schema_policy="evolve", compression="gzip") as storage:
        producer = storage.producer("x", chunk_rows=1000)
        numbers = np.arange(5500, dtype=np.int16)
        producer.put(pa.record_batch({"n": pa.array(numbers)}))
        storage.flush()
        producer.put(
            pa.record_batch({"n": pa.array(numbers.astype(np.int64) + 2**40), "y": pa.array(numbers / 2)})
        )
        producer.put(pa.record_batch({"n": pa.array(numbers)}))
    check_accounting(storage)
    with h5py.File(storage.path) as file:
        expected = np.concatenate([numbers, numbers.astype(np.int64) + 2**40, numbers])
        np.testing.assert_array_equal(file["x/n"][:], expected)
        halves = file["x/y"][:]
        np.testing.assert_array_equal(halves[5500:11000], numbers / 2)
        assert np.isnan(halves[:5500]).all()
        assert np.isnan(halves[11000:]).all()
        assert file["x"].attrs["NROWS"] == 16_500
    table = shmstore.read(storage.path, "x")
    assert table["n"].null_count == 0
    assert table["y"].null_count == 11_000


def test_evolve_with_two_producers_of_different_schemas(output_dir: Path) -> None:
    left = pa.schema([pa.field("who", pa.int8(), nullable=True), ("left", pa.int16())])
    right = pa.schema([("right", pa.string()), ("who", pa.int32())])
    with shmstore.HDF5Storage(output_dir=output_dir, schema_policy="evolve") as storage:
        one, two = storage.producer("x", left), storage.producer("x", right)

        def feed(producer: shmstore.Producer, schema: pa.Schema, who: int, other: str) -> None:
            for sequence in range(50):
                value = sequence if schema is left else str(sequence)
                producer.put(rows_of(schema, {"who": who, other: value}))

        threads = [
            threading.Thread(target=feed, args=(one, left, 1, "left")),
            threading.Thread(target=feed, args=(two, right, 2, "right")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert one.schema == left  # each goes on with its own
        assert two.schema == right
    check_accounting(storage)
    table = shmstore.read(storage.path, "x")
    assert table.schema == pa.schema([("who", pa.int32()), ("left", pa.int16()), ("right", pa.string())])
    rows = table.to_pylist()
    assert [row["left"] for row in rows if row["who"] == 1] == list(range(50))
    assert [row["right"] for row in rows if row["who"] == 2] == [str(number) for number in range(50)]
    assert all((row["left"] is None) == (row["who"] == 2) for row in rows)


def test_loans_go_on_after_an_evolution(output_dir: Path) -> None:
    frames = pa.schema([("frame", pa.fixed_shape_tensor(pa.uint16(), [2, 3])), ("t", pa.timestamp("us"))])
    with shmstore.HDF5Storage(output_dir=output_dir, schema_policy="evolve") as storage:
        camera, other = storage.producer("x", frames), storage.producer("x")

        def lend(first: int) -> None:
            with camera.loan(2) as loan:
                loan["frame"][...] = np.arange(12).reshape(2, 2, 3) + first
                loan["t"][...] = [first, first + 1]

        lend(0)
        storage.flush()
        other.put(pa.record_batch({"gain": pa.array([4, 5], pa.int8())}))
        storage.flush()
        lend(100)
        camera.put(
            pa.record_batch({"gain": pa.array([6], pa.int16()), "t": pa.array([7], pa.timestamp("us"))})
        )
        # It follows what was put last.
        with pytest.raises(shmstore.SchemaMismatchError, match="'frame'"), camera.loan(1) as loan:
            loan["frame"]
        with camera.loan(1) as loan:
            loan["gain"][...] = 8
            loan["t"][...] = 9
    check_accounting(storage)
    table = shmstore.read(storage.path, "x")
    assert table["gain"].type == pa.int16()
    assert table["gain"].to_pylist() == [None, None, 4, 5, None, None, 6, 8]
    assert table["t"].cast(pa.int64()).to_pylist() == [0, 1, None, None, 100, 101, 7, 9]
    frame = table["frame"].combine_chunks()
    assert frame.is_null().to_pylist() == [False, False, True, True, False, False, True, True]
    with h5py.File(storage.path) as file:
        assert file["x/frame"].shape == (8, 2, 3)
        assert file["x/frame"][5].tolist() == [[106, 107, 108], [109, 110, 111]]


@pytest.mark.parametrize("strings", ["vlen", "packed"])
def test_a_live_reader_sees_every_row_as_it_was_put_during_evolutions(output_dir: Path, strings: str) -> None:
    steps = 8
    names = [f"c{step}" for step in range(steps)]
    with shmstore.HDF5Storage(
        output_dir=output_dir, schema_policy="evolve", strings=strings, auto_flush_interval_secs=0.1
    ) as storage:
        producer = storage.producer("x")
        wrong: list[Any] = []
        done = threading.Event()

        def follow() -> None:
            try:
                with shmstore.open(storage.path) as recording:
                    while not done.is_set():
                        if (
                            "x" in recording.instruments
                            or recording.refresh()
                            or "x" in recording.instruments
                        ):
                            look(recording["x"])
            except Exception as error:  # noqa: BLE001  reported below
                wrong.append(error)

        def look(x: shmstore.Instrument) -> None:
            if not x.num_rows:
                return
            for row, found in enumerate(x.read().to_pylist()):
                step = row // 20
                expected = {"n": row} | {name: f"{row}" if name == f"c{step}" else None for name in names}
                if any(expected[name] != value for name, value in found.items()):
                    wrong.append(found)

        thread = threading.Thread(target=follow)
        thread.start()
        for step in range(steps):
            type_ = pa.int8() if step < 3 else pa.int64()
            for row in range(20 * step, 20 * step + 20):
                columns = {"n": pa.array([row], type_), f"c{step}": pa.array([str(row)])}
                producer.put(pa.record_batch(columns))
            storage.flush()
        done.set()
        thread.join()
        assert not wrong, wrong[:1]
    check_accounting(storage)
    assert shmstore.read(storage.path, "x").num_rows == 20 * steps


def test_a_reader_that_was_open_before_sees_the_schema_evolve(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, schema_policy="evolve") as storage:
        producer = storage.producer("x")
        producer.put(pa.record_batch({"n": pa.array([1], pa.int8())}))
        storage.flush()
        with shmstore.open(storage.path) as recording:
            x = recording["x"]
            assert x.schema == pa.schema([("n", pa.int8())])
            producer.put(pa.record_batch({"n": pa.array([1000], pa.int16()), "s": pa.array(["a"])}))
            storage.flush()
            assert x.schema == pa.schema([("n", pa.int16()), ("s", pa.string())])
            assert x.read().to_pylist() == [{"n": 1, "s": None}, {"n": 1000, "s": "a"}]


# -- new -------------------------------------------------------------------------------------------------


def test_new_gives_each_schema_a_group_of_its_own(output_dir: Path) -> None:
    other = pa.schema([("n", pa.string())])
    with shmstore.HDF5Storage(output_dir=output_dir, schema_policy="new") as storage:
        storage.set_instrument_metadata("x", "gain", 4)
        one, two = storage.producer("x", FIRST), storage.producer("x", other)
        for round_ in range(3):
            one.put(numbered(round_, round_ + 1))
            two.put(rows_of(other, {"n": f"two {round_}"}))
            one.put(rows_of(other, {"n": f"one {round_}"}))
        two.put(rows_of(pa.schema([("z", pa.bool_())]), {"z": True}))
        with pytest.raises(shmstore.InvalidValueError, match=r"'x~2' is taken"):
            storage.producer("x~2", other)
        storage.flush()
        stats = storage.stats()
        assert (stats.accepted, stats.committed, stats.rows_written) == (10, 10, 10)
    check_accounting(storage)
    with shmstore.open(storage.path) as recording:
        assert recording.instruments == ["x", "x~2", "x~3"]
        assert recording["x"].read().equals(pa.Table.from_batches([numbered(0, 3)]), check_metadata=True)
        found = recording["x~2"].read()["n"].to_pylist()
        assert [value for value in found if value.startswith("one")] == [
            f"one {number}" for number in range(3)
        ]
        assert [value for value in found if value.startswith("two")] == [
            f"two {number}" for number in range(3)
        ]
        assert recording["x~3"].read().to_pylist() == [{"z": True}]
        assert recording["x"].metadata == {"gain": 4}
    with h5py.File(storage.path) as file:
        assert file["x~2"].attrs["continues"] == "x"
        assert file["x~2"].attrs["NROWS"] == 6


def test_policies_hold_per_instrument(output_dir: Path) -> None:
    instruments = {"a": {"schema_policy": "new"}, "b": {"schema_policy": "evolve"}}
    wider = pa.record_batch({"n": pa.array([1]), "m": pa.array([2])})
    with shmstore.HDF5Storage(output_dir=output_dir, instruments=instruments) as storage:
        for name in ("a", "b", "c"):
            storage.write_batch(name, pa.record_batch({"n": pa.array([0])}))
        storage.write_batch("a", wider)
        storage.write_batch("b", wider)
        with pytest.raises(shmstore.SchemaMismatchError, match="'c'"):
            storage.write_batch("c", wider)
    with shmstore.open(storage.path) as recording:
        assert recording.instruments == ["a", "b", "c", "a~2"]
        assert [recording[name].num_rows for name in recording] == [1, 2, 1, 1]


# -- validate --------------------------------------------------------------------------------------------


def test_full_validation_refuses_what_the_schema_forbids(output_dir: Path) -> None:
    strict = pa.schema(
        [
            pa.field("n", pa.int8(), nullable=False),
            ("s", pa.struct([pa.field("x", pa.int8(), nullable=False)])),
        ]
    )
    with shmstore.HDF5Storage(output_dir=output_dir) as storage:
        careful = storage.producer("careful", strict, validate="full")
        careful.put(rows_of(strict, {"n": 1, "s": {"x": 1}}, {"n": 2, "s": None}))
        for column, values in (
            ("n", [pa.array([1, None], pa.int8()), pa.array([None, None], strict.types[1])]),
            ("s", [pa.array([1, 2], pa.int8()), pa.array([{"x": None}, None], strict.types[1])]),
        ):
            broken = pa.RecordBatch.from_arrays(values, schema=strict)
            with pytest.raises(
                shmstore.InvalidValueError, match=f"'careful'.*column '{column}'.*not null"
            ) as caught:
                careful.put(broken)
            assert "\n" not in str(caught.value)
        assert (careful.stats().rejected, careful.stats().sealed) == (4, 2)
    check_accounting(storage)
    assert shmstore.read(storage.path, "careful")["n"].to_pylist() == [1, 2]


def test_a_refused_batch_leaves_nothing_behind(output_dir: Path) -> None:
    """Neither rows nor bytes of the ring, nor a column, nor a word in the history."""
    with shmstore.HDF5Storage(output_dir=output_dir, schema_policy="evolve", ring_bytes="1MiB") as storage:
        producer = storage.producer("x", SCHEMA)
        producer.put(batch(1, 0, 10))
        storage.flush()
        before = (producer.stats().ring_bytes_used, producer.stats().sealed_bytes)
        odd = batch(1, 1, 10).append_column("odd", pa.array(["a\0b"] * 10))
        with pytest.raises(shmstore.InvalidValueError, match="NUL"):
            producer.put(odd)
        new = pa.field("new", pa.int8(), nullable=False)
        with pytest.raises(shmstore.SchemaMismatchError, match=r"'x'.*'new' is new and declared not null"):
            producer.put(batch(1, 1, 10).append_column(new, pa.array([1] * 10, pa.int8())))
        assert (producer.stats().ring_bytes_used, producer.stats().sealed_bytes) == before
        assert producer.stats().rejected == 20
        producer.put(batch(1, 1, 10))
    check_accounting(storage)
    with shmstore.open(storage.path) as recording:
        names = recording["x"].schema.names
        assert names[: len(SCHEMA)] == SCHEMA.names
        assert "new" not in names
    with h5py.File(storage.path) as file:
        assert "new" not in file["x"]
        if "_arrow/history" in file["x"]:
            assert len(json.loads(file["x/_arrow/history"].asstr()[()])) == 1


def test_a_strict_recording_says_nothing_of_a_history(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir) as storage:
        storage.write_batch("x", batch(1, 0, 10))
    with shmstore.open(storage.path) as recording:
        check_instrument(recording["x"], {1: [10]})
    with h5py.File(storage.path) as file:
        assert "history" not in file["x/_arrow"]
