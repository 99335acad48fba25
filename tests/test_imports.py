"""What an import costs: acquisition processes start often, and load no more than they use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import shmstore", {"numpy", "pyarrow", "h5py"}),
        (
            "from shmstore import HDF5Storage",
            {"h5py", "hdf5plugin", "pyarrow.compute", "blosc2", "numcodecs"},
        ),
    ],
)
def test_an_import_loads_nothing_heavy_that_it_does_not_need(statement: str, heavy: set[str]) -> None:
    code = f"import sys; {statement}; sys.exit(' '.join({heavy!r} & set(sys.modules)) or 0)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
