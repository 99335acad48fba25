"""Trials: one real recording of the sample at one point, close included, and what it came to.

The clock starts with the word to producers that have their rings mapped, and stops when `HDF5Storage.close`
has returned: the file is closed and synced. Knows no goal: which figures are better is not said here.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shmstore.config import StorageConfig
from shmstore.errors import IncompleteFileError
from shmstore.settings import MIB
from shmstore.storage import HDF5Storage
from shmstore.tuning.crew import Crew, Order, Report
from shmstore.tuning.point import Point

#: Of what is free on the disk, one recording without a pace takes at most this share, and at most so much.
_DISK_SHARE, _MOST_BYTES = 0.25, 2048 * MIB
#: How often the rings are looked at, in seconds; each asks the writer.
_WATCH_S = 0.2


@dataclass(frozen=True, slots=True)
class Figures:
    """What a recording came to.

    Attributes
    ----------
    point : Point
        The settings that are tuned.
    mb_s : float
        10⁶ bytes of the columns a second, close included. With a pace: until the last batch was put.
    size : float
        Bytes of the file for each byte of the columns.
    seconds, close_s : float
        On the clock; the part of it that ``close()`` took.
    nbytes : int
        Bytes of the columns.
    blocked_s : float
        How long the producer that waited most waited for room in its ring.
    high_water : float
        How full the fullest ring was, from 0 to 1.
    dropped : int
        Rows dropped, by policy.
    late_s : float
        How far the producer that was slowest was behind its pace at the end.
    growth_mb_s : float
        How fast the rings filled in the second half, in 10⁶ bytes a second: what the writer lacks.
    p50_ms, p99_ms : float or None
        From seal to commit, in milliseconds, at a pace; None without.
    """

    point: Point
    mb_s: float
    size: float
    seconds: float
    close_s: float
    nbytes: int
    blocked_s: float = 0.0
    high_water: float = 0.0
    dropped: int = 0
    late_s: float = 0.0
    growth_mb_s: float = 0.0
    p50_ms: float | None = None
    p99_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain, JSON-ready values."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "point"}
        rounded = {
            key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()
        }
        return {"codec": str(self.point.codec), **self.point.options(), **rounded}


@dataclass(slots=True)
class Stage:
    """Where trials are made.

    Attributes
    ----------
    crew : Crew
        The producers.
    producers : int
        How many they are.
    folder : Path
        An empty folder on the disk that is tuned for; recordings come and go in it.
    instrument_id : str
        What is recorded as.
    fixed : mapping
        Fields of `StorageConfig` that hold in every trial.
    """

    crew: Crew
    producers: int
    folder: Path
    instrument_id: str
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def config(self, point: Point) -> StorageConfig:
        """Return the configuration of a trial; a point's settings go before those that are fixed."""
        return StorageConfig(**{**self.fixed, **point.options(), **self._own()})

    def _own(self) -> dict[str, Any]:
        return {
            "output_dir": self.folder,
            "filename": None,
            "name": None,
            "recover_at_start": False,
            "standby": False,  # what it takes to start would be on the clock of a short recording
            "disk_warn_bytes": 0,
        }

    def record(
        self, config: StorageConfig, point: Point, seconds: float, bytes_per_s: float | None = None
    ) -> Figures:
        """Record the sample for some seconds, then close; the file is removed.

        Parameters
        ----------
        config
            The whole configuration.
        point
            What the figures are filed under.
        seconds
            How long producers put; closing comes on top.
        bytes_per_s
            The pace of all producers together; None: as fast as there is room.

        Raises
        ------
        Stopped
            Somebody asked for an end; the recording is aborted.
        BrokenError, StorageError
            It failed.
        """
        config = config.replace(**self._own())
        free = shutil.disk_usage(self.folder).free
        most = free if bytes_per_s else min(free * _DISK_SHARE, _MOST_BYTES)
        storage = HDF5Storage(config).start()
        try:
            order = Order(
                name=storage.name,
                shm_dir=str(config.shm_dir),
                instrument_id=self.instrument_id,
                seconds=seconds,
                most_bytes=int(most / self.producers),
                bytes_per_s=bytes_per_s / self.producers if bytes_per_s else None,
            )
            self.crew.prepare(order)
            watch = _Watch(storage)
            began_s = time.monotonic()
            reports = self.crew.run(watch.look if bytes_per_s else lambda: None)
            # At a pace they wait for the last commit, too.
            put_s = began_s + max(report.seconds for report in reports)
            with contextlib.suppress(IncompleteFileError):  # what was dropped is among the figures
                storage.close()
            closed_s = time.monotonic()
            size = storage.path.stat().st_size
        except BaseException:
            storage.abort()
            raise
        finally:
            _empty(self.folder)
        ring_bytes = config.instrument(self.instrument_id).ring_bytes
        return Figures(
            point=point,
            size=size / max(1, sum(report.nbytes for report in reports)),
            seconds=closed_s - began_s,
            close_s=closed_s - put_s,
            high_water=min(1.0, storage.final_stats.ring_high_water / ring_bytes),
            growth_mb_s=growth(watch.seen, put_s, noise_bytes=2 * config.commit_bytes) / 1e6,
            **_by_producers(reports, closed_s - began_s, paced=bytes_per_s is not None),
        )


class _Watch:
    """Looks how full the rings are while a recording is on its way."""

    def __init__(self, storage: HDF5Storage) -> None:
        self._storage = storage
        self._due_s = 0.0
        self.seen: list[tuple[float, int]] = []

    def look(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._due_s = now_s + _WATCH_S
            self.seen.append((now_s, self._storage.stats().ring_bytes_used))


def growth(seen: Sequence[tuple[float, int]], until_s: float, noise_bytes: int) -> float:
    """Return how fast the rings filled while producers put, in bytes a second.

    Parameters
    ----------
    seen
        Moments, and the bytes in use then.
    until_s
        When the last batch was put: from then on the rings only empty.
    noise_bytes
        What their use goes up and down by; what came to less counts as none.

    Returns
    -------
    float
        The slope of a line through the second half.
    """
    putting = [moment for moment in seen if moment[0] <= until_s]
    half = putting[len(putting) // 2 :]
    if len(half) < 3:
        return 0.0
    times, used = np.array(half, float).T
    slope = float(np.polyfit(times - times[0], used, 1)[0])
    return slope if slope * (times[-1] - times[0]) > noise_bytes else 0.0


def _by_producers(reports: list[Report], clock_s: float, *, paced: bool) -> dict[str, Any]:
    """Return those of the figures that the producers know."""
    nbytes = sum(report.nbytes for report in reports)
    if paced:
        clock_s = max(report.seconds for report in reports)
    latencies_ms = np.array([seconds for report in reports for seconds in report.latencies_s]) * 1e3
    known = latencies_ms.size > 0
    return {
        "nbytes": nbytes,
        "mb_s": nbytes / 1e6 / max(clock_s, 1e-9),
        "blocked_s": max(report.wait_s for report in reports),
        "dropped": sum(report.dropped for report in reports),
        "late_s": max(report.late_s for report in reports),
        "p50_ms": float(np.percentile(latencies_ms, 50)) if known else None,
        "p99_ms": float(np.percentile(latencies_ms, 99)) if known else None,
    }


def _empty(folder: Path) -> None:
    """Remove what a recording left: its file, and after an abort what lies beside it."""
    for left in folder.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()
