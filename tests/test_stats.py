from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from shmstore.stats import InstrumentStats, ProducerStats, StorageStats


def numbered(class_: type[Any], **others: Any) -> dict[str, Any]:
    """A different number for each count."""
    names = [item.name for item in fields(class_) if item.type == "int"]
    return {name: number for number, name in enumerate(names, 1)} | others


STORAGE = StorageStats(
    **numbered(
        StorageStats,
        state="complete",
        last_flush=12.5,
        instruments={"cam": InstrumentStats(**numbered(InstrumentStats)), "ü": InstrumentStats()},
    )
)


def test_counts_come_back_from_json() -> None:
    for stats in (STORAGE, ProducerStats(**numbered(ProducerStats, instrument_id="cam"))):
        again = type(stats).from_dict(json.loads(json.dumps(stats.to_dict())))
        assert again == stats


def test_what_a_newer_writer_counts_besides_is_ignored() -> None:
    values = STORAGE.to_dict() | {"invented_later": 1}
    values["instruments"]["cam"]["invented_later"] = 2
    assert StorageStats.from_dict(values) == STORAGE


def test_what_an_older_writer_did_not_count_is_zero() -> None:
    assert StorageStats.from_dict({"instruments": {}, "rows_written": 7}) == StorageStats(rows_written=7)


def test_counts_are_frozen_and_compare() -> None:
    stats = InstrumentStats(accepted=3)
    with pytest.raises(FrozenInstanceError):
        stats.accepted = 4  # type: ignore[misc]
    assert stats == InstrumentStats(accepted=3) != InstrumentStats(accepted=4)


def test_in_flight_is_what_the_account_leaves_open() -> None:
    assert StorageStats(accepted=100, committed=60, dropped=10, rejected=5).in_flight == 25
    assert StorageStats(accepted=75, committed=60, dropped=10, rejected=5).in_flight == 0


def test_steps_below_are_those_not_taken_back() -> None:
    assert InstrumentStats().steps_below == 0
    assert StorageStats(steps_down=7, steps_up=5).steps_below == 2


def test_a_storages_stats_have_every_count_of_an_instruments() -> None:
    assert set(InstrumentStats().to_dict()) <= set(StorageStats().to_dict())
    wanted = "bytes_written batches_written rows_written accepted committed dropped rejected ring_bytes_used"
    assert set(wanted.split()) <= set(InstrumentStats().to_dict())
    assert {"last_flush", "writer_restarts", "last_restart_reason", "ring_high_water"} <= set(
        StorageStats().to_dict()
    )
