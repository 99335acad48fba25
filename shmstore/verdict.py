"""What a verification has to say of a recording: of each instrument, and of the whole.

Plain values, which neither HDF5 nor Arrow need. How they are found is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["InstrumentVerdict", "VerifyReport"]

#: State of a recording that HDF5 could not even be asked for.
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class InstrumentVerdict:
    """What was read of one instrument.

    Attributes
    ----------
    name : str
        Its id.
    rows, columns : int
        Rows that can be read, and columns.
    chunks, bytes : int
        Chunks of all its datasets, and the bytes that they have in the file.
    """

    name: str
    rows: int
    columns: int
    chunks: int
    bytes: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found; ``str()`` is for people.

    Attributes
    ----------
    path : str
        The file.
    state : str
        ``"recording"``, ``"complete"``, ``"partial"`` or ``"aborted"``; ``"unknown"`` if HDF5 did
        not survive the reading of it.
    instruments : tuple of InstrumentVerdict
        In the order of their appearance.
    problems : tuple of str
        What is wrong, a line each, with its place.
    notes : tuple of str
        What is good to know and not wrong: a file without checksums, one that still grows.
    """

    path: str
    state: str
    instruments: tuple[InstrumentVerdict, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return {"path": self.path, "ok": self.ok, **asdict(self)}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> VerifyReport:
        """Return the report that ``to_dict`` was called of, or that went through JSON after it."""
        instruments = tuple(InstrumentVerdict(**item) for item in told["instruments"])
        return cls(told["path"], told["state"], instruments, tuple(told["problems"]), tuple(told["notes"]))

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.state}, {'ok' if self.ok else f'{len(self.problems)} problems'}"]
        if self.instruments:
            headings = ("instrument", "rows", "columns", "chunks", "bytes")
            cells = [[f"{getattr(item, name):,}" for name in headings[1:]] for item in self.instruments]
            first = max(len(headings[0]), *(len(item.name) for item in self.instruments))
            lines.append("  ".join([f"  {headings[0]:{first}}", *(f"{name:>15}" for name in headings[1:])]))
            for item, row in zip(self.instruments, cells, strict=True):
                lines.append("  ".join([f"  {item.name:{first}}", *(f"{cell:>15}" for cell in row)]))
        lines += [f"  problem: {text}" for text in self.problems]
        lines += [f"  note: {text}" for text in self.notes]
        return "\n".join(lines)
