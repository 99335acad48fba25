from __future__ import annotations

from pathlib import Path

import h5py
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmstore.errors import InvalidValueError
from shmstore.names import (
    MAX_INSTRUMENT_ID_BYTES,
    RESERVED_COLUMNS,
    RESERVED_INSTRUMENTS,
    RESERVED_MEMBERS,
    instrument_link,
    link_name,
)

ANY_NAME = st.text(st.characters(), max_size=300)  # lone surrogates too
AWKWARD = [
    "",
    ".",
    "..",
    "/",
    "a/b",
    "%",
    "%~2",
    "x%~2",
    *RESERVED_COLUMNS,
    *RESERVED_MEMBERS,
    "%53chema",
    "\0",
    "\n",
    "ü" * 150,
    "a" * 250,
]


def unescaped(link: str) -> str:
    """What a reader of the file's description would make of a link; short names without a count only."""
    raw = bytearray()
    octets = link.encode()
    position = 0
    while position < len(octets):
        if octets[position] == ord("%"):
            raw.append(int(octets[position + 1 : position + 3], 16))
            position += 3
        else:
            raw.append(octets[position])
            position += 1
    return raw.decode("utf-8", "surrogatepass")


@pytest.mark.parametrize("name", ["time", "Zeit in µs", "a.b", "...x", "日本", "name with spaces", "-", "~2"])
def test_an_ordinary_name_stays_as_it_is(name: str) -> None:
    assert link_name(name, reserved=RESERVED_COLUMNS) == name


@given(ANY_NAME.filter(lambda name: 0 < len(name.encode("utf-8", "surrogatepass")) <= 60))
def test_escaping_can_be_undone(name: str) -> None:
    link = link_name(name, reserved=RESERVED_COLUMNS)
    assert unescaped(link) == name


@given(ANY_NAME)
def test_a_link_is_valid_in_hdf5_and_of_bounded_length(name: str) -> None:
    link = link_name(name, reserved=RESERVED_COLUMNS)
    assert link not in RESERVED_COLUMNS
    assert link.strip(".")
    assert not set(link) & {"/", "\0"}
    assert link.isprintable()
    assert 0 < len(link.encode()) <= 200


@given(st.lists(st.one_of(st.sampled_from(AWKWARD), ANY_NAME), max_size=12))
def test_links_of_one_group_differ_even_for_doubled_names(names: list[str]) -> None:
    taken: list[str] = []
    for name in names:
        taken.append(link_name(name, taken, RESERVED_COLUMNS))
    assert len(set(taken)) == len(names)


@pytest.mark.parametrize("reserved", [RESERVED_COLUMNS, RESERVED_MEMBERS])
def test_a_name_of_ours_is_escaped_where_it_is_ours_alone(reserved: frozenset[str]) -> None:
    for name in RESERVED_COLUMNS | RESERVED_MEMBERS:
        link = link_name(name, reserved=reserved)
        assert (link == name) == (name not in reserved)
        assert unescaped(link) == name


def test_hdf5_takes_every_awkward_name(tmp_path: Path) -> None:
    taken: set[str] = set()
    with h5py.File(tmp_path / "names.h5", "w") as file:
        for name in AWKWARD * 2:
            link = link_name(name, taken, RESERVED_COLUMNS)
            file.create_dataset(link, data=len(taken))
            taken.add(link)
    with h5py.File(tmp_path / "names.h5") as file:
        assert set(file) == taken
        assert len(taken) == 2 * len(AWKWARD)


def test_long_names_that_begin_alike_differ() -> None:
    assert link_name("x" * 300 + "a") != link_name("x" * 300 + "b")
    assert link_name("x" * 300) == link_name("x" * 300)


@pytest.mark.parametrize("reserved", sorted(RESERVED_INSTRUMENTS))
def test_an_instrument_cannot_take_a_name_of_ours(reserved: str) -> None:
    link = instrument_link(reserved)
    assert link not in RESERVED_INSTRUMENTS
    assert unescaped(link) == reserved
    assert instrument_link(link) != link  # nor that of another's escaped name


@pytest.mark.parametrize(
    ("instrument_id", "complaint"),
    [
        ("a\0b", "NUL"),
        (7, "no text"),
        (None, "no text"),
        ("\ud800", "lone surrogates"),
        ("x" * (MAX_INSTRUMENT_ID_BYTES + 1), "4097 bytes"),
    ],
)
def test_an_id_that_is_none_is_refused_in_one_line(instrument_id: str, complaint: str) -> None:
    with pytest.raises(InvalidValueError, match=complaint) as caught:
        instrument_link(instrument_id)
    assert "\n" not in str(caught.value)


def test_the_shortest_and_the_longest_id_are_taken() -> None:
    assert instrument_link("") == "%"
    assert instrument_link("%") != "%"
    assert len(instrument_link("x" * MAX_INSTRUMENT_ID_BYTES)) <= 200
    assert instrument_link("ü" * 2048) != instrument_link("ü" * 2047)
