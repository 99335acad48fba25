"""A process dies, or stops, at each step that has a name: nothing sealed is lost, doubled or moved."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from faults.crash_table import TABLE, Outcome, read_table
from faults.stepping import (
    SHARED_MEMORY,
    Run,
    await_stop,
    check,
    fired,
    let_go_on,
    recovery,
    run,
    sealed_rows,
)
from processes.programs import TIMEOUT_S, environment

import shmstore
from shmstore.leftovers import find_sessions, reclaim
from shmstore.steps import STEPS

pytestmark = pytest.mark.crash

#: At which time a process meets its end, where the first is not in the middle of things.
TURNS = {
    "producer.reserved": 9,
    "producer.body_written": 9,
    "producer.loan_open": 5,
    "producer.header_written": 9,
    "producer.sealed": 9,
    "producer.half_counted": 9,
    "producer.counted": 9,
    "producer.before_bell": 9,
    "producer.after_bell": 9,
    "writer.slot_taken": 30,
    "writer.distributed": 30,
    "writer.chunk_due": 20,
    "writer.chunk_written": 20,
    "writer.chunk_noted": 20,
    "writer.items_written": 3,
    "writer.commit_begun": 8,
    "writer.journal_written": 8,
    "writer.file_flushed": 8,
    "writer.ledger_half_stored": 8,
    "writer.ledger_stored": 8,
    "writer.slot_released": 20,
    "writer.released": 8,
    "writer.structure_begun": 9,
    "writer.structure_opened": 9,
    "writer.structure_changed": 9,
    "writer.structure_closed": 9,
    "writer.structure_ended": 9,
    "writer.instrument_made": 3,
    "writer.ring_taken": 3,
    "writer.ring_noted": 3,
    "writer.schema_made": 3,
    "writer.schema_noted": 3,
    "writer.tails_made": 3,
    "writer.tail_published": 4,
    "writer.tails_published": 3,
    "writer.file_synced": 3,
    "writer.journal_synced": 3,
    "writer.tail_file_written": 3,
    "writer.flushed": 3,
}
#: What has to go wrong before a step is reached at all.
_WRITER_DIES = "writer.slot_released:20=kill"
_FILE_IS_TORN = "writer.structure_changed:9=kill"
_ALL_DIE = f"{_WRITER_DIES},owner.death_noticed=kill"
_BEFORE = {
    "owner.death_noticed": _WRITER_DIES,
    "owner.restart_counted": _WRITER_DIES,
    "owner.replacement_begun": _WRITER_DIES,
    "close.session_removed": "owner.ending_noted=kill",
    "recovery.resuming": _WRITER_DIES,
    "recovery.taken_up": _WRITER_DIES,
    "recovery.resumed": _WRITER_DIES,
    "recovery.made_anew": _FILE_IS_TORN,
    "recovery.folder_set_aside": _FILE_IS_TORN,
    "recovery.folder_exchanged": _FILE_IS_TORN,
    "recovery.file_exchanged": _FILE_IS_TORN,
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "writer.quarantine_written": {"refused": True},
    "writer.quarantined": {"refused": True},
    "owner.standby_started": {"standby": True},
}
#: Steps of `shmstore.recover`; the others of that group are those of a writer in a dead one's place.
RECOVER = [
    "recovery.begun",
    "recovery.operations_repeated",
    "recovery.chunk_copied",
    "recovery.rebuilt",
    "recovery.finished",
    "recovery.verified",
    "recovery.folder_removed",
    "recovery.session_removed",
]
#: One of each group is stopped in every run of the tests, all of them when asked for.
_STOPPED = ["producer.counted", "writer.file_flushed", "close.committed", "owner.writer_booted"]
_STOPPED += ["recovery.resumed", "recovery.rebuilt"]


def _stopped(steps: list[str]) -> list[Any]:
    return [pytest.param(step, marks=() if step in _STOPPED else pytest.mark.slow) for step in steps]


RECORDING = [step for step in STEPS if step not in RECOVER]


def plan(step: str, action: str) -> str:
    """Return ``SHMSTORE_STEP``."""
    wanted = f"{step}:{TURNS.get(step, 1)}={action}"
    return f"{_BEFORE[step]},{wanted}" if step in _BEFORE else wanted


def victim(step: str) -> str:
    group = step.partition(".")[0]
    if group == "close":
        return "writer"
    if group == "recovery":
        return "recovery" if step in RECOVER else "replacing writer"
    return group


def end(made: Run) -> str:
    """Wait for the end of a recording, have it recovered if need be, and return what came of it."""
    code = made.wait()
    if not made.report:
        assert code == -9
    if made.session.exists() and made.path.exists():
        shmstore.recover(made.path)
        return "recovered"
    if made.session.exists():
        (left,) = [session for session in find_sessions(SHARED_MEMORY) if session.folder == str(made.session)]
        assert not left.holds_data
        assert reclaim(left)
        return "reclaimed"
    if not made.report:
        return "finished"
    return "replaced" if made.report["restarts"] else "went on"


def judge(folder: Path, step: str, signal: str, happened: str, outcomes: list[Outcome]) -> None:
    """Look at the file, and at what is beside it."""
    assert fired(folder, step), f"nobody came to {step}"
    path = folder / "out" / "daq.h5"
    if not path.exists():  # its owner was killed before there was one
        assert step.startswith("owner.")
        assert sealed_rows(folder) == 0
        outcomes.append(Outcome(step, victim(step), signal, happened, 0, 0, 0, 0))
        return
    found = check(folder)
    outcomes.append(
        Outcome(
            step,
            victim(step),
            signal,
            happened,
            sealed_rows(folder),
            found.rows,
            len(found.lost),
            len(found.doubled),
        )
    )
    assert found.ok, str(found)
    verdict = shmstore.verify(path)
    refused = bool(_OPTIONS.get(step, {}).get("refused"))
    assert verdict.state == ("partial" if refused else "complete")
    assert len(verdict.problems) == refused, verdict.problems
    left = sorted(entry.name for entry in path.parent.iterdir())
    assert left == (["daq.h5", "daq.h5.quarantine"] if refused else ["daq.h5"])
    if refused:
        (kept,) = (path.parent / "daq.h5.quarantine").iterdir()
        assert kept.suffix == ".arrow"


@pytest.mark.parametrize("step", RECORDING)
def test_killed(step: str, tmp_path: Path, outcomes: list[Outcome]) -> None:
    with run(tmp_path, plan(step, "kill"), **_OPTIONS.get(step, {})) as made:
        happened = end(made)
    judge(tmp_path, step, "SIGKILL", happened, outcomes)


@pytest.mark.parametrize("step", RECOVER)
def test_killed_while_it_recovers(step: str, tmp_path: Path, outcomes: list[Outcome]) -> None:
    with run(tmp_path, _ALL_DIE) as made:
        made.wait()
        assert recovery(tmp_path, f"{step}=kill").wait(TIMEOUT_S) == -9
        shmstore.recover(made.path)
    judge(tmp_path, step, "SIGKILL", "recovered", outcomes)


@pytest.mark.parametrize("step", _stopped(RECORDING))
def test_stopped(step: str, tmp_path: Path, outcomes: list[Outcome]) -> None:
    options = {**_OPTIONS.get(step, {}), "settings": {"writer_hang_s": 1.0}}
    with run(tmp_path, plan(step, "stop"), **options) as made:
        pid = await_stop(tmp_path, step)
        who = victim(step)
        if who == "producer":
            made.others_end(pid)
            let_go_on(pid)
        elif who == "owner" or step == "close.session_removed":
            time.sleep(0.2)  # nobody is there to notice it
            let_go_on(pid)
        happened = end(made)
    if who in ("producer", "owner") and happened == "went on":
        happened = "continued"
    judge(tmp_path, step, "SIGSTOP", happened, outcomes)


@pytest.mark.parametrize("step", _stopped(RECOVER))
def test_stopped_while_it_recovers(step: str, tmp_path: Path, outcomes: list[Outcome]) -> None:
    with run(tmp_path, _ALL_DIE) as made:
        made.wait()
        process = recovery(tmp_path, f"{step}=stop")
        await_stop(tmp_path, step)
        if step != "recovery.session_removed":
            with pytest.raises(shmstore.BrokenError):  # nobody else takes over as long as it lives
                shmstore.recover(made.path)
        let_go_on(process.pid)
        assert process.wait(TIMEOUT_S) == 0
    judge(tmp_path, step, "SIGSTOP", "continued", outcomes)


#: Of the end, as long as there is something to recover.
_ENDING = [step for step in STEPS if step.startswith("close.") and step != "close.session_removed"]


@pytest.mark.slow
@pytest.mark.parametrize("step", _ENDING)
def test_killed_at_the_end_when_nobody_replaces_it(step: str, tmp_path: Path) -> None:
    with run(tmp_path, f"owner.ending_noted=kill,{step}=kill") as made:
        assert end(made) == "recovered"
    judge(tmp_path, step, "SIGKILL", "recovered", [])


@pytest.mark.slow
@pytest.mark.parametrize("again", ["writer.evolved", "writer.columns_widened", "recovery.resumed"])
def test_killed_again_after_a_change_of_schema(again: str, tmp_path: Path) -> None:
    with run(tmp_path, f"writer.evolution_shown=kill,{again}=kill") as made:
        assert end(made) == "replaced"
        assert made.report["restarts"] == 2
    judge(tmp_path, again, "SIGKILL", "replaced", [])


@pytest.mark.parametrize("refused", [False, True])
def test_a_file_that_is_finished_is_not_made_anew(tmp_path: Path, refused: bool) -> None:
    plan = "close.file_finished=kill,recovery.made_anew=note,recovery.taken_up=note"
    with run(tmp_path, plan, refused=refused) as made:
        assert end(made) == "replaced"
        assert made.report["restarts"] == 1
        assert made.report["state"] == ("partial" if refused else "complete")
        assert bool(made.report["problem"]) == refused
    assert not fired(tmp_path, "recovery.made_anew")
    assert not fired(tmp_path, "recovery.taken_up")
    assert check(tmp_path).ok
    assert shmstore.verify(made.path).state == made.report["state"]


def test_a_refused_batch_is_kept_beside_the_recording_when_all_die(tmp_path: Path) -> None:
    step = "writer.quarantined"
    with run(tmp_path, f"{step}=kill,owner.death_noticed=kill", refused=True) as made:
        assert end(made) == "recovered"
    judge(tmp_path, step, "SIGKILL", "recovered", [])


# -- the table, and the hook -----------------------------------------------------------------------------


def test_the_table_tells_of_every_step_and_of_no_loss() -> None:
    rows = read_table(TABLE.read_text())
    assert [row.step for row in rows if row.signal == "SIGKILL"] == list(STEPS)
    assert [row.step for row in rows if row.signal == "SIGSTOP"] == list(STEPS)
    assert not [row for row in rows if row.lost or row.doubled]
    assert all(row.rows >= row.sealed for row in rows)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("writer.nothing=kill", "in shmstore.steps.STEPS"),
        ("close.begun=fall", "kill|stop|exit|note"),
        ("close.begun", "kill|stop|exit|note"),
        ("close.begun:0=kill", "<name>"),
        ("close.begun:x=kill", "<name>"),
        ("close.begun=kill,", "<name>"),
    ],
)
def test_a_step_that_does_not_exist_is_refused(text: str, reason: str) -> None:
    result = hook("pass", text)
    assert result.returncode == 1
    assert f"SHMSTORE_STEP has {text.rpartition(',')[2]!r}" in result.stderr
    assert reason in result.stderr


def hook(statement: str, text: str, once: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a statement in a process with the variables set."""
    variables = {"SHMSTORE_STEP": text} | ({"SHMSTORE_STEP_ONCE": str(once)} if once else {})
    return subprocess.run(
        [sys.executable, "-c", f"from shmstore.steps import step; {statement}"],
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_it_has_to_be_said_where_a_step_leaves_its_file() -> None:
    assert "SHMSTORE_STEP_ONCE" in hook("pass", "close.begun=kill").stderr


def test_it_fires_at_its_turn_and_once(tmp_path: Path) -> None:
    (once := tmp_path / "once").mkdir()
    text, twice = "close.begun:2=exit", "step('close.begun'); step('close.begun')"
    assert hook("step('close.begun'); step('close.drained')", text, once).returncode == 0
    assert not fired(tmp_path, "close.begun")
    assert hook(twice, text, once).returncode == 70
    assert fired(tmp_path, "close.begun")
    assert hook(twice, text, once).returncode == 0


def test_several_may_fire(tmp_path: Path) -> None:
    (once := tmp_path / "once").mkdir()
    text = "close.begun=note,close.drained=kill"
    assert hook("step('close.begun'); step('close.drained')", text, once).returncode == -9
    assert fired(tmp_path, "close.begun")
    assert fired(tmp_path, "close.drained")


def test_every_step_is_called_in_the_package() -> None:
    package = Path(shmstore.__file__).parent
    text = "".join(path.read_text() for path in package.glob("*.py") if path.name != "steps.py")
    assert [name for name in STEPS if text.count(f'step("{name}")') != 1] == []
