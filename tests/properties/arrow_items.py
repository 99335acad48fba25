"""Hypothesis strategies for the bytes of single values: the odd ones of each type, and any others."""

from __future__ import annotations

import functools

import pyarrow as pa
from hypothesis import strategies as st

_DAY_MS = 86_400_000
_PER_DAY = {"s": 86_400, "ms": _DAY_MS, "us": _DAY_MS * 10**3, "ns": _DAY_MS * 10**6}


@functools.cache
def fixed_width_items(type_: pa.DataType) -> st.SearchStrategy[bytes]:
    """Draw the bytes of one value of a fixed-width type."""
    if pa.types.is_decimal(type_):
        most, width = 10**type_.precision - 1, type_.bit_width // 8
        return _signed(
            st.sampled_from([0, 1, -1, most, -most, most // 10 * 10]) | st.integers(-most, most), width
        )
    if pa.types.is_date64(type_):
        most = 2**63 // _DAY_MS
        days = st.sampled_from([0, 1, -1, 20_000, most, -most]) | st.integers(-most, most)
        return _signed(days.map(lambda day: day * _DAY_MS), 8)
    if pa.types.is_time(type_):
        most = _PER_DAY[type_.unit] - 1
        return _signed(st.sampled_from([0, 1, most]) | st.integers(0, most), type_.bit_width // 8)
    if pa.types.is_interval(type_):
        parts = st.tuples(
            _signed(_whole_numbers(32), 4), _signed(_whole_numbers(32), 4), _signed(_whole_numbers(64), 8)
        )
        return parts.map(b"".join)
    if pa.types.is_fixed_size_binary(type_):
        return st.binary(min_size=type_.byte_width, max_size=type_.byte_width)
    bits = type_.bit_width
    if pa.types.is_floating(type_):
        return st.sampled_from(_odd_floats(bits)) | st.binary(min_size=bits // 8, max_size=bits // 8)
    return _signed(_whole_numbers(bits), bits // 8)  # the sign of unsigned ones is one of their bits


def _signed(numbers: st.SearchStrategy[int], width: int) -> st.SearchStrategy[bytes]:
    return numbers.map(lambda number: number.to_bytes(width, "little", signed=True))


def _whole_numbers(bits: int) -> st.SearchStrategy[int]:
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return st.sampled_from([0, 1, -1, 2, 100, least, least + 1, most, most - 1]) | st.integers(least, most)


def _odd_floats(bits: int) -> list[bytes]:
    """Return 0, 1, -0, infinities, the smallest, and NaNs: quiet, signalling, negative, with a payload."""
    fraction = {16: 10, 32: 23, 64: 52}[bits]
    sign, infinity, quiet = 1 << bits - 1, (1 << bits - 1) - (1 << fraction), 1 << fraction - 1
    one = infinity >> fraction + 1 << fraction
    odd = [0, one, sign, infinity, sign | infinity, 1, sign | 1, infinity - 1]
    nans = [
        infinity | quiet,
        infinity | 1,
        sign | infinity | quiet,
        infinity | quiet | 0x155,
        infinity | quiet - 1,
    ]
    return [number.to_bytes(bits // 8, "little") for number in odd + nans]


@functools.cache
def texts(nul: bool) -> st.SearchStrategy[bytes]:
    """Draw UTF-8: empty, short, just too long for a view; with NUL characters where they are wanted."""
    alphabet = st.characters(exclude_characters="" if nul else "\0", exclude_categories=["Cs"])
    odd = ["", "", "a", " ", "exactly 12 b", "13 bytes long", "käse", "😀" * 9, "a trailing\n", "NaN"]
    with_nul = ["\0", "a\0", "\0a", "\0" * 14] if nul else []
    return (st.sampled_from(odd + with_nul) | st.text(alphabet, max_size=6)).map(str.encode)


@functools.cache
def blobs() -> st.SearchStrategy[bytes]:
    """Draw bytes of any length and kind."""
    odd = [b"", b"", b"\0", b"\0\0", b"\xff", b"a\0", b"bytes" * 7]
    return st.sampled_from(odd) | st.binary(max_size=6)
