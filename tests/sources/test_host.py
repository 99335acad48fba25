"""This machine's telemetry: the rows that a station makes are what psutil and the kernel say."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

import shmstore
from shmstore.sources.host import host_metadata, host_stations


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Record two readings of every station, made in this process."""
    folder = tmp_path_factory.mktemp("host")
    with shmstore.HDF5Storage(output_dir=folder) as storage:
        for station in host_stations(50.0):
            producers = {name: storage.producer(name, schema) for name, schema in station.schemas.items()}
            read = station.prepare(producers)
            read()
            read()
            for producer in producers.values():
                producer.close()
    return storage.path


def table_of(recording: Path, name: str) -> pa.Table:
    """Return an instrument; its times as integers, since Python's own know no nanoseconds."""
    table = shmstore.read(recording, name)
    return table.set_column(0, "time", table["time"].cast(pa.int64()))


def test_times_are_now_and_in_order(recording: Path) -> None:
    for name in ("cpu", "memory", "network", "processes"):
        times = table_of(recording, name)["time"].to_pylist()
        assert times == sorted(times)
        assert 0 < time.time_ns() - times[0] < 600 * 10**9


def test_cpu(recording: Path) -> None:
    table = table_of(recording, "cpu")
    assert table.num_rows == 2
    now = psutil.cpu_times(percpu=True)
    for state in ("user", "system", "idle"):
        first, second = table[state].to_pylist()
        assert len(first) == len(now)
        assert all(a <= b for a, b in zip(first, second, strict=True))
        assert all(b <= getattr(core, state) + 0.02 for b, core in zip(second, now, strict=True))


def test_memory(recording: Path) -> None:
    row = table_of(recording, "memory").to_pylist()[0]
    assert row["total"] == psutil.virtual_memory().total
    assert 0 < row["used"] < row["total"]
    assert row["swap_total"] == psutil.swap_memory().total


def test_devices(recording: Path) -> None:
    network = table_of(recording, "network")
    assert set(network["nic"].to_pylist()) == set(psutil.net_io_counters(pernic=True))
    disk = table_of(recording, "disk").to_pylist()  # a container may show none
    assert {row["device"] for row in disk} <= set(psutil.disk_io_counters(perdisk=True) or {})
    assert all(row["read_count"] + row["write_count"] + row["busy_time"] > 0 for row in disk)


def test_processes(recording: Path) -> None:
    rows = table_of(recording, "processes").to_pylist()
    (mine, again) = (row for row in rows if row["pid"] == os.getpid())
    assert mine["time"] < again["time"]
    assert mine["name"] == psutil.Process().name()
    assert mine["ppid"] == os.getppid()
    assert mine["rss"] > 2**20
    assert mine["num_threads"] >= 1


def test_metadata_describes_the_machine() -> None:
    metadata = host_metadata()
    assert metadata["cores"] == len(psutil.cpu_times(percpu=True))
    assert metadata["hostname"] == os.uname().nodename
