"""Where values lie in slots that look alike, held against what Arrow reads in each of them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from shmstore import form as form_module
from shmstore.batch import BatchWriter, PlainLayout, read_ipc
from shmstore.buffers import Items
from shmstore.form import Form, Forms, plain_items
from shmstore.layout import Layout
from shmstore.planning import plan
from shmstore.ring import Kind, Ring, Run

SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("byte", pa.int8()),
        ("time", pa.timestamp("ns")),
        ("image", pa.list_(pa.list_(pa.uint16(), 3), 2)),
    ]
)


def layout_of(schema: pa.Schema) -> Layout:
    return plan(schema, lambda name: "packed")


def batch_of(sequence: int, rows: int = 5) -> pa.RecordBatch:
    numbers = np.arange(rows) + 100 * sequence
    images = (np.arange(6 * rows) + sequence).astype(np.uint16)
    columns = [
        pa.array(numbers),
        pa.array((numbers % 100).astype(np.int8)),
        pa.array(numbers).cast(pa.timestamp("ns")),
        pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(images, 3), 2),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


@pytest.fixture
def ring(shared_folder: Path) -> Iterator[Ring]:
    made = Ring.create(shared_folder / "ring-0", 1 << 20, 0)
    yield made
    made.close()


def put(ring: Ring, batch: pa.RecordBatch) -> None:
    writer = BatchWriter(batch.schema)
    size = writer.size(batch)
    body = ring.reserve(size)
    assert body is not None
    skip = writer.write(batch, body)
    ring.seal(Kind.STREAM if writer.streams else Kind.IPC, size, batch.num_rows, 0, skip)


def ahead(ring: Ring) -> Run:
    run = ring.look_ahead(lambda *_: 1024, 1 << 20)
    assert run is not None
    return run


def learn(forms: Forms, run: Run, schema: pa.Schema, layout: Layout | None = None) -> Form | None:
    layout = layout or layout_of(schema)
    batch = read_ipc(run.first_body, run.skip, schema, run.slot_rows)
    return forms.learn(run, layout, plain_items(layout, batch))


def columns_of(form: Form, run: Run) -> dict[str, Items]:
    return dict(column for block in form.blocks(run) for column in block.columns())


def test_what_one_slot_shows_holds_for_all_that_look_like_it(ring: Ring) -> None:
    for sequence in range(7):
        put(ring, batch_of(sequence))
    run = ahead(ring)
    layout = layout_of(SCHEMA)
    forms = Forms()
    assert forms.find(run, layout) is None
    form = learn(forms, run, SCHEMA, layout)
    assert form is not None
    assert forms.find(run, layout) is form
    assert (form.count(run), form.count(run.first(3))) == (7, 3)
    columns = columns_of(form, run)
    assert sorted(columns) == ["byte", "image", "number", "time"]
    for sequence in range(7):
        expected = plain_items(layout, batch_of(sequence))
        for path, values in columns.items():
            assert values[sequence].tobytes() == expected[path].tobytes(), path
    del columns, values
    ring.borrow_run(run)
    ring.release(run)


def test_columns_of_one_width_are_one_block(ring: Ring) -> None:
    names = ["time", "a", "b", "c", "byte", "d"]
    schema = pa.schema(
        [(name, {"time": pa.int64(), "byte": pa.int8()}.get(name, pa.int32())) for name in names]
    )
    for sequence in range(3):
        columns = [pa.array(np.arange(6) + sequence, field.type) for field in schema]
        put(ring, pa.RecordBatch.from_arrays(columns, schema=schema))
    run = ahead(ring)
    form = learn(Forms(), run, schema)
    assert form is not None
    blocks = form.blocks(run)
    assert [block.paths for block in blocks] == [("time",), ("a", "b", "c"), ("byte",), ("d",)]
    for path, values in columns_of(form, run).items():
        found = np.ascontiguousarray(values).view(schema.field(path).type.to_pandas_dtype())
        assert found.tolist() == [list(range(sequence, sequence + 6)) for sequence in range(3)]


@pytest.mark.parametrize("few", [0, 4])
def test_other_metadata_ends_what_has_a_form(ring: Ring, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    """Whether slots are compared one by one or all at once."""
    monkeypatch.setattr(form_module, "_FEW", few)
    for sequence in range(4):
        put(ring, batch_of(sequence))
    run = ahead(ring)
    form = learn(Forms(), run, SCHEMA)
    assert form is not None
    assert form.count(run) == 4
    damaged = 4096 + 2 * run.stride + 64 + run.skip + 40
    ring.segment.view[damaged] ^= 1
    assert form.count(run) == 2
    ring.segment.view[damaged - 2 * run.stride] ^= 1
    assert form.count(run) == 0


@pytest.mark.parametrize(
    "column",
    [
        pa.array([True, False]),
        pa.array([1, None], pa.int32()),
        pa.array([None, dt.date(2026, 1, 1)]),
        pa.array([[1, 2], [3, None]], pa.list_(pa.int8(), 2)),
        pa.array([[1, 2], None], pa.list_(pa.int8(), 2)),
    ],
    ids=str,
)
def test_values_that_do_not_lie_there_as_they_are_have_no_form(ring: Ring, column: pa.Array) -> None:
    batch = pa.record_batch({"fine": pa.array([1.0, 2.0]), "column": column})
    for _ in range(2):
        put(ring, batch)
    assert learn(Forms(), ahead(ring), batch.schema) is None


def test_rows_of_no_bytes_have_no_form(ring: Ring) -> None:
    batch = batch_of(0, rows=0)
    for _ in range(2):
        put(ring, batch)
    assert ring.look_ahead(lambda schema_id, rows: rows, 1 << 20) is None


def test_a_form_holds_for_its_layout_only(ring: Ring) -> None:
    for sequence in range(2):
        put(ring, batch_of(sequence))
    run, layout, forms = ahead(ring), layout_of(SCHEMA), Forms()
    assert learn(forms, run, SCHEMA, layout) is not None
    assert forms.find(run, layout_of(SCHEMA)) is None
    assert forms.find(run, None) is None


def test_forms_are_kept_by_size_and_no_more_of_them_than_are_of_use(ring: Ring) -> None:
    layout, forms, runs = layout_of(SCHEMA), Forms(), []
    for rows in range(1, 41):
        for sequence in range(2):
            put(ring, batch_of(sequence, rows))
        run = ahead(ring)
        assert learn(forms, run, SCHEMA, layout) is not None
        ring.borrow_run(run)
        runs.append(run)
    known = [forms.find(run, layout) is not None for run in runs]
    assert known[-16:] == [True] * 16
    assert sum(known) == 16


def test_a_large_batch_that_begins_with_its_schema_has_a_form_too(ring: Ring) -> None:
    batch = pa.record_batch({"n": np.arange(20_000)})
    for _ in range(3):
        put(ring, batch)
    run = ahead(ring)
    assert run.skip
    form = learn(Forms(), run, batch.schema)
    if run.skip % 8:
        assert form is None
    else:
        assert form is not None
        assert all(values.tobytes() == np.arange(20_000).tobytes() for values in columns_of(form, run)["n"])


def test_loaned_slots_have_a_form_without_metadata(ring: Ring) -> None:
    schema = pa.schema([("flag", pa.bool_()), ("n", pa.int32())])
    layout = layout_of(schema)
    plain = PlainLayout(layout)
    for sequence in range(4):
        body = ring.reserve(plain.size(6))
        assert body is not None
        for column, values in plain.arrays(body, 6):
            values[:] = sequence % 2 if column.path == "flag" else np.arange(6) + sequence
        ring.seal(Kind.PLAIN, len(body), 6, 0)
    run = ahead(ring)
    items = {column.path: values for column, values in plain.arrays(run.first_body, 6)}
    form = Forms().learn(run, layout, items)
    assert form is not None
    assert form.count(run) == 4
    columns = columns_of(form, run)
    assert columns["flag"].view(np.bool_)[:, 0].tolist() == [False, True, False, True]
    assert columns["n"].view(np.int32)[:, 5].tolist() == [5, 6, 7, 8]
