"""Killed recordings of which files are damaged: right rows, what is missing told, or all left as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fuzz.damage import DAMAGES, Damage
from fuzz.subject import Subject
from fuzz.times import few, many
from fuzz.wreck_cases import wreck
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def subject(shared_folder: Path) -> Iterator[Subject]:
    wreck(shared_folder)
    with Subject("fuzz.wreck_cases", shared_folder) as made:
        yield made


@few(12)
@given(DAMAGES, st.booleans(), st.booleans())
def test_a_damaged_wreck_is_recovered_or_left_as_it_was(
    subject: Subject, damages: Sequence[Damage], disk: bool, session: bool
) -> None:
    subject.judge(damages, disk=disk, session=session)


@many(5_000)
@given(DAMAGES, st.booleans(), st.booleans())
def test_many_damaged_wrecks_are_recovered_or_left_as_they_were(
    subject: Subject, damages: Sequence[Damage], disk: bool, session: bool
) -> None:
    subject.judge(damages, disk=disk, session=session)
