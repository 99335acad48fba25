"""Where a configuration comes from outside the program: the TOML file and the environment, as raw values.

A layer says where it was found, for the errors, and what it sets: fields of the storage by name. This module
knows the shape of the file and the prefix of the variables, and neither what a value may be nor how layers
are merged.
"""

from __future__ import annotations

import os
import tomllib
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from shmstore.errors import ConfigError
from shmstore.settings import unknown_name
from shmstore.steps import VARIABLES

DEFAULT_FILE = "shmstore.toml"
ENVIRONMENT_PREFIX = "SHMSTORE_"


class ConfigWarning(UserWarning):
    """A variable ``SHMSTORE_*`` is set that means nothing; the message names the nearest that does."""


def file_layers(path: str | os.PathLike[str] | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield where it was found and what it sets for ``[storage]``, then for all the instruments' tables.

    Parameters
    ----------
    path
        The file; None: ``shmstore.toml`` in the working directory, where its absence is no error.

    Raises
    ------
    ConfigError
        The file cannot be read, is no TOML, or has a table that means nothing.
    """
    file = Path(DEFAULT_FILE if path is None else path)
    content = _content(file, missing_ok=path is None)
    for name in content:
        if name not in ("storage", "instrument"):
            raise ConfigError(unknown_name(name, ("storage", "instrument"), str(file), "table"))
    storage = _table(content.get("storage", {}), f"{file} [storage]")
    _refuse_tables(storage, [], f"{file} [storage]")
    yield f"{file} [storage]", storage
    instruments = {}
    for instrument_id, table in _table(content.get("instrument", {}), f"{file} [instrument]").items():
        where = f"{file} [instrument.{instrument_id}"
        settings = dict(_table(table, f"{where}]"))
        columns = _table(settings.pop("column", {}), f"{where}.column]")
        for name, column in columns.items():
            _refuse_tables(_table(column, f"{where}.column.{name}]"), [], f"{where}.column.{name}]")
        _refuse_tables(settings, ["column"], f"{where}]")
        instruments[instrument_id] = {**settings, "columns": columns}
    yield str(file), {"instruments": instruments}


def environment_layers(environ: Mapping[str, str], known: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """Yield where it was found, the setting and its text for each variable ``SHMSTORE_*`` that is set.

    The order is that of ``known``, the settings that a variable may set; an empty variable counts as unset.

    Warns
    -----
    ConfigWarning
        A variable with our prefix sets nothing.
    """
    variables = {ENVIRONMENT_PREFIX + name.upper(): name for name in known}
    for variable in environ:
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in {*variables, *VARIABLES}:
            warnings.warn(
                unknown_name(variable, variables, "environment", "variable"), ConfigWarning, stacklevel=3
            )
    for variable, name in variables.items():
        if environ.get(variable):
            yield f"environment variable {variable}", name, environ[variable]


def _content(file: Path, *, missing_ok: bool) -> Mapping[str, Any]:
    try:
        return tomllib.loads(file.read_bytes().decode())
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise ConfigError(f"{file}: there is no such configuration file: check the path") from None
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read: {error.strerror}: check the path and its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: byte {error.start} is not UTF-8: save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}: correct it there") from None


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    header = f"[{where.rpartition('[')[2]}"
    raise ConfigError(f"{where}: {value!r} must be a table: put its settings below a line {header}")


def _refuse_tables(settings: Mapping[str, Any], known: Collection[str], where: str) -> None:
    # Also keeps the file's spelling one: "columns" is the name of the field, not of the table.
    for name, value in settings.items():
        if isinstance(value, dict):
            raise ConfigError(unknown_name(name, known, where, "table"))
