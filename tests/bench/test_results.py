from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shmstore.bench.results import FORMAT, best_peer, changes, doubts, load
from shmstore.errors import ConfigError, StorageError


def case(
    name: str = "adc/gzip", rate: float = 100.0, share: float = 0.5, machine: float = 1000.0
) -> dict[str, Any]:
    runs = [
        {"label": "shmstore", "kind": "shmstore", "codec": "gzip-6", "mb_per_s": rate, "stored_share": share},
        {"label": "memcpy", "kind": "limit", "mb_per_s": machine},
        {"label": "pwrite", "kind": "limit", "mb_per_s": machine / 2, "stored_share": 1.0},
    ]
    return {"name": name, "filesystem": "tmpfs", "runs": runs, "foreign_processors": 0.01}


def found(*cases: dict[str, Any], smoke: bool = False) -> dict[str, Any]:
    return {"format": FORMAT, "smoke": smoke, "cases": list(cases)}


def test_changes_are_after_against_before() -> None:
    (change,) = changes(found(case()), found(case(rate=80, share=0.4, machine=900), case("other")))
    assert (change.case, change.before, change.after) == ("adc/gzip on tmpfs", 100, 80)
    assert change.rate == pytest.approx(0.8)
    assert change.size == pytest.approx(1.25)
    assert change.machine == pytest.approx(0.9)
    assert change.is_worse_than(0.81)
    assert not change.is_worse_than(0.79)


def test_more_bytes_are_a_regression_too() -> None:
    (change,) = changes(found(case()), found(case(rate=200, share=0.6)))
    assert change.is_worse_than(0.9)


def test_another_filesystem_is_another_case() -> None:
    disk = case() | {"filesystem": "ext4"}
    with pytest.raises(ConfigError, match="no case in common"):
        changes(found(case()), found(disk))


def test_the_best_peer_leaves_as_few_bytes() -> None:
    one = case()
    one["runs"] += [
        {"label": "large", "kind": "peer", "codec": "lz4", "mb_per_s": 900, "stored_share": 0.56},
        {"label": "fair", "kind": "peer", "codec": "zstd", "mb_per_s": 300, "stored_share": 0.54},
        {"label": "slow", "kind": "peer", "codec": "zstd", "mb_per_s": 200, "stored_share": 0.1},
    ]
    assert best_peer(one)["label"] == "fair"
    assert best_peer(one, fair=False)["label"] == "large"
    one["runs"].append(
        {"label": "same", "kind": "peer", "codec": "gzip-6", "mb_per_s": 400, "stored_share": 0.7}
    )
    assert best_peer(one)["label"] == "same"
    assert best_peer(case()) is None


def test_doubts() -> None:
    assert doubts(found(case())) == ""
    assert "smoke" in doubts(found(case(), smoke=True))
    assert "0.40 processors" in doubts(found(case(), case() | {"foreign_processors": 0.4}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "is no JSON"),
        ("[]", "is no result"),
        (json.dumps({"format": FORMAT + 1, "cases": []}), "of this version"),
        (json.dumps({"format": FORMAT, "smoke": False, "cases": [{"name": "x"}]}), "is damaged"),
        (json.dumps({"format": FORMAT, "smoke": False, "cases": 3}), "is damaged"),
        (json.dumps({"format": FORMAT, "cases": []}), "is no result"),
    ],
)
def test_what_is_no_document_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "A.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="read the results"):
        load(tmp_path / "none.json")
