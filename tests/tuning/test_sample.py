"""The sample: the beginning of the data, bounded, exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest

from shmstore.sources.files import InputError, open_source
from shmstore.tuning.sample import mapped_batches, take_sample

MIB = 1 << 20
SCHEMA = pa.schema([("row", pa.int64()), ("label", pa.dictionary(pa.int8(), pa.string()))])


def batch(first: int, rows: int) -> pa.RecordBatch:
    labels = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), pa.array([f"from {first}"]))
    return pa.record_batch([pa.array(np.arange(first, first + rows)), labels], schema=SCHEMA)


def written(path: Path, batches: list[pa.RecordBatch]) -> str:
    with pa.ipc.new_stream(str(path), SCHEMA) as writer:
        for each in batches:
            writer.write_batch(each)
    return str(path)


def test_all_of_little_data(output_dir: Path) -> None:
    batches = [batch(0, 1000), batch(1000, 10)]  # with another dictionary each
    with open_source(written(output_dir / "in.arrows", batches)) as source:
        sample = take_sample(source, output_dir / "sample")
    assert mapped_batches(sample.path) == batches
    assert (sample.rows, sample.count, sample.whole, sample.stem) == (1010, 2, True, "in")
    assert sample.nbytes == sum(each.nbytes for each in batches)
    assert "path" not in sample.to_dict()


def test_the_beginning_of_much(output_dir: Path) -> None:
    batches = [batch(1000 * number, 1000) for number in range(100)]
    with open_source(written(output_dir / "in.arrows", batches)) as source:
        sample = take_sample(source, output_dir / "sample", most_bytes=20_000)
    assert not sample.whole
    assert mapped_batches(sample.path) == batches[: sample.count]
    assert 20_000 <= sample.nbytes < 30_000


def test_large_batches_are_cut(output_dir: Path) -> None:
    large = batch(0, 2 * MIB)
    with open_source(written(output_dir / "in.arrows", [large])) as source:
        sample = take_sample(source, output_dir / "sample")
    pieces = mapped_batches(sample.path)
    assert max(piece.nbytes for piece in pieces) <= 5 * MIB
    assert pa.Table.from_batches(pieces) == pa.Table.from_batches([large])


def test_no_rows_are_nothing_to_tune_for(output_dir: Path) -> None:
    with (
        open_source(written(output_dir / "in.arrows", [batch(0, 0)])) as source,
        pytest.raises(InputError, match="holds no rows: there is nothing to tune for"),
    ):
        take_sample(source, output_dir / "sample")


def test_an_end_on_request(output_dir: Path) -> None:
    with open_source(written(output_dir / "in.arrows", [batch(0, 10), batch(10, 10)])) as source:
        assert take_sample(source, output_dir / "sample", stopped=lambda: True).rows == 10
