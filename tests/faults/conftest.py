"""What the tests of faults share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faults.crash_table import TABLE, Outcome, read_table, table
from faults.disk import Shim


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what the documentation is made with."""
    parser.addoption("--write-crash-table", action="store_true", help=f"write {TABLE.name} from this run")


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    """Return the shim, built for this run."""
    return Shim.build(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest) -> Iterator[list[Outcome]]:
    """Return the list of what happened at each step; its rows go into the table, if that is asked for."""
    found: list[Outcome] = []
    yield found
    if request.config.getoption("--write-crash-table", default=False):
        before = read_table(TABLE.read_text()) if TABLE.exists() else []
        TABLE.write_text(table([*before, *found]))
