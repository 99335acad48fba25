"""``shmstore demo``: this machine and a simulated detector into a file, what is in it, and its picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from shmstore.cli import info
from shmstore.cli.exits import exit_code
from shmstore.cli.options import add_report_options, add_storage_options, duration, frequency, load_config
from shmstore.cli.record import record
from shmstore.cli.screen import Screen, require
from shmstore.cli.summary import show
from shmstore.errors import ShmStoreError

DETECTOR_HZ = 100.0


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "demo",
        help="record this machine and a simulated detector, then show what was recorded",
        description="Record this machine's telemetry and a simulated 2-D detector from four acquisition "
        "processes, show what is in the file, draw it, and say how to open it.",
    )
    parser.add_argument(
        "--seconds", type=duration, default=10.0, help="how long; 0 is until Ctrl-C (default: 10)"
    )
    parser.add_argument(
        "--rate", type=frequency, default=50.0, help="readings of the machine a second (default: 50)"
    )
    parser.add_argument(
        "--frames",
        type=frequency,
        default=DETECTOR_HZ,
        metavar="RATE",
        help="detector frames a second (default: 100)",
    )
    add_storage_options(parser)
    add_report_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    screen = Screen(as_json=options.json, quiet=options.quiet)
    require("psutil", "demo")
    require("matplotlib", "demo")
    from shmstore.cli.plot import draw
    from shmstore.inspection import describe
    from shmstore.sources.detector import detector_station
    from shmstore.sources.host import host_metadata, host_stations

    config = load_config(options)
    stations = (*host_stations(options.rate), detector_station(options.frames))
    outcome = record(screen, config, stations, options.seconds, {**host_metadata(), "source": "demo"})
    show(screen, outcome)
    report = picture = None
    try:
        report = describe(outcome.path)
        if not screen.as_json:
            info.show(screen, report)
        picture = draw(outcome.path, outcome.path.with_suffix(".png"))
    except ShmStoreError as error:  # of a recording that failed, there may be nothing to show
        screen.error(str(error))
        outcome.exit_code = max(outcome.exit_code, exit_code(error))
    if picture is not None and not screen.as_json:
        screen.result_line(str(picture))
        screen.line(how_to_open(outcome.path))
    screen.document(
        {
            "recording": outcome.to_dict(),
            "info": report and report.to_dict(),
            "picture": picture and str(picture),
        }
    )
    return outcome.exit_code


def how_to_open(path: Path) -> str:
    """Return two pieces of Python that open the file."""
    name = str(path.resolve())
    return f"""
Open it with h5py (hdf5plugin is needed for other codecs than gzip):

    import h5py, hdf5plugin
    with h5py.File({name!r}) as file:
        print(file["cpu/time"][:5], file["cpu/user"].shape)
        frame = file["detector/frame"][-1]            # (256, 256), numpy

or with shmstore, as Arrow:

    import shmstore
    with shmstore.open({name!r}) as recording:
        print(recording.instruments, recording["detector"].num_rows)
        table = recording["network"].read()           # pyarrow.Table
"""
