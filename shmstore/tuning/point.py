"""Points: one value for each of the settings that are tuned. Frozen values, that know no measurement."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from shmstore.codec import Codec
from shmstore.config import StorageConfig
from shmstore.settings import spelled

#: The settings that are tuned together, as the codec.
CODEC_SETTINGS = ("compression", "compression_level", "shuffle")
#: Those that an instrument can have for itself; the others are the whole storage's.
INSTRUMENT_SETTINGS = (*CODEC_SETTINGS, "chunk_bytes", "ring_bytes")


@dataclass(frozen=True, slots=True)
class Point:
    """One value for each setting that is tuned; the names and defaults are those of `StorageConfig`.

    Attributes
    ----------
    compression : str
        Codec.
    compression_level : int or None
        Its level; None: its own.
    shuffle : str
        ``"auto"`` or ``"bit"``, ….
    chunk_bytes : int or None
        Size aimed at for a chunk, in bytes; None: by the rate that is seen.
    codec_threads : int
        Threads that compress; 0: one for each core.
    ring_bytes : int
        Size of each producer's ring, in bytes.
    commit_bytes : int
        A commit is made after so many bytes.
    commit_interval_ms : float
        Longest time between commits, in milliseconds.

    Examples
    --------
    >>> point = Point("zstd", 1, chunk_bytes=1 << 20)
    >>> str(point.codec), point.shown("chunk_bytes"), point.shown("codec_threads")
    ('zstd-1+shuffle', '1 MiB', 'one a core')
    """

    compression: str = "gzip"
    compression_level: int | None = None
    shuffle: str = "auto"
    chunk_bytes: int | None = None
    codec_threads: int = 0
    ring_bytes: int = 64 << 20
    commit_bytes: int = 16 << 20
    commit_interval_ms: float = 50.0

    @classmethod
    def of(cls, config: StorageConfig, instrument_id: str) -> Point:
        """Return what a configuration says for an instrument."""
        resolved = config.instrument(instrument_id)
        codec = resolved.default_column.codec
        return cls(
            compression=codec.spelling,
            compression_level=codec.level,
            shuffle=codec.shuffle,
            chunk_bytes=resolved.chunk_bytes,
            codec_threads=config.codec_threads,
            ring_bytes=resolved.ring_bytes,
            commit_bytes=config.commit_bytes,
            commit_interval_ms=config.commit_interval_ms,
        )

    @property
    def codec(self) -> Codec:
        """The codec."""
        return Codec.parse(self.compression, self.compression_level, self.shuffle)

    def __str__(self) -> str:
        shown = self.shown
        return (
            f"{self.codec}, chunks {shown('chunk_bytes')}, threads {shown('codec_threads')}, ring "
            f"{shown('ring_bytes')}, commits {shown('commit_bytes')} or {shown('commit_interval_ms')}"
        )

    def options(self) -> dict[str, Any]:
        """Return it as fields of `StorageConfig`."""
        return asdict(self)

    def shown(self, setting: str) -> str:
        """Return the value of a setting (or of ``"codec"``) for people."""
        value = getattr(self, setting)
        if setting == "codec":
            return str(value)
        if value is None:
            return "by rate" if setting == "chunk_bytes" else "its own"
        if setting.endswith("_bytes"):
            return spelled(value)
        if setting == "codec_threads" and value == 0:
            return "one a core"
        return f"{value:g} ms" if setting.endswith("_ms") else str(value)
