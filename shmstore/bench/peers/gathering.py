"""Batches gathered to pieces of a size that suits a peer: as one would in front of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]


def gathered(parts: Iterable[Arrays], rows: int) -> Iterator[Arrays]:
    """Yield the same rows in pieces of ``rows``, the last one shorter; only what has to be joined is copied.

    Parameters
    ----------
    parts
        Columns by name, all of one length.
    rows
        Rows of a piece.

    Examples
    --------
    >>> parts = [{"a": np.arange(3)}, {"a": np.arange(4)}]
    >>> [piece["a"].tolist() for piece in gathered(parts, 5)]
    [[0, 1, 2, 0, 1], [2, 3]]
    """
    held: list[Arrays] = []
    count = 0
    for part in parts:
        length = len(next(iter(part.values())))
        start = 0
        while start < length:
            stop = min(length, start + rows - count)
            held.append({name: array[start:stop] for name, array in part.items()})
            count += stop - start
            start = stop
            if count == rows:
                yield _joined(held)
                held, count = [], 0
    if held:
        yield _joined(held)


def _joined(parts: list[Arrays]) -> Arrays:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
