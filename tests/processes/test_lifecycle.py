"""How a recording ends: closed, forgotten, aborted, killed, or while others still put. Nothing is lost."""

from __future__ import annotations

import os
import pickle
import select
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pyarrow as pa
import pytest
from processes.ledger import Ledger, check_instrument, plain_rows
from processes.programs import TIMEOUT_S, line_from, run_script, started, tell
from processes.rows import SCHEMA, batch

import shmstore
from shmstore import HDF5Storage
from shmstore.producer import Producer

ROWS = 50  # of each batch

PRELUDE = f"""
import os, signal, sys
import shmstore
from processes.rows import SCHEMA, batch

def say(*words):
    print(*words, flush=True)

def put(producer, count, number=0):
    for sequence in range(count):
        producer.put(batch(number, sequence, {ROWS}))
"""

#: Puts until the recording ends, and says how many of its puts returned.
PUTTER = (
    PRELUDE
    + f"""
number = int(sys.argv[2])
client = shmstore.connect(*sys.argv[1:2], *sys.argv[3:])
producer = client.producer("x", SCHEMA)
sequence = 0
try:
    while True:
        producer.put(batch(number, sequence, {ROWS}))
        sequence += 1
        if sequence == 20:
            say("going")
except shmstore.ShmStoreError as error:
    say(type(error).__name__, sequence)
try:
    producer.put(batch(number, sequence, {ROWS}))
except shmstore.ShmStoreError as error:
    say(type(error).__name__)
"""
)

#: Says after each put that it returned.
TALKER = (
    PRELUDE
    + f"""
producer = shmstore.connect(sys.argv[1]).producer("x", SCHEMA)
sequence = 0
while True:
    producer.put(batch(0, sequence, {ROWS}))
    sequence += 1
    say(sequence)
"""
)

#: Owns a recording, puts, and waits for its end.
OWNER = (
    PRELUDE
    + """
place = {"shm_dir": sys.argv[1]} if sys.argv[1:] else {}
with shmstore.HDF5Storage(output_dir=".", ring_bytes="1MiB", **place) as storage:
    put(storage.producer("x", SCHEMA), 100)
    say(storage.path)
    say(storage.name)
    say(storage.writer_pid)
    sys.stdin.readline()
"""
)


def recording_of(folder: Path, **options: Any) -> HDF5Storage:
    return HDF5Storage(output_dir=folder, ring_bytes="1MiB", **options)


def put(producer: Producer, count: int, *, first: int = 0, number: int = 0) -> None:
    for sequence in range(first, first + count):
        producer.put(batch(number, sequence, ROWS))


def check(path: Path, puts: Mapping[int, int], state: str = "complete") -> None:
    """Check that the file holds exactly the batches of these producers, and that any HDF5 reader opens it."""
    with h5py.File(path) as file:
        assert file.attrs["state"] == state
        assert file["x"].attrs["NROWS"] == ROWS * sum(puts.values())
    with shmstore.open(path) as recording:
        assert recording.state == state
        assert recording.accounting
        assert recording.accounting["ok"]
        check_instrument(recording["x"], {number: np.full(count, ROWS) for number, count in puts.items()})


def check_wreck(path: Path, puts: int) -> None:
    """Check that a file without an end shows at least so many batches, and nothing that was not put."""
    with h5py.File(path, "r", swmr=True) as file:
        assert file.attrs["state"] == "recording"
        rows = min(len(file["x"][name]) for name in SCHEMA.names)
        assert rows >= puts * ROWS
        ledger = Ledger({0: np.full(rows // ROWS + 1, ROWS)})
        for read in plain_rows(file["x"], rows):
            ledger.check(read)


def await_exit(pid: int) -> None:
    """Wait until a process has gone, without taking its exit code from whoever started it."""
    try:
        exit_fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([exit_fd], [], [], TIMEOUT_S)[0], "it does not end"
    finally:
        os.close(exit_fd)


# -- close ---------------------------------------------------------------------------------------------------


def test_close_twice(output_dir: Path) -> None:
    storage = recording_of(output_dir).start()
    put(storage.producer("x", SCHEMA), 3)
    storage.close()
    storage.close()
    assert storage.state == "complete"
    check(storage.path, {0: 3})


def test_close_before_start(output_dir: Path) -> None:
    storage = recording_of(output_dir)
    storage.close()
    with pytest.raises(shmstore.ClosedError):
        storage.start()
    assert not list(output_dir.iterdir())


def test_a_storage_records_once(output_dir: Path) -> None:
    with recording_of(output_dir) as storage:
        with pytest.raises(shmstore.ClosedError, match="records once"):
            storage.start()
        put(storage.producer("x", SCHEMA), 1)
    with pytest.raises(shmstore.ClosedError, match="records once"):
        storage.start()
    check(storage.path, {0: 1})


@pytest.mark.parametrize(
    "use",
    [
        lambda storage: storage.producer("x", SCHEMA),
        lambda storage: storage.write_batch("x", batch(0, 0, 1)),
        lambda storage: storage.set_metadata("key", 1),
        lambda storage: storage.set_instrument_metadata("x", "key", 1),
        lambda storage: storage.flush(),
        lambda storage: storage.name,
        lambda storage: storage.writer_pid,
    ],
    ids=["producer", "write_batch", "set_metadata", "set_instrument_metadata", "flush", "name", "writer_pid"],
)
def test_a_closed_storage_says_so(output_dir: Path, use: Callable[[HDF5Storage], Any]) -> None:
    with recording_of(output_dir) as storage:
        pass
    with pytest.raises(shmstore.ClosedError, match="was closed"):
        use(storage)


@pytest.mark.parametrize("use", [lambda producer: put(producer, 1), lambda producer: producer.loan(1)])
@pytest.mark.parametrize("whose", ["own", "storage"])
def test_a_closed_producer_says_so(output_dir: Path, whose: str, use: Callable[[Producer], Any]) -> None:
    with recording_of(output_dir) as storage:
        producer, idle = storage.producer("x", SCHEMA), storage.producer("x", SCHEMA)
        put(producer, 2)
        if whose == "own":
            producer.close()
            producer.close()
            with pytest.raises(shmstore.ClosedError, match="'x'"):
                use(producer)
    for one in (producer, idle):
        with pytest.raises(shmstore.ClosedError, match="'x'"):
            use(one)
        one.close()
    check(storage.path, {0: 2})


def test_close_may_run_out_of_time_and_be_called_again(output_dir: Path) -> None:
    storage = recording_of(output_dir).start()
    producer = storage.producer("x", SCHEMA)
    put(producer, 5)
    writer = storage.writer_pid
    os.kill(writer, signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            storage.close(timeout=0.05)
    finally:
        os.kill(writer, signal.SIGCONT)
    storage.close()
    assert storage.state == "complete"
    check(storage.path, {0: 5})


def test_an_exception_in_the_block_is_the_one_to_see_and_what_was_put_is_there(output_dir: Path) -> None:
    storage = recording_of(output_dir)

    def fail_in_the_block() -> None:
        with storage:
            put(storage.producer("x", SCHEMA), 4)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail_in_the_block()
    assert storage.state == "complete"
    check(storage.path, {0: 4})


@pytest.mark.parametrize("puts", [0, 30])
def test_abort_says_so_in_the_file(output_dir: Path, puts: int) -> None:
    storage = recording_of(output_dir).start()
    producer = storage.producer("x", SCHEMA)
    put(producer, puts)
    storage.flush()
    storage.abort()
    storage.abort()
    storage.close()
    assert storage.state == "aborted"
    with pytest.raises(shmstore.ClosedError):
        put(producer, 1)
    if puts:
        check(storage.path, {0: puts}, "aborted")
    with h5py.File(storage.path) as file:
        assert file.attrs["state"] == "aborted"


def test_what_abort_drops_is_counted(output_dir: Path) -> None:
    storage = recording_of(output_dir).start()
    producer = storage.producer("x", SCHEMA)
    put(producer, 5)
    storage.flush()
    os.kill(storage.writer_pid, signal.SIGSTOP)
    try:
        put(producer, 7, first=5)
        aborting = threading.Thread(target=storage.abort)
        aborting.start()
    finally:
        os.kill(storage.writer_pid, signal.SIGCONT)
    aborting.join()
    stats = storage.final_stats
    assert stats.accepted == 12 * ROWS
    assert stats.committed + stats.dropped + stats.rejected == 12 * ROWS
    assert stats.committed == stats.rows_written >= 5 * ROWS
    check(storage.path, {0: stats.rows_written // ROWS}, "aborted")


# -- flush, metadata and instruments while recording ---------------------------------------------------------


@pytest.mark.parametrize("strings", ["vlen", "packed"])
def test_after_flush_readers_see_everything(output_dir: Path, strings: str) -> None:
    with recording_of(output_dir, strings=strings) as storage:
        mine = storage.producer("x", SCHEMA)
        with started(TALKER, output_dir, storage.name) as other:
            line_from(other)
            other.kill()
            other.wait()
        storage.flush()  # what is still in its ring is not counted yet
        theirs = storage.stats().instruments["x"].accepted // ROWS
        for turn in range(3):
            put(mine, 2, first=2 * turn, number=1)
            storage.flush()
            with h5py.File(storage.path, "r", swmr=True) as file:
                ledger = Ledger({0: np.full(theirs, ROWS), 1: np.full(2 * turn + 2, ROWS)})
                group = file["x"]
                assert {len(group[name]) for name in SCHEMA.names if name != "label"} == {ledger.total}
                for read in plain_rows(group):
                    ledger.check(read)
                ledger.check_complete()
    check(storage.path, {0: theirs, 1: 6})


VALUES = (
    *(True, 4, -(2**63), 2**64 - 1, 2**70, 0.5, float("inf"), "", "µ\n", "x" * 100_000, None),
    *([], [1, 2], [0.5, 1.5], ["a", "ä"], [True, False], [1, "a"], [0.5, 1], [[1], [2, 3]]),
    *({}, {"a": {"b": [None, 1]}}),
)


def test_metadata_comes_back_as_it_was(output_dir: Path) -> None:
    values = {f"value {number}": value for number, value in enumerate(VALUES)}
    with recording_of(output_dir) as storage:
        for key, value in values.items():
            storage.set_metadata(key, value)
            storage.set_instrument_metadata("x", key, value)
        put(storage.producer("x", SCHEMA), 2)
        for key in values:
            storage.set_instrument_metadata("x", f"changed {key}", {"before": 1})
        storage.flush()
        for key, value in values.items():
            storage.set_instrument_metadata("x", f"changed {key}", value)
            storage.set_instrument_metadata("late", key, value)
        with shmstore.open(storage.path) as recording:
            assert_same(recording.metadata, values)
    with shmstore.open(storage.path) as recording:
        assert_same(recording.metadata, values)
        assert_same(recording["x"].metadata, values | {f"changed {key}": values[key] for key in values})
        assert_same(recording["late"].metadata, values)
    check(storage.path, {0: 2})


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compare the types too: ``True == 1``."""
    assert {key: repr(value) for key, value in found.items()} == {
        key: repr(value) for key, value in expected.items()
    }


#: Holds a live file open, and says what one column of it shows whenever it is asked.
WATCHER = (
    PRELUDE
    + f"""
import h5py
with h5py.File(sys.argv[1], "r", swmr=True) as file:
    column = file["x/sequence"]
    say("open")
    while sys.stdin.readline():
        column.refresh()
        say(*column[::{ROWS}])
"""
)


def test_instruments_may_appear_under_the_eyes_of_readers(output_dir: Path) -> None:
    with recording_of(output_dir) as storage:
        first = storage.producer("x", SCHEMA)
        put(first, 2)
        storage.flush()
        with started(WATCHER, output_dir, storage.path) as watcher, shmstore.open(storage.path) as recording:
            assert line_from(watcher) == "open"
            for number in range(5):
                put(storage.producer(f"late {number}", SCHEMA), 1 + number)
                put(first, 1, first=2 + number)
                storage.flush()
                tell(watcher)
                assert line_from(watcher) == " ".join(map(str, range(3 + number)))
                recording.refresh()
                assert recording.instruments == ["x", *(f"late {other}" for other in range(number + 1))]
                check_instrument(recording[f"late {number}"], {0: np.full(1 + number, ROWS)})
                check_instrument(recording["x"], {0: np.full(3 + number, ROWS)})
    check(storage.path, {0: 7})


# -- owners that do not close --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("pass", 0),
        ("sys.exit(3)", 3),
        ("raise SystemExit", 0),
        ("1 / 0", 1),
        ("del storage, producer", 0),
        ("os._exit(4)", 4),
    ],
)
def test_a_forgotten_close(output_dir: Path, end: str, code: int) -> None:
    text = """
storage = shmstore.HDF5Storage(output_dir=".", ring_bytes="1MiB").start()
producer = storage.producer("x", SCHEMA)
say(storage.path, storage.writer_pid)
put(producer, 100)
"""
    path, writer = run_script(PRELUDE + text + end, output_dir, code=code).split()
    await_exit(int(writer))
    check(Path(path), {0: 100})


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_owner_that_is_ended_by_a_signal(output_dir: Path, number: int) -> None:
    with started(OWNER, output_dir) as owner:
        path, name, writer = (line_from(owner) for _ in range(3))
        owner.send_signal(number)
        owner.wait(TIMEOUT_S)
        await_exit(int(writer))
    assert not Path("/dev/shm", f"shmstore-{name}").exists()
    check(Path(path), {0: 100})


def test_an_owner_that_is_killed_while_others_put(output_dir: Path) -> None:
    with started(OWNER, output_dir) as owner:
        path, name, writer = (line_from(owner) for _ in range(3))
        with started(PUTTER, output_dir, name, 1) as one, started(PUTTER, output_dir, name, 2) as two:
            assert [line_from(one), line_from(two)] == ["going"] * 2
            owner.kill()
            said = [line_from(putter).split() for putter in (one, two)]
            assert [line_from(one), line_from(two)] == ["ClosedError"] * 2
        await_exit(int(writer))
    assert not Path("/dev/shm", f"shmstore-{name}").exists()
    assert [kind for kind, _ in said] == ["ClosedError"] * 2
    check(Path(path), {0: 100, 1: int(said[0][1]), 2: int(said[1][1])})


def test_a_writer_that_is_asked_to_end_finishes_the_file(output_dir: Path) -> None:
    with recording_of(output_dir) as storage:
        put(storage.producer("x", SCHEMA), 10)
        writer = storage.writer_pid
        os.kill(writer, signal.SIGINT)  # a Ctrl-C is the owner's affair
        storage.flush()
        os.kill(writer, signal.SIGTERM)
        await_exit(writer)
    assert storage.state == "complete"
    check(storage.path, {0: 10})


# -- a writer that is given up -------------------------------------------------------------------------------


@pytest.fixture
def killed(output_dir: Path, shared_folder: Path) -> tuple[HDF5Storage, Producer]:
    """A recording that flushed ten batches, and then lost its writer, which is not to be replaced."""
    storage = recording_of(output_dir, shm_dir=shared_folder, writer_deaths=0).start()
    producer = storage.producer("x", SCHEMA)
    put(producer, 10)
    storage.flush()
    os.kill(storage.writer_pid, signal.SIGKILL)
    await_exit(storage.writer_pid)
    return storage, producer


@pytest.mark.parametrize(
    "use",
    [
        lambda storage: storage.flush(),
        lambda storage: storage.stats(),
        lambda storage: storage.set_metadata("key", 1),
        lambda storage: storage.producer("y", SCHEMA),
        lambda storage: storage.write_batch("y", batch(0, 0, 1)),
        lambda storage: storage.close(),
    ],
    ids=["flush", "stats", "set_metadata", "producer", "write_batch", "close"],
)
def test_a_lost_writer_breaks_what_asks_for_it(
    killed: tuple[HDF5Storage, Producer], use: Callable[[HDF5Storage], Any]
) -> None:
    storage, _ = killed
    with pytest.raises(shmstore.BrokenError, match=f"shmstore recover {storage.path}") as caught:
        use(storage)
    assert "\n" not in str(caught.value)
    end_broken(storage)
    check_wreck(storage.path, 10)


def end_broken(storage: HDF5Storage) -> None:
    """Close a broken recording: the first close says so, and nothing runs on."""
    if storage_name(storage):
        with pytest.raises(shmstore.BrokenError, match="writer"):
            storage.close()
    storage.close()
    assert storage.state == "broken"


def storage_name(storage: HDF5Storage) -> str | None:
    try:
        return storage.name
    except shmstore.ClosedError:
        return None


def test_a_lost_writer_breaks_puts(killed: tuple[HDF5Storage, Producer]) -> None:
    storage, producer = killed
    for _ in range(2):  # some may still go into the ring before the loss is noticed
        with pytest.raises(shmstore.BrokenError, match="writer"):
            put(producer, 100_000, first=10)
    end_broken(storage)
    check_wreck(storage.path, 10)


def test_a_writer_that_is_lost_while_others_wait_for_it(output_dir: Path, shared_folder: Path) -> None:
    storage = recording_of(
        output_dir, put_timeout_s=TIMEOUT_S, shm_dir=shared_folder, writer_deaths=0
    ).start()
    with (
        started(PUTTER, output_dir, storage.name, 1, shared_folder) as one,
        started(PUTTER, output_dir, storage.name, 2, shared_folder) as two,
    ):
        assert [line_from(one), line_from(two)] == ["going"] * 2
        os.kill(storage.writer_pid, signal.SIGSTOP)
        while are_busy(one, two):
            time.sleep(0.01)
        os.kill(storage.writer_pid, signal.SIGKILL)
        assert [line_from(putter).split()[0] for putter in (one, two)] == ["BrokenError"] * 2
        assert [line_from(one), line_from(two)] == ["BrokenError"] * 2
    end_broken(storage)


def are_busy(*putters: Any) -> bool:
    """Whether any of the processes still uses the processor: none does once its ring is full."""
    before = [sum(psutil.Process(putter.pid).cpu_times()[:2]) for putter in putters]
    time.sleep(0.3)
    return [sum(psutil.Process(putter.pid).cpu_times()[:2]) for putter in putters] != before


def test_a_writer_that_is_lost_before_anything_was_put(output_dir: Path, shared_folder: Path) -> None:
    storage = recording_of(output_dir, shm_dir=shared_folder, writer_deaths=0).start()
    os.kill(storage.writer_pid, signal.SIGKILL)
    with pytest.raises(shmstore.BrokenError, match="writer"):
        storage.close()
    with h5py.File(storage.path, "r", swmr=True) as file:
        assert file.attrs["state"] == "recording"


@pytest.mark.parametrize("first", ["owner", "writer"])
def test_owner_and_writer_that_are_killed_break_puts_and_leave_the_rings(
    output_dir: Path, shared_folder: Path, first: str
) -> None:
    with started(OWNER, output_dir, shared_folder) as owner:
        path, name, writer = (line_from(owner) for _ in range(3))
        with started(PUTTER, output_dir, name, 1, shared_folder) as putter:
            assert line_from(putter) == "going"
            # Stopped, neither can do anything about the other's end.
            for pid in (owner.pid, int(writer)):
                os.kill(pid, signal.SIGSTOP)
            for pid in sorted(
                (owner.pid, int(writer)), key=lambda pid: (pid == owner.pid) != (first == "owner")
            ):
                os.kill(pid, signal.SIGKILL)
            assert line_from(putter).split()[0] == "BrokenError"
            assert line_from(putter) == "BrokenError"
        await_exit(int(writer))
        with pytest.raises(shmstore.BrokenError, match=f"have died.*`shmstore recover {output_dir / path}`"):
            shmstore.connect(name, shared_folder)
    names = {entry.name.partition("-")[0] for entry in (shared_folder / f"shmstore-{name}").iterdir()}
    assert {"page", "recording", "ring"} <= names


# -- producers that die, or are used twice -------------------------------------------------------------------


def test_a_killed_producer_leaves_all_that_it_sealed_and_others_in_peace(output_dir: Path) -> None:
    with recording_of(output_dir) as storage:
        mine = storage.producer("x", SCHEMA)
        put(mine, 5, number=1)
        with started(TALKER, output_dir, storage.name) as victim:
            while line_from(victim) != "30":
                pass
            victim.kill()
            assert victim.stdout
            said = [30, *(int(line) for line in victim.stdout.read().splitlines() if line)]
        put(mine, 5, first=5, number=1)
        storage.flush()
    theirs = storage.final_stats.rows_written // ROWS - 10
    assert said[-1] <= theirs <= said[-1] + 1  # it may have died between a put and saying so
    check(storage.path, {0: theirs, 1: 10})


def test_a_producer_that_dies_with_an_open_loan(output_dir: Path) -> None:
    text = """
import numpy as np, pyarrow as pa
schema = pa.schema([("n", pa.int64())])
producer = shmstore.connect(sys.argv[1]).producer("x", schema)
with producer.loan(3) as loan:
    loan["n"][...] = [0, 1, 2]
with producer.loan(3) as loan:
    loan["n"][...] = -1
    os.kill(os.getpid(), signal.SIGKILL)
"""
    schema = pa.schema([("n", pa.int64())])
    with recording_of(output_dir) as storage:
        run_script(PRELUDE + text, output_dir, storage.name, code=-signal.SIGKILL)
        storage.producer("x", schema).put(pa.record_batch({"n": pa.array([3, 4])}, schema))
    assert shmstore.read(storage.path, "x")["n"].to_pylist() == [0, 1, 2, 3, 4]


TWICE = (
    PRELUDE
    + """
import pickle
producer = pickle.loads(bytes.fromhex(sys.stdin.readline()))
try:
    put(producer, 1)
except shmstore.ShmStoreError as error:
    say(error)
else:
    say("taken")
sys.stdin.readline()
"""
)


def test_a_producer_in_two_processes_is_refused(output_dir: Path) -> None:
    with recording_of(output_dir) as storage:
        producer = storage.producer("x", SCHEMA)
        travelling = pickle.dumps(producer).hex()
        put(producer, 2)
        with pytest.raises(shmstore.ShmStoreError, match="in use in this process"):
            pickle.dumps(producer)
        with started(TWICE, output_dir) as other:
            tell(other, travelling)
            assert f"in use by process {os.getpid()}" in line_from(other)
        put(producer, 2, first=2)
    check(storage.path, {0: 4})


def test_a_producer_sent_on_is_refused_to_its_sender(output_dir: Path) -> None:
    with recording_of(output_dir) as storage:
        producer = storage.producer("x", SCHEMA)
        with started(TWICE, output_dir) as other:
            tell(other, pickle.dumps(producer).hex())
            assert line_from(other) == "taken"
            with pytest.raises(shmstore.ShmStoreError, match=f"in use by process {other.pid}"):
                put(producer, 1)
    check(storage.path, {0: 1})


def test_a_used_producer_is_refused_to_a_forked_child(output_dir: Path) -> None:
    text = """
with shmstore.HDF5Storage(output_dir=".", ring_bytes="1MiB") as storage:
    producer = storage.producer("x", SCHEMA)
    put(producer, 2)
    if (child := os.fork()) == 0:
        try:
            put(producer, 1)
        except shmstore.ShmStoreError as error:
            os._exit(7 if "in use by process" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    producer.put(batch(0, 2, 50))
print(storage.path)
"""
    check(Path(run_script(PRELUDE + text, output_dir).strip()), {0: 3})


# -- close while others put ----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "abort"])
def test_the_end_while_other_processes_put(output_dir: Path, end: str) -> None:
    storage = HDF5Storage(
        output_dir=output_dir, ring_bytes="64KiB"
    ).start()  # mostly full: they wait for space
    with (
        started(PUTTER, output_dir, storage.name, 1) as one,
        started(PUTTER, output_dir, storage.name, 2) as two,
    ):
        assert [line_from(one), line_from(two)] == ["going"] * 2
        getattr(storage, end)()
        said = [line_from(putter).split() for putter in (one, two)]
        assert [line_from(one), line_from(two)] == ["ClosedError"] * 2
    assert [kind for kind, _ in said] == ["ClosedError"] * 2
    returned = {1: int(said[0][1]), 2: int(said[1][1])}
    stats = storage.final_stats
    assert stats.accepted == stats.committed + stats.dropped + stats.rejected
    if end == "close":
        assert stats.dropped == 0
        check(storage.path, returned)
    else:
        assert stats.committed + stats.dropped >= sum(returned.values()) * ROWS
        assert storage.state == "aborted"


def test_close_while_threads_of_the_owner_put(output_dir: Path) -> None:
    going = threading.Barrier(4)
    counts: dict[int, int] = {}
    ends: dict[int, Exception] = {}

    def feed(producer: Producer, number: int) -> None:
        counts[number] = 0
        try:
            while True:
                put(producer, 1, first=counts[number], number=number)
                counts[number] += 1
                if counts[number] == 20:
                    going.wait(TIMEOUT_S)
        except shmstore.ShmStoreError as error:
            ends[number] = error

    with recording_of(output_dir) as storage:
        threads = [
            threading.Thread(target=feed, args=(storage.producer("x", SCHEMA), number)) for number in range(3)
        ]
        for thread in threads:
            thread.start()
        going.wait(TIMEOUT_S)
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert {number: type(error) for number, error in ends.items()} == dict.fromkeys(
        range(3), shmstore.ClosedError
    )
    check(storage.path, counts)


def test_a_disk_with_little_left_is_warned_of(shared_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with HDF5Storage(output_dir=shared_folder, disk_warn_bytes="1TiB"):  # more than there is memory
        pass
    assert f"bytes are left on the disk of {shared_folder}" in capfd.readouterr().err
