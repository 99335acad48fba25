from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from shmstore.errors import StorageError
from shmstore.quarantine import Quarantine

BATCH = pa.record_batch({"n": [1, 2, None], "s": ["a", None, "ü"]})


@pytest.fixture
def quarantine(tmp_path: Path) -> Quarantine:
    return Quarantine(tmp_path / "run.h5")


def test_there_is_no_folder_until_something_is_kept(quarantine: Quarantine, tmp_path: Path) -> None:
    assert quarantine.folder == tmp_path / "run.h5.quarantine"
    assert not quarantine.folder.exists()


def test_a_batch_is_kept_whole_as_an_arrow_file(quarantine: Quarantine) -> None:
    path = quarantine.keep("cam", 3, 7, BATCH)
    assert path == quarantine.folder / "cam-3-000007.arrow"
    with pa.ipc.open_file(path) as file:
        assert file.read_all().to_batches()[0].equals(BATCH)


def test_a_slice_keeps_its_own_rows_only(quarantine: Quarantine) -> None:
    large = pa.record_batch({"n": range(100_000)})
    path = quarantine.keep("cam", 3, 7, large.slice(5, 2))
    assert path.stat().st_size < 4096
    with pa.ipc.open_file(path) as file:
        assert file.read_all()["n"].to_pylist() == [5, 6]


def test_bytes_are_kept_as_they_are(quarantine: Quarantine) -> None:
    path = quarantine.keep_bytes("cam", 3, 7, memoryview(b"\0no batch\xff"))
    assert path.suffix == ".slot"
    assert path.read_bytes() == b"\0no batch\xff"


def test_each_batch_has_a_file_of_its_own(quarantine: Quarantine) -> None:
    which = [("cam", 3, 7), ("cam", 3, 8), ("cam", 4, 7), ("other", 3, 7), ("cam-3", 3, 7)]
    paths = [quarantine.keep(*one, BATCH) for one in which]
    paths += [quarantine.keep_bytes(*one, memoryview(b"x")) for one in which]
    assert len(set(paths)) == 2 * len(which)
    assert sorted(paths) == sorted(quarantine.folder.iterdir())


def test_a_batch_that_is_kept_again_has_one_file(quarantine: Quarantine, tmp_path: Path) -> None:
    """As by a writer that follows one that was killed, perhaps while it wrote."""
    path = quarantine.keep("cam", 3, 7, BATCH)
    path.with_name(path.name + ".part").write_bytes(b"begun by one that was killed")
    again = Quarantine(tmp_path / "run.h5")
    assert again.keep("cam", 3, 7, BATCH) == path
    assert again.keep_bytes("cam", 3, 8, memoryview(b"")) == again.keep_bytes("cam", 3, 8, memoryview(b""))
    assert sorted(each.name for each in again.folder.iterdir()) == ["cam-3-000007.arrow", "cam-3-000008.slot"]
    with pa.ipc.open_file(path) as file:
        assert file.read_all().to_batches()[0].equals(BATCH)


def test_what_another_recording_of_the_name_kept_is_not_overwritten(quarantine: Quarantine) -> None:
    other = pa.record_batch({"n": [4]})
    paths = [quarantine.keep("cam", 3, 7, batch) for batch in (BATCH, other, BATCH, other)]
    assert [path.name for path in paths] == ["cam-3-000007.arrow", "cam-3-000007~2.arrow"] * 2
    for path, batch in zip(paths, (BATCH, other), strict=False):
        with pa.ipc.open_file(path) as file:
            assert file.read_all().to_batches()[0].equals(batch)


@pytest.mark.parametrize("instrument_id", ["../../x", "a/b", "..", "x" * 4096, "\n"])
def test_an_instruments_name_leads_nowhere_else(quarantine: Quarantine, instrument_id: str) -> None:
    path = quarantine.keep(instrument_id, 3, 7, BATCH)
    assert path.resolve().parent == quarantine.folder.resolve()
    assert list(quarantine.folder.iterdir()) == [path]


def test_a_place_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "run.h5.quarantine").write_text("in the way")
    with pytest.raises(StorageError, match="keep a refused batch of 'cam'"):
        Quarantine(tmp_path / "run.h5").keep("cam", 3, 7, BATCH)
