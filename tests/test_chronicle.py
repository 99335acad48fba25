"""The chronicle: what a journal tells, put in order; what was begun and not ended never was."""

from __future__ import annotations

import dataclasses
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore.accounting import Account
from shmstore.chronicle import Chronicle, ToldTails
from shmstore.codec import Codec
from shmstore.errors import IncompleteFileError, StorageError
from shmstore.journal import INLINE, Inline, Journal, JournalReader
from shmstore.layout import Link, Stream, stream_to_dict

NUMBERS = Stream("values", "n", "<i8", (2,), -1, attributes={"units": "m", "CATEGORIES": Link("c")})
TEXT = Stream("values", "text", "utf8")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal.create(tmp_path / "journal", {"config": "{}"})
    yield made
    made.close()


def tell(journal: Journal, covered: int | None = None) -> Chronicle:
    journal.write()
    return Chronicle(journal.path, covered)


def instrument(journal: Journal, link: str, **attributes: str) -> None:
    journal.operation(
        "create_instrument", {"link": link, "attributes": {"instrument_id": link.upper(), **attributes}}
    )


def dataset(journal: Journal, path: str, stream: Stream = NUMBERS, items: int = 0) -> None:
    journal.operation(
        "create_dataset",
        {
            "path": path,
            "stream": stream_to_dict(stream),
            "chunk_items": 4,
            "codec": Codec.parse("zstd", 3).filter_fields(),
            "items": items,
        },
    )


# -- what is there ---------------------------------------------------------------------------------------


def test_what_a_writer_has_is_told(journal: Journal) -> None:
    journal.operation("begin", {})
    instrument(journal, "cam")
    instrument(journal, "cam~2", continues="CAM")
    journal.operation("create_bytes", {"path": "cam/_arrow/schema"}, b"first")
    journal.operation("create_bytes", {"path": "cam/_arrow/schema"}, b"second")
    journal.operation("create_bytes", {"path": "cam/_arrow/other"}, b"other")
    journal.operation("create_document", {"path": "cam/_arrow/history", "text": "[1]"})
    dataset(journal, "cam/n", items=3)
    dataset(journal, "cam~2/text", TEXT)
    journal.operation("end", {})
    journal.operation("options", {"instrument": "CAM", "options": {"chunk_rows": 10}})
    journal.operation("tails", {"name": "tails-1", "datasets": [0], "sizes": [64], "buffers": 3})
    for ring in range(3):
        journal.operation("attach", {"ring": ring, "instrument": "CAM"})
    journal.operation("declare", {"ring": 0, "number": 0, "link": "cam"}, b"image")
    journal.operation("declare", {"ring": 0, "number": 1, "link": "cam~2"}, b"another")
    journal.operation("withdraw", {"ring": 1})
    account = Account("CAM", 2, taken=5, committed=4, lost=1)
    journal.operation("detach", {"ring": 2, "account": dataclasses.asdict(account)})
    journal.operation("problem", {"text": "something was lost"})
    journal.operation("of a newer version", {"what": "ever"})
    found = tell(journal)
    assert found.identity == {"config": "{}"}
    assert (found.torn, found.end) == (False, journal.position)
    cam, second = found.instruments["cam"], found.instruments["cam~2"]
    assert (cam.instrument_id, cam.link, cam.continues) == ("CAM", "cam", "")
    assert (cam.options, cam.schema, cam.history) == ({"chunk_rows": 10}, b"second", "[1]")
    assert (second.continues, second.schema, second.options) == ("CAM", b"", {})
    assert [(told.path, told.stream, told.chunk_items, told.items) for told in found.datasets] == [
        ("cam/n", NUMBERS, 4, 3),
        ("cam~2/text", TEXT, 4, 0),
    ]
    assert found.datasets[0].codec == Codec.parse("zstd", 3)
    assert found.tails == [ToldTails("tails-1", [0], [64], 3)]
    assert found.rings == {0: "CAM"}
    assert found.declared == {(0, 0): ("cam", b"image"), (0, 1): ("cam~2", b"another")}
    assert (found.accounts, found.problems) == ([account], ["something was lost"])
    assert [operation.name for operation in found.operations][-3:] == [
        "detach",
        "problem",
        "of a newer version",
    ]


def test_that_the_file_was_finished_is_told_with_the_report(journal: Journal) -> None:
    instrument(journal, "cam")
    journal.operation("begin", {})  # and no end: the last one
    assert not tell(journal).finished
    journal.operation("finished", {"report": {"state": "complete"}})
    found = tell(journal)
    assert (found.finished, found.report, found.torn) == (True, {"state": "complete"}, True)


def test_an_empty_journal_tells_of_nothing(journal: Journal) -> None:
    found = tell(journal)
    assert (found.operations, found.datasets, found.chunks(), found.torn) == ([], [], {}, False)


def test_datasets_keep_their_numbers_when_others_go(journal: Journal) -> None:
    journal.operation("begin", {})
    for path in ("cam/a", "cam/b", "cam/b/OFFSETS", "cam/bc", "cam/c"):
        dataset(journal, path)
    dataset(journal, "cam/b", TEXT)  # made again, with all below it
    journal.operation("replace", {"number": 4, "path": "cam/a"})
    journal.operation("end", {})
    paths = [told.path for told in tell(journal).datasets]
    assert paths == [None, None, None, "cam/bc", "cam/a", "cam/b"]


# -- chunks and items ------------------------------------------------------------------------------------


def test_a_chunk_is_where_it_was_written_last(journal: Journal) -> None:
    for path in ("a", "b", "c"):
        dataset(journal, path)
    journal.chunk(1, 5, 0, 24, 1000, 10, 1)
    journal.chunk(0, 1, 0, 8, 2000, 20, 2)
    journal.chunk(0, 0, 3, 4, 3000, 30, 3)
    journal.inline(0, 1, 1, 8, zlib.crc32(b"here"), b"here")
    journal.inline(1, 5, 1, 24, zlib.crc32(b"not for long"), b"not for long")
    journal.chunk(1, 5, 2, 24, 4000, 40, 4)
    found = tell(journal)
    with JournalReader(journal.path) as reader:
        place = next(record.offset for record in reader if isinstance(record, Inline))
    chunks = found.chunks()
    assert sorted(chunks) == [0, 1]
    names = ["index", "filter_mask", "items", "offset", "length", "crc", "reserved"]
    assert chunks[0][names].tolist() == [
        (0, 3, 4, 3000, 30, 3, 0),
        (1, 1, 8, place, 4, zlib.crc32(b"here"), INLINE),
    ]
    assert chunks[1][names].tolist() == [(5, 2, 24, 4000, 40, 4, 0)]
    assert found.load_chunk(chunks[0][1]) == b"here"


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans(), st.booleans()), min_size=1, max_size=40
    )
)
def test_however_chunks_are_written_the_last_of_each_counts(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, int, bool, bool]]
) -> None:
    made = Journal.create(tmp_path_factory.mktemp("journal") / "journal", {})
    for path in "abcd":
        dataset(made, path)
    expected: dict[int, dict[int, int]] = {}
    for number, (which, index, inline, record_ends) in enumerate(writes):
        expected.setdefault(which, {})[index] = number
        if inline:
            made.inline(which, index, 0, 0, number, bytes(number))
        else:
            made.chunk(which, index, 0, 0, number, number, number)
        if record_ends:
            made.write()
    found = {
        which: dict(zip(entries["index"].tolist(), entries["length"].tolist(), strict=True))
        for which, entries in tell(made).chunks().items()
    }
    made.close()
    assert found == expected
    assert all(list(indexes) == sorted(indexes) for indexes in found.values())


def test_items_come_as_they_were_told(journal: Journal) -> None:
    for path in ("a", "b"):
        dataset(journal, path, TEXT)
    journal.items(1, 0, [b"x", b""])
    journal.items(0, 0, [b"other"])
    journal.items(1, 1, [b"again", b"z"])
    found = tell(journal)
    records = found.items()[1]
    assert [(record.first, record.items) for record in records] == [(0, 2), (1, 2)]
    assert [found.values(record) for record in records] == [[b"x", b""], [b"again", b"z"]]


def test_of_a_long_journal_only_the_last_chunks_stay_in_memory(journal: Journal) -> None:
    """Whoever takes a dead writer's place reads all of it, and keeps it for as long as it lives."""
    for path in ("a", "b", "c", "gone"):
        dataset(journal, path)
    for number in range(10_000):  # a record each, as of so many commits
        for which in (0, 1, 3):
            journal.chunk(which, number, 0, 4 * number + 4, 1000 * number, 10, number)
        journal.write()
    journal.inline(1, 9999, 0, 40_000, 1, b"here")
    position = journal.write()
    tracemalloc.start()
    found = Chronicle(journal.path, position, items={0: 39_998, 1: 40_000, 2: 0})
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2**17  # the 3 MB that they were at some time
    first, second, empty, gone = found.datasets
    assert first.last_chunks == {number: (1000 * number, 10, number) for number in (9997, 9998, 9999)}
    assert second.last_chunks == {9998: (9_998_000, 10, 9998), 9999: (-1, 4, 1)}
    assert [told.bytes_written for told in found.datasets] == [100_000, 100_004, 0, 100_000]
    assert empty.last_chunks == gone.last_chunks == {}
    assert [len(entries) for entries in found.chunks().values()] == [10_000] * 3


def test_of_a_long_journal_only_the_last_items_stay_in_memory(journal: Journal) -> None:
    dataset(journal, "a", TEXT)
    for first in range(0, 20_000, 2):
        journal.items(0, first, [b"x", b"y"])
    position = journal.write()
    found = Chronicle(journal.path, position, items={0: 19_999})
    last = found.datasets[0].last_items
    assert (last[0].first, last[-1].first, len(last)) == (15_902, 19_998, 2049)
    assert Chronicle(journal.path, position).datasets[0].last_items == []
    assert len(found.items()[0]) == 10_000


# -- what never was --------------------------------------------------------------------------------------


def test_what_was_begun_and_not_ended_never_was(journal: Journal) -> None:
    """HDF5's structures may be torn there: the file must be made anew, without it."""
    journal.operation("begin", {})
    instrument(journal, "cam")
    dataset(journal, "cam/n")
    journal.operation("end", {})
    journal.chunk(0, 0, 0, 4, 1000, 10, 1)
    journal.operation("attach", {"ring": 0, "instrument": "CAM"})
    end = journal.write()
    journal.operation("begin", {})
    instrument(journal, "second")
    dataset(journal, "cam/n")  # in the place of the other
    journal.operation("tails", {"name": "tails-1", "datasets": [1], "sizes": [64], "buffers": 3})
    found = tell(journal)
    assert found.torn
    assert found.end == end < journal.position
    assert list(found.instruments) == ["cam"]
    assert [told.path for told in found.datasets] == ["cam/n"]
    assert (found.tails, found.rings) == ([], {0: "CAM"})
    assert list(found.chunks()) == [0]
    assert [operation.name for operation in found.operations] == [
        "create_instrument",
        "create_dataset",
        "attach",
    ]
    # Who goes on from there tells of something else.
    journal.close()
    again = Journal.reopen(journal.path, found.end)
    again.operation("begin", {})
    instrument(again, "third")
    again.operation("end", {})
    later = tell(again)
    again.close()
    assert (later.torn, list(later.instruments)) == (False, ["cam", "third"])


def test_a_window_cut_at_any_record_never_was_and_at_its_end_it_was(journal: Journal, tmp_path: Path) -> None:
    instrument(journal, "before")
    journal.operation("begin", {})
    instrument(journal, "cam")
    dataset(journal, "cam/n")
    journal.operation("end", {})
    whole = tell(journal)
    with JournalReader(journal.path) as reader:
        ends = [record.end for record in reader]
    data = journal.path.read_bytes()
    for cut in range(ends[1], len(data)):
        path = tmp_path / "cut"
        path.write_bytes(data[:cut])
        found = Chronicle(path)
        assert list(found.instruments) == ["before"]
        assert found.datasets == []
        assert found.torn == (cut >= ends[2])  # the record of its beginning is whole
        assert found.end == ends[1]
    assert (whole.torn, whole.end, list(whole.instruments)) == (False, len(data), ["before", "cam"])


def evolution(journal: Journal) -> tuple[int, int, int]:
    """Tell of a change of schema; returns where it began, where it ended, and what a commit then covers."""
    instrument(journal, "cam")
    dataset(journal, "cam/n")
    before = journal.write()
    journal.operation("evolve", {"link": "cam"})
    journal.operation("begin", {})
    dataset(journal, "cam/x")
    journal.operation("replace", {"number": 1, "path": "cam/n"})
    journal.operation("end", {})
    after = journal.write()
    journal.chunk(1, 0, 0, 4, 1000, 10, 1)
    journal.operation("attach", {"ring": 0, "instrument": "CAM"})
    return before, after, journal.write()


def test_a_change_of_schema_that_no_commit_covers_never_was(journal: Journal) -> None:
    """It may have taken the place of what the rows before it need."""
    before, _, _ = evolution(journal)
    found = tell(journal, before)
    assert found.torn
    assert found.end == before
    assert [told.path for told in found.datasets] == ["cam/n"]
    assert (found.rings, found.chunks()) == ({}, {})


def test_a_change_of_schema_counts_from_the_commit_that_it_ends_with(journal: Journal) -> None:
    _, _, covered = evolution(journal)
    for position in (covered, None):
        found = tell(journal, position)
        assert (found.torn, found.end) == (False, journal.position)
        assert [told.path for told in found.datasets] == [None, "cam/n"]
        assert found.rings == {0: "CAM"}
        assert list(found.chunks()) == [1]


def test_what_else_came_after_a_commit_counts(journal: Journal) -> None:
    covered = journal.position
    instrument(journal, "cam")
    dataset(journal, "cam/n")
    journal.chunk(0, 0, 0, 4, 1000, 10, 1)
    found = tell(journal, covered)
    assert (found.torn, list(found.instruments), list(found.chunks())) == (False, ["cam"], [0])


# -- what is damaged -------------------------------------------------------------------------------------


def test_a_journal_that_ends_before_the_commit_is_damaged(journal: Journal) -> None:
    """To go on without what it does not tell would be to lose rows, and not to notice."""
    instrument(journal, "a")
    end = journal.write()
    instrument(journal, "b")
    covered = journal.write()
    whole = tell(journal, covered)
    assert (list(whole.instruments), whole.short) == (["a", "b"], False)
    with journal.path.open("r+b") as file:
        file.seek(end + 50)
        file.write(b"\xff")
    assert tell(journal, covered).short
    left = tell(journal, end)
    assert (list(left.instruments), left.short) == (["a"], False)


def test_a_journal_ends_where_it_is_damaged(journal: Journal) -> None:
    instrument(journal, "cam")
    end = journal.write()
    instrument(journal, "second")
    journal.write()
    with journal.path.open("r+b") as file:
        file.seek(end + 45)
        file.write(b"\0")
    found = Chronicle(journal.path)
    assert (list(found.instruments), found.end) == (["cam"], end)


@pytest.mark.parametrize("payloads", [False, True])
def test_damaged_data_end_it_only_if_they_are_looked_at(journal: Journal, payloads: bool) -> None:
    """After a power cut they are: a record may be on the disk and its data not."""
    instrument(journal, "cam")
    end = journal.write()
    journal.operation("note", {}, b"data at its end")
    journal.write()
    with journal.path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\0")
    found = Chronicle(journal.path, payloads=payloads)
    assert found.end == (end if payloads else journal.position)
    if not payloads:
        with pytest.raises(IncompleteFileError, match="is damaged"):
            found.load(found.operations[-1])


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("create_instrument", {"link": "cam"}),
        ("create_dataset", {"path": "a", "stream": {}, "chunk_items": 4, "codec": {}, "items": 0}),
        ("replace", {"number": 7, "path": "a"}),
        ("tails", {"name": "tails-1", "unknown": 1}),
        ("attach", {"ring": "x", "instrument": "cam"}),
        ("detach", {"ring": 1, "account": {"nonsense": 1}}),
        ("options", {"instrument": "CAM", "options": 3}),
    ],
)
def test_a_journal_that_makes_no_sense_is_refused(
    journal: Journal, operation: str, arguments: dict[str, Any]
) -> None:
    instrument(journal, "cam")
    journal.operation(operation, arguments)
    with pytest.raises(IncompleteFileError, match="tells what makes no sense") as caught:
        tell(journal)
    assert str(journal.path) in str(caught.value)


def test_chunks_of_a_dataset_that_was_never_made_are_refused(journal: Journal) -> None:
    journal.items(3, 0, [b"x"])
    with pytest.raises(IncompleteFileError, match="makes no sense"):
        tell(journal)


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="read the journal"):
        Chronicle(tmp_path / "none")
    (tmp_path / "text").write_text("no journal at all, but long enough to be one")
    with pytest.raises(IncompleteFileError, match="is no journal"):
        Chronicle(tmp_path / "text")
