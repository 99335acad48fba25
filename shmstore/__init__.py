"""shmstore: a recorder for data acquisition.

Arrow record batches in from any number of processes, through shared memory; one compressed HDF5 file out,
readable while it grows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmstore._version import __version__
from shmstore.errors import (
    BatchTooLargeError,
    BrokenError,
    ClosedError,
    ConfigError,
    IncompleteFileError,
    InvalidValueError,
    RingFullError,
    SchemaMismatchError,
    ShmStoreError,
    StorageError,
    UnsupportedTypeError,
)

if TYPE_CHECKING:
    from shmstore.client import Client, connect
    from shmstore.config import ColumnConfig, InstrumentConfig, StorageConfig
    from shmstore.inspection import FileReport, describe
    from shmstore.loan import Loan
    from shmstore.producer import Producer
    from shmstore.reader import Instrument, Recording, open, read
    from shmstore.recovery import RecoveryReport
    from shmstore.recoveryprocess import recover
    from shmstore.stats import InstrumentStats, ProducerStats, StorageStats
    from shmstore.storage import HDF5Storage
    from shmstore.verdict import VerifyReport
    from shmstore.verificationprocess import verify

# What needs pyarrow or h5py is imported when it is first asked for: `import shmstore` itself stays quick.
_HOMES = {
    "Client": "client",
    "ColumnConfig": "config",
    "FileReport": "inspection",
    "HDF5Storage": "storage",
    "Instrument": "reader",
    "InstrumentConfig": "config",
    "InstrumentStats": "stats",
    "Loan": "loan",
    "Producer": "producer",
    "ProducerStats": "stats",
    "Recording": "reader",
    "RecoveryReport": "recovery",
    "StorageConfig": "config",
    "StorageStats": "stats",
    "VerifyReport": "verdict",
    "connect": "client",
    "describe": "inspection",
    "open": "reader",
    "read": "reader",
    "recover": "recoveryprocess",
    "verify": "verificationprocess",
}

__all__ = [
    "BatchTooLargeError",
    "BrokenError",
    "Client",
    "ClosedError",
    "ColumnConfig",
    "ConfigError",
    "FileReport",
    "HDF5Storage",
    "IncompleteFileError",
    "Instrument",
    "InstrumentConfig",
    "InstrumentStats",
    "InvalidValueError",
    "Loan",
    "Producer",
    "ProducerStats",
    "Recording",
    "RecoveryReport",
    "RingFullError",
    "SchemaMismatchError",
    "ShmStoreError",
    "StorageConfig",
    "StorageError",
    "StorageStats",
    "UnsupportedTypeError",
    "VerifyReport",
    "__version__",
    "connect",
    "describe",
    "open",
    "read",
    "recover",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'shmstore' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"shmstore.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
