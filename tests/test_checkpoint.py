"""The checkpoint: what a commit covers comes back as it was, and nothing else passes for one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore.accounting import SourceStanding
from shmstore.checkpoint import Checkpoint, durable_checkpoint
from shmstore.errors import IncompleteFileError

COUNT = st.integers(0, 2**63)
STANDING = st.fixed_dictionaries(
    {
        "counts": st.dictionaries(st.text(), COUNT, max_size=3),
        "bytes_in": COUNT,
        "streams": st.lists(
            st.tuples(COUNT, COUNT, st.integers(-1, 15), st.booleans()).map(list), max_size=3
        ),
    }
)
CHECKPOINTS = st.builds(
    Checkpoint,
    COUNT,
    st.dictionaries(st.integers(0, 2**31), st.builds(SourceStanding, COUNT, COUNT, COUNT), max_size=4),
    st.dictionaries(st.text(), STANDING, max_size=3),
)
EXAMPLE = Checkpoint(
    4711,
    {3: SourceStanding(5, 600, 7)},
    {"cam\ud800": {"counts": {"": 600, "text/CHARS": 9}, "bytes_in": 4800, "streams": [[0, 600, 2, True]]}},
)


@given(CHECKPOINTS)
def test_a_checkpoint_comes_back_as_it_was(checkpoint: Checkpoint) -> None:
    assert Checkpoint.unpack(checkpoint.pack()) == checkpoint


@given(CHECKPOINTS, st.lists(COUNT))
def test_a_durable_one_says_whose_tails_stand_beside(checkpoint: Checkpoint, tails: list[int]) -> None:
    again = Checkpoint.unpack(durable_checkpoint(checkpoint.pack(), tails))
    assert again == Checkpoint(checkpoint.position, checkpoint.sources, checkpoint.instruments, tails)


def test_one_of_a_newer_version_is_refused() -> None:
    document = json.loads(EXAMPLE.pack())
    document["version"] += 1
    with pytest.raises(IncompleteFileError, match="newer than 1: update shmstore"):
        Checkpoint.unpack(json.dumps(document).encode())


def test_what_is_cut_off_is_refused() -> None:
    packed = EXAMPLE.pack()
    assert Checkpoint.unpack(packed) == EXAMPLE
    for end in range(len(packed)):
        with pytest.raises(IncompleteFileError, match="checkpoint is damaged"):
            Checkpoint.unpack(packed[:end])


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b"[" * 100_000,
        b'{"version":1,"position":Infinity,"sources":[],"instruments":{}}',
        b'{"version":1,"position":null,"sources":[],"instruments":{}}',
        b'{"version":1,"position":1,"sources":[[1,2,3,4,5]],"instruments":{}}',
        b'{"version":1,"position":1,"sources":[[]],"instruments":{}}',
        b'{"version":1,"position":1,"sources":3,"instruments":{}}',
        b'{"version":1,"position":1,"sources":[],"instruments":4}',
        b'{"version":"x","position":1,"sources":[],"instruments":{}}',
    ],
)
def test_what_is_no_checkpoint_is_refused(data: bytes) -> None:
    with pytest.raises(IncompleteFileError, match="checkpoint is damaged"):
        Checkpoint.unpack(data)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({"version": JSON, "position": JSON, "sources": JSON, "instruments": JSON}))
def test_whatever_json_says_it_is_a_checkpoint_or_refused(document: dict[str, Any]) -> None:
    try:
        checkpoint = Checkpoint.unpack(json.dumps(document).encode())
    except IncompleteFileError:
        return
    assert isinstance(checkpoint.position, int)
