"""Damaged rings: a slot that comes out is right, what is missing is told, and nobody hangs or crashes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fuzz.damage import DAMAGES, Damage
from fuzz.subject import Subject
from fuzz.times import few, many
from hypothesis import given
from hypothesis import strategies as st

SIDES = st.sampled_from(["writer", "follower", "producer", "onlooker"])


@pytest.fixture
def subject(shared_folder: Path) -> Iterator[Subject]:
    with Subject("fuzz.ring_cases", shared_folder) as made:
        yield made


@few(300)
@given(DAMAGES, SIDES, st.booleans(), st.booleans())
def test_a_damaged_ring_gives_right_slots_or_a_clear_error(
    subject: Subject, damages: Sequence[Damage], side: str, mended: bool, alike: bool
) -> None:
    subject.judge(damages, side=side, mended=mended, alike=alike)


@many(30_000)
@given(DAMAGES, SIDES, st.booleans(), st.booleans())
def test_many_damaged_rings_give_right_slots_or_a_clear_error(
    subject: Subject, damages: Sequence[Damage], side: str, mended: bool, alike: bool
) -> None:
    subject.judge(damages, side=side, mended=mended, alike=alike)
