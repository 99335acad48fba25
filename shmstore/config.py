"""The configuration of a recording: frozen, checked and complete values, and where they come from.

Highest first: keywords, environment ``SHMSTORE_*``, the TOML file, defaults; within that the narrower scope
wins: column, instrument, storage. What a single value may be is :mod:`shmstore.settings`' to say, which level
a codec takes is :mod:`shmstore.codec`'s, how file and environment are spelled is
:mod:`shmstore.configfile`'s. This module knows no ring, no writer and no HDF5.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from shmstore.codec import Codec
from shmstore.configfile import ConfigWarning, environment_layers, file_layers
from shmstore.errors import ConfigError
from shmstore.scope import (
    ColumnConfig,
    InstrumentConfig,
    ResolvedColumn,
    ResolvedInstrument,
    Scope,
    checked,
    field_names,
    field_values,
    given_values,
    overlay,
    resolved_column,
)
from shmstore.settings import MIB, SETTINGS

__all__ = [
    "ColumnConfig",
    "ConfigWarning",
    "InstrumentConfig",
    "ResolvedColumn",
    "ResolvedInstrument",
    "StorageConfig",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig(Scope):
    """The whole configuration of a storage.

    Sizes are numbers of bytes or text such as ``"64MiB"`` (powers of 1024) and ``"500kB"`` (of 1000). Naming
    a compression, in whatever scope or source, leaves a level (and a ``"bit"`` shuffle) that was set for
    another one behind: ``compression="zstd"`` over gzip's level 9 is zstd at its own level.

    Attributes
    ----------
    output_dir : Path
        Folder of the file; a leading ``~`` in text is the home folder. Default: the working directory.
    filename : str or None
        Name of the file. Default None: ``daq_session_YYYYMMDD_HHMMSS.h5``, local time.
    name : str or None
        Name of the session for ``connect()``. Default None: generated.
    application : str or None
        What is stamped as ``application``. Default None: ``"shmstore X.Y.Z"``.
    compression : str
        Codec: ``"none"``, ``"gzip"``, ``"zstd"``, ``"lz4"``, ``"blosc:zstd"``, … Default ``"gzip"``.
        ``"adaptive"`` (gzip) and ``"adaptive:zstd"``, … go to cheaper levels, and then to chunks stored as
        they are, while codec threads cannot keep up and a ring fills; and back when there is room again.
    compression_level : int or None
        Level of the codec. Default None: 6 for gzip, for others what the filter itself takes.
    shuffle : bool or str
        ``"auto"``, ``"none"`` (False), ``"byte"`` (True) or ``"bit"``. Default ``"auto"``: where it helps.
    strings : str
        How UTF-8 is stored: ``"vlen"``, ``"packed"`` or ``"fixed:N"`` (N bytes). Default ``"vlen"``.
    chunk_rows : int or None
        Rows in a chunk; goes before ``chunk_bytes``. Default None: chosen from row size and rate.
    chunk_bytes : int or None
        Size aimed at for a chunk, in bytes. Default None: chosen, 128 KiB to 1 MiB.
    codec_threads : int
        Threads that compress. Default 0: one for each usable core, see :attr:`codec_thread_count`.
    ring_bytes : int
        Size of each producer's ring, in bytes. Default 64 MiB.
    on_full : str
        What a full ring means for ``put``: ``"block"``, ``"raise"`` or ``"drop_newest"``. Default
        ``"block"``.
    put_timeout_s : float or None
        Longest wait of a ``put`` under ``"block"``, in seconds; None, ``math.inf`` or ``"none"``: as long as
        the storage lives. Default 60.
    schema_policy : str
        What becomes of a batch with another schema than its instrument: ``"strict"`` refuses it, ``"evolve"``
        takes new nullable columns, columns left out and other widths of integers and floats, ``"new"``
        goes on in another group of the file. Default ``"strict"``.
    validate : str
        What ``put`` checks in a batch: ``"basic"``, the schema and what is needed to store it; ``"full"``,
        every value too, and that nothing is null that is declared not null, at any depth. Default
        ``"basic"``.
    commit_interval_ms : float
        Longest time between commits while rows wait, in milliseconds. Default 50.
    commit_bytes : int
        A commit is made after this many bytes, however early. Default 16 MiB.
    auto_flush_interval_secs : float
        Time between durable flushes, in seconds; 0: only on ``flush()`` and ``close()``. Default 1.
    close_timeout_s : float
        Longest wait of ``close()``, in seconds. Default 60.
    writer_deaths : int
        How often in a row, with no commit in between, the writer may die and be replaced; after one more the
        recording is broken. 0: it is never replaced. Default 8.
    recoverable : bool
        Whether what was accepted survives the death of any process: a journal is kept beside the file, and a
        writer that dies is replaced. Without it recording is a little faster (benchmarks/README.md), and a
        writer that dies ends the recording with what was in the file.
    disk_warn_bytes : int
        With less left on the disk of ``output_dir`` when a recording starts, a warning is logged. Default
        1 GiB.
    disk_reserve_bytes : int
        With less left on the disk no recording starts, and one that runs leaves what comes in the rings until
        there is more. Default 32 MiB.
    spill_dir : Path or None
        Folder on another disk. When a recording is given up, what was accepted and is not in the file is
        copied there out of shared memory, for ``shmstore recover``.
    disk_patience_s : float or None
        How long a failing disk is tried again, in seconds from the first failure after the last commit; 0:
        not at all; None, ``math.inf`` or ``"none"``: for ever. Default 60.
    writer_hang_s : float or None
        After how long without any progress, in seconds, the writer is taken for hung, killed and replaced,
        also while it starts; not while it waits for the disk to sync. None, ``math.inf`` or ``"none"``:
        never. Default 60.
    standby : bool
        Whether a second writer process is kept ready, so that a replacement takes milliseconds rather than
        half a second, for about 100 MB of memory. Default True.
    recover_at_start : bool
        Whether recordings in the output folder whose processes have died are recovered by a process beside,
        once the new one has begun. Default True.
    shm_dir : Path
        Folder for shared memory. Default ``/dev/shm``.
    instruments : Mapping of str to InstrumentConfig
        Instruments that differ, by id; read-only. Default: none.

    Raises
    ------
    ConfigError
        A field is unknown, or a value or a combination wrong; the message names it and what is accepted.

    Examples
    --------
    >>> config = StorageConfig(
    ...     output_dir="data", ring_bytes="8MiB", instruments={"cam": {"compression": "zstd"}}
    ... )
    >>> config.ring_bytes, config.instrument("cam").column("frame").codec.name, config.codec.level
    (8388608, 'zstd', 6)
    """

    inherits: ClassVar[bool] = False

    output_dir: Path = Path()
    filename: str | None = None
    name: str | None = None
    application: str | None = None
    compression: str = "gzip"
    compression_level: int | None = None
    shuffle: bool | str = "auto"
    strings: str = "vlen"
    chunk_rows: int | None = None
    chunk_bytes: int | None = None
    codec_threads: int = 0
    ring_bytes: int = 64 * MIB
    on_full: str = "block"
    put_timeout_s: float | None = 60.0
    schema_policy: str = "strict"
    validate: str = "basic"
    commit_interval_ms: float = 50.0
    commit_bytes: int = 16 * MIB
    auto_flush_interval_secs: float = 1.0
    close_timeout_s: float = 60.0
    writer_deaths: int = 8
    recoverable: bool = True
    disk_warn_bytes: int = 1024 * MIB
    disk_reserve_bytes: int = 32 * MIB
    spill_dir: Path | None = None
    disk_patience_s: float | None = 60.0
    writer_hang_s: float | None = 60.0
    standby: bool = True
    recover_at_start: bool = True
    shm_dir: Path = Path("/dev/shm")
    instruments: Mapping[str, InstrumentConfig] = field(default_factory=dict, hash=False)

    if TYPE_CHECKING:  # what the fields hold is narrower than what is accepted for them

        def __init__(
            self,
            *,
            output_dir: str | os.PathLike[str] = ...,
            filename: str | None = ...,
            name: str | None = ...,
            application: str | None = ...,
            compression: str = ...,
            compression_level: int | None = ...,
            shuffle: bool | str = ...,
            strings: str = ...,
            chunk_rows: int | None = ...,
            chunk_bytes: int | str | None = ...,
            codec_threads: int = ...,
            ring_bytes: int | str = ...,
            on_full: str = ...,
            put_timeout_s: float | str | None = ...,
            schema_policy: str = ...,
            validate: str = ...,
            commit_interval_ms: float = ...,
            commit_bytes: int | str = ...,
            auto_flush_interval_secs: float = ...,
            close_timeout_s: float = ...,
            writer_deaths: int = ...,
            recoverable: bool = ...,
            disk_warn_bytes: int | str = ...,
            disk_reserve_bytes: int | str = ...,
            spill_dir: str | os.PathLike[str] | None = ...,
            disk_patience_s: float | str | None = ...,
            writer_hang_s: float | str | None = ...,
            standby: bool = ...,
            recover_at_start: bool = ...,
            shm_dir: str | os.PathLike[str] = ...,
            instruments: Mapping[str, InstrumentConfig | Mapping[str, Any]] = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        """Check every field, then every codec that the scopes make together."""
        Scope.__post_init__(self)
        for name in ("put_timeout_s", "disk_patience_s", "writer_hang_s"):
            if getattr(self, name) == math.inf:
                object.__setattr__(self, name, None)
        resolved_column(field_values(self))
        for instrument_id in self.instruments:
            self.instrument(instrument_id)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        **overrides: Any,
    ) -> Self:
        """Merge, highest first: ``overrides``, environment ``SHMSTORE_*``, the TOML file, defaults.

        The file has the tables ``[storage]``, ``[instrument.<id>]`` and ``[instrument.<id>.column.<name>]``.
        The environment sets what ``[storage]`` sets (``SHMSTORE_OUTPUT_DIR``, …); an empty variable counts as
        unset. Each source must be right over those below it, also where a higher one outranks it.
        ``instruments`` among the overrides is merged into those of the file, setting by setting. Relative
        paths are the program's, not the file's.

        Parameters
        ----------
        path
            The TOML file. By default ``shmstore.toml`` in the working directory, if there is one.
        environ
            In place of ``os.environ``.
        **overrides
            Fields of this class.

        Raises
        ------
        ConfigError
            The file cannot be read or is no TOML; a key or keyword is unknown; a value is wrong. The message
            names file and table, variable, or keyword.

        Warns
        -----
        ConfigWarning
            An unknown ``SHMSTORE_*`` variable is set.
        """
        config = cls()
        for where, values in file_layers(path):
            config = config._overlaid(values, where)
        known = [name for name in field_names(cls) if name in SETTINGS]
        for where, name, text in environment_layers(os.environ if environ is None else environ, known):
            config = config._overlaid({name: SETTINGS[name].text(name, text, where)}, where)
        return config._overlaid(overrides, "keyword")

    def replace(self, **overrides: Any) -> Self:
        """Return this configuration with some fields replaced; ``instruments`` replaces all of them.

        Raises
        ------
        ConfigError
            As the class itself.
        """
        kept = {**field_values(self), "instruments": {} if "instruments" in overrides else self.instruments}
        return type(self)(**kept)._overlaid(overrides, "keyword")

    def _overlaid(self, values: Mapping[str, Any], where: str) -> Self:
        merged = overlay(field_values(self), checked(StorageConfig, values, where))
        try:
            return type(self)(**merged)
        except ConfigError as error:  # the values are right one by one: it is what they make together
            separator = " " if str(error).startswith("[") else ": "
            raise ConfigError(f"{where}{separator}{error}") from None

    @property
    def codec(self) -> Codec:
        """The codec of every column that nothing else is set for."""
        return resolved_column(field_values(self)).codec

    @property
    def codec_thread_count(self) -> int:
        """``codec_threads``, where 0 becomes the number of cores that this process may use; at least 1."""
        return self.codec_threads or len(os.sched_getaffinity(0)) or 1

    def instrument(self, instrument_id: str, **options: Any) -> ResolvedInstrument:
        """Return what holds for an instrument: the storage's settings, under its own, under ``options``.

        Parameters
        ----------
        instrument_id
            The instrument; it need not be configured.
        **options
            Fields of :class:`InstrumentConfig`, which outrank its configuration; None inherits. What is set
            for a column outranks what is set for the instrument.

        Raises
        ------
        ConfigError
            An option is unknown, or a value or a combination wrong.
        """
        place = f"[instrument.{instrument_id}"
        own = self.instruments.get(instrument_id, InstrumentConfig())
        scope = overlay(field_values(self), given_values(field_values(own)))
        scope = overlay(scope, given_values(checked(InstrumentConfig, options, f"{place}]")))
        columns = []
        for name, column in scope["columns"].items():
            inner = overlay(scope, given_values(field_values(column)))
            columns.append((name, resolved_column(inner, f"{place}.column.{name}]: ")))
        return ResolvedInstrument(
            instrument_id=instrument_id,
            chunk_rows=scope["chunk_rows"],
            chunk_bytes=scope["chunk_bytes"],
            ring_bytes=scope["ring_bytes"],
            on_full=scope["on_full"],
            put_timeout_s=None if scope["put_timeout_s"] == math.inf else scope["put_timeout_s"],
            schema_policy=scope["schema_policy"],
            validate=scope["validate"],
            default_column=resolved_column(scope, f"{place}]: "),
            columns=tuple(columns),
        )
