"""Damage: which rows of which columns are concerned when parts of datasets could not be brought over.

Reads the layout and the offsets of a file that is finished. How the damage was found, and what stands in for
what is lost, is :mod:`shmstore.rebuilding`'s to know.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from shmstore.layout import Layout, Node, Stream
from shmstore.reader import Recording
from shmstore.rebuilding import Damage

_ALL = 2**63


class Loss(NamedTuple):
    """Rows that are not what was put.

    Attributes
    ----------
    place : str
        Instrument and column, as `shmstore.verify` spells them.
    text : str
        Which rows, and how they read now, in words.
    """

    place: str
    text: str


def losses(path: Path, damages: Iterable[Damage]) -> list[Loss]:
    """Say which rows damage concerns.

    Parameters
    ----------
    path
        A finished recording.
    damages
        Of its datasets.

    Raises
    ------
    StorageError, IncompleteFileError
        The recording cannot be read.
    """
    with Recording(path) as recording:
        names = {recording[name].link: name for name in recording}
        layouts = {link: recording[name].layout for link, name in names.items()}

        def look(file: Any) -> list[Loss]:
            found = []
            for damage in damages:
                link, _, within = damage.path.partition("/")
                layout = layouts.get(link)
                group = file[link]
                found.append(_loss(f"instrument {names[link]!r}", layout, group, within, damage))
            return found

        return recording.opened.look(look)


def _loss(instrument: str, layout: Layout | None, group: Any, within: str, damage: Damage) -> Loss:
    rows = int(group.attrs["NROWS"])
    for column in layout.columns if layout else ():
        for stream in column.streams:
            if stream.path == within:
                place = f"{instrument}, column {column.name!r}"
                start, stop = _concerned(column.node, group, within, damage.start, damage.stop) or (0, _ALL)
                start, stop = min(start, rows), min(stop, rows)
                said = f"rows {start} to {stop - 1}" if start < stop else "no rows"
                text = f"{place}: {said} {damage.how} ({damage.items}); "
                return Loss(place, text + _reading(column.node, stream))
    return Loss(instrument, f"{instrument}: {damage}, and read as the fill value")


def _reading(node: Node, stream: Stream) -> str:
    """Return in words how damaged items read."""
    if stream.role.startswith("validity"):
        return "which of them are null is not known, and they read as if none was"
    owner = next(inner for inner in node.walk() if stream in inner.streams)
    if stream.role == "offsets" and owner.kind in ("packed", "list"):
        return "they read as empty, but for the last, which has what belonged to all"
    if stream.role in ("types", "offsets", "run_ends", "segments") or owner.kind == "dictionary":
        return "which values belong to them is not known"
    return "they read as empty" if stream.variable else "they read as the fill value"


def _concerned(node: Node, group: Any, path: str, start: int, stop: int) -> tuple[int, int] | None:
    """Return which of a node's items need some items of a dataset; ``None`` if that is not within the node.

    As the first of them, and the one after the last; there may be fewer items.
    """
    for stream in node.streams:
        if stream.path == path:
            return _by_stream(node, stream, group, start, stop)
    for child in node.children:
        inner = _concerned(child, group, path, start, stop)
        if inner is not None:
            return _by_child(node, group, *inner)
    return None


def _by_stream(node: Node, stream: Stream, group: Any, start: int, stop: int) -> tuple[int, int]:
    if stream.role == "chars":
        return _entries(group[node.stream("offsets").path], start, stop)
    if stream.role == "segments":
        return 0, _ALL
    if stream.role == "run_ends":
        return _of_runs(group[stream.path], start, stop + 1)  # the next one begins where the last should end
    return max(0, start - stream.lead), stop  # an offset ends one entry and begins another


def _by_child(node: Node, group: Any, start: int, stop: int) -> tuple[int, int]:
    if node.kind == "list":
        return _entries(group[node.stream("offsets").path], start, stop)
    if node.kind == "fixed_list":
        size = max(1, int(group[node.path].attrs["SIZE"]))
        return start // size, -(-stop // size)
    if node.kind == "run_ends":
        return _of_runs(group[node.streams[0].path], start, stop)
    # Any item of these may pick any of the child's.
    return (0, _ALL) if node.kind in ("dictionary", "dense_union") else (start, stop)


def _entries(offsets: Any, start: int, stop: int) -> tuple[int, int]:
    """Return which entries have some of the items from ``start`` to ``stop``; reads few chunks of offsets.

    Examples
    --------
    >>> _entries([0, 2, 2, 5, 9], 2, 5), _entries([0, 2, 2, 5, 9], 0, 3), _entries([0, 2], 2, 9)
    ((2, 3), (0, 3), (1, 2))
    """
    return bisect_right(offsets, start) - 1, bisect_left(offsets, stop)


def _of_runs(ends: Any, start: int, stop: int) -> tuple[int, int]:
    """Return which items are in the runs from ``start`` to ``stop``."""
    last = min(stop, len(ends)) - 1
    return int(ends[start - 1]) if 0 < start <= len(ends) else 0, int(ends[last]) if last >= 0 else 0
