"""The main job: many producer processes, several instruments, batches of any size, a reader that looks on."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import pytest
from processes.programs import Child, children
from processes.rows import SCHEMA, Ledger, Numbers, batch, check_instrument, plain_rows, sizes

import shmstore

MIB = 2**20
PRODUCERS = 8
INSTRUMENTS = [f"instrument {number}" for number in range(4)]
RING_BYTES = 8 * MIB
#: What the writer may need beside rings and tails.
ALLOWANCE_BYTES = 256 * MIB
#: Batches of each producer for each instrument in the test that everybody runs.
BATCHES = int(os.environ.get("TEST_BATCHES", "40"))


def feed(number: int, producers: list[shmstore.Producer], batches: int, line: Connection) -> None:
    """Put all batches of one producer process; pause halfway until the test says go."""
    plan = [sizes(number, instrument, batches) for instrument in range(len(producers))]
    for sequence in range(batches):
        if sequence == batches // 2:
            line.send("half")
            line.recv()
        for producer, rows in zip(producers, plan, strict=True):
            producer.put(batch(number, sequence, int(rows[sequence])))
    for producer in producers:
        producer.close()
    line.send("done")


def put_by_all(instrument: int, batches: int) -> dict[int, Numbers]:
    return {number: sizes(number, instrument, batches) for number in range(PRODUCERS)}


class Onlooker:
    """Follows a recording through plain h5py in SWMR mode, and checks each row that becomes visible."""

    def __init__(self, file: h5py.File, batches: int) -> None:
        self._file = file
        self._ledgers = [Ledger(put_by_all(number, batches)) for number in range(len(INSTRUMENTS))]
        self.seen = [0] * len(INSTRUMENTS)
        self.growth = 0

    @property
    def total(self) -> int:
        return sum(ledger.total for ledger in self._ledgers)

    def look(self) -> int:
        """Check what is new; return the number of rows seen so far."""
        for number, (name, ledger) in enumerate(zip(INSTRUMENTS, self._ledgers, strict=True)):
            group = self._file[name]
            for column in SCHEMA.names:
                group[column].refresh()
            visible = min(len(group[column]) for column in SCHEMA.names)
            assert visible >= self.seen[number], "rows have gone"
            if visible > self.seen[number]:
                self.growth += 1
                for read in plain_rows(group, visible, self.seen[number]):
                    read.pop("null", None)  # masks that are made later are not visible to this handle
                    ledger.check(read)
                self.seen[number] = visible
        return sum(self.seen)


def opened_live(path: Path) -> h5py.File:
    """Open the recording for following as soon as all its columns are there."""
    deadline = time.monotonic() + 60
    while True:
        try:
            file = h5py.File(path, "r", swmr=True)
            with contextlib.suppress(KeyError):  # they may appear while we look
                if [file[name][column] for name in INSTRUMENTS for column in SCHEMA.names]:
                    return file
            file.close()
        except OSError:  # the writer is adding objects in this moment
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline, "the columns do not appear"


def peak_memory(pid: int) -> int:
    """Return the most memory that a process ever had, in bytes, shared memory included."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def record(folder: Path, batches: int) -> Iterator[tuple[str, Any]]:
    """Record everything under the eyes of an onlooker; yield what was measured."""
    with shmstore.HDF5Storage(output_dir=folder, ring_bytes=RING_BYTES, auto_flush_interval_secs=0.5) as storage:
        session = Path("/dev/shm", f"shmstore-{storage.name}")
        began = time.monotonic()
        made = [
            [storage.producer(name, SCHEMA) for name in INSTRUMENTS] for _ in range(PRODUCERS)
        ]
        crew = [Child(feed, number, producers, batches) for number, producers in enumerate(made)]
        with children(*crew):
            with opened_live(storage.path) as file:
                onlooker = Onlooker(file, batches)
                waiting = list(crew)
                while waiting:
                    onlooker.look()
                    waiting = [child for child in waiting if not child.line.poll(0)]
                assert [child.hear() for child in crew] == ["half"] * PRODUCERS
                halfway = onlooker.growth
                for child in crew:
                    child.line.send("go")
                deadline = time.monotonic() + 1000
                while onlooker.look() < onlooker.total:
                    assert time.monotonic() < deadline, f"only {onlooker.seen} rows are visible"
            assert [child.hear() for child in crew] == ["done"] * PRODUCERS
            for child in crew:
                child.end()
        yield "put_s", time.monotonic() - began
        assert onlooker.growth > halfway > 0
        rings = storage.stats().ring_bytes
        tails = sum(path.stat().st_size for path in session.glob("tails-*"))
        peak = peak_memory(storage.writer_pid)
        began = time.monotonic()
    yield "close_s", time.monotonic() - began
    yield "path", storage.path
    yield "stats", storage.final_stats
    yield "memory", (peak, rings, tails)
    yield "growth", onlooker.growth


def check(folder: Path, batches: int) -> dict[str, Any]:
    found = dict(record(folder, batches))
    peak, rings, tails = found["memory"]
    assert peak < PRODUCERS * len(INSTRUMENTS) * (RING_BYTES + 4096) + tails + ALLOWANCE_BYTES, (peak, rings, tails)
    ledgers = [Ledger(put_by_all(number, batches)) for number in range(len(INSTRUMENTS))]
    total = sum(ledger.total for ledger in ledgers)
    began = time.monotonic()
    with h5py.File(found["path"]) as file:
        assert file.attrs["state"] == "complete"
        for name, ledger in zip(INSTRUMENTS, ledgers, strict=True):
            assert int(file[name].attrs["num_rows"]) == ledger.total
            for read in plain_rows(file[name]):
                assert "null" in read
                ledger.check(read)
            ledger.check_complete()
    found["h5py_s"], began = time.monotonic() - began, time.monotonic()
    with shmstore.open(found["path"]) as recording:
        accounting = recording.accounting
        for number, name in enumerate(INSTRUMENTS):
            check_instrument(recording[name], put_by_all(number, batches))
    found["open_s"] = time.monotonic() - began
    assert accounting
    assert accounting["ok"]
    accounts = accounting["producers"]
    assert len(accounts) == PRODUCERS * len(INSTRUMENTS)
    for account in accounts:
        assert account["accepted"] == account["committed"] > 0
        assert account["dropped"] == account["rejected"] == 0
    assert sum(account["accepted"] for account in accounts) == total
    stats = found["stats"]
    assert (stats.accepted, stats.committed, stats.rows_written, stats.in_flight) == (total, total, total, 0)
    found["rows"] = total
    return found


def test_all_rows_of_all_producers_arrive_once_and_in_order(output_dir: Path) -> None:
    check(output_dir, BATCHES)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_two_thousand_batches_of_each(output_dir: Path) -> None:
    print(check(output_dir, 2000))
