"""Fixtures for every test. First of all: a test that leaves something behind fails, passed or not."""

from __future__ import annotations

import gc
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

SHARED_MEMORY = Path("/dev/shm")
FOLDER_PREFIX = "shmstore-test-"  # of folders that fixtures make, and remove
SETTLE_S = 2.0  # how long after a test what it started may take to go away

# Inherited by everything that a test starts: finds a process again whose parent was killed.
RUN_MARK = "SHARED_MEMORY_LEAK_CHECK"


@dataclass(frozen=True)
class Belongings:
    """What this test run holds at one moment, outside its own memory."""

    segments: frozenset[Path]
    processes: frozenset[psutil.Process]
    descriptors: frozenset[tuple[int, str]]
    threads: frozenset[threading.Thread]

    @classmethod
    def now(cls) -> Belongings:
        """Look at the kernel's and the interpreter's own lists."""
        return cls(
            segments=frozenset(
                # Nobody has a folder open, so it would be blamed on a test of another run going on beside.
                path
                for path in SHARED_MEMORY.glob("shmstore-*")
                if not path.name.startswith(FOLDER_PREFIX)
            ),
            processes=frozenset(_processes()),
            descriptors=frozenset(_descriptors()),
            threads=frozenset(thread for thread in threading.enumerate() if not thread.daemon),
        )

    def since(self, before: Belongings) -> Belongings:
        """Return what is here and was not there."""
        segments = self.segments - before.segments
        return Belongings(
            segments=segments - _held_by_strangers(segments) if segments else segments,
            processes=self.processes - before.processes,
            descriptors=self.descriptors - before.descriptors,
            threads=self.threads - before.threads,
        )

    def lines(self) -> list[str]:
        """Describe each, one a line."""
        return [
            *(f"shared memory: {path}" for path in sorted(self.segments)),
            *(f"process: {_describe(process)}" for process in self.processes),
            *(f"open file: {number} -> {target}" for number, target in sorted(self.descriptors)),
            *(f"thread: {thread.name}" for thread in self.threads),
        ]


def _processes() -> Iterator[psutil.Process]:
    """Yield our living descendants, those included whose parent is gone."""
    # multiprocessing keeps these two for the life of the interpreter.
    kept = {
        getattr(multiprocessing.resource_tracker._resource_tracker, "_pid", None),
        getattr(multiprocessing.forkserver._forkserver, "_forkserver_pid", None),
    }
    found = set(psutil.Process().children(recursive=True))
    mark = os.environ.get(RUN_MARK)
    for process in psutil.process_iter():
        try:
            if mark and process.pid != os.getpid() and process.environ().get(RUN_MARK) == mark:
                found.add(process)
        except psutil.Error:
            continue  # gone meanwhile, or another user's
    yield from (process for process in found if process.pid not in kept)


def _descriptors() -> Iterator[tuple[int, str]]:
    """Yield number and target of what is open in this process; terminals, /dev/null and such do not count."""
    kept = {
        getattr(multiprocessing.resource_tracker._resource_tracker, "_fd", None),
        getattr(multiprocessing.forkserver._forkserver, "_forkserver_alive_fd", None),
    }
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208  Path.iterdir would stat each
        try:
            if number not in kept and not stat.S_ISCHR(os.fstat(number).st_mode):
                yield number, os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
        except OSError:
            continue  # the folder listing's own


def _held_by_strangers(segments: frozenset[Path]) -> set[Path]:
    """Return those that somebody else's process has open: another test run's, or a real recording's."""
    ours = {os.getpid(), *(process.pid for process in _processes())}
    strangers: set[Path] = set()
    for process in psutil.process_iter():
        if process.pid in ours:
            continue
        try:
            names = [entry.path for entry in process.memory_maps(grouped=False)]
            names += [entry.path for entry in process.open_files()]
        except psutil.Error:
            continue
        strangers |= {path for path in segments if any(Path(name).is_relative_to(path) for name in names)}
    return strangers


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} ({process.status()}) {' '.join(process.cmdline())}"
    except psutil.Error:
        return f"{process.pid} (gone)"


@pytest.fixture(scope="session", autouse=True)
def _mark_run() -> Iterator[None]:
    os.environ[RUN_MARK] = str(os.getpid())
    yield
    del os.environ[RUN_MARK]


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves shared memory, a process, an open file or a thread behind."""
    before = Belongings.now()
    yield
    deadline = time.monotonic() + SETTLE_S
    while left := (extra := Belongings.now().since(before)).lines():
        if time.monotonic() > deadline:
            break
        gc.collect()
        time.sleep(0.05)
    if left:
        for process in extra.processes:  # or they would outlive the run
            try:
                process.kill()
                process.wait(SETTLE_S)
            except psutil.Error:
                continue
        pytest.fail("left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    """Return an empty folder for the files that a test records."""
    return tmp_path


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """Return an empty folder in shared memory, removed after the test with all that is in it."""
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=SHARED_MEMORY))
    yield folder
    shutil.rmtree(folder)
