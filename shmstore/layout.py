"""The layout of an instrument in the file: which datasets a column becomes, of which type and shape.

A column becomes one or more *streams*; a stream is one HDF5 dataset, unlimited along its first dimension. The
plain values stand at the column's own path; what makes the round trip exact stands beside. The layout is
written into the file as JSON (``_arrow/layout``), and readers follow that, not the rules here.

This module describes. It imports no HDF5 and touches no values; `shmstore.encoding` turns arrays into streams
and back.

Paths follow HEP001 (H5Col, the HDF Group's draft convention for column tables) where it has a word: a packed
string column is a ``STRING_VALUES`` group with ``OFFSETS`` (rows + 1, from 0), ``CHARS`` and ``MASK``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from shmstore.errors import ConfigError, IncompleteFileError, UnsupportedTypeError
from shmstore.names import RESERVED_COLUMNS, link_name
from shmstore.settings import fixed_string_bytes

LAYOUT_VERSION = 1
#: Earliest representable moment, which numpy calls NaT: the fill value of temporal columns.
_NAT = {4: -(2**31), 8: -(2**63)}


@dataclass(frozen=True, slots=True)
class Stream:
    """One dataset.

    Attributes
    ----------
    role : str
        What it is to its column: ``"values"``, ``"validity"`` (of rows), ``"validity-1"`` (of the items of a
        fixed-size list, and so on inwards), ``"offsets"`` or ``"chars"``.
    path : str
        Path below the instrument's group.
    dtype : str
        numpy's spelling of the stored type; or ``"utf8"`` / ``"bytes"`` for HDF5's variable-length types, or
        ``"utf8:N"`` for UTF-8 in N bytes.
    item_shape : tuple of int
        Shape of one item; the dataset has shape ``(items, *item_shape)``.
    fill : int or float or None
        Fill value; ``None`` is zero.
    lazy : bool
        Made only when first needed; until then, and before its first chunk, every item is the fill value.
    lead : int
        Items before the first row's (1 for offsets, which start at 0).
    attributes : mapping
        Attributes of the dataset.
    """

    role: str
    path: str
    dtype: str
    item_shape: tuple[int, ...] = ()
    fill: int | float | None = None
    lazy: bool = False
    lead: int = 0
    attributes: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def variable(self) -> bool:
        """Whether HDF5 itself places the items (native variable-length types)."""
        return self.dtype in ("utf8", "bytes")

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Type of the items as numpy holds them."""
        if self.variable:
            return np.dtype(object)
        return np.dtype(f"S{self.dtype[5:]}") if self.dtype.startswith("utf8:") else np.dtype(self.dtype)

    @property
    def item_bytes(self) -> int:
        """Bytes of one item; 16 for variable-length types (their reference)."""
        return 16 if self.variable else self.numpy_dtype.itemsize * math.prod(self.item_shape)


@dataclass(frozen=True, slots=True)
class Column:
    """One column and its streams.

    Attributes
    ----------
    index : int
        Position in the schema.
    name : str
        Name in the schema, as it is.
    path : str
        Path of the plain values below the instrument's group: a dataset, or a group for packed columns.
    encoding : str
        ``"plain"``, ``"bool"``, ``"vlen"``, ``"packed"`` or ``"fixed:N"``.
    streams : tuple of Stream
        Its datasets; the first is the one that a plain reader wants.
    attributes : mapping
        Attributes of the group, for packed columns.
    """

    index: int
    name: str
    path: str
    encoding: str
    streams: tuple[Stream, ...]
    attributes: Mapping[str, str | int] = field(default_factory=dict)

    def stream(self, role: str) -> Stream:
        """Return the stream with that role."""
        for stream in self.streams:
            if stream.role == role:
                return stream
        raise IncompleteFileError(f"column {self.name!r} has no {role}: the file's layout is damaged")

    @property
    def is_group(self) -> bool:
        """Whether the column's path is a group."""
        return self.encoding == "packed"


@dataclass(frozen=True, slots=True)
class Layout:
    """All columns of one instrument, and the exact schema they came from."""

    schema: pa.Schema
    columns: tuple[Column, ...]

    def to_json(self) -> str:
        """Return the document that is kept in the file as ``_arrow/layout``."""
        columns = [
            {
                "name": column.name,
                "path": column.path,
                "encoding": column.encoding,
                "streams": [
                    {
                        "role": stream.role,
                        "path": stream.path,
                        "dtype": stream.dtype,
                        "item_shape": list(stream.item_shape),
                        "lazy": stream.lazy,
                        "lead": stream.lead,
                    }
                    for stream in column.streams
                ],
            }
            for column in self.columns
        ]
        return json.dumps({"version": LAYOUT_VERSION, "columns": columns}, ensure_ascii=False)

    @classmethod
    def from_json(cls, document: str, schema: pa.Schema) -> Layout:
        """Rebuild from the file's own document.

        Raises
        ------
        IncompleteFileError
            It is no layout, of a newer version, or does not go with the schema.
        """
        try:
            content = json.loads(document)
            version = int(content["version"])
            columns = tuple(_column_from_dict(index, entry) for index, entry in enumerate(content["columns"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IncompleteFileError(f"the layout in _arrow/layout is damaged: {error!r}") from None
        if version > LAYOUT_VERSION:
            raise IncompleteFileError(
                f"the layout has version {version}, newer than {LAYOUT_VERSION}: update shmstore"
            )
        if [column.name for column in columns] != schema.names:
            raise IncompleteFileError(
                "the layout in _arrow/layout and the schema beside it name different columns"
            )
        return cls(schema, columns)


def plan(schema: pa.Schema, strings: Callable[[str], str]) -> Layout:
    """Decide how a schema is stored.

    Parameters
    ----------
    schema
        The Arrow schema.
    strings
        Gives for a column's name how its UTF-8 or binary values are stored: ``"vlen"``, ``"packed"`` or
        ``"fixed:N"``.

    Raises
    ------
    UnsupportedTypeError
        A column's type cannot be recorded; the message names it.
    """
    columns = []
    taken: set[str] = set()
    for index, item in enumerate(schema):
        path = link_name(item.name, taken, RESERVED_COLUMNS)
        taken.add(path)
        columns.append(_plan_column(index, item, path, strings(item.name)))
    return Layout(schema, tuple(columns))


def unsupported(name: str, type_: pa.DataType) -> UnsupportedTypeError:
    """Return the error for a column whose type cannot be recorded."""
    return UnsupportedTypeError(
        f"column {name!r} has type {type_}, which cannot be recorded yet: cast it to numbers, bool, "
        "UTF-8, binary, a date or "
        "time, or a fixed-size list of these"
    )


def is_text(type_: pa.DataType) -> bool:
    """Whether values are variable-length UTF-8."""
    return bool(
        pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)
    )


def is_blob(type_: pa.DataType) -> bool:
    """Whether values are variable-length bytes."""
    return bool(
        pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_)
    )


def fixed_width(encoding: str) -> int:
    """Return N of ``"fixed:N"``."""
    width = fixed_string_bytes(encoding)
    if not width:
        raise ConfigError(f"strings={encoding!r} is none of 'vlen', 'packed' and 'fixed:N' with N bytes")
    return width


def _plan_column(index: int, item: pa.Field, path: str, strings: str) -> Column:
    masks = f"_arrow/validity/{index}"
    type_ = item.type
    if is_text(type_) or is_blob(type_):
        return _plan_string(index, item, path, strings, masks)
    leaf, levels = _unnest(type_)
    attributes: dict[str, str | int] = {}
    fill: int | float | None = None
    encoding = "plain"
    if pa.types.is_boolean(leaf):
        dtype, encoding = "|b1", "bool"
    elif pa.types.is_integer(leaf):
        dtype = np.dtype(leaf.to_pandas_dtype()).newbyteorder("<").str
    elif pa.types.is_floating(leaf):
        dtype = np.dtype(leaf.to_pandas_dtype()).newbyteorder("<").str
        fill = math.nan
    elif pa.types.is_temporal(leaf) and not pa.types.is_interval(leaf):
        size = leaf.bit_width // 8
        dtype, fill = f"<i{size}", _NAT[size]
        attributes = _temporal_attributes(leaf)
    elif pa.types.is_fixed_size_binary(leaf):
        dtype = f"|V{leaf.byte_width}"
    else:
        raise unsupported(item.name, type_)
    shape = _tensor_shape(type_) or tuple(levels)
    if 0 in shape or dtype == "|V0":
        raise unsupported(item.name, type_)
    validity = [Stream("validity", masks, "|b1", (), 1, lazy=True)]
    # One mask per level of nesting: a null list and a list of nulls are two things.
    validity += [
        Stream(
            f"validity-{level + 1}", f"{masks}_{level + 1}", "|b1", tuple(levels[: level + 1]), 1, lazy=True
        )
        for level in range(len(levels))
    ]
    return Column(
        index,
        item.name,
        path,
        encoding,
        (Stream("values", path, dtype, shape, fill, attributes=attributes), *validity),
    )


def _plan_string(index: int, item: pa.Field, path: str, strings: str, masks: str) -> Column:
    text = is_text(item.type)
    validity = Stream("validity", masks, "|b1", (), 1, lazy=True)
    if strings == "vlen":
        values = Stream("values", path, "utf8" if text else "bytes")
        return Column(index, item.name, path, "vlen", (values, validity))
    if strings == "packed":
        offsets = Stream("offsets", f"{path}/OFFSETS", "<u8", lead=1)
        chars = Stream("chars", f"{path}/CHARS", "|u1")
        mask = Stream("validity", f"{path}/MASK", "|b1", (), 1, lazy=True)
        return Column(index, item.name, path, "packed", (offsets, chars, mask), {"CLASS": "STRING_VALUES"})
    width = fixed_width(strings)
    values = Stream("values", path, f"utf8:{width}" if text else f"|V{width}")
    return Column(index, item.name, path, strings, (values, validity))


def _unnest(type_: pa.DataType) -> tuple[pa.DataType, list[int]]:
    """Return the innermost type of nested fixed-size lists, and the length at each level."""
    levels = []
    if isinstance(type_, pa.FixedShapeTensorType):
        type_ = type_.storage_type
    while pa.types.is_fixed_size_list(type_):
        levels.append(type_.list_size)
        type_ = type_.value_type
    return type_, levels


def _tensor_shape(type_: pa.DataType) -> tuple[int, ...]:
    return tuple(type_.shape) if isinstance(type_, pa.FixedShapeTensorType) else ()


_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


def _temporal_attributes(type_: pa.DataType) -> dict[str, str | int]:
    """Return the CF attributes by which xarray and netCDF tools decode a temporal column."""
    if pa.types.is_date32(type_):
        return {"units": "days since 1970-01-01", "calendar": "proleptic_gregorian"}
    if pa.types.is_date64(type_):
        return {"units": "milliseconds since 1970-01-01", "calendar": "proleptic_gregorian"}
    if pa.types.is_timestamp(type_):
        attributes: dict[str, str | int] = {
            "units": f"{_UNITS[type_.unit]} since 1970-01-01",
            "calendar": "proleptic_gregorian",
        }
        if type_.tz:
            attributes["timezone"] = type_.tz
        return attributes
    return {"units": _UNITS[type_.unit]}


def _column_from_dict(index: int, entry: Mapping[str, Any]) -> Column:
    streams = tuple(
        Stream(
            role=str(item["role"]),
            path=str(item["path"]),
            dtype=str(item["dtype"]),
            item_shape=tuple(int(size) for size in item["item_shape"]),
            fill=1 if str(item["role"]).startswith("validity") else None,
            lazy=bool(item["lazy"]),
            lead=int(item["lead"]),
        )
        for item in entry["streams"]
    )
    if not streams:
        raise ValueError(f"column {index} has no streams")
    return Column(index, str(entry["name"]), str(entry["path"]), str(entry["encoding"]), streams)
