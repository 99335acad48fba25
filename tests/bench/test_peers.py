"""Every peer, on a little of every kind of stream: what it wrote, read back, is what the stream holds."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zarr

from shmstore.bench.cases import Case
from shmstore.bench.peers import PEERS, Peer, missing_packages
from shmstore.bench.peers.gathering import gathered
from shmstore.bench.streams import Adc, Frames, Telemetry, Times, Words, columns

BATCHES, CHUNK_ROWS = 7, 50
STREAMS = {
    "adc": Adc(batch_bytes=400, distinct=3),
    "frames": Frames(8, 8, distinct=3),
    "telemetry": Telemetry(rows=33, columns=3, distinct=3),
    "times": Times(rows=33, distinct=3),
}


def _hdf5(path: Path) -> list[np.ndarray]:
    with h5py.File(path) as file:
        assert all(dataset.chunks[0] == CHUNK_ROWS for dataset in file.values())
        return [file[name][:] for name in file]


def _zarr(path: Path) -> list[np.ndarray]:
    group = zarr.open_group(str(path), mode="r")
    return [array[:] for _, array in sorted(group.arrays())]


def _table(path: Path) -> list[np.ndarray]:
    try:
        table = pa.ipc.open_file(path).read_all()
    except pa.ArrowInvalid:
        table = pa.parquet.read_table(path)
    batch = table.combine_chunks().to_batches()[0]
    return list(columns(batch).values())


READERS: dict[str, Callable[[Path], list[np.ndarray]]] = {
    "h5py slices": _hdf5,
    "h5py direct chunks": _hdf5,
    "h5py behind a queue": _hdf5,
    "PyTables EArray": _hdf5,
    "zarr": _zarr,
    "zarr sharded": _zarr,
    "Parquet": _table,
    "Arrow IPC": _table,
}


def test_every_peer_can_be_read_back() -> None:
    assert [peer.label for peer in PEERS] == list(READERS)
    assert missing_packages() == []


@pytest.mark.parametrize("codec", ["none", "gzip", "blosc:lz4", "bitshuffle"])
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.label)
def test_a_peer_writes_the_stream(tmp_path: Path, peer: Peer, codec: str) -> None:
    if peer.label == "h5py behind a queue" and codec != "gzip":
        codec = "none"
    for name, stream in STREAMS.items():
        case = Case(name, stream, codec, BATCHES)
        assert peer.objection(case) == ""
        run = peer.build(case, BATCHES, tmp_path, 1.0, CHUNK_ROWS)
        run.prepare()
        run.run()
        (path,) = tmp_path.iterdir()
        found = READERS[peer.label](path)
        details = run.finish()
        assert details["file_bytes"] > 0
        assert not list(tmp_path.iterdir())
        made = [columns(batch) for batch in stream.batches()]
        for index, column in enumerate(made[0]):
            wanted = np.concatenate([made[number % len(made)][column] for number in range(BATCHES)])
            np.testing.assert_array_equal(found[index], wanted, err_msg=f"{name}, {column}")


def test_who_needs_arrays_leaves_text_alone() -> None:
    case = Case("log", Words(rows=5, distinct=2), "zstd", 4)
    parts = {peer.label for peer in PEERS if not peer.objection(case)}
    assert parts == {"Parquet", "Arrow IPC"}
    assert "'word' is string" in PEERS[0].objection(case)


def test_direct_chunks_need_an_encoder() -> None:
    (direct,) = (peer for peer in PEERS if peer.label == "h5py direct chunks")
    assert "inside HDF5" in direct.objection(Case("adc", STREAMS["adc"], "lzf", 4))


def test_a_run_that_is_abandoned_leaves_nothing(tmp_path: Path) -> None:
    case = Case("adc", STREAMS["adc"], "none", BATCHES)
    for peer in PEERS:
        run = peer.build(case, BATCHES, tmp_path, 1.0, CHUNK_ROWS)
        run.prepare()
        run.abandon()
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lengths", [[5], [3, 4], [10, 1, 12], [1] * 11, []], ids=str)
def test_gathered(lengths: list[int]) -> None:
    whole = np.arange(sum(lengths))
    edges = np.cumsum([0, *lengths])
    parts: list[dict[str, Any]] = [
        {"a": whole[start:stop], "b": -whole[start:stop]} for start, stop in itertools.pairwise(edges)
    ]
    pieces = list(gathered(parts, 5))
    assert [len(piece["a"]) for piece in pieces[:-1]] == [5] * (len(pieces) - 1)
    assert [value for piece in pieces for value in piece["a"]] == whole.tolist()
    assert [value for piece in pieces for value in piece["b"]] == (-whole).tolist()
