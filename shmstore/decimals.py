"""Decimals as text, which every tool can read, and back; exact for every value that the bytes can hold.

A decimal comes and goes in its physical form, as the bytes of its unscaled integer. What type it is, is
told by Arrow's spelling of it, as the file's layout has it: ``decimal128(38, 2)``.
"""

from __future__ import annotations

import decimal
import re

import pyarrow as pa

from shmstore.buffers import bitmap, validity

#: By bit width: the widest type, digits of its precision, digits that its bytes can hold.
_WIDEST = {
    32: (pa.decimal32, 9, 10),
    64: (pa.decimal64, 18, 19),
    128: (pa.decimal128, 38, 39),
    256: (pa.decimal256, 76, 77),
}
#: Characters beyond the digits: sign, point or leading zero, and the exponents that Arrow writes.
_MARKS = 8
_SPELLED = re.compile(r"decimal(\d+)\(\d+, (-?\d+)\)")


def text_bytes(type_: pa.DataType) -> int:
    """Return the length of the longest text of a decimal type, in bytes."""
    return _WIDEST[type_.bit_width][2] + max(_MARKS, len(f"-E{-type_.scale}"))


def to_text(values: pa.FixedSizeBinaryArray, spelled: str) -> pa.LargeStringArray:
    """Return decimals as text, such as ``-12.50`` or ``1E-10``; nulls stay null."""
    type_ = _widest(spelled)
    if abs(type_.scale) <= type_.precision:
        return values.view(type_).cast(pa.large_string())
    # Arrow has no text for such a scale, but an excuse.
    return pa.array(
        [
            None if raw is None else f"{int.from_bytes(raw, 'little', signed=True)}E{-type_.scale}"
            for raw in values.to_pylist()
        ],
        pa.large_string(),
    )


def from_text(text: pa.LargeStringArray, spelled: str) -> pa.FixedSizeBinaryArray:
    """Return the decimals that `to_text` made text of.

    Raises
    ------
    ValueError
        Some text is no decimal of that type.
    """
    import pyarrow.compute as pc  # 0.03 s: only those who want it pay

    type_ = _widest(spelled)
    size = type_.bit_width // 8
    try:
        found = text.cast(type_).view(pa.binary(size))
    except pa.ArrowInvalid:  # more digits than any precision: -2**127 has 39
        return _unscaled(text, type_.scale, size)
    # With a negative scale Arrow takes too many digits for none at all, and says nothing.
    longest = pc.max(pc.binary_length(text)).as_py() or 0
    if type_.scale < 0 and longest > type_.precision and not to_text(found, spelled).equals(text):
        return _unscaled(text, type_.scale, size)
    return found


def _widest(spelled: str) -> pa.DataType:
    match = _SPELLED.fullmatch(spelled)
    if match is None or int(match[1]) not in _WIDEST:
        raise ValueError(f"{spelled!r} is no decimal type")
    make, precision, _ = _WIDEST[int(match[1])]
    return make(precision, int(match[2]))


def _unscaled(text: pa.LargeStringArray, scale: int, size: int) -> pa.FixedSizeBinaryArray:
    refused = [decimal.Inexact, decimal.InvalidOperation]
    exact = decimal.Context(prec=200, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=refused)
    try:
        values = [exact.create_decimal("0" if value is None else value) for value in text.to_pylist()]
        scaled = [exact.scaleb(value, scale) for value in values]
        integers = [int(exact.to_integral_exact(value)) for value in scaled]
        data = b"".join(value.to_bytes(size, "little", signed=True) for value in integers)
    except (ArithmeticError, ValueError) as error:
        raise ValueError(f"it holds what is no decimal of {size} bytes: {error}") from None
    buffers = [bitmap(validity(text)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(size), len(text), buffers)
