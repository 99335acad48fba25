"""What the tests of faults share."""

from __future__ import annotations

import pytest
from faults.disk import Shim


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    """Return the shim, built for this run."""
    return Shim.build(tmp_path_factory.mktemp("shim"))
