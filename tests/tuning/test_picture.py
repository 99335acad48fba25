"""The picture: drawn for whatever was measured."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from made_up_figures import made_up

from shmstore.errors import StorageError
from shmstore.tuning.codecs import CodecFigures
from shmstore.tuning.goal import Goal
from shmstore.tuning.picture import draw
from shmstore.tuning.point import Point
from shmstore.tuning.sample import Sample
from shmstore.tuning.tuner import Tuning

SAMPLE = Sample(Path("sample"), "run.arrows", "Arrow IPC stream", "run", 1000, 10**6, 3, whole=True)
ZSTD, NONE = Point("zstd", 1, chunk_bytes=1 << 20), Point("none")


def tuning(goal: Goal, **figures: float) -> Tuning:
    recordings = [
        made_up(500, 0.5, ZSTD, **figures),
        made_up(900, 1.0, NONE, **figures),
        made_up(200, 0.6, Point()),
    ]
    alone = [CodecFigures(NONE, float("inf"), 1.0), CodecFigures(ZSTD, 1500, 0.5)]
    return Tuning(SAMPLE, goal, 2, alone, recordings, recordings[2], recordings[0], {}, 2000.0, [], 10.0)


@pytest.fixture(scope="module", autouse=True)
def _fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have matplotlib open its fonts, which it keeps, before any test begins."""
    draw(tuning(Goal("rate")), tmp_path_factory.mktemp("fonts") / "first.png")


@pytest.mark.parametrize("goal", [Goal("rate"), Goal("size", 100), Goal("latency", 100)])
def test_is_a_png_of_some_size(output_dir: Path, goal: Goal) -> None:
    latency = {"p99_ms": 12.0} if goal.kind == "latency" else {}
    image = draw(tuning(goal, **latency), output_dir / "tuned.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", image[16:24])
    assert width > 1000
    assert height > 400


def test_no_codec_was_measured(output_dir: Path) -> None:
    bare = tuning(Goal("rate"))
    bare.alone.clear()
    assert draw(bare, output_dir / "tuned.png").stat().st_size > 10_000


def test_a_folder_that_is_missing(output_dir: Path) -> None:
    with pytest.raises(StorageError, match="cannot write the picture"):
        draw(tuning(Goal("rate")), output_dir / "missing" / "tuned.png")
