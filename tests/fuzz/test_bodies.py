"""Damaged slot bodies: an error by which they are put into quarantine, or rows just as Arrow reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from fuzz.damage import DAMAGES, Damage
from fuzz.subject import Subject
from fuzz.times import few, many
from hypothesis import given
from hypothesis import strategies as st

BODIES = st.integers(0, 63)
ROWS = st.sampled_from([0, 0, 0, 0, 1, -1, 2**31, 2**32 - 100])


@pytest.fixture
def subject() -> Iterator[Subject]:
    with Subject("fuzz.body_cases") as made:
        yield made


@few(400)
@given(DAMAGES, BODIES, ROWS)
def test_a_damaged_body_gives_what_arrow_reads_or_a_clear_error(
    subject: Subject, damages: Sequence[Damage], body: int, rows: int
) -> None:
    subject.judge(damages, body=body, rows=rows)


@many(30_000)
@given(DAMAGES, BODIES, ROWS)
def test_many_damaged_bodies_give_what_arrow_reads_or_a_clear_error(
    subject: Subject, damages: Sequence[Damage], body: int, rows: int
) -> None:
    subject.judge(damages, body=body, rows=rows)
