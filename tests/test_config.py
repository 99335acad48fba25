"""Configuration: every value, every scope, and what each error says."""

from __future__ import annotations

import ast
import copy
import inspect
import json
import math
import os
import pickle
import textwrap
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmstore.config import (
    ColumnConfig,
    InstrumentConfig,
    StorageConfig,
)
from shmstore.errors import ConfigError
from shmstore.settings import SETTINGS, size_in_bytes


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the caller's file nor the caller's variables count."""
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith("SHMSTORE_")]:
        monkeypatch.delenv(variable)


FULL: dict[str, Any] = {
    "output_dir": "data/run 1",
    "filename": "night.h5",
    "name": "night-1",
    "application": "daq 2.0",
    "compression": "blosc:zstd",
    "compression_level": 3,
    "shuffle": "bit",
    "strings": "fixed:16",
    "chunk_rows": 1000,
    "chunk_bytes": 2**20,
    "codec_threads": 3,
    "ring_bytes": 2**20,
    "on_full": "drop_newest",
    "put_timeout_s": 0.1,
    "schema_policy": "evolve",
    "validate": "full",
    "commit_interval_ms": 1 / 3,
    "commit_bytes": 1,
    "auto_flush_interval_secs": 0.0,
    "close_timeout_s": 7.5,
    "writer_deaths": 0,
    "recoverable": False,
    "disk_warn_bytes": 2**20,
    "disk_reserve_bytes": 4096,
    "spill_dir": "/tmp/spill",
    "disk_patience_s": 0.0,
    "writer_hang_s": 2.5,
    "standby": False,
    "recover_at_start": False,
    "shm_dir": "/tmp",
    "instruments": {
        "camera_1": {
            "compression": "none",
            "ring_bytes": 2**24,
            "put_timeout_s": math.inf,
            "schema_policy": "new",
            "validate": "basic",
            "columns": {"time": {"compression": "gzip", "compression_level": 0, "shuffle": False}},
        },
        "a.b/ü": {"strings": "packed"},
    },
}


# ------------------------------------------------------------------------------------------------ values


def test_defaults_are_those_documented() -> None:
    config = StorageConfig()
    assert config.output_dir == Path()
    assert (config.compression, config.codec.name, config.codec.level) == ("gzip", "gzip", 6)
    assert (config.ring_bytes, config.commit_bytes) == (64 * 2**20, 16 * 2**20)
    assert (config.on_full, config.put_timeout_s, config.close_timeout_s) == ("block", 60.0, 60.0)
    assert (config.commit_interval_ms, config.auto_flush_interval_secs) == (50.0, 1.0)
    assert (config.writer_deaths, config.disk_patience_s, config.writer_hang_s) == (8, 60.0, 60.0)
    assert config.standby is True
    assert config.recoverable is True
    assert (config.disk_warn_bytes, config.disk_reserve_bytes) == (2**30, 32 * 2**20)
    assert config.spill_dir is None
    assert (config.strings, config.shuffle) == ("vlen", "auto")
    assert (config.schema_policy, config.validate) == ("strict", "basic")
    assert config.recover_at_start is True
    assert config.shm_dir == Path("/dev/shm")
    assert not config.instruments


def test_every_field_has_a_check_and_a_line_of_documentation() -> None:
    for kind in (ColumnConfig, InstrumentConfig, StorageConfig):
        for item in fields(kind):
            assert item.name in SETTINGS or item.name in ("columns", "instruments")
    assert {f"{item.name} : " for item in fields(StorageConfig)} <= {
        line.strip().partition(" : ")[0] + " : " for line in (StorageConfig.__doc__ or "").splitlines()
    }


@pytest.mark.parametrize("kind", [InstrumentConfig, StorageConfig])
def test_signature_for_type_checkers_has_the_fields(kind: type[Any]) -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    (init,) = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    ]
    assert [argument.arg for argument in init.args.kwonlyargs] == [item.name for item in fields(kind)]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MiB", 64 * 2**20),
        ("1GiB", 2**30),
        ("500kB", 500_000),
        ("500 KB", 500_000),
        ("1.5KiB", 1536),
        ("4096", 4096),
        (" 2mib ", 2**21),
        ("1TB", 10**12),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert size_in_bytes(text) == size
    if 4096 <= size <= 2**40:
        assert StorageConfig(ring_bytes=text).ring_bytes == size


@pytest.mark.parametrize("text", ["", "MiB", "64M", "-1MiB", "1e3", "1.3B", "64 Mi B", "٣MiB", "1_000"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no (size|whole number).*: (write|use) a"):
        size_in_bytes(text)
    with pytest.raises(ConfigError, match=r"ring_bytes = .* must be a size from 4 KiB to 1 TiB.*'64MiB'"):
        StorageConfig(ring_bytes=text)


def test_paths_are_kept_and_home_is_expanded_in_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert StorageConfig(output_dir="~/data").output_dir == Path("/home/somebody/data")
    literal = StorageConfig(output_dir=Path("~/data"))
    assert literal.output_dir == Path("~/data")
    assert StorageConfig.from_dict(literal.to_dict()) == literal


def test_numbers_of_numpy_become_plain() -> None:
    numbers: dict[str, Any] = {
        "codec_threads": np.int64(3),
        "put_timeout_s": np.float32(0.5),
        "ring_bytes": np.uint32(4096),
    }
    config = StorageConfig(**numbers)
    assert json.loads(json.dumps(config.to_dict()))["ring_bytes"] == 4096
    assert (config.codec_threads, config.put_timeout_s) == (3, 0.5)


@pytest.mark.parametrize("raw", [None, math.inf, "none"])
def test_no_limit_on_put(raw: Any) -> None:
    assert StorageConfig(put_timeout_s=raw).put_timeout_s is None
    assert StorageConfig(put_timeout_s=raw).instrument("x").put_timeout_s is None


@pytest.mark.parametrize("raw", [None, math.inf, "none"])
@pytest.mark.parametrize("name", ["disk_patience_s", "writer_hang_s"])
def test_no_limit_on_patience_with_the_writer(name: str, raw: Any) -> None:
    config = StorageConfig(**{name: raw})
    assert getattr(config, name) is None
    assert StorageConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_codec_threads_default_to_the_usable_cores() -> None:
    assert StorageConfig().codec_thread_count == len(os.sched_getaffinity(0))
    assert StorageConfig(codec_threads=5).codec_thread_count == 5


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"output_dir": ""}, "output_dir = '' must be the path of a folder"),
    ({"output_dir": 3}, "output_dir = 3 must be the path of a folder"),
    ({"output_dir": "a\0b"}, "must be the path of a folder"),
    ({"filename": "a/b"}, "filename = 'a/b' must be a file name of 1 to 200 bytes without '/'"),
    ({"filename": ".."}, "filename = '..' must be a file name"),
    ({"filename": "ü" * 101}, "must be a file name of 1 to 200 bytes"),
    ({"name": "-x"}, "name = '-x' must be 1 to 64"),
    ({"name": "a/b"}, "name = 'a/b' must be"),
    ({"name": "a" * 65}, "must be 1 to 64"),
    ({"application": "x\n"}, "must be 1 to 200 printable characters"),
    ({"compression": 6}, "compression = 6 must be the name of a codec"),
    ({"compression": " "}, "compression = ' ' must be the name of a codec"),
    ({"compression_level": True}, "compression_level = True must be an integer"),
    ({"compression_level": 6.0}, "compression_level = 6.0 must be an integer"),
    ({"shuffle": 1}, "shuffle = 1 must be true, false, 'auto', 'none', 'byte' or 'bit'"),
    ({"shuffle": "bits"}, "shuffle = 'bits' must be"),
    ({"strings": "fixed:0"}, "strings = 'fixed:0' must be 'vlen', 'packed' or 'fixed:N'"),
    ({"strings": "fixed:65536"}, "N from 1 to 65535"),
    ({"strings": None}, "strings = None must be"),
    ({"chunk_rows": 0}, "chunk_rows = 0 must be an integer from 1 to 4294967295"),
    ({"chunk_rows": 2**32}, "must be an integer from 1 to 4294967295"),
    ({"chunk_bytes": 1}, "chunk_bytes = 1 must be a size from 512 B to 1 GiB"),
    ({"codec_threads": -1}, "codec_threads = -1 must be an integer from 0 to 1024"),
    ({"ring_bytes": 4095}, "ring_bytes = 4095 must be a size from 4 KiB to 1 TiB"),
    ({"ring_bytes": None}, "ring_bytes = None must be a size"),
    ({"ring_bytes": 1e6}, "ring_bytes = 1000000.0 must be a size"),
    ({"on_full": "blok"}, "on_full = 'blok' must be 'block', 'raise' or 'drop_newest'"),
    ({"schema_policy": "stric"}, "schema_policy = 'stric' must be 'strict', 'evolve' or 'new'"),
    ({"schema_policy": None}, "schema_policy = None must be 'strict', 'evolve' or 'new'"),
    ({"validate": True}, "validate = True must be 'basic' or 'full'"),
    ({"schema_polcy": "new"}, "unknown setting 'schema_polcy'; did you mean 'schema_policy'?"),
    (
        {"instruments": {"cam": {"columns": {"t": {"validate": "full"}}}}},
        "[instrument.cam.column.t]: 'validate' cannot be set here; set it for its instrument or",
    ),
    ({"put_timeout_s": -1}, "must be a number of seconds from 0 to 2000000, or 'none' for no limit"),
    ({"put_timeout_s": math.nan}, "put_timeout_s = nan must be a number of seconds"),
    ({"put_timeout_s": "5"}, "put_timeout_s = '5' must be a number of seconds"),
    ({"commit_interval_ms": 60_001}, "must be a number of milliseconds from 0 to 60000"),
    ({"commit_interval_ms": True}, "commit_interval_ms = True must be a number"),
    ({"commit_bytes": 0}, "commit_bytes = 0 must be a size from 1 B to 1 TiB"),
    ({"auto_flush_interval_secs": -0.1}, "must be a number of seconds from 0 to 86400"),
    ({"close_timeout_s": None}, "close_timeout_s = None must be a number of seconds"),
    ({"close_timeout_s": math.inf}, "close_timeout_s = inf must be a number of seconds"),
    ({"writer_deaths": -1}, "writer_deaths = -1 must be an integer from 0 to 1000000"),
    ({"disk_patience_s": -1}, "must be a number of seconds from 0 to 2000000, or 'none' for no limit"),
    ({"writer_hang_s": 0}, "writer_hang_s = 0 must be a number of seconds from 0.1 to 2000000, or 'none'"),
    ({"standby": "maybe"}, "standby = 'maybe' must be true or false"),
    ({"shm_dir": b"/dev/shm"}, "must be the path of a folder"),
    ({"instruments": 3}, "instruments = 3 must be a mapping of names to InstrumentConfig"),
    ({"instruments": {3: {}}}, "must be a mapping of names to InstrumentConfig"),
    ({"instruments": {"cam": 3}}, "[instrument.cam]: 3 must be an InstrumentConfig or a mapping"),
    ({"instruments": {"cam": {"on_full": "x"}}}, "[instrument.cam]: on_full = 'x' must be"),
    (
        {"instruments": {"cam": {"rings": 1}}},
        "[instrument.cam]: unknown setting 'rings'; did you mean 'strings'?",
    ),
    (
        {"instruments": {"cam": {"commit_bytes": 1}}},
        "[instrument.cam]: 'commit_bytes' cannot be set here; set it for the whole storage",
    ),
    (
        {"instruments": {"cam": {"columns": {"t": {"ring_bytes": 9000}}}}},
        "[instrument.cam.column.t]: 'ring_bytes' cannot be set here; set it for its instrument or",
    ),
    (
        {"instruments": {"cam": {"columns": {"t": {"chunk_rows": -1}}}}},
        "[instrument.cam.column.t]: chunk_rows = -1 must be an integer",
    ),
    ({"compression": "gzipp"}, "compression 'gzipp' is unknown"),
    ({"compression": "adaptve"}, "compression 'adaptve' is unknown: did you mean 'adaptive'?"),
    (
        {"instruments": {"cam": {"columns": {"t": {"compression": "adaptive:lzf"}}}}},
        "[instrument.cam.column.t]: compression 'adaptive:lzf' runs inside HDF5",
    ),
    ({"compression_level": 10}, "compression 'gzip' has no level 10"),
    (
        {"instruments": {"cam": {"columns": {"t": {"compression_level": 10}}}}},
        "[instrument.cam.column.t]: compression 'gzip' has no level 10",
    ),
    ({"compresion": "gzip"}, "unknown setting 'compresion'; did you mean 'compression'?"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=lambda item: str(item)[:60])
def test_what_is_wrong_is_named_with_what_is_right(values: dict[str, Any], message: str) -> None:
    for make, source in (
        (StorageConfig, ""),
        (StorageConfig.from_dict, ""),
        (StorageConfig.load, "keyword"),
        (StorageConfig().replace, "keyword"),
    ):
        with pytest.raises(ConfigError) as caught:
            make(values) if make == StorageConfig.from_dict else make(**values)
        assert message in str(caught.value)
        assert str(caught.value).startswith(source)
        assert "\n" not in str(caught.value)


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(ConfigError) as caught:
        StorageConfig(on_full="x" * 10_000)
    assert len(str(caught.value)) < 200


# ---------------------------------------------------------------------------------------- frozen values


def test_configuration_cannot_be_changed() -> None:
    config = StorageConfig.from_dict(FULL)
    with pytest.raises(FrozenInstanceError):
        config.ring_bytes = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.instruments["x"] = InstrumentConfig()  # type: ignore[index]
    with pytest.raises(TypeError):
        config.instruments["camera_1"].columns["x"] = ColumnConfig()  # type: ignore[index]


def test_mapping_given_is_not_shared() -> None:
    mine: dict[str, InstrumentConfig] = {}
    config = StorageConfig(instruments=mine)
    mine["x"] = InstrumentConfig()
    assert not config.instruments


def test_round_trips() -> None:
    config = StorageConfig.from_dict(FULL)
    text = json.dumps(config.to_dict(), allow_nan=False)
    for again in (
        StorageConfig.from_dict(json.loads(text)),
        pickle.loads(pickle.dumps(config)),
        copy.deepcopy(config),
        config.replace(),
        StorageConfig.load(environ={}, **FULL),
    ):
        assert again == config
        assert hash(again) == hash(config)
        assert again.to_dict() == config.to_dict()
    assert config.to_dict() | {"instruments": 0} == FULL | {"instruments": 0}
    assert len({config, StorageConfig(), StorageConfig()}) == 2


def test_resolved_instrument_is_hashable_and_picklable() -> None:
    resolved = StorageConfig.from_dict(FULL).instrument("camera_1")
    again = pickle.loads(pickle.dumps(resolved))
    assert again == resolved
    assert hash(again) == hash(resolved)


def test_replace_takes_all_instruments_away_or_none() -> None:
    config = StorageConfig.from_dict(FULL)
    assert config.replace(ring_bytes="8MiB").instruments == config.instruments
    assert config.replace(ring_bytes="8MiB").ring_bytes == 8 * 2**20
    assert config.ring_bytes == 2**20
    assert set(config.replace(instruments={"other": {}}).instruments) == {"other"}
    assert not config.replace(instruments={}).instruments


# ------------------------------------------------------------------------------------------------ scopes


def test_narrower_scope_wins() -> None:
    config = StorageConfig(
        chunk_rows=1,
        strings="packed",
        put_timeout_s=5,
        instruments={
            "cam": {
                "chunk_rows": 2,
                "ring_bytes": "1MiB",
                "on_full": "raise",
                "columns": {"time": {"chunk_rows": 3}, "note": {"strings": "fixed:8"}},
            }
        },
    )
    other = config.instrument("other")
    assert (other.chunk_rows, other.ring_bytes, other.on_full, other.put_timeout_s) == (
        1,
        64 * 2**20,
        "block",
        5,
    )
    cam = config.instrument("cam")
    assert (cam.instrument_id, cam.ring_bytes, cam.on_full, cam.put_timeout_s) == ("cam", 2**20, "raise", 5)
    assert (cam.column("time").chunk_rows, cam.column("time").strings) == (3, "packed")
    assert (cam.column("note").chunk_rows, cam.column("note").fixed_bytes) == (2, 8)
    assert (cam.column("frame").chunk_rows, cam.column("frame").fixed_bytes) == (2, None)


def test_schema_policy_and_validation_are_an_instruments_too() -> None:
    config = StorageConfig(
        schema_policy="evolve",
        instruments={"cam": {"schema_policy": "new", "validate": "full"}, "probe": {"chunk_rows": 1}},
    )
    cam, probe = config.instrument("cam"), config.instrument("probe", validate="full")
    assert (cam.schema_policy, cam.validate) == ("new", "full")
    assert (probe.schema_policy, probe.validate) == ("evolve", "full")
    assert config.instrument("cam", schema_policy="strict", validate=None).validate == "full"
    assert config.instrument("cam", schema_policy="strict").schema_policy == "strict"
    assert config.instrument("other").validate == "basic"


def test_schema_policy_and_validation_come_from_file_and_environment() -> None:
    Path("shmstore.toml").write_text(
        '[storage]\nschema_policy = "evolve"\n[instrument.cam]\nvalidate = "full"\n', encoding="utf-8"
    )
    config = StorageConfig.load(environ={"SHMSTORE_SCHEMA_POLICY": "new"})
    assert (config.schema_policy, config.instrument("cam").validate) == ("new", "full")
    assert StorageConfig.load(environ={}).instrument("cam").schema_policy == "evolve"
    message = "environment variable SHMSTORE_VALIDATE: validate = 'ful' must be 'basic' or 'full'"
    with pytest.raises(ConfigError, match=message):
        StorageConfig.load(environ={"SHMSTORE_VALIDATE": "ful"})


def test_options_outrank_the_instrument_and_columns_outrank_both() -> None:
    config = StorageConfig(
        instruments={
            "cam": {
                "compression": "zstd",
                "chunk_rows": 2,
                "columns": {"time": {"compression": "lz4", "chunk_rows": 3}},
            }
        }
    )
    options: dict[str, Any] = {
        "compression": "none",
        "on_full": "drop_newest",
        "ring_bytes": "2MiB",
        "chunk_rows": None,
        "put_timeout_s": math.inf,
        "columns": {"time": {"chunk_rows": 9}, "new": {"compression": "gzip"}},
    }
    cam = config.instrument("cam", **options)
    assert (cam.on_full, cam.ring_bytes, cam.chunk_rows, cam.put_timeout_s) == ("drop_newest", 2**21, 2, None)
    assert cam.column("frame").codec.name == "none"
    assert (cam.column("time").codec.name, cam.column("time").chunk_rows) == ("lz4", 9)
    assert (cam.column("new").codec.name, cam.column("new").codec.level) == ("gzip", 6)
    assert config.instrument("cam").column("new").codec.name == "zstd"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            {"compressio": "gzip"},
            r"\[instrument.cam\]: unknown setting 'compressio'; did you mean 'compression'\?",
        ),
        ({"on_full": "no"}, r"\[instrument.cam\]: on_full = 'no' must be 'block'"),
        ({"compression_level": 10}, r"\[instrument.cam\]: compression 'gzip' has no level 10"),
        (
            {"columns": {"t": {"shufle": 1}}},
            r"\[instrument.cam.column.t\]: unknown setting 'shufle'; .*'shuffle'",
        ),
        ({"commit_bytes": 1}, r"\[instrument.cam\]: 'commit_bytes' cannot be set here"),
    ],
)
def test_wrong_options_are_named(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StorageConfig().instrument("cam", **option)


def test_another_compression_leaves_level_and_bit_shuffle_behind() -> None:
    config = StorageConfig(
        compression="blosc:lz4",
        compression_level=9,
        shuffle="bit",
        instruments={
            "same": {"compression": "blosc:lz4", "chunk_rows": 1},
            "other": {"compression": "gzip", "columns": {"low": {"compression_level": 1}}},
        },
    )
    same = config.instrument("same").column("x").codec
    assert (same.level, same.shuffle) == (9, "bit")
    other = config.instrument("other")
    assert (other.column("x").codec.level, other.column("x").codec.shuffle) == (6, "auto")
    assert other.column("low").codec.level == 1
    assert config.replace(compression="zstd", instruments={}).compression_level is None
    assert config.replace(compression="zstd", compression_level=12).codec.level == 12
    assert config.replace(shuffle=False).replace(compression="zstd").shuffle is False


def test_compression_is_read_in_any_case() -> None:
    assert (
        StorageConfig(compression=" GZIP ", compression_level=9).replace(compression="gzip").codec.level == 9
    )


def test_adaptive_is_set_where_any_compression_is() -> None:
    config = StorageConfig(
        compression="adaptive",
        compression_level=9,
        instruments={
            "cam": {"compression": "zstd", "columns": {"frame": {"compression": "adaptive:blosc:zstd"}}}
        },
    )
    assert str(config.codec) == "adaptive:gzip-9+shuffle"
    assert str(config.instrument("cam").column("time").codec) == "zstd-3+shuffle"
    assert str(config.instrument("cam").column("frame").codec) == "adaptive:blosc:zstd-5+shuffle"
    assert StorageConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    # A level belongs to the compression that it was set with.
    assert config.replace(compression="gzip", instruments={}).codec.level == 6
    Path("shmstore.toml").write_text(
        '[storage]\ncompression = "adaptive"\n[instrument.cam]\ncompression = "adaptive:zstd"\n',
        encoding="utf-8",
    )
    assert (
        str(StorageConfig.load(environ={}).instrument("cam").default_column.codec)
        == "adaptive:zstd-3+shuffle"
    )
    config = StorageConfig.load(environ={"SHMSTORE_COMPRESSION": "adaptive:lz4"})
    assert str(config.codec) == "adaptive:lz4+shuffle"


def test_configured_columns_are_held_against_the_schema() -> None:
    resolved = StorageConfig().instrument("cam", columns={"tme": {"strings": "packed"}})
    resolved.require_columns(["tme", "frame"])
    message = r"instrument 'cam': unknown configured column 'tme'; did you mean 'time'\?"
    with pytest.raises(ConfigError, match=message):
        resolved.require_columns(["time", "frame"])
