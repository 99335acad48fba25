"""The control service: accepts connections on the writer's socket, puts requests together, sends answers.

It runs inside the writer's loop and never blocks it on a peer that is slow to speak. What requests mean is
the writer's business.
"""

from __future__ import annotations

import logging
import selectors
import socket
from collections.abc import Callable
from typing import NamedTuple

from shmstore.control import FrameReader, Message, frame
from shmstore.errors import BrokenError

log = logging.getLogger("shmstore.writer")

#: Longest time that one answer may take to leave: a peer that does not read is dropped, not waited for.
_SEND_TIMEOUT_S = 1.0


class Peer(NamedTuple):
    """One control connection."""

    socket: socket.socket
    frames: FrameReader


class ControlService:
    """The writer's side of all control connections.

    Parameters
    ----------
    listener
        The control socket, listening and non-blocking.
    selector
        The loop's selector; its events carry a callable as data.
    serve
        Called with each request and its peer.
    """

    def __init__(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        serve: Callable[[Peer, Message], None],
    ) -> None:
        self._listener = listener
        self._selector = selector
        self._serve = serve
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def reply(self, peer: Peer, message: Message) -> None:
        """Send an answer; a peer that has gone, or does not read, is dropped."""
        try:
            peer.socket.sendall(frame(message))
        except OSError as error:
            log.warning("an answer found nobody: %s", error)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        connection.settimeout(_SEND_TIMEOUT_S)
        peer = Peer(connection, FrameReader())
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._hear(peer))

    def _hear(self, peer: Peer) -> None:
        try:
            data = peer.socket.recv(1 << 16, socket.MSG_DONTWAIT)
            messages = peer.frames.feed(data) if data else []
        except BlockingIOError:
            return
        except (OSError, BrokenError) as error:
            log.warning("control connection dropped: %s", error)
            data, messages = b"", []
        if not data:
            self._selector.unregister(peer.socket)
            peer.socket.close()
        for message in messages:
            self._serve(peer, message)
