"""The journal: what was written comes out again, up to where it is torn, damaged or refused by the disk."""

from __future__ import annotations

import contextlib
import errno
import json
import stat
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_disk import BrokenFile, BrokenJournal
from children import Child
from hypothesis import given, settings
from hypothesis import strategies as st

from shmstore import journal as journal_module
from shmstore.errors import IncompleteFileError, StorageError
from shmstore.journal import (
    PAYLOAD_LIMIT,
    Chunks,
    Header,
    Inline,
    Items,
    Journal,
    JournalReader,
    Operation,
    Record,
)

IDENTITY = {"recording": "daq.h5", "session": 7}
BIG = 2**64 - 1
DAMAGE = settings(max_examples=60, deadline=None)
MUCH_DAMAGE = settings(max_examples=30_000, deadline=None)


def plain(reader: JournalReader, record: Record) -> Any:
    """What a record says, payload included, without where it is."""
    if isinstance(record, Header):
        return record.identity
    if isinstance(record, Operation):
        return record.name, record.arguments, reader.load(record)
    if isinstance(record, Chunks):
        return record.entries.tolist()
    if isinstance(record, Inline):
        return record[2:6], reader.load(record)
    return record[2:5], reader.values(record)


def read(path: Path, payloads: bool = True) -> tuple[list[Any], int, bool]:
    """All that a journal says, where it ends, and whether something is behind."""
    with JournalReader(path, 0 if payloads else None) as reader:
        return [plain(reader, record) for record in reader], reader.end, reader.torn


def places(path: Path) -> list[tuple[int, int]]:
    """Where the records are."""
    with JournalReader(path) as reader:
        return [record[:2] for record in reader]


def fill(journal: Journal) -> list[Any]:
    """Collect some of everything; return what must come out."""
    journal.operation("dataset", {"path": "cam/\ud800", "shape": [1, None], "fill": 1.5}, b"\0schema")
    journal.chunk(1, 2, 0, 100, 4096, 400, 0xFFFFFFFF)
    journal.chunk(2**32 - 1, BIG, 2**32 - 1, BIG, BIG, BIG, 7)
    journal.inline(3, 4, 1, 50, zlib.crc32(b"stored"), b"stored")
    journal.items(5, 6, [b"a", b"", b"bcd"])
    journal.operation("close", {})
    journal.chunk(1, 3, 0, 1, 2, 3, 4)
    return [
        ("dataset", {"path": "cam/\ud800", "shape": [1, None], "fill": 1.5}, b"\0schema"),
        [(1, 0, 2, 100, 4096, 400, 0xFFFFFFFF, 0), (2**32 - 1, 2**32 - 1, BIG, BIG, BIG, BIG, 7, 0)],
        ((3, 4, 1, 50), b"stored"),
        ((5, 6, 3), [b"a", b"", b"bcd"]),
        ("close", {}, b""),
        [(1, 0, 3, 1, 2, 3, 4, 0)],
    ]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal.create(tmp_path / "journal", IDENTITY)
    yield made
    made.close()


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[BrokenJournal]:
    made = BrokenJournal.create(tmp_path / "broken", IDENTITY)
    yield made
    made.close()
    BrokenFile.answers.clear()
    BrokenFile.refuse_truncate = 0


# -- what is written is read -----------------------------------------------------------------------------


def test_what_was_written_comes_out_in_order(journal: Journal) -> None:
    assert read(journal.path) == ([IDENTITY], journal.position, False)
    said = fill(journal)
    assert journal.position == journal.path.stat().st_size  # collected only
    end = journal.write()
    assert end == journal.position == journal.path.stat().st_size
    assert read(journal.path) == ([IDENTITY, *said], end, False)
    said += fill(journal)
    journal.write()
    assert journal.write() == journal.position  # nothing more
    journal.sync()
    assert read(journal.path) == ([IDENTITY, *said], journal.position, False)


def test_a_new_journal_is_its_owners_alone_and_never_one_that_exists(journal: Journal) -> None:
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    with pytest.raises(StorageError, match="never overwritten") as caught:
        Journal.create(journal.path, {})
    assert caught.value.errno == errno.EEXIST
    assert read(journal.path)[0] == [IDENTITY]


def test_an_operation_tells_where_it_will_be(journal: Journal) -> None:
    journal.chunk(1, 2, 0, 100, 4096, 400, 5)
    starts = [journal.operation("a", {}), journal.operation("b", {}, b"blob")]
    journal.write()
    with JournalReader(journal.path) as reader:
        assert [record.start for record in reader if isinstance(record, Operation)] == starts


def test_the_bytes_are_those_of_the_document(journal: Journal) -> None:
    """Built by hand, with another library's checksum."""
    fill(journal)
    journal.write()
    data = journal.path.read_bytes()
    number = int.from_bytes(data[16:20], "little")

    def crc(*parts: bytes) -> bytes:
        return struct.pack("<I", zlib.crc32(b"".join(parts)))

    signature = b"SHMJRNAL" + struct.pack("<HH", 1, 0)
    identity = json.dumps(IDENTITY, separators=(",", ":")).encode()
    numbers = struct.pack("<III", number, len(identity), 0)
    expected = signature + crc(signature) + numbers + crc(numbers, identity) + identity

    def record(kind: int, body: bytes, payload: bytes = b"") -> bytes:
        head = struct.pack("<4sIIIQQ", b"RECD", number, kind, len(body), len(expected), len(payload))
        head += crc(payload) if payload else bytes(4)
        return head + crc(head, body) + body + payload

    expected += record(
        1,
        rb'{"operation":"dataset","arguments":{"path":"cam/\ud800","shape":[1,null],"fill":1.5}}',
        b"\0schema",
    )
    expected += record(
        2,
        struct.pack("<IIQQQQII", 1, 0, 2, 100, 4096, 400, 0xFFFFFFFF, 0)
        + struct.pack("<IIQQQQII", 2**32 - 1, 2**32 - 1, BIG, BIG, BIG, BIG, 7, 0),
    )
    expected += record(3, struct.pack("<IIQQ", 3, 1, 4, 50), b"stored")
    expected += record(4, struct.pack("<IIQQ", 5, 0, 6, 3), struct.pack("<QQQ", 1, 0, 3) + b"abcd")
    expected += record(1, b'{"operation":"close","arguments":{}}')
    expected += record(2, struct.pack("<IIQQQQII", 1, 0, 3, 1, 2, 3, 4, 0))
    assert data == expected


def test_payloads_are_read_when_they_are_asked_for_and_checked_then(journal: Journal) -> None:
    payload = np.arange(3 * 2**20, dtype=np.uint8).reshape(3, -1)
    journal.inline(1, 0, 0, 9, zlib.crc32(payload), payload)
    journal.inline(1, 1, 0, 9, 0, payload[:0])
    journal.write()
    with JournalReader(journal.path) as reader:
        _, large, empty = reader
        assert isinstance(large, Inline)
        assert isinstance(empty, Inline)
        assert reader.load(large) == payload.tobytes()
        assert reader.load(empty) == b""
        with journal.path.open("r+b") as file:
            file.seek(large.offset + 2**20)
            file.write(b"\xff\xfe")
        assert len(list(reader)) == 3  # it was not read
        with pytest.raises(IncompleteFileError, match="damaged"):
            reader.load(large)
        with pytest.raises(IncompleteFileError, match="damaged"):
            reader.load(large._replace(offset=2**40))
    with JournalReader(journal.path, payloads_from=0) as reader:
        assert len(list(reader)) == 1
        assert (reader.end, reader.torn) == (large.start, True)


def test_a_chunk_that_has_no_such_numbers_is_refused_at_once(journal: Journal) -> None:
    for wrong in [(-1, 0, 0, 0, 0, 0, 0), (0, 0, 2**32, 0, 0, 0, 0), (0, 0, 0, 0, 2**64, 0, 0)]:
        with pytest.raises(struct.error):
            journal.chunk(*wrong)
    with pytest.raises(struct.error):
        journal.inline(0, -1, 0, 0, 0, b"")
    with pytest.raises(TypeError):
        journal.operation("what JSON cannot say", {"a": object()})
    with pytest.raises(TypeError):
        journal.inline(0, 0, 0, 0, 0, np.zeros((4, 4), np.uint8)[:, ::2])
    assert journal.write() == journal.path.stat().st_size
    assert read(journal.path)[0] == [IDENTITY]


def test_what_is_too_long_is_refused_and_nothing_of_it_kept(journal: Journal) -> None:
    path = journal.path.with_name("sparse")
    with path.open("w+b") as file:  # a mapping of a hole takes no memory
        file.truncate(PAYLOAD_LIMIT + 1)
        hole = np.memmap(file, np.uint8, "r")
        with pytest.raises(ValueError, match=f"at most 16777216 and {PAYLOAD_LIMIT}"):
            journal.inline(1, 0, 0, 0, 0, hole)
        del hole
    with pytest.raises(ValueError, match="16777274 bytes"):
        journal.operation("a", {"b": "c" * (2**24 + 20)})
    with pytest.raises(ValueError, match="16777244 bytes is too long"):
        Journal.create(journal.path.with_name("other"), {"b": "c" * (2**24 + 20)})
    assert not journal.path.with_name("other").exists()
    assert journal.write() == journal.path.stat().st_size
    assert read(journal.path)[0] == [IDENTITY]


def test_items_and_chunks_beyond_a_records_limit_go_into_several(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "PAYLOAD_LIMIT", 30)
    monkeypatch.setattr(journal_module, "BODY_LIMIT", 100)
    values = [b"0123456789012345678901", b"ab", b"", b"c", b"0123456789012345678901", b""]
    journal.items(1, 1000, values)
    for index in range(5):
        journal.chunk(1, index, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="an item of 23 bytes is too long"):
        journal.items(1, 0, [b"a", b"0" * 23])
    journal.items(1, 0, [])
    journal.write()
    said = read(journal.path)[0][1:]
    assert said[:3] == [((1, 1000, 1), values[:1]), ((1, 1001, 3), values[1:4]), ((1, 1004, 1), values[4:5])]
    assert said[3] == ((1, 1005, 1), values[5:])
    assert [[entry[2] for entry in entries] for entries in said[4:]] == [[0, 1], [2, 3], [4]]


def test_a_hundred_thousand_records_are_read_in_blocks(journal: Journal) -> None:
    for number in range(100_000):
        journal.inline(number, number, 0, 1, 0, b"")
    assert len(places(journal.path)) == 1
    journal.write()
    with JournalReader(journal.path) as reader:
        calls = []
        real = reader._file.read
        reader._file.read = lambda start, count: calls.append(start) or real(start, count)  # type: ignore[method-assign,func-returns-value]
        assert [record[2] for record in reader][1:] == list(range(100_000))
    assert len(calls) <= journal.position / 2**20 + 2


# -- torn, damaged, foreign ------------------------------------------------------------------------------


def test_cut_anywhere_it_gives_what_is_whole(journal: Journal) -> None:
    said = [IDENTITY, *fill(journal)]
    journal.write()
    ends = [end for _, end in places(journal.path)]
    data = journal.path.read_bytes()
    path = journal.path.with_name("cut")
    for size in range(len(data)):
        path.write_bytes(data[:size])
        whole = sum(end <= size for end in ends)
        if not whole:
            with pytest.raises(IncompleteFileError, match="journal"):
                JournalReader(path)
            continue
        for payloads in (False, True):
            assert read(path, payloads) == (said[:whole], ends[whole - 1], size > ends[whole - 1])


def test_a_bit_that_flips_ends_the_journal_before_its_record(journal: Journal) -> None:
    said = [IDENTITY, *fill(journal)]
    journal.write()
    records = places(journal.path)
    data = bytearray(journal.path.read_bytes())
    path = journal.path.with_name("flipped")
    for at in range(len(data)):
        whole = sum(end <= at for _, end in records)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        data[at] ^= 1 << at % 8
        if not whole:
            with pytest.raises(IncompleteFileError):
                JournalReader(path)
        else:
            assert read(path) == (said[:whole], records[whole][0], True)


def test_a_record_in_another_place_or_of_another_journal_is_none(journal: Journal, tmp_path: Path) -> None:
    other = Journal.create(tmp_path / "other", IDENTITY)
    for each in (journal, other):
        each.operation("a", {"n": 1})
        each.operation("a", {"n": 2})
        each.write()
    other.close()
    (_, start), (_, middle), (_, end) = places(journal.path)
    data, foreign = journal.path.read_bytes(), other.path.read_bytes()
    mixed = tmp_path / "mixed"
    mixed.write_bytes(data[:middle] + foreign[middle:end])
    assert read(mixed)[1:] == (middle, True)
    mixed.write_bytes(data[:start] + data[middle:end] + data[start:middle])
    assert read(mixed)[1:] == (start, True)


def test_another_major_version_is_refused_by_name_and_another_minor_one_read(journal: Journal) -> None:
    def signed(major: int, minor: int) -> bytes:
        head = b"SHMJRNAL" + struct.pack("<HH", major, minor)
        return head + struct.pack("<I", zlib.crc32(head))

    fill(journal)
    journal.write()
    data = journal.path.read_bytes()
    journal.path.write_bytes(signed(1, 9) + data[16:])
    with JournalReader(journal.path) as reader:
        assert reader.header.version == (1, 9)
        assert len(list(reader)) == 7
    journal.path.write_bytes(signed(2, 0) + b"something else")
    for refused in (lambda: JournalReader(journal.path), lambda: Journal.reopen(journal.path, 40)):
        with pytest.raises(IncompleteFileError, match=r"version 2\.0 .*use the shmstore that made it"):
            refused()


def test_a_kind_of_record_that_is_not_known_is_passed_over(journal: Journal) -> None:
    journal._collect(77, b"of a later minor version", [memoryview(b"payload")], zlib.crc32(b"payload"))
    journal.operation("a", {})
    journal.write()
    assert read(journal.path) == ([IDENTITY, ("a", {}, b"")], journal.position, False)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (1, b"{"),
        (1, b"[]"),
        (1, b'{"operation":1,"arguments":{}}'),
        (1, b'{"operation":"a","arguments":[]}'),
        (1, b'{"operation":"a"}'),
        (1, b"[" * 100_000),
        (1, b"\xff"),
        (2, b"x" * 47),
        (3, b"short"),
        (4, b""),
        (4, struct.pack("<I4xQQ", 1, 0, BIG)),
    ],
)
def test_nonsense_with_a_right_checksum_ends_the_journal(journal: Journal, kind: int, body: bytes) -> None:
    end = journal.position
    journal._collect(kind, body, [], 0)
    journal.operation("behind", {})
    journal.write()
    assert read(journal.path) == ([IDENTITY], end, True)


def test_items_whose_lengths_do_not_add_up_are_said_to_be_damaged(journal: Journal) -> None:
    payload = struct.pack("<QQ", 1, BIG) + b"a"
    journal._collect(4, struct.pack("<I4xQQ", 1, 0, 2), [memoryview(payload)], zlib.crc32(payload))
    journal.write()
    with JournalReader(journal.path) as reader:
        record = list(reader)[-1]
        assert isinstance(record, Items)
        with pytest.raises(IncompleteFileError, match="damaged"):
            reader.values(record)


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("a journal, or so it says")
    for name in ("empty", "text", "."):
        with pytest.raises(IncompleteFileError):
            JournalReader(tmp_path / name)
    with pytest.raises(StorageError, match="cannot read the journal") as caught:
        JournalReader(tmp_path / "gone")
    assert caught.value.errno == errno.ENOENT


# -- going on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [b"", b"torn", bytes(100_000)])
def test_a_torn_journal_goes_on_where_it_holds_together(journal: Journal, behind: bytes) -> None:
    said = fill(journal)
    end = journal.write()
    with journal.path.open("ab") as file:
        file.write(behind)
    again = Journal.reopen(journal.path, end)
    assert again.position == end == journal.path.stat().st_size
    said += fill(again)
    again.write()
    again.sync()
    assert read(journal.path) == ([IDENTITY, *said], again.position, False)
    again.close()


def test_a_journal_goes_on_only_where_a_record_may_end(journal: Journal) -> None:
    end = journal.write()
    for wrong in (end - 1, end + 1, 0, -1):
        with pytest.raises(IncompleteFileError, match="no record that ends at"):
            Journal.reopen(journal.path, wrong)
    with pytest.raises(StorageError, match="cannot reopen the journal"):
        Journal.reopen(journal.path.with_name("gone"), end)
    assert journal.path.stat().st_size == end


# -- disks that refuse --------------------------------------------------------------------------------------


def test_short_writes_are_continued(broken: BrokenJournal) -> None:
    said = fill(broken)
    BrokenFile.answers[:] = [1, 39, 40, 3, 5, 7, 100]
    assert broken.write() == broken.path.stat().st_size
    assert not BrokenFile.answers
    assert read(broken.path)[0] == [IDENTITY, *said]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("taken", [[], [1], [45], [400], [1, 45, 30, 7]])
def test_a_refused_write_leaves_whole_records_and_can_be_repeated(
    broken: BrokenJournal, code: int, taken: list[int]
) -> None:
    before = fill(broken)
    end = broken.write()
    after = fill(broken)
    BrokenFile.answers[:] = [*taken, -code, -code]
    for _ in range(2):
        with pytest.raises(StorageError, match="cannot write the journal") as caught:
            broken.write()
        assert caught.value.errno == code
        assert broken.position == end == broken.path.stat().st_size
        after += fill(broken)
    assert read(broken.path) == ([IDENTITY, *before], end, False)
    assert broken.write() == broken.position
    assert read(broken.path) == ([IDENTITY, *before, *after], broken.position, False)


def test_a_refused_write_that_cannot_be_cut_away_is_cut_later(broken: BrokenJournal) -> None:
    said = fill(broken)
    end = broken.position
    BrokenFile.answers[:] = [70, -errno.EIO]
    BrokenFile.refuse_truncate = 3
    for _ in range(2):
        with pytest.raises(StorageError):
            broken.write()
        assert read(broken.path) == ([IDENTITY], end, True)
    assert broken.position == end
    broken.write()
    assert read(broken.path) == ([IDENTITY, *said], broken.position, False)


def test_a_journal_that_cannot_be_begun_leaves_nothing(tmp_path: Path) -> None:
    BrokenFile.answers[:] = [10, -errno.ENOSPC]
    with pytest.raises(StorageError, match="cannot make the journal: No space left"):
        BrokenJournal.create(tmp_path / "j", IDENTITY)
    assert not list(tmp_path.iterdir())
    with pytest.raises(StorageError, match="create the folder first"):
        Journal.create(tmp_path / "none" / "j", IDENTITY)


def test_a_journal_that_was_removed_cannot_be_synced(journal: Journal) -> None:
    journal.sync()
    journal.path.unlink()
    fill(journal)
    journal.write()
    with pytest.raises(StorageError, match="cannot sync the journal") as caught:
        journal.sync()
    assert caught.value.errno == errno.ENOENT


def test_a_real_file_that_may_not_grow_keeps_what_was_collected(tmp_path: Path) -> None:
    """The system's own short write, and its own refusal after it."""
    path = tmp_path / "journal"
    with Child(
        "import resource",
        "from shmstore.errors import StorageError",
        "from shmstore.journal import Journal",
        f"journal = Journal.create(Path({str(path)!r}), {{}})",
        "journal.operation('first', {})",
        "end = journal.write()",
        "for number in range(1000):",
        "    journal.operation('later', {'number': number})",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (end + 12345, resource.RLIM_INFINITY))",
        "for _ in range(2):",
        "    try:",
        "        journal.write()",
        "    except StorageError as error:",
        "        say(error.errno, journal.path.stat().st_size - end, journal.position - end)",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))",
        "say(journal.write())",
    ) as child:
        assert [child.hear() for _ in range(2)] == [f"{errno.EFBIG} 0 0"] * 2
        end = int(child.hear())
    said, found_end, torn = read(path)
    assert [each[1].get("number") for each in said[2:]] == list(range(1000))
    assert (found_end, torn) == (end, False)


# -- any bytes -------------------------------------------------------------------------------------------


def survive(data: bytes) -> None:
    """Read bytes as a journal, all of it: a result or a clear error."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        for payloads in (False, True):
            with (
                contextlib.suppress(IncompleteFileError),
                JournalReader(Path(file.name), 0 if payloads else None) as reader,
            ):
                for record in reader:
                    with contextlib.suppress(IncompleteFileError):
                        plain(reader, record)
                assert 0 < reader.end <= len(data)
                assert reader.torn == (reader.end < len(data))


def written(act: Callable[[Journal], Any]) -> tuple[bytes, list[Any]]:
    """The bytes of a journal that was filled so, and what it says."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal.create(Path(folder) / "j", IDENTITY)
        act(journal)
        journal.write()
        journal.close()
        return journal.path.read_bytes(), read(journal.path)[0]


WHOLE, SAID = written(fill)


def any_bytes(data: bytes) -> None:
    """Neither alone nor behind a whole journal do they harm."""
    survive(data)
    survive(WHOLE[:16] + data)
    survive(WHOLE + data)


def changed(changes: Sequence[tuple[int, bytes]], size: int) -> None:
    """Whatever is overwritten and cut, what comes out is what went in, up to some record."""
    data = bytearray(WHOLE)
    for at, new in changes:
        data[at : at + len(new)] = new
    survive(bytes(data[:size]))
    with tempfile.NamedTemporaryFile() as file:
        file.write(data[:size])
        file.flush()
        with contextlib.suppress(IncompleteFileError):
            said = read(Path(file.name))[0]
            assert said == SAID[: len(said)]


def sealed(records: Sequence[tuple[int, bytes, bytes]]) -> None:
    """Bodies that mean nothing, under checksums that are right."""

    def act(journal: Journal) -> None:
        for kind, body, payload in records:
            journal._collect(kind, body, [memoryview(payload)], zlib.crc32(payload))

    with tempfile.TemporaryDirectory() as folder:
        journal = Journal.create(Path(folder) / "j", IDENTITY)
        act(journal)
        journal.write()
        journal.close()
        survive(journal.path.read_bytes())


BYTES = st.binary(max_size=400)
CHANGES = st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=12)), max_size=4)
SIZES = st.integers(0, len(WHOLE)) | st.just(len(WHOLE))
JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
)
BODIES = (
    st.binary(max_size=60)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries({"operation": JSON, "arguments": JSON}).map(
        lambda value: json.dumps(value).encode()
    )
)
RECORDS = st.lists(st.tuples(st.integers(0, 5), BODIES, st.binary(max_size=60)), max_size=5)


@DAMAGE
@given(BYTES)
def test_any_bytes_are_survived(data: bytes) -> None:
    any_bytes(data)


@DAMAGE
@given(CHANGES, SIZES)
def test_any_change_leaves_a_prefix_or_a_clear_error(changes: list[tuple[int, bytes]], size: int) -> None:
    changed(changes, size)


@DAMAGE
@given(RECORDS)
def test_any_body_under_a_right_checksum_is_survived(records: list[tuple[int, bytes, bytes]]) -> None:
    sealed(records)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@MUCH_DAMAGE
@given(BYTES, CHANGES, SIZES, RECORDS)
def test_much_damage_of_all_kinds_is_survived(
    data: bytes, changes: list[tuple[int, bytes]], size: int, records: list[tuple[int, bytes, bytes]]
) -> None:
    any_bytes(data)
    changed(changes, size)
    sealed(records)
