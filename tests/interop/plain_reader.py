"""A reader in plain h5py, numpy and json, written from docs/file-layout.md alone: to show that it is enough.

Times are integers here, decimals `decimal.Decimal`, intervals tuples, the entries of a map tuples; of a
dictionary one gets the label, of a union the value.
"""

from __future__ import annotations

import json
from decimal import Decimal
from itertools import pairwise
from typing import Any

import h5py
import numpy as np


def read_instrument(file: h5py.File, link: str, start: int = 0, stop: int | None = None) -> dict[str, Any]:
    """Return rows [start, stop) of a finished file by column; a doubled name gives way to the path."""
    rows = int(file[link].attrs["NROWS"])
    stop = rows if stop is None else min(stop, rows)
    table: dict[str, Any] = {}
    for name, node in columns_of(file[link]):
        table[node.path if name in table else name] = node.read(start, max(start, stop))
    return table


def columns_of(group: h5py.Group) -> list[tuple[str, Node]]:
    """Return the columns of an instrument by name, in order."""
    layout = json.loads(group["_arrow/layout"].asstr()[()])
    if layout["version"] != 1:
        raise ValueError(f"layout version {layout['version']} is not known here")
    return [(column["name"], Node(group, column["node"])) for column in layout["columns"]]


class Node:
    """One type within a column, with its datasets and what it is made of."""

    def __init__(self, group: h5py.Group, entry: dict[str, Any]) -> None:
        self.group, self.path, self.entry = group, entry["path"], entry
        self.kind = entry["kind"].partition(":")[0]
        self.streams = {stream["role"]: stream for stream in entry["streams"]}
        self.children = [Node(group, child) for child in entry["children"]]
        if not hasattr(self, f"_{self.kind}"):
            raise ValueError(f"{self.path!r} is of the kind {self.kind!r}, which is not known here")

    def read(self, start: int, stop: int) -> list[Any]:
        """Return items [start, stop)."""
        values = getattr(self, f"_{self.kind}")(start, stop)
        return pick(values, self.mask("validity", start, stop)) if "validity" in self.streams else values

    def items(self, role: str) -> h5py.Dataset:
        """Return the dataset of a stream."""
        return self.group[self.streams[role]["path"]]

    def mask(self, role: str, start: int, stop: int) -> Any:
        """Return items of a mask: True where its dataset does not reach, or if there is none."""
        mask = np.ones((stop - start, *self.streams[role]["item_shape"]), bool)
        if self.streams[role]["path"] in self.group:
            there = self.items(role)[start:stop]
            mask[: len(there)] = there
        return mask

    def text(self, values: list[bytes]) -> Any:
        """Return text as such, and bytes as they are."""
        return [value.decode() for value in values] if "string" in self.entry["type"] else values

    def _plain(self, start: int, stop: int) -> Any:
        masks: list[Any] = []
        while (role := f"validity-{len(masks) + 1}") in self.streams:
            masks.append(self.mask(role, start, stop))
        values = self.items("values")[start:stop]
        return nested(values.reshape(masks[-1].shape) if masks else values, masks)

    _bool = _plain

    def _presence(self, start: int, stop: int) -> Any:
        empty: Any = {"struct": {}, "fixed_size_binary[0]": b"", "fixed_size_list": [], "null": None}
        return [empty[self.entry["type"]]] * (stop - start)

    def _vlen(self, start: int, stop: int) -> Any:
        return self.text([bytes(value) for value in self.items("values")[start:stop]])

    def _packed(self, start: int, stop: int) -> Any:
        ends = self.items("offsets")[start : stop + 1].astype(int)
        return self.text(slices(self.items("chars")[ends[0] : ends[-1]].tobytes(), ends - ends[0]))

    def _fixed(self, start: int, stop: int) -> Any:
        return self.text(self.items("values")[start:stop].tolist())

    def _decimal(self, start: int, stop: int) -> Any:
        return [Decimal(text.decode() or 0) for text in self.items("values")[start:stop].tolist()]

    def _struct(self, start: int, stop: int) -> Any:
        names = [child.entry["name"] for child in self.children]
        fields = [child.read(start, stop) for child in self.children]
        return [dict(zip(names, row, strict=True)) for row in zip(*fields, strict=True)]

    def _list(self, start: int, stop: int) -> Any:
        ends = self.items("offsets")[start : stop + 1].astype(int)
        values: Any = self.children[0].read(ends[0], ends[-1])
        if self.entry["type"] == "map":
            values = [tuple(entry.values()) for entry in values]
        return slices(values, ends - ends[0])

    def _fixed_list(self, start: int, stop: int) -> Any:
        size = int(self.group[self.path].attrs["SIZE"])
        values = self.children[0].read(start * size, stop * size)
        return slices(values, np.arange(stop - start + 1) * size)

    def _dictionary(self, start: int, stop: int) -> Any:
        codes = self.items("values")[start:stop]
        labels = self.children[0].read(0, int(codes.max(initial=-1)) + 1)
        return [labels[code] if code >= 0 else None for code in codes]

    def _dense_union(self, start: int, stop: int) -> Any:
        rows: list[Any] = [None] * (stop - start)
        types = self.items("types")[start:stop]
        places = self.items("offsets")[start:stop] if "offsets" in self.streams else np.arange(start, stop)
        for code, child in zip(self.entry.get("codes", ()), self.children, strict=True):
            mine = np.flatnonzero(types == code)
            first, last = (int(places[mine].min()), int(places[mine].max()) + 1) if len(mine) else (0, 0)
            values = child.read(first, last)
            for row in mine:
                rows[row] = values[int(places[row]) - first]
        return rows

    _sparse_union = _dense_union

    def _run_ends(self, start: int, stop: int) -> Any:
        runs = np.searchsorted(self.items("run_ends")[:], np.arange(start, stop), side="right").tolist()
        values = self.children[0].read(runs[0], runs[-1] + 1) if runs else []
        return [values[run - runs[0]] for run in runs]


def nested(values: Any, masks: list[Any]) -> Any:
    """Return an N-D array as lists in lists; the k-th mask tells which items of lists at level k exist."""
    if not masks:
        return values.tolist()
    rows = (nested(row, [mask[at] for mask in masks[1:]]) for at, row in enumerate(values))
    return [pick(row, there) for row, there in zip(rows, masks[0], strict=True)]


def pick(values: Any, there: Any) -> list[Any]:
    return [value if valid else None for value, valid in zip(values, there, strict=True)]


def slices(values: Any, ends: Any) -> list[Any]:
    return [values[first:last] for first, last in pairwise(ends.tolist())]
