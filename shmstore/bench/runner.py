"""One case measured: shmstore, the machine's limits and the peers, in turn; what comes out as plain values.

Knows the order of things and what goes into the document. What a run does is its own matter; what is shown
while it goes on is the caller's.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Self

from shmstore.bench import machine
from shmstore.bench.cases import Case
from shmstore.bench.handover import HandedOver
from shmstore.bench.harness import Run, Series
from shmstore.bench.limits import (
    Chunks,
    CodecAlone,
    Memcpy,
    PwriteLoop,
    PwriteResult,
    chunks_of,
    machine_limit,
)
from shmstore.bench.peers import PEERS, Peer
from shmstore.bench.recorders import Recording
from shmstore.bench.streams import total_bytes, total_rows
from shmstore.errors import storage_error

#: Where files go unless said otherwise: no disk in the figures.
SHARED_MEMORY = Path("/dev/shm")
#: A peer that would take longer for a round gets as much less to do.
_LONGEST_PEER_S = 1.0
#: Share of a case that is recorded before anything counts, and by every peer.
_REHEARSAL = 1 / 16
#: Batches of a smoke run.
_SMOKE_BATCHES = 8
#: The latency of puts is taken at this share of the rate that was reached, for about so long.
_PACE, _PACED_S = 0.5, 1.0

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How cases are measured.

    Attributes
    ----------
    output : Path
        Folder in which a folder of the case's own is made, and removed.
    rounds : int
        Rounds of each run.
    peers : bool
        Whether peers take part.
    smoke : bool
        Whether it is only to be seen that everything runs: tiny amounts, one round.
    """

    output: Path = SHARED_MEMORY
    rounds: int = 5
    peers: bool = True
    smoke: bool = False


@dataclass(slots=True)
class _Entry:
    """A series with what the report says of it."""

    kind: str
    series: Series
    codec: str = ""


class Comparison:
    """A case on its way: `prepare`, then rounds, then `found`. A context manager.

    Parameters
    ----------
    case
        What is measured.
    plan
        How.
    tell
        Hears what begins, as (what, number of it, of how many).
    """

    def __init__(self, case: Case, plan: Plan, tell: Tell = lambda what, number, total: None) -> None:
        share = min(1.0, _SMOKE_BATCHES / case.batches)
        self.case = case.scaled(share) if plan.smoke else case
        self.rounds = 1 if plan.smoke else plan.rounds
        self._plan = plan
        self._tell = tell
        self._done = 0
        self._absent: dict[str, str] = {}
        self._entries: list[_Entry] = []
        self._current: Run | None = None
        self._latency: dict[str, Any] = {}
        self._folder: TemporaryDirectory[str] | None = None
        self._nbytes = total_bytes(self.case.stream, self.case.batches)
        self._per_batch = self._nbytes / 1e6 / self.case.batches
        # What HDF5's own pipeline encodes has no codec that could be measured alone.
        self._direct = self.case.codec != "none" and self.case.parsed_codec.direct
        self._peers = [peer for peer in PEERS if self._takes_part(peer)] if plan.peers else []

    def __enter__(self) -> Self:
        """Make the folder."""
        output = self._plan.output
        try:
            output.mkdir(parents=True, exist_ok=True)
            self._folder = TemporaryDirectory(prefix="benchmark-", dir=output)
            free = shutil.disk_usage(output).free
        except OSError as error:
            raise storage_error(error, "write there", output, "choose another folder with --output") from None
        # A file as large as the stream, and before it a scratch file of the same size.
        needed = 2 * self._nbytes + self.case.producers * self.case.config.ring_bytes
        if free < needed:
            self._folder.cleanup()
            advice = (
                f"{needed >> 20} MiB are needed, {free >> 20} are free: free some, or choose another --output"
            )
            raise storage_error(OSError(errno.ENOSPC, ""), "measure there", output, advice)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Clear up whatever was going on, and remove the folder."""
        if self._current is not None:
            self._current.abandon()
        if self._folder is not None:
            self._folder.cleanup()

    # -- the steps -------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Record a little, to warm up and to learn the chunks; try every peer; take the latency of puts."""
        case, output = self.case, self._output
        small = case if self._plan.smoke else case.scaled(_REHEARSAL)
        chunks, rate = self._rehearse(small)
        ours = Series(self._recording(case))
        self._entries = [_Entry("shmstore", ours, str(case.parsed_codec))]
        megabytes = self._nbytes / 1e6
        ring = case.config.ring_bytes
        limits: list[Run] = [
            Memcpy(case.stream, case.batches, ring, self._per_batch),
            PwriteLoop(case.stream, case.batches, output, self._per_batch),
        ]
        if case.codec == "none":
            limits.append(HandedOver(case.stream, case.batches, ring, output, self._per_batch))
        if self._direct and chunks.arrays:
            threads = case.config.codec_thread_count
            limits.append(CodecAlone(chunks, case.parsed_codec, threads, megabytes))
            limits.append(PwriteResult(chunks, case.parsed_codec, output, megabytes))
        self._entries += [_Entry("limit", Series(run)) for run in limits]
        for peer in self._peers:
            batches = self._batches_of(peer, small.batches, chunks.rows)
            run = peer.build(case, batches, output, self._per_batch, chunks.rows)
            self._entries.append(_Entry("peer", Series(run), peer.codec(case.parsed_codec)))
        self._latency = self._put_latency(rate)

    def round_before(self) -> None:
        """Run the limits and the peers, and get shmstore ready."""
        for entry in self._entries[1:]:
            self._one(entry.series.run.label, entry.series)
        self._begin(self.ours.run.label, self.ours.run)
        self.ours.ready(self._output)

    def round_after(self) -> None:
        """Clear up after shmstore."""
        self.ours.done()
        self._current = None

    @property
    def ours(self) -> Series:
        """The series of shmstore itself."""
        return self._entries[0].series

    def measure(self) -> dict[str, Any]:
        """Do all of it; return what was found."""
        self.prepare()
        for _ in range(self.rounds):
            self.round_before()
            self.ours.clocked()
            self.round_after()
        return self.found()

    # -- what came out ---------------------------------------------------------------------------------------

    def found(self) -> dict[str, Any]:
        """Return the case as the document has it."""
        runs = [self._run_found(entry) for entry in self._entries]
        limit = self._machine_limit(runs)
        if limit is not None:
            runs.insert(1, limit)
        rates = {run["label"]: run["ratio"] for run in runs[1:]}
        foreign = [value for entry in self._entries for value in entry.series.foreign]
        return {
            **self.case.to_dict(),
            "output": str(self._plan.output),
            "filesystem": machine.filesystem(self._plan.output),
            "batches": self.case.batches,
            "rows": total_rows(self.case.stream, self.case.batches),
            "stream_bytes": self._nbytes,
            "rounds": self.rounds,
            "runs": runs,
            "absent": self._absent,
            "latency": self._latency,
            "judged": [
                {"against": label, "at_least": least, "ratio": rates[label], "met": rates[label] >= least}
                for label, least in self.case.bounds
                if label in rates
            ],
            "foreign_processors": sum(foreign) / len(foreign),
        }

    def _run_found(self, entry: _Entry) -> dict[str, Any]:
        series = entry.series
        run = series.run
        rounds = series.rounds
        gigabytes = run.amount / 1e3
        cpu = {role: median(one["cpu_s"][role] for one in rounds) / gigabytes for role in rounds[0]["cpu_s"]}
        found: dict[str, Any] = {
            "label": run.label,
            "kind": entry.kind,
            "codec": entry.codec,
            "mb_per_s": median(series.rates),
            "mb_per_s_of_rounds": series.rates,
            # Round by round, so that a machine that slows down slows both.
            "ratio": median(a / b for a, b in zip(self.ours.rates, series.rates, strict=True)),
            "megabytes": run.amount,
            "cpu_s_per_gb": cpu,
        }
        if "file_bytes" in series.details:
            found["stored_share"] = series.details["file_bytes"] / (run.amount * 1e6)
        if entry.kind == "shmstore":
            batches_a_mb = self.case.batches / run.amount
            found["batches_per_s"] = found["mb_per_s"] * batches_a_mb
            phases = {name: median(one["phases"][name] for one in rounds) for name in rounds[0]["phases"]}
            found["phases_s"] = phases
            found["seconds"] = median(series.seconds)
            for name in ("writer_peak_bytes", "writer_private_peak_bytes"):
                found[name] = max(one[name] for one in rounds)
            for name in ("put_us", "file_bytes", "commits", "chunks", "ring_high_water", "producer_waits"):
                found[name] = series.details[name]
        return found

    def _machine_limit(self, runs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        alone = {
            run["label"]: run["cpu_s_per_gb"]["process"]
            for run in runs
            if run["kind"] == "limit" and "process" in run["cpu_s_per_gb"]
        }
        if self.case.codec == "none":
            names = ["memcpy", "pwrite"]
        else:
            names = ["memcpy", "codec alone", "pwrite of the result"]
        if any(name not in alone for name in names):
            return None
        cores = machine.cores()
        rate = machine_limit(cores, [alone[name] for name in names])
        return {
            "label": "machine limit",
            "kind": "limit",
            "codec": "",
            "mb_per_s": rate,
            "ratio": runs[0]["mb_per_s"] / rate,
            "cpu_s_per_gb": {name: alone[name] for name in names},
            "cores": cores,
        }

    # -- one run ---------------------------------------------------------------------------------------------

    @property
    def _output(self) -> Path:
        if self._folder is None:
            raise RuntimeError("a comparison is used in a with block")
        return Path(self._folder.name)

    def _recording(self, case: Case, pace: float = 0.0) -> Recording:
        return Recording(
            case.stream,
            case.batches,
            self._output,
            self._per_batch,
            producers=case.producers,
            shared=case.shared,
            pace=pace,
            **case.options,
        )

    def _rehearse(self, case: Case) -> tuple[Chunks, float]:
        """Record once; return the chunks of it, and batches a second."""
        recording = self._recording(case)
        series = Series(recording)
        self._begin("shmstore, a little", recording)
        series.ready(self._output)
        series.clocked()
        chunks = chunks_of(recording.path, total_bytes(case.stream, case.batches))
        series.done()
        self._current = None
        return chunks, case.batches / series.seconds[0]

    def _batches_of(self, peer: Peer, few: int, chunk_rows: int) -> int:
        """Return how many batches a peer brings into its file in a round: all, unless it is slow."""
        if self._plan.smoke:
            return self.case.batches
        trial = Series(peer.build(self.case, few, self._output, self._per_batch, chunk_rows))
        self._one(f"{peer.label}, a little", trial)
        return min(self.case.batches, max(few, int(few * _LONGEST_PEER_S / trial.seconds[0])))

    def _put_latency(self, rate: float) -> dict[str, Any]:
        """Return the times of puts into a ring that does not fill, and of copies of the same batches."""
        pace = rate * _PACE / self.case.producers
        seconds = 0.05 if self._plan.smoke else _PACED_S
        count = max(4, min(100_000, int(pace * seconds))) * self.case.producers
        series = Series(self._recording(self.case.scaled(count / self.case.batches), pace))
        self._one("shmstore, paced", series)
        details = series.details
        return {
            "batches_per_s": pace * self.case.producers,
            "put_us": details["put_us"],
            "copy_us": details["copy_us"],
            "waits": details["producer_waits"],
        }

    def _one(self, what: str, series: Series) -> None:
        self._begin(what, series.run)
        series.ready(self._output)
        series.clocked()
        series.done()
        self._current = None

    def _begin(self, what: str, run: Run) -> None:
        self._current = run
        self._done += 1
        self._tell(what, self._done, self._steps)

    @property
    def _steps(self) -> int:
        limits = 4 if self._direct else 2
        trials = 0 if self._plan.smoke else len(self._peers)
        return 2 + trials + self.rounds * (1 + limits + len(self._peers))

    def _takes_part(self, peer: Peer) -> bool:
        objection = peer.objection(self.case)
        if objection:
            self._absent[peer.label] = objection
        return not objection


def measure(
    cases: Sequence[Case], plan: Plan, tell: Callable[[Case, str, float], None]
) -> Iterator[dict[str, Any]]:
    """Measure one case after the other; yield what was found, as soon as it is.

    Parameters
    ----------
    cases
        What is measured.
    plan
        How.
    tell
        Hears what begins: the case, in words what of it, and which share of everything is done.
    """
    for index, case in enumerate(cases):

        def told(what: str, number: int, total: int, case: Case = case, index: int = index) -> None:
            tell(case, what, (index + (number - 1) / total) / len(cases))

        with Comparison(case, plan, told) as comparison:
            yield comparison.measure()
