"""`shmstore demo`, whole: the file, the picture, and what it tells to copy."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
from commandline import document, environment, shmstore

from shmstore.sources.detector import BACKGROUND


def test_it_records_shows_draws_and_says_how_to_open(output_dir: Path) -> None:
    result = shmstore("demo", "--seconds", "1.5", "--output", output_dir, cwd=output_dir)
    assert (result.returncode, result.stderr) == (0, "")
    (path,) = output_dir.glob("*.h5")
    with h5py.File(path) as file:
        assert file.attrs["state"] == "complete"
        frames, numbers = file["detector/frame"], file["detector/frame_number"][:]
        assert frames.shape == (len(numbers), 256, 256)
        assert frames.dtype == np.uint16
        assert (numbers == np.arange(len(numbers))).all()
        last = frames[-1]
        assert abs(np.median(last) - BACKGROUND) <= 1
        assert last.max() > 10 * BACKGROUND
    picture = path.with_suffix(".png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 30_000  # a picture with nothing in it is smaller
    for wanted in (
        "detector: ",
        "fixed_shape_tensor",
        "accounting",
        str(path),
        str(path.with_suffix(".png")),
    ):
        assert wanted in result.stdout
    # What it tells to copy can be run as it is.
    h5py_part, shmstore_part = result.stdout.split("Open it with h5py")[1].split("or with shmstore")
    for part in (h5py_part, shmstore_part):
        code = textwrap.dedent("\n".join(line for line in part.splitlines()[1:] if line.startswith("    ")))
        assert "import" in code
        run = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=environment(),
        )
        assert (run.returncode, run.stderr) == (0, "")
        assert run.stdout


def test_as_json(output_dir: Path) -> None:
    result = shmstore("demo", "--seconds", "0.5", "--frames", "20", "--json", cwd=output_dir)
    assert result.returncode == 0
    content = document(result)
    assert Path(content["picture"]).is_file()
    instruments = {report["instrument_id"]: report["rows"] for report in content["info"]["instruments"]}
    stations = {station["name"]: station["ticks"] for station in content["recording"]["stations"]}
    assert instruments["detector"] == stations["detector"] > 0
