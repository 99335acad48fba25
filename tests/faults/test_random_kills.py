"""Random processes of a recording at full speed, killed at random times: every sealed row is there, once."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from faults.killing import Crew, check_file, run_crew

import shmstore

pytestmark = pytest.mark.crash

SECONDS = 0.6
RUNS, MANY_RUNS = 25, 500
HANG_S = 0.5

Blow = Callable[[Crew, random.Random], None]


def kill_writer(crew: Crew, rng: random.Random) -> None:
    """Several times; sometimes the standby too, or in its place."""
    for _ in range(rng.randint(1, 4)):
        writers = crew.writers()
        crew.kill(*rng.sample(writers, rng.randint(1, len(writers)) if writers else 0))
        time.sleep(rng.uniform(0, 0.4))


def stop_writer(crew: Crew, rng: random.Random) -> None:
    crew.kill(*crew.writers()[:1], number=signal.SIGSTOP)


def kill_producers(crew: Crew, rng: random.Random) -> None:
    for victim in rng.sample(crew.producers, rng.randint(1, 2)):
        crew.kill(victim)
        time.sleep(rng.uniform(0, 0.2))


def kill_owner(crew: Crew, rng: random.Random) -> None:
    crew.kill(crew.owner)


def kill_owner_then_writer(crew: Crew, rng: random.Random) -> None:
    """The writer may be at work, at draining, or at finishing; it may have ended, too."""
    crew.kill(crew.owner)
    time.sleep(rng.uniform(0, 0.3))
    crew.kill(*crew.writers())


def kill_owner_and_writers(crew: Crew, rng: random.Random) -> None:
    victims = [crew.owner, *crew.writers()]
    rng.shuffle(victims)
    crew.kill(*victims)


def kill_everybody(crew: Crew, rng: random.Random) -> None:
    victims = crew.everybody()
    rng.shuffle(victims)
    crew.kill(*victims)


#: Each with whether somebody is left who finishes the recording; ``None``: it depends.
BLOWS: tuple[tuple[Blow, bool | None], ...] = (
    (kill_writer, True),
    (stop_writer, True),
    (kill_producers, True),
    (kill_owner, True),
    (kill_owner_then_writer, None),
    (kill_owner_and_writers, False),
    (kill_everybody, False),
)


def strike(folder: Path, seed: int) -> str:
    """Record, kill, recover if it must be, check; return in words what was done. A function of the seed."""
    rng = random.Random(seed)
    blow, finishes = BLOWS[seed % len(BLOWS)]
    turn = seed // len(BLOWS)
    strings, standby = ("packed", "vlen")[turn % 2], bool(turn // 2 % 2)
    # A writer that is killed before; not one that is to be stopped, which must not be on its way up then: it
    # has a minute for that.
    first = blow is not stop_writer and rng.random() < 0.3
    if first and blow is kill_owner:
        finishes = None  # a replacement that is not told to be the writer yet ends with its owner
    told = f"seed {seed}: {blow.__name__}, {strings}, standby {standby}, {'again' if first else 'first'}"
    session = None
    try:
        hang_s = HANG_S if blow is stop_writer else 60.0
        with run_crew(
            folder, seconds=SECONDS, strings=strings, standby=standby, writer_hang_s=hang_s
        ) as crew:
            session = Path(f"/dev/shm/shmstore-{crew.name}")
            time.sleep(rng.uniform(0, SECONDS * 0.8))
            if first:
                kill_writer(crew, rng)
            blow(crew, rng)
            crew.wait_for_all()
            sealed, path = crew.sealed(), crew.path
        if finishes is not None:
            assert session.exists() != finishes, told
        if session.exists():
            report = shmstore.recover(path)
            assert report.ok, f"{told}: {report}"
        assert not session.exists(), told
    finally:
        if session is not None:
            shutil.rmtree(session, ignore_errors=True)
    found = check_file(path, sealed)
    assert found.ok, f"{told}: {found}"
    assert all(sealed.values()), told
    verdict = shmstore.verify(path)
    assert verdict.ok, f"{told}: {verdict.problems}"
    with h5py.File(path) as file:
        assert file.attrs["state"] == "complete", told
    assert [left.name for left in path.parent.iterdir()] == [path.name], told
    return f"{told}: {found}"


@pytest.mark.parametrize("seed", range(RUNS))
def test_nothing_is_lost_doubled_or_out_of_order(tmp_path: Path, seed: int) -> None:
    strike(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.timeout(MANY_RUNS * 30)
def test_nothing_is_lost_in_many_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = []
    for seed in range(RUNS, RUNS + MANY_RUNS):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            told = strike(folder, seed)
        except AssertionError as error:
            told = str(error)
            failed.append(told)
        else:
            shutil.rmtree(folder)
        with capsys.disabled():
            print(f"[{seed - RUNS + 1}/{MANY_RUNS}, {len(failed)} failed] {told}", flush=True)
    assert not failed, "\n".join(failed)
