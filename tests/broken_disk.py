"""A disk file whose writes go wrong as told: short, or refused by the system."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar

from shmstore.disk import DiskFile
from shmstore.journal import Journal
from shmstore.tailfile import TailFile


class BrokenFile(DiskFile):
    """Answers its next writes out of :attr:`answers`, then works.

    A positive answer is the bytes that one call takes at most, a negative one the error (``-errno.ENOSPC``).
    """

    answers: ClassVar[list[int]] = []
    refuse_truncate: ClassVar[int] = 0

    def _write_some(self, parts: Sequence[memoryview], start: int) -> int:
        if not self.answers:
            return super()._write_some(parts, start)
        answer = self.answers.pop(0)
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer))
        return super()._write_some([memoryview(b"".join(parts))[:answer]], start)

    def truncate(self, size: int) -> None:
        if type(self).refuse_truncate:
            type(self).refuse_truncate -= 1
            raise OSError(5, os.strerror(5))
        super().truncate(size)


class BrokenJournal(Journal):
    """A journal on such a file."""

    file_type = BrokenFile


class BrokenTailFile(TailFile):
    """Tail files on such files."""

    file_type = BrokenFile
