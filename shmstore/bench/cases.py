"""What is measured, as data: stream × codec × chunk × producers, each with a name. Where to, the run says.

Owns the list, and how one of it is selected. It knows no clock and no peer.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shmstore.bench.streams import (
    MIB,
    Adc,
    Frames,
    Recorded,
    Stream,
    Telemetry,
    Times,
    Words,
    made,
    total_bytes,
)
from shmstore.codec import Codec
from shmstore.config import StorageConfig
from shmstore.errors import ConfigError

#: Of a user's data, so many bytes are recorded at least.
_DATA_BYTES = 512 * MIB
#: Codecs that a user's data are tried with, if none are named.
DATA_CODECS = ("none", "lz4", "zstd", "gzip", "blosc:lz4", "bitshuffle:lz4")


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is measured.

    Attributes
    ----------
    name : str
        What it is selected by: ``"adc/gzip"``.
    stream : Stream
        What is recorded.
    codec : str
        As in `StorageConfig.compression`.
    batches : int
        How many batches, by all producers together.
    level : int or None
        Level of the codec.
    chunk_bytes : int or None
        Size of chunks aimed at; None: shmstore's own choice.
    producers : int
        Processes that produce, each its own instrument.
    shared : bool
        Whether they all feed one instrument instead.
    settings : tuple of (str, value)
        More fields of `StorageConfig`.
    bounds : tuple of (str, float)
        What is asked of it: at least so many times the rate of the limit or peer of that label.
    """

    name: str
    stream: Stream
    codec: str
    batches: int
    level: int | None = None
    chunk_bytes: int | None = None
    producers: int = 1
    shared: bool = False
    settings: tuple[tuple[str, Any], ...] = ()
    bounds: tuple[tuple[str, float], ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """All fields of `StorageConfig` that make it."""
        chosen = {
            "compression": self.codec,
            "compression_level": self.level,
            "chunk_bytes": self.chunk_bytes,
        }
        return {name: value for name, value in chosen.items() if value is not None} | dict(self.settings)

    @property
    def config(self) -> StorageConfig:
        """Its configuration, but for the place.

        Raises
        ------
        ConfigError
            Something in it is wrong.
        """
        return StorageConfig(**self.options)

    @property
    def parsed_codec(self) -> Codec:
        """Its codec."""
        return self.config.codec

    def scaled(self, share: float) -> Case:
        """Return it with so much less, or more, to record: no fewer than four batches for each producer."""
        return replace(self, batches=max(4 * self.producers, round(self.batches * share)))

    def with_settings(self, **settings: Any) -> Case:
        """Return it with more settings of the recording, which outrank its own."""
        return replace(self, settings=tuple((dict(self.settings) | settings).items()))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, for the JSON."""
        return {
            "name": self.name,
            "stream": str(self.stream),
            "codec": str(self.parsed_codec),
            "chunk_bytes": self.chunk_bytes,
            "producers": self.producers,
            "shared_instrument": self.shared,
            "settings": dict(self.settings),
            "bounds": dict(self.bounds),
        }


_ADC, _FRAMES, _TIMES, _WORDS = Adc(), Frames(), Times(), Words()
_ROWS, _SINGLE = Telemetry(rows=100, columns=4), Telemetry(rows=1, columns=8)
_NARROW = Telemetry(rows=125_000, columns=4, distinct=16, dtype="float32", within=1.0)
_WIDE = Telemetry(rows=1000, columns=500, distinct=40, dtype="float32", within=1.0)
_LIMIT = ("machine limit", 0.8)
_SMALL_RING = (("ring_bytes", 16 * MIB),)  # what a producer has put is still in the cache when it is written

#: All cases, but those of a user's own data.
CASES: tuple[Case, ...] = (
    Case("adc/none", _ADC, "none", 1024, settings=_SMALL_RING, bounds=(("pwrite", 0.95),)),
    Case("adc/gzip", _ADC, "gzip", 1024, level=6, bounds=(("h5py slices", 12), _LIMIT)),
    Case("adc/adaptive", _ADC, "adaptive", 1024, level=6),
    Case("adc/zstd", _ADC, "zstd", 1024, bounds=(("h5py slices", 1), _LIMIT)),
    Case("adc/lz4", _ADC, "lz4", 1024, bounds=(("h5py slices", 1), _LIMIT)),
    Case("adc/blosc-lz4", _ADC, "blosc:lz4", 1024, bounds=(("h5py slices", 1), _LIMIT)),
    Case("adc/zstd/256KiB-chunks", _ADC, "zstd", 1024, chunk_bytes=MIB // 4),
    Case("adc/zstd/4MiB-chunks", _ADC, "zstd", 1024, chunk_bytes=4 * MIB),
    Case("adc/zstd/8-producers", _ADC, "zstd", 1024, producers=8),
    Case("adc/zstd/8-producers-shared", _ADC, "zstd", 1024, producers=8, shared=True),
    Case("frames/none", _FRAMES, "none", 256, settings=_SMALL_RING),
    Case("frames/bitshuffle", _FRAMES, "bitshuffle:lz4", 256),
    Case("frames/lz4", _FRAMES, "lz4", 256, settings=(("shuffle", False),)),
    Case("frames/gzip-1", _FRAMES, "gzip", 256, level=1),
    Case("frames/zstd", _FRAMES, "zstd", 256),
    Case("telemetry/none", _ROWS, "none", 50_000, bounds=(("h5py slices", 30),)),
    Case("telemetry/zstd", _ROWS, "zstd", 50_000),
    Case("single-rows/none", _SINGLE, "none", 50_000),
    Case("narrow/zstd", _NARROW, "zstd", 256),
    Case("wide/zstd", _WIDE, "zstd", 256),
    Case("wide/none", _WIDE, "none", 256),
    Case("log/zstd", _WORDS, "zstd", 2000, settings=(("strings", "packed"),)),
    Case("log/gzip", _WORDS, "gzip", 2000, settings=(("strings", "packed"),)),
    Case("times/zstd", _TIMES, "zstd", 512),
    Case("times/gzip", _TIMES, "gzip", 512),
)


def select(cases: Iterable[Case], patterns: Sequence[str]) -> list[Case]:
    """Return the cases that any of the patterns fits; all, if there is none.

    Parameters
    ----------
    cases
        What is chosen from.
    patterns
        With ``*``, ``?`` or ``[``: as in a shell, for the whole name. Without: a part of the name.

    Raises
    ------
    ConfigError
        A pattern fits none; the message names those that there are.

    Examples
    --------
    >>> [case.name for case in select(CASES, ["times", "adc/?zip"])]
    ['adc/gzip', 'times/zstd', 'times/gzip']
    """
    known = list(cases)
    for pattern in patterns:
        if not any(_fits(case.name, pattern) for case in known):
            names = ", ".join(case.name for case in known)
            raise ConfigError(f"no case is called like {pattern!r}: take some of {names}")
    return [case for case in known if not patterns or any(_fits(case.name, one) for one in patterns)]


def _fits(name: str, pattern: str) -> bool:
    if any(letter in pattern for letter in "*?["):
        return fnmatch.fnmatchcase(name, pattern)
    return pattern in name


def data_cases(
    path: str,
    codecs: Sequence[str] = DATA_CODECS,
    producers: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> list[Case]:
    """Return cases for what a user's file holds, one for each codec.

    Parameters
    ----------
    path
        The file.
    codecs
        As in `StorageConfig.compression`.
    producers
        Processes that produce.
    settings
        More fields of `StorageConfig`.

    Raises
    ------
    InputError
        The file cannot be read, or holds no rows.
    ConfigError
        There is no such codec.
    """
    stream = Recorded(path)
    distinct = len(made(stream))
    rounds = -(-_DATA_BYTES // max(1, total_bytes(stream, distinct)))
    return [
        Case(
            f"{Path(path).stem}/{codec.replace(':', '-')}",
            stream,
            codec,
            # Batches of a few bytes: a count that takes seconds, not hours.
            min(rounds * distinct, max(100_000, distinct)),
            producers=producers,
            settings=tuple((settings or {}).items()),
        )
        for codec in codecs
    ]
