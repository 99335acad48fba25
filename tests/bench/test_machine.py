from __future__ import annotations

import subprocess
from pathlib import Path

from shmstore.bench import machine


def test_facts_name_what_the_figures_were_taken_on() -> None:
    facts = machine.facts()
    assert 1 <= facts["cores"] == machine.cores()
    assert facts["memory_bytes"] > 1 << 20
    assert {"numpy", "pyarrow", "h5py"} <= facts["packages"].keys()
    assert all(facts[name] for name in ("processor", "kernel", "python", "shmstore"))


def test_the_commit_is_the_repository_s() -> None:
    package = Path(machine.__file__).parent
    head = subprocess.run(
        ["git", "-C", str(package), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    commit = machine.facts()["commit"]
    if head.returncode == 0 and commit is not None:
        assert commit.removesuffix("+") == head.stdout.strip()
    else:  # installed, or in no repository
        assert commit is None


def test_filesystem_of_shared_memory() -> None:
    assert machine.filesystem(Path("/dev/shm")) == "tmpfs"
    assert machine.filesystem(Path("/proc")) == "proc"
