"""Training runs as separate processes: start, stop, resume and list them by their folders.

This module keeps no state. The state of a run is read from its folder, so that the page and a terminal show the same at
any later time.
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
    PROGRESS,
    SETTINGS,
    VALIDATION,
    Trainer,
    find_trainer,
    name_trainer,
    unused,
)
from pipelines.runs.rows import read_rows
from pipelines.training.config import TrainConfig

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""The allowed names of runs and data sets: a name becomes the name of a folder."""

OPTIONS = ("data", "out", "steps", "batch_size", "seed", "size", "mask_weight", "every", "begin_from")
"""The settings that `start` passes on as options of `unet-xattn train`."""

FLAGS = {"begin_from": "from"}
"""The options whose names differ from those of their settings."""


@dataclass(frozen=True)
class Run:
    """A training run, as read from its folder.

    state: "starting", "running", "stopping", "stopped" (it can be resumed), "finished", or "broken" (it ended before
        its first checkpoint).
    step: the last known step, out of `steps`.
    data, size: what it trains on, and the side of the pictures in pixels.
    log, validation: the rows of figures. progress: the figures of a moment ago, {} unless it trains.
    prompts: the prompts of the sample pictures after step `prompts_since`; earlier ones have others.
    note: the last line that a stopped or broken run printed.
    """

    name: str
    folder: Path
    state: str
    step: int = 0
    steps: int = 0
    data: str = ""
    size: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    progress: dict[str, float] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)
    prompts_since: int = 0
    note: str = ""

    @property
    def active(self) -> bool:
        return self.state in ("starting", "running", "stopping")

    @property
    def seconds_left(self) -> float | None:
        """The remaining time, as the run estimated it a moment ago, or in its log; None unless it is running."""
        if self.state != "running":
            return None
        return self.progress.get("seconds left", self.log[-1].get("seconds left") if self.log else None)

    @property
    def samples(self) -> list[int]:
        """The steps with saved sample pictures of `prompts`; a step's row is written after its pictures."""
        steps = [row["step"] for row in self.validation if row["step"] > self.prompts_since]
        return [step for step in steps if (self.folder / "samples" / f"step-{step:06d}.png").is_file()]


def check_name(name: str, what: str = "run") -> str:
    """Return the name of a run (or of another `what`); raises ValueError if it is malformed."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"the name of a {what} must be 1 to 64 letters, digits, - and _, got {str(name)[:40]!r}")
    return name


def list_runs(folder: Path) -> list[Run]:
    """The runs in a folder: active runs first, then the newest."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and NAME.fullmatch(path.name) and (run := _read(path)):
            found.append((not run.active, -path.stat().st_mtime, run))
    return [run for _, _, run in sorted(found, key=lambda item: item[:2])]


def find_run(folder: Path, name: str) -> Run:
    """The run with a name.

    Raises:
        ValueError: it does not exist.
    """
    run = _read(folder / check_name(name))
    if run is None:
        raise ValueError(f"run {name!r} not found in {folder}")
    return run


def start(config: TrainConfig) -> Run:
    """Train in a new process, which continues when this one ends.

    Settings outside `OPTIONS` must have their defaults.

    Raises:
        ValueError: `config.out` is not empty.
    """
    out = Path(config.out)
    if not unused(out):
        raise ValueError(f"run {out.name!r} already exists: choose another name, or resume it")
    plain = TrainConfig(**{name: getattr(config, name) for name in OPTIONS})  # the other settings follow from these
    assert config == plain, [f.name for f in fields(config) if getattr(config, f.name) != getattr(plain, f.name)]
    out.mkdir(parents=True, exist_ok=True)
    named = {name: getattr(config, name) for name in OPTIONS if name != "begin_from" or config.begin_from}
    return _launch(out, [f"--{FLAGS.get(name, name).replace('_', '-')}={value}" for name, value in named.items()])


def resume(run: Run) -> Run:
    """Resume a stopped run in a new process.

    Raises:
        ValueError: the run is not in the state "stopped".
    """
    if run.state != "stopped":
        raise ValueError(f"run {run.name!r} is {run.state}: only a stopped run can be resumed")
    return _launch(run.folder, [f"--out={run.folder}", "--resume"])


def stop(run: Run) -> Run:
    """Ask the process of a run to finish its step, save and end, which takes a moment.

    Raises:
        ValueError: the run is not active, or is stopping already. A second signal would end it without saving.
    """
    found = find_trainer(run.folder)
    if not found.held and not _is_starting(found, run.folder):
        raise ValueError(f"run {run.name!r} is {run.state}: there is nothing to stop")
    if found.word == "stopping":
        raise ValueError(f"run {run.name!r} is stopping already: wait until it has finished its step and saved")
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
            start_new_session=True,  # closing the page's terminal stops the page but not the training
        )
    name_trainer(out, process.pid, "starting")
    threading.Thread(target=process.wait, daemon=True).start()  # else the process would become a zombie
    return find_run(out.parent, out.name)


def _is_starting(found: Trainer, folder: Path) -> bool:
    """Whether a process for this folder was launched and is alive; it needs a while until it holds the lock."""
    try:
        return found.word == "starting" and f"--out={folder}" in psutil.Process(found.process).cmdline()
    except psutil.Error:
        return False


def _read(folder: Path) -> Run | None:
    """The run in a folder; None if the folder is not a run of a text-to-image model."""
    found = find_trainer(folder)
    settings, checkpoint = _json(folder / SETTINGS), last_state(folder / CHECKPOINTS)
    config = settings.get("config") or checkpoint.get("config") or {}
    if "data" not in config and (config or not found.process):
        return None
    log, validation = read_rows(folder / LOG), read_rows(folder / VALIDATION)
    steps, saved = config.get("steps", 0), checkpoint.get("step", 0)
    if found.held:
        state = "stopping" if found.word == "stopping" else "running" if settings else "starting"
    elif _is_starting(found, folder):
        state = "starting"
    elif checkpoint:
        state = "finished" if saved == steps else "stopped"
    else:
        state = "broken"
    # Without its process, a run is back at its last checkpoint.
    progress = _json(folder / PROGRESS) if found.held else {}
    rows = [row for rows in (log, validation) if found.held for row in rows[-1:]]
    step = max([saved, progress.get("step", 0), *(row["step"] for row in rows)])
    note = _last_line(folder / OUTPUT) if state in ("stopped", "broken") else ""
    data, size, prompts = config.get("data", ""), config.get("size", 0), settings.get("prompts", [])
    since = settings.get("prompts since", 0)
    return Run(folder.name, folder, state, step, steps, data, size, log, validation, progress, prompts, since, note)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # not yet written, or half written
        return {}


def _last_line(path: Path) -> str:
    """The last line of a file that is not a progress bar, at most 300 characters."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4000))
        lines = re.split(r"[\r\n]+", file.read().decode(errors="replace"))
    messages = [line.strip() for line in lines if line.strip() and "step/s]" not in line and "s/step]" not in line]
    return messages[-1][:300] if messages else ""
