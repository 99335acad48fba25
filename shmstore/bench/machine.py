"""What the figures were taken on: processor, memory, filesystem, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

from shmstore._version import __version__

_PACKAGES = (
    "numpy",
    "pyarrow",
    "h5py",
    "hdf5plugin",
    "isal",
    "zlib-ng",
    "numcodecs",
    "blosc2",
    "tables",
    "zarr",
)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def facts() -> dict[str, Any]:
    """Return what is to be known of this machine to judge figures from it."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "shmstore": __version__,
        "commit": _commit(),
        "packages": _versions(),
    }


def filesystem(folder: Path) -> str:
    """Return the type of the filesystem that a folder is on, as the kernel names it; empty if it does not."""
    place = folder.resolve()
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((mounts[path] for path in (place, *place.parents) if path in mounts), "")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Return the commit of the package, with a + where it was changed; None if it is not in a repository."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if not git("ls-files", __file__):
            return None  # installed below some other repository
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--", str(folder.parent)) else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None
