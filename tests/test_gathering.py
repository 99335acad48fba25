"""Items picked one by one: the same as a list's, of the same type, and sound, at any depth."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shmstore.buffers import Items
from shmstore.gathering import gather, gather_ranges, list_ranges

ROWS = 24
NUMBERS = np.arange(ROWS)
NULLS = pa.array(NUMBERS % 4 == 1)
CODES = pa.array([None if row % 6 == 4 else row % 5 for row in range(ROWS)], pa.int8())
OFFSETS = np.array([0, 0, 1, 5, 5, 8, *range(8, 23), 23, 24, 24, 24])
SOME_TEXTS = ("", "Grüße", "a text of more than twelve bytes", "and another one that is not shorter")
TEXTS = pa.array([None if row % 7 == 3 else SOME_TEXTS[row % 4] + str(row) for row in range(ROWS)])
LABELS = pa.DictionaryArray.from_arrays(CODES, TEXTS[2:7], ordered=True)
ENDS = pa.array([2, 3, 9, 10, 24], pa.int16())
UUIDS = pa.ExtensionArray.from_storage(
    pa.uuid(), pa.array([None if row % 5 == 2 else bytes([row]) * 16 for row in range(ROWS)], pa.binary(16))
)


def runs(values: pa.Array) -> pa.Array:
    return pa.Array.from_buffers(
        pa.run_end_encoded(pa.int16(), values.type), ROWS, [None], children=[ENDS, values[3:8]]
    )


def views(of: pa.Array, large: bool) -> pa.Array:
    """Lists that overlap, lie in disorder, are null, are empty."""
    starts, sizes = NUMBERS[::-1] // 2, NUMBERS % 6
    if large:
        return pa.LargeListViewArray.from_arrays(pa.array(starts), pa.array(sizes), of, mask=NULLS)
    own = (pa.array(part, pa.int32()) for part in (starts, sizes))
    return pa.ListViewArray.from_arrays(*own, of, mask=NULLS)


def union(mode: str, of: pa.Array) -> pa.Array:
    type_ = pa.union([pa.field("a", of.type), pa.field("b", pa.int64())], mode, [2, 5])
    own = [pa.array(NUMBERS % 2 * 3 + 2, pa.int8())]
    if mode == "dense":
        own.append(pa.array(NUMBERS // 2 + 3, pa.int32()))
    children = [of, pa.array(NUMBERS)]
    return pa.Array.from_buffers(type_, ROWS, [None, *(part.buffers()[1] for part in own)], children=children)


LEAVES = {
    "int64": pa.array([None if row % 5 == 1 else row for row in range(ROWS)]),
    "bool": pa.array([[True, None, False][row % 3] for row in range(ROWS)]),
    "null": pa.nulls(ROWS),
    "string": TEXTS,
    "string_view": TEXTS.cast(pa.string_view()),
    "binary_view": TEXTS.cast(pa.binary()).cast(pa.binary_view()),
    "dictionary": LABELS,
    "uuid": UUIDS,
    "run ends of text": runs(TEXTS),
    "run ends of dictionary": runs(LABELS),
    "run ends of string_view": runs(TEXTS.cast(pa.string_view())),
    "run ends of uuid": runs(UUIDS),
    "dictionary of string_view": pa.DictionaryArray.from_arrays(CODES, TEXTS.cast(pa.string_view())[1:7]),
    "dictionary of run ends": pa.DictionaryArray.from_arrays(CODES, runs(LABELS)[1:7]),
}
WRAPPERS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "itself": lambda of: of,
    "list": lambda of: pa.ListArray.from_arrays(pa.array(OFFSETS, pa.int32()), of, mask=NULLS),
    "large_list": lambda of: pa.LargeListArray.from_arrays(pa.array(OFFSETS), of, mask=NULLS),
    "list_view": lambda of: views(of, large=False),
    "large_list_view": lambda of: views(of, large=True),
    "fixed_size_list": lambda of: pa.FixedSizeListArray.from_arrays(
        pa.StructArray.from_arrays([of], ["w"])[:ROWS], 1, mask=NULLS
    ),
    "fixed_size_list of nothing": lambda of: pa.Array.from_buffers(
        pa.list_(of.type, 0), ROWS, [NULLS.buffers()[1]], children=[of[:0]]
    ),
    "struct": lambda of: pa.StructArray.from_arrays([of, pa.array(NUMBERS)], ["a", "b"], mask=NULLS),
    "map": lambda of: pa.MapArray.from_arrays(
        pa.array(OFFSETS, pa.int32()), pa.array([str(row) for row in range(ROWS)]), of
    ),
    "sparse_union": lambda of: union("sparse", of),
    "dense_union": lambda of: union("dense", of),
    "run_end_encoded": runs,
    "dictionary": lambda of: pa.DictionaryArray.from_arrays(CODES, of),
    "extension": lambda of: pa.ExtensionArray.from_storage(pa.opaque(of.type, "t", "v"), of),
}
PICKS = {
    "nothing": [],
    "one": [7],
    "the last": [-1],
    "all": None,
    "backwards": slice(None, None, -1),
    "a stretch": slice(3, 9),
    "often the same": [4, 4, 4, 0, 0, 9, 4],
    "here and there": [11, 2, 8, 2, 10, 3, 5, 5, 1, 0, 7],
}


def places(array: pa.Array, pick: object) -> Items:
    every = np.arange(len(array))
    return every if pick is None else every[pick]  # type: ignore[index]


def listed(array: pa.Array) -> list[Any]:
    """Read an array item by item, slowly; Arrow's own way fails for some types within run ends."""
    type_ = array.type
    if isinstance(type_, pa.BaseExtensionType):
        return listed(array.storage)
    if pa.types.is_run_end_encoded(type_):
        values, ends = listed(array.values), array.run_ends.to_pylist()
        return [values[bisect.bisect_right(ends, array.offset + row)] for row in range(len(array))]
    if pa.types.is_dictionary(type_):
        values = listed(array.dictionary)
        return [None if code is None else values[code] for code in array.indices.to_pylist()]
    if pa.types.is_union(type_):
        members = [listed(array.field(number)) for number in range(type_.num_fields)]
        codes = np.frombuffer(array.buffers()[1], np.int8)[array.offset :][: len(array)]
        within = np.arange(len(array))
        if type_.mode == "dense":
            within = np.frombuffer(array.buffers()[2], np.int32)[array.offset :][: len(array)]
        places = zip(codes, within, strict=True)
        return [(code, members[type_.type_codes.index(code)][place]) for code, place in places]
    if pa.types.is_struct(type_):
        members = [listed(array.field(number)) for number in range(type_.num_fields)]
        rows = zip(zip(*members, strict=True), array.is_valid().to_pylist(), strict=True)
        return [row if valid else None for row, valid in rows]
    if not type_.num_fields:
        return array.to_pylist()  # type: ignore[no-any-return]
    if pa.types.is_map(type_):  # keys and items, not values: so do all others who read it
        values = list(zip(listed(array.keys), listed(array.items), strict=True))
    else:
        values = listed(array.values)
    if pa.types.is_fixed_size_list(type_):
        starts = (array.offset + np.arange(len(array))) * type_.list_size
        ends = starts + type_.list_size
    else:
        wide = np.int64 if str(type_).startswith("large") else np.int32
        starts = np.frombuffer(array.buffers()[1], wide)[array.offset :]
        views = "list_view" in str(type_).partition("<")[0]
        ends = starts + np.frombuffer(array.buffers()[2], wide)[array.offset :] if views else starts[1:]
    rows = zip(starts, ends, array.is_valid().to_pylist(), strict=False)
    return [values[start:end] if valid else None for start, end, valid in rows]


def check(array: pa.Array) -> None:
    items = listed(array)
    for pick in PICKS.values():
        indices = places(array, pick)
        found = gather(array, indices)
        found.validate(full=True)
        assert found.type.equals(array.type, check_metadata=True)
        assert listed(found) == [items[index] for index in indices]


@pytest.mark.parametrize("leaf", ["int64", "string_view", "run ends of text", "dictionary of run ends"])
@pytest.mark.parametrize("wrapper", ["list", "large_list_view", "map", "dictionary", "itself"])
def test_the_slow_reader_reads_as_arrow_does(wrapper: str, leaf: str) -> None:
    array = WRAPPERS["list_view"](WRAPPERS[wrapper](LEAVES[leaf]))[3:]
    assert listed(array) == array.to_pylist()


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_any_type_is_picked_as_from_a_list(wrapper: str, leaf: str) -> None:
    array = WRAPPERS[wrapper](LEAVES[leaf])
    array.validate(full=True)
    assert len(array) == ROWS
    for part in (array, array[5:], array[:13], array[3:20], array[2:][7:21]):
        check(part)


@pytest.mark.parametrize("outer", WRAPPERS)
@pytest.mark.parametrize("inner", WRAPPERS)
def test_so_it_is_when_types_lie_within_each_other(outer: str, inner: str) -> None:
    if outer == inner == "extension":
        inner = "struct"  # Arrow itself aborts over an extension's extension
    for leaf in ("string_view", "run ends of dictionary", "dictionary of run ends"):
        array = WRAPPERS[outer](WRAPPERS[inner](LEAVES[leaf]))
        for part in (array, array[3:20]):
            check(part)


@pytest.mark.parametrize("of", ["string_view", "run ends of text", "dictionary of run ends"])
def test_fixed_lists_of_several_items_are_picked_whole(of: str) -> None:
    array = pa.FixedSizeListArray.from_arrays(LEAVES[of], 3)
    items = array.to_pylist()
    for part, first in ((array, 0), (array[2:], 2)):
        found = gather(part, np.array([5, 0, 0, 3]))
        found.validate(full=True)
        assert found.to_pylist() == [items[first + index] for index in (5, 0, 0, 3)]


def test_what_is_picked_from_run_ends_stays_in_runs() -> None:
    array = LEAVES["run ends of dictionary"]
    found = gather(array, np.array([0, 1, 0, 9, 9, 9, 23, 3]))
    assert found.run_ends.to_pylist() == [3, 6, 7, 8]
    assert found.run_ends.type == pa.int16()
    assert len(found.values) == 4


def test_a_dictionary_is_not_touched() -> None:
    array = LEAVES["dictionary of string_view"]
    found = gather(array, np.array([1, 2]))
    assert found.dictionary.equals(array.dictionary)
    assert found.dictionary.buffers()[1].address == array.dictionary.buffers()[1].address
    ordered = pa.DictionaryArray.from_arrays(CODES, TEXTS.cast(pa.string_view()), ordered=True)
    assert gather(ordered, np.array([1])).type.ordered


def test_nan_and_the_sign_of_zero_stay_as_they_are() -> None:
    bits = np.array([0x7FF8000000000001, 0x8000000000000000, 0xFFF0000000000001, 0, 0x7FF8000000000002], "u8")
    array = runs(pa.concat_arrays([pa.nulls(3, pa.float64()), pa.array(bits.view("f8"))]))
    found = gather(array, np.array([23, 9, 0, 2, 3]))
    values = np.frombuffer(found.values.buffers()[1], "u8", len(found.values))
    assert values.tolist() == bits[[4, 3, 0, 1, 2]].tolist()


# -- ranges ----------------------------------------------------------------------------------------------


def ranges_of(*pairs: tuple[int, int]) -> tuple[Items, Items, Items]:
    starts, lengths = (np.array(part, np.int64) for part in zip(*pairs, strict=True))
    return starts, lengths, np.concatenate([[0], np.cumsum(lengths)])


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize(
    "pairs",
    [
        [(3, 2), (0, 4), (7, 1)],
        [(2, 3), (2, 3)],
        [(5, 0), (4, 2), (99, 0), (9, 1)],
        [(5, 3), (8, 2), (99, 0), (10, 4)],
        [(0, 0), (99, 0)],
    ],
)
def test_ranges_come_one_behind_the_other(leaf: str, pairs: list[tuple[int, int]]) -> None:
    values = LEAVES[leaf][2:]
    items = values.to_pylist()
    found = gather_ranges(values, *ranges_of(*pairs))
    found.validate(full=True)
    assert found.type == values.type
    assert found.to_pylist() == [item for start, size in pairs for item in items[start : start + size]]


def test_ranges_that_lie_one_behind_the_other_are_not_copied() -> None:
    values = pa.array(NUMBERS)
    address = values.buffers()[1].address
    whole = gather_ranges(values, *ranges_of((4, 3), (0, 0), (7, 5)))
    assert (whole.buffers()[1].address, whole.offset, len(whole)) == (address, 4, 8)
    apart = gather_ranges(values, *ranges_of((4, 3), (8, 5)))
    assert apart.buffers()[1].address != address


@pytest.mark.parametrize("kind", ["list", "large_list", "list_view", "large_list_view", "map"])
@pytest.mark.parametrize("first", [0, 5])
def test_the_ranges_of_lists_lie_in_their_values(kind: str, first: int) -> None:
    array = WRAPPERS[kind](LEAVES["string"])[first:]
    starts, lengths = list_ranges(array)
    assert (starts.dtype, lengths.dtype) == (np.int64, np.int64)
    values = array.values.to_pylist()
    as_pairs = [[tuple(pair.values()) for pair in values]] if kind == "map" else [values]
    for start, size, expected in zip(starts, lengths, array.to_pylist(), strict=True):
        assert as_pairs[0][start : start + size] == (expected or [])
        assert expected is not None or size == 0


def test_a_null_list_has_no_items_whatever_lies_under_it() -> None:
    array = pa.ListArray.from_arrays(pa.array([0, 2, 3], pa.int32()), pa.array([1, 2, 3]))
    mask = pa.py_buffer(b"\2")
    hidden = pa.Array.from_buffers(array.type, 2, [mask, array.buffers()[1]], children=[array.values])
    assert [part.tolist() for part in list_ranges(hidden)] == [[0, 2], [0, 1]]
