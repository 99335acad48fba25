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
    path = quarantine.keep("cam", BATCH)
    assert path.parent == quarantine.folder
    with pa.ipc.open_file(path) as file:
        assert file.read_all().to_batches()[0].equals(BATCH)


def test_a_slice_keeps_its_own_rows_only(quarantine: Quarantine) -> None:
    large = pa.record_batch({"n": range(100_000)})
    path = quarantine.keep("cam", large.slice(5, 2))
    assert path.stat().st_size < 4096
    with pa.ipc.open_file(path) as file:
        assert file.read_all()["n"].to_pylist() == [5, 6]


def test_bytes_are_kept_as_they_are(quarantine: Quarantine) -> None:
    path = quarantine.keep_bytes("cam", memoryview(b"\0no batch\xff"))
    assert path.suffix == ".slot"
    assert path.read_bytes() == b"\0no batch\xff"


def test_nothing_kept_is_ever_overwritten(quarantine: Quarantine) -> None:
    paths = [quarantine.keep("cam", BATCH) for _ in range(3)]
    paths += [quarantine.keep_bytes("other", memoryview(b"x")), quarantine.keep("cam", BATCH)]
    assert len(set(paths)) == 5
    assert sorted(paths) == sorted(quarantine.folder.iterdir())
    again = Quarantine(quarantine.folder.with_suffix(""))
    with pytest.raises(StorageError, match="never overwritten"):
        again.keep("cam", BATCH)
    assert [path.stat().st_size for path in paths[:3]] == [paths[0].stat().st_size] * 3


@pytest.mark.parametrize("instrument_id", ["../../x", "a/b", "..", "x" * 4096, "\n"])
def test_an_instruments_name_leads_nowhere_else(quarantine: Quarantine, instrument_id: str) -> None:
    path = quarantine.keep(instrument_id, BATCH)
    assert path.resolve().parent == quarantine.folder.resolve()
    assert list(quarantine.folder.iterdir()) == [path]


def test_a_place_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "run.h5.quarantine").write_text("in the way")
    with pytest.raises(StorageError, match="keep a refused batch of 'cam'"):
        Quarantine(tmp_path / "run.h5").keep("cam", BATCH)
