"""Batches without the texts that they drag along: equal, of the same type, and small, at any depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shmstore.compaction import compact, has_views, types_in

ROWS = 500
NUMBERS = np.arange(ROWS)
NULLS = pa.array(NUMBERS % 5 == 0)
OFFSETS = np.arange(0, ROWS * 10 + 1, 10)
CODES = pa.array(np.where(NUMBERS % 3 == 0, 7, 5), pa.int8())


def texts(count: int) -> pa.Array:
    """Texts that stand in the view, texts that do not, and nulls."""
    given = ("short", "a text that is too long for its view")
    return pa.array([None if n % 7 == 3 else f"{given[n % 2]} {n}" for n in range(count)], pa.string_view())


def union(mode: str) -> pa.Array:
    fields = [pa.field("a", pa.int64(), metadata={"unit": "m"}), pa.field("b", pa.string_view())]
    own = [CODES] + ([pa.array(NUMBERS, pa.int32())] if mode == "dense" else [])
    buffers = [None, *(part.buffers()[1] for part in own)]
    children = [pa.array(NUMBERS), texts(ROWS)]
    return pa.Array.from_buffers(pa.union(fields, mode, [5, 7]), ROWS, buffers, 0, 0, children)


MANY = texts(ROWS * 10)
STARTS = pa.array(OFFSETS[:-1][::-1].copy())
SIZES = pa.array(NUMBERS % 10)
SHORT_OFFSETS = pa.array(OFFSETS[:51], pa.int32())
ARRAYS: dict[str, pa.Array] = {
    "string_view": texts(ROWS),
    "binary_view": texts(ROWS).cast(pa.binary()).cast(pa.binary_view()),
    "list": pa.ListArray.from_arrays(pa.array(OFFSETS, pa.int32()), MANY, mask=NULLS),
    "large_list": pa.LargeListArray.from_arrays(pa.array(OFFSETS), MANY, mask=NULLS),
    "list_view": pa.ListViewArray.from_arrays(
        STARTS.cast(pa.int32()), SIZES.cast(pa.int32()), MANY, mask=NULLS
    ),
    "large_list_view": pa.LargeListViewArray.from_arrays(STARTS, SIZES, MANY, mask=NULLS),
    "fixed_size_list": pa.FixedSizeListArray.from_arrays(MANY, 10, mask=NULLS),
    "struct": pa.StructArray.from_arrays(
        [texts(ROWS), pa.array(NUMBERS)],
        fields=[
            pa.field("a", pa.string_view(), metadata={"k": "v"}),
            pa.field("b", pa.int64(), nullable=False),
        ],
        mask=NULLS,
    ),
    "map": pa.MapArray.from_arrays(
        pa.array(OFFSETS, pa.int32()),
        pa.array([f"the key of the number {n}" for n in range(ROWS * 10)], pa.string_view()),
        MANY,
    ),
    "sparse_union": union("sparse"),
    "dense_union": union("dense"),
    "run_end_encoded": pa.RunEndEncodedArray.from_arrays(pa.array(OFFSETS[1:51], pa.int16()), texts(50)),
    "dictionary": pa.DictionaryArray.from_arrays(pa.array(NUMBERS % 50), MANY.slice(100, 50), ordered=True),
    "extension": pa.ExtensionArray.from_storage(pa.opaque(pa.string_view(), "t", "v"), texts(ROWS)),
}
ARRAYS["list of dense_union"] = pa.ListArray.from_arrays(SHORT_OFFSETS, ARRAYS["dense_union"])
ARRAYS["list of run_end_encoded"] = pa.ListArray.from_arrays(SHORT_OFFSETS, ARRAYS["run_end_encoded"])
ARRAYS["struct of all"] = pa.StructArray.from_arrays(
    [array for array in ARRAYS.values() if len(array) == ROWS],
    [name for name, array in ARRAYS.items() if len(array) == ROWS],
    mask=NULLS,
)
ARRAYS["fixed_size_list of struct"] = pa.FixedSizeListArray.from_arrays(ARRAYS["struct"], 5, mask=NULLS[:100])


def sent_bytes(array: pa.Array) -> int:
    sink = pa.MockOutputStream()
    batch = pa.record_batch({"c": array})
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return int(sink.size())


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(
    "rows", [slice(None), slice(0, 0), slice(0, 30), slice(13, 30), slice(13, 14), slice(45, None)], ids=str
)
def test_what_is_compacted_equals_what_was_given(name: str, rows: slice) -> None:
    array = ARRAYS[name][rows]
    found = compact(array)
    found.validate(full=True)
    assert pa.field("c", found.type).equals(pa.field("c", array.type), check_metadata=True)
    assert found.equals(array)
    assert found.to_pylist() == array.to_pylist()
    assert found.null_count == array.null_count


@pytest.mark.parametrize("name", ARRAYS)
def test_a_slice_of_a_slice_equals_too(name: str) -> None:
    array = ARRAYS[name].slice(11, 30).slice(5, 9)
    assert compact(array).equals(array)


@pytest.mark.parametrize("rows", [slice(None), slice(13, 30)], ids=str)
def test_a_map_keeps_the_offset_of_its_entries(rows: slice) -> None:
    """As a slice of structs has it; Arrow's keys, items and lists of Python objects look past it."""
    entries = ARRAYS["map"].values.slice(333)
    offsets = pa.array(OFFSETS[: ROWS - 49], pa.int32()).buffers()[1]
    array = pa.Array.from_buffers(ARRAYS["map"].type, ROWS - 50, [None, offsets], children=[entries])[rows]
    assert compact(array).equals(array)
    first = array.values.field(0)[OFFSETS[rows][0]]
    assert compact(array)[0].as_py()[0][0] == first.as_py()


@pytest.mark.parametrize("name", [name for name in ARRAYS if name != "dictionary"])
def test_a_few_rows_bring_a_few_bytes(name: str) -> None:
    array = ARRAYS[name]
    part = array.slice(20, max(1, len(array) // 50))
    assert sent_bytes(compact(part)) < sent_bytes(array) / 3 + 1024
    assert sent_bytes(compact(part)) < sent_bytes(part)


def test_views_that_drag_nothing_along_are_not_copied() -> None:
    array = ARRAYS["string_view"]
    assert compact(array) is array
    assert compact(array[1:]).buffers()[2].address == array.buffers()[2].address


@pytest.mark.parametrize(
    "array", [pa.array(["a"]), pa.array([["a"]]), pa.array([{"a": 1}]), pa.array(["a"]).dictionary_encode()]
)
def test_what_holds_no_views_is_given_back_itself(array: pa.Array) -> None:
    assert not has_views(array.type)
    assert compact(array) is array


@pytest.mark.parametrize(
    ("type_", "leaf"),
    [
        (pa.int8(), pa.int8()),
        (pa.list_(pa.struct([("a", pa.int8())])), pa.int8()),
        (pa.map_(pa.int8(), pa.float16()), pa.float16()),
        (pa.run_end_encoded(pa.int16(), pa.date32()), pa.date32()),
        (pa.dictionary(pa.int16(), pa.large_list(pa.date32())), pa.date32()),
        (pa.fixed_shape_tensor(pa.float16(), [2]), pa.float16()),
        (pa.dense_union([pa.field("a", pa.list_view(pa.uuid()))]), pa.binary(16)),
    ],
)
def test_types_are_found_at_any_depth(type_: Any, leaf: pa.DataType) -> None:
    found = list(types_in(type_))
    assert found[0] == type_
    assert leaf in found
