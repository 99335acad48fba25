"""How a figure is taken: what is on the clock, in which order, and on which memory.

Nothing here knows what is measured.
"""

from __future__ import annotations

import abc
import contextlib
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from shmstore.largepages import BLOCK_BYTES, BlockWindow, may_have_them

_BLOCK = bytes(8 << 20)


class Run(Protocol):
    """One way to bring a fixed amount of data into a file; used again and again, one life at a time.

    Attributes
    ----------
    label : str
        Its name in the report.
    amount : float
        What one run does, in the case's unit (MB, batches, …).
    touches : int
        Bytes of fresh memory that one run takes from the machine: file and rings.
    """

    label: str
    amount: float
    touches: int

    def prepare(self) -> None:
        """Get ready, off the clock."""

    def run(self) -> None:
        """Do it, on the clock, until the last byte is in the closed file."""

    def finish(self) -> dict[str, Any]:
        """Clear up, off the clock; returns what else was learned."""

    def abandon(self) -> None:
        """Clear up what there is, after a failure."""


class FileRun(abc.ABC):
    """A `Run` that makes one file, or one folder, and learns how large it is. To be derived from.

    Parameters
    ----------
    label
        Its name in the report.
    amount
        What one run does, in the case's unit.
    touches
        Bytes of fresh memory that one run takes.
    path
        What is made.
    """

    def __init__(self, label: str, amount: float, touches: int, path: Path) -> None:
        self.label = label
        self.amount = amount
        self.touches = touches
        self._path = path

    def prepare(self) -> None:  # noqa: B027 (most have nothing to get ready)
        """Nothing: the batches are made, the file is created on the clock."""

    @abc.abstractmethod
    def run(self) -> None:
        """Make it, synced and closed."""

    def finish(self) -> dict[str, Any]:
        """Remove what was made."""
        size = sum(path.stat().st_size for path in files_of(self._path))
        self.abandon()
        return {"file_bytes": size}

    def abandon(self) -> None:
        """Remove what was made, if anything was."""
        if self._path.is_dir():
            shutil.rmtree(self._path)
        else:
            self._path.unlink(missing_ok=True)


def files_of(path: Path) -> list[Path]:
    """Return the file, or all files in the folder."""
    return [inside for inside in path.rglob("*") if inside.is_file()] if path.is_dir() else [path]


def sync(path: Path) -> None:
    """Bring a closed file, or all files in a folder, to the disk, as the end of a recording does."""
    for file in files_of(path):
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)


def warm_up(folder: Path, size: int) -> None:
    """Bring ``size`` bytes of the machine's free memory back to life, through a file that is removed at once.

    A virtual machine gives the memory that it has not used for seconds back to its host: the first to write
    there gets 0.3–0.7 GB/s, the next 2 GB/s, and whoever runs second would seem three times as fast. That
    holds for small pages and for large ones, which the system takes from different places.
    """
    with _scratch(folder) as fd:
        for start in range(0, size, len(_BLOCK)):
            os.pwrite(fd, _BLOCK, start)
    with _scratch(folder) as fd:
        if not may_have_them(fd):
            return
        with contextlib.closing(BlockWindow(fd)) as window, contextlib.suppress(OSError):
            for block in range(-(-size // BLOCK_BYTES)):
                os.pwrite(fd, b"\0", block * BLOCK_BYTES)
                window.enlarge(block)


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[int]:
    path = folder / "warm-up"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        yield fd
    finally:
        os.close(fd)
        path.unlink()


def own_cpu_s() -> float:
    """Processor seconds of this process so far, and of its children that have ended."""
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def foreign_cpu_s() -> float:
    """Processor seconds that the machine has spent so far on anything but this process and its children."""
    user, nice, system, _, _, *interrupts = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    ticks = int(user) + int(nice) + int(system) + sum(map(int, interrupts))
    me = psutil.Process()
    own: float = sum(me.cpu_times()[:4])  # with the children that have ended
    for child in me.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            own += sum(child.cpu_times()[:4])
    return ticks / os.sysconf("SC_CLK_TCK") - own


@dataclass(slots=True)
class Series:
    """The rounds of one run.

    Attributes
    ----------
    run : Run
        What was run.
    seconds : list of float
        Each round's time on the clock.
    foreign : list of float
        Processors that others kept busy during each round: 0 on a quiet machine.
    rounds : list of dict
        What each round learned; ``cpu_s`` has the processor seconds of each process, by its role.
    """

    run: Run
    seconds: list[float] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    _cpu_s: float = 0.0

    def ready(self, folder: Path) -> None:
        """Prepare a round; the warming up comes last, so that nothing lies between it and the clock."""
        self.run.prepare()
        warm_up(folder, self.run.touches)

    def clocked(self) -> None:
        """Run, on the clock."""
        foreign, cpu = foreign_cpu_s(), own_cpu_s()
        began = time.perf_counter()
        self.run.run()
        self.seconds.append(time.perf_counter() - began)
        self._cpu_s = own_cpu_s() - cpu
        self.foreign.append(max(0.0, (foreign_cpu_s() - foreign) / self.seconds[-1]))

    def done(self) -> None:
        """Clear up after a round."""
        self.rounds.append({"cpu_s": {"process": self._cpu_s}} | self.run.finish())

    @property
    def details(self) -> dict[str, Any]:
        """What the last round learned."""
        return self.rounds[-1]

    @property
    def rates(self) -> list[float]:
        """Amount per second of each round."""
        return [self.run.amount / seconds for seconds in self.seconds]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, for the JSON."""
        return {"seconds": self.seconds, "foreign_processors": self.foreign, **self.details}


def in_turn(folder: Path, series: list[Series], tell: Callable[[Series], None]) -> None:
    """Run one round of each, one after the other; ``tell`` hears of each before it begins."""
    for one in series:
        tell(one)
        one.ready(folder)
        one.clocked()
        one.done()
