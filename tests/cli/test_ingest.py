"""`shmstore ingest`: every format into a file, and every way in which an input can be wrong."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet
import pytest
from commandline import document, only_error, read_until, running, shmstore
from intervals import interval_batch

import shmstore as package

ROWS = 3000
TABLE = pa.table(
    {
        "time": pa.array(np.arange(ROWS) * 1_000_000, pa.timestamp("ns")),
        "value": pa.array(np.sin(np.arange(ROWS))),
        "count": pa.array([None if row % 7 == 0 else row for row in range(ROWS)], pa.int32()),
        "name": pa.array([f"é{row}" for row in range(ROWS)]),
    }
)


def write_stream(path: Path, table: pa.Table = TABLE) -> Path:
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=500)
    return path


def write_file(path: Path) -> Path:
    with pa.ipc.new_file(str(path), TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=500)
    return path


def write_parquet(path: Path) -> Path:
    pa.parquet.write_table(TABLE, str(path), row_group_size=700)
    return path


def write_csv(path: Path) -> Path:
    pa.csv.write_csv(TABLE, str(path))
    return path


def recorded(result: Any) -> Path:
    """Return the file of a run that said its path last."""
    path = Path(result.stdout.splitlines()[-1])
    with h5py.File(path) as file:
        assert file.attrs["state"] == "complete"
    return path


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_stream, "run.arrows"),
        (write_file, "run.arrow"),
        (write_parquet, "run.parquet"),
        (write_csv, "run.csv"),
    ],
)
def test_every_format(output_dir: Path, write: Callable[[Path], Path], name: str) -> None:
    source = write(output_dir / name)
    result = shmstore("ingest", source, "--output", output_dir, cwd=output_dir)
    assert (result.returncode, result.stderr) == (0, "")
    path = recorded(result)
    with h5py.File(path) as file:
        assert list(file["run/value"][:3]) == TABLE["value"].to_pylist()[:3]
        assert file["run/name"].asstr()[ROWS - 1] == f"é{ROWS - 1}"
    table = package.read(path, "run")
    if name.endswith("csv"):  # which knows numbers and texts, but not their widths
        table = table.cast(TABLE.schema)
    assert table == TABLE


def test_standard_input(output_dir: Path) -> None:
    source = write_stream(output_dir / "run.arrows")
    with source.open("rb") as stdin:
        result = shmstore("ingest", "-", "--instrument", "probe", "--json", cwd=output_dir, stdin=stdin)
    assert result.returncode == 0
    summary = document(result)
    assert summary["inputs"] == [
        {
            "input": "-",
            "rows": ROWS,
            "error": None,
            "kind": "Arrow IPC stream",
            "instrument": "probe",
        }
    ]
    assert package.read(summary["path"], "probe") == TABLE


def test_several_inputs_are_several_instruments(output_dir: Path) -> None:
    (output_dir / "other").mkdir()
    inputs = [
        write_stream(output_dir / "a.arrows"),
        write_parquet(output_dir / "b.parquet"),
        write_file(output_dir / "other" / "a.arrow"),
    ]
    result = shmstore("ingest", *inputs, cwd=output_dir)
    assert result.returncode == 0
    with package.open(recorded(result)) as recording:
        assert {name: recording[name].num_rows for name in recording} == {"a": ROWS, "b": ROWS, "a_2": ROWS}


def test_several_inputs_into_one_instrument(output_dir: Path) -> None:
    inputs = [write_stream(output_dir / "a.arrows"), write_parquet(output_dir / "b.parquet")]
    result = shmstore("ingest", *inputs, "--instrument", "all", cwd=output_dir)
    assert result.returncode == 0
    assert package.read(recorded(result), "all") == pa.concat_tables([TABLE, TABLE])


def encoded(labels: Sequence[str | None], *codes: int | None) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8()), pa.array(labels))


def write_batches(path: Path, batches: list[pa.RecordBatch], schema: pa.Schema | None = None) -> pa.Table:
    """Write a stream of them; return what is to be read back."""
    schema = schema or batches[0].schema
    with pa.OSFile(os.fsencode(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return pa.Table.from_batches(batches, schema)


def ingested(folder: Path, *options: str) -> dict[str, pa.Table]:
    """Ingest all streams in a folder; return every instrument's table."""
    result = shmstore("ingest", *options, "--json", "--", *sorted(folder.glob("*.arrows")), cwd=folder)
    assert (result.returncode, document(result)["problems"]) == (0, []), result.stderr
    with package.open(document(result)["path"]) as recording:
        return {name: recording[name].read() for name in recording}


def test_columns_of_every_kind(output_dir: Path) -> None:
    numbers = pa.array([1, None, 3], pa.int32())
    strange = pa.record_batch(
        {
            "struct": pa.array([{"x": 1, "y": ["a", None]}, None, {"x": None, "y": []}]),
            "map": pa.array([[("k", 1.5)], None, []], pa.map_(pa.string(), pa.float16())),
            "view": pa.ListViewArray.from_arrays([1, 0, 0], [2, 1, 0], numbers),
            "dense": pa.UnionArray.from_dense(
                pa.array([0, 1, 0], pa.int8()), pa.array([0, 0, 2], pa.int32()), [numbers, pa.array(["z"])]
            ),
            "runs": pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int16()), pa.array(["long", None])),
            "late": pa.array([90_000, -1, None], pa.int32()).view(pa.time32("s")),
            "wide": pa.array([2**31 - 1, -(2**31), 0], pa.int32()).view(pa.decimal32(3, 1)),
            "nothing": pa.nulls(3),
        }
    )
    strange_table = write_batches(output_dir / "strange.arrows", [strange, strange.slice(1, 2), strange])
    intervals = interval_batch([14, None, -1], [(1, -2), None, (-3, 4)])
    intervals_table = write_batches(output_dir / "intervals.arrows", [intervals, intervals.slice(2)])
    tables = ingested(output_dir)
    assert tables["strange"].equals(strange_table, check_metadata=True)
    assert tables["intervals"].equals(intervals_table, check_metadata=True)


def test_dictionaries_that_are_replaced(output_dir: Path) -> None:
    batches = [
        pa.record_batch(
            {
                "label": encoded(labels, 0, None, 1),
                "list": pa.ListArray.from_arrays([0, 0, 1, 3], encoded(labels, 1, 1, 0)),
            }
        )
        for labels in (["a", "b"], ["b", "a"], ["a", "b", "c"], [None, "é"])
    ]
    table = write_batches(output_dir / "run.arrows", batches)
    assert ingested(output_dir)["run"].equals(table, check_metadata=True)


def test_inputs_without_rows_or_columns(output_dir: Path) -> None:
    none = pa.record_batch(pa.StructArray.from_buffers(pa.struct([]), 5, [None]))
    schema = TABLE.schema.with_metadata({"by": "nobody"})
    tables = {
        "no batches": write_batches(output_dir / "no batches.arrows", [], schema),
        "no rows": write_batches(output_dir / "no rows.arrows", [TABLE.to_batches()[0].slice(0, 0)]),
        "no columns": write_batches(output_dir / "no columns.arrows", [none, none.slice(0, 2)]),
    }
    assert tables["no columns"].num_rows == 7
    found = ingested(output_dir)
    assert set(found) == set(tables)
    for name, table in tables.items():
        assert found[name].equals(table, check_metadata=True), name


def test_any_name_of_a_file_names_an_instrument(output_dir: Path) -> None:
    names = [
        b"metadata",
        b"_shmstore",
        b".",
        b"..",
        b"-x",
        b"%2F",
        b"a\nb",
        "🦀".encode(),
        b"x" * 240,
        b"M\xfc",
    ]
    table = TABLE.slice(0, 9)
    for name in names:
        write_batches(output_dir / os.fsdecode(name + b".arrows"), table.to_batches())
    found = ingested(output_dir)
    assert set(found) == {name.decode("utf-8", "backslashreplace") for name in names}
    assert all(read == table for read in found.values())


def test_a_text_that_the_setting_cannot_store(output_dir: Path) -> None:
    table = write_batches(output_dir / "nul.arrows", [pa.record_batch({"text": ["a\0b"]})])
    result = shmstore("ingest", output_dir / "nul.arrows", cwd=output_dir)
    assert result.returncode == 2
    assert "strings='packed'" in only_error(result)
    assert ingested(output_dir, "--set", "strings=packed")["nul"] == table


@pytest.mark.parametrize("write", [write_stream, write_file])
def test_an_input_cut_in_half(output_dir: Path, write: Callable[[Path], Path]) -> None:
    source = write(output_dir / "cut.arrow")
    os.truncate(source, source.stat().st_size // 2)
    result = shmstore("ingest", source, "--json", "--quiet", cwd=output_dir)
    assert result.returncode == 1
    said = only_error(result)
    assert str(source) in said
    assert "cut short" in said
    table = package.read(document(result)["path"], "cut")
    assert f"{table.num_rows} rows before that were recorded" in said
    assert 0 < table.num_rows < ROWS
    assert table == TABLE.slice(0, table.num_rows)


def write_bad(folder: Path) -> dict[str, Path]:
    inputs = {name: folder / name for name in ("empty.arrows", "garbage.arrow", "folder")}
    inputs["empty.arrows"].touch()
    inputs["garbage.arrow"].write_bytes(bytes(range(256)) * 10)
    inputs["folder"].mkdir()
    inputs["gone.csv"] = folder / "gone.csv"
    return inputs


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty.arrows", "is empty"),
        ("garbage.arrow", "is neither"),
        ("folder", "is a folder"),
        ("gone.csv", "no such file"),
    ],
)
def test_a_bad_input_makes_no_file(output_dir: Path, name: str, said: str) -> None:
    source = write_bad(output_dir)[name]
    result = shmstore("ingest", source, cwd=output_dir)
    assert result.returncode == 2
    line = only_error(result)
    assert str(source) in line
    assert said in line
    assert list(output_dir.glob("*.h5")) == []


def test_one_good_input_among_bad_ones_is_recorded(output_dir: Path) -> None:
    bad = write_bad(output_dir)
    good = write_stream(output_dir / "good.arrows")
    result = shmstore("ingest", *bad.values(), good, cwd=output_dir)
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert len(lines) == len(bad)
    assert all(any(str(source) in line for line in lines) for source in bad.values())
    assert package.read(recorded(result), "good") == TABLE


def test_another_schema_for_the_same_instrument(output_dir: Path) -> None:
    first = write_stream(output_dir / "first.arrows")
    second = write_stream(output_dir / "second.arrows", TABLE.select(["time", "value"]))
    result = shmstore("ingest", first, second, "--instrument", "one", cwd=output_dir)
    assert result.returncode == 1
    assert str(second) in only_error(result)
    assert package.read(recorded(result), "one") == TABLE


def test_replay_takes_its_time(output_dir: Path) -> None:
    source = write_stream(output_dir / "run.arrows")  # 3 s long
    result = shmstore("ingest", source, "--time-column", "time", "--rate", "4x", "--json", cwd=output_dir)
    assert result.returncode == 0
    summary = document(result)
    assert summary["seconds"] >= 0.74
    assert package.read(summary["path"], "run") == TABLE


def test_a_pace_in_bytes_takes_its_time(output_dir: Path) -> None:
    source = write_stream(output_dir / "run.arrows")
    result = shmstore("ingest", source, "--rate", "200kB/s", "--json", cwd=output_dir)
    assert result.returncode == 0
    assert document(result)["seconds"] >= 0.9 * TABLE.nbytes / 200_000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rate", "fast"], "neither bytes a second"),
        (["--rate", "2x"], "needs --time-column"),
        (["--rate", "2MB/s", "--time-column", "time"], "goes with a speed"),
        (["--time-column", "when"], "no single column 'when'"),
        (["--time-column", "name"], "tells no time"),
        (["--instrument", "x" * 5000], "use at most 4096"),
        (["--compression", "gzip", "--set", "compression_level=99"], "99"),
    ],
)
def test_wrong_calls(output_dir: Path, options: list[str], said: str) -> None:
    source = write_stream(output_dir / "run.arrows")
    result = shmstore("ingest", source, *options, cwd=output_dir)
    assert result.returncode == 2
    assert said in only_error(result)
    assert list(output_dir.glob("*.h5")) == []


def test_ctrl_c_while_waiting_for_standard_input(output_dir: Path) -> None:
    content = write_stream(output_dir / "run.arrows").read_bytes()
    with running("ingest", "-", "--json", cwd=output_dir, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.buffer.write(content[:-8])  # the end is still to come
        process.stdin.buffer.flush()
        read_until(process.stderr, lambda line: "standard input" in line)
        os.killpg(process.pid, signal.SIGINT)
        process.stdin.close()
        out = process.stdout.read() if process.stdout else ""
        err = process.stderr.read()
        assert process.wait(60) == 1
    assert "interrupted" in err
    assert '"interrupted": "SIGINT"' in out
    (path,) = output_dir.glob("*.h5")
    table = package.read(path, "stdin")
    assert table == TABLE.slice(0, table.num_rows)
