"""Acquisition processes, real ones, into a real recording."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest

import shmstore
from shmstore.sources.acquisition import Acquisition
from shmstore.sources.detector import detector_schema, detector_station
from shmstore.sources.host import host_stations


@pytest.mark.parametrize("stopped_early", [False, True])
def test_every_tick_is_a_row(output_dir: Path, stopped_early: bool) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir) as storage:
        with Acquisition([detector_station(50.0)], storage.producer) as acquisition:
            assert (acquisition.running, acquisition.pids) == (0, {})
            acquisition.start(lambda: stopped_early)
            assert acquisition.running == 1 - stopped_early
            if not stopped_early:
                acquisition.wait(0.3)
            (report,) = acquisition.stop()
        assert acquisition.running == 0
    rows = storage.stats().instruments["detector"].rows_written
    if stopped_early:
        assert rows == 0
    else:
        assert (report.name, report.error, report.ticks) == ("detector", None, rows)
        assert rows > 0


def test_a_station_that_cannot_begin_says_why_and_the_others_go_on(output_dir: Path) -> None:
    # It asks for an instrument that it was not given.
    broken = dataclasses.replace(detector_station(50.0), name="broken", schemas={"other": detector_schema()})
    with (
        shmstore.HDF5Storage(output_dir=output_dir) as storage,
        Acquisition([broken, detector_station(50.0)], storage.producer) as acquisition,
    ):
        acquisition.start()
        assert acquisition.running == 1
        acquisition.wait(0.2)
        reports = acquisition.stop()
    assert [report.error for report in reports] == ["KeyError: 'detector'", None]
    assert reports[1].ticks > 0
    assert reports[0].to_dict()["error"] == "KeyError: 'detector'"


def test_a_killed_station_is_noticed(output_dir: Path) -> None:
    with (
        shmstore.HDF5Storage(output_dir=output_dir) as storage,
        Acquisition([detector_station(50.0)], storage.producer) as acquisition,
    ):
        acquisition.start()
        os.kill(acquisition.pids["detector"], signal.SIGKILL)
        for _ in range(100):
            acquisition.wait(0.1)
            if not acquisition.running:
                break
        (report,) = acquisition.stop()
    assert report.error == "was killed by SIGKILL"


def test_leaving_the_block_ends_everything(output_dir: Path) -> None:
    # That no process stays is checked after every test.
    with shmstore.HDF5Storage(output_dir=output_dir) as storage:
        with Acquisition(host_stations(50.0), storage.producer) as acquisition:
            acquisition.start()
            assert acquisition.running == 3
        assert acquisition.running == 0
