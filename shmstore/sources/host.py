"""This machine's telemetry, by psutil: five instruments from three acquisition processes.

Counters are recorded as the kernel gives them (totals since boot); differences are the reader's. Units stand
in each field's metadata.
"""

from __future__ import annotations

import os
import platform
import socket
import time
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow as pa

from shmstore.sources.acquisition import Station

if TYPE_CHECKING:
    from shmstore.producer import Producer

#: Reading every process takes 0.25 ms each, so that table gets a process and a pace of its own.
PROCESS_TABLE_HZ = 2.0

_TIME = pa.field("time", pa.timestamp("ns", tz="UTC"), nullable=False)
_MEMORY = ("total", "available", "used", "free", "active", "inactive", "buffers", "cached", "shared", "slab")
_SWAP = ("total", "used", "free")
_DISK = {
    "read_count": "1",
    "write_count": "1",
    "read_bytes": "byte",
    "write_bytes": "byte",
    "read_time": "ms",
    "write_time": "ms",
    "busy_time": "ms",
}
_NETWORK = {
    "bytes_sent": "byte",
    "bytes_recv": "byte",
    "packets_sent": "1",
    "packets_recv": "1",
    "errin": "1",
    "errout": "1",
    "dropin": "1",
    "dropout": "1",
}
_PROCESS_ATTRIBUTES = [
    "pid",
    "ppid",
    "name",
    "status",
    "cpu_times",
    "memory_info",
    "num_threads",
    "num_fds",
    "io_counters",
]


def host_stations(rate_hz: float) -> tuple[Station, ...]:
    """Return the stations that read this machine.

    Parameters
    ----------
    rate_hz
        Readings a second of ``cpu``, ``memory``, ``disk`` and ``network``; ``processes`` is read at 2 Hz at
        most.
    """
    source = {"source": f"psutil {psutil.__version__}", "rate_hz": float(rate_hz)}
    slow_hz = min(rate_hz, PROCESS_TABLE_HZ)
    return (
        Station(
            "processors",
            rate_hz,
            {"cpu": cpu_schema(), "memory": memory_schema()},
            prepare_processors,
            {"cpu": {**source, "cores": _cores()}, "memory": source},
        ),
        Station(
            "devices",
            rate_hz,
            {"disk": device_schema("device", _DISK), "network": device_schema("nic", _NETWORK)},
            prepare_devices,
            {"disk": source, "network": source},
        ),
        Station(
            "processes",
            slow_hz,
            {"processes": processes_schema()},
            prepare_processes,
            {"processes": {**source, "rate_hz": slow_hz}},
        ),
    )


def host_metadata() -> dict[str, Any]:
    """Return what describes this machine, as metadata of a recording."""
    return {
        "source": "host",
        "hostname": socket.gethostname(),
        "system": platform.platform(),
        "cores": _cores(),
        "boot_time_s": psutil.boot_time(),
    }


def cpu_schema() -> pa.Schema:
    """Return one row per reading; each state is a list over the cores, in seconds since boot."""
    per_core = pa.list_(pa.float64(), _cores())
    return pa.schema(
        [
            _TIME,
            *(_field(state, per_core, "s") for state in psutil.cpu_times()._fields),
            _field("load", pa.list_(pa.float64(), 3), "1", "over 1, 5 and 15 minutes"),
            _field("ctx_switches", pa.int64(), "1"),
            _field("interrupts", pa.int64(), "1"),
        ]
    )


def memory_schema() -> pa.Schema:
    """Return one row per reading, in bytes."""
    present = psutil.virtual_memory()._fields
    names = [name for name in _MEMORY if name in present] + [f"swap_{name}" for name in _SWAP]
    return pa.schema([_TIME, *(_field(name, pa.int64(), "byte") for name in names)])


def device_schema(key: str, counters: Mapping[str, str]) -> pa.Schema:
    """Return one row per reading and device: its name, then its counters."""
    fields = [_field(name, pa.int64(), unit) for name, unit in counters.items()]
    return pa.schema([_TIME, pa.field(key, pa.utf8(), nullable=False), *fields])


def processes_schema() -> pa.Schema:
    """Return one row per reading and process; null where the kernel does not tell us."""
    return pa.schema(
        [
            _TIME,
            pa.field("pid", pa.int32(), nullable=False),
            pa.field("ppid", pa.int32()),
            pa.field("name", pa.utf8()),
            pa.field("status", pa.utf8()),
            _field("cpu_user", pa.float64(), "s", nullable=True),
            _field("cpu_system", pa.float64(), "s", nullable=True),
            _field("rss", pa.int64(), "byte", "resident memory", nullable=True),
            _field("vms", pa.int64(), "byte", "address space", nullable=True),
            pa.field("num_threads", pa.int32()),
            pa.field("num_fds", pa.int32()),
            _field("read_bytes", pa.int64(), "byte", nullable=True),
            _field("write_bytes", pa.int64(), "byte", nullable=True),
        ]
    )


def prepare_processors(producers: Mapping[str, Producer]) -> Callable[[], None]:
    """Return what records one reading of ``cpu`` and ``memory``."""
    cpu, memory = producers["cpu"], producers["memory"]
    cpu_columns, memory_columns = cpu_schema(), memory_schema()
    cores = _cores()

    def read() -> None:
        now_ns = time.time_ns()
        cpu.put(_batch(cpu_columns, [_cpu_row(now_ns, cores)]))
        now_ns = time.time_ns()
        memory.put(_batch(memory_columns, [_memory_row(now_ns, memory_columns.names)]))

    return read


def prepare_devices(producers: Mapping[str, Producer]) -> Callable[[], None]:
    """Return what records one reading of ``disk`` and ``network``."""
    disk, network = producers["disk"], producers["network"]
    disk_columns, network_columns = device_schema("device", _DISK), device_schema("nic", _NETWORK)

    def read() -> None:
        now_ns = time.time_ns()
        # None where the kernel keeps no such counters, as in some containers.
        counters = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
        # A device without any transfer since boot (loop0 to loop7, ram0, …) would only be rows of zeros.
        active = {name: device for name, device in counters.items() if any(device)}
        if active:
            disk.put(_batch(disk_columns, _device_rows(now_ns, active, _DISK)))
        now_ns = time.time_ns()
        cards = psutil.net_io_counters(pernic=True, nowrap=False) or {}
        if cards:
            network.put(_batch(network_columns, _device_rows(now_ns, cards, _NETWORK)))

    return read


def prepare_processes(producers: Mapping[str, Producer]) -> Callable[[], None]:
    """Return what records one reading of every process: one batch, all rows with the same time."""
    processes = producers["processes"]
    columns = processes_schema()

    def read() -> None:
        now_ns = time.time_ns()
        found = [process.info for process in psutil.process_iter(_PROCESS_ATTRIBUTES, ad_value=None)]
        processes.put(_batch(columns, [_process_row(now_ns, info) for info in found]))

    return read


def _batch(schema: pa.Schema, rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = [
        pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cpu_row(now_ns: int, cores: int) -> tuple[Any, ...]:
    times = psutil.cpu_times(percpu=True)[:cores]
    # A core that was taken offline is missing from the list.
    absent = [float("nan")] * (cores - len(times))
    states = ([*column, *absent] for column in zip(*times, strict=True))
    counts = psutil.cpu_stats()
    return (now_ns, *states, list(os.getloadavg()), counts.ctx_switches, counts.interrupts)


def _memory_row(now_ns: int, names: list[str]) -> tuple[int, ...]:
    virtual = psutil.virtual_memory()
    with warnings.catch_warnings():  # a container may hide /proc/vmstat, of which we need nothing
        warnings.simplefilter("ignore", RuntimeWarning)
        swap = psutil.swap_memory()
    swapped = {f"swap_{name}": getattr(swap, name) for name in _SWAP}
    return (now_ns, *(swapped[name] if name in swapped else getattr(virtual, name) for name in names[1:]))


def _device_rows(
    now_ns: int, devices: Mapping[str, Any], counters: Mapping[str, str]
) -> list[tuple[Any, ...]]:
    return [
        (now_ns, _text(name), *(getattr(device, counter, 0) for counter in counters))
        for name, device in devices.items()
    ]


def _process_row(now_ns: int, info: Mapping[str, Any]) -> tuple[Any, ...]:
    times, memory, transfers = info["cpu_times"], info["memory_info"], info["io_counters"]
    return (
        now_ns,
        info["pid"],
        info["ppid"],
        _text(info["name"]),
        info["status"],
        times and times.user,
        times and times.system,
        memory and memory.rss,
        memory and memory.vms,
        info["num_threads"],
        info["num_fds"],
        transfers and transfers.read_bytes,
        transfers and transfers.write_bytes,
    )


def _field(name: str, type_: Any, unit: str, note: str = "", *, nullable: bool = False) -> Any:
    metadata = {"units": unit} | ({"description": note} if note else {})
    return pa.field(name, type_, nullable=nullable, metadata=metadata)


def _text(name: str | None) -> str | None:
    # A process may call itself by any bytes.
    return name and name.encode("utf-8", "replace").decode()


def _cores() -> int:
    return len(psutil.cpu_times(percpu=True))
