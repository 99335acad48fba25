"""A pytest plugin (``-p examples``) that runs the Python blocks of README.md, each file in an empty folder.

What an example needs but a reader does not stands in an ``invisible-code-block`` comment beside it.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).resolve().parent.parent


def enter_empty_folder(namespace: dict[str, Any]) -> None:
    """Run the examples where the files that they make do no harm."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.callback(os.chdir, Path.cwd())
        os.chdir(folder)
        namespace["_leave_folder"] = stack.pop_all()


def leave_folder(namespace: dict[str, Any]) -> None:
    """Go back, and remove the folder."""
    namespace["_leave_folder"].close()


pytest_collect_file = Sybil(
    path=str(ROOT),
    patterns=["README.md"],
    parsers=[PythonCodeBlockParser(), SkipParser()],
    setup=enter_empty_folder,
    teardown=leave_folder,
).pytest()
