"""What each setting accepts: its type, range, unit and spelling, and the error that says so.

One table, :data:`SETTINGS`, whatever the source of a value: keyword, environment, TOML or JSON. This module
knows neither which settings belong together nor which source outranks which: that is :mod:`shmstore.config`.
"""

from __future__ import annotations

import difflib
import math
import numbers
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from shmstore.errors import ConfigError

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": TIB,
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([a-z]*)", re.IGNORECASE)
_SESSION_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_FIXED = re.compile(r"fixed:([1-9][0-9]{0,4})")
_TRUTH = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}

#: poll(2) takes milliseconds as a C int, 24.8 days: no wait may be longer.
_LONGEST_WAIT_S = 2_000_000
#: The sidecars of a recording append to its name; file systems stop at 255 bytes.
_LONGEST_FILENAME = 200
#: HDF5 keeps each dimension of a chunk, and its size in bytes, in 32 bits.
_MOST_CHUNK_ROWS = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Setting:
    """How the value of one setting is checked.

    Attributes
    ----------
    accepts : str
        What is accepted, with range and unit, as in "must be …".
    check : Callable
        Turns a raw value into the one that is kept; raises TypeError, ValueError or OverflowError for any
        other.
    parse : Callable
        Turns the text of an environment variable into a raw value for ``check``.
    optional : bool
        Whether ``None`` is a value too.
    """

    accepts: str
    check: Callable[[Any], object]
    parse: Callable[[str], object] = str
    optional: bool = False

    def value(self, name: str, raw: object, where: str) -> Any:
        """Return the value to keep for ``raw``.

        Raises
        ------
        ConfigError
            ``raw`` is of the wrong type or out of range; the message names ``where`` it was found, ``name``,
            the value and what is accepted.
        """
        if raw is None and self.optional:
            return None
        try:
            return self.check(raw)
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"{where}: {name} = {_shown(raw)} must be {self.accepts}") from None

    def text(self, name: str, text: str, where: str) -> Any:
        """Return the value to keep for the text of an environment variable; raises like :meth:`value`."""
        try:
            raw = self.parse(text)
        except ValueError:
            raw = text
        return self.value(name, raw, where)


def unknown_name(name: str, known: Iterable[str], where: str, what: str = "setting") -> str:
    """Return the one-line message for a name that is not among the ``known``: it names the nearest.

    Examples
    --------
    >>> unknown_name("ring_byte", ["ring_bytes", "on_full"], "shmstore.toml, table [storage]")
    "shmstore.toml, table [storage]: unknown setting 'ring_byte'; did you mean 'ring_bytes'?"
    >>> unknown_name("commit_bytes", ["chunk_bytes"], "table [instrument.camera_1]")
    "table [instrument.camera_1]: 'commit_bytes' cannot be set here; set it for the whole storage"
    """
    if name in SETTINGS and what == "setting":
        place = "its instrument or the whole storage" if name in INSTRUMENT_ONLY else "the whole storage"
        return f"{where}: {name!r} cannot be set here; set it for {place}"
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    remedy = f"did you mean {nearest[0]!r}?" if nearest else f"no {what} is known here: remove it"
    return f"{where}: unknown {what} {_shown(name)}; {remedy}"


def size_in_bytes(text: str) -> int:
    """Return the number of bytes in ``"64MiB"`` (powers of 1024), ``"500 kB"`` (of 1000) or ``"4096"``.

    Raises
    ------
    ValueError
        No number, an unknown unit, or no whole number of bytes.

    Examples
    --------
    >>> size_in_bytes("64MiB"), size_in_bytes("1.5 kB"), size_in_bytes("4096")
    (67108864, 1500, 4096)
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].lower() or "b") if match else None
    if match is None or unit is None:
        raise ValueError(
            f"{text!r} is no size: write a number of bytes, or one with a unit such as '64MiB' or '500kB'"
        )
    size = Fraction(match[1]) * unit
    if size.denominator != 1:
        raise ValueError(f"{text!r} is no whole number of bytes: use a smaller unit")
    return int(size)


def fixed_string_bytes(strings: str) -> int | None:
    """Return N of the ``strings`` setting ``"fixed:N"``, in bytes; None for ``"vlen"`` and ``"packed"``."""
    match = _FIXED.fullmatch(strings)
    return int(match[1]) if match else None


def _shown(raw: object) -> str:
    shown = repr(raw)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def spelled(size: int) -> str:
    """Return a size as text with the largest unit that divides it; `size_in_bytes` reads it back."""
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def _whole(raw: Any, low: int, high: int) -> int:
    _require(not isinstance(raw, bool))
    value = operator.index(raw)
    _require(low <= value <= high)
    return value


def _integer(low: int, high: int, *, optional: bool = False) -> Setting:
    def check(raw: Any) -> int | None:
        return None if optional and raw == "none" else _whole(raw, low, high)

    accepts = f"an integer from {low} to {high}" + (", or 'none'" if optional else "")
    return Setting(accepts, check, int, optional)


def _size(low: int, high: int, *, optional: bool = False) -> Setting:
    def check(raw: Any) -> int | None:
        if optional and raw == "none":
            return None
        return _whole(size_in_bytes(raw) if isinstance(raw, str) else raw, low, high)

    accepts = f"a size from {spelled(low)} to {spelled(high)}: a number of bytes, or text such as '64MiB'"
    return Setting(accepts + (", or 'none'" if optional else ""), check, str, optional)


def _number(low: float, high: float, unit: str, *, unlimited: bool = False) -> Setting:
    def check(raw: Any) -> float:
        if unlimited and raw in ("none", math.inf):
            return math.inf
        _require(isinstance(raw, numbers.Real) and not isinstance(raw, bool))
        value = float(raw)
        _require(low <= value <= high)  # false for a NaN, too
        return value

    accepts = f"a number of {unit} from {low:g} to {high:.0f}" + (
        ", or 'none' for no limit" if unlimited else ""
    )
    return Setting(accepts, check, float, unlimited)


def _choice(*words: str) -> Setting:
    def check(raw: Any) -> str:
        _require(raw in words)
        return str(raw)

    return Setting(f"{', '.join(map(repr, words[:-1]))} or {words[-1]!r}", check)


def _path(raw: Any) -> Path:
    # Only text is expanded: a Path stays what the program made of it.
    path = Path(os.path.expanduser(raw) if isinstance(raw, str) else raw)  # noqa: PTH111 (keeps an unknown ~user as it is)
    _require(raw != "" and "\0" not in str(path))
    return path


def _filename(raw: Any) -> str:
    _require(isinstance(raw, str) and 0 < len(os.fsencode(raw)) <= _LONGEST_FILENAME)
    _require(raw not in (".", "..") and "/" not in raw and "\0" not in raw)
    return str(raw)


def _session_name(raw: Any) -> str:
    _require(isinstance(raw, str) and _SESSION_NAME.fullmatch(raw) is not None)
    return str(raw)


def _application(raw: Any) -> str:
    _require(isinstance(raw, str) and 0 < len(raw) <= _LONGEST_FILENAME and raw.isprintable())
    return str(raw)


def _compression(raw: Any) -> str:
    _require(isinstance(raw, str) and bool(raw.strip()))
    return str(raw).strip().lower()


def _level(raw: Any) -> int | None:
    return None if raw == "none" else _whole(raw, -(2**31), 2**31 - 1)


def _shuffle(raw: Any) -> bool | str:
    _require(isinstance(raw, bool) or raw in ("auto", "none", "byte", "bit"))
    return raw if isinstance(raw, bool) else str(raw)


def _switch(raw: Any) -> bool:
    _require(isinstance(raw, bool))
    return bool(raw)


def _truth(text: str) -> bool | str:
    return _TRUTH.get(text.lower(), text)


def _strings(raw: Any) -> str:
    _require(raw in ("vlen", "packed") or (fixed_string_bytes(raw) or 2**16) < 2**16)
    return str(raw)


#: Every setting by name. Whether a codec takes the level and the shuffle is the codec's to say.
SETTINGS: Mapping[str, Setting] = {
    "output_dir": Setting("the path of a folder", _path),
    "filename": Setting(
        f"a file name of 1 to {_LONGEST_FILENAME} bytes without '/'", _filename, optional=True
    ),
    "name": Setting(
        "1 to 64 of the letters a-z and A-Z, digits, '_', '-' and '.', no '-' or '.' first",
        _session_name,
        optional=True,
    ),
    "application": Setting(f"1 to {_LONGEST_FILENAME} printable characters", _application, optional=True),
    "compression": Setting(
        "the name of a codec, such as 'gzip', 'zstd', 'blosc:lz4', 'none' or 'adaptive'", _compression
    ),
    "compression_level": Setting("an integer, or 'none' for the codec's own", _level, int, optional=True),
    "shuffle": Setting("true, false, 'auto', 'none', 'byte' or 'bit'", _shuffle, _truth),
    "strings": Setting("'vlen', 'packed' or 'fixed:N' with N from 1 to 65535 bytes", _strings),
    "chunk_rows": _integer(1, _MOST_CHUNK_ROWS, optional=True),
    "chunk_bytes": _size(512, GIB, optional=True),
    "codec_threads": _integer(0, 1024),
    "ring_bytes": _size(4 * KIB, TIB),
    "on_full": _choice("block", "raise", "drop_newest"),
    "put_timeout_s": _number(0, _LONGEST_WAIT_S, "seconds", unlimited=True),
    "schema_policy": _choice("strict", "evolve", "new"),
    "validate": _choice("basic", "full"),
    "commit_interval_ms": _number(0, 60_000, "milliseconds"),
    "commit_bytes": _size(1, TIB),
    "auto_flush_interval_secs": _number(0, 86_400, "seconds"),
    "close_timeout_s": _number(0, _LONGEST_WAIT_S, "seconds"),
    "writer_deaths": _integer(0, 1_000_000),
    "spill_dir": Setting("the path of a folder", _path, optional=True),
    "disk_warn_bytes": _size(0, TIB),
    "disk_reserve_bytes": _size(0, TIB),
    "disk_patience_s": _number(0, _LONGEST_WAIT_S, "seconds", unlimited=True),
    "writer_hang_s": _number(0.1, _LONGEST_WAIT_S, "seconds", unlimited=True),
    "standby": Setting("true or false", _switch, _truth),
    "recoverable": Setting("true or false", _switch, _truth),
    "recover_at_start": Setting("true or false", _switch, _truth),
    "shm_dir": Setting("the path of a folder", _path),
}

#: Settings that an instrument takes and a column does not.
INSTRUMENT_ONLY = frozenset(
    {"ring_bytes", "on_full", "put_timeout_s", "chunk_bytes", "schema_policy", "validate"}
)
