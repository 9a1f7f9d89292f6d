"""The folder of a training run, in which one process trains at a time.

It holds `lock` (locked while a process trains there), `trainer` (the number of that process), `run.json` (the
settings), `log.jsonl` and `validation.jsonl` (the figures), `progress.json` (the step of a moment ago, while it
trains), `samples/`, `checkpoints/`, and the model itself; also `output.log` if the page started the run.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from filelock import FileLock, Timeout

LOCK, TRAINER, SETTINGS, OUTPUT = "lock", "trainer", "run.json", "output.log"
LOG, VALIDATION = "log.jsonl", "validation.jsonl"
PROGRESS = "progress.json"
CHECKPOINTS = "checkpoints"

PATIENCE = 0.1
"""Seconds to wait for a lock, because `find_trainer` holds it for an instant to see whether it is free."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock a folder to train in it alone. A missing folder is created, and removed again if nothing was written.

    The kernel releases the lock when the process ends, however it ends. Forked workers do not inherit the lock, so a
    worker that outlives its trainer for a moment does not block the next one.

    Raises:
        ValueError: another process trains there.
    """
    created = not folder.exists()
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
        if created and {path.name for path in folder.iterdir()} <= {LOCK, TRAINER}:
            with suppress(PermissionError):  # Windows cannot remove an open file: the folder stays
                for name in (TRAINER, LOCK):
                    (folder / name).unlink(missing_ok=True)
                folder.rmdir()
        lock.release()


def _named(folder: Path) -> tuple[int, str]:
    """The process that a folder names as its trainer, 0 for none, and the word beside it, see `Trainer`."""
    try:
        number, _, rest = (folder / TRAINER).read_text().partition(" ")
    except FileNotFoundError:
        return 0, ""
    return int(number) if number.isdigit() else 0, rest


class Trainer(NamedTuple):
    """The process last named as the trainer of a folder (0 for none), whether the lock is held, and a `word`.

    "starting": the process was launched and has not taken the lock yet; "stopping": it was asked to stop; "": neither.
    """

    process: int
    held: bool
    word: str


def name_trainer(folder: Path, process: int, word: str) -> None:
    """Record in a folder the process that trains there, or will, and a word, see `Trainer`."""
    (folder / TRAINER).write_text(f"{process} {word}".rstrip())


def find_trainer(folder: Path) -> Trainer:
    """The process that trains in a folder, or the last one that did."""
    held = False
    if (folder / LOCK).exists():
        try:
            with FileLock(folder / LOCK, timeout=PATIENCE):
                pass
        except Timeout:
            held = True
        except OSError:  # nobody can train in a read-only folder
            held = False
    process, word = _named(folder)
    return Trainer(process, held, word)


def unused(folder: Path) -> bool:
    """Whether a new run can start in a folder: it is empty, or holds only what a failed start left."""
    return not folder.exists() or {path.name for path in folder.iterdir()} <= {LOCK, TRAINER, OUTPUT}


class Saveable(Protocol):
    """An object that can save itself into a folder, as diffusers' pipelines can."""

    def save_pretrained(self, folder: Path) -> Any: ...


def save_model(pipe: Saveable, out: Path) -> None:
    """Save a pipeline into a folder from which another process may be loading: each file is replaced atomically."""
    new = out / "model.new"
    shutil.rmtree(new, ignore_errors=True)
    pipe.save_pretrained(new)
    files = [file for file in new.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: file.name == "model_index.json"):  # last: it announces the model
        target = out / file.relative_to(new)
        target.parent.mkdir(exist_ok=True)
        file.replace(target)
    shutil.rmtree(new)
