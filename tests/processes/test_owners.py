"""Who may own a recording, and how producers get to other processes: in programs as users write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes.ledger import check_instrument
from processes.programs import run_python, run_script
from processes.rows import sizes

import shmstore

BATCHES = 12
PROCESSES = 2

WORK = f"""
import multiprocessing, sys, threading
import shmstore
from processes.rows import SCHEMA, batch, sizes

def work(producer, number):
    for sequence, rows in enumerate(sizes(number, 0, {BATCHES}, 50)):
        producer.put(batch(number, sequence, int(rows)))
    producer.close()
    return number
"""

NO_GUARD = """
with shmstore.HDF5Storage(output_dir=".", ring_bytes="1MiB") as storage:
    work(storage.producer("x", SCHEMA), 0)
print(storage.path)
"""

CHILDREN = f"""
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with shmstore.HDF5Storage(output_dir=".", ring_bytes="1MiB") as storage:
        children = [
            context.Process(target=work, args=(storage.producer("x", SCHEMA), number))
            for number in range({PROCESSES})
        ]
        for child in children:
            child.start()
        for child in children:
            child.join()
    assert [child.exitcode for child in children] == [0] * {PROCESSES}
    print(storage.path)
"""

NO_GUARD_CHILDREN = CHILDREN.replace('if __name__ == "__main__":', "if True:")

POOL = f"""
if __name__ == "__main__":
    with shmstore.HDF5Storage(output_dir=".", ring_bytes="1MiB") as storage:
        with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
            jobs = [(storage.producer("x", SCHEMA), number) for number in range({PROCESSES})]
            assert pool.starmap(work, jobs) == list(range({PROCESSES}))
            pool.close()
            pool.join()
    print(storage.path)
"""

QUEUE = f"""
def take(queue):
    while (job := queue.get()) is not None:
        work(*job)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with shmstore.HDF5Storage(output_dir=".", ring_bytes="1MiB") as storage:
        queue = context.SimpleQueue()
        child = context.Process(target=take, args=(queue,))
        child.start()
        for number in range({PROCESSES}):
            queue.put((storage.producer("x", SCHEMA), number))
        queue.put(None)
        child.join()
    assert child.exitcode == 0
    print(storage.path)
"""

#: The owner is a child itself; a daemon may have no `multiprocessing` children of its own.
DAEMON = f"""
def own(line):
    with shmstore.HDF5Storage(output_dir=".", ring_bytes="1MiB") as storage:
        for number in range({PROCESSES}):
            work(storage.producer("x", SCHEMA), number)
    line.send(str(storage.path))

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    line, other = context.Pipe()
    child = context.Process(target=own, args=(other,), daemon=True)
    child.start()
    assert line.poll(60)
    print(line.recv())
    child.join()
    assert child.exitcode == 0
"""

THREAD = f"""
paths = []

def own():
    with shmstore.HDF5Storage(output_dir=".", ring_bytes="1MiB") as storage:
        threads = [
            threading.Thread(target=work, args=(storage.producer("x", SCHEMA), number))
            for number in range({PROCESSES})
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    paths.append(storage.path)

owner = threading.Thread(target=own)
owner.start()
owner.join()
print(*paths)
"""

#: What a notebook does: each cell is compiled and run by itself, in a main module that has no file.
CELLS = """
import sys
del sys.modules["__main__"].__file__
names = {"__name__": "__main__"}
for number, cell in enumerate(CELLS):
    exec(compile(cell, f"<ipython-input-{number}>", "exec"), names)
"""


def check(printed: str, folder: Path, producers: int = PROCESSES) -> None:
    """Check that the file whose path was printed last is complete and holds what all of them put."""
    path = Path(printed.strip().splitlines()[-1])
    assert path.parent == folder
    with shmstore.open(path) as recording:
        assert recording.state == "complete"
        check_instrument(
            recording["x"], {number: sizes(number, 0, BATCHES, 50) for number in range(producers)}
        )


def test_a_plain_script_without_a_guard(output_dir: Path) -> None:
    check(run_script(WORK + NO_GUARD, output_dir), output_dir, 1)


def test_a_plain_script_without_a_guard_whose_children_are_forked(output_dir: Path) -> None:
    check(run_script(WORK + NO_GUARD_CHILDREN, output_dir, "fork"), output_dir)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_producers_go_to_children(output_dir: Path, method: str) -> None:
    check(run_script(WORK + CHILDREN, output_dir, method), output_dir)


@pytest.mark.parametrize("method", ["forkserver"])
def test_producers_go_to_a_pool(output_dir: Path, method: str) -> None:
    check(run_script(WORK + POOL, output_dir, method), output_dir)


@pytest.mark.parametrize("method", ["spawn"])
def test_producers_go_through_a_queue(output_dir: Path, method: str) -> None:
    check(run_script(WORK + QUEUE, output_dir, method), output_dir)


@pytest.mark.parametrize("method", ["fork"])
def test_a_daemon_child_owns(output_dir: Path, method: str) -> None:
    check(run_script(WORK + DAEMON, output_dir, method), output_dir)


def test_a_thread_owns(output_dir: Path) -> None:
    check(run_script(WORK + THREAD, output_dir), output_dir)


@pytest.mark.parametrize("arguments", [["-i", "-q"], ["-"]], ids=["interactive", "piped"])
def test_a_program_on_standard_input_owns(output_dir: Path, arguments: list[str]) -> None:
    text = WORK + NO_GUARD
    if "-i" in arguments:  # a blank line ends a block there
        text = text.replace("def work", "\ndef work").replace("return number\n", "return number\n\n")
        text = text.replace("number), 0)\n", "number), 0)\n\n").replace("SCHEMA), 0)\n", "SCHEMA), 0)\n\n")
    check(run_python(arguments, output_dir, stdin=text), output_dir, 1)


def test_a_program_given_as_an_argument_owns(output_dir: Path) -> None:
    check(run_python(["-c", WORK + NO_GUARD], output_dir), output_dir, 1)


def test_a_notebook_owns(output_dir: Path) -> None:
    cells = [
        WORK,
        "storage = shmstore.HDF5Storage(output_dir='.', ring_bytes='1MiB')",
        "storage.start()",
        "work(storage.producer('x', SCHEMA), 0)",
        "storage.close()",
        "print(storage.path)",
    ]
    check(run_script(f"CELLS = {cells!r}\n{CELLS}", output_dir), output_dir, 1)


def test_a_stray_module_beside_the_data_is_not_imported(output_dir: Path) -> None:
    (output_dir / "data").mkdir()
    (output_dir / "data" / "json.py").write_text("raise ImportError('a stray module was imported')")
    text = WORK + "import os; os.chdir('data')\n" + NO_GUARD
    check(run_script(text, output_dir), output_dir / "data", 1)
