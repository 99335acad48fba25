"""Recordings written by plain h5py, as the format says; nothing here is the package's own writer.

As a program it is a live writer: ``python plain_file.py FILE`` runs the Python statements that come on
standard input, one JSON string a line, and answers each with a line.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa

from shmstore.dictionaries import Dictionaries
from shmstore.encoding import Intake, dictionary_nodes, encode
from shmstore.layout import Layout, Stream
from shmstore.names import instrument_link
from shmstore.physical import empty_batch, physical_schema, retyped
from shmstore.planning import plan
from shmstore.schema import to_json

LIBVER = ("v110", "v110")
CREATED = "2026-01-02T03:04:05.600000+01:00"


def stored_dtype(stream: Stream) -> Any:
    if stream.dtype == "utf8":
        return h5py.string_dtype()
    if stream.dtype == "bytes":
        return h5py.vlen_dtype(np.uint8)
    if stream.dtype.startswith("utf8:"):
        return h5py.string_dtype("utf-8", int(stream.dtype[5:]))
    if stream.dtype.startswith("ascii:"):
        return h5py.string_dtype("ascii", int(stream.dtype[6:]))
    return stream.numpy_dtype


def start_file(path: Path, state: str = "complete") -> h5py.File:
    file = h5py.File(path, "w", libver=LIBVER, track_order=True)
    file.attrs["created_at"] = CREATED
    file.attrs["created_timestamp_ns"] = np.uint64(1_767_319_445_600_000_000)
    file.attrs["application"] = "shmstore 0.1.0"
    file.attrs["state"] = state
    file.create_group("metadata")
    own = file.create_group("_shmstore")
    own.attrs["format_version"] = "1.0"
    own.attrs["config"] = "{}"
    return file


def add_instrument(file: h5py.File, instrument_id: str, layout: Layout) -> h5py.Group:
    group = file.create_group(instrument_link(instrument_id))
    group.attrs["instrument_id"] = instrument_id
    group.attrs["created_at"] = CREATED
    group.create_dataset("schema", data=to_json(layout.schema), dtype=h5py.string_dtype())
    group["_arrow/schema"] = np.frombuffer(layout.schema.serialize().to_pybytes(), np.uint8)
    group.create_dataset("_arrow/layout", data=layout.to_json(), dtype=h5py.string_dtype())
    return group


def add_dataset(group: h5py.Group, stream: Stream, items: Any, **filters: Any) -> h5py.Dataset:
    shape = (len(items), *stream.item_shape)
    chunks = (7, *stream.item_shape)
    dataset = group.create_dataset(
        stream.path,
        shape,
        stored_dtype(stream),
        maxshape=(None, *stream.item_shape),
        chunks=chunks,
        fillvalue=None if stream.variable else stream.fill,
        **filters,
    )
    if stream.dtype == "bytes":
        for row, value in enumerate(items):
            dataset[row] = value
    elif len(items):
        dataset[:] = np.asarray(items).astype(dataset.dtype)
    return dataset


def add_table(
    file: h5py.File, instrument_id: str, table: pa.Table, strings: str, **filters: Any
) -> h5py.Group:
    layout = plan(table.schema, lambda _: strings)
    group = add_instrument(file, instrument_id, layout)
    batches = table.combine_chunks().to_batches() or [empty_batch(table.schema)]
    batch = retyped(batches[0], physical_schema(table.schema))
    nodes = [node for column in layout.columns for node in dictionary_nodes(column)]
    intake = Intake(batch.num_rows, {}, {node.path: Dictionaries() for node in nodes})
    for column in layout.columns:
        encode(column.node, batch.column(column.index), intake)
        for stream in column.streams:
            items = intake.items.get(stream.path)
            if items is None and stream.lazy:
                continue
            if items is None:  # of labels that no batch brought
                items = np.empty((0, *stream.item_shape), stream.numpy_dtype)
            if stream.lead:
                items = np.concatenate([np.zeros(stream.lead, items.dtype), items])
            add_dataset(group, stream, items, **({} if stream.variable else filters))
    group.attrs["NROWS"] = np.uint64(table.num_rows)
    return group


def finish_file(file: h5py.File) -> None:
    accounting = {"producers": [], "ok": True, "problems": []}
    file["_shmstore"].attrs["accounting"] = json.dumps(accounting)
    file.close()


# -- live ------------------------------------------------------------------------------------------------


def layout_of(**types: pa.DataType) -> Layout:
    return plan(pa.schema(list(types.items())), lambda _: "packed")


def begin(file: h5py.File, instrument_id: str, **types: pa.DataType) -> None:
    """Make an instrument's datasets, without rows and without masks."""
    layout = layout_of(**types)
    group = add_instrument(file, instrument_id, layout)
    for column in layout.columns:
        for stream in column.streams:
            if not stream.lazy:
                add_dataset(group, stream, np.zeros(stream.lead, stream.numpy_dtype))


def extend(dataset: h5py.Dataset, items: Any) -> None:
    """Append items."""
    rows = len(dataset)
    dataset.resize(rows + len(items), 0)
    dataset[rows:] = items


def reopen(file: h5py.File) -> h5py.File:
    """Leave SWMR, so that objects can be made."""
    path = file.filename
    file.close()
    return h5py.File(path, "r+", libver=LIBVER)


def start_swmr(file: h5py.File) -> None:
    """Let readers in; from here on nothing changes on disk but at flushes."""
    file.swmr_mode = True
    cache = file.id.get_mdc_config()
    cache.evictions_enabled = False
    cache.incr_mode = cache.decr_mode = cache.flash_incr_mode = 0
    file.id.set_mdc_config(cache)


if __name__ == "__main__":
    names = globals() | {"path": Path(sys.argv[1])}
    for line in sys.stdin:
        try:
            exec(json.loads(line), names)  # noqa: S102  that is what it is for
            print("ok", flush=True)
        except Exception:  # noqa: BLE001  the test says what went wrong
            print(json.dumps(traceback.format_exc()), flush=True)
