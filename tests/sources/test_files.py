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
from intervals import interval_batch

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


@pytest.mark.parametrize(
    "options",
    [
        pa.ipc.IpcWriteOptions(compression="lz4"),
        pa.ipc.IpcWriteOptions(compression="zstd"),
        pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V4),
        pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V4, use_legacy_format=True),
    ],
    ids=["lz4", "zstd", "1.0", "0.14"],
)
@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
def test_every_version_and_compression(tmp_path: Path, new: Any, options: Any, pipe: Path) -> None:
    path = tmp_path / "run.arrow"
    with new(str(path), TABLE.schema, options=options) as writer:
        writer.write_table(TABLE)
    assert read(path) == TABLE
    if new is pa.ipc.new_stream:
        thread = feed(pipe, path.read_bytes())
        assert read(pipe) == TABLE
        thread.join()


def read(path: Path) -> pa.Table:
    with open_source(str(path)) as source:
        return pa.Table.from_batches(list(source.batches()), source.schema)


@pytest.mark.parametrize("deltas", [True, False])
def test_dictionaries_that_grow_and_change(tmp_path: Path, deltas: bool) -> None:
    letters = ["ab", "abc", "xyz"] if not deltas else ["ab", "abc", "abcd"]
    batches = [
        pa.record_batch(
            [pa.DictionaryArray.from_arrays(pa.array([1, None, 0], pa.int8()), list(labels))], ["a"]
        )
        for labels in letters
    ]
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=deltas)
    for new, name in [(pa.ipc.new_stream, "a.arrows"), (pa.ipc.new_file, "a.arrow")]:
        if new is pa.ipc.new_file and not deltas:
            continue  # a file cannot replace a dictionary
        with new(str(tmp_path / name), batches[0].schema, options=options) as writer:
            for batch in batches:
                writer.write_batch(batch)
        with open_source(str(tmp_path / name)) as source:
            found = list(source.batches())
        assert [batch.to_pydict() for batch in found] == [batch.to_pydict() for batch in batches]
        # A file's reader knows all dictionaries before it gives the first batch.
        if new is pa.ipc.new_stream:
            assert found == batches


@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
def test_nothing_of_something(tmp_path: Path, new: Any) -> None:
    """No batches, batches without rows, rows without columns: all are legal."""
    no_columns = pa.record_batch(pa.StructArray.from_buffers(pa.struct([]), 5, [None]))
    for name, schema, batches in [
        ("no batches", TABLE.schema, []),
        ("no rows", TABLE.schema, [TABLE.to_batches()[0].slice(0, 0)] * 2),
        ("no columns", pa.schema([]), [no_columns, no_columns.slice(0, 2)]),
        ("nothing", pa.schema([]), []),
    ]:
        path = tmp_path / name
        with new(str(path), schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        with open_source(str(path)) as source:
            assert source.schema == schema
            found = list(source.batches())
        assert [batch.num_rows for batch in found] == [batch.num_rows for batch in batches]


def test_values_that_arrow_frowns_on_are_values(tmp_path: Path) -> None:
    table = pa.table(
        {
            "date": pa.array([1, -5], pa.int64()).view(pa.date64()),
            "late": pa.array([90_000, -1], pa.int32()).view(pa.time32("s")),
            "later": pa.array([10**18, -1], pa.int64()).view(pa.time64("ns")),
            "decimal": pa.array([12345, -99999], pa.int32()).view(pa.decimal32(3, 1)),
            "wide": pa.array([(2**127 - 1).to_bytes(16, "little"), b"\xff" * 16], pa.binary(16)).view(
                pa.decimal128(38, 2)
            ),
        }
    )
    nested = pa.StructArray.from_arrays(
        [column.combine_chunks() for column in table.columns], table.column_names
    )
    table = table.append_column("all", nested)
    with pytest.raises(pa.ArrowInvalid):
        table.validate(full=True)
    assert read(write_stream(tmp_path / "odd.arrows", table)) == table
    assert read(write_file(tmp_path / "odd.arrow", table)) == table


def test_damage_beside_values_that_arrow_frowns_on(tmp_path: Path) -> None:
    table = pa.table({"late": pa.array([90_000], pa.int32()).view(pa.time32("s")), "name": ["abcdefgé"]})
    path = write_stream(tmp_path / "bent.arrows", table)
    content = path.read_bytes()
    path.write_bytes(content.replace("abcdefgé".encode(), b"abcdefg\xff\xff"))
    rows, said = rows_before_error(path)
    assert rows == 0
    assert "UTF8" in said


@pytest.mark.parametrize("type_", [pa.int8(), pa.list_(pa.struct([("§inner", pa.int8())]))])
def test_names_that_are_damaged(tmp_path: Path, type_: pa.DataType) -> None:
    path = write_stream(
        tmp_path / "bent.arrows", pa.table([pa.nulls(1, type_)], schema=pa.schema([("§", type_)]))
    )
    content = path.read_bytes()
    mark = "§inner" if b"inner" in content else "§"
    path.write_bytes(content.replace(mark.encode(), b"\xff\xff" + mark[1:].encode()))
    with pytest.raises(InputError, match="is damaged: a name in its schema is no UTF-8"):
        open_source(str(path))


def test_intervals_that_pyarrow_cannot_show(tmp_path: Path) -> None:
    batch = interval_batch([14, None, -1], [(1, -2), None, (-3, 4)])
    path = tmp_path / "odd.arrows"
    with pa.ipc.new_stream(str(path), batch.schema) as writer:
        writer.write_batch(batch)
    assert read(path).equals(pa.Table.from_batches([batch]))


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    for write, name in [(write_stream, "a.arrows"), (write_file, "a.arrow"), (write_parquet, "a.parquet")]:
        path = write(tmp_path / name).rename(tmp_path / os.fsdecode(b"M\xfc\xc3\xbc.arrow"))
        with open_source(str(path)) as source:
            assert source.stem == "M\\xfcü"
            assert sum(batch.num_rows for batch in source.batches()) == TABLE.num_rows


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
        ("old.arrows", b"\x60\x00\x00\x00\x10\x00\x00\x00" + b"z" * 500, "cannot be read"),
        ("count.bin", bytes(range(256)), "is neither an Arrow IPC stream"),
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
