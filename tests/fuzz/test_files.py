"""Damaged HDF5 files: what verify calls whole is read as it was put, and all else is a clear error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fuzz.damage import DAMAGES, Damage
from fuzz.file_cases import MADE, record
from fuzz.subject import Subject
from fuzz.times import few, many
from hypothesis import given
from hypothesis import strategies as st

KINDS = st.sampled_from(sorted(MADE))


@pytest.fixture
def subject(shared_folder: Path) -> Iterator[Subject]:
    record(shared_folder)
    with Subject("fuzz.file_cases", shared_folder, timeout_s=5.0, hdf5_may_fail=True) as made:
        yield made
    print(made.counts)


@few(15)
@given(DAMAGES, KINDS)
def test_a_damaged_file_gives_right_rows_or_a_clear_error(
    subject: Subject, damages: Sequence[Damage], kind: str
) -> None:
    subject.judge(damages, kind=kind)


@many(5_000)
@given(DAMAGES, KINDS)
def test_many_damaged_files_give_right_rows_or_a_clear_error(
    subject: Subject, damages: Sequence[Damage], kind: str
) -> None:
    subject.judge(damages, kind=kind)
