"""Scopes: what may be set for the storage, an instrument, a column, and how the narrower lies over the wider.

Frozen, checked values. This module does not know where values come from, nor the storage's defaults: both are
:mod:`shmstore.config`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from shmstore.codec import Codec
from shmstore.errors import ConfigError
from shmstore.settings import SETTINGS, fixed_string_bytes, unknown_name

#: The level of gzip where none is given, as in the original system (h5py's own would be 4).
DEFAULT_GZIP_LEVEL = 6


class Scope:
    """What the three configurations share: every field goes through SETTINGS, an unknown one is named."""

    __slots__ = ()
    #: Whether None means the value of the wider scope.
    inherits: ClassVar[bool] = True

    def __new__(cls, **values: object) -> Self:  # noqa: D102 (the fields are the classes' own)
        _refuse_unknown(values, field_names(cls), cls.__name__)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        for name, value in checked(type(self), field_values(self), type(self).__name__).items():
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy cannot be pickled, so the plain values travel.
        return type(self).from_dict, (self.to_dict(),)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as values that JSON takes; :meth:`from_dict` makes an equal one of them."""
        return {name: _plain(value) for name, value in field_values(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the configuration that ``values`` describe, as made by :meth:`to_dict`.

        Absent fields get their defaults.

        Raises
        ------
        ConfigError
            A field is unknown or its value wrong.
        """
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnConfig(Scope):
    """What is set for one column; None inherits from the instrument.

    Attributes
    ----------
    compression : str or None
        Codec, as in :class:`StorageConfig`.
    compression_level : int or None
        Level of that codec.
    shuffle : bool, str or None
        Shuffle before the codec, as in :class:`StorageConfig`.
    chunk_rows : int or None
        Rows in a chunk.
    strings : str or None
        How UTF-8 is stored: ``"vlen"``, ``"packed"`` or ``"fixed:N"`` (N bytes).
    """

    compression: str | None = None
    compression_level: int | None = None
    shuffle: bool | str | None = None
    chunk_rows: int | None = None
    strings: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstrumentConfig(Scope):
    """What is set for one instrument; None inherits from the storage.

    The first five are the fields of :class:`ColumnConfig` and hold for all columns of the instrument.

    Attributes
    ----------
    chunk_bytes : int or None
        Size aimed at for a chunk, in bytes.
    ring_bytes : int or None
        Size of each producer's ring, in bytes.
    on_full : str or None
        What a full ring means for ``put``: ``"block"``, ``"raise"`` or ``"drop_newest"``.
    put_timeout_s : float or None
        Longest wait of a ``put`` under ``"block"``, in seconds; ``math.inf`` or ``"none"``: no limit.
    schema_policy : str or None
        What becomes of a batch with another schema: ``"strict"``, ``"evolve"`` or ``"new"``.
    validate : str or None
        What ``put`` checks in a batch: ``"basic"`` or ``"full"``.
    columns : Mapping of str to ColumnConfig
        Columns that differ, by name; read-only.
    """

    compression: str | None = None
    compression_level: int | None = None
    shuffle: bool | str | None = None
    chunk_rows: int | None = None
    strings: str | None = None
    chunk_bytes: int | None = None
    ring_bytes: int | None = None
    on_full: str | None = None
    put_timeout_s: float | None = None
    schema_policy: str | None = None
    validate: str | None = None
    columns: Mapping[str, ColumnConfig] = field(default_factory=dict, hash=False)

    if TYPE_CHECKING:  # what the fields hold is narrower than what is accepted for them

        def __init__(
            self,
            *,
            compression: str | None = ...,
            compression_level: int | None = ...,
            shuffle: bool | str | None = ...,
            chunk_rows: int | None = ...,
            strings: str | None = ...,
            chunk_bytes: int | str | None = ...,
            ring_bytes: int | str | None = ...,
            on_full: str | None = ...,
            put_timeout_s: float | str | None = ...,
            schema_policy: str | None = ...,
            validate: str | None = ...,
            columns: Mapping[str, ColumnConfig | Mapping[str, Any]] = ...,
        ) -> None: ...


@dataclass(frozen=True, slots=True)
class ResolvedColumn:
    """What holds for one column once all scopes are merged.

    Attributes
    ----------
    codec : Codec
        How its chunks are compressed.
    chunk_rows : int or None
        Rows in a chunk; None: chosen from the row size.
    strings : str
        How UTF-8 is stored: ``"vlen"``, ``"packed"`` or ``"fixed:N"``.
    """

    codec: Codec
    chunk_rows: int | None
    strings: str

    @property
    def fixed_bytes(self) -> int | None:
        """N of ``"fixed:N"``, in bytes; None for the other two."""
        return fixed_string_bytes(self.strings)


@dataclass(frozen=True, slots=True)
class ResolvedInstrument:
    """What holds for one instrument once all scopes are merged; hashable and picklable.

    Attributes
    ----------
    instrument_id : str
        The instrument.
    chunk_rows : int or None
        Rows in a chunk where the column has no own number; None: chosen from the row size.
    chunk_bytes : int or None
        Size aimed at for a chunk, in bytes, where ``chunk_rows`` is None; None: chosen.
    ring_bytes : int
        Size of each producer's ring, in bytes.
    on_full : str
        What a full ring means for ``put``: ``"block"``, ``"raise"`` or ``"drop_newest"``.
    put_timeout_s : float or None
        Longest wait of a ``put`` under ``"block"``, in seconds; None: as long as the storage lives.
    schema_policy : str
        What becomes of a batch with another schema: ``"strict"``, ``"evolve"`` or ``"new"``.
    validate : str
        What ``put`` checks in a batch: ``"basic"`` or ``"full"``.
    default_column : ResolvedColumn
        What holds for a column that nothing is set for.
    columns : tuple of (str, ResolvedColumn)
        The columns that something is set for, by name.
    """

    instrument_id: str
    chunk_rows: int | None
    chunk_bytes: int | None
    ring_bytes: int
    on_full: str
    put_timeout_s: float | None
    schema_policy: str
    validate: str
    default_column: ResolvedColumn
    columns: tuple[tuple[str, ResolvedColumn], ...] = ()

    def column(self, name: str) -> ResolvedColumn:
        """Return what holds for the column ``name``."""
        return dict(self.columns).get(name, self.default_column)

    def require_columns(self, names: Iterable[str]) -> None:
        """Check, once the schema is known, that every column that something is set for is in ``names``.

        Raises
        ------
        ConfigError
            A configured column does not exist; the message names the nearest that does.
        """
        known = list(names)
        where = f"instrument {self.instrument_id!r}"
        _refuse_unknown([name for name, _ in self.columns], known, where, "configured column")


#: The fields that hold configurations of the next narrower scope, by name.
_INNER: Mapping[str, type[Scope]] = {"instruments": InstrumentConfig, "columns": ColumnConfig}


def field_names(kind: type[Scope]) -> list[str]:
    """Return what can be set in a scope."""
    return [item.name for item in fields(kind)]  # type: ignore[arg-type]


def field_values(config: Scope) -> dict[str, Any]:
    """Return what is set in a scope, None included."""
    return {name: getattr(config, name) for name in field_names(type(config))}


def _refuse_unknown(given: Iterable[str], known: Iterable[str], where: str, what: str = "setting") -> None:
    known = list(known)
    for name in given:
        if name not in known:
            raise ConfigError(unknown_name(name, known, where, what))


def checked(kind: type[Scope], raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the values to keep for ``raw``, which sets fields of ``kind`` and was found at ``where``.

    Raises
    ------
    ConfigError
        A name is unknown or a value wrong; the message names ``where``, the name and what is accepted.
    """
    _refuse_unknown(raw, field_names(kind), where)
    values: dict[str, Any] = {}
    for name, value in raw.items():
        if name in _INNER:
            values[name] = _checked_inner(name, value, where)
        elif value is None and kind.inherits:
            values[name] = None  # inherits
        else:
            values[name] = SETTINGS[name].value(name, value, where)
    return values


def _checked_inner(name: str, raw: Any, where: str) -> Mapping[str, Any]:
    kind = _INNER[name]
    if not isinstance(raw, Mapping) or not all(isinstance(key, str) and key for key in raw):
        raise ConfigError(f"{where}: {name} = {raw!r} must be a mapping of names to {kind.__name__}")
    inner: dict[str, Scope] = {}
    for key, value in raw.items():
        place = f"{name[:-1]}.{key}]"  # the table of the TOML file, whatever the source
        place = f"{where[:-1]}.{place}" if where.endswith("]") else f"{where} [{place}"
        if isinstance(value, kind):
            inner[key] = value
        elif isinstance(value, Mapping):
            inner[key] = kind(**checked(kind, value, place))
        else:
            article = "an" if kind is InstrumentConfig else "a"
            raise ConfigError(
                f"{place}: {value!r} must be {article} {kind.__name__} or a mapping of its fields"
            )
    return MappingProxyType(inner)


def given_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` without the Nones: in a narrower scope they mean that nothing is set."""
    return {name: value for name, value in values.items() if value is not None}


def overlay(outer: Mapping[str, Any], inner: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``inner``'s values over ``outer``'s: the one rule for sources and for scopes.

    A level belongs to the compression that it was set with, and so does a bit shuffle, which most codecs
    lack: another compression leaves both behind.
    """
    merged = {**outer, **inner}
    if merged.get("compression") != outer.get("compression"):
        merged["compression_level"] = inner.get("compression_level")
        if merged.get("shuffle") == "bit":
            merged["shuffle"] = inner.get("shuffle", "auto")
    for name in _INNER.keys() & inner.keys() & outer.keys():
        merged[name] = _overlaid_inner(_INNER[name], outer[name], inner[name])
    return merged


def _overlaid_inner(
    kind: type[Scope], outer: Mapping[str, Any], inner: Mapping[str, Any]
) -> Mapping[str, Any]:
    merged = dict(outer)
    for key, config in inner.items():
        below = field_values(merged[key]) if key in merged else {}
        merged[key] = kind(**overlay(below, given_values(field_values(config))))
    return MappingProxyType(merged)


def resolved_column(scope: Mapping[str, Any], place: str = "") -> ResolvedColumn:
    """Return what holds for a column of the merged ``scope``; ``place`` begins the message of an error.

    Raises
    ------
    ConfigError
        The codec is unknown, or does not take the level or the shuffle.
    """
    text, level, shuffle = scope["compression"], scope["compression_level"], scope["shuffle"]
    try:
        codec = Codec.parse(text, DEFAULT_GZIP_LEVEL if level is None and text == "gzip" else level, shuffle)
    except ConfigError as error:
        raise ConfigError(f"{place}{error}") from None
    return ResolvedColumn(codec, scope["chunk_rows"], scope["strings"])


def _plain(value: Any) -> Any:
    if isinstance(value, Scope):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, PurePath):
        text = str(value)
        return f"./{text}" if text.startswith("~") else text  # only text is expanded
    return "none" if value == math.inf else value
