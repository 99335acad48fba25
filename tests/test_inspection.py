"""What is reported of a file is what plain h5py finds in it."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pyarrow as pa
import pytest
from plain_file import add_table, begin, finish_file, start_file

from shmstore.inspection import DatasetReport, describe


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "daq_session_20260102_030405.h5"


@pytest.fixture
def finished(path: Path) -> Path:
    """Return a file with a gzip instrument ``x`` and a zstd one, ``y``."""
    with start_file(path) as file:
        file["metadata"].attrs["operator"] = "night shift"
        file["metadata"].attrs["blob"] = np.void(b"\0\xff")
        table = pa.table({"v": pa.array([*range(99), None], pa.int32()), "t": [f"n{i}" for i in range(100)]})
        add_table(file, "x", table, "vlen", compression="gzip", compression_opts=6, shuffle=True)
        add_table(file, "y", table, "packed", **hdf5plugin.Zstd(3)).attrs["gain"] = 4
        finish_file(file)
    return path


def test_a_report_agrees_with_h5py(finished: Path) -> None:
    report = describe(finished)
    assert report.path == str(finished)
    assert report.file_bytes == finished.stat().st_size
    assert (report.state, report.application) == ("complete", "shmstore 0.1.0")
    assert report.metadata == {"operator": "night shift", "blob": b"\0\xff"}
    assert report.accounting == {"producers": [], "ok": True, "problems": []}
    x, y = report.instruments
    assert (x.instrument_id, x.rows, x.problem) == ("x", 100, None)
    assert y.metadata == {"gain": 4}
    values, validity = x.columns[0].datasets
    with h5py.File(finished) as file:
        stored = file["x/v"].id.get_storage_size()
    assert values == DatasetReport(
        "values", "/x/v", "int32", (100,), (7,), 15, "shuffle, deflate 6", stored, 400, 400 / stored
    )
    assert (validity.role, validity.path, validity.dtype) == ("validity", "/x/_arrow/validity/0", "bool")
    assert (x.columns[1].type, x.columns[1].encoding) == ("string", "vlen")
    assert x.columns[1].datasets[0].ratio is None
    assert [item.role for item in y.columns[1].datasets] == ["offsets", "chars"]
    assert y.columns[0].datasets[0].filters == "zstd 3"
    datasets = [item for column in y.columns for item in column.datasets]
    assert y.storage_bytes == sum(item.storage_bytes for item in datasets)
    assert y.ratio == sum(item.raw_bytes for item in datasets) / y.storage_bytes


FILTERS = {
    "blosc lz4 5 shuffle": hdf5plugin.Blosc("lz4", 5, hdf5plugin.Blosc.SHUFFLE),
    "blosc2 zstd 3 bitshuffle": hdf5plugin.Blosc2("zstd", 3, hdf5plugin.Blosc2.BITSHUFFLE),
    "bitshuffle lz4": hdf5plugin.Bitshuffle(),
    "bitshuffle zstd 2": hdf5plugin.Bitshuffle(cname="zstd", clevel=2),
    "lz4": hdf5plugin.LZ4(),
    "lzf": {"compression": "lzf"},
    "deflate 1, fletcher32": {"compression": "gzip", "compression_opts": 1, "fletcher32": True},
    "": {},
}


@pytest.mark.parametrize("text", FILTERS)
def test_filters_are_named(path: Path, text: str) -> None:
    with start_file(path) as file:
        add_table(file, "x", pa.table({"v": range(50)}), "vlen", **FILTERS[text])
        finish_file(file)
    assert describe(path).instruments[0].columns[0].datasets[0].filters == text


def test_a_report_is_json_and_text(finished: Path) -> None:
    report = describe(finished)
    document = json.loads(json.dumps(report.to_dict()))
    assert document["metadata"]["blob"] == "00ff"
    assert document["instruments"][0]["columns"][0]["datasets"][0]["shape"] == [100]
    lines = str(report).splitlines()
    assert lines[0].startswith(f"{finished}: complete, ")
    assert lines[1] == "  created 2026-01-02T03:04:05.600000+01:00 by shmstore 0.1.0"
    assert "  operator = 'night shift'" in lines
    assert any(
        line.startswith("    /x/v: int32 (100,), 15 chunks of (7,), shuffle, deflate 6, ") for line in lines
    )


def test_damage_to_one_instrument_is_a_problem_of_that_one(finished: Path) -> None:
    with h5py.File(finished, "r+") as file:
        file["x/_arrow/layout"][()] = "{"
    x, y = describe(finished).instruments
    assert x.problem
    assert "_arrow/layout is damaged" in x.problem
    assert (x.rows, x.columns) == (0, ())
    assert (y.rows, y.problem) == (100, None)


def test_what_a_killed_writer_left_can_be_described(path: Path) -> None:
    with start_file(path, state="recording") as file:
        begin(file, "x", v=pa.int16())
    report = describe(path)
    assert (report.state, report.accounting) == ("recording", None)
    assert report.instruments[0].rows == 0
    assert report.instruments[0].columns[0].datasets[0].shape == (0,)
