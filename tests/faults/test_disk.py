"""The shim: what it records, counts and breaks, in programs that call the kernel and in a real recording."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from faults.disk import OPS, Call, Shim, Trace, counted
from faults.images import replay
from faults.recording import record
from processes.programs import environment

TIMEOUT_S = 60
RECORD = 512

# Every way in which Python changes a file.
EVERYTHING = """
import os, shutil, sys
os.chdir(sys.argv[1])
a = os.open("a", os.O_RDWR | os.O_CREAT)
os.write(a, b"0123456789" * 300)
os.pwrite(a, b"pwrite", 5000)
os.lseek(a, 7, os.SEEK_SET)
os.writev(a, [b"one", b"", b"two"])
os.pwritev(a, [b"three", b"four"], 9000)
os.fsync(a)
os.ftruncate(a, 8000)
os.posix_fallocate(a, 7000, 3000)
os.fdatasync(a)
os.mkdir("folder")
log = os.open("folder/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for line in range(5):
    os.write(log, b"line %d\\n" % line)
os.pwrite(log, b"appended all the same\\n", 0)
os.rename("a", "folder/b")
os.write(a, b"after the rename")
os.truncate("folder/b", 9500)
with open("text", "w") as file:
    file.write("abc")
with open("text", "a") as file:
    file.write("def")
with open("gone", "wb") as file:
    file.write(b"x")
    os.unlink("gone")
    file.write(b"y")
with open("short", "wb") as file:
    file.write(b"x" * 100)
with open("short", "wb") as file:
    file.write(b"y")
shutil.copyfile("folder/b", "copy")
os.replace("text", "short")
os.makedirs("tree/inner")
open("tree/inner/leaf", "x").close()
shutil.rmtree("tree")
folder = os.open("folder", os.O_RDONLY)
os.fsync(folder)
os.mkdir("moved")
os.rename("folder/log", "moved/log", src_dir_fd=None)
os.rename("moved", "elsewhere")
os.write(log, b"the last line\\n")
"""

# 512 bytes at a time, and what became of it.
SEVERAL = """
import os, sys
fd = os.open(sys.argv[1] + "/file", os.O_RDWR | os.O_CREAT)
for number in range(10):
    try:
        print(number, os.pwrite(fd, bytes([65 + number]) * 512, number * 512), flush=True)
    except OSError as error:
        print(number, os.strerror(error.errno), flush=True)
"""


@pytest.fixture
def under(tmp_path: Path) -> Path:
    folder = tmp_path / "under"
    folder.mkdir()
    return folder


def run(shim: Shim, text: str, under: Path, **given: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", "-c", text, str(under)],
        env=environment() | shim.env(under, **given),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def outcomes(result: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what `SEVERAL` says of each write."""
    assert not result.stderr
    return [line.partition(" ")[2] for line in result.stdout.splitlines()]


def content(folder: Path) -> dict[str, bytes | None]:
    """Return all files below a folder; of folders, that they are there."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


def check_replay(calls: list[Call], under: Path, folder: Path) -> None:
    folder.mkdir()
    replay(calls, folder)
    assert content(folder) == content(under)


def test_a_trace_replayed_is_what_is_on_the_disk(shim: Shim, under: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    result = run(shim, EVERYTHING, under, trace=trace)
    assert result.returncode == 0, result.stderr
    calls = Trace.read(trace)
    check_replay(calls, under, tmp_path / "again")
    assert {call.op for call in calls} == set(OPS) - {"any"}
    assert content(under)["elsewhere/log"] == b"".join(b"line %d\n" % line for line in range(5)) + (
        b"appended all the same\nthe last line\n"
    )


def test_records_say_what_was_called(shim: Shim, under: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    run(shim, EVERYTHING, under, trace=trace)
    calls = Trace.read(trace)
    assert len({call.pid for call in calls}) == 1
    assert [call.sequence for call in calls] == sorted({call.sequence for call in calls})
    first = calls[0]
    assert (first.op, first.path, first.created, first.sequence) == ("open", "a", True, 1)
    at = {call.op: call for call in reversed(calls)}
    assert (at["writev"].offset, at["writev"].data) == (7, b"onetwo")
    assert (at["pwrite"].offset, at["pwrite"].length, at["pwrite"].data) == (5000, 6, b"pwrite")
    assert (at["rename"].path, at["rename"].target) == ("a", "folder/b")
    assert at["ftruncate"].length == 8000
    assert at["fsync"].path == "a"
    assert next(call for call in calls if call.op == "write" and call.path == "folder/b")


def test_counts_are_those_of_the_trace(shim: Shim, under: Path, tmp_path: Path) -> None:
    trace, count = tmp_path / "trace", tmp_path / "count"
    run(shim, SEVERAL, under, trace=trace, count=count)
    found = counted(count)
    assert (found["any"], found["open"], found["pwrite"]) == (11, 1, 10)
    assert [call.sequence for call in Trace.read(trace)] == list(range(1, 12))
    run(shim, SEVERAL, under, count=count, only="/elsewhere")
    assert counted(count) == found
    run(shim, SEVERAL, under, count=count, only="fil")
    assert counted(count)["pwrite"] == 20


def test_files_elsewhere_are_left_alone(shim: Shim, under: Path, tmp_path: Path) -> None:
    (tmp_path / "under-not").mkdir()
    trace, count = tmp_path / "trace", tmp_path / "count"
    text = SEVERAL.replace("/file", "-not/file")
    result = run(shim, text, under, trace=trace, count=count, plan="any:1:EIO*inf")
    assert outcomes(result) == ["512"] * 10
    assert Trace.read(trace) == []
    assert counted(count)["any"] == 0


@pytest.mark.parametrize(
    ("plan", "broken"),
    [
        ("pwrite:3:EIO", {2: errno.EIO}),
        ("pwrite:3:ENOSPC*2", {2: errno.ENOSPC, 3: errno.ENOSPC}),
        ("pwrite:9:EROFS*inf", {8: errno.EROFS, 9: errno.EROFS}),
        ("any:3:EDQUOT", {1: errno.EDQUOT}),
        ("write:1:EIO", {}),
        ("pwrite:1:EIO,pwrite:10:5", {0: errno.EIO, 9: errno.EIO}),
    ],
)
def test_a_call_fails_as_planned(
    shim: Shim, under: Path, tmp_path: Path, plan: str, broken: dict[int, int]
) -> None:
    trace = tmp_path / "trace"
    found = outcomes(run(shim, SEVERAL, under, plan=plan, trace=trace))
    assert found == [os.strerror(broken[number]) if number in broken else "512" for number in range(10)]
    written = [call.offset // RECORD for call in Trace.read(trace) if call.op == "pwrite"]
    assert written == [number for number in range(10) if number not in broken]
    check_replay(Trace.read(trace), under, tmp_path / "again")


FAILING = {
    "fsync": "os.fsync(fd)",
    "fdatasync": "os.fdatasync(fd)",
    "ftruncate": "os.ftruncate(fd, 9)",
    "fallocate": "os.posix_fallocate(fd, 0, 9)",
    "open": "os.open('new', os.O_CREAT | os.O_WRONLY)",
    "unlink": "os.unlink('file')",
    "rename": "os.rename('file', 'new')",
    "mkdir": "os.mkdir('new')",
    "rmdir": "os.rmdir('empty')",
    "write": "os.write(fd, b'x')",
    "writev": "os.writev(fd, [b'x'])",
    "pwritev": "os.pwritev(fd, [b'x'], 0)",
}


@pytest.mark.parametrize("op", FAILING)
def test_every_op_can_fail_and_then_does_nothing(shim: Shim, under: Path, tmp_path: Path, op: str) -> None:
    (under / "file").write_bytes(b"content")
    (under / "empty").mkdir()
    text = (
        "import errno, os, sys\nos.chdir(sys.argv[1])\n"
        "fd = os.open('file', os.O_RDWR)\n"
        f"try:\n    {FAILING[op]}\nexcept OSError as error:\n    print(errno.errorcode[error.errno])\n"
    )
    number = 2 if op == "open" else 1
    result = run(shim, text, under, plan=f"{op}:{number}:ESTALE", trace=tmp_path / "trace")
    assert (result.stdout, result.stderr) == ("ESTALE\n", "")
    assert content(under) == {"file": b"content", "empty": None}
    assert [call.op for call in Trace.read(tmp_path / "trace")] == ["open"]


def test_a_short_write_writes_so_much_and_says_so(shim: Shim, under: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    found = outcomes(run(shim, SEVERAL, under, plan="pwrite:4:short:100", trace=trace))
    assert found == ["512"] * 3 + ["100"] + ["512"] * 6
    assert (under / "file").read_bytes()[3 * RECORD : 4 * RECORD] == b"D" * 100 + bytes(412)
    check_replay(Trace.read(trace), under, tmp_path / "again")


@pytest.mark.parametrize(
    ("plan", "size"),
    [
        ("pwrite:5:kill", 4 * RECORD),
        ("pwrite:5:kill-after", 5 * RECORD),
        ("pwrite:5:kill-half", 4 * RECORD + RECORD // 2),
        ("any:5:kill", 3 * RECORD),
        ("any:1:kill", None),
        ("any:1:kill-after", 0),
    ],
)
def test_a_process_is_killed_at_the_call(
    shim: Shim, under: Path, tmp_path: Path, plan: str, size: int | None
) -> None:
    trace = tmp_path / "trace"
    result = run(shim, SEVERAL, under, plan=plan, trace=trace)
    assert result.returncode == -signal.SIGKILL
    sizes = {name: len(held or b"") for name, held in content(under).items()}
    assert sizes == ({} if size is None else {"file": size})
    check_replay(Trace.read(trace), under, tmp_path / "again")


def test_a_process_stops_before_the_call_and_goes_on_when_continued(shim: Shim, under: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-S", "-c", SEVERAL, str(under)],
        env=environment() | shim.env(under, plan="pwrite:4:stop"),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            assert (under / "file").stat().st_size == 3 * RECORD
            process.send_signal(signal.SIGCONT)
            out, _ = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    assert process.returncode == 0
    assert len(out.splitlines()) == 10
    assert (under / "file").stat().st_size == 10 * RECORD


def test_a_fault_for_once_spares_every_other_process(shim: Shim, under: Path, tmp_path: Path) -> None:
    once = tmp_path / "once"
    first = run(shim, SEVERAL, under, plan="pwrite:5:kill", once=once)
    assert first.returncode == -signal.SIGKILL
    assert once.exists()
    assert outcomes(run(shim, SEVERAL, under, plan="pwrite:5:kill", once=once)) == ["512"] * 10


def test_a_fault_for_once_lasts_in_its_own_process(shim: Shim, under: Path, tmp_path: Path) -> None:
    found = outcomes(run(shim, SEVERAL, under, plan="pwrite:4:EIO*3", once=tmp_path / "once"))
    assert found.count("512") == 7


def test_a_forked_process_counts_from_one(shim: Shim, under: Path) -> None:
    text = "import os\nif os.fork():\n    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))\n" + SEVERAL
    text = SEVERAL.replace("range(10)", "range(3)") + text
    found = outcomes(run(shim, text, under, plan="pwrite:3:EIO"))
    assert found[:6] == ["512", "512", os.strerror(errno.EIO)] * 2


def test_a_fault_ends_when_its_cause_is_gone(shim: Shim, under: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.touch()
    text = SEVERAL.replace("    try:", f"    if number == 6: os.unlink({str(full)!r})\n    try:")
    found = outcomes(run(shim, text, under, plan="pwrite:3:ENOSPC*inf", holds_while=full))
    assert found == ["512"] * 2 + [os.strerror(errno.ENOSPC)] * 4 + ["512"] * 4


# Names of the C library that a program may have been linked against, whichever Python itself uses.
VARIANTS = """
import ctypes, os, sys
os.chdir(sys.argv[1])
libc = ctypes.CDLL(None)
class Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("bytes", ctypes.c_size_t)]
parts = (Part * 2)(Part(b"one", 3), Part(b"two", 3))
long = ctypes.c_long
fds = []
for number, name in enumerate(["open", "open64", "creat", "creat64"]):
    arguments = (0o600,) if "creat" in name else (os.O_CREAT | os.O_RDWR, 0o600)
    fds.append(getattr(libc, name)(name.encode(), *arguments))
for name in ("openat", "openat64"):
    fds.append(getattr(libc, name)(-100, name.encode(), os.O_CREAT | os.O_RDWR, 0o600))
fds += [getattr(libc, name)(b"open", os.O_RDWR) for name in ("__open_2", "__open64_2")]
fds += [getattr(libc, name)(-100, b"open", os.O_RDWR) for name in ("__openat_2", "__openat64_2")]
assert min(fds) >= 0
fd = fds[0]
for number, name in enumerate(["pwrite", "pwrite64"]):
    assert getattr(libc, name)(fd, b"12345678", 8, long(number * 8)) == 8
for number, name in enumerate(["pwritev", "pwritev64", "pwritev2", "pwritev64v2"]):
    assert getattr(libc, name)(fd, parts, 2, long(100 + number * 8), 0) == 6
for number, name in enumerate(["ftruncate", "ftruncate64"]):
    assert getattr(libc, name)(fds[number], long(4000 - number)) == 0
for number, name in enumerate(["truncate", "truncate64"]):
    assert getattr(libc, name)(b"creat", long(3000 - number)) == 0
for number, name in enumerate(["posix_fallocate", "posix_fallocate64"]):
    assert getattr(libc, name)(fds[4], long(0), long(1000 + number)) == 0
for number, name in enumerate(["fallocate", "fallocate64"]):
    assert getattr(libc, name)(fds[5], 0, long(0), long(2000 + number)) == 0
assert libc.renameat(-100, b"open64", -100, b"renamed") == 0
assert libc.renameat2(-100, b"renamed", -100, b"again", 1) == 0
assert libc.remove(b"again") == 0
assert libc.mkdirat(-100, b"folder", 0o700) == 0
assert libc.remove(b"folder") == 0
"""


def test_every_variant_of_a_call_is_seen(shim: Shim, under: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    result = run(shim, VARIANTS, under, trace=trace)
    assert result.returncode == 0, result.stderr
    calls = Trace.read(trace)
    check_replay(calls, under, tmp_path / "again")
    times = {"open": 10, "pwrite": 2, "pwritev": 4, "ftruncate": 4, "fallocate": 4, "rename": 2}
    assert Counter(call.op for call in calls) == times | {"unlink": 1, "mkdir": 1, "rmdir": 1}


@pytest.mark.parametrize(
    "change",
    [
        "import mmap; fd = os.open('file', os.O_RDWR); mmap.mmap(fd, 4)",
        "os.link('file', 'other')",
        "os.symlink('file', 'other')",
        "os.rename('file', '../other')",
        "import ctypes; sys.exit(ctypes.CDLL(None).fopen(b'file', b'r+') or 'Errno 95')",
    ],
)
def test_what_would_change_a_file_unseen_is_refused(shim: Shim, under: Path, change: str) -> None:
    (under / "file").write_bytes(b"content")
    result = run(shim, f"import os, sys\nos.chdir(sys.argv[1])\n{change}\n", under)
    assert result.returncode == 1
    assert "refused, since it would go unseen" in result.stderr
    assert "Errno 95" in result.stderr


def test_a_plan_that_cannot_be_read_ends_the_process(shim: Shim, under: Path) -> None:
    for plan in ("pwrite", "put:1:EIO", "pwrite:0:EIO", "pwrite:1:EWHAT", "pwrite:1:short"):
        assert run(shim, "", under, plan=plan).returncode == 86


def test_threads_are_recorded_in_the_order_of_their_calls(shim: Shim, under: Path, tmp_path: Path) -> None:
    text = """
import os, sys, threading
fd = os.open(sys.argv[1] + "/file", os.O_RDWR | os.O_CREAT)
def write(number):
    for turn in range(200):
        os.pwrite(fd, bytes([number, turn % 256]) * 3000, 0)
threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    trace = tmp_path / "trace"
    assert run(shim, text, under, trace=trace).returncode == 0
    calls = Trace.read(trace)
    assert [call.sequence for call in calls] == list(range(1, 802))
    check_replay(calls, under, tmp_path / "again")


def test_a_record_torn_by_a_kill_is_left_out(shim: Shim, under: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    run(shim, SEVERAL, under, trace=trace)
    whole, data = Trace.read(trace), trace.read_bytes()
    for size in (len(data) - 1, len(data) - 512, len(data) - 530, len(data) - 560):
        trace.write_bytes(data[:size])
        assert Trace.read(trace) == whole[:-1]
        Trace.mark(trace, b"here")
        assert Trace.read(trace) == [*whole[:-1], Call("mark", "", pid=os.getpid(), data=b"here")]


# -- a real recording ------------------------------------------------------------------------------------


def test_every_byte_of_a_recording_passes_through_the_shim(shim: Shim, under: Path, tmp_path: Path) -> None:
    trace, count = tmp_path / "trace", tmp_path / "count"
    result = record(under, shim.env(under, trace=trace, count=count))
    assert (result.returncode, result.stderr) == (0, "")
    calls = Trace.read(trace)
    check_replay(calls, under, tmp_path / "again")
    assert (under / "daq.h5").stat().st_size > 2**20
    found = counted(count)
    assert sum(call.op == "pwrite" for call in calls) == found["pwrite"] > 100
    assert found["fdatasync"] + found["fsync"] >= 6


@pytest.mark.parametrize("number", [1, 50, 120])
def test_a_recording_whose_writer_is_killed_is_what_was_traced(
    shim: Shim, under: Path, tmp_path: Path, number: int
) -> None:
    trace, once = tmp_path / "trace", tmp_path / "once"
    record(under, shim.env(under, trace=trace, plan=f"pwrite:{number}:kill-half", once=once))
    assert once.exists()
    check_replay(Trace.read(trace), under, tmp_path / "again")
