"""The leak check itself: a check that stopped finding anything would look like a clean house."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LEAKS = """
import os, subprocess, sys, threading
from pathlib import Path

kept = []

def test_leaves_everything_and_fails():
    Path("/dev/shm/shmstore-leak-{tag}").touch()
    kept.append(open(__file__))
    kept.append(os.pipe())
    kept.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"]))
    threading.Thread(target=threading.Event().wait, args=(5,), name="left-thread").start()
    raise ValueError("the test's own failure")

def test_leaves_an_orphan():
    # Its parent is gone, so that it is no child of this process any more.
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(31)'])"
    subprocess.run([sys.executable, "-c", code], check=True)

def test_leaves_nothing():
    with open(__file__), subprocess.Popen(["true"]):
        pass
"""


def run_tests(folder: Path, text: str) -> str:
    """Run a test module under this folder's conftest; return what pytest printed."""
    (folder / "conftest.py").write_bytes(Path(__file__).with_name("conftest.py").read_bytes())
    (folder / "test_inner.py").write_text(text)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rA",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(folder),
        "-c",
    ]
    result = subprocess.run(
        [*command, "/dev/null", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
    )
    return result.stdout + result.stderr


def test_leaks_are_reported_beside_the_failure(tmp_path: Path) -> None:
    segment = Path(f"/dev/shm/shmstore-leak-{tmp_path.parent.name}")
    try:
        output = run_tests(tmp_path, LEAKS.replace("{tag}", tmp_path.parent.name))
    finally:
        segment.unlink(missing_ok=True)
    everything, orphan = "test_leaves_everything_and_fails", "test_leaves_an_orphan"
    assert f"FAILED test_inner.py::{everything} - ValueError" in output
    assert f"ERROR test_inner.py::{everything} - Failed: left behind" in output
    assert f"ERROR test_inner.py::{orphan} - Failed: left behind" in output
    assert "1 failed, 2 passed, 2 errors" in output
    for leak in (
        f"shared memory: {segment}",
        "time.sleep(30)",
        "time.sleep(31)",
        "test_inner.py",
        "-> pipe:[",
        "thread: left-thread",
    ):
        assert leak in output
