"""Arrow arrays into the items of streams. Pure functions over memory; no files, no rings.

`encode` borrows: where nothing has to change, its results are views over the array's own memory (the ring, in
the writer). `shmstore.decoding` is its inverse.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shmstore.buffers import (
    Items,
    boolean_items,
    fixed_items,
    large_binary,
    offsets_of,
    own_items,
    to_cells,
    used_chars,
    validity,
)
from shmstore.decimals import to_text
from shmstore.dictionaries import Dictionaries, Place, image_of
from shmstore.errors import InvalidValueError
from shmstore.gathering import gather_ranges, list_ranges
from shmstore.layout import Column, Node, Stream
from shmstore.planning import fixed_width, is_text
from shmstore.soundness import check_array


class Block(NamedTuple):
    """Items of several streams in many batches: of each stream as many bytes, as far from one to the next.

    Attributes
    ----------
    paths : tuple of str
        The streams'.
    items : ndarray
        ``(batches, streams, words)``, the words of each stream contiguous in each batch.
    """

    paths: tuple[str, ...]
    items: Items

    def columns(self) -> Iterator[tuple[str, Items]]:
        """Give each stream's path with its items, ``(batches, words)``."""
        return zip(self.paths, self.items.swapaxes(0, 1), strict=True)


class Intake:
    """What one batch brings to an instrument, before it is taken in.

    Nothing here changes what was taken in before: a batch that turns out to be unfit can be forgotten.

    Parameters
    ----------
    rows
        Rows of the batch.
    taken
        Items taken in before, by space (`Stream.space`); the rows are at ``""``.
    dictionaries
        The dictionaries of each dictionary node, by its path.
    blocks
        Given for many batches: their items, which are all counted with the rows.

    Attributes
    ----------
    blocks : list of Block
        Items of many batches, as far as they are not in `items`.
    items : dict of str to ndarray
        For each dataset's path an array ``(items, *item_shape)``, C-contiguous. Validity is present only if
        there are nulls; each item of it is ``True`` where a value is. Views over the batch where possible.
        Of many batches ``(batches, words)``, only the words of each batch contiguous.
    counts : dict of str to int
        Items that the batch brings, by space.
    """

    def __init__(
        self,
        rows: int,
        taken: Mapping[str, int],
        dictionaries: Mapping[str, Dictionaries] | None = None,
        blocks: Sequence[Block] | None = None,
    ) -> None:
        self.is_run = blocks is not None
        self.blocks = list(blocks or ())
        self.items: dict[str, Items] = {}
        self.counts: defaultdict[str, int] = defaultdict(int, {"": rows})
        self._taken = taken
        self._dictionaries = dictionaries or {}
        self._places: list[tuple[Dictionaries, bytes, Place]] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all items."""
        return sum(values.nbytes for values in self.items.values()) + sum(
            block.items.nbytes for block in self.blocks
        )

    def unfold(self, blocks: Sequence[Block]) -> None:
        """Have the items of some of its blocks stand in `items`, and no block any more."""
        for block in blocks:
            self.items.update(block.columns())
        self.blocks.clear()

    def sizes(self) -> Iterator[tuple[str, int, int]]:
        """Give for each stream its path, how many items it gets, and their bytes."""
        for path, values in self.items.items():
            yield path, len(values), values.nbytes
        for block in self.blocks:
            nbytes = block.items.nbytes // len(block.paths)
            for path in block.paths:
                yield path, self.counts[""], nbytes

    def before(self, space: str) -> int:
        """Return how many items of a space were taken in before this batch."""
        return self._taken.get(space, 0)

    def dictionaries(self, node: Node) -> Dictionaries:
        """Return what is known of a node's dictionaries."""
        return self._dictionaries[node.path]

    def place(self, known: Dictionaries, image: bytes, place: Place) -> None:
        """Remember where a dictionary stands once the batch is taken in."""
        self._places.append((known, image, place))

    def accept(self) -> None:
        """The batch is taken in: its dictionaries are known from now on."""
        for known, image, place in self._places:
            known.use(image, place)


def encode(node: Node, array: pa.Array, intake: Intake) -> None:
    """Turn an array into items of the node and all within it.

    Parameters
    ----------
    node
        Where the array goes.
    array
        Its values, already known to be of the node's type, and sound.
    intake
        Takes the items.

    Raises
    ------
    InvalidValueError
        A value cannot be stored without loss.
    """
    while isinstance(array, pa.ExtensionArray):
        array = array.storage
    _ENCODERS.get(node.kind, _encode_fixed_strings)(node, array, intake)


def dictionary_nodes(column: Column) -> list[Node]:
    """Return the nodes of a column that have dictionaries."""
    return [node for node in column.node.walk() if node.kind == "dictionary"]


# -- checks before a batch is accepted -------------------------------------------------------------------


def check(column: Column, array: pa.Array) -> None:
    """Refuse what `encode` could not store exactly; run by the producer, so that the caller gets the error.

    Raises
    ------
    InvalidValueError
        The array is damaged: offsets that lead nowhere, text that is no UTF-8. A value is too long for
        ``fixed:N``, or holds a NUL where the encoding ends strings with one.
    """
    if column.encoding in ("plain", "bool"):
        return
    try:
        check_array(array)
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise InvalidValueError(
            f"column {column.name!r} is damaged: {reason}: check what made the batch, or give raw bytes the "
            "type binary"
        ) from None
    _check_strings(column.name, column.node, array)


def has_plain_strings(node: Node) -> bool:
    """Whether a node holds strings that are not packed, so that not every string can be stored."""
    return any(inner.kind == "vlen" or inner.kind.startswith("fixed:") for inner in node.walk())


def _check_strings(name: str, node: Node, array: pa.Array) -> None:
    if not has_plain_strings(node):
        return
    while isinstance(array, pa.ExtensionArray):
        array = array.storage
    if node.kind == "struct":
        for number, child in enumerate(node.children):
            _check_strings(name, child, array.field(number))
    elif node.kind == "dictionary":
        _check_strings(name, node.children[0], array.dictionary)
    elif node.kind == "vlen" or node.kind.startswith("fixed:"):
        _check_string(name, node.kind, array)


def _check_string(name: str, kind: str, array: pa.Array) -> None:
    import pyarrow.compute as pc  # 0.03 s: only those who want it pay

    flat = large_binary(array)
    text = is_text(array.type)
    if text and _has_nul(flat):
        raise InvalidValueError(
            f"column {name!r} holds a string with a NUL character, which {kind!r} cannot store: "
            "set strings='packed' for it"
        )
    if kind == "vlen" or not len(flat):
        return
    width = fixed_width(kind)
    lengths = pc.min_max(pc.binary_length(flat))
    longest, shortest = lengths["max"].as_py() or 0, lengths["min"].as_py()
    if longest > width:
        raise InvalidValueError(
            f"column {name!r} holds a value of {longest} bytes, longer than its {kind}: "
            "enlarge it, or set strings='packed'"
        )
    if not text and shortest is not None and shortest < width:
        raise InvalidValueError(
            f"column {name!r} holds a value of {shortest} bytes, but binary {kind} takes exactly "
            f"{width}: set strings='packed'"
        )


def _has_nul(flat: pa.LargeBinaryArray) -> bool:
    if used_chars(flat).all():
        return False
    import pyarrow.compute as pc

    # Some byte is 0, but perhaps one under a null, which is nobody's.
    return bool(pc.any(pc.match_substring(flat, "\0")).as_py())


# -- values of a fixed size ------------------------------------------------------------------------------


def _encode_plain(node: Node, array: pa.Array, intake: Intake) -> None:
    stream, *masks = node.streams
    rows = len(array)
    level = 0
    shape: tuple[int, ...] = (rows,)
    present: Items | None = None
    while True:
        if array.null_count:
            mask = validity(array).reshape(shape)
            intake.items[masks[level].path] = mask
            present = mask if present is None else present[..., None] & mask
        elif present is not None and level:
            present = np.broadcast_to(present[..., None], shape)
        if not isinstance(array, pa.FixedSizeListArray):
            break
        size = array.type.list_size
        level, shape = level + 1, (*shape, size)
        array = array.values.slice(array.offset * size, len(array) * size)
        while isinstance(array, pa.ExtensionArray):
            array = array.storage
    values = boolean_items(array) if node.kind == "bool" else fixed_items(array, stream.numpy_dtype)
    values = values.reshape(shape)
    if present is not None and not present.all():
        values = np.where(present, values, _fill_value(stream))
    intake.items[stream.path] = values.reshape(rows, *stream.item_shape)


def _fill_value(stream: Stream) -> npt.NDArray[Any]:
    if stream.fill is None:
        return np.zeros((), stream.numpy_dtype)
    return np.asarray(stream.fill, stream.numpy_dtype)


def _encode_presence(node: Node, array: pa.Array, intake: Intake) -> None:
    intake.items[node.path] = validity(array)


def _encode_decimal(node: Node, array: pa.Array, intake: Intake) -> None:
    _encode_mask(node, array, intake)
    stream = node.stream("values")
    text = to_text(array, node.type)
    intake.items[stream.path] = to_cells(large_binary(text), stream.item_bytes)


def _encode_mask(node: Node, array: pa.Array, intake: Intake) -> None:
    if array.null_count:
        intake.items[node.stream("validity").path] = validity(array)


# -- strings and bytes -----------------------------------------------------------------------------------


def _encode_packed(node: Node, array: pa.Array, intake: Intake) -> None:
    if pa.types.is_string_view(array.type) or pa.types.is_binary_view(array.type):
        array = large_binary(array)
    _encode_mask(node, array, intake)
    array = _without_hidden(array)
    offsets = offsets_of(array)
    chars = node.stream("chars")
    intake.items[node.stream("offsets").path] = _ends(offsets, intake.before(chars.space))
    intake.items[chars.path] = used_chars(array)
    intake.counts[chars.space] += int(offsets[-1]) - int(offsets[0])


def _without_hidden(array: pa.Array) -> pa.Array:
    """Return text or binary without what lies under nulls, which is nobody's."""
    if _nullsown_items(array, offsets_of(array)):
        return array.take(pa.array(np.arange(len(array))))  # copies what there is
    return array


def _ends(offsets: Items, before: int) -> Items:
    """Return where items end, counted over the whole column, from offsets that count from anywhere."""
    return np.add(offsets[1:], before - int(offsets[0]), dtype=np.int64).view(np.uint64)


def _nullsown_items(array: pa.Array, offsets: Items) -> bool:
    """Whether there are items under nulls, which are nobody's."""
    return bool(array.null_count and (np.diff(offsets)[~validity(array)] != 0).any())


def _encode_vlen(node: Node, array: pa.Array, intake: Intake) -> None:
    """Make an object array of str (UTF-8) or of uint8 arrays (bytes), as h5py wants them."""
    _encode_mask(node, array, intake)
    stream = node.streams[0]
    objects = np.empty(len(array), dtype=object)
    if stream.dtype == "utf8":
        objects[:] = [value or "" for value in array.to_pylist()]
    else:
        for row, value in enumerate(array.to_pylist()):
            objects[row] = np.frombuffer(value or b"", np.uint8)
    intake.items[stream.path] = objects


def _encode_fixed_strings(node: Node, array: pa.Array, intake: Intake) -> None:
    _check_string(node.path, node.kind, array)
    _encode_mask(node, array, intake)
    stream = node.streams[0]
    cells = to_cells(_without_hidden(large_binary(array)), stream.item_bytes)
    intake.items[stream.path] = cells.view(stream.numpy_dtype)


# -- lists -----------------------------------------------------------------------------------------------


def _encode_list(node: Node, array: pa.Array, intake: Intake) -> None:
    _encode_mask(node, array, intake)
    values, offsets = _list_items(array)
    (child,) = node.children
    intake.items[node.stream("offsets").path] = _ends(offsets, intake.before(child.space))
    intake.counts[child.space] += len(values)
    encode(child, values, intake)


def _list_items(array: pa.Array) -> tuple[pa.Array, Items]:
    """Return the items of all lists, one list after the other, and their offsets."""
    if not (pa.types.is_list_view(array.type) or pa.types.is_large_list_view(array.type)):
        offsets = offsets_of(array)
        if not _nullsown_items(array, offsets):
            first = int(offsets[0])
            return array.values.slice(first, int(offsets[-1]) - first), offsets
    starts, lengths = list_ranges(array)
    offsets = np.zeros(len(array) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return gather_ranges(array.values, starts, lengths, offsets), offsets


def _encode_fixed_list(node: Node, array: pa.Array, intake: Intake) -> None:
    _encode_mask(node, array, intake)
    size = array.type.list_size
    (child,) = node.children
    intake.counts[child.space] += len(array) * size
    encode(child, array.values.slice(array.offset * size, len(array) * size), intake)


# -- structs, unions, dictionaries, runs -----------------------------------------------------------------


def _encode_struct(node: Node, array: pa.Array, intake: Intake) -> None:
    _encode_mask(node, array, intake)
    for number, child in enumerate(node.children):
        encode(child, array.field(number), intake)


def _encode_sparse_union(node: Node, array: pa.Array, intake: Intake) -> None:
    intake.items[node.streams[0].path] = own_items(array, 1, np.int8)
    for number, child in enumerate(node.children):
        encode(child, array.field(number), intake)


def _encode_dense_union(node: Node, array: pa.Array, intake: Intake) -> None:
    types = own_items(array, 1, np.int8)
    within = own_items(array, 2, np.int32).astype(np.int64)
    offsets = np.zeros(len(array), np.uint64)
    for number, (child, code) in enumerate(zip(node.children, node.codes, strict=True)):
        own = types == code
        picked = within[own]
        lengths = np.ones(len(picked), np.int64)
        values = gather_ranges(array.field(number), picked, lengths, np.arange(len(picked) + 1))
        before = intake.before(child.space)
        offsets[own] = np.arange(before, before + len(picked))
        intake.counts[child.space] += len(picked)
        encode(child, values, intake)
    intake.items[node.stream("types").path] = types
    intake.items[node.stream("offsets").path] = offsets


def _encode_dictionary(node: Node, array: pa.DictionaryArray, intake: Intake) -> None:
    (child,) = node.children
    indices, dictionary = array.indices, array.dictionary
    known, image = intake.dictionaries(node), image_of(dictionary)
    categories = intake.before(child.space)
    place = known.find(image)
    if place is None:
        grown = None if _has_dictionaries(child) else known.grows_from(dictionary, categories)
        new = dictionary.slice(grown.size) if grown else dictionary
        place = Place(grown.first if grown else categories, len(dictionary))
        intake.counts[child.space] += len(new)
        encode(child, new, intake)
    stream, segments, _ = node.streams
    if place != known.last:
        start = intake.before(node.space)
        intake.items[segments.path] = np.array([[intake.before(""), start, *place]], np.uint64)
        intake.counts[segments.space] += 1
    intake.place(known, image, place)
    _encode_mask(node, indices, intake)
    codes = fixed_items(indices, np.dtype(indices.type.to_pandas_dtype()))
    if indices.type.bit_width != 8 * stream.item_bytes or not pa.types.is_signed_integer(indices.type):
        codes = codes.astype(stream.numpy_dtype)
    if place.first:
        codes = codes + stream.numpy_dtype.type(place.first)
    if indices.null_count:
        codes = np.where(validity(indices), codes, _fill_value(stream))
    intake.items[stream.path] = codes


def _has_dictionaries(node: Node) -> bool:
    return any(inner.kind == "dictionary" for inner in node.walk())


def _encode_run_ends(node: Node, array: pa.RunEndEncodedArray, intake: Intake) -> None:
    (ends_stream,) = node.streams
    (child,) = node.children
    first, count = array.find_physical_offset(), array.find_physical_length()
    run_ends = array.run_ends.slice(first, count)
    ends = fixed_items(run_ends, np.dtype(run_ends.type.to_pandas_dtype())).astype(np.int64) - array.offset
    ends = np.minimum(ends, len(array)) + intake.before(node.space)
    intake.items[ends_stream.path] = ends.view(np.uint64)
    intake.counts[child.space] += count
    encode(child, array.values.slice(first, count), intake)


_ENCODERS: dict[str, Callable[[Node, Any, Intake], None]] = {
    "plain": _encode_plain,
    "bool": _encode_plain,
    "presence": _encode_presence,
    "vlen": _encode_vlen,
    "packed": _encode_packed,
    "decimal": _encode_decimal,
    "struct": _encode_struct,
    "list": _encode_list,
    "fixed_list": _encode_fixed_list,
    "dictionary": _encode_dictionary,
    "sparse_union": _encode_sparse_union,
    "dense_union": _encode_dense_union,
    "run_ends": _encode_run_ends,
}
