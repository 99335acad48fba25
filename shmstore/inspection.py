"""What a recording's file holds and what it costs: instruments, columns, datasets, chunks, filters, bytes.

Owns the report; reads no values. It sees HDF5 through the handles that `Recording` gives.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from shmstore.errors import IncompleteFileError
from shmstore.layout import Layout, Stream
from shmstore.opening import naming
from shmstore.reader import Recording
from shmstore.recorded import Instrument

__all__ = ["ColumnReport", "DatasetReport", "FileReport", "InstrumentReport", "describe"]

#: Names of filters by their registered ids (HDF Group, hdf5_plugins, docs/RegisteredFilterPlugins.md).
_FILTERS = {
    1: "deflate",
    2: "shuffle",
    3: "fletcher32",
    4: "szip",
    5: "nbit",
    6: "scaleoffset",
    307: "bzip2",
    32000: "lzf",
    32001: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32013: "zfp",
    32015: "zstd",
    32017: "sz",
    32018: "fcidecomp",
    32024: "sz3",
    32026: "blosc2",
    32028: "sperr",
    32033: "htj2k",
}
_BLOSC_CODES = {0: "blosclz", 1: "lz4", 2: "lz4hc", 3: "snappy", 4: "zlib", 5: "zstd"}
_BLOSC_SHUFFLES = {1: "shuffle", 2: "bitshuffle"}
_BITSHUFFLE_CODES = {2: "lz4", 3: "zstd"}


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """One dataset.

    Attributes
    ----------
    role : str
        ``"values"``, ``"validity"``, ``"offsets"``, ``"chars"``, …
    path : str
        Absolute path in the file.
    dtype : str
        Type of its items; ``"utf8"`` and ``"bytes"`` are HDF5's variable-length types.
    shape, chunk_shape : tuple of int
        Extent, and that of one chunk; no chunk shape if it is stored in one piece.
    chunks : int
        Chunks in the file.
    filters : str
        As in ``"shuffle, deflate 6"``; empty if there are none.
    storage_bytes : int
        Bytes in the file; of variable-length types the references only.
    raw_bytes : int
        Bytes of its items, unfiltered; of variable-length types the references only.
    ratio : float or None
        ``raw_bytes / storage_bytes``; ``None`` if nothing is stored, and for variable-length types.
    """

    role: str
    path: str
    dtype: str
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...] | None
    chunks: int
    filters: str
    storage_bytes: int
    raw_bytes: int
    ratio: float | None


@dataclass(frozen=True, slots=True)
class ColumnReport:
    """One column: name, Arrow type, encoding (``"plain"``, ``"packed"``, …) and the datasets that exist."""

    name: str
    type: str
    encoding: str
    datasets: tuple[DatasetReport, ...]


@dataclass(frozen=True, slots=True)
class InstrumentReport:
    """One instrument.

    Attributes
    ----------
    instrument_id : str
        Its id.
    rows : int
        Rows that can be read; 0 if there is a problem.
    metadata : dict
        As it was set.
    columns : tuple of ColumnReport
        In the order of the schema; empty as long as nothing was recorded.
    storage_bytes, raw_bytes, ratio
        Sums over its datasets; the ratio leaves variable-length types out.
    problem : str or None
        Why it cannot be read.
    """

    instrument_id: str
    rows: int
    metadata: dict[str, Any]
    columns: tuple[ColumnReport, ...]
    storage_bytes: int
    raw_bytes: int
    ratio: float | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class FileReport:
    """A whole recording; ``str()`` is for people.

    Attributes
    ----------
    path : str
        The file.
    file_bytes : int
        Its size.
    state : str
        ``"recording"``, ``"complete"``, ``"partial"`` or ``"aborted"``.
    created_at : str
        ISO 8601, with zone.
    application : str
        What wrote it.
    metadata : dict
        The session's, as it was set.
    accounting : dict or None
        As the file has it; ``None`` until the recording is closed.
    instruments : tuple of InstrumentReport
        In the order of their appearance.
    """

    path: str
    file_bytes: int
    state: str
    created_at: str
    application: str
    metadata: dict[str, Any]
    accounting: dict[str, Any] | None
    instruments: tuple[InstrumentReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; bytes become hexadecimal text."""
        content: dict[str, Any] = _plain(self)
        return content

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.state}, {_size(self.file_bytes)}",
            f"  created {self.created_at} by {self.application}",
            *(f"  {key} = {_shown(value)}" for key, value in self.metadata.items()),
        ]
        for instrument in self.instruments:
            lines += _instrument_lines(instrument)
        if self.accounting is not None:
            lines.append("accounting: " + json.dumps(self.accounting, ensure_ascii=False))
        return "\n".join(lines)


def describe(path: str | os.PathLike[str]) -> FileReport:
    """Describe a recording: finished, live, or left behind by a writer that was killed. Reads no values.

    Raises
    ------
    StorageError
        The system refuses: no such file, no permission; ``errno`` is kept.
    IncompleteFileError
        It is no shmstore recording, or damaged as a whole; damage to one instrument is in the report.
    """
    with Recording(path) as recording:
        instruments = tuple(_describe_instrument(recording, recording[name]) for name in recording)
        return FileReport(
            path=str(recording.path),
            file_bytes=recording.path.stat().st_size,
            state=recording.state,
            created_at=recording.created_at.isoformat(),
            application=recording.application,
            metadata=recording.metadata,
            accounting=recording.accounting,
            instruments=instruments,
        )


def _describe_instrument(recording: Recording, instrument: Instrument) -> InstrumentReport:
    rows, metadata, problem = 0, {}, None
    columns: tuple[ColumnReport, ...] = ()
    try:
        metadata = instrument.metadata
        layout = instrument.layout
        if layout is not None:
            columns = recording.opened.look(partial(_describe_columns, recording, instrument, layout))
        rows = instrument.num_rows
    except IncompleteFileError as error:
        problem = str(error)
    datasets = [dataset for column in columns for dataset in column.datasets]
    filtered = [dataset for dataset in datasets if dataset.dtype not in ("utf8", "bytes")]
    return InstrumentReport(
        instrument.instrument_id,
        rows,
        metadata,
        columns,
        storage_bytes=sum(dataset.storage_bytes for dataset in datasets),
        raw_bytes=sum(dataset.raw_bytes for dataset in datasets),
        ratio=_ratio(sum(item.raw_bytes for item in filtered), sum(item.storage_bytes for item in filtered)),
        problem=problem,
    )


def _describe_columns(
    recording: Recording, instrument: Instrument, layout: Layout, file: Any
) -> tuple[ColumnReport, ...]:
    with naming(recording.path, f"instrument {instrument.instrument_id!r}"):
        group = file[instrument.link]
        reports = []
        for column in layout.columns:
            found = [(stream, group[stream.path]) for stream in column.streams if stream.path in group]
            datasets = tuple(_describe_dataset(stream, dataset) for stream, dataset in found)
            type_ = str(layout.schema.field(column.index).type)
            reports.append(ColumnReport(column.name, type_, column.encoding, datasets))
        return tuple(reports)


def _describe_dataset(stream: Stream, dataset: Any) -> DatasetReport:
    stored, raw = dataset.id.get_storage_size(), math.prod(dataset.shape) * dataset.dtype.itemsize
    if stream.variable:
        raw = math.prod(dataset.shape) * stream.item_bytes
    return DatasetReport(
        role=stream.role,
        path=dataset.name,
        dtype=stream.dtype if stream.dtype.startswith(("utf8", "bytes")) else str(dataset.dtype),
        shape=tuple(map(int, dataset.shape)),
        chunk_shape=dataset.chunks and tuple(map(int, dataset.chunks)),
        chunks=dataset.id.get_num_chunks() if dataset.chunks else 0,
        filters=", ".join(_filters(dataset.id.get_create_plist())),
        storage_bytes=stored,
        raw_bytes=raw,
        ratio=None if stream.variable else _ratio(raw, stored),
    )


def _filters(properties: Any) -> Iterable[str]:
    for index in range(properties.get_nfilters()):
        number, _, values, name = properties.get_filter(index)
        yield " ".join(
            [
                _FILTERS.get(number) or name.decode("utf-8", "replace") or str(number),
                *_options(number, values),
            ]
        )


def _options(number: int, values: tuple[int, ...]) -> list[str]:
    """Return what matters of a filter's values; where it stands is the filter's own convention."""
    if number in (1, 32015) and values:
        return [str(values[0])]
    if number in (32001, 32026) and len(values) >= 7:
        return [
            _BLOSC_CODES.get(values[6], "?"),
            str(values[4]),
            *filter(None, [_BLOSC_SHUFFLES.get(values[5])]),
        ]
    if number == 32008 and len(values) >= 5:
        return [*filter(None, [_BITSHUFFLE_CODES.get(values[4])]), *map(str, values[5:6])]
    return []


def _ratio(raw: int, stored: int) -> float | None:
    return raw / stored if stored else None


# -- text -----------------------------------------------------------------------------------------------


def _instrument_lines(instrument: InstrumentReport) -> list[str]:
    ratio = f", ratio {instrument.ratio:.2f}" if instrument.ratio else ""
    lines = [f"{instrument.instrument_id}: {instrument.rows} rows, {_size(instrument.storage_bytes)}{ratio}"]
    lines += [f"  {key} = {_shown(value)}" for key, value in instrument.metadata.items()]
    if instrument.problem:
        lines.append(f"  problem: {instrument.problem}")
    for column in instrument.columns:
        lines.append(f"  {column.name}: {column.type} ({column.encoding})")
        for dataset in column.datasets:
            chunks = f", {dataset.chunks} chunks of {dataset.chunk_shape}" if dataset.chunk_shape else ""
            filters = f", {dataset.filters}" if dataset.filters else ""
            factor = f", ratio {dataset.ratio:.2f}" if dataset.ratio else ""
            lines.append(
                f"    {dataset.path}: {dataset.dtype} {dataset.shape}{chunks}{filters}, "
                f"{_size(dataset.storage_bytes)}{factor}"
            )
    return lines


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _plain(value: Any) -> Any:
    """Return frozen records as dicts, tuples as lists, and bytes as hexadecimal text, all the way down."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value
