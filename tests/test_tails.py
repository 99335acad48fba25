"""Tails: buffers of chunks, each stream's own, that outlive whoever filled them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shmstore.errors import BrokenError, StorageError
from shmstore.tails import Tails, abreast, buffers_for


def test_each_stream_has_buffers_of_its_own(shared_folder: Path) -> None:
    tails = Tails.create(shared_folder / "tails", [100, 64, 1], 3)
    assert [[len(buffer) for buffer in own] for own in tails.buffers] == [[100] * 3, [64] * 3, [1] * 3]
    buffers = [buffer for own in tails.buffers for buffer in own]
    for number, buffer in enumerate(buffers, 1):
        assert buffer.ctypes.data % 64 == 0
        assert not buffer.any()
        buffer[:] = number
    assert [set(buffer.tolist()) for buffer in buffers] == [{number} for number in range(1, 10)]
    assert tails.size == (shared_folder / "tails").stat().st_size == 3 * (128 + 64 + 64)
    del buffers, buffer
    tails.close()


def test_those_of_one_size_are_one_array(shared_folder: Path) -> None:
    tails = Tails.create(shared_folder / "tails", [100, 100, 100, 64, 100], 2)
    together = abreast(tails.buffers[:3])
    assert together is not None
    assert [array.shape for array in together] == [(3, 100)] * 2
    for number, array in enumerate(together):
        array[:] = np.arange(3)[:, None] + 10 * number
    found = [[set(buffer.tolist()) for buffer in own] for own in tails.buffers[:3]]
    assert found == [[{stream}, {stream + 10}] for stream in range(3)]
    assert not tails.buffers[3][0].any()
    assert not tails.buffers[3][1].any()
    assert abreast(tails.buffers[2:4]) is None, "of two sizes"
    assert abreast([*tails.buffers[:2], tails.buffers[4]]) is None, "not evenly spaced"
    assert abreast(tails.buffers[2::-1]) is None, "in another order"
    other = Tails.create(shared_folder / "others", [100], 2)
    assert abreast([tails.buffers[0], other.buffers[0]]) is None, "in two segments"
    del together, array
    other.close()
    tails.close()


def test_what_lies_in_them_is_found_by_who_follows(shared_folder: Path) -> None:
    sizes, path = [100, 8, 64], shared_folder / "tails"
    tails = Tails.create(path, sizes, 4)
    for stream, own in enumerate(tails.buffers):
        for number, buffer in enumerate(own):
            buffer[:] = 10 * stream + number
    del own, buffer
    tails.leave()
    assert str(path) not in Path("/proc/self/maps").read_text()
    again = Tails.attach(path, sizes, 4)
    for stream, own in enumerate(again.buffers):
        assert [set(buffer.tolist()) for buffer in own] == [{10 * stream + number} for number in range(4)]
    del own
    again.close()
    assert not path.exists()


def test_what_is_done_to_them_in_private_is_for_oneself(shared_folder: Path) -> None:
    path = shared_folder / "tails"
    tails = Tails.create(path, [8], 2)
    tails.buffers[0][1][:] = np.frombuffer(b"survives", np.uint8)
    before = path.read_bytes()
    private = Tails.attach(path, [8], 2, private=True)
    assert private.buffers[0][1].tobytes() == b"survives"
    private.buffers[0][1][:] = 0
    assert not private.buffers[0][1].any()
    assert path.read_bytes() == before
    private.leave()
    tails.close()


def test_no_streams_need_hardly_anything(shared_folder: Path) -> None:
    tails = Tails.create(shared_folder / "tails", [], 3)
    assert (tails.buffers, tails.size) == ([], 64)
    tails.close()


def test_closing_takes_the_name_and_the_mapping_away(shared_folder: Path) -> None:
    tails = Tails.create(shared_folder / "tails", [4096], 3)
    tails.close()
    assert not list(shared_folder.iterdir())
    assert str(shared_folder) not in Path("/proc/self/maps").read_text()


def test_what_a_killed_writer_left_under_the_name_is_replaced(shared_folder: Path) -> None:
    left = Tails.create(shared_folder / "tails", [8], 3)
    left.buffers[0][0][:] = 7
    left.leave()
    tails = Tails.create(shared_folder / "tails", [64], 4)
    assert not any(buffer.any() for buffer in tails.buffers[0])
    assert tails.size == (shared_folder / "tails").stat().st_size == 256
    tails.close()


def test_what_is_too_small_is_refused_and_let_go(shared_folder: Path) -> None:
    path = shared_folder / "tails"
    Tails.create(path, [64], 3).leave()
    with pytest.raises(BrokenError, match="too small for the tails"):
        Tails.attach(path, [65], 3)
    with pytest.raises(BrokenError, match="too small for the tails"):
        Tails.attach(path, [64], 4)
    assert str(path) not in Path("/proc/self/maps").read_text()
    with pytest.raises(StorageError):
        Tails.attach(shared_folder / "none", [64], 3)


@pytest.mark.parametrize(
    ("sizes", "buffers"),
    [
        ([1], 16),  # never more
        ([2**24 // 16], 16),
        ([2**24 // 16 + 1], 15),
        ([2**20] * 2, 8),
        ([2**24 // 3], 3),
        ([2**24], 3),  # never fewer
        ([2**18] * 500, 3),
        ([], 16),
        ([0, 0], 16),
    ],
)
def test_streams_have_buffers_for_what_is_under_way_between_two_commits(
    sizes: list[int], buffers: int
) -> None:
    assert buffers_for(sizes) == buffers


def test_sparse_ones_take_memory_when_they_are_reserved(shared_folder: Path) -> None:
    path = shared_folder / "tails"
    tails = Tails.create(path, [1 << 20, 1 << 16], 4, sparse=True)
    assert (tails.size, path.stat().st_blocks) == (4 * ((1 << 20) + (1 << 16)), 0)
    tails.buffers[0].reserve(2)
    assert path.stat().st_blocks * 512 == 1 << 20
    tails.buffers[0][2][:] = 7
    tails.buffers[0].reserve(2)
    assert set(tails.buffers[0][2].tolist()) == {7}
    tails.leave()
    again = Tails.attach(path, [1 << 20, 1 << 16], 4)
    assert set(again.buffers[0][2].tolist()) == {7}
    assert path.stat().st_blocks * 512 == 1 << 20
    again.close()
