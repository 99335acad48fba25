"""Where a configuration comes from: keywords, environment and TOML file, and what each error says."""

from __future__ import annotations

import os
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from shmstore.config import ConfigWarning, StorageConfig
from shmstore.errors import ConfigError

TomlFile = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the caller's file nor the caller's variables count."""
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith("SHMSTORE_")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def toml() -> TomlFile:
    def write(text: str) -> Path:
        path = Path("shmstore.toml")
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


def test_precedence(toml: TomlFile) -> None:
    toml("""
        [storage]
        ring_bytes = "1MiB"
        commit_bytes = 111
        codec_threads = 1
        """)
    environ = {"SHMSTORE_COMMIT_BYTES": "222", "SHMSTORE_CODEC_THREADS": "2", "HOME": "/"}
    config = StorageConfig.load(environ=environ, codec_threads=3)
    assert (config.ring_bytes, config.commit_bytes, config.codec_threads) == (2**20, 222, 3)
    assert config.close_timeout_s == 60.0


def test_instruments_of_keywords_are_merged_into_those_of_the_file(toml: TomlFile) -> None:
    toml("""
        [instrument.cam]
        chunk_rows = 5
        on_full = "raise"
        [instrument.cam.column.time]
        compression = "zstd"
        chunk_rows = 7
        [instrument."a.b"]
        put_timeout_s = "none"
        """)
    config = StorageConfig.load(
        instruments={"cam": {"chunk_rows": 6, "columns": {"time": {"compression": "none"}}}, "new": {}}
    )
    cam = config.instrument("cam")
    assert (cam.chunk_rows, cam.on_full) == (6, "raise")
    assert (cam.column("time").codec.name, cam.column("time").chunk_rows) == ("none", 7)
    assert config.instrument("a.b").put_timeout_s is None
    assert set(config.instruments) == {"cam", "a.b", "new"}


def test_level_of_the_file_does_not_reach_the_codec_of_a_higher_source(toml: TomlFile) -> None:
    toml('[storage]\ncompression = "gzip"\ncompression_level = 9\n')
    assert StorageConfig.load().codec.level == 9
    assert StorageConfig.load(compression="zstd").compression_level is None
    environ = {"SHMSTORE_COMPRESSION_LEVEL": "15", "SHMSTORE_COMPRESSION": "zstd"}
    assert StorageConfig.load(environ=environ).codec.level == 15


def test_variables_of_every_kind() -> None:
    environ = {
        "SHMSTORE_OUTPUT_DIR": "/data",
        "SHMSTORE_NAME": "2024",
        "SHMSTORE_COMPRESSION_LEVEL": "1",
        "SHMSTORE_SHUFFLE": "False",
        "SHMSTORE_RING_BYTES": "8MiB",
        "SHMSTORE_COMMIT_BYTES": "8000",
        "SHMSTORE_PUT_TIMEOUT_S": "none",
        "SHMSTORE_COMMIT_INTERVAL_MS": "12.5",
        "SHMSTORE_CHUNK_ROWS": "none",
        "SHMSTORE_APPLICATION": "",
    }
    config = StorageConfig.load(environ=environ)
    assert config == StorageConfig(
        output_dir="/data",
        name="2024",
        compression_level=1,
        shuffle=False,
        ring_bytes=2**23,
        commit_bytes=8000,
        put_timeout_s=None,
        commit_interval_ms=12.5,
    )


def test_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMSTORE_CODEC_THREADS", "7")
    assert StorageConfig.load().codec_threads == 7
    assert StorageConfig.load(environ={}).codec_threads == 0
    assert StorageConfig().codec_threads == 0


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("CODEC_THREADS", "four", "codec_threads = 'four' must be an integer from 0 to 1024"),
        ("CODEC_THREADS", "-4", "codec_threads = -4 must be an integer from 0 to 1024"),
        ("PUT_TIMEOUT_S", "1 s", "put_timeout_s = '1 s' must be a number of seconds"),
        ("SHUFFLE", "maybe", "shuffle = 'maybe' must be true, false"),
        ("RING_BYTES", "1", "ring_bytes = '1' must be a size"),
        ("COMPRESSION_LEVEL", "10", "compression 'gzip' has no level 10"),
        ("COMPRESSION", "adaptive:none", "compression 'adaptive:none' has nothing to ease: take 'none'"),
    ],
)
def test_wrong_variable_is_named(variable: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        StorageConfig.load(environ={f"SHMSTORE_{variable}": text})
    assert str(caught.value).startswith(f"environment variable SHMSTORE_{variable}: {message}")


def test_unknown_variable_warns_with_the_nearest_at_the_callers_line() -> None:
    environ = {"SHMSTORE_RING_BYTS": "1MiB", "SHMSTOREX": "no prefix of ours"}
    with pytest.warns(
        ConfigWarning, match="'SHMSTORE_RING_BYTS'; did you mean 'SHMSTORE_RING_BYTES'"
    ) as caught:
        StorageConfig.load(environ=environ)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert StorageConfig.load(environ=environ) == StorageConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[storag]\n", ": unknown table 'storag'; did you mean 'storage'?"),
        ("ring_bytes = 9000\n", ": unknown table 'ring_bytes'; did you mean"),
        ("storage = 3\n", " [storage]: 3 must be a table: put its settings below a line [storage]"),
        ("[storage]\nring_byts = 1\n", " [storage]: unknown setting 'ring_byts'; did you mean 'ring_bytes'?"),
        ("[storage]\nring_bytes = 1\n", " [storage]: ring_bytes = 1 must be a size from 4 KiB to 1 TiB"),
        ("[storage]\nname = 2024-01-01\n", " [storage]: name = datetime.date(2024, 1, 1) must be"),
        ("[storage]\ncompression_level = 10\n", " [storage]: compression 'gzip' has no level 10"),
        (
            "[storage.instruments.x]\n",
            " [storage]: unknown table 'instruments'; no table is known here: remove it",
        ),
        ("[instrument]\ncompression = 'x'\n", " [instrument.compression]: 'x' must be a table"),
        (
            "[instrument.cam]\nring = 1\n",
            " [instrument.cam]: unknown setting 'ring'; did you mean 'strings'?",
        ),
        ("[instrument.cam]\non_full = 1\n", " [instrument.cam]: on_full = 1 must be 'block'"),
        ("[instrument.cam]\ncompression = 'x'\n", " [instrument.cam]: compression 'x' is unknown"),
        ("[instrument.cam]\ncommit_bytes = 1\n", " [instrument.cam]: 'commit_bytes' cannot be set here"),
        (
            "[instrument.cam.columns.t]\n",
            " [instrument.cam]: unknown table 'columns'; did you mean 'column'?",
        ),
        ("[instrument.cam.column]\nt = 1\n", " [instrument.cam.column.t]: 1 must be a table"),
        ("[instrument.cam.column.t]\nlevel = 1\n", " [instrument.cam.column.t]: unknown setting 'level'"),
        ("[instrument.cam.column.t]\nchunk_rows = 0\n", " [instrument.cam.column.t]: chunk_rows = 0 must be"),
        (
            "[instrument.cam.column.t]\ncompression = 'x'\n",
            " [instrument.cam.column.t]: compression 'x' is unknown",
        ),
        ("[storage]\nname =\n", ": not valid TOML: Invalid value (at line 2, column 7): correct it there"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(toml: TomlFile, text: str, message: str) -> None:
    path = toml(text)
    for given in (None, path):
        with pytest.raises(ConfigError) as caught:
            StorageConfig.load(given)
        assert str(caught.value).startswith(f"shmstore.toml{message}")


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert StorageConfig.load() == StorageConfig()
    with pytest.raises(
        ConfigError, match=r"nowhere.toml: there is no such configuration file: check the path"
    ):
        StorageConfig.load("nowhere.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory: check the path"):
        StorageConfig.load(tmp_path)
    Path("latin.toml").write_bytes(b"[storage]\napplication = '\xfc'\n")
    with pytest.raises(ConfigError, match=r"latin.toml: byte 25 is not UTF-8: save the file as UTF-8"):
        StorageConfig.load("latin.toml")
