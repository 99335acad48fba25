"""Inputs of every format, whole and broken, opened by what they hold."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from shmstore.sources.files import InputError, open_source

TABLE = pa.table(
    {
        "time": pa.array(range(1000), pa.timestamp("us")),
        "value": pa.array([index / 7 for index in range(1000)]),
        "name": pa.array([f"é{index}" for index in range(1000)]),
    }
)


def write_stream(path: Path, table: pa.Table = TABLE) -> Path:
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    return path


def write_file(path: Path, table: pa.Table = TABLE) -> Path:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    return path


def write_parquet(path: Path) -> Path:
    pa.parquet.write_table(TABLE, str(path), row_group_size=300)
    return path


def rows_before_error(path: Path) -> tuple[int, str]:
    """Return how many rows came, and what was said of the rest."""
    rows = 0
    with open_source(str(path)) as source:
        try:
            for batch in source.batches():
                rows += batch.num_rows
        except InputError as error:
            return rows, str(error)
    return rows, ""


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (write_stream, "Arrow IPC stream"),
        (write_file, "Arrow IPC file"),
        (write_parquet, "Parquet"),
    ],
)
def test_formats_are_found_by_content(tmp_path: Path, write: Callable[[Path], Path], kind: str) -> None:
    path = write(tmp_path / "run.7.anything")
    with open_source(str(path)) as source:
        assert (source.kind, source.stem, source.schema) == (kind, "run.7", TABLE.schema)
        assert source.size_bytes == path.stat().st_size
        table = pa.Table.from_batches(list(source.batches()))
        assert 0.9 * source.size_bytes <= source.position_bytes <= source.size_bytes
    assert table == TABLE


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".TSV", "\t")])
def test_csv_by_its_suffix(tmp_path: Path, suffix: str, delimiter: str) -> None:
    path = tmp_path / f"log{suffix}"
    lines = [
        ["time", "value", "note"],
        ["2026-01-01T00:00:00.5Z", "1.5", ""],
        ["2026-01-01T00:00:01Z", "2", ""],
    ]
    path.write_text("\n".join(delimiter.join(line) for line in lines) + "\n")
    with open_source(str(path)) as source:
        assert source.kind == "CSV"
        table = pa.Table.from_batches(list(source.batches()))
        assert source.position_bytes == source.size_bytes
    assert pa.types.is_timestamp(table["time"].type)
    assert table["value"].to_pylist() == [1.5, 2.0]
    assert table["note"].type == pa.string()  # empty throughout: text, not Arrow's null type
    assert source.schema == table.schema


def test_csv_of_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "head.csv").write_text("a,b\n")
    with open_source(str(tmp_path / "head.csv")) as source:
        assert source.schema.names == ["a", "b"]
        assert list(source.batches()) == []


def test_csv_that_changes_its_mind(tmp_path: Path) -> None:
    path = tmp_path / "late.csv"
    path.write_text("a,b\n" + "1,2\n" * 2_000_000 + "1,two\n")
    rows, said = rows_before_error(path)
    assert 1_000_000 < rows < 2_000_000
    assert said.startswith(f"{path}: cannot be read on")
    assert "two" in said
    assert "\n" not in said


@pytest.mark.parametrize(("write", "share"), [(write_stream, 0.5), (write_file, 0.5), (write_file, 0.98)])
def test_what_is_cut_short_gives_what_is_whole(
    tmp_path: Path, write: Callable[[Path], Path], share: float
) -> None:
    path = write(tmp_path / "cut.arrow")
    os.truncate(path, int(path.stat().st_size * share))
    rows, said = rows_before_error(path)
    assert 0 < rows <= 1000
    assert rows % 100 == 0
    assert said.startswith(f"{path}: is")
    assert "cut short" in said


def test_damaged_values_are_never_handed_on(tmp_path: Path) -> None:
    path = write_stream(tmp_path / "bent.arrows", pa.table({"name": ["abc", "defg", "é"]}))
    content = path.read_bytes()
    at = content.index("abcdefgé".encode())
    path.write_bytes(content[: at + 7] + b"\xff\xff" + content[at + 9 :])
    rows, said = rows_before_error(path)
    assert rows == 0
    assert "UTF" in said or "utf" in said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.arrows", b"", "is empty"),
        ("empty.csv", b"", "is empty"),
        ("noise.bin", b"\x00\x17garbage" * 100, "is neither an Arrow IPC stream"),
        ("noise.csv", b"\x00\x17garbage" * 100, "is neither an Arrow IPC stream"),
        ("plain.txt", b"a,b\n1,2\n", "is neither an Arrow IPC stream"),
        ("blank.csv", b"\n\n", "cannot be read"),
        ("fake.arrows", b"\xff\xff\xff\xff" + b"z" * 500, "cannot be read"),
        ("fake.arrow", b"ARROW1\0\0" + b"z" * 500, "cannot be read"),
        ("fake.parquet", b"PAR1" + b"z" * 500, "cannot be read"),
    ],
)
def test_what_is_no_input(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_source(str(path))
    assert str(caught.value).startswith(f"{path}: {said}")
    assert "\n" not in str(caught.value)


def test_what_is_not_there_and_what_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        open_source(str(tmp_path / "gone.arrow"))
    with pytest.raises(InputError, match="is a folder"):
        open_source(str(tmp_path))


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def feed(pipe: Path, content: bytes, hold: threading.Event | None = None) -> threading.Thread:
    def work() -> None:
        with pipe.open("wb") as end:
            end.write(content)
            end.flush()
            if hold is not None:
                hold.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_pipe(tmp_path: Path, pipe: Path) -> None:
    content = write_stream(tmp_path / "table.arrows").read_bytes()
    thread = feed(pipe, content)
    with open_source(str(pipe)) as source:
        table = pa.Table.from_batches(list(source.batches()))
        assert (source.size_bytes, source.position_bytes) == (None, len(content))
    thread.join()
    assert table == TABLE


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b"a,b\n1,2\n", "is no Arrow IPC stream")])
def test_a_pipe_without_a_stream(pipe: Path, content: bytes, said: str) -> None:
    thread = feed(pipe, content)
    with pytest.raises(InputError, match=said):
        open_source(str(pipe))
    thread.join()


def test_waiting_for_a_pipe_ends_when_asked(tmp_path: Path, pipe: Path) -> None:
    content = write_stream(tmp_path / "table.arrows").read_bytes()
    hold = threading.Event()
    thread = feed(pipe, content[:-8], hold)  # without the mark at the end, more may come
    stop = threading.Event()
    rows: list[Any] = []
    with open_source(str(pipe), stop.is_set) as source:
        for batch in source.batches():
            rows.append(batch.num_rows)
            if len(rows) == 10:
                stop.set()
    hold.set()
    thread.join()
    assert sum(rows) == 1000
