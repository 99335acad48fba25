"""The instruments of one recording: their groups in the file, their schemas and their metadata."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from datetime import datetime
from functools import cached_property
from typing import Any

import pyarrow as pa

from shmstore.assembly import InstrumentAssembly
from shmstore.batch import PlainLayout
from shmstore.config import ResolvedInstrument, StorageConfig
from shmstore.dataset import RecordingFile
from shmstore.errors import BrokenError, ConfigError, InvalidValueError, SchemaMismatchError
from shmstore.names import RESERVED_INSTRUMENT_ATTRIBUTES, instrument_link
from shmstore.pipeline import CodecPipeline
from shmstore.schema import first_difference
from shmstore.session import Session
from shmstore.stats import InstrumentStats

_METADATA_LIMIT_BYTES = 16 * 2**20
#: An escaped NUL, and not the six characters by which it is escaped: those come behind an escaped backslash.
_NUL_IN_JSON = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
#: Options that belong to each producer; all others must agree among the producers of an instrument.
_PRODUCER_OPTIONS = ("ring_bytes", "on_full", "put_timeout_s")


class Instrument:
    """One instrument in the writer.

    Parameters
    ----------
    instrument_id
        Its id.
    assembly
        Takes its rows.
    options
        What was asked for it.

    Attributes
    ----------
    high_water : int
        Highest use of a ring that has gone.
    """

    def __init__(self, instrument_id: str, assembly: InstrumentAssembly, options: dict[str, Any]) -> None:
        self.instrument_id = instrument_id
        self.assembly = assembly
        self.options = options
        self.high_water = 0
        self._schema: pa.Schema | None = None

    @cached_property
    def plain_layout(self) -> PlainLayout:
        """Where columns lie in loaned slots."""
        if self.assembly.layout is None:
            raise BrokenError(f"{self.instrument_id!r} has no schema yet")
        return PlainLayout(self.assembly.layout)

    def declare(self, schema: str) -> pa.Schema:
        """Take the serialized schema (base64) of a producer.

        Raises
        ------
        SchemaMismatchError
            The instrument has another one already.
        UnsupportedTypeError
            A column cannot be recorded.
        """
        try:
            found = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema, validate=True)))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise BrokenError(
                f"what was declared for {self.instrument_id!r} is no Arrow schema: {error}"
            ) from None
        if self._schema is None:
            self.assembly.declare(found)
            self._schema = found
        elif difference := first_difference(self._schema, found):
            raise SchemaMismatchError(
                f"instrument {self.instrument_id!r} is recorded with another schema: {difference}; "
                "cast the batch, or use another instrument id"
            )
        return found

    def counts(self) -> dict[str, int]:
        """Return the counts that are the instrument's own; those of its producers are 0 yet."""
        counts = InstrumentStats().to_dict()
        counts |= {
            "rows_written": self.assembly.rows,
            "bytes_in": self.assembly.bytes_in,
            "bytes_written": self.assembly.bytes_written,
            "chunks_written": self.assembly.chunks_written,
            "ring_high_water": self.high_water,
        }
        return counts


class Instruments:
    """All instruments of a recording, by id.

    Parameters
    ----------
    file, pipeline, config, session
        What they share.
    """

    def __init__(
        self, file: RecordingFile, pipeline: CodecPipeline, config: StorageConfig, session: Session
    ) -> None:
        self._file = file
        self._pipeline = pipeline
        self._config = config
        self._session = session
        self._by_id: dict[str, Instrument] = {}
        self._tails = 0

    def __getitem__(self, instrument_id: str) -> Instrument:
        """Return a known instrument."""
        return self._by_id[instrument_id]

    def __iter__(self) -> Iterator[Instrument]:
        """Go through all of them, oldest first."""
        return iter(self._by_id.values())

    def ensure(self, instrument_id: str, options: dict[str, Any], *, alone: bool = False) -> Instrument:
        """Return the instrument, with its group made if it is new.

        Parameters
        ----------
        instrument_id
            Its id.
        options
            What is asked for it; nothing asks for what holds already.
        alone
            Whether nobody else feeds it: then the options hold if nothing is declared yet, whatever was asked
            for before.

        Raises
        ------
        InvalidValueError
            The id cannot be used.
        ConfigError
            An option is wrong, or another producer of the instrument was made with other ones.
        """
        options = {key: value for key, value in options.items() if key not in _PRODUCER_OPTIONS}
        instrument = self._by_id.get(instrument_id)
        if instrument is None:
            link = instrument_link(instrument_id)
            resolved: ResolvedInstrument = self._config.instrument(instrument_id, **options)
            with self._file.structure():
                self._file.create_instrument(
                    link,
                    {"instrument_id": instrument_id, "created_at": datetime.now().astimezone().isoformat()},
                )
            interval = self._config.auto_flush_interval_secs or 1.0
            assembly = InstrumentAssembly(
                self._file, self._pipeline, link, resolved, interval, self._next_tails
            )
            instrument = self._by_id[instrument_id] = Instrument(instrument_id, assembly, options)
        elif alone and instrument.assembly.layout is None:
            # Made by its metadata, or for a producer that came to nothing.
            instrument.assembly.config = self._config.instrument(instrument_id, **options)
            instrument.options = options
        elif options and options != instrument.options:
            raise ConfigError(
                f"instrument {instrument_id!r} is recorded with options {instrument.options}, not "
                f"{options}: all its producers "
                "must agree"
            )
        return instrument

    def set_metadata(self, instrument_id: str | None, key: str, value: Any) -> None:
        """Set session metadata (``None``) or an instrument's, in the file.

        Raises
        ------
        InvalidValueError
            The key or value cannot be kept, or the key is one of ours.
        """
        check_metadata(key, value)
        if instrument_id is None:
            path = "metadata"
        else:
            if key in RESERVED_INSTRUMENT_ATTRIBUTES:
                raise InvalidValueError(
                    f"metadata key {key!r} of {instrument_id!r} belongs to shmstore: choose another"
                )
            path = self.ensure(instrument_id, {}).assembly.link
        with self._file.structure():
            self._file.set_metadata(path, {key: value})

    def _next_tails(self) -> Any:
        self._tails += 1
        return self._session.tails_path(self._tails)


def check_metadata(key: str, value: Any) -> None:
    """Refuse a key or value that an HDF5 attribute cannot hold.

    Raises
    ------
    InvalidValueError
        The key is empty, ours, or holds a NUL; the value does too, or is too large; or one is no Unicode.
    """
    text = json.dumps(value, ensure_ascii=False)
    try:
        key_bytes, size = len(key.encode()), len(text.encode())
    except UnicodeEncodeError:
        raise InvalidValueError(
            f"metadata {key[:40]!r} is no valid Unicode: remove lone surrogates from key and value"
        ) from None
    if not key or "\0" in key or key == "_json_keys" or key_bytes > 1024:
        raise InvalidValueError(f"metadata key {key[:40]!r} cannot be used: take 1 to 1024 bytes without NUL")
    if size > _METADATA_LIMIT_BYTES:
        raise InvalidValueError(f"metadata {key!r} has {size} bytes: keep it below {_METADATA_LIMIT_BYTES}")
    if _NUL_IN_JSON.search(text):
        raise InvalidValueError(
            f"metadata {key!r} holds a NUL character, which HDF5 strings cannot: remove it"
        )
