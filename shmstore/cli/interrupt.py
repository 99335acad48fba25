"""Ctrl-C and SIGTERM as a wish: the recording ends, and is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupt:
    """A context in which the first signal only sets a flag; a second one raises `KeyboardInterrupt`.

    Outside the main thread, where Python takes no signals, it does nothing.

    Attributes
    ----------
    signal_name : str or None
        Which signal came: ``"SIGINT"`` for Ctrl-C.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():
            # What was ignored when we were started (nohup) stays ignored.
            taken = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._take) for number in taken}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, before in self._before.items():
            signal.signal(number, before)

    def asked(self) -> bool:
        """Whether to stop."""
        return self.signal_name is not None

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name is not None:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
