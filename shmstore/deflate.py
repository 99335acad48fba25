"""Zlib streams made fast: one stream spliced from segments, each made by the engine that suits its bytes.

Owns the choice of engine and the splicing. Knows neither HDF5 nor how the bytes came about, except that they
may consist of planes (the byte planes of a shuffled chunk) that behave differently: in ADC samples the low
plane is noise that no engine shrinks, and the high plane is what there is to compress.

A deflate stream may change its maker at any byte boundary: a segment ended by a sync flush leaves the decoder
at one, and a stored block (RFC 1951, 3.2.4) begins at one. So noise is copied, at the speed of memory, and
only the rest goes through an engine. Every inflate reads the result.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from zlib_ng import zlib_ng

__all__ = ["zlib_stream"]

Bytes: TypeAlias = npt.NDArray[np.uint8]

_STORED_BLOCK_MAX = 65535
_STORED_BLOCK_OVERHEAD = 5
_HEADERS = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")  # RFC 1950: 32 KiB window; FLEVEL 0 to 3
_END = b"\x03\x00"  # an empty, final block with fixed codes
_RAW_DEFLATE = -15
_MEM_LEVEL = 9

_MIN_PLANE = 4096  # below, the choice costs more than it saves
_MAX_PLANES = 16
_SPANS = 8  # what a chunk of very wide elements is cut into instead of planes
_SAMPLE_MIN, _SAMPLE_MAX = 16 << 10, 64 << 10  # bytes tried per plane; isal does 64 KiB of noise in 45 us


class _Engine(NamedTuple):
    """Who makes a segment: ``"stored"``, ``"isal"``, ``"ng"`` or ``"rle"`` (zlib-ng with runs only)."""

    name: str
    level: int = 0


_STORED = _Engine("stored")
_ISAL = _Engine("isal", 1)
_ISAL_2 = _Engine("isal", 2)
_RLE = _Engine("rle", 2)
_MATCHES = _Engine("ng")  # stands for the engine that the level and the share decide

# Levels 4 to 9 promise zlib's size within 5 % of the chunk. A cheap engine may waste much on planes that are
# little of the compressed chunk. So each is good up to a share of it (by isal's estimate), measured on sines
# of amplitude 500 to 8,000 and period 3 to 20,000 with noise of 8 to 50: first failures at 0.091 (isal-1),
# 0.107 (zlib-ng-2), none up to 0.21 (zlib-ng-3: at most 4.6 %); zlib-ng-4 stays below 2.4 % there, and below
# 8 % where it is all of the chunk. Time for 512 KiB of a high plane: 0.5, 1.4, 2.5, 3.2 ms, against 9 ms for
# zlib-ng-6.
_CHEAP = ((0.088, _ISAL), (0.105, _Engine("ng", 2)), (0.21, _Engine("ng", 3)), (0.5, _Engine("ng", 4)))


def zlib_stream(data: Bytes, planes: int, level: int) -> bytes | None:
    """Compress to one zlib stream that any inflate reads.

    Parameters
    ----------
    data
        ``(nbytes,)``, contiguous; borrowed for the call.
    planes
        How many equally long planes the bytes consist of; 1 if they were not shuffled.
    level
        0 to 9, as in zlib: 0 never compresses, 1 is the fastest (Intel ISA-L), 2 and 3 lie between, and 4 to
        9 come within 5 % of zlib's size or below, where that is what noise leaves to compress.

    Returns
    -------
    bytes or None
        The stream, or None where it would not be shorter than the data.

    Notes
    -----
    Blocks the calling thread, not the interpreter: the engines work with its lock released. The same bytes
    give the same stream, whichever thread asks.
    """
    if level == 0 or data.nbytes == 0:
        return None
    spans = _spans(data, planes)
    engines = _choose(spans, level)
    if all(engine is _STORED for engine in engines):
        return None
    pieces: list[bytes | memoryview] = [
        _HEADERS[0 if level < 2 else 1 if level < 6 else 2 if level == 6 else 3]
    ]
    view = data.data
    start = stop = 0
    for index, (span, engine) in enumerate(zip(spans, engines, strict=True)):
        stop += span.nbytes
        if index + 1 == len(spans) or engines[index + 1] != engine:  # neighbours of one kind make one segment
            _segment(view[start:stop], engine, pieces)
            start = stop
    pieces.append(_END)
    pieces.append(struct.pack(">I", zlib_ng.adler32(view)))
    if sum(map(len, pieces)) >= data.nbytes:
        return None
    return b"".join(pieces)


def _segment(view: memoryview, engine: _Engine, pieces: list[bytes | memoryview]) -> None:
    """Append the non-final deflate blocks of one segment, ending at a byte boundary."""
    if engine is _STORED:
        for start in range(0, len(view), _STORED_BLOCK_MAX):
            block = view[start : start + _STORED_BLOCK_MAX]
            pieces.append(struct.pack("<BHH", 0, len(block), len(block) ^ 0xFFFF))
            pieces.append(block)
        return
    if engine.name == "isal":
        fast = isal_zlib.compressobj(engine.level, isal_zlib.DEFLATED, _RAW_DEFLATE, _MEM_LEVEL)
        segment = (fast.compress(view), fast.flush(isal_zlib.Z_SYNC_FLUSH))
    else:
        strategy = zlib_ng.Z_RLE if engine.name == "rle" else zlib_ng.Z_DEFAULT_STRATEGY
        small = zlib_ng.compressobj(engine.level, zlib_ng.DEFLATED, _RAW_DEFLATE, _MEM_LEVEL, strategy)
        segment = (small.compress(view), small.flush(zlib_ng.Z_SYNC_FLUSH))
    stored_length = len(view) + _STORED_BLOCK_OVERHEAD * -(-len(view) // _STORED_BLOCK_MAX)
    if sum(map(len, segment)) < stored_length:
        pieces.extend(segment)
    else:
        _segment(view, _STORED, pieces)  # the sample promised what the whole did not keep


def _spans(data: Bytes, planes: int) -> Sequence[Bytes]:
    """The planes, or what is judged in their place where they are too small or too many."""
    if 1 <= planes <= _MAX_PLANES and data.nbytes // planes >= _MIN_PLANE:
        return np.array_split(data, planes)
    if planes > 1 and data.nbytes // _SPANS >= _MIN_PLANE:
        return np.array_split(data, _SPANS)
    return [data]


def _choose(spans: Sequence[Bytes], level: int) -> list[_Engine]:
    """One engine per span."""
    judged = [_judge(span, level) for span in spans]
    total = sum(estimate for _, estimate in judged)
    share = sum(estimate for engine, estimate in judged if engine is _MATCHES) / max(total, 1.0)
    matcher = _matcher(level, share)
    if len(spans) == 1 and 4 <= level <= 6 and matcher.name == "ng" and _short_matches(spans[0]):
        matcher = _ISAL_2
    return [matcher if engine is _MATCHES else engine for engine, _ in judged]


def _short_matches(span: Bytes) -> bool:
    """Whether a cheap search finds what a thorough one does, as in short words.

    Where it does, isal-2 comes to 0.96 to 1.01 of zlib-6's size at four times the speed of zlib-ng-6 (log
    words, ISO times, hexadecimal ids); in source code it would be 1.19.
    """
    sample = _sample(span)
    cheap = isal_zlib.compressobj(2, isal_zlib.DEFLATED, _RAW_DEFLATE, _MEM_LEVEL)
    thorough = zlib_ng.compressobj(4, zlib_ng.DEFLATED, _RAW_DEFLATE, _MEM_LEVEL)
    size, wanted = (len(engine.compress(sample)) + len(engine.flush()) for engine in (cheap, thorough))
    return size <= 1.04 * wanted


def _matcher(level: int, share: float) -> _Engine:
    """The engine for planes in which strings recur, given their share of the compressed chunk."""
    if level == 1:
        return _ISAL
    if level <= 6:
        for most, engine in _CHEAP:
            if share <= most and engine.level < level:
                return engine
    return _Engine("ng", level)


def _judge(span: Bytes, level: int) -> tuple[_Engine, float]:
    """The kind of engine that a span wants, and about how many bytes will be left of it."""
    sample = _sample(span)
    size = len(isal_zlib.compress(sample, 1, _RAW_DEFLATE))
    ratio = min(1.0, size / sample.nbytes)
    if ratio >= (0.985 if level <= 6 else 0.995):
        return _STORED, float(span.nbytes)
    estimate = ratio * span.nbytes
    if level == 1:
        return _ISAL, estimate
    if ratio > 0.3:
        # Bytes without recurring strings are done with a Huffman code: a search would cost ten times the time
        # and find nothing (noise over less than 8 bits), or find chance matches that cost more than they save
        # (photon counts: zlib-6 217 KB, Huffman codes and runs alone 188 KB).
        entropy = _entropy(sample[::4]) / 8
        if ratio >= 1.05 * entropy and level > 3:
            return _RLE, entropy * span.nbytes
        if ratio >= 0.97 * entropy:
            return _ISAL, estimate
    return _MATCHES, estimate


def _sample(span: Bytes) -> Bytes:
    """A part of the span that stands for it: half from the middle, a quarter from either end."""
    nbytes = min(max(span.nbytes // 8, _SAMPLE_MIN), _SAMPLE_MAX)
    if span.nbytes <= nbytes:
        return span
    quarter, middle = nbytes // 4, span.nbytes // 2
    return np.concatenate((span[:quarter], span[middle - quarter : middle + quarter], span[-quarter:]))


def _entropy(sample: Bytes) -> float:
    """Shannon entropy in bits per byte."""
    counts = np.bincount(sample, minlength=256)
    share = counts[counts > 0] / sample.nbytes
    return float(-(share * np.log2(share)).sum())
