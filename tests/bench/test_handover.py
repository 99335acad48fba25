from __future__ import annotations

import collections
import multiprocessing
import resource
from pathlib import Path

import numpy as np
import pytest

from shmstore.bench.handover import HandedOver
from shmstore.bench.streams import Adc, Telemetry, total_bytes
from shmstore.codec import Codec
from shmstore.errors import BrokenError
from shmstore.payload import Encoded


def test_another_process_writes_the_columns_bytes(tmp_path: Path) -> None:
    stream = Telemetry(rows=10, columns=2, distinct=3)
    run = HandedOver(stream, 50, 1000, tmp_path, 1.0)  # round and round: a ring of six batches
    run.prepare()
    run.run()
    (path,) = tmp_path.iterdir()
    made = stream.batches()
    wanted = b"".join(column.to_numpy().tobytes() for n in range(50) for column in made[n % 3].columns)
    assert path.read_bytes() == wanted
    found = run.finish()
    assert found["file_bytes"] == total_bytes(stream, 50)
    assert set(found["cpu_s"]) == {"producer", "writer"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("codec", ["lz4", "none"])
def test_its_threads_write_what_a_codec_leaves(tmp_path: Path, codec: str) -> None:
    stream = Adc(batch_bytes=4096, distinct=3)
    run = HandedOver(stream, 50, 6 * 4096, tmp_path, 1.0, Codec.parse(codec), threads=2)
    run.prepare()
    run.run()
    (path,) = tmp_path.iterdir()
    encode = Codec.parse(codec).encoder(2, 4096) or (lambda chunk: Encoded(chunk.data, 0))
    payloads = [
        bytes(encode(batch.column(0).to_numpy().view(np.uint8)).payload) for batch in stream.batches()
    ]
    stored = path.read_bytes()
    assert len(stored) == sum(len(payloads[number % 3]) for number in range(50))
    place, left = 0, collections.Counter(payloads[number % 3] for number in range(50))
    while place < len(stored):  # in any order
        (found,) = {payload for payload in left if stored.startswith(payload, place)}
        left[found] -= 1
        place += len(found)
    assert not any(left.values())
    assert run.finish()["file_bytes"] == len(stored)
    assert not list(tmp_path.iterdir())


def test_a_process_that_cannot_write_is_no_hang(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # More than the ring holds: there will be no space to wait for.
    run = HandedOver(Telemetry(rows=10, columns=2), 50, 1000, tmp_path / "none", 1.0)
    run.prepare()
    with pytest.raises(BrokenError, match="ended too early"):
        run.run()
    run.abandon()
    assert "FileNotFoundError" in capfd.readouterr().err


def test_a_thread_that_cannot_write_is_no_hang(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stream = Adc(batch_bytes=4096, distinct=3)
    run = HandedOver(stream, 50, 6 * 4096, tmp_path, 1.0, Codec.parse("lz4"), threads=2)
    run.prepare()
    (child,) = multiprocessing.active_children()
    assert child.pid
    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (5000, 5000))
    with pytest.raises(BrokenError, match="ended too early"):
        run.run()
    run.abandon()
    assert "File too large" in capfd.readouterr().err
