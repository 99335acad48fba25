"""Which dictionary stands where: one that returns is found, one that grew is known, none is mixed up."""

from __future__ import annotations

import itertools
import struct

import pyarrow as pa
import pytest

from shmstore import dictionaries
from shmstore.dictionaries import Dictionaries, Place, image_of


def floats(*bits: int) -> pa.Array:
    return pa.array(bits, pa.uint64()).view(pa.float64())


DIFFERENT = {
    "text": [
        *(
            pa.array(values, pa.string())
            for values in ([], [""], ["", ""], ["a"], ["a", ""], ["", "a"], ["ab"])
        ),
        *(
            pa.array(values, pa.string())
            for values in (["a", "b"], ["b", "a"], [None], ["a", None], ["ab", "c"])
        ),
        pa.array(["a", "bc"]),
    ],
    "bytes that look like offsets": [
        pa.array([struct.pack("<3i", 0, 4, 4)], pa.binary()),
        pa.array([b"\0" * 4, b"\0" * 4], pa.binary()),
        pa.array([b"\0" * 8], pa.binary()),
        pa.array([b"\4\0\0\0" * 2], pa.binary()),
    ],
    "floats": [
        floats(0),
        floats(1 << 63),  # -0.0
        floats(0x7FF8000000000000),
        floats(0x7FF8000000000001),
        floats(0xFFF8000000000000),
        pa.array([None], pa.float64()),
    ],
    "lists": [
        pa.array(values, pa.list_(pa.int8())) for values in ([[]], [None], [[1], [2]], [[1, 2]], [[1, 2], []])
    ],
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_different_dictionaries_have_different_images(what: str) -> None:
    images = [image_of(array) for array in DIFFERENT[what]]
    for one, two in itertools.combinations(images, 2):
        assert one != two
    assert [image_of(array) for array in DIFFERENT[what]] == images


def test_an_equal_dictionary_in_other_memory_has_the_same_image() -> None:
    for arrays in DIFFERENT.values():
        for array in arrays:
            copy = pa.concat_arrays([array.slice(0, 0), array])
            assert image_of(copy) == image_of(array)


def test_one_that_comes_again_is_found() -> None:
    known = Dictionaries()
    first, second = Place(0, 2), Place(2, 1)
    assert known.last is None
    assert known.find(b"a") is None
    known.use(b"a", first)
    assert (known.last, known.find(b"a")) == (first, first)
    known.use(b"b", second)
    assert (known.last, known.find(b"a"), known.find(b"b")) == (second, first, second)
    known.use(b"a", first)
    assert known.last == first
    known.use(b"a", first)
    assert (known.find(b"a"), known.find(b"b")) == (first, second)


def test_growing_needs_the_same_beginning_and_the_end_of_the_categories() -> None:
    known = Dictionaries()
    old, new = pa.array(["a", "b"]), pa.array(["a", "b", "c"])
    assert known.grows_from(new, 0) is None
    known.use(image_of(old), Place(3, 2))
    assert known.grows_from(new, 5) == Place(3, 2)
    assert known.grows_from(new, 6) is None  # another stands behind it
    for other in (["b", "a", "c"], ["a"], ["a", "b"], ["a", "x", "b"], []):
        assert known.grows_from(pa.array(other, pa.string()), 5) is None
    known.use(image_of(pa.array([], pa.string())), Place(5, 0))
    assert known.grows_from(new, 5) is None  # everything begins with nothing


def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dictionaries, "_REMEMBERED", 3)
    known = Dictionaries()
    for number in range(5):
        known.use(bytes([number]), Place(number, 1))
    assert [known.find(bytes([number])) for number in range(5)] == [
        None,
        None,
        *(Place(n, 1) for n in (2, 3, 4)),
    ]
    known.use(b"\2", Place(2, 1))  # used again: the next to go is another
    known.use(b"\5", Place(5, 1))
    assert known.find(b"\2") == Place(2, 1)
    assert known.find(b"\3") is None


def test_so_have_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dictionaries, "_REMEMBERED_BYTES", 10)
    known = Dictionaries()
    known.use(b"x" * 100, Place(0, 1))
    assert known.find(b"x" * 100) == Place(0, 1)  # the last one always
    known.use(b"abcd", Place(1, 1))
    assert known.find(b"x" * 100) is None
    known.use(b"efgh", Place(2, 1))
    assert known.find(b"abcd") == Place(1, 1)
    known.use(b"ijkl", Place(3, 1))
    assert [known.find(image) for image in (b"abcd", b"efgh", b"ijkl")] == [None, Place(2, 1), Place(3, 1)]
