"""Following a file that is still being written, in plain h5py, as docs/file-layout.md tells."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from interop.plain_reader import Node, columns_of


def read_live(path: Path, link: str) -> dict[str, list[Any]]:
    """Return the rows that are there by column."""
    while True:
        with open_live(path) as file:
            columns = columns_of(file[link])
            missing = [mask for _, node in columns for mask in masks_missing(node)]
            rows = min((complete(node) for _, node in columns), default=0)
            table = {name: node.read(0, rows) for name, node in columns}
        with open_live(path) as file:  # a mask that was made meanwhile may cover rows that were read
            if not any(mask in file[link] for mask in missing):
                return table


def open_live(path: Path) -> h5py.File:
    """Open between two moments in which the writer has the file to itself."""
    for _ in range(1000):
        try:
            return h5py.File(path, swmr=True, locking=False)
        except OSError:
            time.sleep(0.002)
    raise TimeoutError(path)


def masks_missing(node: Node) -> list[str]:
    """Return the paths of the masks that were not made yet."""
    own = [item["path"] for item in node.streams.values() if item["lazy"] and item["path"] not in node.group]
    return own + [mask for child in node.children for mask in masks_missing(child)]


def complete(node: Node) -> int:
    """Return how many items there are of which every part can be seen."""
    needed = [item for item in node.streams.values() if not item["lazy"] and item["role"] != "segments"]
    if any(item["path"] not in node.group for item in needed):
        return 0
    lengths: dict[str, int] = {item["role"]: len(node.group[item["path"]]) - item["lead"] for item in needed}
    within = [lengths.pop("chars")] if "chars" in lengths else [complete(child) for child in node.children]
    if node.kind == "fixed_list":
        return int(within[0]) // int(node.group[node.path].attrs["SIZE"])
    if node.kind == "struct":
        return min(within)
    count: int = max(0, min(lengths.values()))
    if node.kind == "sparse_union":
        return min([count, *within])
    if node.kind == "run_ends":
        runs = min(count, within[0])
        return int(node.items("run_ends")[runs - 1]) if runs else 0
    if node.kind in ("list", "packed"):
        return int(np.searchsorted(node.items("offsets")[1 : count + 1], within[0], side="right"))
    if node.kind == "dense_union":
        limits = dict(zip(node.entry["codes"], within, strict=True))
        types, places = node.items("types")[:count].tolist(), node.items("offsets")[:count].tolist()
        early = [place < limits[code] for code, place in zip(types, places, strict=True)]
        return early.index(False) if False in early else count
    return count
