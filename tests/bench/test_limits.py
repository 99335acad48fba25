from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import shmstore
from shmstore.bench.limits import CodecAlone, Memcpy, PwriteLoop, PwriteResult, chunks_of, machine_limit
from shmstore.bench.streams import Adc, Telemetry, Words, total_bytes
from shmstore.codec import Codec
from shmstore.inspection import describe


def test_machine_limit_is_cores_over_processor_seconds() -> None:
    assert machine_limit(2, [0.1, 0.7, 0.2]) == 2000.0
    assert machine_limit(4, [1.0]) == 4000.0


def test_pwrite_writes_the_columns_bytes(tmp_path: Path) -> None:
    stream = Telemetry(rows=10, columns=2, distinct=3)
    run = PwriteLoop(stream, 5, tmp_path, 1.0)
    run.prepare()
    run.run()
    (path,) = tmp_path.iterdir()
    made = stream.batches()
    wanted = b"".join(column.to_numpy().tobytes() for n in range(5) for column in made[n % 3].columns)
    assert path.read_bytes() == wanted
    assert run.finish() == {"file_bytes": total_bytes(stream, 5)}
    assert not list(tmp_path.iterdir())


def test_memcpy_goes_round_and_round() -> None:
    run = Memcpy(Adc(batch_bytes=4096, distinct=3), 10, 8192, 0.5)
    assert (run.amount, run.touches) == (5.0, 0)
    run.prepare()
    run.run()
    assert run.finish() == {}
    with pytest.raises(RuntimeError, match="prepare"):
        run.run()


@pytest.mark.parametrize("codec", ["gzip", "bitshuffle"])
def test_the_codec_alone_makes_of_the_chunks_what_the_recording_has(
    output_dir: Path, shared_folder: Path, codec: str
) -> None:
    stream, batches = Telemetry(rows=1000, columns=3, distinct=4), 20
    with shmstore.HDF5Storage(
        output_dir=output_dir, compression=codec, chunk_rows=4000, shm_dir=shared_folder, standby=False
    ) as storage:
        made = stream.batches()
        for number in range(batches):
            storage.write_batch("stream", made[number % 4])
    nbytes = total_bytes(stream, batches)
    chunks = chunks_of(storage.path, nbytes)
    assert chunks.rows == 4000
    assert chunks.share == pytest.approx(1.0)
    assert chunks.nbytes == nbytes
    alone = CodecAlone(chunks, Codec.parse(codec), 2, megabytes=3 * nbytes / 1e6)
    assert alone.amount == pytest.approx(3 * nbytes / 1e6)
    alone.prepare()
    alone.run()
    stored = sum(
        dataset.storage_bytes
        for instrument in describe(storage.path).instruments
        for column in instrument.columns
        for dataset in column.datasets
    )
    assert alone.finish() == {"file_bytes": 3 * stored, "threads": 2}
    result = PwriteResult(chunks, Codec.parse(codec), output_dir, megabytes=2 * nbytes / 1e6)
    result.run()
    assert result.finish() == {"file_bytes": 2 * stored}


def test_chunks_of_packed_text_are_its_offsets_and_bytes(output_dir: Path, shared_folder: Path) -> None:
    batch = Words(rows=2000, distinct=1).batches()[0]
    with shmstore.HDF5Storage(
        output_dir=output_dir, strings="packed", shm_dir=shared_folder, standby=False
    ) as storage:
        storage.write_batch("stream", batch)
    chunks = chunks_of(storage.path, batch.nbytes)
    text = "".join(batch.column(0).to_pylist()).encode()
    held = [array.tobytes() for array in chunks.arrays]
    assert text in b"".join(held)
    assert chunks.nbytes == pytest.approx(chunks.share * batch.nbytes)


def test_a_recording_without_chunks_has_none(output_dir: Path, shared_folder: Path) -> None:
    with shmstore.HDF5Storage(output_dir=output_dir, shm_dir=shared_folder, standby=False) as storage:
        storage.write_batch("stream", pa.record_batch({"note": ["a", "b"]}))
    chunks = chunks_of(storage.path, 10)
    assert [array for array in chunks.arrays if array.dtype == np.object_] == []
    assert chunks.rows >= 1
