"""Items of a chunked dataset read fast: HDF5 hands out the stored bytes, threads beside it decode them.

Owns the choice between that and HDF5's own way, and the bound on what is under way at once. Knows neither
columns nor Arrow, and nothing of what a stored chunk looks like (:mod:`shmstore.unpack` does). h5py has one
lock for all that it does, so HDF5's filters never run beside each other; here they run outside of it.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from shmstore.unpack import Decoder

__all__ = ["read_items"]

Items = npt.NDArray[Any]

#: Below this HDF5 is about as fast (2 MiB in chunks of 256 KiB, two busy cores: gzip 4.3 against 2.1 ms, zstd
#: 2.2 against 2.8), and its cache may have the chunk that several small reads want.
_WORTHWHILE_BYTES = 2 << 20
#: Chunks below this take longer in Python than in HDF5: 8 MiB in chunks of 4 KiB, 0.3 to 1.2 of its speed.
_SMALLEST_CHUNK = 32 << 10
#: What a thread takes at a time.
_TASK_BYTES = 512 << 10
#: More threads than that wait for the one that reads.
_MOST_THREADS = 8


class _Stored(NamedTuple):
    """One chunk as it is in the file."""

    number: int
    payload: bytes
    filter_mask: int


def read_items(dataset: h5py.Dataset, start: int, stop: int, out: Items | None = None) -> Items:
    """Read ``dataset[start:stop]``, with the chunks decoded in parallel where that is faster.

    Blocks the calling thread, which alone talks to HDF5; up to 8 threads live for as long as the call takes.

    Parameters
    ----------
    dataset
        Borrowed for the call; of at least one dimension.
    start, stop
        First item, and the item after the last, along the first dimension; as in a slice.
    out
        Where to read to: ``(stop - start, *dataset.shape[1:])`` items of the dataset's type, contiguous; by
        default a new array. Undefined after an error.

    Returns
    -------
    numpy.ndarray
        ``out``, or an array that the caller owns. Items that were never written have the fill value.

    Raises
    ------
    ValueError
        ``out`` does not fit.
    OSError
        A chunk is damaged; the message has its number. Other errors are as h5py raises them.
    """
    start, stop, _ = slice(start, stop).indices(len(dataset))
    stop = max(start, stop)
    shape = (stop - start, *dataset.shape[1:])
    if out is not None and not (out.shape == shape and out.dtype == dataset.dtype and out.flags.c_contiguous):
        raise ValueError(
            f"items of shape {shape} and type {dataset.dtype} do not go into an array of {out.shape} and "
            f"{out.dtype}: give one that fits, contiguous"
        )
    decoder = _decoder(dataset, start, stop)
    if decoder is not None:
        out = np.empty(shape, dataset.dtype) if out is None else out
        _Reading(dataset, start, stop, out, decoder).run()
    elif out is None:
        out = np.asarray(dataset[start:stop])
    else:
        out[...] = dataset[start:stop]
    return out


def _decoder(dataset: h5py.Dataset, start: int, stop: int) -> Decoder | None:
    """What decodes the dataset's chunks; None where HDF5 does it as well, or alone can do it."""
    chunks = dataset.chunks
    if not chunks or chunks[1:] != dataset.shape[1:] or stop - start <= chunks[0]:
        return None
    dtype = dataset.dtype
    item_bytes = dtype.itemsize * int(np.prod(chunks[1:]))
    if chunks[0] * item_bytes < _SMALLEST_CHUNK or (stop - start) * item_bytes < _WORTHWHILE_BYTES:
        return None
    # What numpy has in memory must be what HDF5 has in the file, bit by bit.
    if dtype.hasobject or not h5py.h5t.py_create(dtype, logical=True).equal(dataset.id.get_type()):
        return None
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(number) for number in range(properties.get_nfilters())]
    if not filters:
        return None
    from shmstore.unpack import build_decoder  # the compression libraries: only who reads much pays for them

    return build_decoder([(id_, values) for id_, _, values, _ in filters], chunks[0] * item_bytes)


class _Reading:
    """One range of one dataset on its way into one array.

    Parameters
    ----------
    dataset
        Borrowed.
    start, stop
        The range, within the dataset.
    out
        Contiguous; borrowed and filled.
    decoder
        For the dataset's chunks.
    """

    def __init__(self, dataset: h5py.Dataset, start: int, stop: int, out: Items, decoder: Decoder) -> None:
        self._dataset = dataset
        self._start = start
        self._stop = stop
        self._out = out
        self._decoder = decoder
        self._chunk_items: int = dataset.chunks[0]
        self._item_bytes = out.nbytes // len(out)
        self._flat = out.reshape(-1).view(np.uint8)
        self._origin = (0,) * (out.ndim - 1)
        self._name = dataset.name  # now: no thread may ask h5py, whose lock the caller may have

    def run(self) -> None:
        """Read the stored chunks in order, and let threads decode them: a bounded number ahead of them."""
        first, last = self._start // self._chunk_items, -(-self._stop // self._chunk_items)
        step = max(1, _TASK_BYTES // self._bytes(self._chunk_items))
        tasks = range(first, last, step)
        threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS, len(tasks))
        under_way: deque[Future[list[int]]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="shmstore-chunks") as pool:
            for begin in tasks:
                if len(under_way) > threads + 1:
                    self._through_hdf5(under_way.popleft().result())
                stored = self._read(range(begin, min(begin + step, last)))
                under_way.append(pool.submit(self._decode, stored))
            while under_way:
                self._through_hdf5(under_way.popleft().result())

    def _read(self, numbers: range) -> list[_Stored]:
        """Return chunks as they are in the file, without those that were never written: these are filled."""
        stored = []
        for number in numbers:
            try:
                place = (number * self._chunk_items, *self._origin)
                filter_mask, payload = self._dataset.id.read_direct_chunk(place)
            except (OSError, RuntimeError, ValueError):
                self._through_hdf5([number])  # which knows what belongs there, or says what is wrong
            else:
                stored.append(_Stored(number, payload, filter_mask))
        return stored

    def _decode(self, stored: list[_Stored]) -> list[int]:
        """Decode into the array, in any thread; returns the numbers of the chunks that HDF5 has to read."""
        left = []
        for number, payload, filter_mask in stored:
            low, high = self._within(number)
            place = self._flat[self._bytes(low - self._start) : self._bytes(high - self._start)]
            whole = place.nbytes == self._bytes(self._chunk_items)
            target = place if whole else np.empty(self._bytes(self._chunk_items), np.uint8)
            try:
                self._decoder(payload, filter_mask, target)
            except NotImplementedError:
                left.append(number)
                continue
            except ValueError as error:
                raise OSError(f"chunk {number} of {self._name!r}: {error}") from None
            if not whole:
                begin = self._bytes(low - number * self._chunk_items)
                place[:] = target[begin : begin + place.nbytes]
        return left

    def _through_hdf5(self, numbers: list[int]) -> None:
        for number in numbers:
            low, high = self._within(number)
            self._out[low - self._start : high - self._start] = self._dataset[low:high]

    def _bytes(self, items: int) -> int:
        return items * self._item_bytes

    def _within(self, number: int) -> tuple[int, int]:
        """Return the part of the range that lies in a chunk."""
        begin = number * self._chunk_items
        return max(begin, self._start), min(begin + self._chunk_items, self._stop)
