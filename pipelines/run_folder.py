"""What holds a training run together on disk and in its process: one trainer a folder, an orderly stop, whole logs.

A run's folder is `lock` (who trains in it), `run.json` (its settings), `log.jsonl` and `validation.jsonl` (its
figures), `samples/`, `checkpoint/` and the model itself; `output.log` too if the page started it.
"""

import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

LOCK, SETTINGS, OUTPUT = "lock", "run.json", "output.log"
LOG, VALIDATION = "log.jsonl", "validation.jsonl"


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


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Be the only trainer in a folder, which is made if need be, and removed again if nothing came of it.

    The kernel gives the lock back when the process ends, however it ends. It is a POSIX lock, which forked workers do
    not inherit: one that outlives its trainer for a moment holds nothing up. So it is between processes, not threads.

    Raises:
        ValueError: another process trains there.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _took(file, fcntl.LOCK_EX):
            number, _ = _named(file)
            raise ValueError(f"{folder} is being trained by process {number}: stop that one, or choose another --out")
        os.truncate(file, 0)  # through this very file: to close another on it would give the lock back
        os.pwrite(file, str(os.getpid()).encode(), 0)
        yield
    finally:
        if made and {path.name for path in folder.iterdir()} == {LOCK}:
            (folder / LOCK).unlink()
            folder.rmdir()
        os.close(file)


def _took(file: int, kind: int) -> bool:
    """Whether the lock could be had; who only looks whether it is held has it for an instant, so ask a few times."""
    for _ in range(5):
        try:
            fcntl.lockf(file, kind | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError):
            time.sleep(0.02)
    return False


def _named(file: int) -> tuple[int, str]:
    """The process a lock names, 0 for none, and what is said of it."""
    number, _, rest = os.pread(file, 40, 0).decode().partition(" ")
    return int(number) if number.isdigit() else 0, rest


class Trainer(NamedTuple):
    """The process last named as the trainer of a folder, 0 if none was, whether it holds the lock, and a `word` of it.

    "starting": it was launched, and has not had the lock yet; "stopping": it has been asked to stop; "": neither.
    """

    process: int
    held: bool
    word: str


def name_trainer(folder: Path, process: int, word: str) -> None:
    """Write into a folder's lock which process trains there or is about to, and a word, see `Trainer`.

    Neither this nor `find_trainer` is for the process that trains: to close a file is to lose one's POSIX locks on it.
    """
    (folder / LOCK).write_text(f"{process} {word}")


def find_trainer(folder: Path) -> Trainer:
    """Who trains in a folder, or did."""
    try:
        file = os.open(folder / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return Trainer(0, False, "")
    try:
        held = not _took(file, fcntl.LOCK_SH)
        process, word = _named(file)
    finally:
        os.close(file)
    return Trainer(process, held, word)


def unused(folder: Path) -> bool:
    """Whether a new run can begin in a folder: there is nothing in it, or what a start left that came to nothing."""
    return not folder.exists() or {path.name for path in folder.iterdir()} <= {LOCK, OUTPUT}


def append_row(path: Path, row: dict[str, Any]) -> None:
    """One more line of a .jsonl file."""
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file; none if it is not there. A last line that is still being written is left out."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def drop_rows_after(path: Path, step: int) -> None:
    """Leave in a .jsonl file what was written up to a step: what came after it will be written again."""
    rows = read_rows(path)
    kept = [row for row in rows if row["step"] <= step]
    if path.exists():
        new = path.with_suffix(".new")
        new.write_text("".join(json.dumps(row) + "\n" for row in kept))
        new.replace(path)
