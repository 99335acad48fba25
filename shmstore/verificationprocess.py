"""The verification's process: `verify` as users call it, which has an interpreter of its own do the reading.

HDF5 dies of some damaged files, and of others it never has done with; here both become a line of the report.
What is checked, and how, is not known here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from shmstore.errors import BrokenError
from shmstore.verdict import UNKNOWN, InstrumentVerdict, VerifyReport
from shmstore.watchedprocess import HANG_S, Ending, Say, Words, ask


def verify(
    path: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
    *,
    hang_s: float = HANG_S,
) -> VerifyReport:
    """Read all of a recording, and check what can be checked: finished, live, or left by a killed writer.

    Every chunk is read as it is stored and compared with its checksum, if the file has them; every column is
    decoded; rows, schemas and the account must agree. Blocks for as long as reading the file twice takes. It
    is read by a process of its own, which takes 0.4 s to start: there are damaged files over which HDF5 loops
    for ever, or dies. Then the report has what was found until then, and what was being read.

    Parameters
    ----------
    path
        The file.
    progress
        Called with the bytes done and the bytes in all, some times a second.
    hang_s
        Seconds of processor time without any progress after which HDF5 is taken to loop for ever.

    Returns
    -------
    VerifyReport
        ``ok`` if nothing is wrong; damage to parts of the file is in ``problems``.

    Raises
    ------
    StorageError
        The system refuses: no such file, no permission; ``errno`` is kept.
    IncompleteFileError
        It is no shmstore recording, or damaged as a whole.
    BrokenError
        The process could not do its work, for a reason that is not in the file.

    Examples
    --------
    >>> import pyarrow as pa, shmstore, tempfile
    >>> with shmstore.HDF5Storage(output_dir=tempfile.mkdtemp()) as storage:
    ...     sequence = storage.write_batch("probe", pa.record_batch({"volts": [1.5, 2.5]}))
    >>> shmstore.verify(storage.path).ok
    True
    """
    told: dict[str, list[Any]] = {"state": [], "instrument": [], "problem": [], "note": []}

    def hear(words: Words) -> None:
        for kind, found in told.items():
            if kind in words:
                found.append(words[kind])
        if progress is not None and "done" in words:
            progress(words["done"], words["total"])

    ending = ask(__name__, os.fspath(path), hear=hear, hang_s=hang_s)
    if ending.answer is not None:
        return VerifyReport.from_dict(ending.answer)
    if ending.code >= 0:
        raise BrokenError(
            f"the process that verified {os.fspath(path)} {ending}, and can be started again: "
            f"{ending.last_line}"
        )
    return VerifyReport(
        os.fspath(path),
        (told["state"] or [UNKNOWN])[0],
        tuple(InstrumentVerdict(**item) for item in told["instrument"]),
        (*dict.fromkeys(told["problem"]), _problem(ending)),
        tuple(told["note"]),
    )


def _problem(ending: Ending) -> str:
    """Say as what is wrong with a file that its verification did not come to its end."""
    if ending.hung:
        what = f"HDF5 comes to no end while it reads {ending.at}"
    elif ending.fault:
        what = f"HDF5 died (signal {-ending.code}) while it read {ending.at}"
    else:
        return (
            f"it was not read to its end: its reader was killed (signal {-ending.code}) at {ending.at}: "
            "verify it again, with more memory if there was too little"
        )
    return f"{what}: the file is damaged there, and not all of it was checked: restore it from a copy"


def main(say: Say, path: str) -> Words:
    """Verify a file for whoever is told; in the process."""
    from shmstore.verification import verify as verify_here

    return verify_here(path, say.progress, say).to_dict()
