"""What shmstore is held against: other ways to bring the same data into a file, on the same filesystem.

One module per family of peers, and here the list of them: which there are for a case, and with which codec.
Each gets its data in the form that suits it, made off the clock, and ends with its file on the disk.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from shmstore.bench.cases import Case
from shmstore.bench.harness import Run
from shmstore.bench.peers.hdf5 import H5pyAppend, H5pyDirect, H5pyQueue
from shmstore.bench.streams import columns, made
from shmstore.codec import Codec
from shmstore.errors import UnsupportedTypeError

__all__ = ["PEERS", "H5pyAppend", "H5pyDirect", "H5pyQueue", "Peer", "kin", "missing_packages"]

#: Given case, batches, folder, what one batch counts, and rows of a chunk.
Build: TypeAlias = Callable[[Case, int, Path, float, int], Run]

# As Blosc counts them: the fastest zstd, its usual lz4.
_BLOSC_LEVELS = {"none": 0, "lz4": 5, "zstd": 1}


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer.

    Attributes
    ----------
    label : str
        Its name in the report.
    build : callable
        Makes a run of it.
    codec : callable
        The codec that it takes for a case, in words.
    arrays : bool
        Whether it takes columns of plain numbers only.
    package : str or None
        What has to be installed for it, besides what shmstore needs itself.
    """

    label: str
    build: Build
    codec: Callable[[Codec], str]
    arrays: bool = True
    package: str | None = None

    def objection(self, case: Case) -> str:
        """Return why it does not take part; empty: it does."""
        if self.label == "h5py direct chunks" and not case.parsed_codec.direct:
            return f"{case.codec} runs inside HDF5 only"
        if not self.arrays:
            return ""
        try:
            for batch in made(case.stream):
                columns(batch)
        except UnsupportedTypeError as error:
            return str(error).partition(":")[0]
        return ""


def kin(codec: Codec) -> str:
    """Return which of ``"none"``, ``"lz4"`` and ``"zstd"`` a codec is nearest to, for peers that have others.

    Examples
    --------
    >>> [kin(Codec.parse(text)) for text in ("none", "gzip", "bitshuffle", "blosc:zstd")]
    ['none', 'zstd', 'lz4', 'zstd']
    """
    if codec.name == "none":
        return "none"
    fast = codec.name in {"lz4", "lzf"} or codec.inner in {"lz4", "lz4hc", "blosclz"}
    return "lz4" if fast else "zstd"


def _blosc(version: str) -> Callable[[Codec], str]:
    def words(codec: Codec) -> str:
        near = kin(codec)
        return near if near == "none" else f"{version}:{near}-{_BLOSC_LEVELS[near]}+shuffle"

    return words


def _earrays(case: Case, batches: int, output: Path, per_batch: float, chunk_rows: int) -> Run:
    from shmstore.bench.peers.pytables import EArrays

    near = kin(case.parsed_codec)
    return EArrays(case.stream, batches, output, per_batch, chunk_rows, near, _BLOSC_LEVELS[near])


def _zarr(sharded: bool) -> Build:
    def build(case: Case, batches: int, output: Path, per_batch: float, chunk_rows: int) -> Run:
        from shmstore.bench.peers.zarrs import ZarrArrays

        near = kin(case.parsed_codec)
        level = _BLOSC_LEVELS[near]
        return ZarrArrays(case.stream, batches, output, per_batch, chunk_rows, near, level, sharded=sharded)

    return build


def _parquet(case: Case, batches: int, output: Path, per_batch: float, _: int) -> Run:
    from shmstore.bench.peers.arrow import ParquetFile

    return ParquetFile(case.stream, batches, output, per_batch, kin(case.parsed_codec))


def _ipc(case: Case, batches: int, output: Path, per_batch: float, _: int) -> Run:
    from shmstore.bench.peers.arrow import IpcFile

    return IpcFile(case.stream, batches, output, per_batch, kin(case.parsed_codec))


#: All peers, in the order of the report.
PEERS: tuple[Peer, ...] = (
    Peer(
        "h5py slices",
        lambda case, batches, output, per_batch, rows: H5pyAppend(
            case.stream, batches, output, per_batch, rows, case.parsed_codec, "h5py slices"
        ),
        str,
    ),
    Peer(
        "h5py direct chunks",
        lambda case, batches, output, per_batch, rows: H5pyDirect(
            case.stream, batches, output, per_batch, rows, case.parsed_codec
        ),
        str,
    ),
    Peer(
        "h5py behind a queue",
        lambda case, batches, output, per_batch, rows: H5pyQueue(
            case.stream, batches, output, per_batch, rows, case.parsed_codec
        ),
        str,
    ),
    Peer("PyTables EArray", _earrays, _blosc("blosc2"), package="tables"),
    Peer("zarr", _zarr(sharded=False), _blosc("blosc"), package="zarr"),
    Peer("zarr sharded", _zarr(sharded=True), _blosc("blosc"), package="zarr"),
    Peer("Parquet", _parquet, kin, arrays=False),
    Peer("Arrow IPC", _ipc, kin, arrays=False),
)


def missing_packages() -> list[str]:
    """Return which packages peers need that are not installed."""
    needed = {peer.package: None for peer in PEERS if peer.package}
    return [package for package in needed if importlib.util.find_spec(package) is None]
