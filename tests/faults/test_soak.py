"""A long recording whose writer is killed again and again: all is stored, and nothing grows.

``SHMSTORE_SOAK_S`` is how long it takes, in seconds, and ``SHMSTORE_SOAK_KILL_S`` the time between kills.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from pathlib import Path

import psutil
import pytest
from faults.killing import check_file, run_crew

import shmstore

SOAK_S = float(os.environ.get("SHMSTORE_SOAK_S", "3600"))
KILL_S = float(os.environ.get("SHMSTORE_SOAK_KILL_S", "20"))
#: Of a writer's life that much is left out: it is starting, and draining what came meanwhile.
WARM_UP_S = 2.0
#: How much larger a median may be in the last third than in the first.
MIB = 2**20
GROWTH_BYTES, GROWTH_FILES = 24 * MIB, 3

Looks = list[tuple[float, int, int]]  # time, resident bytes, open files


def look(process: psutil.Process, looks: Looks) -> None:
    try:
        looks.append((time.monotonic(), process.memory_info().rss, process.num_fds()))
    except psutil.NoSuchProcess:
        return


def thirds(looks: Looks, column: int) -> tuple[float, float]:
    """Return the medians of the first and of the last third."""
    values = [entry[column] for entry in sorted(looks)]
    third = max(1, len(values) // 3)
    return statistics.median(values[:third]), statistics.median(values[-third:])


@pytest.mark.slow
@pytest.mark.timeout(2 * SOAK_S + 600)  # reading back takes about a third as long as recording
def test_nothing_grows_and_nothing_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: dict[str, Looks] = defaultdict(list)
    kills = 0
    # Paced, so that an hour's file fits a disk and is read back within minutes.
    with run_crew(tmp_path, seconds=SOAK_S, strings="packed", pause_s=0.02) as crew:
        owner = psutil.Process(crew.owner)
        producers = {number: psutil.Process(pid) for number, pid in enumerate(crew.producers)}
        until = time.monotonic() + SOAK_S
        next_kill = time.monotonic() + KILL_S
        writer_since = time.monotonic()
        while (now := time.monotonic()) < until:
            time.sleep(0.5)
            look(owner, seen["owner"])
            for number, process in producers.items():
                look(process, seen[f"producer {number}"])
            writers = crew.writers()
            if writers and now - writer_since > WARM_UP_S:
                look(psutil.Process(writers[0]), seen["writer"])
            if now >= next_kill:
                crew.kill(*writers[:1])
                kills += 1
                writer_since, next_kill = now, next_kill + KILL_S
                with capsys.disabled():
                    print(f"{until - now:.0f} s left, {kills} kills, {sum(crew.sealed().values())} batches")
        assert crew.wait(600) == 0
        sealed, path = crew.sealed(), crew.path
    # Both are told, whatever fails first: an hour is long.
    found = check_file(path, sealed)
    told = {name: (thirds(looks, 1), thirds(looks, 2)) for name, looks in seen.items() if len(looks) >= 6}
    with capsys.disabled():
        print(f"{kills} kills, {path.stat().st_size / MIB:.0f} MiB: {found}")
        for name, (memory, files) in told.items():
            grown = f"{memory[0] / MIB:.1f} to {memory[1] / MIB:.1f} MiB"
            print(f"{name}: {grown}, {files[0]:g} to {files[1]:g} files")
    assert found.ok, str(found)
    assert {"owner", "writer", "producer 0"} <= set(told)
    for name, (memory, files) in told.items():
        assert memory[1] - memory[0] < GROWTH_BYTES, name
        assert files[1] - files[0] <= GROWTH_FILES, name
    assert shmstore.verify(path).ok
    assert [left.name for left in path.parent.iterdir()] == [path.name]
    assert kills >= int(SOAK_S / KILL_S) - 1
