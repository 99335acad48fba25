"""Files and standard input as sources of Arrow batches: opened by what they hold, read in constant memory.

Arrow IPC stream and file (of any version and byte order, compressed or not), Parquet and CSV. The bytes are
nobody's friend: every batch of an IPC source is validated before it is handed on. This module knows neither
producers nor a terminal.
"""

from __future__ import annotations

import io
import os
import select
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet

from shmstore.compaction import types_in
from shmstore.errors import ShmStoreError
from shmstore.physical import physical_schema, retyped

#: Rows of a batch from Parquet.
_PARQUET_ROWS = 65_536
#: Bytes of a batch from CSV. Types are inferred from the first one, so it should not be small.
_CSV_BLOCK_BYTES = 4 << 20
_READ_AHEAD_BYTES = 1 << 20
_HEAD_BYTES = 4096
_IPC_STREAM, _IPC_FILE, _PARQUET = b"\xff\xff\xff\xff", b"ARROW1", b"PAR1"
#: Longest schema of a stream without that mark; no text begins with so small a number.
_UNMARKED_SCHEMA_BYTES = 64 << 20
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
#: How often a wait for standard input looks whether to stop, in seconds.
_NAP_S = 0.2


class InputError(ShmStoreError, ValueError):
    """An input is missing, empty, damaged, or of no format that can be read; the message names it."""


@dataclass(slots=True)
class Source:
    """An opened input. A context manager; it owns the open file.

    Attributes
    ----------
    name : str
        For messages: the path as given, or ``"standard input"``.
    stem : str
        File name without its suffix, what is no Unicode in it spelled out; a good name for the instrument.
    kind : str
        ``"Arrow IPC stream"``, ``"Arrow IPC file"``, ``"Parquet"`` or ``"CSV"``.
    schema : pyarrow.Schema
        Of every batch.
    size_bytes : int or None
        How long the input is; None if nobody knows.
    """

    name: str
    stem: str
    kind: str
    schema: pa.Schema
    size_bytes: int | None
    _batches: Iterator[pa.RecordBatch]
    _position: Callable[[], int]
    _close: Callable[[], None]
    #: What is known to be wrong with the end of the input; raised after the last whole batch.
    _damage: str | None = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the input."""
        self._close()

    @property
    def position_bytes(self) -> int:
        """How far the input has been read, at most ``size_bytes``."""
        return self._position()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield every batch once; blocks as the input does.

        Raises
        ------
        InputError
            The input is damaged here. Every batch before was whole.
        """
        try:
            for batch in self._batches:
                if self.kind.startswith("Arrow"):
                    _validate(batch)
                yield batch
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{self.name}: {self._damage or _damage(self.kind)}: {_one_line(error)}"
            ) from None
        if self._damage:
            raise InputError(f"{self.name}: {self._damage}")


def open_source(path: str, stopped: Callable[[], bool] = lambda: False) -> Source:
    """Open an input by what it holds, then by its suffix.

    Parameters
    ----------
    path
        A path, or ``"-"`` for standard input. What is no regular file (a pipe) must be an Arrow IPC stream.
    stopped
        Asked while waiting for a pipe; once true, the input ends there.

    Raises
    ------
    InputError
        It cannot be read, or not as any known format.
    """
    source = _open(path, stopped)
    try:
        for _ in _texts(source.schema):
            pass
    except UnicodeDecodeError:
        source.__exit__(None, None, None)
        raise InputError(f"{source.name}: is damaged: a name in its schema is no UTF-8") from None
    return source


def _open(path: str, stopped: Callable[[], bool]) -> Source:
    if path == "-":
        return _open_pipe("standard input", "stdin", sys.stdin.buffer, stopped, lambda: None)
    file = Path(path)
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{path}: is a folder: name the files in it")
        if not stat.S_ISREG(mode):
            pipe = file.open("rb", buffering=0)
            return _open_pipe(path, _stem(file), pipe, stopped, pipe.close)
        with file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
        return _open_file(path, file, head)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file: check the path") from None
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read: {_one_line(error)}") from None


def _open_file(name: str, file: Path, head: bytes) -> Source:
    if not head:
        raise InputError(f"{name}: is empty: there is nothing to record")
    if _begins_stream(head):
        return _open_ipc_stream(name, file)
    if head.startswith(_IPC_FILE):
        return _open_ipc_file(name, file)
    if head.startswith(_PARQUET):
        return _open_parquet(name, file)
    if file.suffix.lower() in _DELIMITERS and b"\0" not in head:
        return _open_csv(name, file, _DELIMITERS[file.suffix.lower()])
    raise InputError(
        f"{name}: is neither an Arrow IPC stream, an Arrow IPC file, Parquet nor CSV (*.csv, *.tsv): "
        "convert it first"
    )


def _open_ipc_stream(
    name: str, file: Path, start: int = 0, kind: str = "Arrow IPC stream", damage: str | None = None
) -> Source:
    opened = pa.OSFile(os.fsencode(file))
    try:
        opened.seek(start)
        reader = pa.ipc.open_stream(opened)
    except BaseException:
        opened.close()
        raise
    size = opened.size()
    return Source(
        name, _stem(file), kind, reader.schema, size, iter(reader), opened.tell, opened.close, damage
    )


def _open_ipc_file(name: str, file: Path) -> Source:
    opened = pa.OSFile(os.fsencode(file))
    try:
        reader = pa.ipc.open_file(opened)
    except (pa.ArrowException, OSError):
        opened.close()
        # The footer is written last. Before it the file is a stream, behind the magic and two bytes of
        # padding.
        return _open_ipc_stream(name, file, 8, "Arrow IPC file", "is cut short: its footer is missing")
    done = _Fraction(opened.size(), reader.num_record_batches)

    def batches() -> Iterator[pa.RecordBatch]:
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
            done.units += 1

    return Source(
        name, _stem(file), "Arrow IPC file", reader.schema, done.size, batches(), done.position, opened.close
    )


def _open_parquet(name: str, file: Path) -> Source:
    opened = pa.OSFile(os.fsencode(file))
    try:
        # Without a buffer size a whole row group is held, which may be the whole file.
        reader = pa.parquet.ParquetFile(opened, buffer_size=_READ_AHEAD_BYTES, pre_buffer=False)
    except BaseException:
        opened.close()
        raise
    done = _Fraction(opened.size(), reader.metadata.num_rows)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in reader.iter_batches(batch_size=_PARQUET_ROWS, use_threads=False):
            yield batch
            done.units += batch.num_rows

    return Source(
        name, _stem(file), "Parquet", reader.schema_arrow, done.size, batches(), done.position, opened.close
    )


def _open_csv(name: str, file: Path, delimiter: str) -> Source:
    opened, batches = _csv_reader(file, delimiter, {})
    # A column with nothing in its first block has no type yet: text holds whatever comes.
    untyped = {field.name: pa.string() for field in batches.schema if pa.types.is_null(field.type)}
    if untyped:
        batches.close()
        opened.close()
        opened, batches = _csv_reader(file, delimiter, untyped)

    def close() -> None:
        batches.close()
        opened.close()

    size = file.stat().st_size
    return Source(name, _stem(file), "CSV", batches.schema, size, iter(batches), opened.tell, close)


def _csv_reader(file: Path, delimiter: str, types: dict[str, Any]) -> tuple[BinaryIO, Any]:
    opened = file.open("rb", buffering=0)
    try:
        batches = pa.csv.open_csv(
            pa.PythonFile(opened, mode="r"),
            read_options=pa.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter),
            convert_options=pa.csv.ConvertOptions(column_types=types),
        )
    except BaseException:
        opened.close()
        raise
    return opened, batches


def _open_pipe(
    name: str, stem: str, pipe: Any, stopped: Callable[[], bool], close: Callable[[], None]
) -> Source:
    raw = _Pipe(pipe.fileno(), stopped)
    stream = io.BufferedReader(raw, _READ_AHEAD_BYTES)
    try:
        head = stream.peek(len(_IPC_STREAM))
        if not head:
            raise InputError(f"{name}: is empty: there is nothing to record")
        if not _begins_stream(head) and not _IPC_STREAM.startswith(head):
            raise InputError(f"{name}: is no Arrow IPC stream, the only format that can come through a pipe")
        reader = pa.ipc.open_stream(pa.PythonFile(stream, mode="r"))
    except (pa.ArrowException, OSError) as error:
        close()
        raise InputError(f"{name}: is no whole Arrow IPC stream: {_one_line(error)}") from None
    except BaseException:
        close()
        raise
    return Source(
        name, stem, "Arrow IPC stream", reader.schema, None, iter(reader), lambda: raw.read_bytes, close
    )


class _Pipe(io.RawIOBase):
    """The reading end of a pipe that is not ours; a wait for data ends when asked to."""

    def __init__(self, fd: int, stopped: Callable[[], bool]) -> None:
        self._file: BinaryIO = open(fd, "rb", buffering=0, closefd=False)  # noqa: SIM115 (a descriptor)
        self._stopped = stopped
        self.read_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        # A signal does not end a read: it is restarted (PEP 475). So wait in small steps, and read what is
        # there.
        while not self._stopped():
            if select.select([self._file], [], [], _NAP_S)[0]:
                count: int = self._file.readinto(target)  # type: ignore[attr-defined]
                self.read_bytes += count
                return count
        return 0


@dataclass(slots=True)
class _Fraction:
    """Progress where the reader jumps about in the file: so many of all units."""

    size: int
    all_units: int
    units: int = 0

    def position(self) -> int:
        return self.size * self.units // max(1, self.all_units)


def _begins_stream(head: bytes) -> bool:
    if head.startswith(_IPC_STREAM):
        return True
    if len(head) < 8:
        return False
    # Before Arrow 0.15 a stream began with the size of its schema, and that with where its root is.
    size, root = struct.unpack_from("<iI", head)
    return bool(8 <= size <= _UNMARKED_SCHEMA_BYTES and root < size)


def _stem(file: Path) -> str:
    return os.fsencode(file.stem).decode("utf-8", "backslashreplace")


def _texts(schema: pa.Schema) -> Iterator[str]:
    """Give every text in a schema that pyarrow decodes only when asked for it."""
    for column in schema:
        yield column.name
        for type_ in types_in(column.type):
            yield from (type_.field(index).name for index in range(type_.num_fields))
            if pa.types.is_timestamp(type_):
                yield type_.tz or ""


def _validate(batch: pa.RecordBatch) -> None:
    """Raise `pyarrow.ArrowInvalid` unless the batch is sound; any time, date or decimal is."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        physical = physical_schema(batch.schema)
        if physical.equals(batch.schema):
            raise
        batch.validate()
        retyped(batch, physical).validate(full=True)


def _damage(kind: str) -> str:
    if kind == "CSV":
        return "cannot be read on (types are taken from the first rows: cast, or use Parquet)"
    return "is damaged or cut short"


def _one_line(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split())[:300]
