"""Codecs alone: how fast one thread compresses chunks of the sample with each, and to what size.

The chunks are the bytes that a recording would compress, made by the same encoding. No recording is made.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
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
CHUNK_SIZES = (64 << 10, 256 << 10, 1 << 20, 4 << 20)
_SIZES_TRIED = 3
#: What each is tried on: some chunks of every size, 30 ms of gzip level 1.
_PROBE_BYTES = 16 << 20
#: A stream of this share of all bytes is always among what is compressed.
_STANDS_ALONE = 0.05
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
    sizes: list[int | None] = [*chunk_sizes(largest_chunk)]
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


def chunk_sizes(largest: int) -> list[int]:
    """Return the sizes of chunks to try: the largest that are no larger, or else the smallest of all.

    Examples
    --------
    >>> chunk_sizes(1 << 20), chunk_sizes(0)
    ([65536, 262144, 1048576], [65536])
    """
    return [size for size in CHUNK_SIZES if size <= largest][-_SIZES_TRIED:] or [CHUNK_SIZES[0]]


def _same_codec(one: Point, other: Point) -> bool:
    return one.codec.spelling == other.codec.spelling


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
    portions = _portions(values, point.chunk_bytes or chunking.LARGEST)
    began_s = time.monotonic()
    for turn in range(max(portion.count for portion in portions)):
        for portion in portions:
            passed_s = time.monotonic() - began_s
            # Every portion is looked at once, or those that are not would be missing from the figures.
            if passed_s > limit_s * (1 if turn else _PATIENCE) and portions[0].taken_in:
                break
            if turn < portion.count:
                _encode(codec, portion, turn)
    seen = [portion for portion in portions if portion.taken_in]
    share = sum(portion.share for portion in seen)
    size = sum(each.share * each.given_out / each.taken_in for each in seen) / share
    seconds = sum(each.share * each.seconds / each.taken_in for each in seen) / share
    return CodecFigures(point, 1 / max(seconds * 1e6, 1e-9), size)


@dataclass(slots=True)
class _Portion:
    """Some chunks of a stream, evenly spaced, and what they came to.

    Attributes
    ----------
    share : float
        Bytes of all the streams that it stands for.
    """

    values: Values
    rows: int
    count: int
    share: float
    seconds: float = 0.0
    taken_in: int = 0
    given_out: int = 0


def _portions(values: Sequence[Values], chunk_bytes: int) -> list[_Portion]:
    """Divide what is compressed among the streams; of hundreds of narrow ones, some stand for all."""
    total = sum(items.nbytes for _, items in values)
    least = min(_STANDS_ALONE * total, max(items.nbytes for _, items in values))
    portions: list[_Portion] = []
    pending = 0.0
    for each in values:
        rows = min(chunking.items_per_chunk(each.stream.item_bytes, chunk_bytes), len(each.items))
        size = rows * each.stream.item_bytes
        pending += each.items.nbytes
        wanted = int(_PROBE_BYTES * pending / total / size)
        if wanted or each.items.nbytes >= least:
            count = min(max(1, wanted), len(each.items) // rows)
            portions.append(_Portion(each, rows, count, pending))
            pending = 0.0
    portions[-1].share += pending
    return portions


def _encode(codec: Codec, portion: _Portion, turn: int) -> None:
    (stream, items), rows = portion.values, portion.rows
    start = (len(items) - rows) * turn // max(1, portion.count - 1)
    chunk = np.ascontiguousarray(items[start : start + rows])
    encode = codec.encoder(stream.numpy_dtype.itemsize, chunk.nbytes)
    if encode is None:
        raise BrokenError(f"{codec} has no encoder")
    if not turn:
        encode(chunk)  # the first call imports the library and makes the scratch memory
    cpu_s = time.thread_time()
    payload = encode(chunk).payload
    portion.seconds += time.thread_time() - cpu_s
    portion.taken_in += chunk.nbytes
    portion.given_out += len(payload)


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
