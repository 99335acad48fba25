"""When effort goes down and up, without any process; and that each dataset's filters read what it leaves."""

from __future__ import annotations

from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t

from shmstore.codec import Codec
from shmstore.effort import AdaptiveEncoder, Effort

LOOK_S = 0.02


class Load:
    """Tells an effort how it stands, a look after the other."""

    def __init__(self, effort: Effort) -> None:
        self.effort = effort
        self.now_s = self.waited_s = 1000.0
        effort.observe(self.now_s, 0.0, self.waited_s)

    def lasts(self, seconds: float, fill: float, waiting: float) -> list[int]:
        """Let it stand like this for a while; return the grades that the effort took."""
        grades = []
        for _ in range(round(seconds / LOOK_S)):
            self.now_s += LOOK_S + 1e-6
            self.waited_s += waiting * LOOK_S
            before = self.effort.grade
            assert self.effort.observe(self.now_s, fill, self.waited_s) == (self.effort.grade != before)
            if self.effort.grade != before:
                grades.append(self.effort.grade)
        return grades


@pytest.fixture
def effort() -> Effort:
    return Effort(lowest=3)


@pytest.fixture
def load(effort: Effort) -> Load:
    return Load(effort)


@pytest.mark.parametrize(
    ("fill", "waiting"),
    [
        (0.0, 1.0),
        (0.7, 1.0),  # the ring has room
        (1.0, 0.0),
        (1.0, 0.4),  # it is not the codecs
    ],
)
def test_effort_stays_while_codecs_keep_up(effort: Effort, load: Load, fill: float, waiting: float) -> None:
    assert load.lasts(60, fill, waiting) == []
    assert (effort.grade, effort.steps_down, effort.steps_up) == (0, 0, 0)


def test_a_full_ring_and_a_file_that_waits_for_codecs_take_it_down_to_the_end(
    effort: Effort, load: Load
) -> None:
    assert load.lasts(LOOK_S, 0.8, 0.9) == [1]  # at the first look
    assert load.lasts(10, 1.0, 0.9) == [2, 3]
    assert (effort.grade, effort.lowest, effort.steps_down, effort.steps_up) == (3, 3, 3, 0)


def test_a_step_that_lets_the_ring_drain_is_enough(load: Load) -> None:
    assert load.lasts(LOOK_S, 1.0, 1.0) == [1]
    for fill in (0.89, 0.85, 0.8, 0.78):
        assert load.lasts(0.5, fill, 1.0) == []
    assert load.lasts(LOOK_S, 0.95, 1.0) == [2]  # it fills again


def test_with_room_in_the_ring_it_comes_back_step_by_step(effort: Effort, load: Load) -> None:
    load.lasts(1, 1.0, 1.0)
    assert load.lasts(0.9, 0.1, 1.0) == []
    assert load.lasts(0.2, 0.1, 1.0) == [2]
    assert load.lasts(60, 0.3, 0.0) == [1, 0]
    assert (effort.steps_down, effort.steps_up) == (3, 3)


def test_just_enough_room_is_no_reason_to_come_back(load: Load) -> None:
    load.lasts(1, 1.0, 1.0)
    assert load.lasts(60, 0.6, 0.3) == []
    for _ in range(20):  # what interrupts it starts the wait anew
        assert load.lasts(0.8, 0.1, 0.2) == []
        assert load.lasts(LOOK_S, 0.6, 0.3) == []


def test_when_the_disk_is_behind_it_comes_back_though_the_ring_is_full(load: Load) -> None:
    load.lasts(1, 1.0, 1.0)
    assert load.lasts(10, 1.0, 0.0) == [2, 1, 0]


def test_a_step_up_that_fails_makes_the_next_wait_twice_as_long(effort: Effort, load: Load) -> None:
    load.lasts(1, 1.0, 1.0)
    waits = []
    for _ in range(9):
        began = load.now_s
        while not load.lasts(LOOK_S, 0.2, 0.3):
            assert load.now_s - began < 120
        waits.append(round(load.now_s - began))
        assert load.lasts(0.5, 1.0, 1.0) == [3]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    began = load.now_s
    assert load.lasts(100, 0.2, 0.3) == [2, 1, 0]  # one that holds makes it forget


def test_it_does_not_flap_under_a_load_between_two_grades(effort: Effort) -> None:
    """A ring of 64 MB, 300 MB/s that come, and codecs that take 100, 250, 600 MB/s and then any."""
    load, used = Load(effort), 0.0
    for _ in range(round(600 / LOOK_S)):
        rate = (100e6, 250e6, 600e6, 5e9)[effort.grade]
        used = min(64e6, max(0.0, used + (300e6 - rate) * LOOK_S))
        load.lasts(LOOK_S, used / 64e6, 1.0 if used else 300e6 / rate)
    assert 3 <= effort.steps_down <= 20
    assert effort.grade <= 2


def test_looks_that_follow_at_once_are_one(effort: Effort) -> None:
    effort.observe(0.0, 0.0, 0.0)
    assert not any(effort.observe(now_s / 1000, 1.0, now_s / 1000) for now_s in range(20))
    assert effort.observe(0.021, 0.0, 0.021)  # the fullest of them counts


def test_who_follows_begins_at_the_top_and_counts_on(effort: Effort) -> None:
    effort.grade, effort.steps_down, effort.steps_up = 2, 5, 3
    effort.count(stored=True)
    following = Effort(lowest=3)
    following.count_on(effort.counts())
    assert (following.grade, following.steps_down, following.steps_up) == (0, 5, 5)
    assert (following.chunks_cheaper, following.chunks_stored) == (0, 1)
    following.count_on({})
    assert not any(following.counts().values())


def test_only_adaptive_codecs_need_it() -> None:
    assert Effort.of([]) is None
    assert Effort.of([Codec.parse("gzip"), Codec.parse("none")]) is None
    effort = Effort.of(map(Codec.parse, ("gzip", "adaptive:lz4", "adaptive:gzip", "adaptive:zstd")))
    assert effort is not None
    assert effort.lowest == 3  # gzip 6, 2, 1


@pytest.mark.parametrize(
    ("text", "level", "shuffle"),
    [
        ("adaptive", None, None),
        ("adaptive:gzip", 9, False),
        ("adaptive:gzip", 0, None),
        ("adaptive:zstd", 19, None),
        ("adaptive:lz4", None, None),
        ("adaptive:lz4", 12, None),
        ("adaptive:blosc:zstd", None, "bit"),
        ("adaptive:blosc2:lz4", 9, None),
        ("adaptive:bitshuffle", None, None),
        ("adaptive:bitshuffle:zstd", 6, None),
    ],
)
def test_hdf5_reads_what_any_grade_leaves(
    tmp_path: Path, text: str, level: int | None, shuffle: str | bool | None
) -> None:
    codec = Codec.parse(text, level, shuffle)
    items = np.cumsum(np.random.default_rng(1).integers(-9, 9, 4096)).astype("<i4")
    chunk = items.view(np.uint8)
    filters = codec.filters(4, items.nbytes)
    effort = Effort(lowest=5)
    encoders = [found for eased in codec.eased() if (found := eased.encoder(4, items.nbytes))]
    encode = AdaptiveEncoder(encoders, effort, (1 << len(filters)) - 1)
    grades = effort.lowest + 1
    assert len(encoders) < grades
    assert hdf5plugin.get_filters()
    with h5py.File(tmp_path / "grades.h5", "w") as file:
        properties = h5p.create(h5p.DATASET_CREATE)
        properties.set_chunk((len(items),))
        for filter_ in filters:
            properties.set_filter(filter_.id, h5py.h5z.FLAG_OPTIONAL, filter_.cd_values)
        space = h5s.create_simple((grades * len(items),))
        dataset = h5d.create(file.id, b"x", h5t.py_create(items.dtype), space, properties)
        for effort.grade in range(grades):
            payload, mask = encode(chunk)
            dataset.write_direct_chunk((effort.grade * len(items),), payload, mask)
            if effort.grade < len(encoders):
                assert (bytes(payload), mask) == tuple(map(_plain, encoders[effort.grade](chunk)))
        assert (len(payload), mask) == (items.nbytes, (1 << len(filters)) - 1)
    with h5py.File(tmp_path / "grades.h5") as file:
        read = file["x"][:].reshape(grades, len(items))
    assert (read == items).all()
    # At grade 0 as configured, at the last not at all, in between cheaper if there is a cheaper level.
    assert effort.counts()["chunks_stored"] == 1
    assert effort.counts()["chunks_cheaper"] == (grades - 2 if len(encoders) > 1 else 0)


def _plain(part: bytes | memoryview | int) -> bytes | int:
    return part if isinstance(part, int) else bytes(part)
