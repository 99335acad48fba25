"""The effort that an instrument's chunks are compressed with: less while codec threads cannot keep up.

Owns the decision when it steps down and up again, the encoders that follow it, and the counts of what it did
(``compression="adaptive"``). It has no clock and no thread: the writer tells it how full the rings are and
how long the file waited for codecs. It knows neither rings nor HDF5.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from shmstore.codec import Codec
from shmstore.payload import Encoded, Encoder

#: What is told within this time is one look. A ring of 64 MiB takes 130 ms to fill at 500 MB/s.
_LOOK_S = 0.02
#: Within this time after a step down what it brings cannot be seen yet: the ring has first to drain.
_EFFECT_S = 0.1
#: A ring that lost so much of its fill since then is draining.
_DRAINS = 0.1
#: Shares of a ring: from the first on it is about to be full, up to the other it has room. A ring that is
#: only a quarter full may hold nothing but what waits for its commit.
_FULL, _ROOMY = 0.75, 0.5
#: Shares of the time in which the file waits for codecs: from the first on it is they who cannot keep up, up
#: to the other it is the disk, or memory. Less effort would make more bytes, and so be in the way.
_CODECS_BEHIND, _CODECS_AHEAD = 0.5, 0.1
#: How long nothing may speak against a step up before it is taken. One that has to be taken back within the
#: third doubles that, up to the second; one that has not makes it what it was.
_FIRST_HOLD_S, _LONGEST_HOLD_S, _PROBATION_S = 1.0, 60.0, 10.0


class Effort:
    """How much an instrument's adaptive columns are compressed now.

    The writer's thread calls the methods; codec threads look at :attr:`grade` and count.

    Parameters
    ----------
    lowest
        The grade at which chunks are stored as they are.

    Attributes
    ----------
    grade : int
        0: as configured; then one cheaper level after the other; ``lowest``: not at all.
    lowest : int
        As given.
    steps_down, steps_up : int
        Changes of the grade, also by a writer before this one; their difference is the grade.
    chunks_cheaper, chunks_stored : int
        Chunks that were encoded at a cheaper level, and not at all, because of it.

    Examples
    --------
    >>> effort = Effort(lowest=2)
    >>> [effort.observe(0.1 * look, fill=1.0, waited_s=0.1 * look) for look in range(5)]
    [False, True, True, False, False]
    >>> effort.grade, effort.counts()["steps_down"]
    (2, 2)
    """

    def __init__(self, lowest: int) -> None:
        self.grade = 0
        self.lowest = lowest
        self.steps_down = self.steps_up = 0
        self.chunks_cheaper = self.chunks_stored = 0
        self._counting = threading.Lock()
        self._looked_s: float | None = None
        self._waited_s = self._fill = 0.0
        self._lowered_s, self._lowered_fill = float("-inf"), 0.0
        self._raised_s: float | None = None
        self._eased_since_s: float | None = None
        self._hold_s = _FIRST_HOLD_S

    @classmethod
    def of(cls, codecs: Iterable[Codec]) -> Effort | None:
        """Return the effort of an instrument with columns of these codecs; ``None`` if none is adaptive."""
        levels = [len(codec.eased()) for codec in codecs if codec.adaptive]
        return cls(max(levels)) if levels else None

    def observe(self, now_s: float, fill: float, waited_s: float) -> bool:
        """Take in how it stands, and step down or up if that is due.

        Parameters
        ----------
        now_s
            The time (monotonic clock).
        fill
            How full the fullest of the instrument's rings is, from 0 to 1; 1 if its producer waits for space.
        waited_s
            How long the file has waited for codecs since the start.

        Returns
        -------
        bool
            Whether the grade has changed.
        """
        if self._looked_s is None:
            self._looked_s, self._waited_s = now_s, waited_s
        self._fill = max(self._fill, fill)
        passed_s = now_s - self._looked_s
        if passed_s < _LOOK_S:
            return False
        fill, waiting = self._fill, (waited_s - self._waited_s) / passed_s
        self._looked_s, self._waited_s, self._fill = now_s, waited_s, 0.0
        if self._raised_s is not None and now_s - self._raised_s >= _PROBATION_S:
            self._raised_s, self._hold_s = None, _FIRST_HOLD_S
        grade = self.grade
        if fill >= _FULL and waiting >= _CODECS_BEHIND:
            self._eased_since_s = None
            if grade < self.lowest and self._still_fills(now_s, fill):
                self._step_down(now_s, fill)
        elif fill > _ROOMY and waiting > _CODECS_AHEAD:
            self._eased_since_s = None  # just right
        elif self._eased_since_s is None:
            self._eased_since_s = now_s
        elif grade and now_s - self._eased_since_s >= self._hold_s:
            self._step_up(now_s)
        return self.grade != grade

    def _still_fills(self, now_s: float, fill: float) -> bool:
        """Whether the last step down has not brought enough, as far as can be seen."""
        return now_s - self._lowered_s >= _EFFECT_S and fill > self._lowered_fill - _DRAINS

    def _step_down(self, now_s: float, fill: float) -> None:
        if self._raised_s is not None:
            self._raised_s, self._hold_s = None, min(2 * self._hold_s, _LONGEST_HOLD_S)
        self._lowered_s, self._lowered_fill = now_s, fill
        self.grade += 1
        self.steps_down += 1

    def _step_up(self, now_s: float) -> None:
        self._raised_s = self._eased_since_s = now_s
        self._lowered_fill = 0.0
        self.grade -= 1
        self.steps_up += 1

    def count(self, *, stored: bool) -> None:
        """Count a chunk that got less than what is configured; from any thread."""
        with self._counting:
            if stored:
                self.chunks_stored += 1
            else:
                self.chunks_cheaper += 1

    def counts(self) -> dict[str, int]:
        """Return the counts, by the names of `InstrumentStats`."""
        return {
            "steps_down": self.steps_down,
            "steps_up": self.steps_up,
            "chunks_cheaper": self.chunks_cheaper,
            "chunks_stored": self.chunks_stored,
        }

    def count_on(self, counts: Mapping[str, int]) -> None:
        """Begin at the top with the counts that another writer left; what it was down counts as steps up.

        Chunks that it encoded and never committed are encoded, and counted, again.
        """
        self.steps_down = self.steps_up = int(counts.get("steps_down", 0))
        self.chunks_cheaper = int(counts.get("chunks_cheaper", 0))
        self.chunks_stored = int(counts.get("chunks_stored", 0))


class AdaptiveEncoder:
    """Encodes the chunks of one dataset with the effort of the moment; as an `Encoder`, from any thread.

    Parameters
    ----------
    encoders
        From the configured level to the cheapest.
    effort
        The instrument's.
    skip_mask
        Filter mask that says "stored as it is".
    """

    def __init__(self, encoders: Sequence[Encoder], effort: Effort, skip_mask: int) -> None:
        self._encoders = encoders
        self._effort = effort
        self._skip_mask = skip_mask

    def __call__(self, chunk: npt.NDArray[np.uint8]) -> Encoded:
        """Encode one chunk, or give its own bytes back; it is borrowed for as long as these are in use."""
        effort = self._effort
        # Asked for here and not when the chunk was submitted: what waits for a thread is encoded sooner, too.
        grade = effort.grade
        if grade >= effort.lowest:
            effort.count(stored=True)
            return Encoded(chunk.data, self._skip_mask)
        level = min(grade, len(self._encoders) - 1)
        if level:
            effort.count(stored=False)
        return self._encoders[level](chunk)
