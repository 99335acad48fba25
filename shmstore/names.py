"""Names inside the file: any Arrow or instrument name becomes a valid, unique HDF5 link name, reversibly.

HDF5 forbids ``/`` and NUL in a link and gives ``.`` a meaning; some names are ours. Escaping is
percent-encoding, so that ordinary names stay as they are. The original name is kept beside
(``_arrow/layout``, ``@instrument_id``), hence readers never have to unescape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from shmstore.errors import InvalidValueError

#: Names in the root group that belong to shmstore.
RESERVED_INSTRUMENTS = frozenset({"metadata", "_shmstore"})
#: Names in an instrument's group that belong to shmstore.
RESERVED_COLUMNS = frozenset({"schema", "_arrow", "CATEGORIES", "SEARCH_INDEXES"})
#: Names in the group of a struct or a union that belong to shmstore.
RESERVED_MEMBERS = frozenset({"TYPES", "OFFSETS"})
#: Attributes of an instrument's group that belong to shmstore.
RESERVED_INSTRUMENT_ATTRIBUTES = frozenset(
    {"instrument_id", "created_at", "continues", "CLASS", "VERSION", "NROWS", "column-order"}
)
#: Longest instrument id, in UTF-8 bytes.
MAX_INSTRUMENT_ID_BYTES = 4096
#: A link longer than this is cut and ends in a hash: the file systems and tools behind HDF5 viewers stop at
#: 255.
_MAX_LINK_BYTES = 200


def link_name(name: str, taken: Collection[str] = (), reserved: Collection[str] = ()) -> str:
    """Return the HDF5 link name for ``name``: itself where possible, else escaped.

    Parameters
    ----------
    name
        Any text.
    taken
        Link names already in use in the same group; a doubled name gets ``%~2``, ``%~3``, …
    reserved
        Names that are ours; they are escaped by their first character.

    Examples
    --------
    >>> link_name("time"), link_name("a/b"), link_name(""), link_name("..")
    ('time', 'a%2Fb', '%', '%2E%2E')
    >>> link_name("schema", reserved=RESERVED_COLUMNS), link_name("x", taken={"x"})
    ('%73chema', 'x%~2')
    """
    link = "".join(_escape(char) if char in "/%" or not char.isprintable() else char for char in name) or "%"
    if set(link) == {"."}:
        link = link.replace(".", "%2E")
    if link in reserved:
        link = _escape(link[0]) + link[1:]
    if len(link.encode("utf-8", "surrogatepass")) > _MAX_LINK_BYTES:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        link = f"{link[:40]}%~{digest}"
    unique, count = link, 1
    while unique in taken:
        count += 1
        unique = f"{link}%~{count}"
    return unique


def instrument_link(instrument_id: str) -> str:
    """Return the link name of an instrument's group, or refuse the id.

    Raises
    ------
    InvalidValueError
        The id is no text, holds a NUL, or is longer than 4,096 bytes.
    """
    if not isinstance(instrument_id, str):
        raise InvalidValueError(
            f"instrument id {instrument_id!r} is no text: give it a name such as 'camera_1'"
        )
    if "\0" in instrument_id:  # HDF5 attributes, which keep it as it is, end there
        raise InvalidValueError(f"instrument id {instrument_id[:40]!r} holds a NUL character: remove it")
    try:
        size = len(instrument_id.encode())
    except UnicodeEncodeError:
        raise InvalidValueError(
            f"instrument id {instrument_id!r} is no valid Unicode: remove lone surrogates"
        ) from None
    if size > MAX_INSTRUMENT_ID_BYTES:
        raise InvalidValueError(
            f"instrument id {instrument_id[:40]!r}… has {size} bytes: use at most {MAX_INSTRUMENT_ID_BYTES}"
        )
    return link_name(instrument_id, reserved=RESERVED_INSTRUMENTS)


def _escape(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
