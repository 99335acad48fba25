"""Damage to bytes: what disks, other programs and stray pointers do to a file, as a strategy that shrinks.

A `Damage` is made of plain numbers, which mean something for any file: where, how much and what are taken
modulo what there is. So a case that failed can be sent to another process, and be tried again.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import strategies as st

SECTOR_BYTES = 512
KINDS = ("field", "flip", "random", "copy", "zeros", "ones", "swap", "cut", "extend")

#: Parts of a file that are as likely to be met as the others, however small: first and last byte + 1.
Regions = Sequence[tuple[int, int]]


class Damage(NamedTuple):
    """One blow.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    region, at : int
        Which of the regions, and where in it.
    length : int
        How many bytes are met.
    value : int
        What is there instead: of a field which extreme, of a flip which bit, of rubbish its seed.
    source : int
        Where bytes come from that are copied or exchanged; of a field its width.
    """

    kind: str
    region: int
    at: int
    length: int
    value: int
    source: int


_NUMBERS = st.integers(0, 2**20)
DAMAGES = st.lists(
    st.builds(
        Damage,
        st.sampled_from(KINDS),
        st.integers(0, 63),
        _NUMBERS,
        st.integers(1, 16) | st.integers(1, 4096),
        _NUMBERS,
        _NUMBERS,
    ),
    min_size=1,
    max_size=4,
)


def damaged(data: bytes, damages: Sequence[Damage], regions: Regions = ()) -> bytes:
    """Return the bytes with all of the damage done to them, blow after blow."""
    done = bytearray(data)
    regions = [(start, stop) for start, stop in regions if start < stop] or [(0, len(data))]
    for damage in damages:
        if not done:
            break
        start, stop = regions[damage.region % len(regions)]
        _strike(done, damage, min(start + damage.at % (stop - start), len(done) - 1))
    return bytes(done)


def _strike(done: bytearray, damage: Damage, at: int) -> None:
    stop = min(at + damage.length, len(done))
    source = damage.source % len(done)
    if damage.kind == "field":
        _set_field(done, at, damage)
    elif damage.kind == "flip":
        done[at] ^= 1 << damage.value % 8
    elif damage.kind == "random":
        done[at:stop] = random.Random(damage.value).randbytes(stop - at)
    elif damage.kind == "copy":
        part = done[source : source + stop - at]
        done[at : at + len(part)] = part
    elif damage.kind == "zeros":
        done[at:stop] = bytes(stop - at)
    elif damage.kind == "ones":
        done[at:stop] = b"\xff" * (stop - at)
    elif damage.kind == "swap":
        one, other = (place - place % SECTOR_BYTES for place in (at, source))
        first, second = done[one : one + SECTOR_BYTES], done[other : other + SECTOR_BYTES]
        if len(first) == len(second):
            done[one : one + SECTOR_BYTES], done[other : other + SECTOR_BYTES] = second, first
    elif damage.kind == "cut":
        del done[at:]
    else:
        done += (
            random.Random(damage.value).randbytes(damage.length) if damage.value % 2 else bytes(damage.length)
        )


def _set_field(done: bytearray, at: int, damage: Damage) -> None:
    """Give an integer a value that arithmetic trips over."""
    width = (8, 4, 2, 1)[damage.source % 4]
    at -= at % width
    if at + width > len(done):
        return
    form = {8: "<Q", 4: "<I", 2: "<H", 1: "<B"}[width]
    (before,) = struct.unpack_from(form, done, at)
    top = 2 ** (8 * width)
    extremes = (
        0,
        1,
        before + 1,
        before - 1,
        top - 1,
        top // 2,
        top // 2 - 1,
        before * 2,
        before + 64,
        before - 64,
        len(done),
        top - 64,
        2**31,
        2**32,
        damage.value,
    )
    struct.pack_into(form, done, at, extremes[damage.value % len(extremes)] % top)
