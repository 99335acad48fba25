"""Dictionaries of one column: where each stands among the categories in the file.

Batches of one schema may bring different dictionaries. All of them stand in the file one after the other;
this keeps the account of which is where, so that one that comes again, or grows, is not written again.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import NamedTuple

import pyarrow as pa

from shmstore.buffers import offsets_of, used_chars

#: Dictionaries remembered, and their bytes together; one that was forgotten is written again when it returns.
_REMEMBERED, _REMEMBERED_BYTES = 64, 32 * 2**20


class Place(NamedTuple):
    """Where a dictionary stands among the categories.

    Attributes
    ----------
    first, size : int
        Its first category, and how many it has.
    """

    first: int
    size: int


class Dictionaries:
    """The dictionaries of one column so far.

    Attributes
    ----------
    last : Place or None
        The place of the one used last.
    """

    def __init__(self) -> None:
        self.last: Place | None = None
        self._last_image: bytes | None = None
        self._known: OrderedDict[bytes, Place] = OrderedDict()
        self._bytes = 0

    def find(self, image: bytes) -> Place | None:
        """Return the place of a dictionary with that `image_of`, if it is known."""
        if image == self._last_image:  # as nearly always; comparing is quicker than hashing
            return self.last
        return self._known.get(image)

    def grows_from(self, dictionary: pa.Array, categories: int) -> Place | None:
        """Return the place of the dictionary used last, if this one is the same and more.

        Parameters
        ----------
        dictionary
            The new one.
        categories
            How many categories there are: only the last of them can grow.
        """
        last = self.last
        if last is None or last.first + last.size != categories or not 0 < last.size < len(dictionary):
            return None
        return last if self.find(image_of(dictionary.slice(0, last.size))) == last else None

    def use(self, image: bytes, place: Place) -> None:
        """Take note that a dictionary stands there, and is the one used last."""
        if place is self.last:
            return
        self.last, self._last_image = place, image
        if image not in self._known:
            self._bytes += len(image)
        self._known[image] = place
        self._known.move_to_end(image)
        while len(self._known) > _REMEMBERED or (self._bytes > _REMEMBERED_BYTES and len(self._known) > 1):
            self._bytes -= len(self._known.popitem(last=False)[0])


def image_of(dictionary: pa.Array) -> bytes:
    """Return bytes that only an equal dictionary of the same type has; equal to the bit, unlike for Arrow.

    Arrow takes 0.0 for -0.0 and no NaN for another, which would exchange one for the other here. Equal
    dictionaries may have different images; they are written twice then.
    """
    type_ = dictionary.type
    if (pa.types.is_string(type_) or pa.types.is_binary(type_)) and not dictionary.null_count:
        return b"".join((offsets_of(dictionary).tobytes(), used_chars(dictionary).tobytes()))
    batch = pa.record_batch([dictionary], names=["dictionary"])
    image = io.BytesIO()
    with pa.ipc.new_stream(image, batch.schema) as stream:
        stream.write_batch(batch)
    return b"stream" + image.getvalue()
