"""The table of what happens to whom at which step: made from a run, and read back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from shmstore.steps import STEPS

TABLE = Path(__file__).parent.parent.parent / "docs" / "crash-table.md"

_HEAD = """\
# The crash table

What becomes of a recording whose processes are killed (SIGKILL) or stopped (SIGSTOP) at each step that
changes state. Made by a run: `pytest tests/faults/test_steps.py -m "slow or not slow" --write-crash-table`.
In it two producers fill five small rings with some 9,000 rows: of fixed width, of variable-length and packed
text, lent, late, and of a schema that evolves; the owner sets metadata, flushes and closes. A process meets
its end at the step. Then the file is read with plain h5py and compared with the rows whose batches were
counted as sealed: by number, order and value.

*Rows sealed* are those that a producer had counted when all was over; a producer that is killed before it has
counted may have one more batch in the file, whole. What happened:

- *went on*: nobody else noticed, but for what the dead producer would still have put.
- *replaced*: the owner had a new writer go on, and closed the recording.
- *finished*: the owner was dead, the writer drained the rings and finished the file.
- *recovered*: nobody was left, `shmstore recover` made the file whole.
- *continued*: the stopped process was let go on, and meanwhile nobody else waited for it.
- *reclaimed*: nothing was begun; `shmstore doctor` finds the session, and removes it.

"""
_COLUMNS = (
    "step",
    "what is so then",
    "victim",
    "signal",
    "what happened",
    "rows sealed",
    "rows in file",
    "lost",
    "doubled",
)


class Outcome(NamedTuple):
    """A row of the table.

    Attributes
    ----------
    step, victim, signal, happened : str
        What was done to whom, and what came of it.
    sealed, rows, lost, doubled : int
        Rows.
    """

    step: str
    victim: str
    signal: str
    happened: str
    sealed: int
    rows: int
    lost: int
    doubled: int


def table(outcomes: Iterable[Outcome]) -> str:
    """Return the document; of several rows for the same step and signal the last one counts."""
    rows = {(found.step, found.signal): found for found in outcomes if found.step in STEPS}
    order = {name: number for number, name in enumerate(STEPS)}
    lines = [f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
    for found in sorted(rows.values(), key=lambda found: (order[found.step], found.signal)):
        step, *rest = found
        cells = [f"`{step}`", STEPS[step], *map(str, rest)]
        lines.append(f"| {' | '.join(cells)} |")
    return _HEAD + "\n".join(lines) + "\n"


def read_table(text: str) -> list[Outcome]:
    """Return the rows of a document that `table` made."""
    found = []
    for line in text.splitlines():
        if line.startswith("| `"):
            step, _, *rest, sealed, rows, lost, doubled = (cell.strip(" `") for cell in line.split("|")[1:-1])
            found.append(Outcome(step, *rest, int(sealed), int(rows), int(lost), int(doubled)))
    return found
