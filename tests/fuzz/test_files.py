"""Damaged HDF5 files: what verify calls whole is read as it was put, and all else is a clear error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fuzz.damage import DAMAGES, Damage
from fuzz.file_cases import MADE, Files, record
from fuzz.subject import Subject
from fuzz.times import few, many
from hypothesis import given
from hypothesis import strategies as st

import shmstore
from shmstore.errors import ShmStoreError

#: Processor time after which HDF5 hangs in a file of 300 kB; starting takes 0.4 s of it.
HANG_S = 2.0
KINDS = st.sampled_from(sorted(MADE))


@pytest.fixture
def subject(shared_folder: Path) -> Iterator[Subject]:
    record(shared_folder)
    files = Files(shared_folder)

    def verified(damages: Sequence[Damage], kind: str) -> str:
        """Have users' own verify look at a file over which HDF5 hung or died; return what it finds."""
        path = files.damaged(damages, kind)
        try:
            problems = shmstore.verify(path, hang_s=HANG_S).problems
        except ShmStoreError as error:
            return str(error)
        assert problems, "HDF5 hung or died while the file was read, and verify says ok"
        return problems[-1]

    with Subject("fuzz.file_cases", shared_folder, after_hdf5=verified) as made:
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
