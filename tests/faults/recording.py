"""A short recording with everything in it that changes a file, to be traced and broken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from processes.programs import TIMEOUT_S, environment

_TEXT = """
import sys
import numpy as np, pyarrow as pa
import shmstore

with shmstore.HDF5Storage(output_dir=sys.argv[1], filename="daq.h5", auto_flush_interval_secs=0.2) as storage:
    made = [storage.producer(strings, strings=strings) for strings in ("vlen", "packed")]
    for turn in range(6):
        numbers = np.arange(turn * 20000, (turn + 1) * 20000)
        noise = np.random.default_rng(turn).random(20000)
        for producer in made:
            producer.put(pa.record_batch({"noise": noise, "text": numbers.astype(str)}))
        storage.write_batch(f"late {turn}", pa.record_batch({"x": [turn]}))
        storage.set_metadata(f"turn {turn}", turn)
        storage.flush()
"""


def record(folder: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Record ``daq.h5`` in a folder, in a process with these variables added to its environment."""
    return subprocess.run(
        [sys.executable, "-c", _TEXT, str(folder)],
        env=environment() | dict(env),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
