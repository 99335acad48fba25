"""The disk as the tests break and record it: builds the shim, sets its environment, reads what it wrote.

What the shim does is described in ``shim.c``. A traced or broken process is any that is started with the
environment of `Shim.env`: a writer gets it through ``os.environ`` of its owner. Nothing here knows what the
files mean.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")

# As in shim.c.
OPS = (
    "any",
    "write",
    "pwrite",
    "writev",
    "pwritev",
    "fsync",
    "fdatasync",
    "ftruncate",
    "fallocate",
    "open",
    "unlink",
    "rename",
    "mkdir",
    "rmdir",
)
_MARK = len(OPS)
_MAGIC = b"\x89FAULTS\n"
_RECORD = struct.Struct("<8sQqqIHHIIQ")

WRITES = frozenset({"write", "pwrite", "writev", "pwritev"})
SYNCS = frozenset({"fsync", "fdatasync"})


@dataclass(frozen=True, slots=True)
class Call:
    """One call that succeeded.

    Attributes
    ----------
    op : str
        One of `OPS`, whatever variant of it was called; ``"mark"`` for what `Trace.mark` left.
    path : str
        File, relative to the folder that is watched; empty for the folder itself.
    sequence : int
        Which call of its process it was, as the op ``any`` counts; 0 if it was not counted.
    pid : int
        Process.
    offset, length : int
        Place in the file; bytes written or allocated, or the new size.
    flags : int
        Of ``fallocate`` the mode.
    created, emptied : bool
        What ``open`` did.
    data : bytes
        What was written; the text of a mark.
    target : str
        Of ``rename`` the new name.
    """

    op: str
    path: str
    sequence: int = 0
    pid: int = 0
    offset: int = 0
    length: int = 0
    flags: int = 0
    data: bytes = b""
    target: str = ""

    @property
    def created(self) -> bool:
        return self.op == "open" and self.flags == 1

    @property
    def emptied(self) -> bool:
        return self.op == "open" and self.flags == 2


class Trace:
    """The file named by ``FAULTS_TRACE``."""

    @staticmethod
    def read(path: Path) -> list[Call]:
        """Return the calls in their order. A record that a kill from outside has torn is left out."""
        content = path.read_bytes()
        calls, at = [], 0
        while (at := content.find(_MAGIC, at)) >= 0:
            if at + _RECORD.size > len(content):
                break
            _, sequence, offset, length, pid, op, flags, *sizes = _RECORD.unpack_from(content, at)
            parts, end = [], at + _RECORD.size
            for size in sizes:
                parts.append(content[end : end + size])
                end += size
            if end > len(content) or content[end : end + 8] not in (_MAGIC, b""):
                at += len(_MAGIC)
                continue
            name = OPS[op] if op < _MARK else "mark"
            text, target, data = parts
            calls.append(
                Call(name, os.fsdecode(text), sequence, pid, offset, length, flags, data, os.fsdecode(target))
            )
            at = end
        return calls

    @staticmethod
    def mark(path: Path, text: bytes) -> None:
        """Add a call that is none, for a test to find: whatever was issued before is before it.

        For processes without the shim too.
        """
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, _RECORD.pack(_MAGIC, 0, 0, 0, os.getpid(), _MARK, 0, 0, 0, len(text)) + text)
        finally:
            os.close(fd)


def counted(path: Path) -> dict[str, int]:
    """Return how many calls of each op the file named by ``FAULTS_COUNT`` has counted, of all processes."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ) as page:
        return dict(zip(OPS, struct.unpack_from(f"<{len(OPS)}Q", page), strict=True))


class Shim:
    """The built shim.

    Parameters
    ----------
    library
        The shared library.
    """

    def __init__(self, library: Path) -> None:
        self.library = library

    @classmethod
    def build(cls, folder: Path) -> Shim:
        """Compile it into a folder, with ``$CC`` or ``cc``."""
        compiler = shutil.which(os.environ.get("CC", "cc"))
        assert compiler, "these tests need a C compiler: install one as `cc`, or name it in CC"
        library = folder / "shim.so"
        flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-U_FORTIFY_SOURCE"]
        command = [compiler, *flags, "-o", str(library), str(SOURCE), "-ldl", "-lpthread"]
        built = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert built.returncode == 0, built.stderr
        return cls(library)

    def env(
        self,
        under: Path,
        *,
        trace: Path | None = None,
        plan: str | None = None,
        only: str | None = None,
        once: Path | None = None,
        holds_while: Path | None = None,
        free: Path | None = None,
        count: Path | None = None,
    ) -> dict[str, str]:
        """Return the variables that put the shim into a process, to be added to its environment.

        Parameters
        ----------
        under
            The folder whose files are watched; it must exist. No file named here may lie in it.
        trace, plan, only, once, holds_while, free, count
            What ``FAULTS_TRACE`` and so on are set to; ``holds_while`` is ``FAULTS_WHILE``.
        """
        assert under.is_dir(), f"{under} must be there before it is watched"
        given = {
            "TRACE": trace,
            "PLAN": plan,
            "ONLY": only,
            "ONCE": once,
            "WHILE": holds_while,
            "FREE": free,
            "COUNT": count,
        }
        loaded = [str(self.library), *os.environ.get("LD_PRELOAD", "").split(":")]
        found = {"LD_PRELOAD": ":".join(filter(None, loaded)), "FAULTS_UNDER": str(under)}
        return found | {f"FAULTS_{name}": str(value) for name, value in given.items() if value is not None}
