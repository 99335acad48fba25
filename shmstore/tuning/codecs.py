"""Codecs alone: how fast one thread compresses chunks of the sample with each, and to what size.

The chunks are the bytes that a recording would compress, made by the same encoding. No recording is made.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shmstore import chunking
from shmstore.codec import Codec
from shmstore.dictionaries import Dictionaries
from shmstore.encoding import Intake, dictionary_nodes, encode
from shmstore.errors import BrokenError
from shmstore.layout import Layout, Stream
from shmstore.physical import physical_schema, retyped
from shmstore.tuning.front import front
from shmstore.tuning.point import Point

#: What is tried. Blosc2 comes out as Blosc does (one measurement fewer), bzip2 and lossy filters go through
#: HDF5's own pipeline.
CANDIDATES = (
    ("none", (None,), "auto"),
    ("gzip", (1, 3, 6, 9), "auto"),
    ("zstd", (1, 3, 6, 12), "auto"),
    ("lz4", (None,), "auto"),
    ("blosc:lz4", (1, 5, 9), "auto"),
    ("blosc:lz4", (5,), "bit"),
    ("blosc:zstd", (1, 5), "auto"),
    ("blosc:zstd", (1, 5), "bit"),
    ("bitshuffle:lz4", (None,), "auto"),
    ("bitshuffle:zstd", (1, 3), "auto"),
)
CHUNK_SIZES = (256 << 10, 1 << 20, 4 << 20)
#: What each is tried on: some chunks of every size, 30 ms of gzip level 1.
_PROBE_BYTES = 16 << 20
#: Every stream is looked at once, even if that takes so many times what is meant to be spent.
_PATIENCE = 5
#: Sizes that differ by less are the same, so that 1 KB of a megabyte does not keep a codec in the race.
_SAME_SIZE = 0.005
#: Without compression a chunk is not touched before it is written: a rate as good as any.
_UNTOUCHED_MB_S = float("inf")


class Values(NamedTuple):
    """What one dataset of a recording would hold.

    Attributes
    ----------
    stream : Stream
        The dataset.
    items : ndarray
        ``(items, *item_shape)``.
    """

    stream: Stream
    items: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class CodecFigures:
    """One codec on chunks of one size.

    Attributes
    ----------
    point : Point
        Codec and chunk size; the rest is as it was given.
    mb_s : float
        10⁶ bytes of chunks that one thread takes in a second of its processor time; ``inf`` for no codec.
    size : float
        Bytes that come out for each that goes in.
    """

    point: Point
    mb_s: float
    size: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain, JSON-ready values."""
        point = self.point
        return {
            "codec": str(point.codec),
            "compression": point.compression,
            "compression_level": point.compression_level,
            "shuffle": point.shuffle,
            "chunk_bytes": point.chunk_bytes,
            "mb_s": None if self.mb_s == _UNTOUCHED_MB_S else round(self.mb_s, 1),
            "size": round(self.size, 4),
        }


def candidate_points(point: Point, fixed: Sequence[str], largest_chunk: int) -> list[Point]:
    """Return the codecs and chunk sizes to try, with the rest of ``point``.

    Parameters
    ----------
    point
        Where the search starts.
    fixed
        Settings that stay as ``point`` has them.
    largest_chunk
        No chunk is larger, in bytes; one size is always tried.
    """
    sizes: list[int | None] = [size for size in CHUNK_SIZES if size <= largest_chunk] or [CHUNK_SIZES[0]]
    if "chunk_bytes" in fixed:
        sizes = [point.chunk_bytes]
    found = []
    for compression, levels, shuffle in CANDIDATES:
        for level in levels:
            made = replace(point, compression=compression, compression_level=level, shuffle=shuffle)
            if "compression" in fixed and not _same_codec(made, point):
                continue
            if "compression_level" in fixed:
                made = replace(made, compression_level=point.compression_level)
            if "shuffle" in fixed:
                made = replace(made, shuffle=point.shuffle)
            found.append(made)
    if "compression" in fixed and not found:  # one that is not in the list: as it was asked for
        found = [point]
    return [replace(made, chunk_bytes=size) for made in dict.fromkeys(found) for size in sizes]


def _same_codec(one: Point, other: Point) -> bool:
    mine, theirs = one.codec, other.codec
    return (mine.name, mine.inner) == (theirs.name, theirs.inner)


def values_of(batches: Sequence[pa.RecordBatch], layout: Layout) -> list[Values]:
    """Return what every dataset would hold, but for those whose items HDF5 places itself (vlen text).

    Raises
    ------
    InvalidValueError
        A value cannot be recorded.
    """
    known = {node.path: Dictionaries() for column in layout.columns for node in dictionary_nodes(column)}
    taken: defaultdict[str, int] = defaultdict(int)
    parts: defaultdict[str, list[npt.NDArray[Any]]] = defaultdict(list)
    for batch in batches:
        physical = retyped(batch, physical_schema(batch.schema))
        intake = Intake(batch.num_rows, taken, known)
        for column in layout.columns:
            encode(column.node, physical.column(column.index), intake)
        for path, items in intake.items.items():
            parts[path].append(items)
        for space, count in intake.counts.items():
            taken[space] += count
        intake.accept()
    streams = [stream for column in layout.columns for stream in column.streams if not stream.variable]
    found = [Values(stream, np.concatenate(parts[stream.path])) for stream in streams if parts[stream.path]]
    return [each for each in found if each.items.nbytes]


def measure(point: Point, values: Sequence[Values], limit_s: float) -> CodecFigures:
    """Compress chunks with one codec, on this thread, for about ``limit_s``.

    Parameters
    ----------
    point
        The codec and the size of chunks.
    values
        What is compressed, at least one; as much of each as is its share.
    limit_s
        Seconds after which no further chunk is taken.
    """
    codec = point.codec
    if codec.name == "none":
        return CodecFigures(point, _UNTOUCHED_MB_S, 1.0)
    total = sum(items.nbytes for _, items in values)
    tallies: dict[str, _Tally] = {}
    began_s = time.monotonic()
    for number, chunk in _chunks(values, point.chunk_bytes or chunking.LARGEST):
        stream, items = values[number]
        encode = codec.encoder(stream.numpy_dtype.itemsize, chunk.nbytes)
        if encode is None:
            raise BrokenError(f"{codec} has no encoder")
        if not tallies:
            encode(chunk)  # the first call imports the library and makes the scratch memory
        known = tallies.get(stream.path)
        passed_s = time.monotonic() - began_s
        if passed_s > limit_s and (known is not None or passed_s > _PATIENCE * limit_s) and tallies:
            break
        tally = tallies.setdefault(stream.path, _Tally(items.nbytes / total))
        cpu_s = time.thread_time()
        payload = encode(chunk).payload
        tally.seconds += time.thread_time() - cpu_s
        tally.taken_in += chunk.nbytes
        tally.given_out += len(payload)
    share = sum(each.share for each in tallies.values())
    size = sum(each.share * each.given_out / each.taken_in for each in tallies.values()) / share
    seconds = sum(each.share * each.seconds / each.taken_in for each in tallies.values()) / share
    return CodecFigures(point, 1 / max(seconds * 1e6, 1e-9), size)


@dataclass(slots=True)
class _Tally:
    """What one stream's chunks came to; ``share`` is the stream's part of all bytes."""

    share: float
    seconds: float = 0.0
    taken_in: int = 0
    given_out: int = 0


def _chunks(values: Sequence[Values], chunk_bytes: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield chunks with the number of their stream, from each as many as is its share, evenly spaced.

    First one of each, then in turns: whoever stops early has seen all of them.
    """
    total = sum(items.nbytes for _, items in values)
    owed = 0.0
    places: list[tuple[float, int, int, int]] = []
    for number, (stream, items) in enumerate(values):
        rows = min(chunking.items_per_chunk(stream.item_bytes, chunk_bytes), len(items))
        size = rows * stream.item_bytes
        if not size:
            continue
        owed += _PROBE_BYTES * items.nbytes / total
        # Hundreds of narrow columns: each has less than a chunk's share, so some stand for all.
        count = min(max(int(owed / size), 0 if places else 1), len(items) // rows)
        owed -= count * size
        for turn in range(count):
            start = (len(items) - rows) * turn // max(1, count - 1)
            places.append((turn / count, number, start, rows))
    for _, number, start, rows in sorted(places):
        yield number, np.ascontiguousarray(values[number].items[start : start + rows])


def worth_recording(figures: Sequence[CodecFigures], most: int) -> list[CodecFigures]:
    """Return what is worth a recording: the front of rate and size, thinned to ``most``, the fastest first.

    Of one codec only its best chunk size stays (the smallest product of time and size): chunk sizes are tried
    again in recordings. Thinning takes away again and again what leaves the smallest dent in the front.
    """
    best: dict[Codec, CodecFigures] = {}
    for each in figures:
        other = best.get(each.point.codec)
        if other is None or each.size / each.mb_s < other.size / other.mb_s:
            best[each.point.codec] = each
    kept = front(list(best.values()), lambda each: (-each.mb_s, round(each.size / _SAME_SIZE)))
    while len(kept) > most:
        inner = range(1, len(kept) - 1) or range(1)
        del kept[min(inner, key=lambda index: _dent(kept, index))]
    return kept


def _dent(kept: Sequence[CodecFigures], index: int) -> float:
    """Return what the front loses without one of its inner points: in rate times in size, as logarithms."""
    before, own, after = (kept[max(0, min(len(kept) - 1, index + step))] for step in (-1, 0, 1))
    if math.isinf(own.mb_s) or not after.mb_s:
        return math.inf
    return math.log(own.mb_s / after.mb_s) * math.log(before.size / own.size)
