"""A recording that notes in its trace what each flush had confirmed, and the check of what is left of it.

Every instrument is one way of storing rows: vlen and packed text, lists, dictionaries, nulls that appear
late, codecs that HDF5 itself runs, a schema that evolves. Chunks are small, so that tails become whole chunks
all the time. Rows say who put them; all else in them follows from that. The recording runs this module as its
program.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pyarrow as pa
from faults.disk import Call, Trace
from processes.programs import TIMEOUT_S, environment
from processes.rows import sizes

FILE = "daq.h5"
TURNS = 8
_BATCHES = 2  # of each producer in a turn
_LARGEST_ROWS = 70
_LATE = 3  # turn in which the first nulls come, and from which on the schema grows

Row = dict[str, Any]


class _Kind(NamedTuple):
    """An instrument: its options, how many producers feed it, from which turn on, and its batches."""

    options: dict[str, Any]
    producers: int
    first_turn: int
    batch: Callable[[int, int, int], pa.RecordBatch]


def _who(producer: int, sequence: int, rows: int) -> dict[str, pa.Array]:
    return {
        "producer": pa.array(np.full(rows, producer, np.int16)),
        "sequence": pa.array(np.full(rows, sequence, np.int32)),
        "row": pa.array(np.arange(rows, dtype=np.int32)),
    }


def _numbers(producer: int, sequence: int, rows: int) -> pa.RecordBatch:
    noise = np.random.default_rng([producer, sequence]).random(rows)
    return pa.record_batch(_who(producer, sequence, rows) | {"value": pa.array(noise)})


def _everything(producer: int, sequence: int, rows: int) -> pa.RecordBatch:
    late = sequence >= _LATE * _BATCHES
    texts = [f"{producer}-{sequence}-{row}" * (row % 5) for row in range(rows)]
    columns = {
        "text": pa.array(texts),
        "list": pa.array([list(range(row % 4)) for row in range(rows)], pa.list_(pa.int32())),
        "kind": pa.array([f"kind {(sequence + row) % 9}" for row in range(rows)]).dictionary_encode(),
        "late": pa.array([None if late and row % 3 == 0 else row for row in range(rows)], pa.int64()),
        "late_text": pa.array([None if late and row % 4 == 1 else f"µ{row}" for row in range(rows)]),
    }
    return pa.record_batch(_who(producer, sequence, rows) | columns)


def _growing(producer: int, sequence: int, rows: int) -> pa.RecordBatch:
    """Wider from a turn on, with one more column; then narrow again now and then, and wider once more."""
    turn = sequence // _BATCHES
    columns = _who(producer, sequence, rows)
    number = np.arange(rows) * (sequence + 1)
    if turn < _LATE or sequence % 5 == 0:
        return pa.record_batch(columns | {"number": pa.array(number.astype(np.int16))})
    type_ = np.int32 if turn < 2 * _LATE else np.int64
    columns |= {"number": pa.array(number.astype(type_) * 1000)}
    return pa.record_batch(columns | {"more": pa.array([f"more {row}" for row in range(rows)])})


_KINDS = {
    "numbers": _Kind({"compression": "none"}, 2, 0, _numbers),
    "vlen": _Kind({"strings": "vlen"}, 1, 0, _everything),
    "packed": _Kind({"strings": "packed", "compression": "zstd"}, 2, 0, _everything),
    "by HDF5": _Kind({"compression": "bzip2", "chunk_rows": 50}, 1, 1, _numbers),
    "growing": _Kind({"schema_policy": "evolve", "strings": "packed"}, 1, 0, _growing),
    **{f"late {turn}": _Kind({}, 1, turn, _numbers) for turn in range(2, TURNS, 3)},
}


def _batches(name: str, producer: int, turn: int) -> Iterator[pa.RecordBatch]:
    """Give what a producer puts in a turn."""
    kind = _KINDS[name]
    plan = sizes(producer, zlib.crc32(name.encode()), TURNS * _BATCHES, _LARGEST_ROWS)
    for sequence in range(turn * _BATCHES, (turn + 1) * _BATCHES):
        yield kind.batch(producer, sequence, int(plan[sequence]))


# -- the recording ---------------------------------------------------------------------------------------


def record_confirmed(folder: Path, trace: Path, env: Mapping[str, str]) -> list[Call]:
    """Record `FILE` in a folder, with variables added to the environment; return the trace, with marks."""
    with recording(folder, trace, trace.with_suffix(".sealed"), env) as process:
        _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    return Trace.read(trace)


def recording(folder: Path, confirmed: Path, sealed: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start to record `FILE` in a folder.

    Parameters
    ----------
    folder
        Where.
    confirmed, sealed
        Files for marks: after each flush, and after each `put`.
    env
        What is added to the environment.
    """
    return subprocess.Popen(
        [sys.executable, "-P", __file__, str(folder), str(confirmed), str(sealed)],
        env=environment() | dict(env),
        stderr=subprocess.PIPE,
        text=True,
    )


def _record(folder: Path, confirmed: Path, sealed: Path) -> None:
    import shmstore

    rows = {name: [0] * kind.producers for name, kind in _KINDS.items()}

    def mark(file: Path, turns: int) -> None:
        Trace.mark(file, json.dumps({"rows": rows, "metadata": turns}).encode())

    with shmstore.HDF5Storage(
        output_dir=folder, filename=FILE, chunk_rows=64, auto_flush_interval_secs=0.05, ring_bytes="256KiB"
    ) as storage:
        made: dict[tuple[str, int], Any] = {}
        for turn in range(TURNS):
            for name, kind in _KINDS.items():
                for producer in range(kind.producers if turn >= kind.first_turn else 0):
                    own = made.get((name, producer)) or storage.producer(name, **kind.options)
                    made[name, producer] = own
                    for batch in _batches(name, producer, turn):
                        own.put(batch)
                        rows[name][producer] += batch.num_rows
                        mark(sealed, turn)
            storage.set_metadata(f"turn {turn}", {"turn": turn})
            storage.set_instrument_metadata("vlen", "turn", turn)
            if turn % 4 != 1:  # what comes in between is the auto flush's
                storage.flush()
                mark(confirmed, turn + 1)
    mark(confirmed, TURNS)


# -- the check -------------------------------------------------------------------------------------------


class Confirmed(NamedTuple):
    """What a flush had returned for.

    Attributes
    ----------
    rows : dict of str to list of int
        By instrument, the rows of each of its producers.
    metadata : int
        Turns whose metadata was set.
    """

    rows: dict[str, list[int]]
    metadata: int

    @classmethod
    def read(cls, mark: bytes | None) -> Confirmed:
        """Return what a mark says; nothing was confirmed before the first."""
        return cls(**json.loads(mark)) if mark else cls({name: [] for name in _KINDS}, 0)


@cache
def _expected(name: str, producer: int) -> list[Row]:
    """Return all rows that a producer puts."""
    turns = range(_KINDS[name].first_turn, TURNS)
    return [row for turn in turns for batch in _batches(name, producer, turn) for row in batch.to_pylist()]


def check_confirmed(path: Path, confirmed: Confirmed) -> list[str]:
    """Return what is wrong with a file: a line each.

    Each producer's rows must be those that it put first, in their order, once, and no fewer than were
    confirmed.
    """
    import shmstore

    wrong = []
    with h5py.File(path, "r") as file:
        names = [name for name in file if name not in ("metadata", "_shmstore")]
        declared = [name for name in names if "schema" in file[name]]
        wrong += [f"nobody made {name}" for name in names if name not in _KINDS]
        for name in names:
            wrong += [
                f"{name}/{column} has {len(stored)} rows of {file[name].attrs['NROWS']}"
                for column, stored in file[name].items()
                if isinstance(stored, h5py.Dataset)
                and stored.shape
                and len(stored) != file[name].attrs["NROWS"]
            ]
    with shmstore.open(path) as recording:
        wrong += [
            f"metadata of turn {turn} is {recording.metadata.get(f'turn {turn}')}"
            for turn in range(confirmed.metadata)
            if recording.metadata.get(f"turn {turn}") != {"turn": turn}
        ]
        if confirmed.metadata and recording["vlen"].metadata.get("turn", -1) < confirmed.metadata - 1:
            wrong.append("metadata of vlen is old")
    for name in _KINDS:
        rows = shmstore.read(path, name).to_pylist() if name in declared else []
        wrong += [f"{name}: {text}" for text in _check_rows(name, rows, confirmed.rows[name])]
    return wrong


def _check_rows(name: str, rows: list[Row], confirmed: list[int]) -> Iterator[str]:
    found: dict[int, list[Row]] = {producer: [] for producer in range(_KINDS[name].producers)}
    for row in rows:
        if row["producer"] not in found:
            yield f"nobody put {row}"
        else:
            found[row["producer"]].append(row)
    for producer, own in found.items():
        expected = _expected(name, producer)
        due = confirmed[producer] if confirmed else 0
        if len(own) < due:
            yield f"{due - len(own)} of {due} rows of producer {producer} are lost"
        if len(own) > len(expected):
            yield f"{len(own)} rows of producer {producer}, who put {len(expected)}"
        for number, (row, wanted) in enumerate(zip(own, expected, strict=False)):
            if wanted.keys() - row.keys() or any(row[key] != wanted.get(key) for key in row):
                yield f"row {number} of producer {producer} is {row}, not {wanted}"
                break


if __name__ == "__main__":
    _record(*map(Path, sys.argv[1:]))
