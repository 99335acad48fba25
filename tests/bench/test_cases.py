from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet
import pytest

from shmstore.bench.cases import CASES, Case, data_cases, select
from shmstore.bench.peers import PEERS
from shmstore.bench.streams import Adc
from shmstore.errors import ConfigError
from shmstore.sources.files import InputError


def test_names_are_unique_and_every_configuration_is_right() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    for case in CASES:
        assert case.config.codec == case.parsed_codec
        assert case.to_dict()["codec"] == str(case.parsed_codec)


def test_bounds_name_what_is_measured() -> None:
    labels = {peer.label for peer in PEERS} | {"machine limit", "memcpy", "pwrite", "pwrite, handed over"}
    assert {label for case in CASES for label, _ in case.bounds} <= labels


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["times/gzip"], ["times/gzip"]),
        (
            ["frames/*", "times/g"],
            [
                "frames/none",
                *(f"frames/{codec}" for codec in ("bitshuffle", "lz4", "gzip-1", "zstd")),
                "times/gzip",
            ],
        ),
        (["adc/zst[d]"], ["adc/zstd"]),
    ],
    ids=str,
)
def test_select(patterns: list[str], names: list[str]) -> None:
    assert [case.name for case in select(CASES, patterns)] == names


def test_select_takes_all_without_a_pattern() -> None:
    assert select(CASES, []) == list(CASES)


def test_a_pattern_that_fits_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no case is called like 'adq'.*adc/none"):
        select(CASES, ["adc", "adq"])


def test_scaled_keeps_work_for_every_producer() -> None:
    case = Case("x", Adc(), "none", 1000, producers=8)
    assert case.scaled(0.5).batches == 500
    assert case.scaled(0.0001).batches == 32


def test_settings_outrank_those_of_the_case() -> None:
    case = Case("x", Adc(), "none", 8, settings=(("ring_bytes", 1 << 20),))
    assert case.with_settings(ring_bytes=2 << 20, codec_threads=3).config.ring_bytes == 2 << 20


def test_data_cases_are_one_for_each_codec(tmp_path) -> None:
    path = tmp_path / "run 7.parquet"
    pa.parquet.write_table(pa.table({"a": range(1000)}), path)
    cases = data_cases(str(path), ["none", "blosc:zstd"], producers=2, settings={"codec_threads": 1})
    assert [case.name for case in cases] == ["run 7/none", "run 7/blosc-zstd"]
    assert [case.config.codec_threads for case in cases] == [1, 1]
    assert cases[1].stream.batches()[0].num_rows == 1000
    with pytest.raises(ConfigError, match="unknown"):
        _ = data_cases(str(path), ["nonsense"])[0].config


def test_data_without_rows_is_refused(tmp_path) -> None:
    path = tmp_path / "empty.parquet"
    pa.parquet.write_table(pa.table({"a": pa.array([], pa.int8())}), path)
    with pytest.raises(InputError, match="has no rows"):
        data_cases(str(path))
