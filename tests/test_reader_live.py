"""Recordings that grow while they are read, or whose writer was killed. The writer is another process."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import pyarrow as pa
import pytest

import shmstore
from shmstore import reader
from shmstore.column import StoredColumn
from shmstore.errors import IncompleteFileError, StorageError
from shmstore.opening import OpenedFile, open_file
from shmstore.recorded import Instrument

HERE = Path(__file__).parent


class LiveWriter:
    """A process that holds a recording as ``f`` and runs statements on it."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "plain_file.py"), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE.parent,
            env={"PYTHONPATH": str(HERE.parent)},
        )

    def run(self, *statements: str) -> None:
        self.send(*statements)
        self.wait()

    def send(self, *statements: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps("\n".join(statements)) + "\n")
        self.process.stdin.flush()

    def wait(self) -> None:
        assert self.process.stdout
        answer = self.process.stdout.readline().strip()
        assert answer == "ok", json.loads(answer or '"the writer has died"')

    def end(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


START = 'f = start_file(path, state="recording"); begin(f, "x", a=pa.int64(), b=pa.int64(), t=pa.string())'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "live.h5"


@pytest.fixture
def writer(path: Path) -> Iterator[LiveWriter]:
    """Return the writer of a live recording with one instrument, ``x``, of columns a, b and t."""
    writer = LiveWriter(path)
    writer.run(START, "start_swmr(f)")
    yield writer
    if writer.process.returncode is None:
        writer.end()


def put(first: int, last: int) -> list[str]:
    """Return the statements that write rows (i, i, str(i)) to x, and flush."""
    return [
        f"words = [str(i) for i in range({first}, {last})]",
        f"extend(f['x/a'], range({first}, {last})); extend(f['x/b'], range({first}, {last}))",
        "ends = np.cumsum([len(word) for word in words]).astype('u8')",
        "extend(f['x/t/OFFSETS'], f['x/t/OFFSETS'][-1] + ends)",
        "extend(f['x/t/CHARS'], np.frombuffer(''.join(words).encode(), 'u1'))",
        "f.flush()",
    ]


def rows(first: int, last: int) -> pa.Table:
    numbers = list(range(first, last))
    columns = {"a": numbers, "b": numbers, "t": [str(number) for number in numbers]}
    return pa.table(columns, schema=pa.schema([("a", pa.int64()), ("b", pa.int64()), ("t", pa.string())]))


def test_rows_grow_under_an_open_recording(path: Path, writer: LiveWriter) -> None:
    with reader.open(path) as recording:
        x = recording["x"]
        assert recording.live
        assert x.num_rows == 0
        assert x.read().equals(rows(0, 0))
        for first, last in [(0, 10), (10, 100), (100, 101)]:
            writer.run(*put(first, last))
            assert x.num_rows == last
            assert x.read().equals(rows(0, last))
            assert x.read(start=-3).equals(rows(last - 3, last))


def test_rows_that_are_not_flushed_are_not_there(path: Path, writer: LiveWriter) -> None:
    writer.run(*put(0, 10), *put(10, 20)[:-1])
    assert reader.read(path, "x").equals(rows(0, 10))


def test_only_rows_that_all_columns_have_are_shown(path: Path, writer: LiveWriter) -> None:
    writer.run(*put(0, 10), "extend(f['x/a'], [10, 11, 12]); f.flush()")
    assert reader.read(path, "x", columns=["a"]).num_rows == 10
    assert reader.read(path, "x").equals(rows(0, 10))


@pytest.mark.parametrize("chars", [0, 1, 10, 11, 12, 13, 50, 89])
def test_packed_rows_whose_bytes_are_missing_are_not_shown(
    path: Path, writer: LiveWriter, chars: int
) -> None:
    writer.run(*put(0, 50), f"f['x/t/CHARS'].resize({chars}, 0); f.flush()")
    ends = [sum(len(str(i)) for i in range(row + 1)) for row in range(50)]
    there = sum(end <= chars for end in ends)
    with reader.open(path) as recording:
        assert recording["x"].num_rows == there
        assert recording["x"].read().equals(rows(0, there))


def test_an_iteration_ends_with_the_rows_that_were_there_when_it_began(
    path: Path, writer: LiveWriter
) -> None:
    writer.run(*put(0, 25))
    with reader.open(path) as recording:
        batches = recording["x"].iter_batches(batch_rows=10)
        first = next(batches)
        writer.run(*put(25, 40))
        found = pa.Table.from_batches([first, *batches])
        assert found.equals(rows(0, 25))
        assert recording["x"].num_rows == 40


def test_a_new_instrument_is_found(path: Path, writer: LiveWriter) -> None:
    with reader.open(path) as recording:
        assert recording.instruments == ["x"]
        writer.run(
            "f = reopen(f); begin(f, 'late', v=pa.int8()); f['metadata'].attrs['k'] = 1; start_swmr(f)"
        )
        writer.run("extend(f['late/v'], [1, 2]); f.flush()")
        assert recording["late"].read().column("v").to_pylist() == [1, 2]
        assert recording.instruments == ["x", "late"]
        assert recording.metadata == {"k": 1}
        with pytest.raises(IncompleteFileError, match="no instrument 'later': did you mean 'late'"):
            recording["later"]


def test_an_instrument_without_a_schema_has_no_rows_yet(path: Path, writer: LiveWriter) -> None:
    writer.run("f = reopen(f); g = f.create_group('bare'); g.attrs['instrument_id'] = 'bare'; start_swmr(f)")
    with reader.open(path) as recording:
        bare = recording["bare"]
        assert bare.num_rows == 0
        with pytest.raises(IncompleteFileError, match="instrument 'bare' has no schema"):
            bare.read()


MASK = [
    "f = reopen(f)",
    "mask = layout_of(a=pa.int64()).columns[0].streams[1]",
    "add_dataset(f['x'], mask, np.ones(len(f['x/a']), bool))",
    "start_swmr(f)",
]
NULL = [*put(10, 12)[:-1], "extend(f['x/_arrow/validity/0'], [False, True])", "f.flush()"]


@pytest.mark.parametrize(("look", "there"), [(0, 12), (1, 12), (2, 10)])
def test_a_null_whose_mask_comes_while_we_read_is_no_value(
    path: Path, writer: LiveWriter, look: int, there: int
) -> None:
    """Reading looks for the layout, then for rows and masks, then whether the masks are all still."""

    class Overtaken(OpenedFile):
        """Lets the writer make a mask and put a null between the opening of the file and the reading."""

        looks = 0

        def look(self, attempt: Callable[[h5py.File], Any]) -> Any:
            number, self.looks = self.looks, self.looks + 1

            def attempt_late(file: h5py.File) -> Any:
                if number == look:
                    # What a reader has looked at stays as it was: here, that there are no masks.
                    list(file["x"])
                    list(file["x/_arrow"])
                    writer.run(*MASK, *NULL)
                return attempt(file)

            return super().look(attempt_late)

    writer.run(*put(0, 10))
    opened = Overtaken(path)
    table = Instrument(opened, "x", "x").read()
    assert opened.looks > look
    assert table.column("a").to_pylist() == [*range(10), None, 11][:there]
    opened.close()


def test_rows_wait_for_their_mask(path: Path, writer: LiveWriter) -> None:
    writer.run(*put(0, 10), *MASK, *put(10, 12))
    with reader.open(path) as recording:
        assert recording["x"].num_rows == 10
        writer.run("extend(f['x/_arrow/validity/0'], [False, True]); f.flush()")
        assert recording["x"].read().column("a").to_pylist() == [*range(10), None, 11]


def test_a_reader_waits_while_the_writer_has_the_file_to_itself(path: Path, writer: LiveWriter) -> None:
    writer.run(*put(0, 10))
    with reader.open(path) as recording:
        writer.run("f = reopen(f)")
        writer.send("import time; time.sleep(0.3); start_swmr(f)")
        assert recording["x"].read().equals(rows(0, 10))
        writer.wait()
        writer.run("f = reopen(f)")
        writer.send("time.sleep(0.3); start_swmr(f)")
        assert reader.read(path, "x").equals(rows(0, 10))
        writer.wait()


def test_readers_do_not_keep_the_writer_from_reopening(path: Path, writer: LiveWriter) -> None:
    writer.run(*put(0, 10), "import time; stop = time.monotonic() + 1")
    writer.send("while time.monotonic() < stop:", "    f = reopen(f); start_swmr(f); time.sleep(0.001)")
    reads = 0
    end = time.monotonic() + 1
    while time.monotonic() < end:
        assert reader.read(path, "x").equals(rows(0, 10))
        reads += 1
    writer.wait()
    assert reads


def test_a_recording_that_is_finished_meanwhile_is_read_on(path: Path, writer: LiveWriter) -> None:
    with reader.open(path) as recording:
        writer.run(*put(0, 10), "f = reopen(f); f.attrs['state'] = 'complete'")
        writer.run("f['x'].attrs['NROWS'] = np.uint64(10); finish_file(f)")
        assert recording["x"].read().equals(rows(0, 10))
        recording.refresh()
        assert (recording.state, recording.live) == ("complete", False)
        assert recording["x"].read().equals(rows(0, 10))
        assert recording.accounting


def test_threads_may_share_a_live_recording(path: Path, writer: LiveWriter) -> None:
    writer.run(*put(0, 60))
    wrong: list[object] = []
    with reader.open(path) as recording:

        def follow() -> None:
            try:
                for _ in range(5):
                    table = pa.Table.from_batches(recording["x"].iter_batches(batch_rows=20))
                    if not table.equals(rows(0, 60)):
                        wrong.append(table)
            except Exception as error:  # noqa: BLE001  reported below
                wrong.append(error)

        threads = [threading.Thread(target=follow) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("locking", [None, False])
def test_a_second_handle_in_the_same_process_is_refused(
    path: Path, writer: LiveWriter, locking: bool | None
) -> None:
    writer.run(*put(0, 10))
    with reader.open(path) as recording:
        with h5py.File(path, "r", swmr=True, locking=locking):
            with pytest.raises(StorageError, match="has the live recording open") as caught:
                recording["x"].read()
            assert caught.value.errno == errno.EBUSY
        assert recording["x"].num_rows == 10


def test_what_a_killed_writer_left_is_readable(path: Path, writer: LiveWriter) -> None:
    writer.run(*put(0, 10), *put(10, 20)[:-1])
    writer.end()
    with reader.open(path) as recording:
        assert recording.live
        assert recording.accounting is None
        assert recording["x"].read().equals(rows(0, 10))


def test_a_writer_killed_in_its_window_leaves_an_error_with_a_remedy(path: Path, writer: LiveWriter) -> None:
    writer.run(*put(0, 10), "f = reopen(f)")
    writer.end()
    with pytest.raises(IncompleteFileError, match=r"already open for .*h5clear"):
        reader.open(path)


def test_a_mask_that_an_open_file_cannot_show_is_not_taken_for_none(output_dir: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir) as storage:
        storage.write_batch("x", pa.record_batch({"v": [1, 2]}))
        storage.flush()
        with shmstore.open(storage.path) as recording:
            layout = recording["x"].layout
        assert layout
        with open_file(storage.path, live=True) as file:
            storage.write_batch("x", pa.record_batch({"v": pa.array([None], pa.int64())}))
            storage.flush()
            with pytest.raises(KeyError, match="Unable to"):  # so that it is looked at anew
                StoredColumn(file["x"], layout.columns[0], pa.int64())
        assert shmstore.read(storage.path, "x")["v"].to_pylist() == [1, 2, None]
