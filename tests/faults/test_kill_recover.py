"""Everybody is killed, at any call that changes a file; what was sealed is recovered, also in attempts."""

from __future__ import annotations

import errno
import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from faults.confirmed import FILE, Confirmed, check_confirmed, recording
from faults.disk import Shim, Trace, counted
from faults.images import last_mark
from faults.killing import MARK, check_file, living, run_crew
from processes.programs import TIMEOUT_S

import shmstore
from shmstore.recovery import recover

pytestmark = pytest.mark.crash

SHARED_MEMORY = Path("/dev/shm")


class Wreck(NamedTuple):
    """What is left when everybody was killed.

    Attributes
    ----------
    path : Path
        The recording; beside it lies only what belongs to it.
    session : Path
        Its session's folder.
    sealed : Confirmed
        What had been accepted.
    """

    path: Path
    session: Path
    sealed: Confirmed

    def check(self) -> None:
        """Say that all is there, and nothing else."""
        assert check_confirmed(self.path, self.sealed) == []
        assert list(self.path.parent.iterdir()) == [self.path]
        assert not self.session.exists()

    def content(self) -> dict[Path, bytes]:
        """Return all that lies there."""
        return {path: path.read_bytes() for path in self.path.parent.rglob("*") if path.is_file()}


@contextmanager
def killed_at(shim: Shim, folder: Path, plan: str) -> Iterator[Wreck]:
    """Record until the writer has come to a fault, then kill everybody.

    The fault is to stop the writer, so that nobody hears of it before all are killed. The session is removed
    at the end of the block, if it is still there.
    """
    out, once, marks = folder / "out", folder / "once", folder / "sealed"
    out.mkdir(parents=True)
    marks.touch()
    session = SHARED_MEMORY / f"shmstore-killed-{secrets.token_hex(6)}"
    env = shim.env(out, plan=plan, once=once)
    env |= {MARK: str(folder), "SHMSTORE_NAME": session.name.removeprefix("shmstore-")}
    try:
        with recording(out, folder / "confirmed", marks, env) as owner:
            deadline = time.monotonic() + TIMEOUT_S
            while not once.exists() and owner.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            reached = owner.poll() is None
            everybody = living(folder)
            for process in everybody:
                process.kill()
            owner.wait(TIMEOUT_S)
            psutil.wait_procs([process for process in everybody if process.pid != owner.pid], TIMEOUT_S)
        assert reached, f"the recording ended before it came to {plan}"
        calls = Trace.read(marks)
        yield Wreck(out / FILE, session, Confirmed.read(last_mark(calls, len(calls))))
    finally:
        shutil.rmtree(session, ignore_errors=True)


@pytest.fixture(scope="module")
def calls(shim: Shim, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Return how many calls a recording takes at least."""
    folder = tmp_path_factory.mktemp("whole")
    out, count = folder / "out", folder / "count"
    out.mkdir()
    with recording(out, folder / "confirmed", folder / "sealed", shim.env(out, count=count)) as owner:
        _, errors = owner.communicate(timeout=TIMEOUT_S)
    assert owner.returncode == 0, errors
    return counted(count)["any"] * 2 // 3  # how many there are depends on the time it takes, too


# -- killed, and recovered -------------------------------------------------------------------------------

#: At which thousandths of a recording everybody is killed, and whether before a call or within a write.
SHARES = [(12, False), (130, True), (370, False), (480, True), (630, False), (770, True), (950, False)]
MANY_SHARES = [(share, torn) for share in range(10, 1000, 9) for torn in (False, True)]


@pytest.mark.parametrize(
    ("share", "torn"), [*SHARES, *[pytest.param(*share, marks=pytest.mark.slow) for share in MANY_SHARES]]
)
def test_all_that_was_sealed_is_recovered(
    shim: Shim, tmp_path: Path, calls: int, share: int, torn: bool
) -> None:
    number = calls * share // 1000
    # Whoever wrote only some bytes goes on with the rest, and comes no further.
    plan = f"any:{number}:short:100,any:{number + 1}:stop" if torn else f"any:{number}:stop"
    with killed_at(shim, tmp_path, plan) as wreck:
        report = recover(wreck.path)
        assert report.source == "shared memory"
        assert report.ok, str(report)
        wreck.check()
        assert shmstore.verify(wreck.path).ok
        again = recover(wreck.path)
        assert (again.source, again.rows, again.state) == ("nothing", report.rows, "complete")


#: Where a recording ends: each name is synced once, then the file.
END = ["ftruncate:1:stop", "fsync:5:stop", "unlink:1:stop", "unlink:3:stop", "rmdir:1:stop"]


@pytest.mark.parametrize("plan", END)
def test_a_recording_that_is_killed_while_it_is_closed_is_complete(
    shim: Shim, tmp_path: Path, plan: str
) -> None:
    with killed_at(shim, tmp_path, plan) as wreck:
        report = recover(wreck.path)
        assert report.ok, str(report)
        wreck.check()
        assert recover(wreck.path).source == "nothing"


@pytest.mark.parametrize("number", [1, 4])
def test_before_there_is_a_recording_there_is_a_clear_word(shim: Shim, tmp_path: Path, number: int) -> None:
    with killed_at(shim, tmp_path, f"any:{number}:stop") as wreck:
        assert not any(map(sum, wreck.sealed.rows.values()))
        with pytest.raises(shmstore.IncompleteFileError, match=FILE):
            recover(wreck.path)


@pytest.mark.parametrize(
    ("strings", "plan"), [("vlen", "any:900:kill-half"), ("packed", "any:1400:kill")], ids=["vlen", "packed"]
)
def test_producers_of_their_own_lose_nothing(shim: Shim, tmp_path: Path, strings: str, plan: str) -> None:
    (tmp_path / "out").mkdir()
    once = tmp_path / "once"
    env = shim.env(tmp_path / "out", plan=plan, once=once)
    with run_crew(tmp_path, 3, 60, strings=strings, env=env, auto_flush_interval_secs=60) as crew:
        try:
            crew.kill(crew.owner, number=signal.SIGSTOP)  # it is not to notice that the writer is gone
            deadline = time.monotonic() + TIMEOUT_S
            while not once.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            crew.kill(*crew.everybody())
            crew.wait_for_all()
            assert once.exists()
            report = shmstore.recover(crew.name)
            assert report.source == "shared memory"
            assert report.drained > 0
            found = check_file(crew.path, crew.sealed())
            assert found.ok, str(found)
            assert shmstore.recover(crew.path).source == "nothing"
            assert list(crew.path.parent.iterdir()) == [crew.path]
            assert not (SHARED_MEMORY / f"shmstore-{crew.name}").exists()
        finally:
            shutil.rmtree(SHARED_MEMORY / f"shmstore-{crew.name}", ignore_errors=True)


# -- the recovery is killed, or refused ------------------------------------------------------------------


def recover_under(shim: Shim, wreck: Wreck, plan: str) -> shmstore.RecoveryReport:
    """Recover with calls that go wrong as planned, in the process that does it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in shim.env(wreck.path.parent, plan=plan).items():
            patch.setenv(name, value)
        return shmstore.recover(wreck.path)


#: In this order, each on what the one before has left. Once the exchange is begun, it is all that is left.
ATTEMPTS = [
    *("any:2:kill", "any:180:kill-half", "any:460:kill", "fsync:3:kill", "rmdir:1:kill-after"),
    *("rename:1:kill", "rename:1:kill-after", "rename:1:kill", "rename:1:kill-after", "unlink:2:kill"),
]


def test_a_recovery_that_is_killed_again_and_again_comes_to_its_end(
    shim: Shim, tmp_path: Path, calls: int
) -> None:
    with killed_at(shim, tmp_path, f"any:{calls * 3 // 4}:stop") as wreck:
        for plan in ATTEMPTS:
            with pytest.raises(shmstore.BrokenError, match="was killed by signal 9"):
                recover_under(shim, wreck, plan)
        recover(wreck.path)
        wreck.check()
        assert shmstore.verify(wreck.path).ok
        assert recover(wreck.path).source == "nothing"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_recovery_that_is_killed_anywhere_comes_to_its_end(shim: Shim, tmp_path: Path, calls: int) -> None:
    with killed_at(shim, tmp_path, f"any:{calls // 2}:stop") as wreck:
        for number in range(1, 10_000, 13):
            try:
                recover_under(shim, wreck, f"any:{number}:kill-half")
            except shmstore.BrokenError as error:
                assert "was killed by signal 9" in str(error)  # noqa: PT017 (at some number it is not killed)
            else:
                break
        assert number > 30 * 13
        wreck.check()


#: A full disk refuses to make and to lengthen files.
REFUSED = [
    *("open:1:ENOSPC*inf", "mkdir:1:ENOSPC", "pwritev:1:ENOSPC*inf", "pwritev:4:ENOSPC*inf"),
    *("pwrite:12:ENOSPC*inf", "pwrite:200:ENOSPC*inf", "pwrite:400:ENOSPC*inf"),
    *("pwrite:300:EIO", "fsync:1:EIO", "rename:1:EROFS"),
]


def test_a_disk_that_is_full_or_broken_leaves_the_original_as_it_is(
    shim: Shim, tmp_path: Path, calls: int
) -> None:
    with killed_at(shim, tmp_path, f"any:{calls * 3 // 4}:stop") as wreck:
        before = wreck.content()
        for plan in REFUSED:
            with pytest.raises(shmstore.StorageError, match="cannot ") as caught:
                recover_under(shim, wreck, plan)
            assert caught.value.errno == getattr(errno, plan.split(":")[2].removesuffix("*inf"))
            assert len(str(caught.value).splitlines()) == 1
            assert wreck.content() == before, plan
            assert wreck.session.exists()
        assert recover(wreck.path).ok
        wreck.check()
