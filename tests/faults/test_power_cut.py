"""What a flush had returned for is there after a power cut, whatever else reached the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from faults.confirmed import FILE, Confirmed, check_confirmed, record_confirmed
from faults.disk import SYNCS, Call, Shim, Trace
from faults.images import crash_image, cut_points, last_mark, replay

import shmstore

#: Of what the very beginning leaves, HDF5 may not come to an end; then recovery is ended after a minute.
pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

#: Images in a test; what fails is told by its number.
IMAGES = 20


REFUSALS = (shmstore.IncompleteFileError, shmstore.StorageError, shmstore.BrokenError)


def only_told(error: Exception) -> None:
    """Let a process of which HDF5 made an endless loop pass for a clear word, but not one that it killed."""
    if isinstance(error, shmstore.BrokenError) and "came to no end" not in str(error):
        raise error


@dataclass
class Recorded:
    """A recording's trace, and a folder for images.

    Attributes
    ----------
    calls : list of Call
        The trace.
    folder : Path
        Gets an image at a time.
    shm_dir : Path
        Stands for the shared memory of a machine that was just started.
    """

    calls: list[Call]
    folder: Path
    shm_dir: Path

    def image(self, cut: int, seed: int) -> Path:
        """Build an image, in place of the last one; return where its recording is, or would be."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        crash_image(self.calls, cut, np.random.default_rng(seed), self.folder)
        return self.folder / FILE

    def confirmed(self, cut: int) -> Confirmed:
        """Return what had been confirmed by then."""
        return Confirmed.read(last_mark(self.calls, cut))

    def wrong(self, cut: int, seed: int) -> list[str]:
        """Recover an image; return what is wrong then."""
        path, confirmed = self.image(cut, seed), self.confirmed(cut)
        try:
            # In a process of its own: HDF5 may loop for ever over what is left of the very beginning.
            report = shmstore.recover(path, shm_dir=self.shm_dir)
        except REFUSALS as error:
            only_told(error)
            return [f"refused: {error}"] if confirmed.metadata else []
        wrong = check_confirmed(path, confirmed)
        left = {*self.folder.iterdir(), *self.shm_dir.iterdir()}
        # Before anything was confirmed the journal may never have reached the disk.
        kept = [] if report.kept is None or confirmed.metadata else [Path(report.kept).parent]
        if left != {path, *kept}:
            wrong.append(f"there are {sorted(map(str, left))}, after: {report}")
        if report.source == "shared memory":
            wrong.append("there was none to recover from")
        return wrong

    def all_wrong(self, cuts: Iterable[int], seed: int) -> dict[tuple[int, int], list[str]]:
        """Recover images; return what is wrong with each by its cut and seed."""
        found = {(cut, seed + number): self.wrong(cut, seed + number) for number, cut in enumerate(cuts)}
        return {place: wrong for place, wrong in found.items() if wrong}


@pytest.fixture(scope="module")
def recorded(shim: Shim, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("recorded")
    under, trace, shm_dir = folder / "under", folder / "trace", folder / "shm"
    under.mkdir()
    shm_dir.mkdir()
    calls = record_confirmed(under, trace, shim.env(under, trace=trace))
    assert check_confirmed(under / FILE, Confirmed.read(last_mark(calls, len(calls)))) == []
    return Recorded(calls, folder / "image", shm_dir)


def random_cuts(calls: list[Call], seed: int) -> list[int]:
    """Return cuts at any time, half of them where images differ most."""
    rng = np.random.default_rng(seed)
    anywhere = rng.integers(0, len(calls), IMAGES // 2, endpoint=True)
    return [*anywhere.tolist(), *rng.choice(cut_points(calls), IMAGES - len(anywhere)).tolist()]


@pytest.mark.parametrize(
    "series", [pytest.param(number, marks=[pytest.mark.slow] * (number >= 3)) for number in range(50)]
)
def test_every_confirmed_row_is_there_once_and_in_order(recorded: Recorded, series: int) -> None:
    cuts = random_cuts(recorded.calls, series)
    assert recorded.all_wrong(cuts, 1000 * series) == {}


def places_of(calls: list[Call], text: bytes) -> list[int]:
    """Return where the journal was told of something."""
    return [n for n, call in enumerate(calls) if call.path.endswith("/journal") and text in call.data]


def test_a_schema_that_grows_loses_nothing_meanwhile(recorded: Recorded) -> None:
    calls = recorded.calls
    replaced = places_of(calls, b'"operation":"replace"')
    assert len(replaced) >= 2
    cuts = []
    for place in replaced:
        # Until the next durable flush, the disk may know the columns only as they were before.
        end = next(n for n in range(place, len(calls)) if "tails" in calls[n].path and calls[n].op in SYNCS)
        cuts += np.linspace(place, end, IMAGES // 2 // len(replaced), dtype=int).tolist()
    assert recorded.all_wrong(cuts, 1) == {}


def test_the_end_loses_nothing(recorded: Recorded) -> None:
    calls = recorded.calls
    (finished,) = places_of(calls, b'"operation":"finished"')
    cuts = [*np.linspace(finished - 20, finished, 5, dtype=int).tolist(), *range(finished, len(calls) + 1)]
    assert len(cuts) >= IMAGES // 2
    assert recorded.all_wrong(cuts, 2) == {}


@pytest.mark.parametrize("gone", range(1, 8))
def test_what_lies_beside_a_finished_file_may_go_in_any_order(recorded: Recorded, gone: int) -> None:
    calls = recorded.calls
    (finished,) = places_of(calls, b'"operation":"finished"')
    shutil.rmtree(recorded.folder, ignore_errors=True)
    recorded.folder.mkdir()
    replay(calls[: finished + 1], recorded.folder)
    beside = sorted((recorded.folder / f"{FILE}.recovery").iterdir())
    assert [path.name for path in beside] == ["journal", "tails-0", "tails-1"]
    for number, path in enumerate(beside):
        if gone >> number & 1:
            path.unlink()
    path = recorded.folder / FILE
    before = path.read_bytes()
    report = shmstore.recover(path, shm_dir=recorded.shm_dir)
    assert (report.state, report.problems) == ("complete", ())
    assert path.read_bytes() == before
    assert list(recorded.folder.iterdir()) == [path]


def test_before_the_first_flush_there_is_little_or_a_clear_word(recorded: Recorded) -> None:
    calls = recorded.calls
    first = next(n for n, call in enumerate(calls) if call.op == "mark")
    refused = []
    for number, cut in enumerate(np.linspace(0, first, IMAGES // 2, dtype=int).tolist()):
        path = recorded.image(cut, number)
        before = content(recorded.folder)
        try:
            shmstore.recover(path, shm_dir=recorded.shm_dir)
        except REFUSALS as error:
            only_told(error)
            refused.append(str(error))
            assert content(recorded.folder) == before
        else:
            assert check_confirmed(path, recorded.confirmed(cut)) == []
    assert all(FILE in text for text in refused)
    assert len(refused) < IMAGES // 2  # some rows had been brought to the disk in passing


def content(folder: Path) -> dict[str, bytes]:
    """Return all files in a folder, by their path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_power_cut_during_the_recovery_changes_nothing(
    recorded: Recorded, shim: Shim, tmp_path: Path
) -> None:
    calls, trace = recorded.calls, tmp_path / "trace"
    cut = next(n for n in reversed(range(len(calls) - 20)) if calls[n].op == "mark") + 1
    path = recorded.image(cut, 0)
    before = content(recorded.folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in shim.env(recorded.folder, trace=trace).items():
            patch.setenv(name, value)
        shmstore.recover(path, shm_dir=recorded.shm_dir)
    recovering = Trace.read(trace)
    renamed = [n for n, call in enumerate(recovering) if call.op == "rename"]
    assert len(renamed) == 2
    middle = np.linspace(0, renamed[0], IMAGES // 5, dtype=int).tolist()
    wrong = {}
    for number, place in enumerate([*middle, *range(renamed[0], len(recovering) + 1)]):
        shutil.rmtree(recorded.folder)
        recorded.folder.mkdir()
        crash_image(recovering, place, np.random.default_rng(number), recorded.folder, before)
        shmstore.recover(path, shm_dir=recorded.shm_dir)
        wrong[place] = check_confirmed(path, recorded.confirmed(cut))
        assert list(recorded.folder.iterdir()) == [path]
    assert {place: found for place, found in wrong.items() if found} == {}
