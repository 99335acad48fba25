"""The configuration that is written: TOML with a sentence of reason above each setting."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shmstore.errors import storage_error
from shmstore.settings import spelled
from shmstore.tuning.point import CODEC_SETTINGS, INSTRUMENT_SETTINGS, Point
from shmstore.tuning.search import SETTINGS, Choice

_WIDTH = 100


def configuration(
    head: Sequence[str],
    point: Point,
    choices: Mapping[str, Choice],
    output_dir: Path,
    fixed: Mapping[str, Any],
    instrument_id: str | None,
) -> str:
    """Return the text of a ``shmstore.toml``.

    Parameters
    ----------
    head
        Paragraphs for the top.
    point, choices
        What was chosen, and why.
    output_dir
        The folder that was tuned for.
    fixed
        Settings that were given.
    instrument_id
        Whose table codec, chunks and ring go to; None: they are set for the whole storage.
    """
    own = dict.fromkeys(INSTRUMENT_SETTINGS if instrument_id is not None else ())
    lines = [line for paragraph in head for line in (*_comment(paragraph), "#")][:-1]
    lines += ["", "[storage]", f"output_dir = {_value('output_dir', str(output_dir))}"]
    for name, value in fixed.items():
        if name not in point.options() and name != "output_dir":
            lines.append(f"{name} = {_value(name, value)}")
    groups = [("codec", CODEC_SETTINGS), *((name, (name,)) for name in SETTINGS)]
    for setting, names in groups:
        if setting not in own and names[0] not in own:
            lines += _assignments(choices.get(setting), names, point)
    if instrument_id is not None:
        lines += ["", f"[instrument.{_quoted(instrument_id)}]"]
        for setting, names in groups:
            if names[0] in own:
                lines += _assignments(choices.get(setting), names, point)
    return "\n".join(lines) + "\n"


def write_configuration(path: Path, text: str, *, replace: bool = False) -> None:
    """Write the file.

    Parameters
    ----------
    path
        Where to.
    text
        Its content.
    replace
        Whether one that is there may be overwritten.

    Raises
    ------
    StorageError
        It is there already, or cannot be written.
    """
    try:
        with path.open("w" if replace else "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise storage_error(error, "write the configuration", path) from None


def _assignments(choice: Choice | None, names: Iterable[str], point: Point) -> list[str]:
    lines = ["", *(_comment(choice.reason) if choice else ())]
    for name in names:
        value = getattr(point, name)
        if name == "compression_level" and value is None:
            continue
        if name == "shuffle" and value == "auto":
            continue
        lines.append(f"{name} = {_value(name, value)}")
    return lines


def _value(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return '"none"'
    if name.endswith("_bytes"):
        return f'"{spelled(value)}"'
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return _quoted(str(value))


def _quoted(text: str) -> str:
    # A JSON string is a basic string of TOML, but for this one character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )
