"""The main job: many producer processes, several instruments, batches of any size, a reader that looks on."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import h5py
import pytest
from processes.crew import feed
from processes.ledger import Ledger, check_instrument, plain_rows, visible_rows
from processes.programs import Child, children
from processes.rows import SCHEMA, Numbers, sizes

import shmstore

MIB = 2**20
PRODUCERS = 8
INSTRUMENTS = [f"instrument {number}" for number in range(4)]
RING_BYTES = 8 * MIB
#: What the writer may need beside rings and tails.
ALLOWANCE_BYTES = 256 * MIB
#: Batches of each producer for each instrument in the test that everybody runs.
BATCHES = int(os.environ.get("TEST_BATCHES", "16"))


def put_by_all(instrument: int, batches: int) -> dict[int, Numbers]:
    return {number: sizes(number, instrument, batches) for number in range(PRODUCERS)}


class Onlooker:
    """Follows a recording through plain h5py in SWMR mode, and checks each row that becomes visible.

    Parameters
    ----------
    path
        The file.
    batches
        How many of each producer for each instrument will come.
    hold
        Keep the file open from the moment when all columns are there; otherwise open it for each look, as
        HDF5 demands for variable-length strings: what holds new ones lies beyond the end of file that the
        handle knows.
    """

    def __init__(self, path: Path, batches: int, *, hold: bool) -> None:
        self._path = path
        self._hold = hold
        self._ledgers = [Ledger(put_by_all(number, batches)) for number in range(len(INSTRUMENTS))]
        self._file = self._opened()
        self.seen = [0] * len(INSTRUMENTS)
        self.growth = 0

    @property
    def total(self) -> int:
        return sum(ledger.total for ledger in self._ledgers)

    def look(self) -> int:
        """Check what is new; return the number of rows seen so far."""
        for number, name in enumerate(INSTRUMENTS):
            if self._hold:
                self._look_at(number, self._file[name])
                continue
            self._file.close()
            self._file = self._opened()
            with contextlib.suppress(OSError):  # strings that were added after this opening: the next look
                self._look_at(number, self._file[name])
        return sum(self.seen)

    def _look_at(self, number: int, group: h5py.Group) -> None:
        visible = visible_rows(group, self.seen[number])
        assert visible >= self.seen[number], "rows have gone"
        if visible == self.seen[number]:
            return
        for read in list(plain_rows(group, visible, self.seen[number])):
            read.pop("null", None)  # masks that are made later are not visible to this handle
            self._ledgers[number].check(read)
        self.growth += 1
        self.seen[number] = visible

    def close(self) -> None:
        self._file.close()

    def _opened(self) -> h5py.File:
        """Open the file as soon as all columns are there."""
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline, "the columns do not appear"
            try:
                file = h5py.File(self._path, "r", swmr=True)
            except OSError:  # the writer is adding objects in this moment
                continue
            with contextlib.suppress(KeyError):  # they may appear while we look
                if [file[name][column] for name in INSTRUMENTS for column in SCHEMA.names]:
                    return file
            file.close()


def look_on(eye: Onlooker, crew: list[Child], word: str, rows: int) -> None:
    """Look until all children have said the word, and then until so many rows are visible."""
    waiting = list(crew)
    while waiting:
        eye.look()
        waiting = [child for child in waiting if not child.line.poll(0)]
    assert [child.hear() for child in crew] == [word] * len(crew)
    deadline = time.monotonic() + 60
    while eye.look() < rows:
        assert time.monotonic() < deadline, f"only {eye.seen} rows are visible"


def peak_memory(pid: int) -> int:
    """Return the most memory that a process ever had, in bytes, shared memory included."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def record(folder: Path, batches: int, strings: str, found: dict[str, Any]) -> shmstore.HDF5Storage:
    """Record everything under the eyes of an onlooker; what was measured goes into ``found``."""
    config = shmstore.StorageConfig(
        output_dir=folder, ring_bytes=RING_BYTES, strings=strings, auto_flush_interval_secs=0.5
    )
    every_put = [put for number in range(len(INSTRUMENTS)) for put in put_by_all(number, batches).values()]
    with shmstore.HDF5Storage(config) as storage:
        session = Path("/dev/shm", f"shmstore-{storage.name}")
        began = time.monotonic()
        made = [[storage.producer(name, SCHEMA) for name in INSTRUMENTS] for _ in range(PRODUCERS)]
        crew = [Child(feed, number, producers, batches) for number, producers in enumerate(made)]
        with (
            children(*crew),
            contextlib.closing(Onlooker(storage.path, batches, hold=strings == "packed")) as eye,
        ):
            look_on(eye, crew, "half", sum(int(put[: batches // 2].sum()) for put in every_put))
            assert eye.growth
            for child in crew:
                child.line.send("go")
            look_on(eye, crew, "done", eye.total)
            found["put_s"] = time.monotonic() - began
            for child in crew:
                child.end()
        rings = PRODUCERS * len(INSTRUMENTS) * (RING_BYTES + 4096)
        tails = sum(path.stat().st_size for path in session.glob("tails-*"))
        found |= {
            "peak": peak_memory(storage.writer_pid),
            "rings": rings,
            "tails": tails,
            "growth": eye.growth,
        }
        assert found["peak"] < rings + tails + ALLOWANCE_BYTES
        began = time.monotonic()
    found |= {"close_s": time.monotonic() - began, "file": storage.path.stat().st_size}
    return storage


def check(folder: Path, batches: int, strings: str) -> dict[str, Any]:
    """Record, read back in two ways, compare the account; return what was measured."""
    found: dict[str, Any] = {}
    storage = record(folder, batches, strings, found)
    ledgers = [Ledger(put_by_all(number, batches)) for number in range(len(INSTRUMENTS))]
    total = found["rows"] = sum(ledger.total for ledger in ledgers)
    began = time.monotonic()
    with h5py.File(storage.path) as file:
        assert file.attrs["state"] == "complete"
        for name, ledger in zip(INSTRUMENTS, ledgers, strict=True):
            assert int(file[name].attrs["NROWS"]) == ledger.total
            for read in plain_rows(file[name]):
                assert "null" in read
                ledger.check(read)
            ledger.check_complete()
    found["h5py_s"], began = time.monotonic() - began, time.monotonic()
    with shmstore.open(storage.path) as recording:
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
    stats = storage.final_stats
    assert (stats.accepted, stats.committed, stats.rows_written, stats.in_flight) == (total, total, total, 0)
    return found


@pytest.mark.parametrize("strings", ["vlen", "packed"])
def test_all_rows_of_all_producers_arrive_once_and_in_order(output_dir: Path, strings: str) -> None:
    check(output_dir, BATCHES, strings)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("strings", ["vlen", "packed"])
def test_two_thousand_batches_of_each(output_dir: Path, strings: str) -> None:
    print(check(output_dir, 2000, strings))
