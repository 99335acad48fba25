"""The account: what is accepted is committed, dropped, rejected or lost, and a difference is said."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmstore.accounting import Account, imbalances

ROWS = st.integers(0, 2**40)


@given(committed=ROWS, quarantined=ROWS, dropped=ROWS, rejected=ROWS, lost=ROWS)
def test_nothing_that_was_accepted_is_left_out(**rows: int) -> None:
    account = Account("cam", 3, taken=rows["committed"] + rows["quarantined"], **rows)
    found = account.to_dict()
    parts = ("committed", "dropped", "rejected", "lost")
    assert found["accepted"] == sum(rows.values()) == sum(found[part] for part in parts)
    assert found["rejected"] == rows["rejected"] + rows["quarantined"]
    assert (found["instrument"], found["ring"]) == ("cam", 3)


def test_only_an_instruments_own_producers_count() -> None:
    accounts = [
        Account("cam", 1, taken=5, committed=5),
        Account("cam", 2, taken=7, committed=7),
        Account("other", 3, taken=100, committed=100, lost=9),
    ]
    assert imbalances("cam", 12, accounts) == []
    assert imbalances("none", 0, accounts) == []
    assert len(imbalances("other", 99, accounts)) == 2


@pytest.mark.parametrize(
    ("in_file", "counts", "said"),
    [
        (4, {"taken": 5, "committed": 5}, ["'cam' has 4 rows in the file, but 5 were committed"]),
        (6, {"taken": 5, "committed": 5}, ["'cam' has 6 rows in the file, but 5 were committed"]),
        (
            5,
            {"taken": 5, "committed": 5, "lost": 2},
            ["2 rows of 'cam' were sealed by a producer and are lost"],
        ),
        (5, {"taken": 8, "committed": 5, "quarantined": 3, "dropped": 4, "rejected": 1}, []),
    ],
)
def test_what_is_wrong_is_said_in_words(in_file: int, counts: dict[str, Any], said: list[str]) -> None:
    assert imbalances("cam", in_file, [Account("cam", 1, **counts)]) == said
