"""The loan: a slot of the ring lent to the caller as numpy arrays, so that data can be made in place."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from shmstore.batch import PlainLayout
from shmstore.errors import ClosedError, SchemaMismatchError

#: Takes the body back: its rows, and whether to seal it; returns the sequence number of a sealed one.
GiveBack: TypeAlias = Callable[[memoryview, int, bool], int | None]


class Loan:
    """A slot of the ring on loan: numpy arrays over shared memory, one a column. Made by `Producer.loan`.

    Within the ``with`` block, ``loan["column"]`` is a writable array ``(rows, *item_shape)``; what it held
    before is undefined, so every element must be set. At the end of the block the rows are sealed and the
    arrays become read-only.

    Attributes
    ----------
    rows : int
        Number of rows.
    sequence : int or None
        Sequence number, once sealed.
    """

    def __init__(
        self, instrument_id: str, body: memoryview, plain: PlainLayout, rows: int, give_back: GiveBack
    ) -> None:
        self.rows = rows
        self.sequence: int | None = None
        self._instrument_id = instrument_id
        self._give_back = give_back
        self._body: memoryview | None = body
        self._arrays = {column.name: array for column, array in plain.arrays(body, rows)}

    def __getitem__(self, column: str) -> npt.NDArray[Any]:
        """Return the array of a column, ``(rows, *item_shape)``, over the ring's own memory."""
        if self._body is None:
            raise ClosedError(f"this loan of {self._instrument_id!r} was given back: take a new one")
        try:
            return self._arrays[column]
        except KeyError:
            raise SchemaMismatchError(
                f"{self._instrument_id!r} has no column {column!r}: it has "
                f"{', '.join(map(repr, self._arrays))}"
            ) from None

    def __setitem__(self, column: str, values: npt.ArrayLike) -> None:
        """Copy values into a column: ``loan["time"] = clock``."""
        self[column][...] = np.asarray(values)

    def __enter__(self) -> Self:
        """Return the loan itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Seal, or give the space back unseen after an exception."""
        body, self._body = self._body, None
        if body is None:
            return
        for array in self._arrays.values():
            array.flags.writeable = False  # sealed is immutable, as far as numpy lets us say so
        self._arrays.clear()
        self.sequence = self._give_back(body, self.rows, kind is None)

    def __repr__(self) -> str:
        return f"<Loan: {self.rows} rows, {'open' if self._body is not None else 'given back'}>"
