"""What holds a training run together on disk and in its process: one trainer a folder, an orderly stop, whole logs.

A run's folder is `lock` (held while somebody trains in it), `trainer` (who that is), `run.json` (its settings),
`log.jsonl` and `validation.jsonl` (its figures), `samples/`, `checkpoints/` and the model itself; `output.log` too if
the page started it.
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
CHECKPOINTS = "checkpoints"

PATIENCE = 0.1
"""Seconds to wait for a lock: who only looks whether it is held has it for an instant."""


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


class Saveable(Protocol):
    """Anything that writes itself into a folder, as diffusers' pipelines do."""

    def save_pretrained(self, folder: Path) -> Any: ...


def save_model(pipe: Saveable, out: Path) -> None:
    """Save a pipeline into a folder where another process may be reading the last one: file by file, each whole."""
    new = out / "model.new"
    shutil.rmtree(new, ignore_errors=True)
    pipe.save_pretrained(new)
    files = [file for file in new.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: file.name == "model_index.json"):  # which says there is a new one: last
        target = out / file.relative_to(new)
        target.parent.mkdir(exist_ok=True)
        file.replace(target)
    shutil.rmtree(new)
