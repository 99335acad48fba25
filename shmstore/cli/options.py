"""Options that several commands share, and how they become a configuration."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from shmstore.config import StorageConfig


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose options are written out."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        settings["allow_abbrev"] = False
        super().__init__(*arguments, **settings)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is, then exit with status 2."""
        self.exit(2, f"shmstore: error: {' '.join(message.split())} (see `{self.prog} --help`)\n")


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--json`` and ``--quiet``."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="give the result as one JSON document on standard output; all else goes to standard error",
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="no live output and no tables")


def add_storage_options(parser: argparse.ArgumentParser) -> None:
    """Add what configures the recording."""
    group = parser.add_argument_group("recording")
    group.add_argument("--output", "-o", metavar="DIR", help="folder of the file (default: this one)")
    group.add_argument(
        "--compression", metavar="CODEC", help="none, gzip, zstd, lz4, blosc:lz4, adaptive, … (default: gzip)"
    )
    group.add_argument("--config", metavar="FILE", help="TOML file (default: shmstore.toml, if there is one)")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        type=assignment,
        help="any setting of the storage, such as ring_bytes=8MiB; may be repeated",
    )


def load_config(options: argparse.Namespace) -> StorageConfig:
    """Return the configuration of the recording; raises `ConfigError`."""
    from shmstore.config import StorageConfig

    given = settings_given(options.set)
    for name, value in (("output_dir", options.output), ("compression", options.compression)):
        if value is not None:
            given[name] = value
    return StorageConfig.load(options.config, **given)


def settings_given(assignments: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return the values of ``--set``; raises `ConfigError`."""
    from shmstore.errors import ConfigError
    from shmstore.settings import SETTINGS, unknown_name

    given: dict[str, Any] = {}
    for name, text in assignments:
        if name not in SETTINGS:
            raise ConfigError(unknown_name(name, SETTINGS, "--set"))
        given[name] = SETTINGS[name].text(name, text, "--set")
    return given


def positive(text: str) -> int:
    """Parse a count of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 on")
    return int(text)


def duration(text: str) -> float:
    """Parse seconds; 0 is without end."""
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds, or 0 for no end")
    return value or math.inf


def frequency(text: str) -> float:
    """Parse readings a second."""
    value = _number(text)
    if not 0.01 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of readings a second from 0.01 to 1000")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if math.isfinite(value) else -1.0


def assignment(text: str) -> tuple[str, str]:
    """Parse ``KEY=VALUE``."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be KEY=VALUE")
    return name.strip(), value.strip()
