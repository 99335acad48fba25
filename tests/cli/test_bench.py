"""The command ``bench``, really run, on next to nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from commandline import TIMEOUT_S, environment, running, shmstore

from shmstore.bench.cases import CASES

PNG = b"\x89PNG"


def bench(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return shmstore("bench", *arguments, cwd=folder)


def only_error(result: subprocess.CompletedProcess[str]) -> str:
    (line,) = result.stderr.splitlines()
    assert line.startswith("shmstore: error: ")
    return line


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the report of a smoke run of a user's data, with peers."""
    folder = tmp_path_factory.mktemp("bench")
    table = pa.table({"<energy>": [1.5, 2.5, 3.5] * 1000, "channel": list(range(3000))})
    pa.parquet.write_table(table, folder / "run & more.parquet")
    result = bench(
        folder,
        *("--data", "run & more.parquet", "--codec", "zstd", "--codec", "none", "--producers", "2"),
        *(
            "--set",
            "ring_bytes=1MiB",
            "--smoke",
            "--output",
            "files",
            "--report",
            "report",
            "--json",
            "A.json",
        ),
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    (folder / "stdout").write_text(result.stdout)
    return folder


def test_tables_tell_of_each_case_and_of_all(measured: Path) -> None:
    said = (measured / "stdout").read_text()
    for words in ("run & more/zstd", "run & more/none", "h5py behind a queue", "machine limit", "all cases"):
        assert words in said
    assert "the figures mean nothing" in said
    assert said.splitlines()[-1] == "report/bench.html"
    assert not list((measured / "files").iterdir())


def test_the_document(measured: Path) -> None:
    found = json.loads((measured / "A.json").read_text())
    assert found == json.loads((measured / "report" / "bench.json").read_text())
    assert found["smoke"] is True
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["packages"]["h5py"]
    assert [case["name"] for case in found["cases"]] == ["run & more/zstd", "run & more/none"]
    for case in found["cases"]:
        assert case["settings"] == {"ring_bytes": 1 << 20}
        assert case["producers"] == 2
        assert len(case["runs"]) == 14 if case["codec"] != "none" else 12
        assert case["runs"][0]["writer_peak_bytes"] > 0
        assert set(case["runs"][0]["phases_s"]) >= {"put_s", "ring_wait_s", "close_s"}


class Page(HTMLParser):
    """Takes note of what a page refers to, of its text, and of tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in {"href", "src", "xlink:href"}]
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in {"href", "src", "xlink:href"}]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_needs_nothing_besides_itself(measured: Path) -> None:
    text = (measured / "report" / "bench.html").read_text()
    page = Page(text)
    assert page.open == []
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"url\((?!#)|@import|<script", text)
    assert text.count("<svg") == 3
    said = "".join(page.words)
    for words in ("run & more/zstd", "h5py direct chunks", "writer's peak memory", "figures mean nothing"):
        assert words in said


def test_the_pictures(measured: Path) -> None:
    pictures = sorted((measured / "report").glob("*.png"))
    names = [path.name for path in pictures]
    assert names[0] == "overview.png"
    assert [name.startswith("run-more-") for name in names[1:]] == [True, True]
    for path in pictures:
        data = path.read_bytes()
        assert data.startswith(PNG)
        assert len(data) > 10_000


# -- compare -------------------------------------------------------------------------------------------------


def slower(measured: Path, by: float) -> Path:
    found = json.loads((measured / "A.json").read_text())
    found["cases"][1]["runs"][0]["mb_per_s"] *= by
    path = measured / f"{by}.json"
    path.write_text(json.dumps(found))
    return path


def test_compare_with_itself(measured: Path) -> None:
    result = bench(measured, "compare", "A.json", "A.json")
    assert result.returncode == 0
    assert "1.000" in result.stdout
    assert result.stderr.count("smoke run") == 2


def test_compare_fails_on_a_regression(measured: Path) -> None:
    result = bench(measured, "compare", "A.json", slower(measured, 0.8), "--json")
    assert result.returncode == 1
    found = json.loads(result.stdout)
    assert [name.startswith("run & more/none on ") for name in found["regressions"]] == [True]
    assert found["cases"][1]["rate"] == pytest.approx(0.8)
    assert "run & more/none on " in result.stderr
    lenient = bench(measured, "compare", "A.json", slower(measured, 0.8), "--fail-below", "0.75")
    assert lenient.returncode == 0
    assert lenient.stdout.count("0.800") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", "A.json"),
        ("compare", "A.json", "none.json"),
        ("compare", "A.json", "report/bench.html"),
        ("compare", "A.json", "A.json", "--fail-below", "-1"),
        ("compare", "A.json", "A.json", "--fail-below", "nan"),
    ],
    ids=" ".join,
)
def test_a_wrong_comparison(measured: Path, arguments: tuple[str, ...]) -> None:
    result = bench(measured, *arguments)
    assert result.returncode == 2
    assert only_error(result)
    assert result.stdout == ""


# -- calls ---------------------------------------------------------------------------------------------------


def test_list(tmp_path: Path) -> None:
    result = bench(tmp_path, "--list")
    assert result.returncode == 0
    assert all(case.name in result.stdout for case in CASES)
    some = bench(tmp_path, "--list", "-k", "wide/*", "--json")
    assert [case["name"] for case in json.loads(some.stdout)] == ["wide/zstd", "wide/none"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-k", "nonsense"),
        ("--rounds", "0"),
        ("--producers", "2"),
        ("--codec", "gzip"),
        ("--data", "none.parquet"),
        ("--set", "nonsense=1", "--list"),
        ("--nonsense",),
    ],
    ids=" ".join,
)
def test_a_wrong_call(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = bench(tmp_path, *arguments)
    assert result.returncode == 2
    assert only_error(result)
    assert result.stdout == ""


def test_a_codec_that_is_none_is_refused_before_anything_runs(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"a": [1, 2]}), tmp_path / "a.parquet")
    result = bench(tmp_path, "--data", "a.parquet", "--codec", "gzipp", "--smoke")
    assert result.returncode == 2
    assert "did you mean 'gzip'?" in only_error(result)


def test_an_output_that_cannot_be_written_to_is_the_environment_s_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = bench(tmp_path, "-k", "adc/none", "--smoke", "--no-peers", "--output", "file/below")
    assert result.returncode == 3
    assert "--output" in only_error(result)


def without(package: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as if a package were not installed."""
    script = f"""
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == {package!r} else found(name, package)
from shmstore.cli import main
sys.exit(main(sys.argv[1:]))
"""
    return subprocess.run(
        [sys.executable, "-c", script, "bench", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=environment(),
    )


@pytest.mark.parametrize("package", ["tables", "zarr", "matplotlib", "psutil"])
def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, package: str) -> None:
    result = without(package, "-k", "adc/none", "--smoke", "--report", "report", folder=tmp_path)
    assert result.returncode == 3
    error = only_error(result)
    assert package in error
    assert "pip install 'shmstore[bench]'" in error
    assert not (tmp_path / "report").exists()


def test_peers_can_be_left_out_where_they_are_not_installed(tmp_path: Path) -> None:
    result = without(
        "zarr", *("-k", "adc/none", "--smoke", "--no-peers", "--output", "files", "--json"), folder=tmp_path
    )
    assert result.returncode == 0, result.stderr
    (case,) = json.loads(result.stdout)["cases"]
    labels = ["shmstore", "machine limit", "memcpy", "pwrite", "pwrite, handed over"]
    assert [run["label"] for run in case["runs"]] == labels


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    arguments = ("bench", "-k", "times/*", "--no-peers", "--smoke", "--output", "files", "--json", "A.json")
    with running(*arguments, cwd=tmp_path) as process:
        for line in process.stdout:
            if line.strip() == "50%  times/gzip":
                os.killpg(process.pid, signal.SIGINT)  # to all of them, as a terminal does
                break
        _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert errors == "shmstore: error: interrupted: 1 of 2 cases were measured\n"
    found = json.loads((tmp_path / "A.json").read_text())
    assert [case["name"] for case in found["cases"]] == ["times/zstd"]
    assert not list((tmp_path / "files").iterdir())
