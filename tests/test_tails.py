from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shmstore.errors import StorageError
from shmstore.tails import Tails


def test_each_stream_has_two_buffers_of_its_own(shared_folder: Path) -> None:
    tails = Tails(shared_folder / "tails", [100, 64, 1])
    assert [(len(one), len(two)) for one, two in tails.pairs] == [(100, 100), (64, 64), (1, 1)]
    buffers = [buffer for pair in tails.pairs for buffer in pair]
    for number, buffer in enumerate(buffers, 1):
        assert buffer.ctypes.data % 64 == 0
        assert not buffer.any()
        buffer[:] = number
    assert [set(buffer.tolist()) for buffer in buffers] == [{number} for number in range(1, 7)]
    assert tails.size == (shared_folder / "tails").stat().st_size
    del buffers, buffer
    tails.close()


def test_what_lies_in_them_outlives_the_process_that_put_it(shared_folder: Path) -> None:
    tails = Tails(shared_folder / "tails", [8])
    tails.pairs[0][1][:] = np.frombuffer(b"survives", np.uint8)
    assert b"survives" in (shared_folder / "tails").read_bytes()
    tails.close()


def test_no_streams_need_hardly_anything(shared_folder: Path) -> None:
    tails = Tails(shared_folder / "tails", [])
    assert (tails.pairs, tails.size) == ([], 64)
    tails.close()


def test_closing_takes_the_name_and_the_mapping_away(shared_folder: Path) -> None:
    tails = Tails(shared_folder / "tails", [4096])
    tails.close()
    assert not list(shared_folder.iterdir())
    assert str(shared_folder) not in Path("/proc/self/maps").read_text()


def test_a_name_in_use_is_refused(shared_folder: Path) -> None:
    tails = Tails(shared_folder / "tails", [8])
    with pytest.raises(StorageError):
        Tails(shared_folder / "tails", [8])
    tails.close()
