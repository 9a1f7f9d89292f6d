"""Training runs as processes of their own: started, stopped, resumed and looked at from outside, by their folders.

Nothing is remembered here. What a run is and where it stands is read from its folder, so whoever opens the page or a
terminal later finds the same.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import psutil

from pipelines.runs.checkpoint import last_state
from pipelines.runs.folder import (
    CHECKPOINTS,
    LOG,
    OUTPUT,
    SETTINGS,
    VALIDATION,
    Trainer,
    find_trainer,
    name_trainer,
    unused,
)
from pipelines.runs.rows import read_rows
from pipelines.training.train import TrainConfig

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a run or a data set may be called by whoever uses the page: it becomes the name of a folder."""

OPTIONS = ("data", "out", "steps", "batch_size", "seed", "size", "mask_weight", "every")
"""Settings that `unet-xattn train` has an option for."""


@dataclass(frozen=True)
class Run:
    """A training run as its folder tells of it.

    state: "starting", "running", "stopping", "stopped" (it can be resumed), "finished", or "broken": it ended before
        there was anything to resume.
    step: the last one known of, out of `steps`.
    log, validation: rows of its figures.
    prompts: what its sample pictures were to show.
    note: the last thing a run said that did not end well, in one line.
    """

    name: str
    folder: Path
    state: str
    step: int = 0
    steps: int = 0
    data: str = ""
    log: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def active(self) -> bool:
        return self.state in ("starting", "running", "stopping")

    @property
    def seconds_left(self) -> float | None:
        """How long it will go on, as it reckoned when it last wrote its figures; None unless it is running."""
        return self.log[-1].get("seconds left") if self.state == "running" and self.log else None

    @property
    def samples(self) -> list[int]:
        """The steps that sample pictures were kept of; its row is written after them."""
        steps = [row["step"] for row in self.validation]
        return [step for step in steps if (self.folder / "samples" / f"step-{step:06d}.png").is_file()]


def check_name(name: str, what: str = "run") -> str:
    """The name, if it is one; raises ValueError otherwise."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"the name of a {what} is 1 to 64 letters, digits, - and _, not {str(name)[:40]!r}")
    return name


def list_runs(folder: Path) -> list[Run]:
    """The runs under a folder, those that are being trained first, then the newest."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and NAME.fullmatch(path.name) and (run := _read(path)):
            found.append((not run.active, -path.stat().st_mtime, run))
    return [run for _, _, run in sorted(found, key=lambda item: item[:2])]


def find_run(folder: Path, name: str) -> Run:
    """The run of a name.

    Raises:
        ValueError: there is none.
    """
    run = _read(folder / check_name(name))
    if run is None:
        raise ValueError(f"there is no run {name!r} in {folder}")
    return run


def start(config: TrainConfig) -> Run:
    """Train in a new process, which lives on when this one ends.

    Settings that the command line has no option for must be the defaults.

    Raises:
        ValueError: there is something in `config.out` already.
    """
    out = Path(config.out)
    if not unused(out):
        raise ValueError(f"there is a run {out.name!r} already: choose another name, or resume it")
    plain = TrainConfig(**{name: getattr(config, name) for name in OPTIONS})  # what is unset follows from these
    assert config == plain, [f.name for f in fields(config) if getattr(config, f.name) != getattr(plain, f.name)]
    out.mkdir(parents=True, exist_ok=True)
    return _launch(out, [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in OPTIONS])


def resume(run: Run) -> Run:
    """Go on with a run that was stopped, in a new process.

    Raises:
        ValueError: it is being trained, is finished, or has nothing to go on from.
    """
    if run.state != "stopped":
        raise ValueError(f"the run {run.name!r} is {run.state}: only one that was stopped can be resumed")
    return _launch(run.folder, [f"--out={run.folder}", "--resume"])


def stop(run: Run) -> Run:
    """Ask the process of a run to finish its step, save and end; it takes a moment.

    Raises:
        ValueError: nobody trains it, or it has been asked already: a second signal would cost what is not saved.
    """
    found = find_trainer(run.folder)
    if not found.held and not _is_starting(found, run.folder):
        raise ValueError(f"the run {run.name!r} is {run.state}: there is nothing to stop")
    if found.word == "stopping":
        raise ValueError(f"the run {run.name!r} is stopping already: it has to finish its step and save")
    name_trainer(run.folder, found.process, "stopping")
    os.kill(found.process, signal.SIGTERM)
    return find_run(run.folder.parent, run.name)


def _launch(out: Path, options: list[str]) -> Run:
    with open(out / OUTPUT, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ui.cli", "train", *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # closing the terminal the page runs in stops the page, not the training
        )
    name_trainer(out, process.pid, "starting")
    threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie behind
    return find_run(out.parent, out.name)


def _is_starting(found: Trainer, folder: Path) -> bool:
    """Whether a process was launched for this folder and still lives: it takes a while until it holds the lock."""
    try:
        return found.word == "starting" and f"--out={folder}" in psutil.Process(found.process).cmdline()
    except psutil.Error:
        return False


def _read(folder: Path) -> Run | None:
    """The run in a folder, None if there is none that trains pictures."""
    found = find_trainer(folder)
    settings, place = _json(folder / SETTINGS), last_state(folder / CHECKPOINTS)
    config = settings.get("config") or place.get("config") or {}
    if "data" not in config and (config or not found.process):
        return None
    log, validation = read_rows(folder / LOG), read_rows(folder / VALIDATION)
    steps, saved = config.get("steps", 0), place.get("step", 0)
    if found.held:
        state = "stopping" if found.word == "stopping" else "running" if settings else "starting"
    elif _is_starting(found, folder):
        state = "starting"
    elif place:
        state = "finished" if saved == steps else "stopped"
    else:
        state = "broken"
    # What was done after the last checkpoint is lost once the process is.
    step = max([saved, *(row["step"] for rows in (log, validation) if found.held for row in rows[-1:])])
    note = _last_line(folder / OUTPUT) if state in ("stopped", "broken") else ""
    data, prompts = config.get("data", ""), settings.get("prompts", [])
    return Run(folder.name, folder, state, step, steps, data, log, validation, prompts, note)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # not written yet, or just being written
        return {}


def _last_line(path: Path) -> str:
    """The last thing written to a file that is not a progress bar, 300 characters at most."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4000))
        lines = re.split(r"[\r\n]+", file.read().decode(errors="replace"))
    said = [line.strip() for line in lines if line.strip() and "step/s]" not in line and "s/step]" not in line]
    return said[-1][:300] if said else ""
