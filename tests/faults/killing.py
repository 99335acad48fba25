"""A recording in full swing, for tests that kill any part of it, and the check of what is in its file then.

An owner process records; producer processes put batches of random sizes at full speed, each into one of two
instruments. After each accepted `put` a producer stores how many batches that makes, in a mapped file: what
was sealed is known to any process, whoever dies when. A batch that was sealed but not yet counted, one for
each producer at most, may be in the file; then it must be there whole.

Rows are those of `processes.rows`: they say who put them, and how large a batch is follows from its number.
Producers and owner run this module as their program.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pyarrow.compute as pc
from processes.ledger import plain_rows
from processes.programs import TIMEOUT_S, environment
from processes.rows import SCHEMA, Numbers, batch, endless_sizes, sizes, values

INSTRUMENTS = ("left", "right")
LARGEST_ROWS = 4000  # such a batch is never cut into slices: it is sealed whole or not at all
_FILE = "daq.h5"
MARK = "CREW_FOLDER"  # in the environment of the owner and of all that it starts


# -- the processes ---------------------------------------------------------------------------------------


def _own(folder: Path, producers: int, seconds: float, pause_s: float, settings: dict[str, Any]) -> None:
    """Record while the producers put; say who they are on standard output; close the recording."""
    import shmstore

    with shmstore.HDF5Storage(output_dir=folder / "out", filename=_FILE, **settings) as storage:
        crew = []
        for number in range(producers):
            arguments = ["put", str(folder), storage.name, str(number), str(seconds), str(pause_s)]
            crew.append(
                subprocess.Popen([sys.executable, "-P", __file__, *arguments], stdout=subprocess.PIPE)
            )
        for process in crew:
            assert process.stdout
            with process.stdout as line:
                line.readline()  # it has put its first batch, or is dead
        pids = [process.pid for process in crew]
        print(json.dumps({"name": storage.name, "producers": pids}), flush=True)
        for process in crew:
            process.wait()


def _put(folder: Path, name: str, number: int, seconds: float, pause_s: float) -> None:
    """Put for so long, with pauses; the count of batches is stored after each."""
    import shmstore

    path = _sealed_path(folder, number)
    with shmstore.connect(name) as client, path.open("r+b") as file, mmap.mmap(file.fileno(), 8) as memory:
        with memoryview(memory).cast("Q") as sealed:
            producer = client.producer(INSTRUMENTS[number % 2], SCHEMA)
            until = 0.0
            for sequence, rows in enumerate(endless_sizes(number, 0, LARGEST_ROWS)):
                if sequence and time.monotonic() >= until:
                    break
                producer.put(batch(number, sequence, rows), timeout=TIMEOUT_S)
                sealed[0] = sequence + 1  # one store: there is no half of it
                if pause_s:
                    time.sleep(pause_s)
                if not sequence:
                    print("ready", flush=True)
                    sys.stdin.read()  # until the owner closes it
                    until = time.monotonic() + seconds
        producer.close()


def _sealed_path(folder: Path, number: int) -> Path:
    return folder / "sealed" / str(number)


# -- the crew --------------------------------------------------------------------------------------------


class Crew:
    """The processes of a recording, made by `run_crew`.

    Attributes
    ----------
    folder : Path
        The recording lies in its folder ``out``, which holds nothing else of ours.
    path : Path
        The HDF5 file.
    name : str
        Name of its session.
    producers : tuple of int
        Their process ids, by number.
    """

    def __init__(
        self, folder: Path, owner: subprocess.Popen[str], name: str, producers: Sequence[int]
    ) -> None:
        self.folder = folder
        self.name = name
        self.path = folder / "out" / _FILE
        self.producers = tuple(producers)
        self._owner = owner

    @property
    def owner(self) -> int:
        """Process id of the owner."""
        return self._owner.pid

    def writers(self) -> list[int]:
        """Return the process ids of all writers that live now: replacements and standbys too."""
        known = {self.owner, *self.producers}
        return [process.pid for process in living(self.folder) if process.pid not in known]

    def everybody(self) -> list[int]:
        """Return the process ids of all that live now."""
        return [process.pid for process in living(self.folder)]

    def kill(self, *pids: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to processes, in this order, with nothing between; who is gone is not missed."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Wait for the owner's end, with the recording closed unless it was killed; return its exit code."""
        return self._owner.wait(timeout_s)

    def wait_for_all(self, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until nobody lives."""
        self._owner.wait(timeout_s)
        _wait_for(living(self.folder), self.owner, timeout_s)

    def sealed(self) -> dict[int, int]:
        """Return how many batches each producer has counted as sealed, by its number."""
        return read_sealed(self.folder)


def read_sealed(folder: Path) -> dict[int, int]:
    """Return how many batches each producer of a crew has counted as sealed, in whatever process."""
    return {
        int(path.name): int.from_bytes(path.read_bytes(), sys.byteorder)
        for path in (folder / "sealed").iterdir()
    }


@contextmanager
def run_crew(
    folder: Path,
    producers: int = 4,
    seconds: float = 2.0,
    *,
    strings: str = "vlen",
    pause_s: float = 0.0,
    env: Mapping[str, str] | None = None,
    **settings: Any,
) -> Iterator[Crew]:
    """Start a recording with its producers; at the end of the block whoever still lives is killed.

    The block begins when each producer has put a batch. Unless killed, the producers end after their time,
    and the owner closes the recording then: see `Crew.wait`. Nothing here clears up shared memory that a
    killed recording leaves.

    Parameters
    ----------
    folder
        Empty; gets ``out``, with the recording, and ``sealed``.
    producers
        How many processes put.
    seconds
        How long.
    strings
        How text is stored.
    pause_s
        What a producer waits after each batch.
    env
        What is added to the environment of all: that of a shim that watches ``folder / "out"``, say. That
        folder is made before the environment is used.
    **settings
        Further settings of the storage; by default a small ring and frequent flushes.
    """
    (folder / "sealed").mkdir(parents=True)
    (folder / "out").mkdir(exist_ok=True)
    for number in range(producers):
        _sealed_path(folder, number).write_bytes(bytes(8))
    chosen = {"ring_bytes": "2MiB", "auto_flush_interval_secs": 0.2, "strings": strings} | settings
    owner = subprocess.Popen(
        [
            sys.executable,
            "-P",
            __file__,
            "own",
            str(folder),
            str(producers),
            str(seconds),
            str(pause_s),
            json.dumps(chosen),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=environment() | {MARK: str(folder)} | dict(env or {}),
    )
    try:
        assert owner.stdout
        with owner.stdout as line:
            said = line.readline()
        assert said, f"the owner ended with exit code {owner.wait(TIMEOUT_S)} before the recording ran"
        yield Crew(folder, owner, **json.loads(said))
    finally:
        while left := living(folder):  # again, for a writer that was started meanwhile
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            owner.wait(TIMEOUT_S)
            _wait_for(left, owner.pid, TIMEOUT_S)
        owner.wait(TIMEOUT_S)


def _wait_for(processes: list[psutil.Process], owner: int, timeout_s: float) -> None:
    """Wait for the end of all but the owner, whose exit code only its `Popen` may fetch."""
    _, alive = psutil.wait_procs([process for process in processes if process.pid != owner], timeout_s)
    assert not alive, f"still there after {timeout_s} s: {alive}"


def living(folder: Path) -> list[psutil.Process]:
    """Return the processes of a crew: found by `MARK` in their environment, whoever their parent is."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == str(folder):
                found.append(process)
    return found


# -- the check -------------------------------------------------------------------------------------------

_MOST_NAMED = 100_000  # rows of a kind that are named, where all may be wrong

Run = tuple[int, int]  # places of rows that follow one another: the first, and the one after the last


def _no_rows() -> Numbers:
    return np.empty((0, 3), np.int64)


@dataclass
class Findings:
    """What is wrong with the rows of a file; each is an array ``(rows, 3)`` of producer, sequence and row.

    Of each kind 100,000 rows are named at most.

    Attributes
    ----------
    rows : int
        How many the file holds.
    lost, doubled : ndarray
        Rows that were sealed and are not there; rows that are there again.
    disordered : ndarray
        Rows that come after a later one of their producer.
    invented : ndarray
        Rows that nobody put, or in an instrument where nobody put them.
    altered : ndarray
        Rows with other values than were put.
    uneven : list of str
        Columns that have another length than their instrument, or that are missing.
    uncounted : dict
        Rows in the file of a batch that its producer had not counted yet, by producer: it is there whole, or
        the rest of it is among the lost.
    """

    rows: int = 0
    lost: Numbers = field(default_factory=_no_rows)
    doubled: Numbers = field(default_factory=_no_rows)
    disordered: Numbers = field(default_factory=_no_rows)
    invented: Numbers = field(default_factory=_no_rows)
    altered: Numbers = field(default_factory=_no_rows)
    uneven: list[str] = field(default_factory=list)
    uncounted: dict[int, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """Say in a line or two what is wrong, and where it begins."""
        told = [f"{self.rows} rows"]
        for name in ("lost", "doubled", "disordered", "invented", "altered"):
            rows = getattr(self, name)
            if len(rows):
                told.append(f"{len(rows)} {name}, from (producer, sequence, row) = {tuple(rows[0].tolist())}")
        return "; ".join(told + self.uneven)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        wrong = (self.lost, self.doubled, self.disordered, self.invented, self.altered)
        return not self.uneven and not any(map(len, wrong))


def check_file(path: Path, sealed: Mapping[int, int]) -> Findings:
    """Compare a file of a crew, read through plain h5py, with what was sealed.

    It is read piece by piece, so that it may be larger than memory.

    Parameters
    ----------
    path
        The HDF5 file; it must open.
    sealed
        How many batches each producer counted: `Crew.sealed`.
    """
    found = Findings()
    with h5py.File(path, "r") as file:
        for side, name in enumerate(INSTRUMENTS):
            mine = {number: count for number, count in sealed.items() if number % 2 == side}
            judge(read_rows(file[name], name, found) if name in file else (), mine, found)
    return found


def read_rows(group: Any, name: str, found: Findings) -> Iterator[Numbers]:
    """Give producer, sequence and row of all rows, in pieces; note whose other values are not theirs."""
    missing = [f"{name}/{column} is missing" for column in SCHEMA.names if column not in group]
    if missing:
        # Nothing at all is what an instrument looks like before its first batch.
        found.uneven += missing if len(missing) < len(SCHEMA.names) else []
        return
    lengths = {column: _length(group[column]) for column in SCHEMA.names}
    rows = min(int(group.attrs["NROWS"]), *lengths.values())
    found.uneven += [
        f"{name}/{column} has {length} rows of {group.attrs['NROWS']}"
        for column, length in lengths.items()
        if length != group.attrs["NROWS"]
    ]
    found.rows += rows
    for read in plain_rows(group, rows):
        part = np.stack([read["producer"], read["sequence"], read["row"].astype(np.int64)], axis=1)
        held = values(*part.T)
        right = pc.equal(read["label"], held["label"]).to_numpy(zero_copy_only=False)
        right = right & (read["value"] == held["value"]) & (read["flag"] == (held["flag"] & ~held["null"]))
        if "null" in read:
            right &= read["null"] == held["null"]
        _add(found, "altered", part[~right])
        yield part


def _length(stored: Any) -> int:
    return len(stored["OFFSETS"]) - 1 if isinstance(stored, h5py.Group) else len(stored)


def judge(
    pieces: Iterable[Numbers], sealed: Mapping[int, int], found: Findings, largest_rows: int = LARGEST_ROWS
) -> None:
    """Compare the rows of one instrument with what its producers put, in batches of up to so many rows."""
    # Where each batch begins if all rows of the producer stand in a row; one more may have been sealed.
    starts = {
        number: np.concatenate([[0], np.cumsum(sizes(number, 0, count + 1, largest_rows))])
        for number, count in sealed.items()
    }
    runs: dict[int, list[Run]] = {number: [] for number in sealed}
    for rows in pieces:
        _add(found, "invented", rows[~np.isin(rows[:, 0], list(sealed))])
        for number, count in sealed.items():
            mine = rows[rows[:, 0] == number]
            sequence, row = mine[:, 1], mine[:, 2]
            known = (sequence >= 0) & (sequence <= count)
            at = starts[number][np.where(known, sequence, 0)]
            known &= (row >= 0) & (row < starts[number][np.where(known, sequence, 0) + 1] - at)
            _add(found, "invented", mine[~known])
            _extend(runs[number], (at + row)[known])
    for number, count in sealed.items():
        _judge_runs(runs[number], number, starts[number], int(starts[number][count]), found)


def _extend(runs: list[Run], places: Numbers) -> None:
    """Take in places in the order in which their rows stand in the file."""
    for part in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1) if len(places) else ():
        start, stop = int(part[0]), int(part[-1]) + 1
        if runs and runs[-1][1] == start:
            start, _ = runs.pop()
        runs.append((start, stop))


def _judge_runs(runs: list[Run], number: int, starts: Numbers, counted: int, found: Findings) -> None:
    """Find out what of a producer's rows is lost, doubled or out of order; so many have been counted."""
    seen: list[Run] = []  # sorted, and apart from one another
    doubled: list[Run] = []
    disordered: list[Run] = []
    top = 0
    for run in runs:
        # A row that is there twice is judged by its first place.
        for start, stop in _without(run, seen):
            if start < top:
                disordered.append((start, min(stop, top)))
            top = max(top, stop)
        for again in _within(run, seen):
            doubled += _without(again, sorted(doubled))
        seen = _joined([*seen, run])
    uncounted = sum(stop - start for start, stop in _within((counted, int(starts[-1])), seen))
    if uncounted:
        found.uncounted[number] = uncounted
    due = (0, int(starts[-1]) if uncounted else counted)
    wrong = {"lost": _without(due, seen), "doubled": sorted(doubled), "disordered": disordered}
    for name, parts in wrong.items():
        for start, stop in parts:
            places = np.arange(start, min(stop, start + _MOST_NAMED))
            of = np.searchsorted(starts, places, side="right") - 1
            _add(found, name, np.stack([np.full(len(places), number), of, places - starts[of]], axis=1))


def _within(run: Run, others: Iterable[Run]) -> list[Run]:
    """Return the parts of a run that are in others."""
    parts = [(max(run[0], start), min(run[1], stop)) for start, stop in others]
    return [(start, stop) for start, stop in parts if start < stop]


def _without(run: Run, others: Iterable[Run]) -> list[Run]:
    """Return the parts of a run that are in none of others, which are sorted."""
    edges = [run[0], *(edge for part in _within(run, others) for edge in part), run[1]]
    return [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]


def _joined(runs: list[Run]) -> list[Run]:
    """Return runs sorted, with those put together that touch."""
    joined: list[Run] = []
    for start, stop in sorted(runs):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined


def _add(found: Findings, name: str, rows: Numbers) -> None:
    if len(rows):
        setattr(found, name, np.concatenate([getattr(found, name), rows])[:_MOST_NAMED])


if __name__ == "__main__":
    if sys.argv[1] == "own":
        _own(
            Path(sys.argv[2]),
            int(sys.argv[3]),
            float(sys.argv[4]),
            float(sys.argv[5]),
            json.loads(sys.argv[6]),
        )
    else:
        _put(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5]), float(sys.argv[6]))
