"""What users can get wrong: one line of error each, and what was accepted before and after is in the file."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from processes.ledger import check_instrument
from processes.programs import TIMEOUT_S, environment
from processes.rows import SCHEMA, batch

import shmstore

ROWS = 20
RING_BYTES = 64 * 1024
BLOB = pa.schema([("blob", pa.binary())])


def said(caught: pytest.ExceptionInfo[BaseException]) -> str:
    """Return the message of an error, which must be one line and not end in the middle of nothing."""
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


@contextmanager
def between(folder: Path, **settings: Any) -> Iterator[shmstore.HDF5Storage]:
    """Record a batch, what the block does, and two more; then check that they are in a complete file."""
    with shmstore.HDF5Storage(output_dir=folder, ring_bytes=RING_BYTES, **settings) as storage:
        producer = storage.producer("good", SCHEMA)
        producer.put(batch(1, 0, ROWS))
        yield storage
        producer.put(batch(1, 1, ROWS))
        storage.write_batch("good", batch(2, 0, ROWS))
    with shmstore.open(storage.path) as recording:
        assert recording.state == "complete"
        assert recording.accounting
        assert recording.accounting["ok"]
        check_instrument(recording["good"], {1: [ROWS, ROWS], 2: [ROWS]})


def renamed(part: pa.RecordBatch) -> pa.RecordBatch:
    return part.rename_columns(["maker", *part.schema.names[1:]])


def retyped(part: pa.RecordBatch) -> pa.RecordBatch:
    return part.set_column(2, "row", part["row"].cast(pa.int64()))


def longer(part: pa.RecordBatch) -> pa.RecordBatch:
    return part.append_column("more", pa.array(np.zeros(len(part))))


def shorter(part: pa.RecordBatch) -> pa.RecordBatch:
    return part.drop_columns(["flag"])


def turned(part: pa.RecordBatch) -> pa.RecordBatch:
    return part.select(SCHEMA.names[::-1])


ANOTHER = [(renamed, "maker"), (retyped, "row"), (longer, "more"), (shorter, "flag"), (turned, "flag")]


@pytest.mark.parametrize(("change", "culprit"), ANOTHER, ids=[change.__name__ for change, _ in ANOTHER])
def test_a_batch_of_another_schema(
    output_dir: Path, change: Callable[[pa.RecordBatch], pa.RecordBatch], culprit: str
) -> None:
    other = change(batch(9, 0, ROWS))
    with between(output_dir) as storage:
        producer = storage.producer("good", SCHEMA)
        for attempt in (
            lambda: producer.put(other),
            lambda: storage.write_batch("good", other),
            lambda: storage.producer("good", other.schema),
        ):
            with pytest.raises(shmstore.SchemaMismatchError, match=f"'good' .*'{culprit}'") as caught:
                attempt()
            said(caught)
            assert isinstance(caught.value, ValueError)
        assert (producer.stats().accepted, producer.stats().rejected) == (ROWS, ROWS)
        producer.close()
    assert (storage.final_stats.committed, storage.final_stats.rejected) == (3 * ROWS, 2 * ROWS)


def test_a_row_larger_than_the_ring(output_dir: Path) -> None:
    row = pa.record_batch([pa.array([b"x" * (RING_BYTES + 1)])], BLOB)
    with between(output_dir) as storage:
        small = storage.producer("small", BLOB)
        text = ""
        for attempt in (lambda: small.put(row), lambda: storage.write_batch("small", row)):
            with pytest.raises(
                shmstore.BatchTooLargeError, match=r"one row of 'small' .*ring_bytes"
            ) as caught:
                attempt()
            text = said(caught)
            assert isinstance(caught.value, ValueError)
        assert small.stats().rejected == 1
        small.put(pa.record_batch([pa.array([b"fits"])], BLOB))
        remedy = re.search(r"ring_bytes to at least (\d+)", text)
        assert remedy
        large = storage.producer("large", BLOB, ring_bytes=int(remedy[1]))
        large.put(row)
    with shmstore.open(storage.path) as recording:
        assert recording["small"].read()["blob"].to_pylist() == [b"fits"]
        assert recording["large"].read().equals(pa.Table.from_batches([row]))
    assert storage.final_stats.instruments["small"].rejected == 2


def test_a_row_larger_than_the_ring_among_small_ones(output_dir: Path) -> None:
    # All or nothing: a batch with such a row is refused before anything of it is in the ring.
    values = [b"a" * 1000] * 50 + [b"b" * 2 * RING_BYTES] + [b"c" * 1000] * 50
    with between(output_dir) as storage:
        producer = storage.producer("x", BLOB)
        with pytest.raises(shmstore.BatchTooLargeError, match="'x'") as caught:
            producer.put(pa.record_batch([pa.array(values)], BLOB))
        said(caught)
        counts = producer.stats()
        assert (counts.accepted, counts.rejected, counts.sealed) == (len(values), len(values), 0)


def test_a_first_batch_that_was_refused_leaves_its_instrument_open(output_dir: Path) -> None:
    with between(output_dir) as storage:
        late = storage.producer("late", columns={"fine": {"compression": "none"}})
        odd = pa.record_batch({"odd one": [1, 2]})
        for _ in range(2):
            with pytest.raises(shmstore.ConfigError, match="'fine'") as caught:
                late.put(odd)
            said(caught)
        late.put(pa.record_batch({"fine": [1, 2]}))
        assert (late.stats().accepted, late.stats().rejected) == (6, 4)
    assert shmstore.read(storage.path, "late")["fine"].to_pylist() == [1, 2]


NESTED = pa.DictionaryArray.from_arrays(
    pa.array([0], pa.int8()), pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), pa.array(["a"]))
)
STRANGE = [
    NESTED,
    NESTED,
    pa.ListArray.from_arrays([0, 1], NESTED),
    pa.StructArray.from_arrays([NESTED, NESTED], ["a", "b"]),
]


def test_a_column_of_a_type_that_cannot_be_recorded(output_dir: Path) -> None:
    with between(output_dir) as storage:
        late = storage.producer("late")
        for odd in STRANGE:
            one = pa.record_batch({"fine": pa.array([1]), "odd one": odd})
            for attempt in (
                lambda one=one: storage.producer("x", one.schema),
                lambda one=one: late.put(one),
                lambda one=one: storage.write_batch("y", one),
            ):
                with pytest.raises(
                    shmstore.UnsupportedTypeError, match="column 'odd one' holds a dictionary"
                ) as caught:
                    attempt()
                said(caught)
                assert isinstance(caught.value, TypeError)
        assert late.stats().rejected == len(STRANGE)
        # A first batch that was refused leaves the instrument open for one that can be taken.
        late.put(pa.record_batch({"fine": [1, 2]}))
        storage.write_batch("y", pa.record_batch({"fine": [3]}))
    assert shmstore.read(storage.path, "late")["fine"].to_pylist() == [1, 2]
    assert shmstore.read(storage.path, "y")["fine"].to_pylist() == [3]


def stream(*parts: pa.RecordBatch) -> tuple[bytes, list[int]]:
    """Return a serialized stream, and where in it each batch ends."""
    sink, ends = io.BytesIO(), []
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        for part in parts:
            writer.write_batch(part)
            ends.append(sink.tell())
    return sink.getvalue(), ends


def test_a_stream_cut_anywhere(output_dir: Path) -> None:
    parts = [batch(3, sequence, ROWS) for sequence in range(4)]
    data, ends = stream(*parts)
    expected: list[int] = []
    with between(output_dir) as storage:
        for cut in range(5, ends[-1], len(data) // 40):
            if cut in ends:
                continue  # Arrow takes the end of the bytes between two messages for the end of the stream
            with pytest.raises(ValueError, match="'x': the bytes are no whole Arrow IPC stream") as caught:
                storage.write_batch("x", data[:cut])
            said(caught)
            expected += [sequence for sequence, end in enumerate(ends) if end <= cut]
        storage.write_batch("x", data)
        expected += range(len(parts))
    assert storage.final_stats.instruments["x"].rows_written == len(expected) * ROWS
    assert shmstore.read(storage.path, "x").equals(
        pa.Table.from_batches([parts[at] for at in expected], SCHEMA)
    )


@pytest.mark.parametrize("strings", ["vlen", "packed"])
def test_a_stream_with_flipped_bytes_is_refused_or_recorded(output_dir: Path, strings: str) -> None:
    # What is accepted need not be what was meant: Arrow has no checksum. But it is sound, and recorded.
    data, _ = stream(batch(3, 0, ROWS))
    chance = np.random.default_rng(11)
    refused = taken = 0
    messages: set[str] = set()
    with between(output_dir, strings=strings) as storage:
        for number in range(200):
            damaged = bytearray(data)
            for at in chance.integers(0, len(data), 1 + number % 3):
                damaged[at] ^= int(chance.integers(1, 256))
            try:
                storage.write_batch("x", bytes(damaged))
                taken += 1
            except (ValueError, TypeError, shmstore.ShmStoreError) as error:
                refused += 1
                messages.add(str(error))
    assert refused > 10
    assert not [message for message in messages if not message or "\n" in message]
    assert taken > 10
    with shmstore.open(storage.path) as recording:
        table = recording["x"].read()
        table.validate(full=True)
        assert table.num_rows == storage.final_stats.instruments["x"].committed > 0


def text(chars: bytes, *offsets: int) -> pa.RecordBatch:
    """Return a column of text made from its parts, which nobody has checked."""
    parts = [None, pa.py_buffer(np.array(offsets, np.int32)), pa.py_buffer(chars)]
    return pa.record_batch([pa.Array.from_buffers(pa.string(), len(offsets) - 1, parts)], names=["text"])


DAMAGED = [
    text(b"ok\xff\xfe", 0, 2, 4),  # no UTF-8
    text(b"okab", 0, 900_000, 2, 4),  # offsets beyond the end, below zero, descending
    text(b"okab", 0, -900_000, 2, 4),
    text(b"okab", 0, 3, 1, 4),
]
FINE = pa.record_batch({"text": ["fine"]})


@pytest.mark.parametrize("strings", ["vlen", "packed", "fixed:8"])
def test_a_damaged_array(output_dir: Path, strings: str) -> None:
    with between(output_dir) as storage:
        producer = storage.producer("x", FINE.schema, strings=strings)
        producer.put(FINE)
        for damaged in DAMAGED:
            rejected = producer.stats().rejected
            with pytest.raises(shmstore.InvalidValueError, match="column 'text'") as caught:
                producer.put(damaged)
            said(caught)
            assert producer.stats().rejected == rejected + len(damaged)
            sink = io.BytesIO()
            with pa.ipc.new_stream(sink, damaged.schema) as writer:
                writer.write_batch(damaged)
            with pytest.raises(ValueError, match="'x': the bytes are no whole Arrow IPC stream") as raised:
                producer.put(sink.getvalue())
            said(raised)
        producer.put(FINE)
    assert shmstore.read(storage.path, "x")["text"].to_pylist() == ["fine", "fine"]


def unchecked(producer: shmstore.Producer) -> shmstore.Producer:
    """Return a producer in use that puts whatever it gets: a faulty one, or one of another version."""
    assert producer._declared
    producer._declared = producer._declared._replace(checked=())
    return producer


@pytest.mark.parametrize("strings", ["vlen", "packed", "fixed:8"])
def test_the_writer_does_not_trust_producers(output_dir: Path, strings: str) -> None:
    storage = shmstore.HDF5Storage(output_dir=output_dir, ring_bytes=RING_BYTES).start()
    producer = storage.producer("x", FINE.schema, strings=strings)
    producer.put(FINE)
    for damaged in DAMAGED:
        unchecked(producer).put(damaged)
    producer.put(FINE)
    storage.flush()
    lost = sum(map(len, DAMAGED))
    assert storage.stats().quarantined == lost
    with pytest.raises(shmstore.IncompleteFileError, match=r"rows of 'x' are in .*quarantine") as caught:
        storage.close()
    said(caught)
    with shmstore.open(storage.path) as recording:
        assert recording.state == "partial"
        assert recording["x"].read()["text"].to_pylist() == ["fine", "fine"]
        assert recording.accounting
        (account,) = recording.accounting["producers"]
    assert (account["accepted"], account["committed"], account["rejected"]) == (2 + lost, 2, lost)


def test_what_is_sealed_and_not_there_counts_as_lost_when_its_producer_ends(output_dir: Path) -> None:
    """Its seal, and the word how far the producer has come, are overwritten: there is nothing to take."""
    with shmstore.HDF5Storage(output_dir=output_dir, ring_bytes=RING_BYTES) as storage:
        producer = storage.producer("cam", SCHEMA)
        producer.put(batch(1, 0, ROWS))
        storage.flush()
        os.kill(storage.writer_pid, signal.SIGSTOP)
        assert producer._attachment is not None
        ring = producer._attachment.ring
        path, at = ring.segment.path, ring.position
        producer.put(batch(1, 1, ROWS))
        ring._words[at % ring.capacity // 8 + 7] = 0
        ring._producer[0] = at
        producer.close()
        os.kill(storage.writer_pid, signal.SIGCONT)
        deadline = time.monotonic() + TIMEOUT_S
        while path.exists():  # until the writer has let go of it, while it records
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(shmstore.IncompleteFileError, match=f"{ROWS} rows of 'cam' were sealed"):
            storage.close()
    assert shmstore.verify(storage.path).state == "partial"
    with shmstore.open(storage.path) as recording:
        check_instrument(recording["cam"], {1: [ROWS]})


def test_no_arrow_data_at_all(output_dir: Path) -> None:
    with between(output_dir) as storage:
        for thing in (None, 1, "text", [1, 2], {"a": [1]}, object(), np.arange(3)):
            with pytest.raises(TypeError, match=r"'good': .*carries no Arrow data") as caught:
                storage.write_batch("good", thing)
            said(caught)


@pytest.mark.parametrize("below", ["file", "file/deeper", "/proc", "/proc/deeper"])
def test_an_output_folder_that_cannot_be_written_to(output_dir: Path, below: str) -> None:
    (output_dir / "file").write_text("no folder")
    with pytest.raises(shmstore.StorageError, match="cannot ") as caught:
        shmstore.HDF5Storage(output_dir=output_dir / below).start()
    text = said(caught)
    assert below in text
    assert isinstance(caught.value, OSError)
    assert caught.value.errno in (errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.EACCES, errno.EROFS)
    assert (output_dir / "file").read_text() == "no folder"


def test_a_file_that_exists_is_never_overwritten(output_dir: Path) -> None:
    (output_dir / "mine.h5").write_text("precious")
    with pytest.raises(shmstore.StorageError, match=r"mine\.h5") as caught:
        shmstore.HDF5Storage(output_dir=output_dir, filename="mine.h5").start()
    said(caught)
    assert caught.value.errno == errno.EEXIST
    assert (output_dir / "mine.h5").read_text() == "precious"


def test_too_little_shared_memory_for_a_ring(output_dir: Path) -> None:
    total = shutil.disk_usage("/dev/shm").total
    with between(output_dir) as storage:
        before = set(Path("/dev/shm", f"shmstore-{storage.name}").iterdir())
        for instrument in ("x", "good"):
            with pytest.raises(
                shmstore.StorageError, match=r"shared memory.*are left there.*--shm-size"
            ) as caught:
                storage.producer(instrument, SCHEMA, ring_bytes=2 * total)
            said(caught)
            assert caught.value.errno == errno.ENOSPC
        assert set(Path("/dev/shm", f"shmstore-{storage.name}").iterdir()) == before


def test_a_folder_for_shared_memory_that_is_not_there(output_dir: Path) -> None:
    with pytest.raises(shmstore.StorageError, match="nowhere") as caught:
        shmstore.HDF5Storage(output_dir=output_dir, shm_dir=output_dir / "nowhere").start()
    said(caught)
    assert not list(output_dir.glob("*.h5"))


def test_a_typo_in_the_configuration(output_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(shmstore.ConfigError, match="'compresion'; did you mean 'compression'") as caught:
        shmstore.HDF5Storage(output_dir=output_dir, compresion="gzip")
    said(caught)
    with between(output_dir) as storage:
        with pytest.raises(shmstore.ConfigError, match=r"'ring_byte'; did you mean 'ring_bytes'") as caught:
            storage.producer("x", SCHEMA, ring_byte=1)
        said(caught)
        with pytest.raises(shmstore.ConfigError, match=r"on_full") as caught:
            storage.producer("x", SCHEMA, on_full="block!")
        said(caught)
        with pytest.raises(shmstore.ConfigError, match=r"labl") as caught:
            storage.producer("x", SCHEMA, columns={"labl": {"strings": "packed"}})
        said(caught)
        with pytest.raises(shmstore.ConfigError, match=r"all its producers must agree") as caught:
            storage.producer("good", SCHEMA, compression="none")
        said(caught)
    (output_dir / "shmstore.toml").write_text("[storage]\nautoflush_interval_secs = 3\n")
    monkeypatch.chdir(output_dir)
    with pytest.raises(shmstore.ConfigError, match=r"shmstore\.toml.*'auto_flush_interval_secs'") as caught:
        shmstore.HDF5Storage()
    said(caught)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud800"], ids=["NUL", "long", "surrogate"])
def test_an_instrument_id_that_cannot_be_used(output_dir: Path, name: str) -> None:
    with between(output_dir) as storage:
        for attempt in (
            lambda: storage.producer(name, SCHEMA),
            lambda: storage.write_batch(name, batch(1, 0, 1)),
            lambda: storage.set_instrument_metadata(name, "key", 1),
        ):
            with pytest.raises(shmstore.InvalidValueError) as caught:
                attempt()
            assert len(said(caught)) < 500


UNCAUGHT = """
import sys
import shmstore
from processes.rows import SCHEMA, batch

with shmstore.HDF5Storage(output_dir=".", filename="kept.h5", ring_bytes="64KiB") as storage:
    producer = storage.producer("x", SCHEMA)
    producer.put(batch(1, 0, 20))
    producer.put(batch(1, 1, 20).drop_columns(["row"]))
"""


def test_a_program_that_ends_by_such_an_error_leaves_a_complete_file(output_dir: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", UNCAUGHT],
        cwd=output_dir,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("shmstore.errors.SchemaMismatchError: a batch for 'x'")
    with shmstore.open(output_dir / "kept.h5") as recording:
        assert recording.state == "complete"
        check_instrument(recording["x"], {1: [20]})
    assert [path.name for path in output_dir.iterdir()] == ["kept.h5"]
