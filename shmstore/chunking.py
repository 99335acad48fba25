"""How many items a chunk holds: large where data comes fast, small where it trickles. Arithmetic only.

A chunk is the unit of compression, of a direct write and of what a reader must load. Too small costs time per
chunk and ratio; too large leaves a slow instrument invisible or pads its file. So the size follows the rate
that was seen before the datasets are made.
"""

from __future__ import annotations

_KIB = 1024
#: Chunks of a fast instrument: 1 MiB, less where many columns share the memory for tails, at least 128 KiB.
#: Of 500 columns, chunks of 256 KiB save less time than it takes to fill so much memory first (measured, 512
#: MB, zstd: 128 KiB 0.57 s, 256 KiB 0.59 s).
LARGEST, LARGEST_MANY_COLUMNS = 1024 * _KIB, 128 * _KIB
#: All columns of one instrument together aim at this many bytes of chunks.
_INSTRUMENT_BYTES = 64 * 1024 * _KIB
#: Smallest chunk worth an entry in the index.
SMALLEST = 4 * _KIB
#: Chunk of an instrument about whose rate nothing is known yet.
UNKNOWN = 64 * _KIB
#: So many bytes of all columns together tell how fast an instrument is, however briefly they took.
PLENTY = 4 * 1024 * _KIB
#: Most chunks of the widest column that one chunk of a narrow one beside it may span.
_SPAN_CHUNKS = 64
#: A slow column's chunk covers about this long, in seconds; what its tail costs in the file is then one such
#: chunk.
_SPAN_S = 8.0


def largest_bytes(streams: int) -> int:
    """Return the chunk size aimed at for a fast instrument with that many streams.

    Examples
    --------
    >>> largest_bytes(4), largest_bytes(500)
    (1048576, 134217)
    """
    return max(LARGEST_MANY_COLUMNS, min(LARGEST, _INSTRUMENT_BYTES // max(streams, 1)))


def bytes_for_rate(items: int, item_bytes: int, seconds: float, largest: int, known_after: float) -> int:
    """Return the chunk size for a stream that brought ``items`` in its first ``seconds``.

    Parameters
    ----------
    items, item_bytes
        What was seen: number, and size of one.
    seconds
        Since the first.
    largest
        Never more than this.
    known_after
        Seconds of observation below which the rate is not trusted.

    Examples
    --------
    >>> bytes_for_rate(50, 8, 1.0, LARGEST, 1.0)  # a 50 Hz double
    4096
    >>> bytes_for_rate(10, 8, 0.001, LARGEST, 1.0)  # an early flush
    65536
    >>> bytes_for_rate(8192, 8, 0.01, LARGEST, 1.0)  # 64 KiB within 10 ms
    1048576
    """
    seen = items * item_bytes
    if seconds < known_after and seen < UNKNOWN:
        return min(UNKNOWN, largest)
    return round_up_to_power_of_two(
        max(SMALLEST, min(largest, int(seen / max(seconds, 1e-3) * _SPAN_S))), largest
    )


def largest_beside(item_bytes: int, widest_item_bytes: int, largest: int) -> int:
    """Return the largest chunk for a narrow stream beside a wide one: a time stamp beside an image.

    Without it, the time stamps of a slow camera would fill their first chunk only after hours.

    Examples
    --------
    >>> largest_beside(8, 8, LARGEST), largest_beside(8, 128 * 1024, LARGEST)
    (1048576, 4096)
    """
    widest_chunk = items_per_chunk(widest_item_bytes, largest)
    return min(largest, max(SMALLEST, _SPAN_CHUNKS * widest_chunk * item_bytes))


def round_up_to_power_of_two(size: int, largest: int) -> int:
    """Return the smallest power of two that is at least ``size``, but at most ``largest``."""
    return min(largest, 1 << max(size - 1, 1).bit_length())


def items_per_chunk(item_bytes: int, chunk_bytes: int) -> int:
    """Return how many items make a chunk of about ``chunk_bytes``; at least 1.

    Powers of two, so that the chunks of an instrument's columns end together.

    Examples
    --------
    >>> items_per_chunk(8, 1 << 20), items_per_chunk(12, 1 << 20), items_per_chunk(4 << 20, 1 << 20)
    (131072, 65536, 1)
    """
    return 1 << (max(chunk_bytes // max(item_bytes, 1), 1).bit_length() - 1)
