"""Decimals as text and back: every value that the bytes can hold, at any scale."""

from __future__ import annotations

import decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore.decimals import from_text, text_bytes, to_text

MAKERS = {4: pa.decimal32, 8: pa.decimal64, 16: pa.decimal128, 32: pa.decimal256}
SCALES = st.sampled_from([0, 2, -3, 9, 10, 38, 77, -40, 1000, 2**31 - 1, -(2**31) + 1]) | st.integers(-80, 80)


def raw_of(size: int, *values: int | None) -> pa.Array:
    return pa.array(
        [None if value is None else value.to_bytes(size, "little", signed=True) for value in values],
        pa.binary(size),
    )


@settings(deadline=None)
@given(data=st.data(), size=st.sampled_from(list(MAKERS)), scale=SCALES)
def test_any_bytes_come_back_and_fit(data: st.DataObject, size: int, scale: int) -> None:
    edge = 2 ** (8 * size - 1)
    values = data.draw(st.lists(st.none() | st.integers(-edge, edge - 1), max_size=5))
    raw = raw_of(size, *values, -edge, edge - 1, 0, -1)
    type_ = MAKERS[size](3, scale)
    text = to_text(raw, str(type_))
    assert from_text(text, str(type_)).equals(raw)
    assert all(len(value) <= text_bytes(type_) for value in text.to_pylist() if value is not None)
    exact = decimal.Context(prec=100, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)
    for value, shown in zip(values, text.to_pylist(), strict=False):
        assert (value is None) == (shown is None)
        if value is not None:
            assert exact.compare(exact.create_decimal(shown), exact.scaleb(value, -scale)) == 0


def test_text_is_as_people_write_it() -> None:
    assert to_text(raw_of(16, -1250, 5, None), "decimal128(5, 2)").to_pylist() == ["-12.50", "0.05", None]


@pytest.mark.parametrize("text", ["", "x", "1.234", "1E+40", "NaN", "Infinity", "--1"])
def test_what_is_no_decimal_of_that_type_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="no decimal of 16 bytes"):
        from_text(pa.array([text], pa.large_string()), "decimal128(38, 2)")


@pytest.mark.parametrize("spelled", ["", "int32", "decimal(3, 1)", "decimal128(3)", "decimal512(3, 1)"])
def test_what_is_no_decimal_type_is_an_error(spelled: str) -> None:
    with pytest.raises(ValueError, match="no decimal type"):
        from_text(pa.array(["1"], pa.large_string()), spelled)
