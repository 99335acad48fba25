"""The document that a benchmark leaves: plain values, made, loaded, and held against another one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from shmstore.bench import machine
from shmstore.errors import ConfigError, storage_error

#: Version of the document.
FORMAT = 1
#: What tells whether the machine itself was as fast.
_OF_THE_MACHINE = ("memcpy", "pwrite")
#: Processors that others may keep busy before the figures are doubted.
QUIET = 0.05


def document(cases: Sequence[Mapping[str, Any]], *, smoke: bool) -> dict[str, Any]:
    """Return the document of what was found.

    Parameters
    ----------
    cases
        As `shmstore.bench.runner.measure` gives them.
    smoke
        Whether the figures mean nothing.
    """
    return {
        "format": FORMAT,
        "taken_at": datetime.now().astimezone().isoformat(timespec="seconds"),
        "smoke": smoke,
        "machine": machine.facts(),
        "cases": list(cases),
    }


def doubts(found: Mapping[str, Any]) -> str:
    """Return in words why the figures of a document are to be doubted; empty: they are not."""
    if found["smoke"]:
        return "a smoke run: the figures mean nothing"
    foreign = max((case["foreign_processors"] for case in found["cases"]), default=0.0)
    if foreign > QUIET:
        return f"other work kept {foreign:.2f} processors busy: these are not the figures of a quiet machine"
    return ""


def run_of(case: Mapping[str, Any], label: str) -> dict[str, Any] | None:
    """Return a case's run of that label."""
    found: dict[str, Any] | None = next((run for run in case["runs"] if run["label"] == label), None)
    return found


def best_peer(case: Mapping[str, Any], *, fair: bool = True) -> dict[str, Any] | None:
    """Return the fastest peer of a case.

    Parameters
    ----------
    case
        From a document.
    fair
        Whether only those count that leave no more than 10 % more bytes than shmstore does, or have the same
        filters: where a slow peer gets less to do, its last, ragged chunk weighs more.
    """
    ours = case["runs"][0]
    peers = [
        run
        for run in case["runs"]
        if run["kind"] == "peer"
        and (not fair or run["stored_share"] <= 1.1 * ours["stored_share"] or run["codec"] == ours["codec"])
    ]
    return max(peers, key=lambda run: float(run["mb_per_s"]), default=None)


def load(path: Path) -> dict[str, Any]:
    """Read a document.

    Raises
    ------
    StorageError
        The file cannot be read.
    ConfigError
        It is no document of this kind.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise storage_error(error, "read the results", path) from None
    except ValueError:
        raise ConfigError(
            f"{path}: is no JSON: name a file that `shmstore bench --json FILE` wrote"
        ) from None
    keys = {"format", "smoke", "cases"}
    if not isinstance(found, dict) or not keys <= found.keys() or found["format"] != FORMAT:
        raise ConfigError(f"{path}: is no result of `shmstore bench` of this version: take it again")
    try:
        for case in found["cases"]:
            ours = case["runs"][0]
            numbers = (ours["mb_per_s"], ours["stored_share"], case["foreign_processors"])
            if not all(isinstance(number, int | float) and number >= 0 for number in numbers):
                raise TypeError
            _ = case["name"], case["filesystem"]
    except (LookupError, TypeError, ValueError):
        raise ConfigError(f"{path}: is damaged: a case in it lacks a figure: take it again") from None
    return found


@dataclass(frozen=True, slots=True)
class Change:
    """A case in two documents.

    Attributes
    ----------
    case : str
        Its name, and where it was recorded to.
    before, after : float
        MB/s.
    rate : float
        After ÷ before.
    size : float
        Bytes in the file, before ÷ after: below 1 they have become more.
    machine : float or None
        How much faster the machine itself was, after ÷ before: the median of memcpy and pwrite.
    """

    case: str
    before: float
    after: float
    rate: float
    size: float
    machine: float | None

    def is_worse_than(self, ratio: float) -> bool:
        """Whether rate or size fell below the ratio."""
        return self.rate < ratio or self.size < ratio


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Return what changed, of the cases that both have.

    Raises
    ------
    ConfigError
        They have none in common.
    """
    old = {_key(case): case for case in before["cases"]}
    found = [_change(old[_key(case)], case) for case in after["cases"] if _key(case) in old]
    if not found:
        raise ConfigError(
            "the two results have no case in common: measure the same cases on the same filesystem"
        )
    return found


def _key(case: Mapping[str, Any]) -> tuple[str, str]:
    return case["name"], case["filesystem"]


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> Change:
    ours, ours_now = before["runs"][0], after["runs"][0]
    drifts = []
    for label in _OF_THE_MACHINE:
        then, now = run_of(before, label), run_of(after, label)
        if then is not None and now is not None:
            drifts.append(now["mb_per_s"] / then["mb_per_s"])
    return Change(
        f"{after['name']} on {after['filesystem']}",
        ours["mb_per_s"],
        ours_now["mb_per_s"],
        ours_now["mb_per_s"] / ours["mb_per_s"],
        ours["stored_share"] / ours_now["stored_share"],
        median(drifts) if drifts else None,
    )
