"""The crew whose members are to be killed, and that the check of its file sees whatever can be wrong."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from faults.killing import INSTRUMENTS, LARGEST_ROWS, Findings, check_file, read_sealed, run_crew
from processes.rows import SCHEMA, batch, endless_sizes, sizes

import shmstore

SECONDS = 1.0
WRONG = ("lost", "doubled", "disordered", "invented", "altered")


@pytest.mark.parametrize("strings", ["vlen", "packed"])
def test_nothing_is_wrong_when_nobody_is_killed(tmp_path: Path, strings: str) -> None:
    with run_crew(tmp_path, seconds=SECONDS, strings=strings) as crew:
        assert crew.wait() == 0
        crew.wait_for_all()
        sealed = crew.sealed()
    assert sorted(sealed) == [0, 1, 2, 3]
    assert all(count > 1 for count in sealed.values())
    found = check_file(crew.path, sealed)
    assert found.ok, str(found)
    assert found.rows == sum(sizes(number, 0, count, LARGEST_ROWS).sum() for number, count in sealed.items())
    assert not found.uncounted
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["daq.h5"]


def test_a_killed_producer_takes_no_sealed_row_along(tmp_path: Path) -> None:
    with run_crew(tmp_path, seconds=SECONDS) as crew:
        crew.kill(crew.producers[2])
        crew.wait()
    sealed = crew.sealed()
    found = check_file(crew.path, sealed)
    assert found.ok, str(found)
    assert set(found.uncounted) <= {2}
    assert all(count > 0 for count in sealed.values())


def test_what_was_sealed_is_known_when_all_are_killed(tmp_path: Path) -> None:
    with run_crew(tmp_path, seconds=60, standby=False) as crew:
        try:
            writers, everybody = crew.writers(), crew.everybody()
            assert len(writers) == 1
            assert sorted(everybody) == sorted({crew.owner, *crew.producers, *writers})
            assert len(everybody) == 6
            crew.kill(*everybody)
            crew.wait_for_all()
            assert crew.wait() == -9
            assert all(count > 0 for count in read_sealed(tmp_path).values())
        finally:
            shutil.rmtree(f"/dev/shm/shmstore-{crew.name}")


def test_whoever_still_lives_is_killed_at_the_end_of_the_block(tmp_path: Path) -> None:
    with run_crew(tmp_path, producers=1, seconds=60) as crew:
        pass
    shutil.rmtree(f"/dev/shm/shmstore-{crew.name}", ignore_errors=True)  # or the writer has been as quick
    assert crew.everybody() == []
    assert crew.wait() == -9


# -- the check -------------------------------------------------------------------------------------------

BATCHES = 6
SEALED = {0: BATCHES, 1: BATCHES, 2: BATCHES}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file as a crew of three writes it; producers 0 and 2 take turns."""
    folder = tmp_path_factory.mktemp("recorded")
    with shmstore.HDF5Storage(output_dir=folder, strings="packed", filename="daq.h5") as storage:
        made = [storage.producer(INSTRUMENTS[number % 2], SCHEMA) for number in SEALED]
        for sequence in range(BATCHES):
            for number, producer in enumerate(made):
                producer.put(batch(number, sequence, int(sizes(number, 0, BATCHES, LARGEST_ROWS)[sequence])))
                storage.flush()
    return storage.path


@pytest.fixture
def copied(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(recorded, tmp_path / "daq.h5"))


def wrong(found: Findings) -> dict[str, list[tuple[int, ...]]]:
    """Return the rows that are wrong in any way."""
    rows = {name: [tuple(row) for row in getattr(found, name).tolist()] for name in WRONG}
    return {name: held for name, held in rows.items() if held}


def test_a_whole_file_is_right(recorded: Path) -> None:
    found = check_file(recorded, SEALED)
    assert found.ok
    assert wrong(found) == {}
    assert str(found) == f"{found.rows} rows"


def test_what_a_producer_puts_has_no_end_and_is_known() -> None:
    planned = itertools.islice(endless_sizes(1, 0, LARGEST_ROWS), 2500)
    assert list(planned) == sizes(1, 0, 2500, LARGEST_ROWS).tolist()


def test_a_batch_beyond_those_counted_is_whole_or_not_there(recorded: Path) -> None:
    found = check_file(recorded, SEALED | {1: BATCHES - 1})
    assert found.ok
    assert found.uncounted == {1: sizes(1, 0, BATCHES, LARGEST_ROWS)[-1]}
    found = check_file(recorded, SEALED | {1: BATCHES - 2})  # there cannot be two
    rows = int(sizes(1, 0, BATCHES, LARGEST_ROWS)[-1])
    assert wrong(found) == {"invented": [(1, BATCHES - 1, row) for row in range(rows)]}
    assert not found.ok
    found = check_file(recorded, SEALED | {1: BATCHES + 1})
    rows = int(sizes(1, 0, BATCHES + 1, LARGEST_ROWS)[-1])
    assert wrong(found) == {"lost": [(1, BATCHES, row) for row in range(rows)]}
    assert f"{rows} lost" in str(found)


def shift(group: Any, start: int, stop: int, by: int) -> None:
    """Move the rows of every number column; texts stay, and are wrong then."""
    for column in ("producer", "sequence", "row", "value", "flag"):
        group[column][start + by : stop + by] = group[column][start:stop]


def swap(group: Any) -> None:
    for column in ("producer", "sequence", "row"):
        held = group[column][:]
        held[[10, 11]] = held[[11, 10]]
        group[column][:] = held


DAMAGE: dict[str, tuple[Callable[[Any], None], dict[str, list[tuple[int, ...]]]]] = {
    "repeated": (
        lambda group: shift(group, 20, 21, 1),
        {"lost": [(1, 0, 21)], "doubled": [(1, 0, 20)], "altered": [(1, 0, 20)]},
    ),
    "swapped": (swap, {"disordered": [(1, 0, 10)], "altered": [(1, 0, 11), (1, 0, 10)]}),
    "altered": (
        lambda group: group["value"].write_direct(np.zeros(1), dest_sel=np.s_[5:6]),
        {"altered": [(1, 0, 5)]},
    ),
    "flag": (
        lambda group: group["flag"].write_direct(~group["flag"][4:5], dest_sel=np.s_[4:5]),
        {"altered": [(1, 0, 4)]},
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_is_named_row_by_row(copied: Path, damage: str) -> None:
    change, expected = DAMAGE[damage]
    with h5py.File(copied, "r+") as file:
        change(file["right"])
    found = check_file(copied, SEALED)
    assert wrong(found) == expected
    assert not found.ok


@pytest.mark.parametrize(
    ("column", "number"), [("producer", 7), ("producer", 0), ("sequence", 99), ("row", 9999)]
)
def test_rows_that_nobody_put_there_are_invented(copied: Path, column: str, number: int) -> None:
    with h5py.File(copied, "r+") as file:
        file["right"][column][3] = number
        row = tuple(int(file["right"][name][3]) for name in ("producer", "sequence", "row"))
    found = wrong(check_file(copied, SEALED))
    assert found["invented"] == [row]
    assert found["lost"] == [(1, 0, 3)]


def test_an_uncounted_batch_that_is_there_in_part_is_lost_for_the_rest(copied: Path) -> None:
    with h5py.File(copied, "r+") as file:
        last = len(file["right/row"]) - 1
        shift(file["right"], 0, 1, last)
    found = check_file(copied, SEALED | {1: BATCHES - 1})
    rows = int(sizes(1, 0, BATCHES, LARGEST_ROWS)[-1])
    assert wrong(found)["lost"] == [(1, BATCHES - 1, rows - 1)]
    assert found.uncounted == {1: rows - 1}


def test_columns_of_different_length_and_missing_ones_are_told(copied: Path) -> None:
    with h5py.File(copied, "r+") as file:
        file["left/value"].resize(5, 0)
        del file["right/flag"]
    found = check_file(copied, SEALED)
    assert len(found.uneven) == 2
    assert "left/value has 5 rows" in found.uneven[0]
    assert found.uneven[1] == "right/flag is missing"
    assert "right/flag is missing" in str(found)


def test_an_instrument_that_is_not_there_has_lost_everything(copied: Path) -> None:
    with h5py.File(copied, "r+") as file:
        del file["right"]
    found = check_file(copied, SEALED)
    assert len(found.lost) == sizes(1, 0, BATCHES, LARGEST_ROWS).sum()
    assert not found.uneven
