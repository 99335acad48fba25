"""What a column is compressed with: a frozen description, checked, with its HDF5 filters and its encoder.

Owns the names, levels and filter parameters of codecs. Knows neither h5py nor hdf5plugin: a codec that only
HDF5's own pipeline can run is known here by name, and made by the module that opens files.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from shmstore.errors import ConfigError

if TYPE_CHECKING:
    from shmstore.payload import Encoder

__all__ = ["Codec", "Filter"]


class _Family(NamedTuple):
    """What may be said about one codec."""

    filter_id: int | None
    levels: range | None = None
    level: int | None = None  # what None means
    inner: tuple[str, ...] = ()  # the first is the default
    shuffles: tuple[str, ...] = ("auto", "none", "byte")
    direct: bool = True


_BLOSC_CODES: Final = {"lz4": 1, "blosclz": 0, "lz4hc": 2, "zlib": 4, "zstd": 5}
_BITSHUFFLE_CODES: Final = {"lz4": 2, "zstd": 3}
_SHUFFLE_CODES: Final = {"none": 0, "byte": 1, "bit": 2}
_SHUFFLE_NAMES: Final = {"none": "", "byte": "+shuffle", "bit": "+bitshuffle"}
_ALL_SHUFFLES: Final = ("auto", "none", "byte", "bit")
_HDF5_SHUFFLE_ID: Final = 2


def _through_hdf5(filter_id: int, levels: range | None = None, level: int | None = None) -> _Family:
    return _Family(filter_id, levels, level, shuffles=("auto", "none"), direct=False)


# Ids: https://github.com/HDFGroup/hdf5_plugins/blob/master/docs/RegisteredFilterPlugins.md. The lower part
# are the remaining filters of hdf5plugin.
_FAMILIES: Final = {
    "none": _Family(None, shuffles=("auto", "none")),
    "gzip": _Family(1, range(10), 6),
    "zstd": _Family(32015, range(1, 23), 3),
    "lz4": _Family(32004, range(1, 13)),
    "blosc": _Family(32001, range(10), 5, tuple(_BLOSC_CODES), _ALL_SHUFFLES),
    "blosc2": _Family(32026, range(10), 5, tuple(_BLOSC_CODES), _ALL_SHUFFLES),
    "bitshuffle": _Family(32008, range(1, 23), 3, tuple(_BITSHUFFLE_CODES), ("auto", "bit")),
    "lzf": _Family(32000, direct=False),
    "bzip2": _through_hdf5(307, range(1, 10), 9),
    "fcidecomp": _through_hdf5(32018),
    "htj2k": _through_hdf5(32033),
    "sperr": _through_hdf5(32028),
    "sz": _through_hdf5(32017),
    "sz3": _through_hdf5(32024),
    "zfp": _through_hdf5(32013),
}
#: What stands in front of a codec, or alone for gzip, that may be eased while recording.
_ADAPTIVE: Final = "adaptive"
_BY_HDF5PLUGIN: Final = frozenset(("bzip2", "fcidecomp", "htj2k", "sperr", "sz", "sz3", "zfp"))


class Filter(NamedTuple):
    """One entry of a dataset's filter pipeline, always set as optional (``H5Z_FLAG_OPTIONAL``)."""

    id: int
    cd_values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Codec:
    """A codec, checked when it is made. Two that say the same are equal.

    Attributes
    ----------
    name : str
        ``"none"``, ``"gzip"``, ``"zstd"``, ``"lz4"``, ``"blosc"``, ``"blosc2"``, ``"bitshuffle"``,
        ``"lzf"``, or the name of another hdf5plugin filter.
    level : int or None
        None where the codec has no levels, or for lz4's fast mode. :meth:`parse` fills in defaults.
    shuffle : str
        ``"auto"`` (by bytes for elements of more than one), ``"none"``, ``"byte"``, or ``"bit"`` (Blosc,
        Blosc2).
    inner : str or None
        The codec inside Blosc, Blosc2 and bitshuffle.
    adaptive : bool
        Whether chunks may be encoded at a cheaper level, or stored as they are, while codec threads cannot
        keep up. Its filters are those of the codec that is not: they read all of it.

    Raises
    ------
    ConfigError
        A part is unknown or does not go with the rest; the message names the nearest that does.

    Examples
    --------
    >>> str(Codec.parse("gzip")), str(Codec.parse("blosc:zstd", level=3)), str(Codec.parse("none"))
    ('gzip-6+shuffle', 'blosc:zstd-3+shuffle', 'none')
    >>> str(Codec.parse("adaptive")), str(Codec.parse("adaptive:zstd", level=9))
    ('adaptive:gzip-6+shuffle', 'adaptive:zstd-9+shuffle')
    >>> Codec.parse("gzip", level=6, shuffle=False).filters(itemsize=2, chunk_nbytes=1024)
    (Filter(id=1, cd_values=(6,)),)
    """

    name: str
    level: int | None = None
    shuffle: str = "auto"
    inner: str | None = None
    adaptive: bool = False

    def __post_init__(self) -> None:
        family = _FAMILIES.get(self.name)
        if family is None:
            raise ConfigError(f"compression {self.name!r} is unknown: {_nearest(self.name, _FAMILIES)}")
        if self.inner is not None and not family.inner:
            raise ConfigError(f"compression {self.name!r} has no codec inside: leave out ':{self.inner}'")
        if family.inner and self.inner not in family.inner:
            remedy = _nearest(self.inner or "", family.inner)
            raise ConfigError(f"compression {self.name!r} has no codec {self.inner!r}: {remedy}")
        if self.shuffle not in family.shuffles:
            remedy = f"take one of {', '.join(family.shuffles)}"
            raise ConfigError(f"compression {self.name!r} has no shuffle {self.shuffle!r}: {remedy}")
        levels = self._levels
        if self.level is not None and levels is None:
            raise ConfigError(f"compression {self._full_name!r} has no levels: leave out level {self.level}")
        if self.level is not None and levels is not None and self.level not in levels:
            remedy = f"take one from {levels[0]} to {levels[-1]}"
            raise ConfigError(f"compression {self._full_name!r} has no level {self.level}: {remedy}")
        if self.adaptive and self.name == "none":
            raise ConfigError(f"compression {self.spelling!r} has nothing to ease: take 'none'")
        if self.adaptive and not self.direct:
            raise ConfigError(
                f"compression {self.spelling!r} runs inside HDF5, where it cannot be eased: take "
                f"{self._full_name!r}, or 'adaptive' with gzip, zstd, lz4, blosc, blosc2 or bitshuffle"
            )

    @classmethod
    def parse(cls, text: str, level: int | None = None, shuffle: str | bool | None = None) -> Codec:
        """Make a codec from what a user writes.

        Parameters
        ----------
        text
            ``"gzip"``, ``"blosc:zstd"``, ``"bitshuffle:lz4"``; in any case. Blosc, Blosc2 and bitshuffle
            alone mean their lz4. ``"adaptive:"`` before it makes it adaptive; ``"adaptive"`` alone means
            gzip.
        level
            None: gzip 6, zstd 3, Blosc 5, bitshuffle:zstd 3, bzip2 9, lz4 its fast mode.
        shuffle
            As the attribute; True is ``"byte"`` (for bitshuffle ``"bit"``), False ``"none"``, None
            ``"auto"``.

        Raises
        ------
        ConfigError
            As for the class.
        """
        name, colon, inside = text.strip().lower().partition(":")
        adaptive = name == _ADAPTIVE
        if adaptive:
            name, colon, inside = inside.partition(":") if colon else ("gzip", "", "")
        family = _FAMILIES.get(name)
        if family is None:
            known = _FAMILIES if adaptive else (*_FAMILIES, _ADAPTIVE)
            raise ConfigError(f"compression {text!r} is unknown: {_nearest(name, known)}")
        inner = inside if colon else family.inner[0] if family.inner else None
        if shuffle is None or name == "none":
            wanted = "auto"
        elif isinstance(shuffle, str):
            wanted = shuffle
        else:
            wanted = "none" if not shuffle else "bit" if name == "bitshuffle" else "byte"
        codec = cls(name, level, wanted, inner, adaptive)
        return replace(codec, level=codec._level)

    @property
    def direct(self) -> bool:
        """Whether chunks are encoded outside HDF5.

        False for what only HDF5's pipeline runs, one chunk at a time: lzf (there is no library of it with
        wheels) and the filters that hdf5plugin knows by name.
        """
        return _FAMILIES[self.name].direct

    def eased(self) -> tuple[Codec, ...]:
        """Return the codec, not adaptive, then with ever cheaper levels; the same filters read all of them.

        Each has a third of the level before, which takes half the time or less where the level matters
        (times, words; gzip and zstd, from all levels): a finer ladder would reach its end later.

        Examples
        --------
        >>> [str(codec) for codec in Codec.parse("adaptive", shuffle=False).eased()]
        ['gzip-6', 'gzip-2', 'gzip-1']
        """
        level = self._level
        found = [replace(self, level=level, adaptive=False)]
        while level is not None and level > 1:
            level = max(1, level // 3)
            found.append(replace(found[0], level=level))
        return tuple(found)

    def filter_fields(self) -> dict[str, Any]:
        """Return what makes its filters, as JSON can say it: all arguments of the class but ``adaptive``."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "adaptive"}

    def filters(self, itemsize: int, chunk_nbytes: int) -> tuple[Filter, ...]:
        """The filters of a dataset's creation property list, in order; none of them for ``"none"``.

        Parameters
        ----------
        itemsize
            Bytes of one element, as HDF5 stores it.
        chunk_nbytes
            Bytes of one chunk.

        Raises
        ------
        ConfigError
            A filter whose parameters hdf5plugin makes: bzip2, zfp, sz and their like.
        """
        if self.name in _BY_HDF5PLUGIN:
            raise ConfigError(
                f"compression {self.name!r} gets its filter from hdf5plugin: use that in its place"
            )
        family = _FAMILIES[self.name]
        if family.filter_id is None:
            return ()
        shuffle = self._shuffle_for(itemsize)
        cd_values: tuple[int, ...] = ()
        if self.name in {"gzip", "zstd"}:
            cd_values = (self._level or 0,)
        elif self.name == "lz4":
            cd_values = (0,)  # one block for the whole chunk
        elif self.name in {"blosc", "blosc2"}:
            # The filter itself fills in the first four at creation; readers go by the payload.
            versions = (2, 2) if self.name == "blosc" else (1, 0)
            code = _BLOSC_CODES[str(self.inner)]
            cd_values = (*versions, itemsize, chunk_nbytes, self._level or 0, _SHUFFLE_CODES[shuffle], code)
        elif self.name == "bitshuffle":
            from shmstore.shuffle import bitshuffle_block

            # The filter itself puts its version and the item size in front when the dataset is created.
            cd_values = (bitshuffle_block(itemsize), _BITSHUFFLE_CODES[str(self.inner)])
            if self._level is not None:
                cd_values += (self._level,)
        own = Filter(family.filter_id, cd_values)
        if shuffle == "byte" and self.name not in {"blosc", "blosc2"}:
            return (Filter(_HDF5_SHUFFLE_ID, (itemsize,)), own)
        return (own,)

    def encoder(self, itemsize: int, chunk_nbytes: int) -> Encoder | None:
        """What encodes the chunks of one dataset; None for ``"none"``: a chunk is its own payload.

        Of an adaptive codec, at its own level.

        Parameters
        ----------
        itemsize
            Bytes of one element, as HDF5 stores it.
        chunk_nbytes
            Bytes of one chunk: a whole number of elements.

        Raises
        ------
        ConfigError
            The codec is not :attr:`direct`.
        ValueError
            The chunk is no whole number of elements.
        """
        if self.name == "none":
            return None
        if not self.direct:
            raise ConfigError(
                f"compression {self.name!r} goes through HDF5's own pipeline: it has no encoder"
            )
        if itemsize < 1 or chunk_nbytes < 1 or chunk_nbytes % itemsize:
            raise ValueError(
                f"a chunk of {chunk_nbytes} bytes is no whole number of elements of {itemsize} bytes"
            )
        from shmstore.payload import build_encoder  # the compression libraries: only who writes pays for them

        filters = len(self.filters(itemsize, chunk_nbytes))
        return build_encoder(
            self.name, self.inner, self._level, self._shuffle_for(itemsize), itemsize, chunk_nbytes, filters
        )

    def __str__(self) -> str:
        level = "" if self.level is None else f"-{self.level}"
        # For elements of several bytes, and for bitshuffle it goes without saying.
        transposition = "" if self.name == "bitshuffle" else _SHUFFLE_NAMES[self._shuffle_for(itemsize=2)]
        return f"{self.spelling}{level}{transposition}"

    @property
    def spelling(self) -> str:
        """What :meth:`parse` takes for it, besides level and shuffle."""
        return f"{_ADAPTIVE}:{self._full_name}" if self.adaptive else self._full_name

    @property
    def _full_name(self) -> str:
        return f"{self.name}:{self.inner}" if self.inner else self.name

    @property
    def _levels(self) -> range | None:
        if self.name == "bitshuffle" and self.inner == "lz4":
            return None
        return _FAMILIES[self.name].levels

    @property
    def _level(self) -> int | None:
        """The level, where None has become the codec's default."""
        return _FAMILIES[self.name].level if self.level is None and self._levels is not None else self.level

    def _shuffle_for(self, itemsize: int) -> str:
        """``"none"``, ``"byte"`` or ``"bit"`` for elements of this size."""
        if self.name == "bitshuffle" or self.shuffle == "bit":
            return "bit"
        if self.shuffle == "none" or itemsize == 1 or "byte" not in _FAMILIES[self.name].shuffles:
            return "none"
        return "byte"


def _nearest(word: str, known: Iterable[str]) -> str:
    """The remedy: the nearest known name, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"take one of {', '.join(names)}"
