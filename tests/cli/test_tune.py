"""`shmstore tune`: from a file to a configuration that loads, what it says, and what it refuses."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from commandline import document, only_error, read_until, running, shmstore

import shmstore as package

QUICK = ("--seconds", "1.5", "--set", "ring_bytes=8MiB")


@pytest.fixture
def data(output_dir: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = 400_000
    adc = (2000 * np.sin(np.arange(rows) / 160) + rng.normal(0, 20, rows)).astype(np.int16)
    times = pa.array(np.arange(rows) * 1000, pa.timestamp("ns"))
    pa.parquet.write_table(pa.table({"time": times, "adc": adc}), str(output_dir / "run.parquet"))
    return output_dir / "run.parquet"


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_writes_a_configuration_that_loads(output_dir: Path, data: Path) -> None:
    result = shmstore("tune", "--data", data, *QUICK, "--output", "disk", "--plot", "t.png", cwd=output_dir)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-2:] == ["t.png", "shmstore.toml"]
    for said in (
        "codecs alone, one thread",
        "recordings, close included",
        "codec: ",
        "ring_bytes: As it was given.",
    ):
        assert said in result.stdout
    text = (output_dir / "shmstore.toml").read_text()
    assert text.startswith("# Made by `shmstore tune` on ")
    config = package.StorageConfig.load(output_dir / "shmstore.toml", environ={})
    assert (config.output_dir, config.ring_bytes) == (Path("disk"), 8 << 20)
    assert (output_dir / "t.png").read_bytes().startswith(b"\x89PNG")
    assert left_in(output_dir) == {"run.parquet", "shmstore.toml", "t.png", "disk"}
    assert left_in(output_dir / "disk") == set()
    with package.HDF5Storage(config.replace(output_dir=output_dir)) as storage:
        storage.write_batch("probe", pa.record_batch({"x": [1.0]}))


def test_json(output_dir: Path, data: Path) -> None:
    arguments = (
        "--rate",
        "4MB/s",
        "--producers",
        "2",
        "--instrument",
        "adc",
        "--json",
        "--check",
        "--check-seconds",
        "1",
    )
    result = shmstore("tune", "--data", data, *QUICK, *arguments, cwd=output_dir)
    assert result.returncode == 0, result.stderr
    found = document(result)
    assert (found["exit_code"], found["problems"], found["config"]) == (0, [], "shmstore.toml")
    assert (found["goal"], found["rate_mb_s"], found["producers"], found["holds"]) == ("size", 4.0, 2, True)
    assert found["disk_mb_s"] > 0
    assert found["sample"]["rows"] == 400_000
    assert {"codec", "chunk_bytes", "mb_s", "size", "front"} <= set(found["codecs"][0])
    chosen = found["chosen"]
    assert {"codec", "ring_bytes", "codec_threads", "mb_s", "size", "high_water", "blocked_s"} <= set(chosen)
    assert chosen in [{key: each[key] for key in chosen} for each in found["recordings"]]
    assert any(each["front"] for each in found["recordings"])
    assert set(found["reasons"]) >= {"codec", "codec_threads", "chunk_bytes", "ring_bytes", "commit_bytes"}
    assert found["check"]["holds"]
    assert found["check"]["p99_ms"] > 0
    config = package.StorageConfig.load(output_dir / "shmstore.toml", environ={})
    assert config.instrument("adc").ring_bytes == chosen["ring_bytes"]
    assert str(config.instrument("adc").column("adc").codec) == chosen["codec"]


def test_a_rate_that_does_not_hold_is_exit_1_and_says_by_how_much(output_dir: Path, data: Path) -> None:
    arguments = ("--rate", "20GB/s", "--check", "--check-seconds", "1", "--quiet")
    result = shmstore("tune", "--data", data, *QUICK, *arguments, cwd=output_dir)
    assert result.returncode == 1
    said = only_error(result)
    assert "shmstore.toml does not hold 20,000 MB/s: it lacks " in said
    assert "lower the rate to " in said
    assert (
        "# Warning: nothing that was recorded holds 20,000 MB/s" in (output_dir / "shmstore.toml").read_text()
    )


def test_without_a_check_too(output_dir: Path, data: Path) -> None:
    result = shmstore("tune", "--data", data, *QUICK, "--rate", "20GB/s", "--quiet", cwd=output_dir)
    assert result.returncode == 1
    assert "nothing that was recorded holds 20,000 MB/s with 20 % to spare" in only_error(result)


def test_only_a_check(output_dir: Path, data: Path) -> None:
    (output_dir / "mine.toml").write_text('[storage]\ncompression = "lz4"\nring_bytes = "8MiB"\n')
    arguments = ("--check-only", "--check-seconds", "1", "--config", "mine.toml", "--rate")
    result = shmstore("tune", "--data", data, *arguments, "4", cwd=output_dir)
    assert result.returncode == 0, result.stderr
    assert "mine.toml holds 4 MB/s for " in result.stdout
    assert "99 % of batches were committed within " in result.stdout
    result = shmstore("tune", "--data", data, *arguments, "20GB/s", "--json", cwd=output_dir)
    assert result.returncode == 1
    check = document(result)["check"]
    assert (check["holds"], check["codec"], check["asked_mb_s"]) == (False, "lz4+shuffle", 20_000.0)
    assert 0 < check["lacking_mb_s"] <= 20_000


def test_an_existing_file_is_kept(output_dir: Path, data: Path) -> None:
    (output_dir / "shmstore.toml").write_text("# mine\n")
    result = shmstore("tune", "--data", data, *QUICK, cwd=output_dir)
    assert result.returncode == 2
    assert "shmstore.toml exists and is not overwritten: name another file with --config" in only_error(
        result
    )
    assert (output_dir / "shmstore.toml").read_text() == "# mine\n"
    result = shmstore("tune", "--data", data, *QUICK, "--force", cwd=output_dir)
    assert result.returncode == 0
    assert "[storage]" in (output_dir / "shmstore.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the following arguments are required: --data"),
        (("--data", "missing.parquet"), "there is no such file"),
        (("--data", "run.parquet", "--rate", "2x"), "'2x' must be a number of MB/s, or such as 1.5GB/s"),
        (("--data", "run.parquet", "--rate", "0"), "'0' must be a number of MB/s"),
        (("--data", "run.parquet", "--check"), "name it with --rate, in MB/s"),
        (("--data", "run.parquet", "--goal", "best"), "invalid choice: 'best'"),
        (("--data", "run.parquet", "--producers", "0"), "must be a number of processes from 1 to 256"),
        (("--data", "run.parquet", "--seconds", "0"), "must be a number of seconds from 1 to 86400"),
        (("--data", "run.parquet", "--set", "ring_byte=1"), "did you mean 'ring_bytes'?"),
        (("--data", "run.parquet", "--set", "output_dir=x"), "name the folder with --output"),
        (("--data", "run.parquet", "--set", "compression=zip"), "'zip' is unknown"),
        (("--data", "run.parquet", "--instrument", "x" * 5000), "has 5000 bytes: use at most 4096"),
        (("--data", "run.parquet", "--check-only", "--rate", "1"), "there is no such configuration file"),
    ],
)
def test_what_is_refused(output_dir: Path, data: Path, arguments: tuple[str, ...], said: str) -> None:
    result = shmstore("tune", *arguments, cwd=output_dir)
    assert result.returncode == 2
    assert said in only_error(result)
    assert left_in(output_dir) == {"run.parquet"}


def test_a_folder_that_cannot_be_written(output_dir: Path, data: Path) -> None:
    result = shmstore("tune", "--data", data, "--output", data, cwd=output_dir)
    assert result.returncode == 3
    assert "cannot make a folder to record in" in only_error(result)


@pytest.mark.parametrize("when", ["measuring codecs alone", "recording "])
def test_ctrl_c_leaves_nothing(output_dir: Path, data: Path, when: str) -> None:
    with running("tune", "--data", data, "--output", "disk", "--producers", "2", cwd=output_dir) as process:
        assert process.stdout is not None
        read_until(process.stdout, lambda line: when in line)
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors == "shmstore: error: interrupted by SIGINT: nothing was written\n"
    assert left_in(output_dir) == {"run.parquet", "disk"}
    assert left_in(output_dir / "disk") == set()
