"""Images after a power cut: what must be there, what may be, and that nothing else is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from faults.disk import Call, Shim, Trace
from faults.images import SECTOR_BYTES, crash_image, cut_points, last_mark, replay
from faults.recording import record

IMAGES = 200

CREATE = Call("open", "file", flags=1)
SYNC = Call("fsync", "file")
FOLDER_SYNC = Call("fsync", "")


def put(offset: int, data: bytes, path: str = "file") -> Call:
    return Call("pwrite", path, offset=offset, length=len(data), data=data)


def images(calls: list[Call], folder: Path, cut: int | None = None) -> list[dict[str, bytes]]:
    """Build many images; return what each holds."""
    found = []
    for number in range(IMAGES):
        place = folder / str(number)
        place.mkdir()
        cut = len(calls) if cut is None else cut
        written = crash_image(calls, cut, np.random.default_rng(number), place)
        files = {
            str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()
        }
        assert {str(path.relative_to(place)) for path in written} == set(files)
        found.append(files)
    return found


def seen(calls: list[Call], folder: Path, name: str = "file") -> set[bytes | None]:
    """Return the different contents that a file has in many images."""
    return {files.get(name) for files in images(calls, folder)}


def test_what_was_synced_is_there_whole(tmp_path: Path) -> None:
    synced = np.random.default_rng(0).bytes(10_000)
    calls = [CREATE, put(0, synced), SYNC, put(20_000, b"x" * 5000), put(12_000, b"y" * 5000)]
    for files in images(calls, tmp_path):
        assert files["file"].startswith(synced)
        assert len(files["file"]) in (10_000, 25_000)


@pytest.mark.parametrize("sync", ["fsync", "fdatasync"])
def test_nothing_is_missing_after_the_last_sync(tmp_path: Path, sync: str) -> None:
    calls = [CREATE, put(0, b"a" * 3000), Call("ftruncate", "file", length=2000), Call(sync, "file")]
    assert seen(calls, tmp_path) == {b"a" * 2000}


def test_of_later_writes_any_subset_of_sectors_is_there(tmp_path: Path) -> None:
    size = 8 * SECTOR_BYTES
    calls = [CREATE, put(0, bytes(size)), SYNC, put(100, b"a" * 3000), put(1000, b"b" * 3000)]
    found = Counter()
    for files in images(calls, tmp_path):
        held = np.frombuffer(files["file"], np.uint8)
        assert len(held) == size
        assert set(held[:100]) | set(held[4000:]) == {0}
        for sector in range(8):
            part = slice(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES)
            first = np.zeros(size, np.uint8)
            first[100:3100] = ord("a")
            second = np.zeros(size, bool)
            second[1000:4000] = True
            allowed = [
                np.where(second & later, ord("b"), first * earlier)[part].tobytes()
                for earlier in (0, 1)
                for later in (False, True)
            ]
            assert held[part].tobytes() in allowed
        found[files["file"]] += 1
    assert len(found) > IMAGES // 4
    assert bytes(size) in found
    assert b"a" * 900 + b"b" * 3000 in [content[100:4000] for content in found]


def test_a_size_is_one_that_the_file_had(tmp_path: Path) -> None:
    calls = [CREATE, put(0, b"a" * 700), SYNC, put(700, b"b" * 700), put(5000, b"c"), put(1400, b"d" * 100)]
    found = seen(calls, tmp_path)
    assert {len(content or b"") for content in found} == {700, 1400, 5001}
    assert b"a" * 700 + bytes(4301) in found


def test_a_truncation_may_have_happened_or_not(tmp_path: Path) -> None:
    calls = [CREATE, put(0, b"a" * 3000), SYNC, Call("ftruncate", "file", length=1000)]
    assert seen(calls, tmp_path) == {b"a" * 3000, b"a" * 1000}
    (tmp_path / "then").mkdir()
    without, shorter = b"a" * 3000, b"a" * 1000
    assert seen([*calls, put(1000, b"b")], tmp_path / "then") == {
        without,
        shorter + b"b" + b"a" * 1999,
        shorter,
        shorter + b"b",
        shorter + b"\0",
    }


def test_an_allocation_reads_as_zeros(tmp_path: Path) -> None:
    calls = [CREATE, put(0, b"a"), SYNC, Call("fallocate", "file", offset=100, length=400)]
    assert seen(calls, tmp_path) == {b"a", b"a" + bytes(499)}
    (tmp_path / "keep").mkdir()
    calls[3] = Call("fallocate", "file", offset=0, length=400, flags=3)  # punch a hole
    assert seen(calls, tmp_path / "keep") == {b"a", b"\0"}


def test_a_name_is_there_once_its_folder_or_its_file_was_synced(tmp_path: Path) -> None:
    cases = {"none": [], "file": [SYNC], "folder": [FOLDER_SYNC]}
    for name, syncs in cases.items():
        (tmp_path / name).mkdir()
        found = seen([CREATE, put(0, b"x"), *syncs], tmp_path / name)
        assert (None in found) == (name == "none")
        assert b"x" in found
        assert (found == {b"x"}) == (name == "file")


def test_a_rename_happens_whole_or_not_at_all(tmp_path: Path) -> None:
    calls = [
        *(CREATE, put(0, b"old"), SYNC),
        *(Call("open", "new", flags=1), put(0, b"new", "new"), Call("fsync", "new")),
        Call("rename", "new", target="file"),
    ]
    before, after = {"file": b"old", "new": b"new"}, {"file": b"new"}
    (tmp_path / "open").mkdir()
    found = images(calls, tmp_path / "open")
    assert [files for files in found if files not in (before, after)] == []
    assert before in found
    assert after in found
    (tmp_path / "synced").mkdir()
    assert images([*calls, FOLDER_SYNC], tmp_path / "synced") == [after] * IMAGES


def test_a_removed_file_may_still_be_there(tmp_path: Path) -> None:
    calls = [CREATE, put(0, b"x"), SYNC, Call("unlink", "file")]
    assert seen(calls, tmp_path) == {b"x", None}
    (tmp_path / "again").mkdir()
    calls += [CREATE, put(0, b"y"), SYNC]
    assert seen(calls, tmp_path / "again") == {b"y"}
    (tmp_path / "gone").mkdir()
    assert seen([*calls[:4], FOLDER_SYNC], tmp_path / "gone") == {None}


def test_a_file_goes_with_its_folder(tmp_path: Path) -> None:
    calls = [
        Call("mkdir", "folder"),
        Call("open", "folder/file", flags=1),
        put(0, b"x", "folder/file"),
        Call("fsync", "folder"),
    ]
    assert b"x" in seen(calls, tmp_path, "folder/file")
    (tmp_path / "moved").mkdir()
    moved = [*calls, Call("fsync", "folder/file"), Call("rename", "folder", target="other")]
    found = images(moved, tmp_path / "moved")
    assert {frozenset(files.items()) for files in found} == {
        frozenset({"folder/file": b"x"}.items()),
        frozenset({"other/file": b"x"}.items()),
    }


def test_what_was_there_before_is_the_start(tmp_path: Path) -> None:
    before = {"old/file": b"x" * 10, "idle": b"idle"}
    calls = [put(2, b"yy", "old/file")]
    (tmp_path / "whole").mkdir()
    replay(calls, tmp_path / "whole", before)
    assert (tmp_path / "whole/old/file").read_bytes() == b"xxyyxxxxxx"
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        crash_image(calls, 1, np.random.default_rng(number), tmp_path / str(number), before)
        assert (tmp_path / str(number) / "idle").read_bytes() == b"idle"
        assert (tmp_path / str(number) / "old/file").read_bytes() in (b"x" * 10, b"xxyyxxxxxx")


def test_cuts_lie_around_the_syncs() -> None:
    calls = [CREATE, put(0, b"a"), SYNC, put(1, b"b"), put(2, b"c"), put(3, b"d"), SYNC, put(4, b"e")]
    found = cut_points(calls)
    assert {2, 3, 6, 7, 8} <= set(found)  # just before and after each sync, and the end
    assert {4, 5} & set(found)
    assert found == sorted(set(found))
    assert cut_points([]) == [0]


def test_the_last_mark_before_a_cut_is_found() -> None:
    calls = [CREATE, Call("mark", "", data=b"one"), SYNC, Call("mark", "", data=b"two")]
    assert [last_mark(calls, cut) for cut in range(5)] == [None, None, b"one", b"one", b"two"]


def test_images_of_a_recording_hold_what_was_synced(shim: Shim, tmp_path: Path) -> None:
    under, trace = tmp_path / "under", tmp_path / "trace"
    under.mkdir()
    assert record(under, shim.env(under, trace=trace)).returncode == 0
    calls = Trace.read(trace)
    cuts = cut_points(calls)
    assert len(cuts) > 12
    different = set()
    for number, cut in enumerate(cuts):
        image, again, synced = (tmp_path / f"{kind}-{number}" for kind in ("image", "again", "synced"))
        for folder in (image, again, synced):
            folder.mkdir()
        crash_image(calls, cut, np.random.default_rng(number), image)
        crash_image(calls, cut, np.random.default_rng(number), again)
        last = max((n for n in range(cut) if calls[n].path == "daq.h5" and "sync" in calls[n].op), default=-1)
        if last < 0:
            continue
        replay(calls[: last + 1], synced)
        content, certain = (image / "daq.h5").read_bytes(), (synced / "daq.h5").read_bytes()
        assert content == (again / "daq.h5").read_bytes()
        assert len(content) >= len(certain)
        open_places = np.zeros(len(certain), bool)
        for call in calls[last + 1 : cut]:
            if call.op == "pwrite":
                open_places[call.offset : call.offset + call.length] = True
        same = np.frombuffer(content[: len(certain)], np.uint8) == np.frombuffer(certain, np.uint8)
        assert (same | open_places).all()
        different.add(content)
    assert len(different) > 8
