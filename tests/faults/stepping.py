"""Runs the recording of `faults.stepping_crew` with a step armed, and checks what is in its file then.

Counts of what was sealed outlive any kill, as in `faults.killing`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
from faults.killing import Findings, judge, read_rows
from faults.stepping_rows import BATCHES, FILE, LARGEST_ROWS, PLAIN, RINGS, TIMEOUT_S, sealed_path, value
from processes.programs import environment
from processes.rows import Numbers, sizes

from shmstore.session import PREFIX

SHARED_MEMORY = Path("/dev/shm")

RING_BYTES = 32 * 1024
_PROGRAM = Path(__file__).with_name("stepping_crew.py")
_MARK = "STEPPING_FOLDER"  # in the environment of the owner and of all that it starts


# -- the run ---------------------------------------------------------------------------------------------


class Run:
    """A recording with a step armed, made by `run`.

    Attributes
    ----------
    folder : Path
        The recording lies in its folder ``out``, which holds nothing else of ours.
    path : Path
        The HDF5 file.
    session : Path
        The session's folder.
    report : dict
        What the owner said at its end; empty if it was killed.
    """

    def __init__(self, folder: Path, name: str, owner: subprocess.Popen[str]) -> None:
        self.folder = folder
        self.session = SHARED_MEMORY / f"{PREFIX}{name}"
        self.path = folder / "out" / FILE
        self.report: dict[str, Any] = {}
        self._owner = owner

    def wait(self) -> int:
        """Wait until nobody lives any more; return the owner's exit code."""
        assert self._owner.stdout
        said = self._owner.stdout.read()  # to its end: a producer holds it open no longer than it lives
        self.report = json.loads(said) if said else {}
        deadline = time.monotonic() + TIMEOUT_S
        while left := living(self.folder):
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(0.01)
        return self._owner.wait(TIMEOUT_S)

    def others_end(self, stopped: int) -> None:
        """Wait until the producer has ended that is not the one stopped."""
        deadline = time.monotonic() + TIMEOUT_S
        while [process for process in living(self.folder, "put") if process.pid != stopped]:
            assert time.monotonic() < deadline, "a producer waits for another one that is stopped"
            time.sleep(0.01)


@contextmanager
def run(folder: Path, plan: str, **options: Any) -> Iterator[Run]:
    """Start the recording; at the end of the block whoever still lives is killed.

    Parameters
    ----------
    folder
        Empty; gets ``out``, ``sealed``, and ``once``, where each step that fired leaves its file.
    plan
        ``SHMSTORE_STEP``.
    **options
        ``settings`` of the storage; whether something is ``refused``; whether to wait for a ``standby``.
    """
    for name in ("out", "sealed", "once"):
        (folder / name).mkdir()
    for ring in RINGS:
        sealed_path(folder, ring).write_bytes(bytes(8))
    settings = {
        "name": f"steps-{secrets.token_hex(6)}",
        "ring_bytes": RING_BYTES,
        "chunk_rows": 128,
        "auto_flush_interval_secs": 0.1,
        "commit_interval_ms": 10,
        "standby": bool(options.get("standby")),
        "codec_threads": 1,
    }
    options["settings"] = settings | options.get("settings", {})
    owner = subprocess.Popen(
        [sys.executable, "-P", os.fspath(_PROGRAM), "own", str(folder), json.dumps(options)],
        stdout=subprocess.PIPE,
        text=True,
        env=_armed(folder, plan),
    )
    try:
        yield Run(folder, settings["name"], owner)
    finally:
        while left := living(folder):  # again, for a writer that was started meanwhile
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.01)
            owner.poll()
        owner.wait(TIMEOUT_S)
        if owner.stdout:
            owner.stdout.close()


def recovery(folder: Path, plan: str) -> subprocess.Popen[bytes]:
    """Start to recover the recording, with a step armed."""
    return subprocess.Popen(
        [sys.executable, "-P", os.fspath(_PROGRAM), "recover", str(folder / "out" / FILE)],
        env=_armed(folder, plan),
    )


def fired(folder: Path, step: str) -> int:
    """Return the process that a step met; 0 if none has come to it."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int((folder / "once" / step).read_text())
    return 0


def await_stop(folder: Path, step: str) -> int:
    """Wait until a process has been stopped at a step, and return it."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        pid = fired(folder, step)
        with contextlib.suppress(psutil.NoSuchProcess):
            if pid and psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                return pid
        time.sleep(0.01)
    raise AssertionError(f"nobody was stopped at {step}")


def let_go_on(pid: int, number: int = signal.SIGCONT) -> None:
    """Send a signal to a process that may have gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def living(folder: Path, role: str = "") -> list[psutil.Process]:
    """Return the processes of a run, found by their environment; those of one role only, if one is given."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(_MARK) != str(folder) or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if not role or role in process.cmdline()[:4]:
                found.append(process)
    return found


def _armed(folder: Path, plan: str) -> dict[str, str]:
    armed = {"SHMSTORE_STEP": plan, "SHMSTORE_STEP_ONCE": str(folder / "once")}
    return environment() | {_MARK: str(folder)} | armed


# -- the check -------------------------------------------------------------------------------------------


def sealed(folder: Path) -> dict[int, int]:
    """Return how many batches each ring's producer has counted as sealed."""
    return {ring: int.from_bytes(sealed_path(folder, ring).read_bytes(), sys.byteorder) for ring in RINGS}


def sealed_rows(folder: Path) -> int:
    """Return how many rows that is."""
    return sum(
        int(sizes(ring, 0, BATCHES, LARGEST_ROWS)[:count].sum()) for ring, count in sealed(folder).items()
    )


def check(folder: Path) -> Findings:
    """Compare the file, read through plain h5py, with what was sealed; it must open."""
    found = Findings()
    with h5py.File(folder / "out" / FILE, "r") as file:
        for ring, count in sealed(folder).items():
            name = RINGS[ring]
            rows: Iterable[Numbers] = ()
            if name in file and "row" in file[name]:
                rows = (
                    read_rows(file[name], name, found) if ring < 2 else [_read_plain(file[name], name, found)]
                )
            judge(rows, {ring: count}, found, LARGEST_ROWS)
    return found


def _read_plain(group: h5py.Group, name: str, found: Findings) -> Numbers:
    columns = {column: group[column][:] for column in [*PLAIN.names, "extra"] if column in group}
    rows = min(map(len, columns.values()))
    found.uneven += [
        f"{name}/{column} has {len(values)} rows of {group.attrs['NROWS']}"
        for column, values in columns.items()
        if len(values) != group.attrs["NROWS"]
    ]
    found.rows += rows
    read = {column: values[:rows] for column, values in columns.items()}
    stacked: Numbers = np.stack([read[column].astype(np.int64) for column in PLAIN.names[:3]], axis=1)
    right = read["value"] == value(stacked[:, 1], stacked[:, 2])
    if "extra" in read:
        later = stacked[:, 1] >= BATCHES // 2
        right &= np.where(later, read["extra"] == stacked[:, 2], read["extra"] == 0)
    found.altered = np.concatenate([found.altered, stacked[~right]])
    return stacked
