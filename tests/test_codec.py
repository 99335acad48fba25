from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from shmstore.codec import Codec, Filter
from shmstore.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("text", "level", "shuffle", "expected"),
    [
        ("none", None, None, "none"),
        ("none", None, True, "none"),
        ("gzip", None, None, "gzip-6+shuffle"),
        ("GZIP ", 1, False, "gzip-1"),
        ("gzip", 0, "byte", "gzip-0+shuffle"),
        ("zstd", 22, None, "zstd-22+shuffle"),
        ("lz4", None, None, "lz4+shuffle"),
        ("lz4", 9, "none", "lz4-9"),
        ("blosc", None, None, "blosc:lz4-5+shuffle"),
        ("blosc:zstd", 9, "bit", "blosc:zstd-9+bitshuffle"),
        ("blosc2:blosclz", 0, False, "blosc2:blosclz-0"),
        ("bitshuffle", None, True, "bitshuffle:lz4"),
        ("bitshuffle:zstd", None, None, "bitshuffle:zstd-3"),
        ("lzf", None, None, "lzf+shuffle"),
        ("bzip2", None, None, "bzip2-9"),
        ("zfp", None, None, "zfp"),
        ("adaptive", None, None, "adaptive:gzip-6+shuffle"),
        ("Adaptive ", 9, False, "adaptive:gzip-9"),
        ("adaptive:zstd", 1, None, "adaptive:zstd-1+shuffle"),
        ("adaptive:blosc:zstd", 9, "bit", "adaptive:blosc:zstd-9+bitshuffle"),
        ("adaptive:bitshuffle", None, None, "adaptive:bitshuffle:lz4"),
        ("adaptive:lz4", None, None, "adaptive:lz4+shuffle"),
    ],
)
def test_parse_understands(text: str, level: int | None, shuffle: str | bool | None, expected: str) -> None:
    assert str(Codec.parse(text, level, shuffle)) == expected


@pytest.mark.parametrize(
    ("text", "level", "shuffle", "message"),
    [
        ("gzp", None, None, "compression 'gzp' is unknown: did you mean 'gzip'?"),
        ("zstandard", None, None, "did you mean 'zstd'?"),
        ("", None, None, "take one of none, gzip"),
        ("gzip", 10, None, "compression 'gzip' has no level 10: take one from 0 to 9"),
        ("zstd", 0, None, "take one from 1 to 22"),
        ("lzf", 3, None, "compression 'lzf' has no levels: leave out level 3"),
        ("none", 6, None, "has no levels"),
        ("bitshuffle:lz4", 3, None, "compression 'bitshuffle:lz4' has no levels"),
        ("gzip:zstd", None, None, "compression 'gzip' has no codec inside: leave out ':zstd'"),
        ("blosc:zst", None, None, "compression 'blosc' has no codec 'zst': did you mean 'zstd'?"),
        ("blosc:", None, None, "compression 'blosc' has no codec ''"),
        ("bitshuffle:none", None, None, "take one of lz4, zstd"),
        ("gzip", None, "bit", "compression 'gzip' has no shuffle 'bit': take one of auto, none, byte"),
        ("bitshuffle", None, False, "has no shuffle 'none'"),
        ("zfp", None, True, "has no shuffle 'byte'"),
        ("blosc", None, "bits", "has no shuffle 'bits'"),
        ("adaptiv", None, None, "compression 'adaptiv' is unknown: did you mean 'adaptive'?"),
        ("adaptive:gzp", None, None, "compression 'adaptive:gzp' is unknown: did you mean 'gzip'?"),
        ("adaptive:", None, None, "compression 'adaptive:' is unknown: take one of none, gzip"),
        ("adaptive:adaptive", None, None, "compression 'adaptive:adaptive' is unknown"),
        ("gzip:adaptive", None, None, "compression 'gzip' has no codec inside: leave out ':adaptive'"),
        ("adaptive", 10, None, "compression 'gzip' has no level 10: take one from 0 to 9"),
        ("adaptive", None, "bit", "compression 'gzip' has no shuffle 'bit'"),
        ("adaptive:none", None, None, "compression 'adaptive:none' has nothing to ease: take 'none'"),
        (
            "adaptive:lzf",
            None,
            None,
            "'adaptive:lzf' runs inside HDF5, where it cannot be eased: take 'lzf'",
        ),
        ("adaptive:zfp", None, None, "'adaptive' with gzip, zstd, lz4, blosc, blosc2 or bitshuffle"),
    ],
)
def test_parse_refuses_in_one_line(
    text: str, level: int | None, shuffle: str | bool | None, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Codec.parse(text, level, shuffle)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_class_refuses_what_parse_refuses() -> None:
    with pytest.raises(ConfigError, match="did you mean 'blosc'"):
        Codec("bloscc")
    with pytest.raises(ConfigError, match="has no codec None"):
        Codec("blosc")
    with pytest.raises(ConfigError, match="has no level -1"):
        Codec("gzip", -1)


def test_equal_descriptions_are_one_codec() -> None:
    assert Codec.parse("gzip") == Codec.parse("gzip", 6) == Codec("gzip", 6)
    assert len({Codec.parse("blosc"), Codec.parse("blosc:lz4", 5), Codec.parse("Blosc:LZ4")}) == 1
    assert Codec.parse("gzip") != Codec.parse("gzip", shuffle=False)
    assert pickle.loads(pickle.dumps(Codec.parse("blosc:zstd"))) == Codec.parse("blosc:zstd")


def test_an_adaptive_codec_is_another_with_the_same_filters_and_encoder() -> None:
    adaptive, fixed = Codec.parse("adaptive:blosc:zstd", 7), Codec.parse("blosc:zstd", 7)
    assert adaptive != fixed
    assert adaptive.filters(4, 4800) == fixed.filters(4, 4800)
    assert adaptive.filter_fields() == fixed.filter_fields()
    assert Codec(**adaptive.filter_fields()) == fixed
    assert Codec.parse(adaptive.spelling, 7) == adaptive
    assert (adaptive.spelling, fixed.spelling) == ("adaptive:blosc:zstd", "blosc:zstd")


@pytest.mark.parametrize(
    ("text", "level", "levels"),
    [
        ("gzip", None, [6, 2, 1]),
        ("gzip", 9, [9, 3, 1]),
        ("gzip", 1, [1]),
        ("gzip", 0, [0]),
        ("zstd", 22, [22, 7, 2, 1]),
        ("blosc", None, [5, 1]),
        ("bitshuffle:zstd", 2, [2, 1]),
        ("bitshuffle", None, [None]),
        ("lz4", None, [None]),
        ("lz4", 4, [4, 1]),
    ],
)
def test_eased_is_the_codec_itself_and_then_ever_cheaper(
    text: str, level: int | None, levels: list[int | None]
) -> None:
    eased = Codec.parse(f"adaptive:{text}", level).eased()
    assert eased == tuple(Codec.parse(text, level) for level in levels)
    assert len({codec.filters(2, 4096)[0].id for codec in eased}) == 1


def test_default_level_is_the_same_written_or_not() -> None:
    assert Codec("gzip").filters(1, 8) == Codec("gzip", 6).filters(1, 8) == (Filter(1, (6,)),)
    assert Codec("zstd").filters(1, 8) == (Filter(32015, (3,)),)


@pytest.mark.parametrize(
    ("codec", "itemsize", "expected"),
    [
        (Codec.parse("none"), 8, ()),
        (Codec.parse("gzip"), 2, (Filter(2, (2,)), Filter(1, (6,)))),
        (Codec.parse("gzip", shuffle=True), 1, (Filter(1, (6,)),)),
        (Codec.parse("gzip", 9, shuffle="none"), 8, (Filter(1, (9,)),)),
        (Codec.parse("lzf"), 4, (Filter(2, (4,)), Filter(32000, ()))),
        (Codec.parse("lz4"), 4, (Filter(2, (4,)), Filter(32004, (0,)))),
        (Codec.parse("blosc:zstd", 3), 4, (Filter(32001, (2, 2, 4, 4800, 3, 1, 5)),)),
        (Codec.parse("blosc", shuffle="bit"), 1, (Filter(32001, (2, 2, 1, 4800, 5, 2, 1)),)),
        (Codec.parse("blosc"), 1, (Filter(32001, (2, 2, 1, 4800, 5, 0, 1)),)),
        (Codec.parse("blosc2:zlib"), 8, (Filter(32026, (1, 0, 8, 4800, 5, 1, 4)),)),
        (Codec.parse("bitshuffle"), 4, (Filter(32008, (65536, 2)),)),
        (Codec.parse("bitshuffle:zstd", 7), 12, (Filter(32008, (21840, 3, 7)),)),
    ],
)
def test_filters_in_pipeline_order(codec: Codec, itemsize: int, expected: tuple[Filter, ...]) -> None:
    assert codec.filters(itemsize, 4800) == expected


@pytest.mark.parametrize("name", ["bzip2", "fcidecomp", "htj2k", "sperr", "sz", "sz3", "zfp"])
def test_filters_that_hdf5plugin_makes(name: str) -> None:
    codec = Codec.parse(name)
    assert not codec.direct
    with pytest.raises(ConfigError, match=f"'{name}' gets its filter from hdf5plugin"):
        codec.filters(4, 4096)
    with pytest.raises(ConfigError, match="has no encoder"):
        codec.encoder(4, 4096)


def test_lzf_goes_through_hdf5() -> None:
    assert not Codec.parse("lzf").direct
    with pytest.raises(ConfigError, match="has no encoder"):
        Codec.parse("lzf").encoder(4, 4096)


def test_none_needs_no_encoder() -> None:
    assert Codec.parse("none").direct
    assert Codec.parse("none").encoder(4, 4096) is None


@pytest.mark.parametrize(("itemsize", "chunk_nbytes"), [(8, 100), (0, 100), (4, 0)])
def test_a_chunk_is_whole_elements(itemsize: int, chunk_nbytes: int) -> None:
    with pytest.raises(ValueError, match="no whole number of elements"):
        Codec.parse("gzip").encoder(itemsize, chunk_nbytes)


def test_describing_a_codec_loads_no_compression_library() -> None:
    code = (
        "import sys; from shmstore.codec import Codec; Codec.parse('blosc').filters(2, 4);"
        "heavy = {'h5py', 'hdf5plugin', 'blosc2', 'numcodecs', 'isal', 'zlib_ng'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
