"""What holds a training run together on disk and in its process: one trainer a folder, an orderly stop, whole logs.

A run's folder is `lock` (held while somebody trains in it), `trainer` (who that is), `run.json` (its settings),
`log.jsonl` and `validation.jsonl` (its figures), `samples/`, `checkpoints/` and the model itself; `output.log` too if
the page started it.
"""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

LOCK, TRAINER, SETTINGS, OUTPUT = "lock", "trainer", "run.json", "output.log"
LOG, VALIDATION = "log.jsonl", "validation.jsonl"
CHECKPOINTS = "checkpoints"

PATIENCE = 0.1
"""Seconds to wait for a lock: who only looks whether it is held has it for an instant."""


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

    The kernel gives the lock back when the process ends, however it ends, and forked workers do not inherit it: one
    that outlives its trainer for a moment holds nothing up.

    Raises:
        ValueError: another process trains there.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        number, _ = _named(folder)
        raise ValueError(
            f"{folder} is being trained by process {number}: stop that one, or choose another --out"
        ) from None
    try:
        name_trainer(folder, os.getpid(), "")
        yield
    finally:
        if made and {path.name for path in folder.iterdir()} <= {LOCK, TRAINER}:
            with suppress(PermissionError):  # Windows removes no file that is open: there the folder stays
                for name in (TRAINER, LOCK):
                    (folder / name).unlink(missing_ok=True)
                folder.rmdir()
        lock.release()


def _named(folder: Path) -> tuple[int, str]:
    """The process a folder names as its trainer, 0 for none, and what is said of it."""
    try:
        number, _, rest = (folder / TRAINER).read_text().partition(" ")
    except FileNotFoundError:
        return 0, ""
    return int(number) if number.isdigit() else 0, rest


class Trainer(NamedTuple):
    """The process last named as the trainer of a folder, 0 if none was, whether it holds the lock, and a `word` of it.

    "starting": it was launched, and has not had the lock yet; "stopping": it has been asked to stop; "": neither.
    """

    process: int
    held: bool
    word: str


def name_trainer(folder: Path, process: int, word: str) -> None:
    """Write into a folder which process trains there or is about to, and a word, see `Trainer`."""
    (folder / TRAINER).write_text(f"{process} {word}".rstrip())


def find_trainer(folder: Path) -> Trainer:
    """Who trains in a folder, or did."""
    held = False
    if (folder / LOCK).exists():
        try:
            with FileLock(folder / LOCK, timeout=PATIENCE):
                pass
        except Timeout:
            held = True
        except OSError:  # where nobody may write, nobody trains
            held = False
    process, word = _named(folder)
    return Trainer(process, held, word)


def unused(folder: Path) -> bool:
    """Whether a new run can begin in a folder: there is nothing in it, or what a start left that came to nothing."""
    return not folder.exists() or {path.name for path in folder.iterdir()} <= {LOCK, TRAINER, OUTPUT}


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
        write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))


def write_whole(path: Path, text: str) -> None:
    """Write a file so that who reads it finds the old text or the new one, and a full disk leaves the old one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
