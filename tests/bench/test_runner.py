"""The runner, on tiny cases: everything runs, and what comes out fits together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import shmstore
from shmstore.bench.cases import Case
from shmstore.bench.peers import PEERS
from shmstore.bench.results import best_peer, document, doubts, run_of
from shmstore.bench.runner import Comparison, Plan, measure
from shmstore.bench.streams import Adc, Words, total_bytes
from shmstore.errors import ConfigError

SETTINGS = (("standby", False), ("ring_bytes", 1 << 20))


def test_a_case_against_limits_and_peers(output_dir: Path, shared_folder: Path) -> None:
    stream = Adc(batch_bytes=8192, distinct=3)
    bounds = (("machine limit", 1e-9), ("h5py slices", 1e9), ("no such peer", 1.0))
    settings = (*SETTINGS, ("shm_dir", shared_folder))
    case = Case("adc", stream, "gzip", 40, producers=2, settings=settings, bounds=bounds)
    told: list[tuple[str, float]] = []
    (found,) = measure(
        [case], Plan(output_dir, smoke=True), lambda case, what, share: told.append((what, share))
    )
    assert not list(output_dir.iterdir())

    assert [run["label"] for run in found["runs"]] == [
        "shmstore",
        "machine limit",
        "memcpy",
        "pwrite",
        "codec alone",
        "pwrite of the result",
        *(peer.label for peer in PEERS),
    ]
    assert found["absent"] == {}
    assert found["batches"] == 8
    assert found["stream_bytes"] == total_bytes(stream, 8)
    ours = found["runs"][0]
    assert ours["megabytes"] == pytest.approx(found["stream_bytes"] / 1e6)
    assert ours["file_bytes"] == pytest.approx(ours["stored_share"] * found["stream_bytes"])
    assert set(ours["cpu_s_per_gb"]) == {"producer", "writer"}
    for run in found["runs"][1:]:
        assert run["ratio"] == pytest.approx(ours["mb_per_s"] / run["mb_per_s"])
    limit = run_of(found, "machine limit")
    assert limit is not None
    parts = ("memcpy", "codec alone", "pwrite of the result")
    assert limit["cpu_s_per_gb"] == {
        label: run_of(found, label)["cpu_s_per_gb"]["process"] for label in parts
    }
    assert limit["mb_per_s"] == pytest.approx(1000 * limit["cores"] / sum(limit["cpu_s_per_gb"].values()))
    assert [(judged["against"], judged["met"]) for judged in found["judged"]] == [
        ("machine limit", True),
        ("h5py slices", False),
    ]
    assert found["latency"]["put_us"]["count"] == found["latency"]["copy_us"]["count"] >= 8
    # What was told: every run once and in order, from the beginning to before the end.
    assert [what for what, _ in told[:2]] == ["shmstore, a little", "shmstore, paced"]
    assert told[-1][0] == "shmstore"
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[-1] == pytest.approx(1 - 1 / len(told))

    whole = document([found], smoke=True)
    assert json.loads(json.dumps(whole, default=str))["cases"][0]["name"] == "adc"
    assert doubts(whole) == "a smoke run: the figures mean nothing"
    peer = best_peer(found)
    assert peer is not None
    assert peer["stored_share"] <= 1.1 * ours["stored_share"]


def test_rounds_and_absent_peers(output_dir: Path, shared_folder: Path) -> None:
    settings = (*SETTINGS, ("shm_dir", shared_folder))
    case = Case("log", Words(rows=50, distinct=2), "none", 6, settings=settings)
    with Comparison(case, Plan(output_dir, rounds=2)) as comparison:
        found = comparison.measure()
    labels = ["shmstore", "machine limit", "memcpy", "pwrite", "pwrite, handed over", "Parquet", "Arrow IPC"]
    assert [run["label"] for run in found["runs"]] == labels
    assert set(found["absent"]) == {peer.label for peer in PEERS} - set(labels)
    assert all("is string" in why for why in found["absent"].values())
    assert len(found["runs"][0]["mb_per_s_of_rounds"]) == found["rounds"] == 2
    assert found["foreign_processors"] >= 0


def test_peers_can_be_left_out(output_dir: Path, shared_folder: Path) -> None:
    settings = (*SETTINGS, ("shm_dir", shared_folder))
    case = Case("adc", Adc(batch_bytes=4096, distinct=2), "lzf", 8, settings=settings)
    with Comparison(case, Plan(output_dir, peers=False, smoke=True)) as comparison:
        found = comparison.measure()
    # lzf runs inside HDF5 only: there is no codec to be measured alone, and hence no limit of the machine.
    assert [run["label"] for run in found["runs"]] == ["shmstore", "memcpy", "pwrite"]


def test_a_failure_leaves_nothing_behind(output_dir: Path, shared_folder: Path) -> None:
    settings = (*SETTINGS, ("shm_dir", shared_folder), ("name", "taken"))
    case = Case("adc", Adc(batch_bytes=4096, distinct=2), "none", 8, settings=settings)
    with shmstore.HDF5Storage(output_dir=output_dir / "other", shm_dir=shared_folder, name="taken"):
        with (
            pytest.raises(ConfigError, match="taken"),
            Comparison(case, Plan(output_dir / "bench", peers=False, smoke=True)) as comparison,
        ):
            comparison.measure()
        assert not list((output_dir / "bench").iterdir())
