"""The TOML that is written: commented, and read back as what was chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

import shmstore
from shmstore.errors import StorageError
from shmstore.tuning.configuration import configuration, write_configuration
from shmstore.tuning.point import Point
from shmstore.tuning.search import SETTINGS, Choice

POINT = Point("blosc:zstd", 3, "bit", 1 << 20, 3, 96 << 20, 5 << 20, 12.5)
CHOICES = {name: Choice(name, f"Because of {name}, " + "and so on " * 20) for name in ("codec", *SETTINGS)}
INSTRUMENTS = [None, "camera_1", 'a "quoted" name\\', "längs\x7f.dots"]


@pytest.mark.parametrize("instrument_id", INSTRUMENTS)
@pytest.mark.parametrize("point", [POINT, Point(), Point("none"), Point("lz4")])
def test_reads_back_as_what_was_chosen(output_dir: Path, instrument_id: str | None, point: Point) -> None:
    fixed = {"strings": "packed", "standby": False, "put_timeout_s": None, "ring_bytes": point.ring_bytes}
    text = configuration(["Head."], point, CHOICES, output_dir / "rec", fixed, instrument_id)
    path = output_dir / "shmstore.toml"
    write_configuration(path, text)
    config = shmstore.StorageConfig.load(path, environ={})
    found = Point.of(config, instrument_id or "any")
    assert found.options() | {"compression_level": None} == point.options() | {"compression_level": None}
    assert found.codec == point.codec
    assert (config.output_dir, config.strings, config.standby) == (output_dir / "rec", "packed", False)
    assert config.put_timeout_s is None
    if instrument_id is not None:  # others are left alone
        assert config.instrument("other").ring_bytes == shmstore.StorageConfig().ring_bytes


def test_every_setting_has_its_reason_above() -> None:
    text = configuration(["First.", "Second."], POINT, CHOICES, Path("data"), {}, None)
    assert text.startswith("# First.\n#\n# Second.\n\n[storage]\n")
    lines = text.splitlines()
    for name in ("compression", *SETTINGS):
        (place,) = [number for number, line in enumerate(lines) if line.startswith(f"{name} = ")]
        paragraph = lines[max(number for number in range(place) if not lines[number]) : place]
        assert f"# Because of {'codec' if name == 'compression' else name}, and" in paragraph[1]
    assert max(map(len, lines)) <= 100


def test_never_overwrites_unless_told_to(output_dir: Path) -> None:
    path = output_dir / "shmstore.toml"
    path.write_text("mine")
    with pytest.raises(StorageError, match="exists already"):
        write_configuration(path, "new")
    assert path.read_text() == "mine"
    write_configuration(path, "new", replace=True)
    assert path.read_text() == "new"
