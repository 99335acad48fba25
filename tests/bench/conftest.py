"""What the tests of the benchmarks share."""

from __future__ import annotations

import pytest
import zarr


@pytest.fixture(scope="session", autouse=True)
def zarrs_event_loop() -> None:
    """Have zarr start the event loop that it keeps for the life of the interpreter, before anybody counts."""
    zarr.create_group(store=zarr.storage.MemoryStore())
