"""Hypothesis strategies for every type that Arrow has, and for fields and schemas of them.

Left out is what pyarrow itself cannot carry through an IPC stream: a dictionary whose values are a dictionary
or an extension type themselves (below a list or struct they may be), an extension type stored as another one,
and maps whose key and item have other names than ``key`` and ``value``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator

import pyarrow as pa
from hypothesis import strategies as st

Types = st.SearchStrategy[pa.DataType]

DEPTH = 4  # how deep types are nested

#: Names that mean something to HDF5, to file systems, or to the layout of a recording.
ODD_NAMES = [
    *("", " ", ".", "..", "/", "a/b", "/a", "a/", "./a", "%", "%~2", "a%~2", "a%2Fb", "%2E"),
    *(
        "schema",
        "_arrow",
        "_shmstore",
        "metadata",
        "CATEGORIES",
        "OFFSETS",
        "VALUES",
        "MASK",
        "CHARS",
        "TYPES",
    ),
    *(
        "RUN_ENDS",
        "validity",
        "layout",
        "key",
        "value",
        "item",
        "entries",
        "a\nb",
        "\x01\x1f\x7f",
        "\u202eab",
    ),
    *("é", "e\u0301", "😀", "日本語", "\ufeff", "\U0010ffff", "#", "@a", "a'b\"c", "\\"),
]
LONGEST_NAME = 4096  # bytes
_INDEX_TYPES = [
    pa.int8(),
    pa.int16(),
    pa.int32(),
    pa.int64(),
    pa.uint8(),
    pa.uint16(),
    pa.uint32(),
    pa.uint64(),
]
_UNITS = ["s", "ms", "us", "ns"]
_ZONES = ["UTC", "Europe/Berlin", "+05:30", "-11:59", "no such zone"]
_DIGITS = {32: 9, 64: 18, 128: 38, 256: 76}
_NAME_CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
_UNREGISTERED = "tests.unregistered"


class Tagged(pa.ExtensionType):  # type: ignore[misc]  # pyarrow is untyped
    """An extension type that this process knows and the writer does not."""

    def __init__(self, storage: pa.DataType, tag: str) -> None:
        self.tag = tag
        super().__init__(storage, "tests.tagged")

    def __arrow_ext_serialize__(self) -> bytes:
        return self.tag.encode()

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Tagged:
        return cls(storage, serialized.decode())


pa.register_extension_type(Tagged(pa.null(), ""))


# -- leaves --------------------------------------------------------------------------------------------------


def _decimals(bits: int) -> Types:
    make = getattr(pa, f"decimal{bits}")

    def scaled(precision: int) -> Types:
        usual = st.integers(0, precision)
        return (usual | st.integers(-precision - 3, precision + 3)).map(lambda scale: make(precision, scale))

    return st.integers(1, _DIGITS[bits]).flatmap(scaled)


LEAVES: dict[str, Types] = {
    **{name: st.just(getattr(pa, name)()) for name in ("int8", "int16", "int32", "int64")},
    **{name: st.just(getattr(pa, name)()) for name in ("uint8", "uint16", "uint32", "uint64")},
    "halffloat": st.just(pa.float16()),
    "float": st.just(pa.float32()),
    "double": st.just(pa.float64()),
    "bool": st.just(pa.bool_()),
    "null": st.just(pa.null()),
    "string": st.just(pa.string()),
    "large_string": st.just(pa.large_string()),
    "string_view": st.just(pa.string_view()),
    "binary": st.just(pa.binary()),
    "large_binary": st.just(pa.large_binary()),
    "binary_view": st.just(pa.binary_view()),
    "fixed_size_binary": st.integers(0, 5).map(pa.binary),
    **{f"decimal{bits}": _decimals(bits) for bits in _DIGITS},
    "date32": st.just(pa.date32()),
    "date64": st.just(pa.date64()),
    "time32": st.sampled_from(_UNITS[:2]).map(pa.time32),
    "time64": st.sampled_from(_UNITS[2:]).map(pa.time64),
    "timestamp": st.builds(pa.timestamp, st.sampled_from(_UNITS), st.none() | st.sampled_from(_ZONES)),
    "duration": st.sampled_from(_UNITS).map(pa.duration),
    "month_day_nano_interval": st.just(pa.month_day_nano_interval()),
    "arrow.uuid": st.just(pa.uuid()),
    "arrow.json": st.sampled_from([pa.string(), pa.large_string(), pa.string_view()]).map(pa.json_),
    "arrow.bool8": st.just(pa.bool8()),
}


@st.composite
def _leaves(draw: st.DrawFn) -> pa.DataType:
    return draw(LEAVES[draw(st.sampled_from(list(LEAVES)))])


# -- fields --------------------------------------------------------------------------------------------------


@functools.cache
def names() -> st.SearchStrategy[str]:
    """Draw any name without a NUL: mostly a short one, so that some are doubled; often an odd one."""
    few = st.sampled_from(["a", "b", "c"])
    odd = st.sampled_from(ODD_NAMES)
    any_ = st.text(_NAME_CHARACTERS, max_size=8)
    long = st.builds(
        _stretched, st.text(_NAME_CHARACTERS, min_size=1, max_size=3), st.integers(150, LONGEST_NAME)
    )
    return st.one_of([few] * 6 + [odd] * 3 + [any_] * 2 + [long])


def _stretched(text: str, size: int) -> str:
    """Repeat a text up to so many bytes of UTF-8."""
    return text * max(1, size // len(text.encode()))


@functools.cache
def metadata() -> st.SearchStrategy[pa.KeyValueMetadata | None]:
    """Draw metadata of a field or schema; mostly none, sometimes with a key twice."""
    keys = st.sampled_from([b"units", b"k", b"", b"units"]) | st.binary(max_size=4)
    pairs = st.lists(st.tuples(keys, st.binary(max_size=6)), min_size=1, max_size=3)
    return st.none() | st.none() | pairs.map(pa.KeyValueMetadata)


@st.composite
def fields(draw: st.DrawFn, of: Types, name: str | None = None) -> pa.Field:
    """Draw a field with a type from ``of``; one in a while claims an extension type that nobody knows.

    Parameters
    ----------
    of
        Where its type comes from.
    name
        Its name; drawn by default.
    """
    type_ = draw(of)
    nullable = type_ == pa.null() or not draw(st.sampled_from([False, False, True]))
    kept = draw(metadata())
    if _is_no_extension(type_) and draw(st.integers(0, 7)) == 7:
        claim = {
            "ARROW:extension:name": _UNREGISTERED,
            "ARROW:extension:metadata": draw(st.binary(max_size=4)),
        }
        kept = pa.KeyValueMetadata([*claim.items(), *(kept.items() if kept else [])])
    return pa.field(draw(names()) if name is None else name, type_, nullable, kept)


# -- nested --------------------------------------------------------------------------------------------------


def _lists(make: Callable[[pa.Field], pa.DataType]) -> Callable[[Types], Types]:
    return lambda of: (fields(of, "item") | fields(of)).map(make)


def _fixed_size_lists(of: Types) -> Types:
    return st.builds(pa.list_, fields(of, "item") | fields(of), st.integers(0, 3))


def _structs(of: Types) -> Types:
    return st.lists(fields(of), max_size=3).map(pa.struct)


@st.composite
def _maps(draw: st.DrawFn, of: Types) -> pa.DataType:
    # A key is never null, whatever an extension type calls it; pyarrow ends the process over one that is.
    key = draw(of.filter(lambda type_: _storage(type_) != pa.null()))
    key_field = pa.field("key", key, nullable=False, metadata=draw(metadata()))
    return pa.map_(key_field, draw(fields(of, "value")), keys_sorted=draw(st.booleans()))


def _dictionaries(of: Types) -> Types:
    values = of.filter(lambda type_: not isinstance(type_, (pa.DictionaryType, pa.BaseExtensionType)))
    return st.builds(pa.dictionary, st.sampled_from(_INDEX_TYPES), values, st.booleans())


@st.composite
def _unions(draw: st.DrawFn, of: Types, mode: str) -> pa.DataType:
    children = draw(st.lists(fields(of), min_size=1, max_size=3))
    count = len(children)
    codes = draw(st.none() | st.lists(st.integers(0, 127), min_size=count, max_size=count, unique=True))
    return pa.union(children, mode, codes)


def _run_end_encoded(of: Types) -> Types:
    # Arrow's C interface refuses run ends whose values are run ends.
    values = of.filter(lambda type_: not pa.types.is_run_end_encoded(_storage(type_)))
    return st.builds(pa.run_end_encoded, st.sampled_from([pa.int16(), pa.int32(), pa.int64()]), values)


@st.composite
def _tensors(draw: st.DrawFn, of: Types) -> pa.DataType:
    value = draw(of.filter(_is_no_extension))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    axes = len(shape)
    dim_names = (
        draw(st.none() | st.lists(st.text('xyz"é', max_size=2), min_size=axes, max_size=axes))
        if axes
        else None
    )
    permutation = draw(st.none() | st.permutations(range(axes))) if axes else None
    return pa.fixed_shape_tensor(value, shape, dim_names, permutation)


def _opaque(of: Types) -> Types:
    words = st.text(max_size=4)
    return st.builds(pa.opaque, of.filter(_is_no_extension), words, words)


def _tagged(of: Types) -> Types:
    return st.builds(Tagged, of.filter(_is_no_extension), st.text(max_size=4))


def _storage(type_: pa.DataType) -> pa.DataType:
    return type_.storage_type if isinstance(type_, pa.BaseExtensionType) else type_


def _is_no_extension(type_: pa.DataType) -> bool:
    return not isinstance(type_, pa.BaseExtensionType)


NESTED: dict[str, Callable[[Types], Types]] = {
    "list": _lists(pa.list_),
    "struct": _structs,
    "fixed_size_list": _fixed_size_lists,
    "large_list": _lists(pa.large_list),
    "list_view": _lists(pa.list_view),
    "large_list_view": _lists(pa.large_list_view),
    "map": _maps,
    "dictionary": _dictionaries,
    "sparse_union": functools.partial(_unions, mode="sparse"),
    "dense_union": functools.partial(_unions, mode="dense"),
    "run_end_encoded": _run_end_encoded,
    "arrow.fixed_shape_tensor": lambda of: _tensors(_leaves() | of),
    "arrow.opaque": _opaque,
    "tests.tagged": _tagged,
}


@st.composite
def types(draw: st.DrawFn, depth: int = DEPTH) -> pa.DataType:
    """Draw a type that is nested up to ``depth`` times; shrinks towards int8."""
    if not depth or not draw(st.integers(0, 2)):
        return draw(_leaves())
    return draw(NESTED[draw(st.sampled_from(list(NESTED)))](types(depth - 1)))


# -- schemas ------------------------------------------------------------------------------------------------


@st.composite
def schemas(draw: st.DrawFn, depth: int = DEPTH) -> pa.Schema:
    """Draw a schema of one or a few columns, and rarely of none."""
    bare = draw(st.integers(0, 19)) == 19
    columns = [] if bare else draw(st.lists(fields(types(depth)), min_size=1, max_size=4))
    return pa.schema(columns, draw(metadata()))


@st.composite
def schemas_of_every_kind(draw: st.DrawFn) -> pa.Schema:
    """Draw a schema with a column of each kind of type there is, the nested ones of leaves."""
    columns = [draw(fields(kind)) for kind in LEAVES.values()]
    columns += [draw(fields(make(_leaves()))) for make in NESTED.values()]
    return pa.schema(columns, draw(metadata()))


# -- looking at types ----------------------------------------------------------------------------------------


def kind(type_: pa.DataType) -> str:
    """Return the name under which a type stands in `LEAVES` or `NESTED`."""
    if isinstance(type_, pa.BaseExtensionType):
        return str(type_.extension_name)
    found = re.match(r"\w+", str(type_))
    return found[0] if found else str(type_)


def children(type_: pa.DataType) -> list[pa.DataType]:
    """Return the types that a type is made of, one level down."""
    if isinstance(type_, pa.BaseExtensionType):
        return [type_.storage_type]
    if pa.types.is_dictionary(type_):
        return [type_.value_type]
    if pa.types.is_map(type_):
        return [type_.key_type, type_.item_type]
    if pa.types.is_run_end_encoded(type_):
        return [type_.value_type]
    return [type_.field(index).type for index in range(type_.num_fields)]


def walk(type_: pa.DataType) -> Iterator[pa.DataType]:
    """Yield a type and all that are in it."""
    yield type_
    for child in children(type_):
        yield from walk(child)


def nesting(type_: pa.DataType) -> int:
    """Return how deep a type is nested; the storage of an extension type counts as a level."""
    return 1 + max((nesting(child) for child in children(type_)), default=-1)


def describe(schema: pa.Schema) -> str:
    """Spell a schema out, with names cut to a length that one can read."""

    def field_text(field: pa.Field) -> str:
        mark = "" if field.nullable else " not null"
        extra = f" {dict(field.metadata)}" if field.metadata else ""
        name = field.name if len(field.name) < 40 else f"{field.name[:8]}… {len(field.name)} characters"
        return f"  {name!r}: {str(field.type)[:300]}{mark}{extra}"

    lines = [field_text(field) for field in schema]
    return (
        "\n".join([*lines, f"  metadata {dict(schema.metadata)}"] if schema.metadata else lines)
        or "  no columns"
    )
