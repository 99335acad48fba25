from __future__ import annotations

import numpy as np
import pytest

from shmstore import shuffle
from shmstore.shuffle import bit_shuffle, bit_unshuffle, bitshuffle_block, byte_shuffle, byte_unshuffle

ITEMSIZES = [1, 2, 3, 4, 5, 8, 12, 16, 24, 255, 256, 300]


def noise(nbytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)


@pytest.mark.parametrize("items", [1, 7, 64, 1003])
@pytest.mark.parametrize("itemsize", ITEMSIZES)
def test_byte_planes(itemsize: int, items: int) -> None:
    data = noise(items * itemsize)
    out = np.zeros_like(data)
    byte_shuffle(data, itemsize, out)
    assert out.tobytes() == b"".join(data[byte::itemsize].tobytes() for byte in range(itemsize))


@pytest.mark.parametrize("items", [8, 64, 1000])
@pytest.mark.parametrize("itemsize", ITEMSIZES)
def test_bit_planes(itemsize: int, items: int) -> None:
    data = noise(items * itemsize)
    out = np.zeros_like(data)
    bit_shuffle(data, itemsize, out)
    for byte, bit in ((0, 0), (itemsize - 1, 7), (itemsize // 2, 3)):
        plane = np.packbits(data[byte::itemsize] >> bit & 1, bitorder="little")
        start = (byte * 8 + bit) * items // 8
        assert (out[start : start + items // 8] == plane).all(), (byte, bit)


@pytest.mark.parametrize("items", [1, 7, 64, 1003])
@pytest.mark.parametrize("itemsize", ITEMSIZES)
def test_byte_planes_and_back(itemsize: int, items: int) -> None:
    data = noise(items * itemsize + 1)[1:]  # at an odd address, as within a larger array
    planes, out = np.zeros_like(data), np.zeros_like(data)
    byte_shuffle(data, itemsize, planes)
    byte_unshuffle(planes, itemsize, out)
    assert out.tobytes() == data.tobytes()


@pytest.mark.parametrize("items", [8, 64, 1000])
@pytest.mark.parametrize("itemsize", ITEMSIZES)
def test_bit_planes_and_back(itemsize: int, items: int) -> None:
    data = noise(items * itemsize + 1)[1:]
    planes, out = np.zeros_like(data), np.zeros_like(data)
    bit_shuffle(data, itemsize, planes)
    bit_unshuffle(planes, itemsize, out)
    assert out.tobytes() == data.tobytes()


@pytest.mark.parametrize("itemsize", ITEMSIZES)
def test_the_same_without_the_fast_library(itemsize: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise(64 * itemsize)
    transpositions = (byte_shuffle, bit_shuffle, byte_unshuffle, bit_unshuffle)
    fast = [np.zeros_like(data) for _ in transpositions]
    for transpose, out in zip(transpositions, fast, strict=True):
        transpose(data, itemsize, out)
    monkeypatch.setattr(shuffle, "_blosc2_library", lambda: None)
    plain = [np.zeros_like(data) for _ in transpositions]
    for transpose, out in zip(transpositions, plain, strict=True):
        transpose(data, itemsize, out)
    assert [array.tobytes() for array in fast] == [array.tobytes() for array in plain]


def test_the_fast_library_is_there() -> None:
    assert shuffle._blosc2_library() is not None


@pytest.mark.parametrize("itemsize", [1, 2, 12, 255, 8192, 10**6])
def test_a_block_of_bit_planes_is_a_multiple_of_8(itemsize: int) -> None:
    block = bitshuffle_block(itemsize)
    assert block % 8 == 0
    assert block == 8 or 128 << 10 < block * itemsize <= 256 << 10
