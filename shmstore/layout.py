"""The layout of an instrument in the file: which datasets a column becomes, of which type and shape.

A column is a tree of *nodes*, one for each type in it; a node has *streams*, and a stream is one HDF5
dataset, unlimited along its first dimension. The plain values stand at the node's own path; what makes
the round trip exact stands beside. The layout is written into the file as JSON (``_arrow/layout``), and
readers follow that, not the rules by which it was made (`shmstore.planning`).

This module describes. It imports no HDF5 and touches no values; `shmstore.encoding` turns arrays into
streams, `shmstore.decoding` turns them back. What each kind of node means is told in
``docs/file-layout.md``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from shmstore.errors import IncompleteFileError

LAYOUT_VERSION = 1
#: Every kind of node that this version can read; ``fixed:N`` besides.
KINDS = frozenset(
    {
        *("plain", "bool", "presence", "vlen", "packed", "decimal", "struct", "list", "fixed_list"),
        *("dictionary", "sparse_union", "dense_union", "run_ends"),
    }
)


@dataclass(frozen=True, slots=True)
class Link:
    """The value of an attribute that refers to another object of the same instrument, by its path."""

    path: str


Attributes: TypeAlias = Mapping[str, str | int | bool | Link]


@dataclass(frozen=True, slots=True)
class Stream:
    """One dataset.

    Attributes
    ----------
    role : str
        What it is to its node: ``"values"``, ``"validity"`` (of the node's items), ``"validity-1"`` (of the
        items of a fixed-size list, and so on inwards), ``"offsets"``, ``"chars"``, ``"types"``,
        ``"run_ends"`` or ``"segments"``.
    path : str
        Path below the instrument's group.
    dtype : str
        numpy's spelling of the stored type; or ``"utf8"`` / ``"bytes"`` for HDF5's variable-length types,
        ``"utf8:N"`` and ``"ascii:N"`` for text in N bytes, or ``"{a:<i4,b:<i8}"`` for a compound.
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
    space : str
        What its items are counted with: ``""`` for the rows; for what has a count of its own (the items of
        all lists, the bytes of all strings) the path of the node or dataset that begins it. Matters to the
        writer only, and is not in the file.
    """

    role: str
    path: str
    dtype: str
    item_shape: tuple[int, ...] = ()
    fill: int | float | None = None
    lazy: bool = False
    lead: int = 0
    attributes: Attributes = field(default_factory=dict)
    space: str = ""

    @property
    def variable(self) -> bool:
        """Whether HDF5 itself places the items (native variable-length types)."""
        return self.dtype in ("utf8", "bytes")

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Type of the items as numpy holds them."""
        return _numpy_dtype(self.dtype)

    @property
    def item_bytes(self) -> int:
        """Bytes of one item; 16 for variable-length types (their reference)."""
        return 16 if self.variable else self.numpy_dtype.itemsize * math.prod(self.item_shape)


@functools.cache
def _numpy_dtype(dtype: str) -> np.dtype[Any]:
    if dtype in ("utf8", "bytes"):
        return np.dtype(object)
    if dtype.startswith(("utf8:", "ascii:")):
        return np.dtype(f"S{dtype.partition(':')[2]}")
    if dtype.startswith("{"):
        return np.dtype(
            [(name, kind) for name, _, kind in (part.partition(":") for part in dtype[1:-1].split(","))]
        )
    return np.dtype(dtype)


@dataclass(frozen=True, slots=True)
class Node:
    """One type within a column, with the datasets that hold its items.

    Attributes
    ----------
    kind : str
        How it is stored, one of `KINDS` or ``"fixed:N"``.
    name : str
        Name of the Arrow field.
    type : str
        Its Arrow type in short, without what is within: ``"list"``, ``"timestamp[ns]"``; an extension type
        as what it is stored as. For readers that know no Arrow.
    path : str
        Path of its dataset or group below the instrument's group.
    streams : tuple of Stream
        Its own datasets.
    children : tuple of Node
        The nodes of the types within, in Arrow's order.
    attributes : mapping
        Attributes of its group, if it is one.
    space : str
        What its items are counted with, as for a stream.
    codes : tuple of int
        For a union, the type code of each child.
    """

    kind: str
    name: str
    type: str
    path: str
    streams: tuple[Stream, ...] = ()
    children: tuple[Node, ...] = ()
    attributes: Attributes = field(default_factory=dict)
    space: str = ""
    codes: tuple[int, ...] = ()

    def stream(self, role: str) -> Stream:
        """Return the stream with that role."""
        for stream in self.streams:
            if stream.role == role:
                return stream
        raise IncompleteFileError(f"{self.path!r} has no {role}: the file's layout is damaged")

    @property
    def is_group(self) -> bool:
        """Whether its path is a group."""
        return all(stream.path != self.path for stream in self.streams)

    def walk(self) -> Iterator[Node]:
        """Give the node and all within it, outermost first."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its place in the schema, and its tree of nodes.

    Attributes
    ----------
    index : int
        Position in the schema.
    name : str
        Name in the schema, as it is.
    node : Node
        The outermost node.
    streams : tuple of Stream
        All datasets of all nodes, outermost first.
    """

    index: int
    name: str
    node: Node
    streams: tuple[Stream, ...] = field(init=False)

    def __post_init__(self) -> None:
        streams = tuple(stream for node in self.node.walk() for stream in node.streams)
        object.__setattr__(self, "streams", streams)

    @property
    def path(self) -> str:
        """Path of the plain values below the instrument's group: a dataset or a group."""
        return self.node.path

    @property
    def encoding(self) -> str:
        """Kind of the outermost node."""
        return self.node.kind


#: Stands in for the columns of an instrument that has none: so its rows can be counted while it is live.
ROWS = Column(0, "", Node("presence", "", "null", "_arrow/rows", (Stream("validity", "_arrow/rows", "|b1"),)))


@dataclass(frozen=True, slots=True)
class Layout:
    """All columns of one instrument, and the exact schema they came from."""

    schema: pa.Schema
    columns: tuple[Column, ...]

    def to_json(self) -> str:
        """Return the document that is kept in the file as ``_arrow/layout``."""
        columns = [{"name": column.name, "node": _node_to_dict(column.node)} for column in self.columns]
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
            if version > LAYOUT_VERSION:
                raise IncompleteFileError(
                    f"the layout has version {version}, newer than {LAYOUT_VERSION}: update shmstore"
                )
            columns = tuple(
                Column(index, str(entry["name"]), _node_from_dict(str(entry["name"]), entry["node"]))
                for index, entry in enumerate(content["columns"])
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise IncompleteFileError(f"the layout in _arrow/layout is damaged: {error!r}") from None
        if [column.name for column in columns] != schema.names:
            raise IncompleteFileError(
                "the layout in _arrow/layout and the schema beside it name different columns"
            )
        return cls(schema, columns)


def _node_to_dict(node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "type": node.type,
        "kind": node.kind,
        **({"codes": list(node.codes)} if node.codes else {}),
        "path": node.path,
        "streams": [
            {
                "role": stream.role,
                "path": stream.path,
                "dtype": stream.dtype,
                "item_shape": list(stream.item_shape),
                "lazy": stream.lazy,
                "lead": stream.lead,
            }
            for stream in node.streams
        ],
        "children": [_node_to_dict(child) for child in node.children],
    }


def stream_to_dict(stream: Stream) -> dict[str, Any]:
    """Return all of a stream as JSON can say it."""
    # Not dataclasses.asdict: it copies each value, which takes ten times as long.
    entry = {each.name: getattr(stream, each.name) for each in dataclasses.fields(stream)}
    entry["attributes"] = {
        name: {"link": value.path} if isinstance(value, Link) else value
        for name, value in stream.attributes.items()
    }
    return entry


def stream_from_dict(entry: Mapping[str, Any]) -> Stream:
    """Rebuild from `stream_to_dict`."""
    attributes = {
        name: Link(value["link"]) if isinstance(value, dict) else value
        for name, value in entry["attributes"].items()
    }
    return Stream(**{**entry, "item_shape": tuple(entry["item_shape"]), "attributes": attributes})


def _node_from_dict(column: str, entry: Mapping[str, Any]) -> Node:
    kind = str(entry["kind"])
    if kind not in KINDS and not kind.startswith("fixed:"):
        raise IncompleteFileError(f"column {column!r} is stored as {kind!r}, unknown here: update shmstore")
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
    for stream in streams:
        _numpy_dtype(stream.dtype)  # refuses what is no type
    children = tuple(_node_from_dict(column, child) for child in entry["children"])
    codes = tuple(int(code) for code in entry.get("codes", ()))
    return Node(
        kind, str(entry["name"]), str(entry["type"]), str(entry["path"]), streams, children, codes=codes
    )
