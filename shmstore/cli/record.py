"""``shmstore record``: a source of this machine into a file, until its time is over or somebody says stop."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from shmstore.cli.exits import LOSS, exit_code
from shmstore.cli.interrupt import Interrupt
from shmstore.cli.live import TICK_S, LiveView
from shmstore.cli.options import add_report_options, add_storage_options, duration, frequency, load_config
from shmstore.cli.screen import Screen, require
from shmstore.cli.summary import Outcome, show
from shmstore.errors import ClosedError, ShmStoreError

if TYPE_CHECKING:
    from shmstore.config import StorageConfig
    from shmstore.sources.acquisition import Station, StationReport
    from shmstore.storage import HDF5Storage


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "record",
        help="record this machine's telemetry",
        description="Record a source into one HDF5 file. host: processors, memory, disks, network and the "
        "processes of this machine, from three acquisition processes. Ctrl-C ends it; the file is complete.",
    )
    parser.add_argument("source", choices=["host"], help="what to record")
    parser.add_argument(
        "--seconds", type=duration, default=10.0, help="how long; 0 is until Ctrl-C (default: 10)"
    )
    parser.add_argument("--rate", type=frequency, default=50.0, help="readings a second (default: 50)")
    add_storage_options(parser)
    add_report_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    screen = Screen(as_json=options.json, quiet=options.quiet)
    require("psutil", "demo")
    from shmstore.sources.host import host_metadata, host_stations

    config = load_config(options)
    outcome = record(screen, config, host_stations(options.rate), options.seconds, host_metadata())
    show(screen, outcome)
    screen.document(outcome.to_dict())
    return outcome.exit_code


def record(
    screen: Screen,
    config: StorageConfig,
    stations: Sequence[Station],
    seconds: float,
    metadata: Mapping[str, Any],
) -> Outcome:
    """Record stations for some seconds, or until a signal; the file is closed when this returns.

    Raises
    ------
    ShmStoreError
        The recording could not start. What fails later is among the outcome's problems.
    """
    from shmstore.sources.acquisition import Acquisition
    from shmstore.storage import HDF5Storage

    with Interrupt() as interrupt:
        storage = HDF5Storage(config)
        storage.start()
        broken = False
        outcome = Outcome(storage.path, 0.0, storage.stats())
        try:
            for key, value in metadata.items():
                storage.set_metadata(key, value)
            with Acquisition(stations, storage.producer) as acquisition:
                for station in stations:
                    for instrument_id, entries in station.metadata.items():
                        for key, value in entries.items():
                            storage.set_instrument_metadata(instrument_id, key, value)
                acquisition.start(interrupt.asked)
                _watch(screen, storage, acquisition, seconds, interrupt.asked, outcome)
                reports = acquisition.stop()
            _take_reports(outcome, reports)
        except ShmStoreError as error:
            outcome.problems.append(str(error))
            outcome.exit_code = exit_code(error)
            broken = True
        except BaseException:
            storage.abort()
            raise
        close(storage, outcome, broken=broken)
        outcome.interrupted = interrupt.signal_name
    return outcome


def close(storage: HDF5Storage, outcome: Outcome, *, broken: bool = False) -> None:
    """Close the storage; what it says about the whole recording becomes part of the outcome.

    Parameters
    ----------
    storage, outcome
        The recording, and what is known of it.
    broken
        Whether the recording's failure is among the problems already: closing would only say it again.
    """
    from shmstore.inspection import describe

    try:
        storage.close()
    except (ShmStoreError, TimeoutError) as error:
        if not broken:
            outcome.problems.append(str(error))
        outcome.exit_code = max(outcome.exit_code, exit_code(error))
    with suppress(ClosedError):  # after a failure there are no final counts: the last ones stay
        outcome.stats = storage.stats()
    with suppress(ShmStoreError):  # what cannot be read is said already
        instruments = describe(outcome.path).instruments
        outcome.stored_bytes = {report.instrument_id: report.storage_bytes for report in instruments}
    lost = outcome.stats.dropped + outcome.stats.rejected
    if lost and not outcome.problems:
        outcome.problems.append(
            f"{outcome.stats.dropped} rows were dropped and {outcome.stats.rejected} rejected: see the table"
        )
    if outcome.problems:
        outcome.exit_code = max(outcome.exit_code, LOSS)


def _watch(
    screen: Screen,
    storage: HDF5Storage,
    acquisition: Any,
    seconds: float,
    stopped: Callable[[], bool],
    outcome: Outcome,
) -> None:
    start_s = time.monotonic()
    end_s = start_s + seconds
    title = f"recording {len(acquisition.pids)} processes into {storage.path}"
    with LiveView(screen, title, seconds) as view:
        while acquisition.running and not stopped() and (left_s := end_s - time.monotonic()) > 0:
            acquisition.wait(min(TICK_S, left_s))
            outcome.stats = storage.stats()
            view.update(outcome.stats)
    outcome.seconds = min(time.monotonic() - start_s, seconds if math.isfinite(seconds) else math.inf)


def _take_reports(outcome: Outcome, reports: Sequence[StationReport]) -> None:
    outcome.details["stations"] = [report.to_dict() for report in reports]
    for report in reports:
        if report.error:
            outcome.problems.append(f"station {report.name} (process {report.pid}): {report.error}")
        elif report.missed:
            outcome.problems.append(
                f"station {report.name} left out {report.missed} readings: the machine is too busy for it"
            )
