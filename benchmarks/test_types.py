"""Columns of other types than numbers, each against the plainer column that holds the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.conftest import Scale
from benchmarks.report import Report
from shmstore.bench.recorders import Recording
from shmstore.bench.streams import Hits, Labels, Words

pytestmark = pytest.mark.timeout(1800)  # seconds; slow machines are welcome


def test_strings(report: Report, scale: Scale, output: Path) -> None:
    """5 million short strings, packed (gzip-6, as by default), against HDF5's own variable-length ones."""
    stream, batches = Words(), scale.pick(500, 4)
    packed = Recording(stream, batches, output, stream.rows, strings="packed")
    vlen = Recording(stream, batches, output, stream.rows, "vlen", strings="vlen")
    # HDF5 spends 16 bytes in the dataset and at least as many in its heap on each string beside its own.
    vlen.touches = packed.touches = 4 * vlen.touches
    mine, theirs = report.compare("short strings, packed", "rows/s", packed, vlen, at_least=8)
    sizes = [series.details["file_bytes"] / (batches * stream.rows) for series in (mine, theirs)]
    report.judge("short strings, packed: size", "B/row", sizes[:1], "vlen", sizes[1:], at_most=0.25)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_lists(report: Report, scale: Scale, output: Path, compression: str) -> None:
    """About 500 MB of float32 in lists of 0–20, against a flat column of the same values; MB of values."""
    lists, flat, batches = Hits(), Hits(flat=True), scale.pick(500, 4)
    megabytes = lists.events * 10 * 4 / 1e6
    report.compare(
        f"list<float32>, {compression}",
        "MB/s",
        Recording(lists, batches, output, megabytes, compression=compression),
        Recording(flat, batches, output, megabytes, "flat", compression=compression),
        at_least=0.7,
    )


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_dictionary(report: Report, scale: Scale, output: Path, compression: str) -> None:
    """50 million rows that name one of 1,000 labels, against an int32 column of the codes."""
    names, codes, batches = Labels(), Labels(codes=True), scale.pick(500, 4)
    report.compare(
        f"dictionary<int32, utf8>, {compression}",
        "rows/s",
        Recording(names, batches, output, names.rows, compression=compression),
        Recording(codes, batches, output, codes.rows, "codes", compression=compression),
        at_least=0.7,
    )
