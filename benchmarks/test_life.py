"""What comes before and after the data: import, start, and the end of a recording with nothing to do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import pytest

import shmstore
from benchmarks.conftest import Scale
from benchmarks.report import Report
from shmstore.bench.processes import await_standby
from shmstore.bench.streams import Adc

pytestmark = pytest.mark.timeout(1800)  # seconds; slow machines are welcome

_STANDBY_S = 10.0
_BASE = "import pyarrow, h5py"
#: The first imports next to nothing, until a name is used: the second has all that a recording needs.
_OURS = ("import shmstore", "from shmstore import HDF5Storage")
_CLOCKED = "import time; began = time.perf_counter()\n{}\nprint(time.perf_counter() - began)"


def test_start_and_close(report: Report, scale: Scale, output: Path) -> None:
    """Until there is a producer; and from an idle recording, its standby up, until its file is finished."""
    starts: list[float] = []
    closes: list[float] = []

    def measure() -> None:
        (batch, *_) = Adc(distinct=1).batches()
        began = time.perf_counter()
        storage = shmstore.HDF5Storage(output_dir=output).start()
        producer = storage.producer("adc", batch.schema)
        starts.append((time.perf_counter() - began) * 1e3)
        producer.put(batch)
        storage.flush()
        await_standby({storage.writer_pid}, scale.pick(_STANDBY_S, 0.0))
        began = time.perf_counter()
        producer.close()
        storage.close()
        closes.append((time.perf_counter() - began) * 1e3)
        storage.path.unlink()

    report.repeat(measure)
    report.judge("start to a producer", "ms", starts, at_most=500)
    report.judge("close of an idle recording", "ms", closes, at_most=150)


def test_import(report: Report, scale: Scale, tmp_path: Path) -> None:
    """Imports, each in an interpreter of its own, in turn; compiled, as pip leaves what it installs."""
    times = scale.pick(5, 1)
    figures: dict[str, list[float]] = defaultdict(list)

    def measure() -> None:
        taken: dict[str, list[float]] = defaultdict(list)
        for _ in range(times):
            for statement in (_BASE, *_OURS):
                taken[statement].append(_import_ms(statement, tmp_path))
        for statement, ms in taken.items():
            figures[statement].append(median(ms))

    for statement in (_BASE, *_OURS):  # what is compiled, and read from the disk, once
        _import_ms(statement, tmp_path)
    report.repeat(measure)
    for statement in _OURS:
        report.judge(statement, "ms", figures[statement], _BASE, figures[_BASE], at_most=1.3)


def _import_ms(statement: str, compiled: Path) -> float:
    # Where the environment forbids to keep what was compiled, a tree that nobody installed pays each time.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(compiled)}
    command = [sys.executable, "-c", _CLOCKED.format(statement)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout) * 1e3
