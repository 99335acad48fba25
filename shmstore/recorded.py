"""One instrument of a recording, for reading: schema, rows, metadata, Arrow tables equal to what was put.

Owns which rows there are: never one that was not put, and never a null that looks like a value. Knows no
writer and no session: a live recording is followed through its file alone.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

import h5py
import numpy as np
import pyarrow as pa

from shmstore.column import StoredColumn
from shmstore.errors import IncompleteFileError, InvalidValueError
from shmstore.layout import ROWS, Column, Layout
from shmstore.names import RESERVED_INSTRUMENT_ATTRIBUTES
from shmstore.opening import OpenedFile, naming
from shmstore.physical import physical_type, retyped
from shmstore.sameness import same_type

#: Arrow bytes in a batch of `Instrument.iter_batches`, by default: many chunks, little memory.
_BATCH_BYTES = 16 * 2**20
_JSON_KEYS = "_json_keys"

Result = TypeVar("Result")


class Instrument:
    """One instrument of a `Recording`; ends with it.

    Hands itself to polars, pandas, duckdb and others through ``__arrow_c_stream__``.

    Attributes
    ----------
    instrument_id : str
        Its id, as given.
    link : str
        Name of its group in the file.
    """

    def __init__(self, opened: OpenedFile, instrument_id: str, link: str) -> None:
        self.instrument_id = instrument_id
        self.link = link
        self._opened = opened
        self._layout: Layout | None = None
        self._layout_text = ""
        self._checked: set[str] = set()

    def __repr__(self) -> str:
        return f"<Instrument {self.instrument_id!r} of {str(self._opened.path)!r}>"

    # -- description --------------------------------------------------------------------------------------

    @property
    def layout(self) -> Layout | None:
        """How its columns are stored; ``None`` as long as nothing was recorded."""
        if self._layout is None or self._opened.live:  # the schema of a live one may evolve
            return self._opened.look(self._load_layout)
        return self._layout

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, exactly as put, metadata included.

        Raises
        ------
        IncompleteFileError
            There is none as long as nothing was recorded; or it is damaged.
        """
        return self._need_layout().schema

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in order; a doubled one as often as it is there."""
        return list(self.schema.names)

    @property
    def metadata(self) -> dict[str, Any]:
        """The instrument's metadata as it was set, looked up at each access."""

        def look(file: h5py.File) -> dict[str, Any]:
            with naming(self._opened.path, f"metadata of instrument {self.instrument_id!r}"):
                return metadata_of(file[self.link], RESERVED_INSTRUMENT_ATTRIBUTES)

        return self._opened.look(look)

    @property
    def num_rows(self) -> int:
        """Rows that can be read, counted at each access: those that every column has."""
        return self._settled(self._rows) if self.layout else 0

    def datasets(self, column: str | int) -> dict[str, str]:
        """Return the paths of a column's datasets in the file, for use with h5py.

        Parameters
        ----------
        column
            Name, or position in the schema.

        Returns
        -------
        dict of str to str
            By role for the outermost type: ``"values"``, or ``"offsets"`` and ``"chars"``; ``"validity"``
            only if there were nulls.
        """
        (picked,) = self._pick(self._need_layout(), [column])

        def look(file: h5py.File) -> dict[str, str]:
            paths = {stream.role: f"/{self.link}/{stream.path}" for stream in picked.node.streams}
            return {role: path for role, path in paths.items() if path in file}

        return self._opened.look(look)

    # -- rows ---------------------------------------------------------------------------------------------

    def read(
        self, columns: Sequence[str | int] | None = None, start: int | None = 0, stop: int | None = None
    ) -> pa.Table:
        """Read rows into memory.

        Parameters
        ----------
        columns
            Names or positions, in the order wanted; all by default. A doubled name only by position.
        start, stop
            First row, and the row after the last; as in a slice, negative ones count from the end.

        Returns
        -------
        pa.Table
            Equal to what was put; owns its memory.

        Raises
        ------
        IncompleteFileError
            There is no such column, or something is damaged; the message names it.
        InvalidValueError
            A name stands for more than one column.
        """
        positions = self._positions(columns)
        return self._settled(partial(self._table, positions, slice(start, stop)))

    def iter_batches(
        self, batch_rows: int | None = None, columns: Sequence[str | int] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Return an iterator over the rows that are there when it starts, in constant memory.

        Parameters
        ----------
        batch_rows
            Most rows of a batch; by default as many as make about 16 MiB.
        columns
            As for :meth:`read`.

        Returns
        -------
        iterator of pa.RecordBatch
            Each owns its memory.
        """
        if batch_rows is not None and batch_rows < 1:
            raise InvalidValueError(f"batch_rows={batch_rows} makes no batches: give 1 or more")
        return self._batches(self._positions(columns), batch_rows)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Hand out :meth:`iter_batches` as an Arrow C stream."""
        reader = pa.RecordBatchReader.from_batches(self.schema, self.iter_batches())
        return reader.__arrow_c_stream__(requested_schema)

    # -- within -------------------------------------------------------------------------------------------

    def _need_layout(self) -> Layout:
        return self._required(self.layout)

    def _required(self, layout: Layout | None) -> Layout:
        if layout is None:
            raise IncompleteFileError(
                f"{self._opened.path}: instrument {self.instrument_id!r} has no schema: nothing was "
                "recorded yet"
            )
        return layout

    def _load_layout(self, file: h5py.File) -> Layout | None:
        with naming(self._opened.path, f"instrument {self.instrument_id!r}"):
            own = file[self.link].get("_arrow")
            if own is None or "schema" not in own or "layout" not in own:
                return None
            text = own["layout"].asstr()[()]
            if text != self._layout_text:
                schema = pa.ipc.read_schema(pa.py_buffer(own["schema"][()].tobytes()))
                self._layout, self._layout_text = Layout.from_json(text, schema), text
        return self._layout

    def _positions(self, wanted: Sequence[str | int] | None) -> list[int]:
        return [column.index for column in self._pick(self._need_layout(), wanted)]

    def _pick(self, layout: Layout, wanted: Sequence[str | int] | None) -> list[Column]:
        if isinstance(wanted, str):
            raise InvalidValueError(f"columns={wanted!r} is one name: give a list of names")
        return list(layout.columns) if wanted is None else [self._pick_one(layout, item) for item in wanted]

    def _pick_one(self, layout: Layout, wanted: str | int) -> Column:
        if isinstance(wanted, int):
            if -len(layout.columns) <= wanted < len(layout.columns):
                return layout.columns[wanted]
            raise IncompleteFileError(
                f"instrument {self.instrument_id!r} has no column {wanted}: it has {len(layout.columns)}"
            )
        found = [column for column in layout.columns if column.name == wanted]
        if not found:
            remedy = nearest(str(wanted), layout.schema.names, "it has no columns")
            raise IncompleteFileError(f"instrument {self.instrument_id!r} has no column {wanted!r}: {remedy}")
        if len(found) > 1:
            positions = " or ".join(str(column.index) for column in found)
            raise InvalidValueError(
                f"instrument {self.instrument_id!r} has {len(found)} columns {wanted!r}: "
                f"name one by its position, {positions}"
            )
        return found[0]

    def _stored(self, file: h5py.File, layout: Layout, column: Column) -> StoredColumn:
        type_ = pa.null() if column is ROWS else layout.schema.field(column.index).type
        return StoredColumn(file[self.link], column, physical_type(type_))

    def _naming(self, column: Column) -> AbstractContextManager[None]:
        return naming(self._opened.path, f"instrument {self.instrument_id!r}, column {column.name!r}")

    def _settled(self, attempt: Callable[[Layout, h5py.File], Result]) -> Result:
        """Return what ``attempt`` makes of the file; of a live one, with every mask that its rows need.

        Masks are made when the first null comes. One that was made after the file had been opened is not seen
        there, but the rows that it is for may be, and their nulls would look like values.
        """

        def look(file: h5py.File) -> tuple[set[str], Result]:
            layout = self._layout_in(file)
            return self._missing(file) if self._opened.live else set(), attempt(layout, file)

        while True:
            missing, result = self._opened.look(look)
            if not missing or missing == self._opened.look(self._missing):
                return result

    def _missing(self, file: h5py.File) -> set[str]:
        """Return the paths of the masks that were not made yet."""
        columns = self._layout.columns if self._layout else ()
        lazy = {stream.path for column in columns for stream in column.streams if stream.lazy}
        with naming(self._opened.path, f"instrument {self.instrument_id!r}"):
            group = file[self.link]
            return {path for path in lazy if path not in group}

    def layout_in(self, file: h5py.File) -> Layout | None:
        """As `layout`, at the moment of a look at the file."""
        return self._load_layout(file)

    def rows_in(self, file: h5py.File) -> int:
        """As `num_rows`, at the moment of a look at the file."""
        layout = self._load_layout(file)
        return self._rows(layout, file) if layout else 0

    def _layout_in(self, file: h5py.File) -> Layout:
        """Return the layout at the moment of a look: a live one may evolve from one to the next."""
        layout = self._load_layout(file) if self._layout is None or self._opened.live else self._layout
        return self._required(layout)

    def _rows(self, layout: Layout, file: h5py.File) -> int:
        """Return the rows counted at the end of the recording, or else those that all columns have."""
        counted = self._counted_rows(file)
        if counted is not None:
            return counted
        rows = []
        for column in layout.columns or (ROWS,):
            with self._naming(column):
                rows.append(self._stored(file, layout, column).rows())
        return min(rows, default=0)

    def _rows_per_batch(self, positions: list[int], rows: int, layout: Layout, file: h5py.File) -> int:
        picked = [layout.columns[position] for position in positions]
        size = 0
        for column in picked:
            with self._naming(column):
                size += self._stored(file, layout, column).row_bytes(rows)
        return max(1, _BATCH_BYTES // max(size, 1))

    def _counted_rows(self, file: h5py.File) -> int | None:
        with naming(self._opened.path, f"instrument {self.instrument_id!r}"):
            counted = file[self.link].attrs.get("NROWS")
            return None if counted is None else int(counted)

    def _table(self, positions: list[int], wanted: slice, layout: Layout, file: h5py.File) -> pa.Table:
        picked = [layout.columns[position] for position in positions]
        start, stop, _ = wanted.indices(self._rows(layout, file))
        stop = max(start, stop)
        arrays = []
        for column in picked:
            with self._naming(column):
                stored = self._stored(file, layout, column)
                self._check(file, column, stored)
                arrays.append(_logical(stored.read(start, stop), layout.schema.field(column.index)))
        schema = _schema_of(layout, picked)
        if picked:
            return pa.Table.from_arrays(arrays, schema=schema)
        # A table without columns has rows all the same.
        batch = pa.RecordBatch.from_struct_array(pa.array([{}] * (stop - start), pa.struct([])))
        return pa.Table.from_batches([batch], schema=schema)

    def _check(self, file: h5py.File, column: Column, stored: StoredColumn) -> None:
        """Refuse a finished recording's column that changed its length, or has holes; once per column."""
        if self._opened.live or column.path in self._checked:
            return
        counted = self._counted_rows(file)
        if counted is not None and stored.length() != counted:
            raise IncompleteFileError(
                f"has {stored.length()} rows where {counted} were recorded: restore it from a copy"
            )
        stored.check_chunks()
        self._checked.add(column.path)

    def _batches(self, positions: list[int], batch_rows: int | None) -> Iterator[pa.RecordBatch]:
        rows = self.num_rows
        step = batch_rows or self._settled(partial(self._rows_per_batch, positions, rows))
        schema: pa.Schema | None = None
        for start in range(0, rows, step):
            wanted = slice(start, min(start + step, rows))
            table = self._settled(partial(self._table, positions, wanted))
            schema = schema or table.schema
            # Rows of before an evolution fit what their columns were then.
            yield from (table if table.schema.equals(schema) else table.cast(schema)).to_batches()


def _schema_of(layout: Layout, picked: list[Column]) -> pa.Schema:
    """Return the schema of some columns, with all of the metadata: a key may be there twice."""
    schema = layout.schema
    if picked == list(layout.columns):
        return schema
    for column in picked:
        schema = schema.append(layout.schema.field(column.index))
    for _ in layout.columns:
        schema = schema.remove(0)
    return schema


def _logical(values: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    """Return values in their physical form as what their field says they are."""
    if values.type.equals(field.type, check_metadata=True) and same_type(values.type, field.type):
        return values
    physical, logical = pa.schema([field.with_type(values.type)]), pa.schema([field])
    batches = [retyped(pa.record_batch([chunk], schema=physical), logical) for chunk in values.chunks]
    return pa.Table.from_batches(batches, schema=logical).column(0)


def metadata_of(group: h5py.Group, ours: Iterable[str] = ()) -> dict[str, Any]:
    """Return the attributes of a group, without ``ours``, as the Python values that were set."""
    as_json = set(_native(group.attrs[_JSON_KEYS])) if _JSON_KEYS in group.attrs else set()
    names = [name for name in group.attrs if name != _JSON_KEYS and name not in ours]
    return {
        name: json.loads(group.attrs[name]) if name in as_json else _native(group.attrs[name])
        for name in names
    }


def nearest(name: str, known: Iterable[str], none: str) -> str:
    """Return the remedy for an unknown name: the nearest known one, or ``none`` if nothing is known."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"did you mean {near[0]!r}?" if near else none


def _native(value: Any) -> Any:
    """Return h5py's value as plain Python's."""
    if isinstance(value, np.void):
        return value.tobytes()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, h5py.Empty):
        return []
    return value.item() if isinstance(value, np.generic) else value
