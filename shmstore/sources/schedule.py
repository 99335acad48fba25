"""When to read next: an absolute schedule, ended by the other side of a connection. Knows no producer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

#: A reading that is later than this is left out: what it would tell is over.
_LONGEST_CATCH_UP_S = 1.0


class Schedule:
    """Ticks at ``start + n / rate_hz``, however long a reading takes, until the other side says or closes.

    Due times are multiples of the period since the start, so that lateness never adds up. A tick that is late
    by up to a second is caught up at once; after that, ticks are left out and counted.

    Parameters
    ----------
    rate_hz
        Ticks a second.
    line
        Ends the schedule as soon as it is readable: something was sent, or the other side is gone.

    Attributes
    ----------
    ticks : int
        Ticks so far.
    late : int
        Of these, how many began more than half a period after they were due.
    missed : int
        Ticks that were left out.
    """

    def __init__(self, rate_hz: float, line: Connection) -> None:
        self._period_s = 1.0 / rate_hz
        self._line = line
        self.ticks = 0
        self.late = 0
        self.missed = 0

    def __iter__(self) -> Iterator[int]:
        """Yield the number of each tick when it is due; block in between."""
        start_s = time.monotonic()
        number = 0
        while True:
            due_s = start_s + number * self._period_s
            if self._line.poll(max(0.0, due_s - time.monotonic())):
                return
            late_s = time.monotonic() - due_s
            if late_s > _LONGEST_CATCH_UP_S:
                left_out = int(late_s / self._period_s)
                self.missed += left_out
                number += left_out
            elif late_s > self._period_s / 2:
                self.late += 1
            self.ticks += 1
            yield number
            number += 1
