"""A session's folder, its page, and the locks that tell who lives."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from children import Child

from shmstore.errors import BrokenError, ClosedError, ConfigError, StorageError
from shmstore.segment import Segment
from shmstore.session import OWNER_LOCK, Session, State, lock_is_held, session_folder


@pytest.fixture
def folder(shared_folder: Path) -> Path:
    return shared_folder / "shmstore-run"


def test_the_folder_is_private_and_named_after_the_session(shared_folder: Path, folder: Path) -> None:
    session = Session.create(shared_folder, "run")
    assert (session.folder, session.name) == (folder, "run")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.iterdir()] == ["page"]
    assert stat.S_IMODE((folder / "page").stat().st_mode) == 0o600
    session.close()


def test_sessions_without_a_name_get_different_ones(shared_folder: Path) -> None:
    sessions = [Session.create(shared_folder) for _ in range(3)]
    assert len({session.name for session in sessions}) == 3
    for session in sessions:
        assert session_folder(shared_folder, session.name) == session.folder
        session.close()


@pytest.mark.parametrize("name", ["..", ".", "a/b", "-x", "a b", "x" * 65, "ä", "a\n", "../../etc"])
def test_a_name_that_leads_elsewhere_is_refused(shared_folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="session name"):
        Session.create(shared_folder, name)
    assert not list(shared_folder.iterdir())


def test_a_name_in_use_is_refused_and_left_alone(shared_folder: Path) -> None:
    session = Session.create(shared_folder, "run")
    session.state = State.RECORDING
    with pytest.raises(ConfigError, match="'run' is running, or was left behind"):
        Session.create(shared_folder, "run")
    assert session.recording
    session.close()


def test_no_place_for_it_is_said(shared_folder: Path) -> None:
    (shared_folder / "file").touch()
    for place in (shared_folder / "file", shared_folder / "missing"):
        with pytest.raises(StorageError, match="session folder"):
            Session.create(place, "run")


def test_what_one_process_writes_on_the_page_another_reads(shared_folder: Path, folder: Path) -> None:
    owner = Session.create(shared_folder, "run")
    assert (owner.state, owner.recording, owner.owner_pid) == (State.STARTING, False, os.getpid())
    with Child(
        "from shmstore.session import Session, State",
        f"session = Session.attach(Path({str(folder)!r}))",
        "session.become_writer()",
        "session.state = State.RECORDING",
        "say(session.owner_pid, session.owner_lives)",
        "wait()",
        "session.fail('StorageError', 'the disk is gone', 28)",
        "say('failed')",
        "wait()",
    ) as child:
        assert child.hear() == f"{os.getpid()} True"
        assert (owner.state, owner.recording, owner.writer_pid) == (State.RECORDING, True, child.pid)
        assert owner.writer_lives
        child.tell()
        assert child.hear() == "failed"
        assert (owner.state, owner.recording) == (State.BROKEN, False)
        assert owner.failure() == ("StorageError", "the disk is gone", 28)
        child.end(signal.SIGKILL)
        assert not owner.writer_lives
    owner.close()


def test_an_owner_that_is_killed_is_noticed(shared_folder: Path, folder: Path) -> None:
    with Child(
        "from shmstore.session import Session",
        f"session = Session.create(Path({str(shared_folder)!r}), 'run')",
        "say('ready')",
        "wait()",
    ) as child:
        assert child.hear() == "ready"
        session = Session.attach(folder)
        assert session.owner_lives
        assert lock_is_held(folder, OWNER_LOCK)
        child.end(signal.SIGKILL)
        assert not session.owner_lives
        assert not lock_is_held(folder, OWNER_LOCK)
    session.close()
    assert not lock_is_held(shared_folder / "shmstore-other", OWNER_LOCK)


def test_a_closed_owner_no_longer_lives(shared_folder: Path, folder: Path) -> None:
    session = Session.create(shared_folder, "run")
    assert lock_is_held(folder, OWNER_LOCK)
    session.close()
    assert not lock_is_held(folder, OWNER_LOCK)


def test_the_first_failure_stays(shared_folder: Path) -> None:
    session = Session.create(shared_folder, "run")
    session.fail("StorageError", "first")
    session.fail("BrokenError", "second")
    assert session.failure() == ("StorageError", "first", None)
    session.close()


# -- progress, and who is left ---------------------------------------------------------------------------


def test_what_the_owner_and_the_writer_say_of_progress(shared_folder: Path, folder: Path) -> None:
    owner, writer = Session.create(shared_folder, "run"), Session.attach(folder)
    assert (owner.heartbeat, owner.commits, owner.taking, owner.restarts) == (0, 0, None, 0)
    assert (owner.ending, owner.restart_reason) == ("", "")
    writer.beat()
    writer.commits += 2
    writer.taking = (7, 0)
    owner.count_restart("was killed by signal 9")
    owner.count_restart("did not move for 60 s")
    owner.ending = "abort"
    assert (owner.heartbeat, owner.commits, owner.taking) == (1, 2, (7, 0))
    assert (owner.taking_ring, owner.taking_sequence) == (7, 1)
    assert (writer.restarts, writer.restart_reason, writer.ending) == (2, "did not move for 60 s", "abort")
    writer.taking = None
    assert (owner.taking, owner.taking_sequence) == (None, 0)
    writer.close()
    owner.close()


def test_a_writer_says_when_it_waits_for_the_disk(shared_folder: Path, folder: Path) -> None:
    owner, writer = Session.create(shared_folder, "run"), Session.attach(folder)
    with writer.at_disk():
        with writer.at_disk():
            assert owner.is_at_disk
        assert owner.is_at_disk
    assert not owner.is_at_disk
    with contextlib.suppress(OSError), writer.at_disk():
        raise OSError
    assert not owner.is_at_disk
    with writer.at_disk():  # and is killed, and followed by another
        owner.become_writer()
        assert not owner.is_at_disk
    writer.close()
    owner.close()


def test_a_new_writer_has_to_be_woken_whatever_the_last_one_said(shared_folder: Path, folder: Path) -> None:
    owner, writer = Session.create(shared_folder, "run"), Session.attach(folder)
    assert not owner.awake
    writer.awake = True
    assert owner.awake
    writer.become_writer()
    assert not owner.awake
    writer.close()
    owner.close()


def test_no_two_sleeps_of_writers_have_one_number(shared_folder: Path, folder: Path) -> None:
    owner, writer = Session.create(shared_folder, "run"), Session.attach(folder)
    sleeps = [owner.sleep]
    for _ in range(3):
        writer.become_writer()  # in place of one that was killed asleep
        sleeps.append(owner.sleep)
        writer.awake = True
        assert owner.sleep is None
        writer.awake = True
        assert owner.sleep is None
        writer.awake = False
        sleeps.append(owner.sleep)
    assert None not in sleeps
    assert len(set(sleeps)) == len(sleeps)
    writer.close()
    owner.close()


def test_a_new_writer_takes_nothing_yet_and_has_left_no_reason(shared_folder: Path, folder: Path) -> None:
    owner, writer = Session.create(shared_folder, "run"), Session.attach(folder)
    writer.taking = (7, 3)
    writer.leave_reason("StorageError", "failed: the disk is full", 28)
    assert owner.reason() == ("StorageError", "failed: the disk is full", 28)
    assert owner.state == State.STARTING  # a reason is no failure yet
    writer.become_writer()
    assert (owner.taking, owner.reason(), owner.writer_pid) == (None, None, os.getpid())
    writer.close()
    owner.close()


def test_a_second_writer_waits_for_the_first_to_be_gone(shared_folder: Path, folder: Path) -> None:
    owner, second = Session.create(shared_folder, "run"), Session.attach(folder)
    with Child(
        "from shmstore.session import Session",
        f"Session.attach(Path({str(folder)!r})).become_writer()",
        "say('ready')",
        "wait()",
    ) as first:
        assert first.hear() == "ready"
        with pytest.raises(BrokenError, match=f"a living writer already, process {first.pid}"):
            second.become_writer()
        assert owner.writer_pid == first.pid
        killing = threading.Timer(0.1, first.end)
        killing.start()
        second.become_writer()
        killing.join()
    assert owner.writer_pid == os.getpid()
    second.close()
    owner.close()


def test_an_owner_knows_that_it_lives(shared_folder: Path) -> None:
    session = Session.create(shared_folder, "run")
    assert session.owner_lives
    assert session.attended
    assert not session.writer_lives
    session.close()


def test_a_forked_child_does_not_keep_the_owner_alive(shared_folder: Path, folder: Path) -> None:
    with Child(
        "import os, signal, time",
        "from shmstore.session import Session, State",
        f"session = Session.create(Path({str(shared_folder)!r}), 'run')",
        "session.state = State.RECORDING",
        "answer, question = os.pipe()",
        "if not (child := os.fork()):",
        "    os.write(question, b'yes' if session.owner_lives else b'no')",
        "    time.sleep(60)",
        "say(child, os.read(answer, 3).decode())",
        "wait()",
    ) as owner:
        pid, owner_lives_for_the_child = owner.hear().split()
        child = int(pid)
        session = Session.attach(folder)
        try:
            assert owner_lives_for_the_child == "yes"
            session.check_attended()
            owner.end()
            assert not session.attended
            with pytest.raises(BrokenError, match=r"have died: everything accepted is kept .* recover PATH"):
                session.check_attended()
        finally:
            os.kill(child, signal.SIGKILL)
    session.close()


def test_requests_are_answered_until_the_end(shared_folder: Path) -> None:
    session = Session.create(shared_folder, "run")
    for state in (State.STARTING, State.RECORDING, State.CLOSING):
        session.state = state
        session.check_attended()
    session.state = State.CLOSED
    with pytest.raises(ClosedError, match="'run' has ended"):
        session.check_attended()
    session.fail("StorageError", "the disk is gone", 28)
    with pytest.raises(StorageError, match="the disk is gone"):
        session.check_attended()
    session.close()


@pytest.mark.parametrize("name", ["night.h5", "ü\n.h5", "\udcff.h5"])
def test_the_file_is_named_in_the_folder(shared_folder: Path, tmp_path: Path, name: str) -> None:
    session = Session.create(shared_folder, "run")
    with pytest.raises(BrokenError, match="there is none yet"):
        _ = session.recording_path
    session.recording_path = tmp_path / name
    assert session.recording_path == tmp_path / name
    assert str(tmp_path / name) in session.kept
    assert sorted(path.name for path in session.folder.iterdir()) == ["page", "recording"]
    assert stat.S_IMODE((session.folder / "recording").stat().st_mode) == 0o600
    session.close()


@pytest.mark.parametrize("character", ["x", "ü", "日", "😀", "\n", "\0", '"', "\udcff"])
def test_a_failure_of_any_length_and_language_can_be_read(shared_folder: Path, character: str) -> None:
    session = Session.create(shared_folder, "run")
    session.fail("StorageError", character * 10_000)
    kind, message, _ = session.failure()
    assert kind == "StorageError"
    assert len(message) >= 1000
    assert set(message) == {character} or character == "\udcff"
    session.close()


def test_a_failure_half_written_is_not_read(shared_folder: Path, folder: Path) -> None:
    session = Session.create(shared_folder, "run")
    assert session.failure() == ("BrokenError", "the writer failed and could not say why", None)
    session.fail("StorageError", "the disk is gone")
    page = Segment.attach(folder / "page")
    page.view[4100] ^= 1
    assert session.failure()[0] == "BrokenError"
    page.words(0, 6)[4] = 2**60
    assert session.failure()[0] == "BrokenError"
    page.close()
    session.close()


def test_attaching_to_what_is_no_session_is_refused(shared_folder: Path, folder: Path) -> None:
    with pytest.raises(StorageError, match="recording has ended"):
        Session.attach(folder)
    folder.mkdir()
    Segment.create(folder / "page", 4096).close()
    with pytest.raises(BrokenError, match="no session of this version"):
        Session.attach(folder)


def test_a_page_that_was_cut_is_no_session(shared_folder: Path, folder: Path) -> None:
    session = Session.create(shared_folder, "run")
    session.close()
    os.truncate(folder / "page", 100)
    with pytest.raises(BrokenError, match="no session"):
        Session.attach(folder)


def test_words_that_mean_nothing_are_those_of_a_broken_session(shared_folder: Path) -> None:
    session = Session.create(shared_folder, "run")
    session._words[1] = 77
    assert session.state == State.BROKEN
    session._words[15] = 3
    with pytest.raises(BrokenError, match="damaged: it asks for ending 3"):
        _ = session.ending
    session.close()


def test_every_name_lies_in_the_folder(shared_folder: Path, folder: Path) -> None:
    session = Session.create(shared_folder, "run")
    paths = [session.control_path]
    for number in (0, 1):
        paths += [session.ring_path(number), session.queue_path(number), session.tails_path(number)]
    assert len(set(paths)) == len(paths)
    assert all(path.parent == folder for path in paths)
    session.close()


def test_removing_takes_all_names_away_and_leaves_mappings_alone(shared_folder: Path, folder: Path) -> None:
    session = Session.create(shared_folder, "run")
    segment = Segment.create(session.ring_path(0), 4096)
    segment.view[0] = 7
    for _ in range(2):
        session.remove()
    assert not list(shared_folder.iterdir())
    assert segment.view[0] == 7
    session.state = State.CLOSED
    assert session.state == State.CLOSED
    segment.close()
    session.close()


def test_removing_does_not_mind_who_still_makes_a_name_there(
    shared_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.create(shared_folder, "run")
    rmdir, late = os.rmdir, iter(("report.new", "ledger-2", "ring-7"))

    def rmdir_late(*arguments: Any, **named: Any) -> None:
        for name in late:
            (folder / name).touch()
            break
        rmdir(*arguments, **named)

    monkeypatch.setattr(os, "rmdir", rmdir_late)
    session.remove()
    assert not folder.exists()
    session.close()


def test_another_session_of_the_same_name_is_not_removed(shared_folder: Path, folder: Path) -> None:
    first = Session.create(shared_folder, "run")
    first.remove()
    second = Session.create(shared_folder, "run")
    first.remove()
    assert [path.name for path in folder.iterdir()] == ["page"]
    first.close()
    second.close()


def test_the_page_is_the_last_to_go(
    shared_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.create(shared_folder, "run")
    session.state = State.CLOSED
    for number in range(5):
        session.ring_path(number).touch()
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # as if it were killed there
    monkeypatch.setattr("shmstore.session._TEAR_DOWN_S", 0.0)
    session.remove()
    assert [path.name for path in folder.iterdir()] == ["page"]
    session.close()


def test_a_ledger_that_grows_never_takes_the_name_of_one_that_is_there(shared_folder: Path) -> None:
    """Whoever follows a writer does not know how often that one's ledger grew."""
    session = Session.create(shared_folder, "growing")
    try:
        assert session.next_ledger_path() == session.ledger_path(1)
        session.ledger_path(1).touch()
        session.ledger_path(12).touch()
        assert session.next_ledger_path() == session.ledger_path(13)
    finally:
        session.remove()
        session.close()
