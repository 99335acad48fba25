"""`shmstore record`, on this machine: what ends up in the file, and how it ends."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from commandline import COMMAND, document, environment, only_error, read_until, running, shmstore

import shmstore as package

INSTRUMENTS = {"cpu", "memory", "disk", "network", "processes"}


def test_the_host_is_in_the_file(output_dir: Path) -> None:
    result = shmstore("record", "host", "--seconds", "1", "--output", output_dir, "--json", cwd=output_dir)
    assert result.returncode == 0, result.stderr
    summary = document(result)
    ticks = {station["name"]: station["ticks"] for station in summary["stations"]}
    assert len(ticks) >= 2
    with h5py.File(summary["path"]) as file:
        assert file.attrs["state"] == "complete"
        assert set(file) >= INSTRUMENTS
        assert file["metadata"].attrs["hostname"] == os.uname().nodename
        # Every reading is a row, and nothing else is.
        for name, station in (("cpu", "processors"), ("memory", "processors")):
            assert file[name]["time"].shape == (ticks[station],)
            assert summary["stats"]["instruments"][name]["rows_written"] == ticks[station]
        assert ticks["processors"] >= 10
        cpu = file["cpu"]
        assert cpu["idle"].shape == (ticks["processors"], len(psutil.cpu_times(percpu=True)))
        assert (np.diff(cpu["time"][:]) > 0).all()
        assert np.diff(cpu["user"][:].sum(axis=1)).sum() >= 0
        assert (file["memory/total"][:] == psutil.virtual_memory().total).all()
        assert b"lo" in set(file["network/nic"][:])
        table = file["processes"]
        assert {1, os.getpid()} <= set(table["pid"][:].tolist())
    with package.open(summary["path"]) as recording:
        assert recording["memory"].schema.field("used").metadata == {b"units": b"byte"}
        names = recording["processes"].read(columns=["name"])["name"].to_pylist()
        assert psutil.Process().name() in names


def test_the_summary_names_every_instrument_and_ends_with_the_path(output_dir: Path) -> None:
    result = shmstore("record", "host", "--seconds", "1.2", cwd=output_dir)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert "rows/s" in lines[1]
    assert "MB on disk" in lines[1]
    assert {line.split()[0] for line in lines if line.strip()} >= INSTRUMENTS
    assert Path(lines[-1]).parent == output_dir
    assert h5py.is_hdf5(lines[-1])


def test_quiet_says_nothing_but_the_path(output_dir: Path) -> None:
    result = shmstore("record", "host", "--seconds", "0.3", "--quiet", cwd=output_dir)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [str(next(output_dir.glob("*.h5")))]


def test_a_terminal_shows_a_table_that_moves(output_dir: Path) -> None:
    near, far = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "record", "host", "--seconds", "1"],
        cwd=output_dir,
        stdin=subprocess.DEVNULL,
        stdout=far,
        stderr=far,
        env={**environment(), "TERM": "xterm-256color", "COLUMNS": "120"},
    ) as process:
        os.close(far)
        shown = b""
        try:
            while part := os.read(near, 65536):
                shown += part
        except OSError:  # a terminal's way to say that the other side has gone
            pass
        finally:
            os.close(near)
        assert process.wait(30) == 0
    text = shown.decode()
    assert text.count("instrument") >= 3  # drawn several times, then the summary
    assert "\x1b[1A" in text
    assert "ring" in text
    assert "complete" in text


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "ended by Ctrl-C"), (signal.SIGTERM, "ended by SIGTERM")]
)
def test_a_signal_ends_it_and_the_file_is_complete(
    output_dir: Path, number: signal.Signals, said: str
) -> None:
    with running("record", "host", "--seconds", "0", cwd=output_dir) as process:
        assert process.stdout is not None
        read_until(process.stdout, lambda line: "rows/s" in line)
        os.killpg(process.pid, number)  # all of the group, as a terminal does
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert said in out
    path = out.splitlines()[-1]
    with h5py.File(path) as file:
        assert file.attrs["state"] == "complete"
        assert file["cpu/time"].shape[0] > 0


def test_a_killed_station_is_reported_and_the_rest_is_recorded(output_dir: Path) -> None:
    with running("record", "host", "--seconds", "2.5", cwd=output_dir) as process:
        assert process.stdout is not None
        read_until(process.stdout, lambda line: "rows/s" in line)
        stations = [
            child
            for child in psutil.Process(process.pid).children()
            if any("spawn_main" in word for word in child.cmdline())
        ]
        assert len(stations) >= 2
        victim = min(stations, key=lambda child: child.pid)  # the first to be started
        victim.kill()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"station processors (process {victim.pid}): was killed by SIGKILL" in err
    assert len(err.splitlines()) == 1
    with h5py.File(out.splitlines()[-1]) as file:
        assert 0 < file["cpu/time"].shape[0] < file["network/time"].shape[0]


def test_a_writer_that_is_given_up_is_one_line(output_dir: Path, shared_folder: Path) -> None:
    (output_dir / "shmstore.toml").write_text(
        f'[storage]\nwriter_deaths = 0\nstandby = false\nshm_dir = "{shared_folder}"\n'
    )
    with running("record", "host", "--seconds", "0", cwd=output_dir) as process:
        assert process.stdout is not None
        read_until(process.stdout, lambda line: "rows/s" in line)
        (writer,) = (
            child
            for child in psutil.Process(process.pid).children()
            if any("from shmstore" in word for word in child.cmdline())
        )
        writer.kill()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "writer" in err
    assert "shmstore recover" in err
    assert len(err.splitlines()) == 1


def test_killing_the_command_leaves_a_file_and_nothing_else(output_dir: Path) -> None:
    # That no process and no shared memory stays is checked after every test.
    with running("record", "host", "--seconds", "0", cwd=output_dir) as process:
        assert process.stdout is not None
        read_until(process.stdout, lambda line: "rows/s" in line)
        writer_and_stations = psutil.Process(process.pid).children()
        process.kill()
        _, alive = psutil.wait_procs(writer_and_stations, timeout=20)
    assert alive == []
    (path,) = output_dir.glob("*.h5")
    with h5py.File(path) as file:
        assert file["cpu/time"].shape[0] > 0


def test_nobody_reading_the_output_does_not_end_it(output_dir: Path) -> None:
    with running("record", "host", "--seconds", "2.2", cwd=output_dir) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(60) == 0
    assert err == ""
    (path,) = output_dir.glob("*.h5")
    with h5py.File(path) as file:
        assert file.attrs["state"] == "complete"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required"),
        (["record"], "required"),
        (["record", "moon"], "invalid choice"),
        (["record", "host", "--seconds", "soon"], "number of seconds"),
        (["record", "host", "--seconds", "nan"], "number of seconds"),
        (["record", "host", "--rate", "0"], "readings a second"),
        (["record", "host", "--rat", "5"], "unrecognized"),
        (["record", "host", "--set", "ring_bytes"], "KEY=VALUE"),
        (["record", "host", "--set", "ring_byte=8MiB"], "did you mean 'ring_bytes'?"),
        (["record", "host", "--set", "ring_bytes=lots"], "must be a size"),
        (["record", "host", "--compression", "gzup"], "did you mean 'gzip'?"),
        (["record", "host", "--config", "gone.toml"], "no such configuration file"),
    ],
)
def test_wrong_calls(output_dir: Path, arguments: list[str], said: str) -> None:
    result = shmstore(*arguments, cwd=output_dir)
    assert result.returncode == 2
    assert said in only_error(result)
    assert result.stdout == ""
    assert list(output_dir.iterdir()) == []


def test_a_folder_that_cannot_be_written(output_dir: Path) -> None:
    # Nobody can make a file there, not even root.
    result = shmstore("record", "host", "--seconds", "1", "--output", "/sys", cwd=output_dir)
    assert result.returncode == 3
    assert "/sys" in only_error(result)


@pytest.mark.parametrize("package_name", ["psutil", "rich"])
def test_a_missing_dependency(output_dir: Path, package_name: str) -> None:
    code = (
        f"import sys; sys.modules[{package_name!r}] = None\n"
        "from shmstore.cli import main; sys.exit(main(['record', 'host', '--seconds', '1']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=output_dir,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
    )
    assert result.returncode == 3
    assert f"needs {package_name}" in only_error(result)
    assert "pip install 'shmstore[demo]'" in result.stderr
    assert list(output_dir.iterdir()) == []


def test_help_and_version_are_quick_to_import(output_dir: Path) -> None:
    code = (
        "import sys, shmstore.cli\n"
        "heavy = {'rich', 'psutil', 'pyarrow', 'h5py', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or None)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=output_dir,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
    )
    assert result.stderr == ""
    assert result.returncode == 0
    assert shmstore("--version", cwd=output_dir).stdout == f"shmstore {package.__version__}\n"
    assert "ingest" in shmstore("--help", cwd=output_dir).stdout
