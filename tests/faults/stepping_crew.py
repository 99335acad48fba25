"""A short recording that passes every step of `shmstore.steps`: owner, producers, and its recovery.

The owner starts two producers. One feeds an instrument with variable-length text, lends from a ring, and
makes a late instrument; the other feeds one with packed text and one whose schema evolves. Meanwhile the
owner sets metadata and flushes. Rings and chunks are so small that all of it takes a fraction of a second:
most of a run is Python's start, so what is not needed here is not imported here. Who starts it is
`faults.stepping`.

Rows say where they come from, as those of `processes.rows`; "producer" is the number of a ring. After each
accepted `put` the count of a ring's batches is stored in a mapped file.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faults.without_pandas  # noqa: F401 (first)
import numpy as np
import pyarrow as pa
from faults.stepping_rows import (
    BATCHES,
    EARLIER,
    FILE,
    LATER,
    PLAIN,
    RINGS,
    TIMEOUT_S,
    plain,
    rows_of,
    sealed_path,
)
from processes.rows import SCHEMA, batch

import shmstore
from shmstore.recovery import recover


def _own(folder: Path, options: Mapping[str, Any]) -> None:
    """Record while the producers put; say on standard output how it went."""
    crew = [
        subprocess.Popen(
            [sys.executable, "-P", __file__, "put", str(folder), str(number), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for number in range(2)
    ]
    storage = shmstore.HDF5Storage(output_dir=folder / "out", filename=FILE, **options["settings"])
    problem = ""
    try:
        with storage:
            for process in crew:
                assert process.stdin
                with contextlib.suppress(BrokenPipeError), process.stdin as line:
                    line.write(storage.name.encode() + b"\n")
            for turn in range(3):
                storage.set_metadata(f"turn {turn}", turn)
                storage.set_instrument_metadata("packed", "turn", turn)
                storage.flush()
            for process in crew:
                process.wait()
            while options.get("standby") and not (storage._supervisor and storage._supervisor.standby_pid):
                time.sleep(0.02)
    except shmstore.IncompleteFileError as error:
        problem = str(error)
    restarts = storage.final_stats.writer_restarts
    print(json.dumps({"state": storage.state, "restarts": restarts, "problem": problem}), flush=True)


def _put(folder: Path, number: int, options: Mapping[str, Any]) -> None:
    """Put what one producer process has to put; the count of a ring's batches is stored after each."""
    name = sys.stdin.readline().strip()
    if not name:
        return
    with contextlib.suppress(shmstore.ClosedError, shmstore.BrokenError), contextlib.ExitStack() as stack:
        client = stack.enter_context(shmstore.connect(name))
        counts = {ring: stack.enter_context(_counting(folder, ring)) for ring in RINGS}
        if number == 0:
            vlen = client.producer("vlen", SCHEMA, strings="vlen")
            lent = client.producer("lent", PLAIN)
            late: Any = None
            for sequence in range(BATCHES):
                vlen.put(_of_ring(0, sequence), TIMEOUT_S)
                counts[0][0] = sequence + 1
                with lent.loan(rows_of(2, sequence), TIMEOUT_S) as loan:
                    for column, values in plain(2, sequence).items():
                        loan[column] = values
                counts[2][0] = sequence + 1
                if sequence >= BATCHES // 2:
                    late = late or client.producer("late")
                    late.put(_plain_batch(4, sequence - BATCHES // 2, PLAIN), TIMEOUT_S)
                    counts[4][0] = sequence - BATCHES // 2 + 1
        else:
            packed = client.producer("packed", SCHEMA, strings="packed")
            evolving = client.producer("evolving", schema_policy="evolve")
            for sequence in range(BATCHES):
                packed.put(_of_ring(1, sequence), TIMEOUT_S)
                counts[1][0] = sequence + 1
                schema = EARLIER if sequence < BATCHES // 2 else LATER
                evolving.put(_plain_batch(3, sequence, schema), TIMEOUT_S)
                counts[3][0] = sequence + 1
            if options.get("refused"):
                _put_refused(client)


def _put_refused(client: Any) -> None:
    """Put a batch that the file cannot take, as only a faulty producer would."""
    schema = pa.schema([("text", pa.string())])
    producer = client.producer("refused", schema, strings="fixed:8")
    producer.put(pa.record_batch({"text": ["short"]}))
    producer._declared = producer._declared._replace(checked=())
    producer.put(pa.record_batch({"text": ["longer than eight bytes"]}))


def _of_ring(ring: int, sequence: int) -> pa.RecordBatch:
    return batch(ring, sequence, rows_of(ring, sequence))


def _plain_batch(ring: int, sequence: int, schema: pa.Schema) -> pa.RecordBatch:
    rows = rows_of(ring, sequence)
    columns = {name: np.broadcast_to(values, rows) for name, values in plain(ring, sequence).items()}
    columns["extra"] = columns["row"]
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


@contextmanager
def _counting(folder: Path, ring: int) -> Iterator[memoryview]:
    with (
        sealed_path(folder, ring).open("r+b") as file,
        mmap.mmap(file.fileno(), 8) as memory,
        memoryview(memory) as view,
        view.cast("Q") as word,
    ):
        yield word


if __name__ == "__main__":
    if sys.argv[1] == "own":
        _own(Path(sys.argv[2]), json.loads(sys.argv[3]))
    elif sys.argv[1] == "put":
        _put(Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        print(recover(sys.argv[2]))
