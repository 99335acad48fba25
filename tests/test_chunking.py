from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shmstore.chunking import (
    LARGEST,
    LARGEST_MANY_COLUMNS,
    SMALLEST,
    UNKNOWN,
    bytes_for_rate,
    items_per_chunk,
    largest_beside,
    largest_bytes,
    round_up_to_power_of_two,
)


@given(st.integers(0, 10**9), st.integers(1, 10**8), st.floats(0, 1e6), st.integers(0, 5000))
def test_a_chunk_is_never_outside_its_bounds(
    items: int, item_bytes: int, seconds: float, streams: int
) -> None:
    largest = largest_bytes(streams)
    assert LARGEST_MANY_COLUMNS <= largest <= LARGEST
    size = bytes_for_rate(items, item_bytes, seconds, largest, 1.0)
    assert SMALLEST <= size <= largest
    assert items_per_chunk(item_bytes, size) >= 1
    assert items_per_chunk(item_bytes, size) * item_bytes <= max(size, item_bytes)


def test_a_fast_instrument_gets_large_chunks_and_a_slow_one_small() -> None:
    fast = bytes_for_rate(10_000, 8, 0.1, LARGEST, 1.0)
    slow = bytes_for_rate(10, 8, 10.0, LARGEST, 1.0)
    assert (fast, slow) == (LARGEST, SMALLEST)
    rates = [bytes_for_rate(items, 8, 2.0, LARGEST, 1.0) for items in (1, 100, 1000, 10_000, 10**6)]
    assert rates == sorted(rates)
    assert len(set(rates)) > 2


def test_a_rate_seen_too_briefly_is_not_trusted() -> None:
    assert bytes_for_rate(1, 8, 0.5, LARGEST, 1.0) == UNKNOWN
    assert bytes_for_rate(1, 8, 1.0, LARGEST, 1.0) == SMALLEST


@given(st.integers(1, 2**24))
def test_powers_of_two(size: int) -> None:
    rounded = round_up_to_power_of_two(size, 2**30)
    assert rounded & (rounded - 1) == 0
    assert size <= rounded < 2 * max(size, 2)
    assert round_up_to_power_of_two(size, 1000) <= 1000


def test_chunks_of_an_instruments_columns_end_together() -> None:
    counts = [items_per_chunk(item_bytes, 2**20) for item_bytes in (1, 2, 4, 8, 12, 24, 300)]
    assert all(counts[0] % count == 0 for count in counts)


@given(st.integers(1, 10**6), st.integers(1, 10**8))
def test_a_narrow_column_fills_its_chunk_within_some_chunks_of_the_widest(narrow: int, wide: int) -> None:
    size = largest_beside(narrow, wide, LARGEST)
    assert SMALLEST <= size <= LARGEST
    if size > SMALLEST:
        assert items_per_chunk(narrow, size) <= 64 * items_per_chunk(wide, LARGEST)
