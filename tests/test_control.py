"""Requests and answers over a real local socket: whole, in order, and no answer waited for in vain."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmstore import errors
from shmstore.control import (
    MAX_FRAME_BYTES,
    ControlConnection,
    FrameReader,
    Message,
    error_reply,
    frame,
    raise_error,
)
from shmstore.errors import BrokenError, ClosedError, InvalidValueError, StorageError

LENGTH = struct.Struct("<I")
Answer = Callable[[socket.socket, Message], None]
MESSAGES: list[Message] = [{"operation": "flush"}, {"a": "ü\0", "b": [1, None, {"c": 0.5}]}, {}]


class Writer:
    """The other end: answers each request as told, on a thread of its own."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path = path
        self.heard: list[Message] = []
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        reader = FrameReader()
        with peer:
            while data := peer.recv(1 << 16):
                for message in reader.feed(data):
                    self.heard.append(message)
                    self._answer(peer, message)

    def close(self) -> None:
        self._thread.join(60)
        self._listener.close()


@pytest.fixture
def serve(shared_folder: Path) -> Iterator[Callable[[Answer], ControlConnection]]:
    opened: list[tuple[ControlConnection, Writer]] = []

    def start(answer: Answer) -> ControlConnection:
        writer = Writer(shared_folder / "control", answer)
        opened.append((ControlConnection(writer.path), writer))
        return opened[-1][0]

    yield start
    for connection, writer in opened:
        connection.close()
        writer.close()


# -- frames ----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 60), max_size=20))
def test_messages_come_whole_however_they_are_cut(cuts: list[int]) -> None:
    data = b"".join(frame(message) for message in MESSAGES)
    reader = FrameReader()
    found = []
    start = 0
    for cut in cuts:
        found += reader.feed(data[start : start + cut])
        start += cut
    assert found + reader.feed(data[start:]) == MESSAGES


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"nonsense", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"", "no JSON"),
        (b"[1, 2]", "no JSON object"),
        (b"null", "no JSON object"),
        (b"[" * 200_000, "no JSON"),
        (b'{"a": ' * 200_000, "no JSON"),
    ],
)
def test_what_is_no_message_is_refused(payload: bytes, complaint: str) -> None:
    with pytest.raises(BrokenError, match=complaint):
        FrameReader().feed(LENGTH.pack(len(payload)) + payload)


def test_an_oversized_frame_is_refused_before_it_comes() -> None:
    with pytest.raises(BrokenError, match="no shmstore"):
        FrameReader().feed(LENGTH.pack(MAX_FRAME_BYTES + 1))
    assert FrameReader().feed(LENGTH.pack(MAX_FRAME_BYTES)) == []


def test_an_oversized_request_is_refused_by_its_sender() -> None:
    with pytest.raises(InvalidValueError, match="make it smaller"):
        frame({"value": "x" * MAX_FRAME_BYTES})


# -- errors ----------------------------------------------------------------------------------------------


KINDS = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_arrives_as_it_was_raised(kind: type[Exception]) -> None:
    original = kind(28, "cannot write", "/data/x") if kind is StorageError else kind("what to do")
    reply = json.loads(json.dumps(error_reply(original)))
    with pytest.raises(kind) as caught:
        raise_error(reply["error"], reply["message"], reply["errno"], reply["filename"])
    assert type(caught.value) is kind
    assert str(caught.value) == str(original)
    assert getattr(caught.value, "errno", None) == getattr(original, "errno", None)
    assert getattr(caught.value, "filename", None) == getattr(original, "filename", None)


def test_a_failure_of_python_arrives_as_broken_with_its_name() -> None:
    assert error_reply(ZeroDivisionError("by zero"))["message"] == "ZeroDivisionError: by zero"
    assert error_reply(ZeroDivisionError("by zero"))["error"] == "BrokenError"


@pytest.mark.parametrize("kind", ["SystemExit", "storage_error", "errno", "annotations", "", "__name__"])
def test_a_strange_kind_of_error_is_broken(kind: str) -> None:
    with pytest.raises(BrokenError, match="why"):
        raise_error(kind, "why")


# -- requests --------------------------------------------------------------------------------------------


def test_a_request_gets_its_answer(serve: Callable[[Answer], ControlConnection]) -> None:
    connection = serve(lambda peer, message: peer.sendall(frame({"echo": message})))
    for number in range(3):
        reply = connection.request("stats", number=number, text="ü" * 100_000)
        assert reply == {"echo": {"operation": "stats", "number": number, "text": "ü" * 100_000}}


def test_requests_of_several_threads_take_turns(serve: Callable[[Answer], ControlConnection]) -> None:
    connection = serve(lambda peer, message: peer.sendall(frame({"number": message["number"]})))
    wrong: list[Any] = []

    def ask(first: int) -> None:
        for number in range(first, first + 50):
            if connection.request("stats", number=number) != {"number": number}:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(start,)) for start in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_an_error_in_the_answer_is_raised(serve: Callable[[Answer], ControlConnection]) -> None:
    connection = serve(lambda peer, _: peer.sendall(frame(error_reply(ClosedError("it has ended")))))
    with pytest.raises(ClosedError, match="it has ended"):
        connection.request("flush")


def test_an_answer_in_pieces_is_waited_for(serve: Callable[[Answer], ControlConnection]) -> None:
    def drip(peer: socket.socket, message: Message) -> None:
        for octet in frame({"ok": 1}):
            peer.sendall(bytes([octet]))

    assert serve(drip).request("stats") == {"ok": 1}


def test_no_answer_within_the_timeout_ends_the_connection(
    serve: Callable[[Answer], ControlConnection],
) -> None:
    """A late answer must not be taken for that of the next request."""
    connection = serve(lambda peer, message: None)
    with pytest.raises(TimeoutError, match=r"'flush' within 0.05 s"):
        connection.request("flush", timeout_s=0.05)
    with pytest.raises(BrokenError):
        connection.request("stats")


def test_pieces_that_keep_coming_do_not_extend_the_timeout(
    serve: Callable[[Answer], ControlConnection],
) -> None:
    """Each piece comes in time, the whole never does."""
    stop = threading.Event()

    def drip(peer: socket.socket, message: Message) -> None:
        peer.sendall(LENGTH.pack(1000))
        while not stop.wait(0.01):
            peer.sendall(b" ")

    connection = serve(drip)
    with pytest.raises(TimeoutError):
        connection.request("flush", timeout_s=0.2)
    stop.set()


def test_a_writer_that_goes_is_noticed_at_once(serve: Callable[[Answer], ControlConnection]) -> None:
    connection = serve(lambda peer, _: peer.shutdown(socket.SHUT_RDWR))
    with pytest.raises(BrokenError, match=r"has gone .* before it answered 'flush'"):
        connection.request("flush", timeout_s=None)


def test_nobody_there_is_said(shared_folder: Path) -> None:
    with pytest.raises(StorageError, match="recording has ended"):
        ControlConnection(shared_folder / "control")


# -- requests that outlive a writer ----------------------------------------------------------------------


def listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def heard(peer: socket.socket) -> Message:
    frames = FrameReader()
    while not (messages := frames.feed(peer.recv(1 << 16))):
        pass
    return messages[0]


def test_a_request_is_sent_again_to_the_next_writer(shared_folder: Path) -> None:
    """The first writer goes after it heard it, the second before; the third answers."""
    requests: list[Message] = []

    def serve() -> None:
        for turn in range(3):
            peer, _ = listener.accept()
            with peer:
                if turn != 1:
                    requests.append(heard(peer))
                if turn == 2:
                    peer.sendall(frame({"turn": turn}))

    with listening(shared_folder / "control") as listener:
        writers = threading.Thread(target=serve)
        writers.start()
        connection = ControlConnection(shared_folder / "control", check=lambda: None)
        assert connection.request("declare", ring=3) == {"turn": 2}
        writers.join()
        connection.close()
    assert requests == [{"operation": "declare", "ring": 3}] * 2


def test_a_request_waits_for_a_writer_that_is_not_there_yet(shared_folder: Path) -> None:
    connection = ControlConnection(shared_folder / "control", check=lambda: None)
    with pytest.raises(TimeoutError, match=r"'stats' within 0.1 s"):
        connection.request("stats", timeout_s=0.1)
    with listening(shared_folder / "control") as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                heard(peer)
                peer.sendall(frame({"ok": 1}))

        writer = threading.Thread(target=serve)
        writer.start()
        assert connection.request("stats") == {"ok": 1}
        writer.join()
    connection.close()


@pytest.mark.parametrize("listens", [True, False])
def test_a_request_ends_when_nobody_will_ever_answer(shared_folder: Path, listens: bool) -> None:
    """Also when a listener that nobody serves, such as a forked child's, takes the connection."""
    looks = iter(range(3))

    def check() -> None:
        if next(looks, None) is None:
            raise StorageError(5, "the disk is gone")

    with contextlib.ExitStack() as stack:
        if listens:
            stack.enter_context(listening(shared_folder / "control"))
        connection = ControlConnection(shared_folder / "control", check=check)
        with pytest.raises(StorageError, match="the disk is gone"):
            connection.request("flush", timeout_s=None)
        connection.close()
