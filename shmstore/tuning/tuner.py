"""The tuner: a sample, a crew and a folder on the disk; from them a tuning, and checks of a configuration.

Owns everything that is made on the way, and removes it. What it is at goes to a callback, for who shows it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from shmstore import chunking
from shmstore.bench.harness import warm_up
from shmstore.bench.limits import PwriteLoop
from shmstore.bench.streams import total_bytes
from shmstore.config import StorageConfig
from shmstore.errors import StorageError, storage_error
from shmstore.layout import Layout
from shmstore.planning import plan
from shmstore.sources.files import Source
from shmstore.tuning.codecs import CodecFigures, candidate_points, measure, values_of, worth_recording
from shmstore.tuning.crew import Crew, Stopped
from shmstore.tuning.front import front
from shmstore.tuning.goal import HEADROOM, Goal, amount, lacking_mb_s
from shmstore.tuning.point import Point
from shmstore.tuning.sample import SAMPLE_BYTES, Sample, take_sample
from shmstore.tuning.search import SETTINGS, Bounds, Choice, Search, planned
from shmstore.tuning.trial import Figures, Stage

__all__ = ["Check", "Stopped", "Tuner", "Tuning"]

#: What the first stage may take of the time, and what one codec at one chunk size takes at most, in seconds.
_ALONE_SHARE, _ALONE_S = 0.25, 0.5
#: How long producers put in one recording, in seconds.
_SHORTEST_S, _LONGEST_S = 0.3, 5.0
#: What brings the machine's memory and the imports of all processes up; its figures are not used.
_WARM_UP_S = 0.3
#: With fewer chunks of each column, rows repeat within a chunk, and the last one weighs too much.
_LEAST_CHUNKS = 4
#: Of wide tables a sample may be larger, for so many chunks of this size in each column, and up to this.
_NARROW_CHUNK, _LARGEST_SAMPLE = 256 << 10, 512 << 20
#: What rings may take of the shared memory that is free, and batches that one must hold.
_RING_SHARE, _RING_BATCHES = 0.5, 4
#: What writes more than this share of what the disk alone takes is held up by the disk.
_DISK_BOUND = 0.6
#: Recorded as this where no instrument is named.
_INSTRUMENT = "stream"
_WORK_PREFIX = ".shmstore-tune-"


@dataclass(frozen=True, slots=True)
class Check:
    """How a configuration did at the rate that is asked for.

    Attributes
    ----------
    asked_mb_s : float
        The rate, in 10⁶ bytes a second, of all producers together.
    lacking_mb_s : float
        What it fell short by; 0 if it holds.
    figures : Figures
        Of the recording.
    """

    asked_mb_s: float
    lacking_mb_s: float
    figures: Figures

    @property
    def holds(self) -> bool:
        """Whether the rate was held, with nothing dropped."""
        return self.lacking_mb_s == 0

    def sentence(self) -> str:
        """Return the verdict, for people."""
        figures = self.figures
        put_s = figures.seconds - figures.close_s
        waited = (
            f"producers waited {figures.blocked_s:.2g} s"
            if figures.blocked_s >= 0.001
            else "no producer waited"
        )
        lost = f"{figures.dropped:,} rows were dropped" if figures.dropped else "nothing was dropped"
        rings = f"rings were at most {100 * figures.high_water:.0f} % full, {waited}, {lost}"
        if self.holds:
            more = (
                f", 99 % of batches were committed within {amount(figures.p99_ms)} ms"
                if figures.p99_ms
                else ""
            )
            return f"holds {amount(self.asked_mb_s)} MB/s for {put_s:.3g} s: {rings}{more}"
        reached = max(0.0, self.asked_mb_s - self.lacking_mb_s)
        return (
            f"does not hold {amount(self.asked_mb_s)} MB/s: it lacks {amount(self.lacking_mb_s)} MB/s and "
            f"reaches {amount(reached)} ({100 * reached / self.asked_mb_s:.0f} %); {rings}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain, JSON-ready values."""
        return {
            "holds": self.holds,
            "asked_mb_s": self.asked_mb_s,
            "lacking_mb_s": round(self.lacking_mb_s, 3),
            "sentence": self.sentence(),
            **self.figures.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was measured and chosen.

    Attributes
    ----------
    sample : Sample
        What was recorded.
    goal : Goal
        What was wanted; for latency without a rate, with the rate that was recorded at.
    producers : int
        How many there were.
    alone : list of CodecFigures
        Codecs alone.
    figures : list of Figures
        All recordings.
    default : Figures or None
        That of the settings that the search began with.
    chosen : Figures
        That of what was chosen.
    choices : dict of str to Choice
        Why, by setting.
    disk_mb_s : float
        What the disk alone takes: the sample by bare `pwrite`, then fdatasync.
    notes : list of str
        What a user should know about the measurement.
    seconds : float
        How long it took.
    """

    sample: Sample
    goal: Goal
    producers: int
    alone: list[CodecFigures]
    figures: list[Figures]
    default: Figures | None
    chosen: Figures
    choices: dict[str, Choice]
    disk_mb_s: float
    notes: list[str]
    seconds: float

    @property
    def front(self) -> list[Figures]:
        """The recordings that no other beats in all that counts, the fastest first."""
        return front(self.figures, self.goal.costs)

    @property
    def alone_front(self) -> list[CodecFigures]:
        """The codecs that no other beats alone, the fastest first."""
        return front(self.alone, lambda each: (-each.mb_s, each.size))

    @property
    def holds(self) -> bool:
        """Whether what was chosen holds the rate that was asked for."""
        return self.goal.holds(self.chosen)

    def disk_sentence(self) -> str:
        """Return what the disk alone takes, and how much of that what was chosen used."""
        share = self.chosen.mb_s * self.chosen.size / self.disk_mb_s
        return f"the disk alone takes {amount(self.disk_mb_s)} MB/s, of which {100 * share:.0f} % were used"

    def _remedy(self) -> str:
        best = max(self.figures, key=lambda each: each.mb_s)
        disk_bound = best.mb_s * best.size > _DISK_BOUND * self.disk_mb_s
        return "take a faster disk" if disk_bound else "take more cores"

    def shortfall(self) -> str | None:
        """Return by how much what was chosen fails the rate asked for, and what to do; None: it holds."""
        asked, needed = self.goal.asked_mb_s, self.goal.needed_mb_s
        if asked is None or needed is None or self.holds:
            return None
        reached = self.chosen.mb_s
        if self.chosen.p99_ms is not None:
            reached = asked - lacking_mb_s(self.chosen, asked)
        return (
            f"nothing that was recorded holds {amount(asked)} MB/s with 20 % to spare: the best reached "
            f"{amount(reached)} MB/s, {amount(max(0.0, needed - reached))} less than the {amount(needed)} it "
            f"takes; lower the rate to {amount(reached / HEADROOM)} MB/s, or {self._remedy()}"
        )

    def recommendation(self, asked_mb_s: float) -> str:
        """Return what would hold a rate that what was chosen did not hold."""
        above = Goal("size", asked_mb_s)
        faster = [each for each in self.figures if each.p99_ms is None and above.holds(each)]
        faster = [each for each in faster if each.mb_s > self.chosen.mb_s]
        if faster:
            best = above.best(faster)
            return (
                f"{best.point.codec} recorded {amount(best.mb_s)} MB/s ({100 * best.size:.0f} % of the "
                f"data's size): try --set compression={best.point.compression}, or --goal rate"
            )
        most = max((each.mb_s for each in self.figures), default=0.0)
        return (
            f"no setting recorded more than {amount(most)} MB/s here: lower the rate to "
            f"{amount(most / HEADROOM)} MB/s, or {self._remedy()}"
        )


@dataclass(slots=True)
class Tuner:
    """Measures one user's data on one disk. A context manager: leaving it removes all that it made.

    Attributes
    ----------
    source : Source
        The data, open; only the first part is read, when the context is entered.
    output_dir : Path
        A folder on the disk that is tuned for; made if it is missing.
    producers : int
        Processes that put, all for one instrument.
    instrument_id : str or None
        That instrument.
    fixed : mapping
        Settings that stay as given.
    tell : callable
        Takes a line about what it is at.
    stopped : callable
        Asked often; once true, `Stopped` is raised.
    """

    source: Source
    output_dir: Path
    producers: int = 1
    instrument_id: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    tell: Callable[[str], None] = lambda text: None
    stopped: Callable[[], bool] = lambda: False
    sample: Sample = field(init=False)
    _stage: Stage = field(init=False)
    _layout: Layout = field(init=False)
    _owned: contextlib.ExitStack = field(init=False, default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        """Take the sample and start the producers.

        Raises
        ------
        InputError, UnsupportedTypeError
            The data cannot be read or recorded.
        StorageError
            The folder cannot be written to.
        """
        with contextlib.ExitStack() as made:
            # Whatever is wrong with the settings is said before anything is made.
            base = StorageConfig(**self.fixed).instrument(self.instrument_id or _INSTRUMENT)
            self._layout = plan(self.source.schema, lambda name: base.column(name).strings)
            folder = self._work_folder()
            made.callback(shutil.rmtree, folder, ignore_errors=True)
            self.tell(f"reading a sample of {self.source.name}")
            columns = sum(len(column.streams) for column in self._layout.columns)
            most = min(_LARGEST_SAMPLE, max(SAMPLE_BYTES, _LEAST_CHUNKS * _NARROW_CHUNK * columns))
            self.sample = take_sample(self.source, folder / "sample.arrows", most, self.stopped)
            self._stop_if_asked()
            crew = made.enter_context(Crew(self.sample.path, self.producers, self.stopped))
            recordings = folder / "recordings"
            recordings.mkdir()
            self._stage = Stage(
                crew, self.producers, recordings, self.instrument_id or _INSTRUMENT, dict(self.fixed)
            )
            self._owned = made.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """End the producers and remove the folder."""
        self._owned.__exit__(*exception)  # type: ignore[arg-type]

    def tune(self, goal: Goal, seconds: float) -> Tuning:
        """Measure codecs alone, then recordings; choose.

        Parameters
        ----------
        goal
            What is wanted.
        seconds
            About how long it may take; one recording is made at least.

        Raises
        ------
        Stopped
            Somebody asked for an end.
        InvalidValueError
            A value of the data cannot be recorded.
        """
        began_s = time.monotonic()
        end_s = began_s + seconds
        base = Point.of(StorageConfig(**self.fixed), self._stage.instrument_id)
        batches = self.sample.batches()
        part = batches[: max(1, len(batches) * SAMPLE_BYTES // max(SAMPLE_BYTES, self.sample.nbytes))]
        values = values_of(part, self._layout)
        widest = max((each.items.nbytes for each in values), default=0) * len(batches) // len(part)
        largest = widest // _LEAST_CHUNKS
        points = candidate_points(base, tuple(self.fixed), largest) if values else [base]
        limit_s = min(_ALONE_S, seconds * _ALONE_SHARE / len(points))
        alone = []
        for number, point in enumerate(points, 1):
            self._stop_if_asked()
            if number == 1 or point.codec != points[number - 2].codec:
                self.tell(f"measuring codecs alone: {point.codec}, {number} of {len(points)}")
            if values and point.codec.direct:
                alone.append(measure(point, values, limit_s))
        points = self._worth_recording(base, goal, alone, seconds)
        disk_mb_s = self._disk_alone()
        self.tell("one recording to warm up")
        warm_up_s = time.monotonic()
        first = self._stage.record(self._stage.config(base), base, _WARM_UP_S)
        warm_up_s = time.monotonic() - warm_up_s
        if goal.kind == "latency" and goal.asked_mb_s is None:
            goal = replace(goal, asked_mb_s=first.mb_s / 2)
        bounds = self._bounds(largest)
        fixed = [name for name in self.fixed if name in SETTINGS]
        each_s = (end_s - time.monotonic()) / planned(points, bounds, goal, fixed) - (warm_up_s - _WARM_UP_S)
        recordings = _Recordings(
            self._stage,
            self.tell,
            seconds=min(_LONGEST_S, max(_SHORTEST_S, each_s)),
            pace=goal.asked_mb_s * 1e6 if goal.kind == "latency" and goal.asked_mb_s else None,
            end_s=end_s,
            took_s=warm_up_s,
        )
        search = Search(goal, recordings.record, recordings.time_left, bounds, fixed)
        chosen = search.run(points)
        default = next((each for each in search.figures if each.point == base), None)
        return Tuning(
            self.sample,
            goal,
            self.producers,
            alone,
            search.figures,
            default,
            chosen,
            search.choices,
            disk_mb_s,
            self._notes(chosen, len(values)),
            time.monotonic() - began_s,
        )

    def check(self, config: StorageConfig, asked_mb_s: float, seconds: float) -> Check:
        """Record at a pace for some seconds, and judge.

        Parameters
        ----------
        config
            What is checked.
        asked_mb_s
            The pace of all producers together, in 10⁶ bytes a second.
        seconds
            How long.

        Raises
        ------
        StorageError
            The disk has no room for that.
        """
        free, need = shutil.disk_usage(self.output_dir).free, asked_mb_s * 1e6 * seconds
        if need > free:
            raise StorageError(
                errno.ENOSPC,
                f"a check at {amount(asked_mb_s)} MB/s for {seconds:g} s writes up to {need / 1e9:,.3g} GB, "
                f"and the disk has {free / 1e9:,.3g}: lower --check-seconds",
                str(self.output_dir),
            )
        self.tell(f"checking {amount(asked_mb_s)} MB/s for {seconds:g} s")
        figures = self._stage.record(
            config, Point.of(config, self._stage.instrument_id), seconds, asked_mb_s * 1e6
        )
        return Check(asked_mb_s, lacking_mb_s(figures, asked_mb_s), figures)

    def _worth_recording(
        self, base: Point, goal: Goal, alone: list[CodecFigures], seconds: float
    ) -> list[Point]:
        """Return the codecs to record, the most promising first, and what the search begins with."""
        cores = len(os.sched_getaffinity(0))
        able = [each for each in alone if goal.asked_mb_s is None or each.mb_s * cores >= goal.asked_mb_s]
        most = min(6, max(2, int(seconds / 8)))
        points = [each.point for each in worth_recording(able or alone, most)]
        if goal.kind == "size":
            points.reverse()
        if base not in points:
            points.append(base)
        return points

    def _disk_alone(self) -> float:
        self.tell("writing the sample to the disk, bare")
        count = max(1, self.sample.count * SAMPLE_BYTES // max(SAMPLE_BYTES, self.sample.nbytes))
        nbytes = total_bytes(self.sample, count)
        bare = PwriteLoop(self.sample, count, self._stage.folder, 1.0)
        try:
            warm_up(self._stage.folder, nbytes)
            began_s = time.monotonic()
            bare.run()
            return nbytes / 1e6 / (time.monotonic() - began_s)
        finally:
            bare.abandon()

    def _bounds(self, largest_chunk: int) -> Bounds:
        free = shutil.disk_usage(StorageConfig(**self.fixed).shm_dir).free
        return Bounds(
            largest_chunk=largest_chunk,
            smallest_ring=_RING_BATCHES * self.sample.nbytes // self.sample.count,
            largest_ring=int(free * _RING_SHARE / self.producers),
        )

    def _notes(self, chosen: Figures, streams: int) -> list[str]:
        notes = []
        together = streams * (chosen.point.chunk_bytes or chunking.largest_bytes(streams))
        known = min(self.sample.nbytes, chosen.nbytes)
        if known < _LEAST_CHUNKS * together:
            notes.append(
                f"sizes are rough: the sample has {amount(self.sample.nbytes / 1e6)} MB and the recording "
                f"had {amount(chosen.nbytes / 1e6)}, and one chunk of each column is "
                f"{amount(together / 1e6)} MB; give more data, or more --seconds"
            )
        texts = [
            column.name
            for column in self._layout.columns
            if any(stream.variable for stream in column.streams)
        ]
        if texts:
            named = ", ".join(map(repr, texts[:3])) + (", …" if len(texts) > 3 else "")
            notes.append(
                f"no codec compresses {named}: HDF5 keeps such text itself; --set strings=packed is smaller "
                "and faster"
            )
        if not streams:
            notes.append("there is nothing else in the data, so codecs were not compared")
        return notes

    def _work_folder(self) -> Path:
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=_WORK_PREFIX, dir=self.output_dir))
        except OSError as error:
            raise storage_error(error, "make a folder to record in", self.output_dir) from None

    def _stop_if_asked(self) -> None:
        if self.stopped():
            raise Stopped


@dataclass(slots=True)
class _Recordings:
    """Recordings of one length, as many as there is time for."""

    stage: Stage
    tell: Callable[[str], None]
    seconds: float
    pace: float | None
    end_s: float
    took_s: float

    def record(self, point: Point) -> Figures:
        began_s = time.monotonic()
        self.tell(f"recording {point}")
        figures = self.stage.record(self.stage.config(point), point, self.seconds, self.pace)
        self.took_s = time.monotonic() - began_s
        return figures

    def time_left(self) -> bool:
        return time.monotonic() + self.took_s < self.end_s
