"""What the disk may hold after a power cut, built from a trace of what was issued until then.

The rules, which are meaner than any file system in use:

- What was written to a file before its last ``fsync`` or ``fdatasync`` is there whole.
- Of each later write any of the 512-byte sectors that it touches may be there, none, or all; where writes
  overlap, those that are there lie over one another in the order in which they were issued.
- The size is one that the file had since its last sync; what was not written reads as zeros. So a truncation
  or an allocation may or may not have happened.
- A new, removed or renamed name may or may not be there, a rename as a whole, each independently of the
  others. It is there for certain once its folder was synced, or, new names, once the file itself was.

The files are followed through all renames by what they are, not by what they are called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from faults.disk import SYNCS, WRITES, Call

SECTOR_BYTES = 512
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16  # modes of fallocate


def replay(calls: Sequence[Call], folder: Path, before: Mapping[str, bytes] | None = None) -> list[Path]:
    """Write the files as they are when all calls have happened: what is there after any kill.

    Parameters
    ----------
    calls
        A trace.
    folder
        Where they go, under their relative paths; must be empty.
    before
        What files held that were there before the trace began, by path.

    Returns
    -------
    list of Path
        The files written.
    """
    return _Disk(calls, before or {}).write(folder, None)


def crash_image(
    calls: Sequence[Call],
    cut: int,
    rng: np.random.Generator,
    folder: Path,
    before: Mapping[str, bytes] | None = None,
) -> list[Path]:
    """Write the files as they may be when the power fails after ``calls[:cut]``; a function of ``rng``.

    Parameters
    ----------
    calls
        A trace.
    cut
        How many of its calls were issued.
    rng
        Chooses what reached the disk. Each image has its own odds, so that nearly all and nearly nothing
        come up as well as a mixture.
    folder
        Where they go, under their relative paths; must be empty.
    before
        What files held, on the disk, before the trace began, by path.

    Returns
    -------
    list of Path
        The files written.
    """
    return _Disk(calls[:cut], before or {}).write(folder, _Chance(rng))


def cut_points(calls: Sequence[Call]) -> list[int]:
    """Return the cuts at which images differ most: around each sync, and in the middle between two.

    Just after a sync the least may be missing, just before the next the most.
    """
    bounds = [0, *(index for index, call in enumerate(calls) if call.op in SYNCS), len(calls)]
    found = {len(calls)}
    for start, stop in pairwise(bounds):
        found |= {stop, min(stop + 1, len(calls)), (start + stop + 1) // 2}
    return sorted(found)


def last_mark(calls: Sequence[Call], cut: int) -> bytes | None:
    """Return the text of the last mark before a cut."""
    return next((call.data for call in reversed(calls[:cut]) if call.op == "mark"), None)


class _Chance:
    """What reaches the disk in one image."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._reaches = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        self._torn = rng.choice([0.0, 0.5, 1.0])

    def whether(self) -> bool:
        return bool(self._rng.random() < self._reaches)

    def sectors(self, count: int) -> npt.NDArray[np.bool_]:
        """Choose which of a write's sectors are there."""
        if self._rng.random() < self._torn:
            return self._rng.random(count) < self._rng.choice([0.1, 0.5, 0.9])
        return np.full(count, self.whether())

    def one_of(self, sizes: Sequence[int]) -> int:
        return int(self._rng.choice(sizes))


@dataclass(slots=True)
class _Node:
    """A file or a folder, whatever its names; its place in the list of nodes is its number."""

    is_folder: bool
    start: bytes = b""
    calls: list[Call] = field(default_factory=list)  # what changed its content
    synced: int = 0  # how many of them are on the disk for certain


@dataclass(slots=True)
class _Naming:
    """A change of names. A place is a folder's number and a name in it."""

    node: int
    source: tuple[int, str] | None
    target: tuple[int, str] | None
    certain: bool = False


class _Disk:
    """The files and folders of a trace: what was issued, and what of it is certain."""

    def __init__(self, calls: Sequence[Call], before: Mapping[str, bytes]) -> None:
        self._nodes = [_Node(is_folder=True)]
        self._places: dict[tuple[int, str], int] = {}  # as issued
        self._kept: dict[tuple[int, str], int] = {}  # there before the trace began
        self._namings: list[_Naming] = []
        self._before = before
        for path in before:
            self._find(path, is_folder=False)
        for call in calls:
            if call.op != "mark":
                self._take(call)

    # -- what was issued -------------------------------------------------------------------------------------

    def _take(self, call: Call) -> None:
        if call.op == "mkdir" or call.created:
            self._nodes.append(_Node(is_folder=call.op == "mkdir"))
            self._name(len(self._nodes) - 1, None, self._place(call.path))
        elif call.op in ("unlink", "rmdir", "rename"):
            node = self._find(call.path, is_folder=call.op == "rmdir")
            target = self._place(call.target) if call.op == "rename" else None
            self._name(node, self._place(call.path), target)
        elif call.op in SYNCS:
            self._sync(call.path)
        elif call.op in WRITES or call.op in ("ftruncate", "fallocate") or call.emptied:
            self._nodes[self._find(call.path, is_folder=False)].calls.append(call)

    def _place(self, path: str) -> tuple[int, str]:
        parent, _, name = path.rpartition("/")
        folder = self._find(parent, is_folder=True)
        self._nodes[folder].is_folder = True
        return folder, name

    def _find(self, path: str, *, is_folder: bool) -> int:
        """Return the number of what has a name; what the trace has not made was there before it."""
        if not path:
            return 0
        place = self._place(path)
        if place not in self._places:
            self._nodes.append(_Node(is_folder, self._before.get(path, b"")))
            self._places[place] = self._kept[place] = len(self._nodes) - 1
        return self._places[place]

    def _name(self, node: int, source: tuple[int, str] | None, target: tuple[int, str] | None) -> None:
        if source:
            del self._places[source]
        if target:
            self._places[target] = node
        self._namings.append(_Naming(node, source, target))

    def _sync(self, path: str) -> None:
        number = 0
        for name in path.split("/") if path else ():
            if (number, name) not in self._places:  # was there before, and nothing happened to it
                return
            number = self._places[number, name]
        node = self._nodes[number]
        node.synced = len(node.calls)
        for naming in self._namings:
            if node.is_folder and number in [place[0] for place in (naming.source, naming.target) if place]:
                naming.certain = True
        while number:  # the file's own name, and those of the folders that it lies in
            latest = [naming for naming in self._namings if naming.node == number]
            if latest:
                latest[-1].certain = True
            above = [folder for (folder, _), found in self._places.items() if found == number]
            if not above:
                return
            number = above[0]

    # -- what is there ---------------------------------------------------------------------------------------

    def write(self, folder: Path, chance: _Chance | None) -> list[Path]:
        """Write it all; without a chance, all that was issued."""
        places = dict(self._kept)
        for naming in self._namings:
            if chance and not naming.certain and not chance.whether():
                continue
            places = {place: node for place, node in places.items() if node != naming.node}
            if naming.target:
                places[naming.target] = naming.node
        written = []
        for path, number in sorted(_paths(places).items()):
            node = self._nodes[number]
            if node.is_folder:
                (folder / path).mkdir()
            else:
                (folder / path).write_bytes(_content(node, chance))
                written.append(folder / path)
        return written


def _paths(places: Mapping[tuple[int, str], int]) -> dict[PurePosixPath, int]:
    """Return what can be reached from the root, by path; folders come before what lies in them."""
    below: dict[int, list[tuple[str, int]]] = {}
    for (folder, name), node in places.items():
        below.setdefault(folder, []).append((name, node))
    found: dict[PurePosixPath, int] = {}
    waiting = [(PurePosixPath(), 0)]
    while waiting:
        path, number = waiting.pop()
        for name, node in below.get(number, ()):
            found[path / name] = node
            waiting.append((path / name, node))
    return found


def _content(node: _Node, chance: _Chance | None) -> bytearray:
    content = bytearray(node.start)
    for call in node.calls[: node.synced if chance else None]:
        _apply(content, call)
    if not chance:
        return content
    later = node.calls[node.synced :]
    sizes = [len(content)]
    for call in later:
        sizes.append(_size_after(sizes[-1], call))
    happened = chance.one_of(range(len(sizes)))  # of the changes of size, which happen in their order
    for index, call in enumerate(later):
        if call.op in WRITES or _clears(call):
            _apply_sectors(content, call, chance)
        elif index < happened:
            _resize(content, _size_after(len(content), call))
    _resize(content, sizes[happened])
    return content


def _clears(call: Call) -> bool:
    return call.op == "fallocate" and bool(call.flags & (_PUNCH_HOLE | _ZERO_RANGE))


def _size_after(size: int, call: Call) -> int:
    """Return the size of a file after a call."""
    if call.emptied:
        return 0
    if call.op == "ftruncate":
        return call.length
    if call.op == "fallocate":
        assert call.flags & ~(_KEEP_SIZE | _PUNCH_HOLE | _ZERO_RANGE) == 0, f"no model of {call}"
        if call.flags & _KEEP_SIZE:
            return size
    elif not call.length:
        return size
    return max(size, call.offset + call.length)


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def _apply(content: bytearray, call: Call) -> None:
    """Do all that a call did."""
    _resize(content, _size_after(len(content), call))
    if call.op in WRITES or _clears(call):
        _put(content, call, call.offset, call.offset + call.length)


def _apply_sectors(content: bytearray, call: Call, chance: _Chance) -> None:
    """Put there those sectors of a write that the chance chooses."""
    if not call.length:
        return
    stop = call.offset + call.length
    first, last = call.offset // SECTOR_BYTES, (stop - 1) // SECTOR_BYTES
    chosen = chance.sectors(last - first + 1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]))).reshape(-1, 2) + first
    for begin, end in (edges * SECTOR_BYTES).tolist():
        _put(content, call, max(call.offset, begin), min(stop, end))


def _put(content: bytearray, call: Call, start: int, stop: int) -> None:
    if call.op in WRITES:
        _resize(content, max(len(content), stop))
        content[start:stop] = call.data[start - call.offset : stop - call.offset]
    else:  # a hole ends with the file at the latest
        content[start : min(stop, len(content))] = bytes(max(0, min(stop, len(content)) - start))
