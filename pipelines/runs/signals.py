"""Stopping a run on SIGINT or SIGTERM, after it has saved."""

import signal
import threading
from types import FrameType
from typing import Any


class StoppedError(Exception):
    """A signal has stopped a run. Everything is saved, and the run can be resumed."""

    def __init__(self, received: int, step: int, steps: int):
        super().__init__(f"stopped at step {step:,} of {steps:,}, and saved: --resume continues from there")
        self.received = received


class StopSignals:
    """A context in which the first SIGINT or SIGTERM is recorded in `received`; the second acts as it does outside.

    A signal that is ignored outside stays ignored: a shell starts the background jobs of a script so, and a Ctrl+C that
    is meant for another program then reaches them too. It does nothing in other threads than the main one, because
    Python delivers no signals there.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        self.__exit__()
