"""A recording of mixed columns in the tools that people analyse with: each shows the values that were put."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import h5py
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import xarray as xr

import shmstore

ROWS, SPLIT = 60, 31
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
POINT = pa.struct([("x", pa.int32()), ("label", pa.string())])
#: What analysis tools of every kind understand.
MIXED = pa.schema(
    [
        ("id", pa.int64()),
        ("time", pa.timestamp("us", "UTC")),
        ("volts", pa.float64()),
        ("count", pa.int32()),
        ("on", pa.bool_()),
        ("note", pa.string()),
        ("word", pa.string()),
        ("hits", pa.list_(pa.float32())),
        ("tags", pa.list_(pa.string())),
        ("point", POINT),
        ("state", pa.dictionary(pa.int32(), pa.string())),
        ("price", pa.decimal128(9, 2)),
    ]
)
#: What netCDF tools understand.
NUMERIC = pa.schema(
    [
        ("time", pa.timestamp("ns", "UTC")),
        ("day", pa.date32()),
        ("took", pa.duration("ms")),
        ("volts", pa.float32()),
        ("count", pa.uint16()),
        ("on", pa.bool_()),
        ("frame", pa.fixed_shape_tensor(pa.uint16(), [2, 3])),
    ]
)
STATES = ["idle", "running", "fault"]


def moment(row: int) -> datetime:
    return START + timedelta(milliseconds=row)


def mixed_row(row: int) -> dict[str, Any]:
    """Return what stands in a row; one in ten of most columns is null."""
    return {
        "id": row,
        "time": None if row % 10 == 3 else moment(row),
        "volts": None if row % 10 == 5 else row / 4,
        "count": None if row % 10 == 7 else -row,
        "on": row % 2 == 0,
        "note": None if row % 10 == 1 else f"row {row}" + " ±" * (row % 5 == 0),
        "word": None if row % 10 == 2 else "µs" * (row % 4),
        "hits": None if row % 10 == 4 else [row + part / 8 for part in range(row % 3)],
        "tags": [None if part == 1 else f"tag {part}" for part in range(row % 4)],
        "point": None if row % 10 == 6 else {"x": row * row, "label": f"p{row}"},
        "state": None if row % 10 == 8 else STATES[row % 3],
        "price": None if row % 10 == 9 else Decimal(row * 125).scaleb(-2) - 3,
    }


def numeric_batch(start: int, stop: int) -> pa.RecordBatch:
    rows = range(start, stop)
    frames = np.repeat(np.arange(start, stop, dtype=np.uint16), 6).reshape(-1, 2, 3)
    frames[:, 1, 2] += 1000
    columns = [
        pa.array([None if row % 10 == 3 else moment(row) for row in rows], NUMERIC.field("time").type),
        pa.array([date(2026, 3, 1) + timedelta(days=row) for row in rows]),
        pa.array([None if row % 10 == 4 else timedelta(milliseconds=row) for row in rows], pa.duration("ms")),
        pa.array([None if row % 10 == 5 else row / 4 for row in rows], pa.float32()),
        pa.array([None if row % 10 == 7 else row for row in rows], pa.uint16()),
        pa.array([row % 2 == 0 for row in rows]),
        pa.FixedShapeTensorArray.from_numpy_ndarray(frames),
    ]
    return pa.record_batch(columns, schema=NUMERIC)


#: What was put into the mixed instrument, by column.
ALL: dict[str, list[Any]] = {name: [mixed_row(row)[name] for row in range(ROWS)] for name in MIXED.names}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished file with both, each put in two batches; the second has its labels in another order."""
    with shmstore.HDF5Storage(output_dir=tmp_path_factory.mktemp("tables")) as storage:
        hall = storage.producer("hall", MIXED, columns={"word": {"strings": "packed"}})
        adc = storage.producer("adc", NUMERIC)
        for start, stop in ((0, SPLIT), (SPLIT, ROWS)):
            rows = [mixed_row(row) for row in range(start, stop)]
            hall.put(pa.RecordBatch.from_pylist(rows, MIXED))
            adc.put(numeric_batch(start, stop))
            storage.flush()
    return storage.path


@pytest.fixture
def recording(path: Path) -> Iterator[shmstore.Recording]:
    with shmstore.open(path) as recording:
        yield recording


# -- HDF5's own tools ----------------------------------------------------------------------------------------


def dump(path: Path, dataset: str, start: int, count: int) -> list[str]:
    """Return the values that h5dump shows, as text; anything on standard error is a failure."""
    command = ["h5dump", "-y", "-w", "1", "-d", f"/hall/{dataset}", "-s", str(start), "-c", str(count), path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.strip().rstrip(",") for line in done.stdout.split("DATA {", 1)[1].splitlines()[1:]]
    return list(filter(None, lines[: lines.index("}")]))


def test_h5dump_shows_flat_columns(path: Path) -> None:
    assert dump(path, "id", 41, 3) == ["41", "42", "43"]
    assert dump(path, "volts", 5, 2) == ["nan", "1.5"]  # null, 6 / 4
    assert dump(path, "count", 7, 2) == ["0", "-8"]  # null, -8
    assert dump(path, "on", 30, 2) == ["TRUE", "FALSE"]
    assert dump(path, "note", 11, 2) == ['""', '"row 12"']  # null
    prices = [text.replace("\\000", "") for text in dump(path, "price", 24, 3)]  # shown with their padding
    assert prices == ['"27.00"', '"28.25"', '"29.50"']


def test_h5dump_shows_what_lies_below_a_column(path: Path) -> None:
    assert dump(path, "hits/OFFSETS", 0, 6) == ["0", "0", "1", "3", "3", "3"]
    assert dump(path, "hits/VALUES", 0, 3) == ["1", "2", "2.125"]
    assert dump(path, "point/x", 5, 3) == ["25", "0", "49"]  # the second is null
    assert dump(path, "point/label", 59, 1) == ['"p59"']
    assert dump(path, "CATEGORIES/state", 0, 3) == ['"idle"', '"running"', '"fault"']


# -- plain h5py ----------------------------------------------------------------------------------------------


def test_h5py_reads_strings(path: Path) -> None:
    with h5py.File(path) as file:
        note, word = file["hall/note"], file["hall/word"]
        assert note.asstr()[:].tolist() == [text or "" for text in ALL["note"]]
        ends = word["OFFSETS"][:]
        chars = word["CHARS"][:].tobytes()
        texts = [chars[start:stop].decode() for start, stop in itertools.pairwise(ends)]
        assert [text if ok else None for text, ok in zip(texts, word["MASK"][:], strict=True)] == ALL["word"]


def test_h5py_reads_lists(path: Path) -> None:
    with h5py.File(path) as file:
        hits = file["hall/hits"]
        ends, values, mask = hits["OFFSETS"][:], hits["VALUES"][:], hits["MASK"][:]
        lists = [values[start:stop].tolist() for start, stop in itertools.pairwise(ends)]
        assert [items if ok else None for items, ok in zip(lists, mask, strict=True)] == ALL["hits"]


def test_h5py_finds_the_labels_of_a_dictionary_column(path: Path) -> None:
    with h5py.File(path) as file:
        state = file["hall/state"]
        codes, labels = state[:], file[state.attrs["CATEGORIES"]].asstr()[:]
        assert [None if code < 0 else labels[code] for code in codes] == ALL["state"]


def test_h5py_finds_columns_and_rows_by_the_attributes_of_the_table(path: Path) -> None:
    with h5py.File(path) as file:
        hall = file["hall"]
        assert hall.attrs["CLASS"] == b"COLUMN_TABLE"
        assert [name.decode() for name in hall.attrs["column-order"]] == MIXED.names
        assert hall.attrs["NROWS"] == ROWS


# -- tables in memory ----------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Return a value that pandas gives as plain Python's."""
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return None if pd.isna(value) else value


def test_pandas_takes_every_column(recording: shmstore.Recording) -> None:
    frame = pd.DataFrame.from_arrow(recording["hall"])
    assert {name: [plain(value) for value in frame[name]] for name in frame} == ALL


def test_pandas_takes_images(recording: shmstore.Recording) -> None:
    frames = np.stack(pd.DataFrame.from_arrow(recording["adc"])["frame"].to_list()).reshape(ROWS, 2, 3)
    assert frames[:, 0, 0].tolist() == list(range(ROWS))
    assert frames[:, 1, 2].tolist() == list(range(1000, 1000 + ROWS))


def test_polars_takes_every_column(recording: shmstore.Recording) -> None:
    assert pl.DataFrame(recording["hall"]).to_dict(as_series=False) == ALL


def test_polars_keeps_the_types(recording: shmstore.Recording) -> None:
    schema = pl.DataFrame(recording["hall"]).schema
    assert schema["time"] == pl.Datetime("us", "UTC")
    assert schema["hits"] == pl.List(pl.Float32)
    assert schema["point"] == pl.Struct({"x": pl.Int32, "label": pl.String})
    assert schema["state"] == pl.Categorical
    assert schema["price"] == pl.Decimal(9, 2)


# -- duckdb, over the Arrow stream ---------------------------------------------------------------------------


def ask(instrument: shmstore.Instrument, query: str) -> list[tuple[Any, ...]]:
    """Query an instrument as the table ``hall``."""
    with duckdb.connect() as connection:
        connection.register("hall", pa.RecordBatchReader.from_stream(instrument))
        return connection.sql(query).fetchall()


def test_duckdb_takes_every_column(recording: shmstore.Recording) -> None:
    # A moment is asked for as a number: as an object, duckdb gives it in the zone of the machine.
    query = "select * replace (epoch_us(time) as time) from hall order by id"
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    times = [moment and (moment - epoch) // timedelta(microseconds=1) for moment in ALL["time"]]
    columns = zip(*ask(recording["hall"], query), strict=True)
    assert dict(zip(ALL, map(list, columns), strict=True)) == ALL | {"time": times}


def test_duckdb_groups_and_sums(recording: shmstore.Recording) -> None:
    query = "select state, count(*), sum(volts), sum(len(hits)) from hall group by state order by state"
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in map(mixed_row, range(ROWS)):
        groups.setdefault(row["state"], []).append(row)
    assert ask(recording["hall"], query) == [
        (
            state,
            len(groups[state]),
            sum(row["volts"] or 0 for row in groups[state]),
            sum(len(row["hits"] or []) for row in groups[state]),
        )
        for state in (*sorted(STATES), None)
    ]


# -- xarray --------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(path: Path) -> Iterator[xr.Dataset]:
    """The numeric instrument, as netCDF tools decode it."""
    with xr.open_dataset(
        path, engine="h5netcdf", group="adc", phony_dims="sort", decode_timedelta=True
    ) as dataset:
        yield dataset


def test_xarray_decodes_times(dataset: xr.Dataset) -> None:
    assert dataset["time"].dtype == "datetime64[ns]"
    start = np.datetime64(START.replace(tzinfo=None), "ns")
    moments = start + np.arange(ROWS).astype("timedelta64[ms]")
    moments[3::10] = np.datetime64("NaT", "ns")
    np.testing.assert_array_equal(dataset["time"], moments)
    days = np.datetime64("2026-03-01", "ns") + np.arange(ROWS).astype("timedelta64[D]")
    np.testing.assert_array_equal(dataset["day"], days)
    times = np.arange(ROWS).astype("timedelta64[ms]")
    times[4::10] = np.timedelta64("NaT", "ms")
    np.testing.assert_array_equal(dataset["took"], times)


def test_xarray_shows_nulls_as_nan(dataset: xr.Dataset) -> None:
    volts = np.arange(ROWS, dtype=np.float32) / 4
    volts[5::10] = np.nan
    assert dataset["volts"].dtype == np.float32
    np.testing.assert_array_equal(dataset["volts"], volts)
    assert float(dataset["volts"].mean()) == np.nanmean(volts)


def test_xarray_shows_numbers_and_images(dataset: xr.Dataset) -> None:
    counts = np.arange(ROWS, dtype=np.uint16)
    counts[7::10] = 0  # an integer has no value to spare: its mask lies beside
    assert dataset["count"].dtype == np.uint16
    np.testing.assert_array_equal(dataset["count"], counts)
    np.testing.assert_array_equal(dataset["on"], np.arange(ROWS) % 2 == 0)
    assert dataset["frame"].shape == (ROWS, 2, 3)
    np.testing.assert_array_equal(dataset["frame"][:, 1, 2], np.arange(1000, 1000 + ROWS))
    assert dataset.attrs["instrument_id"] == "adc"
