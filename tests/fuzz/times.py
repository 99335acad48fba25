"""How often a case is tried: a few times in each run, and many times on demand."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

#: The many can be made fewer or more: what they are multiplied with.
_SHARE = float(os.environ.get("FUZZ_SHARE", "1"))
_SETTINGS = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def few(count: int) -> settings:
    """Try so many cases, the same in each run."""
    return settings(_SETTINGS, max_examples=count, derandomize=True, database=None)


def many(count: int) -> Callable[[Any], Any]:
    """Try so many cases, others in each run, in a test that is left out unless asked for."""

    def decorate(test: Any) -> Any:
        tried = settings(_SETTINGS, max_examples=max(1, round(count * _SHARE)))(test)
        return pytest.mark.slow(pytest.mark.timeout(7200)(tried))

    return decorate
