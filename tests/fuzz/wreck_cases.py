"""Cases of a killed recording of which some files are damaged, before it is recovered.

Each is recovered in a process of its own. Producer *n* put batches into instrument *n*, of rows that say who
they are; what a recovery returns is held against these.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from children import Child
from fuzz.damage import Damage, damaged
from fuzz.subject import ending_of, limit_memory, serve
from processes.rows import batch

import shmstore
from shmstore import opening
from shmstore.errors import IncompleteFileError, ShmStoreError
from shmstore.recovery import recover

#: How the text of each instrument is stored; the instruments are named so.
STRINGS = ("packed", "vlen")
ROWS, _FLUSHED, _COMMITTED, _SEALED = 40, 8, 14, 17
_NAME = "fuzzed"
_TIME_S = 10
#: What no checksum protects, as it does not outlive the machine: bodies of slots, and unfinished chunks.
_UNPROTECTED = re.compile(r"ring-\d+|tails-\d+")
_CHUNK = re.compile(r"instrument '(\w+)'(?:, column '\w+')?: .*(?:damaged|gone from shared memory)")


def wreck(folder: Path) -> None:
    """Record into ``folder/out`` with the session in ``folder``, and kill all who do."""
    (folder / "out").mkdir()
    with Child(
        "import os, signal, time, shmstore",
        "from processes.rows import SCHEMA, batch",
        f"storage = shmstore.HDF5Storage(output_dir={str(folder / 'out')!r}, filename='daq.h5',",
        f"    shm_dir={str(folder)!r}, name={_NAME!r}, ring_bytes='128KiB', chunk_rows=64,",
        "    recover_at_start=False, auto_flush_interval_secs=0).start()",
        f"made = [storage.producer(how, SCHEMA, strings=how) for how in {STRINGS!r}]",
        "def put(first, last):",
        "    for sequence in range(first, last):",
        "        for number, producer in enumerate(made):",
        f"            producer.put(batch(number, sequence, {ROWS}))",
        f"put(0, {_FLUSHED})",
        "storage.flush()",
        f"put({_FLUSHED}, {_COMMITTED})",
        "time.sleep(0.5)",
        "os.kill(storage.writer_pid, signal.SIGSTOP)",
        f"put({_COMMITTED}, {_SEALED})",
        "say(storage.writer_pid)",
        "wait()",
        also=Path(__file__).parent.parent,
    ) as owner:
        writer = int(owner.hear())
        exited = os.pidfd_open(writer)
        os.kill(writer, signal.SIGKILL)
        owner.end()
        os.close(exited)


class Cases:
    """The wreck as it was left, and copies of it, damaged."""

    def __init__(self, folder: Path) -> None:
        opening.WINDOW_S = 0.01
        self._folder = folder
        session = folder / f"shmstore-{_NAME}"
        self._disk = _contents(folder / "out")
        self._memory = _contents(session)
        self._expected = {
            how: pa.Table.from_batches([batch(number, at, ROWS) for at in range(_SEALED)])
            for number, how in enumerate(STRINGS)
        }

    def __call__(self, damages: Sequence[Damage], disk: bool, session: bool) -> str | None:
        """Try one, in a process of its own.

        Parameters
        ----------
        damages
            What is done; each to a file of its own choice.
        disk
            Whether files on the disk are damaged, or what is in shared memory.
        session
            Whether shared memory is there at all, as after a kill; else it is as after a power cut.
        """
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            signal.alarm(_TIME_S)
            limit_memory()
            ending = ending_of(lambda damages: self._try(damages, disk, session), damages)
            os.write(writing, ending.encode()[:60_000])
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as answer:
            ending = answer.read().decode()
        _, status = os.waitpid(child, 0)
        if status == signal.SIGPROF:  # see docs/recovery.md
            return "HDF5 does not come back from a damaged file without a whole journal"
        assert not status, f"recovery ended with status {status}"
        kind, _, said = ending.partition(": ")
        assert kind in ("right", "refused"), ending
        return said or None

    def _try(self, damages: Sequence[Damage], disk: bool, session: bool) -> str | None:
        out, left = self._folder / "copy", self._folder / "shmstore-copy"
        for folder in (out, left):
            shutil.rmtree(folder, ignore_errors=True)
        for stray in self._folder.glob("shmstore-recover-*"):
            shutil.rmtree(stray)
        files = {out / name: content for name, content in self._disk.items()}
        if session:
            files |= {left / name: content for name, content in self._memory.items()}
            files[left / "recording"] = os.fsencode(out / "daq.h5")
        top = out if disk or not session else left
        victims = sorted(path for path in files if path.is_relative_to(top) and path.name != "recording")
        touched = set()
        for damage in damages:
            victim = victims[damage.region % len(victims)]
            regions = [] if top == out else [(0, 4096)] * (damage.region // len(victims) % 2)
            files[victim] = damaged(files[victim], [damage], regions)
            touched.add(victim)
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.write_bytes(content)
        damaged_file = out / "daq.h5" in touched
        if damaged_file and len(touched) > 1:  # without its journal it is read through HDF5
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, _TIME_S)
        try:
            report = recover(out / "daq.h5", shm_dir=self._folder)
        except ShmStoreError:
            now = _contents(out)
            assert now == {
                str(path.relative_to(out)): files[path] for path in files if path.is_relative_to(out)
            }
            assert not list(self._folder.glob("shmstore-recover-*"))
            raise
        checked = top == out or not any(_UNPROTECTED.fullmatch(path.name) for path in touched)
        if report.source == "file":  # whose checksums only the journal has
            checked = checked and not damaged_file
        self._check(out / "daq.h5", report.problems, checked, session)
        return report.problems[0] if report.problems else None

    def _check(self, path: Path, problems: Sequence[str], checked: bool, session: bool) -> None:
        told = {found[1] for problem in problems if (found := _CHUNK.search(problem))}
        verdict = shmstore.verify(path)
        assert set(verdict.problems) <= {f"accounting: {problem}" for problem in problems} | set(problems)
        missing = 0
        with shmstore.open(path) as recording:
            for name, expected in self._expected.items():
                if name not in recording:
                    missing += len(expected)
                    continue
                try:
                    found = recording[name].read() if recording[name].layout else expected.slice(0, 0)
                except IncompleteFileError:
                    assert name in told
                    continue
                missing += len(expected) - len(found)
                if name not in told and checked:
                    at = found["sequence"].to_numpy() * ROWS + found["row"].to_numpy()
                    assert (np.diff(at) > 0).all(), f"rows of {name} are doubled or out of order"
                    assert found.equals(expected.take(at)), f"rows of {name} are wrong"
        assert missing >= 0 or not checked, "there are rows that nobody put"
        assert problems or not missing, f"{missing} rows are missing, and nobody is told"
        assert session or problems, "a power cut costs rows, and nobody is told"


def _contents(folder: Path) -> dict[str, bytes]:
    """Return what regular files hold, by their path within a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if stat.S_ISREG(path.lstat().st_mode)
    }


if __name__ == "__main__":
    serve(Cases(Path(sys.argv[1])))
