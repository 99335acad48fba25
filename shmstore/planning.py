"""From an Arrow schema to a layout: the rules by which types become nodes and datasets.

Paths follow HEP001 (H5Col, the HDF Group's draft convention for column tables) where it has a word: a
packed string column is a ``STRING_VALUES`` group with ``OFFSETS``, ``CHARS`` and ``MASK``, a list is a
``LIST_COLUMN`` group with ``OFFSETS``, ``VALUES`` and ``MASK``, and labels stand below ``CATEGORIES``.

Only writers plan; what is told here of Arrow's types, readers ask too. It touches no values and no files.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NoReturn

import numpy as np
import pyarrow as pa

from shmstore.decimals import text_bytes
from shmstore.errors import ConfigError, UnsupportedTypeError
from shmstore.layout import Attributes, Column, Layout, Link, Node, Stream
from shmstore.names import RESERVED_COLUMNS, RESERVED_MEMBERS, link_name
from shmstore.settings import fixed_string_bytes

#: Earliest representable moment, which numpy calls NaT: the fill value of temporal columns.
_NAT = {4: -(2**31), 8: -(2**63)}
_MONTHS, _DAY_TIME, _MONTH_DAY_NANO = (
    pa.lib.Type_INTERVAL_MONTHS,
    pa.lib.Type_INTERVAL_DAY_TIME,
    pa.lib.Type_INTERVAL_MONTH_DAY_NANO,
)


def plan(schema: pa.Schema, strings: Callable[[str], str]) -> Layout:
    """Decide how a schema is stored.

    Parameters
    ----------
    schema
        The Arrow schema.
    strings
        Gives for a column's name how its UTF-8 or binary values are stored: ``"vlen"``, ``"packed"`` or
        ``"fixed:N"``. Below lists and unions they are packed whatever it says.

    Raises
    ------
    UnsupportedTypeError
        A column's type is none that this version knows; the message names it.
    """
    columns = []
    taken: set[str] = set()
    categories: set[str] = set()
    for index, item in enumerate(schema):
        path = link_name(item.name, taken, RESERVED_COLUMNS)
        taken.add(path)
        columns.append(
            Column(index, item.name, _Planner(index, item, strings(item.name), categories).plan(path))
        )
    return Layout(schema, tuple(columns))


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


def is_list(type_: pa.DataType) -> bool:
    """Whether values are lists of any length; a map is one."""
    return bool(
        pa.types.is_list(type_)
        or pa.types.is_large_list(type_)
        or pa.types.is_list_view(type_)
        or pa.types.is_large_list_view(type_)
        or pa.types.is_map(type_)
    )


def list_item(type_: pa.DataType) -> pa.Field:
    """Return the field of a list's items; for a map, a struct of key and item."""
    if pa.types.is_map(type_):
        return pa.field("entries", pa.struct([type_.key_field, type_.item_field]), nullable=False)
    return type_.value_field


def storage_type(type_: pa.DataType) -> pa.DataType:
    """Return what an extension type is stored as; any other type itself."""
    while isinstance(type_, pa.BaseExtensionType):
        type_ = type_.storage_type
    return type_


def child_types(type_: pa.DataType) -> list[pa.DataType]:
    """Return the types within a type, in the order of a node's children."""
    type_ = storage_type(type_)
    if is_list(type_):
        return [list_item(type_).type]
    if pa.types.is_struct(type_) or pa.types.is_union(type_):
        return [type_.field(number).type for number in range(type_.num_fields)]
    return [type_.value_type]


def fixed_width(encoding: str) -> int:
    """Return N of ``"fixed:N"``."""
    width = fixed_string_bytes(encoding)
    if not width:
        raise ConfigError(f"strings={encoding!r} is none of 'vlen', 'packed' and 'fixed:N' with N bytes")
    return width


class _Planner:
    """Plans one column.

    Parameters
    ----------
    index, item
        The column.
    strings
        How its strings are stored.
    categories
        Links taken below ``CATEGORIES`` so far; shared by all columns.
    """

    def __init__(self, index: int, item: pa.Field, strings: str, categories: set[str]) -> None:
        self._item = item
        self._strings = strings
        self._categories = categories
        self._beside: Iterator[str] = (f"{index}.{n}" if n else str(index) for n in itertools.count())

    def plan(self, path: str) -> Node:
        return self._node(self._item, path, "", self._strings)

    def _node(self, item: pa.Field, path: str, space: str, strings: str) -> Node:
        node = self._stored(item.type, path, space, strings)
        short = str(storage_type(item.type)).partition("<")[0]
        return dataclasses.replace(node, name=item.name, type=short, path=path, space=space)

    def _stored(self, type_: pa.DataType, path: str, space: str, strings: str) -> Node:
        """Plan a node's kind, streams, children and attributes; what is told of every node comes after."""
        if isinstance(type_, pa.BaseExtensionType) and isinstance(type_.storage_type, pa.BaseExtensionType):
            self._refuse("an extension type stored as another", "use one of them")
        storage = storage_type(type_)
        if is_text(storage) or is_blob(storage):
            return self._string(storage, path, space, strings)
        if _has_no_values(storage):
            return _node("presence", Stream("validity", path, "|b1", space=space))
        plain = self._plain(type_, path, space)
        if plain is not None:
            return plain
        if pa.types.is_decimal(storage):
            return self._decimal(storage, path, space)
        if pa.types.is_struct(storage):
            mask = self._mask(self._own("validity"), space)
            return _node("struct", mask, children=self._members(storage, path, lambda _: space, strings))
        if is_list(storage):
            marks = {"CLASS": "LIST_COLUMN", "KIND": "OFFSETS"}
            streams = (_offsets(path, space), self._mask(f"{path}/MASK", space))
            return _node("list", *streams, children=self._values(list_item(storage), path), attributes=marks)
        if pa.types.is_fixed_size_list(storage):
            size = {"CLASS": "FIXED_LIST", "SIZE": storage.list_size}
            mask = self._mask(f"{path}/MASK", space)
            return _node(
                "fixed_list", mask, children=self._values(storage.value_field, path), attributes=size
            )
        if pa.types.is_dictionary(storage):
            return self._dictionary(storage, path, space)
        if pa.types.is_union(storage):
            return self._union(storage, path, space)
        if pa.types.is_run_end_encoded(storage):
            if pa.types.is_run_end_encoded(storage_type(storage.value_type)):
                self._refuse("run ends whose values are run ends", "decode one of them")
            ends = Stream("run_ends", f"{path}/RUN_ENDS", "<u8", space=f"{path}/VALUES")
            children = self._values(pa.field("values", storage.value_type), path)
            return _node("run_ends", ends, children=children, attributes={"CLASS": "RUN_ENDS"})
        raise UnsupportedTypeError(
            f"column {self._item.name!r} has type {self._item.type}, in which {type_} cannot be recorded: "
            "update shmstore, or cast it"
        )

    def _refuse(self, what: str, remedy: str) -> NoReturn:
        raise UnsupportedTypeError(
            f"column {self._item.name!r} holds {what}, which Arrow itself cannot hand on: {remedy}"
        )

    # -- leaves ----------------------------------------------------------------------------------------------

    def _plain(self, type_: pa.DataType, path: str, space: str) -> Node | None:
        """Plan what is fixed-size values, or fixed-size lists of them: one N-dimensional dataset."""
        leaf, levels, shape = _unnest(type_)
        spelled = plain_dtype(leaf)
        if spelled is None or 0 in shape:
            return None
        dtype, fill, attributes = spelled
        masks = self._own("validity")
        values = Stream("values", path, dtype, tuple(shape), fill, attributes=attributes, space=space)
        validity = [self._mask(masks, space)]
        # One mask per level of nesting: a null list and a list of nulls are two things.
        validity += [
            dataclasses.replace(
                validity[0], role=f"validity-{n}", path=f"{masks}_{n}", item_shape=tuple(levels[:n])
            )
            for n in range(1, len(levels) + 1)
        ]
        return _node("bool" if pa.types.is_boolean(leaf) else "plain", values, *validity)

    def _string(self, type_: pa.DataType, path: str, space: str, strings: str) -> Node:
        text = is_text(type_)
        if strings == "packed":
            chars = Stream("chars", f"{path}/CHARS", "|u1", space=f"{path}/CHARS")
            streams = (_offsets(path, space), chars, self._mask(f"{path}/MASK", space))
            return _node("packed", *streams, attributes={"CLASS": "STRING_VALUES"})
        if strings == "vlen":
            dtype = "utf8" if text else "bytes"
        else:
            dtype = f"utf8:{fixed_width(strings)}" if text else f"|V{fixed_width(strings)}"
        values = Stream("values", path, dtype, space=space)
        return _node(strings, values, self._mask(self._own("validity"), space))

    def _decimal(self, type_: pa.DataType, path: str, space: str) -> Node:
        attributes = {"precision": type_.precision, "scale": type_.scale}
        dtype = f"ascii:{text_bytes(type_)}"
        values = Stream("values", path, dtype, attributes=attributes, space=space)
        return _node("decimal", values, self._mask(self._own("validity"), space))

    # -- what holds others -----------------------------------------------------------------------------------

    def _dictionary(self, type_: pa.DataType, path: str, space: str) -> Node:
        values = type_.value_type
        if isinstance(values, pa.BaseExtensionType) or pa.types.is_dictionary(values):
            self._refuse(f"a dictionary whose labels are {values}", "decode the dictionary, or its labels")
        link = link_name(path.replace("/", "."), self._categories)
        self._categories.add(link)
        labels = f"CATEGORIES/{link}"
        child = self._node(pa.field("dictionary", type_.value_type), labels, labels, self._strings)
        wide = type_.index_type.bit_width == 64 or type_.index_type == pa.uint32()
        reference: Attributes = {"CATEGORIES": Link(labels)}
        segments = self._own("dictionaries")
        return _node(
            "dictionary",
            Stream("values", path, "<i8" if wide else "<i4", fill=-1, attributes=reference, space=space),
            Stream("segments", segments, "<u8", (4,), space=segments),
            self._mask(self._own("validity"), space),
            children=(_with_attribute(child, "ordered", bool(type_.ordered)),),
        )

    def _union(self, type_: pa.DataType, path: str, space: str) -> Node:
        streams = [Stream("types", f"{path}/TYPES", "|i1", space=space)]
        if type_.mode == "sparse":
            children = self._members(type_, path, lambda _: space, "packed")
        else:
            streams.append(Stream("offsets", f"{path}/OFFSETS", "<u8", space=space))
            children = self._members(type_, path, lambda child: child, "packed")
        node = _node(f"{type_.mode}_union", *streams, children=children, attributes={"CLASS": "UNION"})
        return dataclasses.replace(node, codes=tuple(type_.type_codes))

    def _values(self, item: pa.Field, path: str) -> tuple[Node, ...]:
        """Plan the one child of a list, which has a count of its own."""
        values = f"{path}/VALUES"
        return (self._node(item, values, values, "packed"),)

    def _members(
        self, type_: pa.DataType, path: str, space: Callable[[str], str], strings: str
    ) -> tuple[Node, ...]:
        """Plan the children of a struct or union, each at its own name."""
        taken: set[str] = set()
        children = []
        for number in range(type_.num_fields):
            item = type_.field(number)
            link = link_name(item.name, taken, RESERVED_MEMBERS)
            taken.add(link)
            below = f"{path}/{link}"
            children.append(self._node(item, below, space(below), strings))
        return tuple(children)

    def _mask(self, path: str, space: str) -> Stream:
        return Stream("validity", path, "|b1", (), 1, lazy=True, space=space)

    def _own(self, what: str) -> str:
        return f"_arrow/{what}/{next(self._beside)}"


def _node(
    kind: str, *streams: Stream, children: tuple[Node, ...] = (), attributes: Attributes | None = None
) -> Node:
    return Node(kind, "", "", "", streams, children, attributes or {})


def _offsets(path: str, space: str) -> Stream:
    return Stream("offsets", f"{path}/OFFSETS", "<u8", lead=1, space=space)


def _with_attribute(node: Node, name: str, value: bool) -> Node:
    """Return the node with one more attribute on its dataset or group."""
    if node.is_group:
        return dataclasses.replace(node, attributes={**node.attributes, name: value})
    first = dataclasses.replace(node.streams[0], attributes={**node.streams[0].attributes, name: value})
    return dataclasses.replace(node, streams=(first, *node.streams[1:]))


def _has_no_values(type_: pa.DataType) -> bool:
    """Whether all that there is to an item is that it is, or is not, null."""
    return bool(
        pa.types.is_null(type_)
        or (pa.types.is_struct(type_) and not type_.num_fields)
        or (pa.types.is_fixed_size_binary(type_) and not type_.byte_width)
        or (pa.types.is_fixed_size_list(type_) and not type_.list_size)
    )


def _unnest(type_: pa.DataType) -> tuple[pa.DataType, list[int], list[int]]:
    """Return the innermost type of nested fixed-size lists, the lengths of the levels, and the item's shape.

    They differ for tensors: a tensor of shape (2, 3) is one level of 6.
    """
    levels: list[int] = []
    shape: list[int] = []
    while True:
        tensor = type_.shape if isinstance(type_, pa.FixedShapeTensorType) else None
        type_ = storage_type(type_)
        if not pa.types.is_fixed_size_list(type_):
            return type_, levels, shape
        levels.append(type_.list_size)
        shape += tensor if tensor and math.prod(tensor) == type_.list_size else [type_.list_size]
        type_ = type_.value_type


def plain_dtype(type_: pa.DataType) -> tuple[str, int | float | None, Attributes] | None:
    """Return dtype, fill value and attributes of a type with values of a fixed size; ``None`` for others."""
    if pa.types.is_boolean(type_):
        return "|b1", None, {}
    if pa.types.is_integer(type_):
        return _little(type_), None, {}
    if pa.types.is_floating(type_):
        return _little(type_), math.nan, {}
    if type_.id == _MONTHS:
        return "<i4", None, {"units": "months"}
    if type_.id == _DAY_TIME:
        return "{days:<i4,milliseconds:<i4}", None, {}
    if type_.id == _MONTH_DAY_NANO:
        return "{months:<i4,days:<i4,nanoseconds:<i8}", None, {}
    if pa.types.is_temporal(type_):
        size = type_.bit_width // 8
        return f"<i{size}", _NAT[size], _temporal_attributes(type_)
    # A decimal is a fixed-size binary to Arrow's own mind.
    if pa.types.is_fixed_size_binary(type_) and not pa.types.is_decimal(type_):
        return (f"|V{type_.byte_width}", None, {}) if type_.byte_width else None
    return None


def _little(type_: pa.DataType) -> str:
    return str(np.dtype(type_.to_pandas_dtype()).newbyteorder("<").str)


_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


def _temporal_attributes(type_: pa.DataType) -> Attributes:
    """Return the CF attributes by which xarray and netCDF tools decode a temporal column."""
    if pa.types.is_date32(type_):
        return {"units": "days since 1970-01-01", "calendar": "proleptic_gregorian"}
    if pa.types.is_date64(type_):
        return {"units": "milliseconds since 1970-01-01", "calendar": "proleptic_gregorian"}
    if pa.types.is_timestamp(type_):
        attributes: dict[str, str | int | bool | Link] = {
            "units": f"{_UNITS[type_.unit]} since 1970-01-01",
            "calendar": "proleptic_gregorian",
        }
        if type_.tz:
            attributes["timezone"] = type_.tz
        return attributes
    return {"units": _UNITS[type_.unit]}
