from __future__ import annotations

from pathlib import Path

import pytest

from shmstore.bench.handover import HandedOver
from shmstore.bench.streams import Telemetry, total_bytes
from shmstore.errors import BrokenError


def test_another_process_writes_the_columns_bytes(tmp_path: Path) -> None:
    stream = Telemetry(rows=10, columns=2, distinct=3)
    run = HandedOver(stream, 50, 1000, tmp_path, 1.0)  # round and round: a ring of six batches
    run.prepare()
    run.run()
    (path,) = tmp_path.iterdir()
    made = stream.batches()
    wanted = b"".join(column.to_numpy().tobytes() for n in range(50) for column in made[n % 3].columns)
    assert path.read_bytes() == wanted
    found = run.finish()
    assert found["file_bytes"] == total_bytes(stream, 50)
    assert set(found["cpu_s"]) == {"producer", "writer"}
    assert not list(tmp_path.iterdir())


def test_a_process_that_cannot_write_is_no_hang(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # More than the ring holds: there will be no space to wait for.
    run = HandedOver(Telemetry(rows=10, columns=2), 50, 1000, tmp_path / "none", 1.0)
    run.prepare()
    with pytest.raises(BrokenError, match="ended too early"):
        run.run()
    run.abandon()
    assert "FileNotFoundError" in capfd.readouterr().err
