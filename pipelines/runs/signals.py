"""Stopping a run in an orderly way on SIGINT or SIGTERM."""

import signal
import threading
from types import FrameType
from typing import Any


class StoppedError(Exception):
    """A run was asked to stop by a signal and did so in order: everything is saved and it can be resumed."""

    def __init__(self, received: int, step: int, steps: int):
        super().__init__(f"stopped at step {step:,} of {steps:,}, and saved: --resume goes on from there")
        self.received = received


class StopSignals:
    """Within it SIGINT and SIGTERM are noted in `received`; a second one acts as it did outside.

    In any thread but the main one, where Python lets nobody have signals, it does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        self.__exit__()
