"""What a run reports: its settings, its progress and its figures, in the terminal, in its folder and in TensorBoard."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.data.pictures import PictureExamples
from pipelines.data.stream import Example, Examples
from pipelines.runs.folder import LOG, PROGRESS, SETTINGS, VALIDATION
from pipelines.runs.machine import Pace, brief, code_version, machine
from pipelines.runs.rows import append_row, drop_rows_after, write_whole
from pipelines.training.config import TrainConfig
from pipelines.training.objective import Losses
from pipelines.training.run import OpenRun

PROGRESS_EVERY = 1.0
"""Seconds between two writings of a run's progress."""


def write_settings(run: OpenRun[TrainConfig], examples: Examples, shown: Sequence[Example]) -> None:
    """Write `run.json`: the settings of a run, its sample prompts, its data, the machine and the code's version.

    "prompts since" is the step from which the samples have these prompts; before it the run had other data.
    """
    settings: dict[str, Any] = {
        "config": asdict(run.config),
        "prompts": [e.caption for e in shown],
        "data": {},
        "machine": machine(run.accelerator.device.type),
        "code": code_version(),
    }
    file = run.out / SETTINGS
    earlier = json.loads(file.read_text()) if file.is_file() else {}
    same = earlier.get("prompts") == settings["prompts"]
    settings["prompts since"] = earlier.get("prompts since", 0) if same else run.step
    if isinstance(examples, PictureExamples):
        pictures = {"pictures": len(examples.trained), "held out": len(examples.held_out)}
        settings["data"] = pictures | {"fingerprint": run.circumstances["data"]}
    write_whole(file, json.dumps(settings, indent=1))


class Reporter:
    """The progress bar, `log.jsonl`, `validation.jsonl` and TensorBoard logs of a run.

    Every process has one, because losses are means over all processes; only the main one writes.
    """

    def __init__(self, run: OpenRun[TrainConfig]):
        self.out, self.accelerator = run.out, run.accelerator
        self.accelerator.init_trackers("tensorboard")
        main = self.accelerator.is_main_process
        if main:
            for name in (LOG, VALIDATION):
                drop_rows_after(self.out / name, run.step)
        self.bar = tqdm(
            total=run.config.steps,
            initial=run.step,
            unit="step",
            disable=not main,
            file=sys.stdout,
            mininterval=0.1 if sys.stdout.isatty() else 10.0,  # seconds: a file keeps every line
            smoothing=0,  # the time left follows from the mean speed, as in the log
        )
        if main and not self.accelerator.log_with:
            self.bar.write("no TensorBoard logs, because it is not installed; log.jsonl has the same figures")
        self._seconds_before, self._began = run.counters.get("seconds", 0.0), time.monotonic()
        self._pace = Pace(run.step, run.config.steps, run.config.batch_size)
        self._told = run.step, self._began  # the step and the time of the last progress that was written

    @property
    def seconds(self) -> float:
        """How long the run has trained, before it was resumed too."""
        return self._seconds_before + time.monotonic() - self._began

    def step(self, done: int) -> None:
        """Show that a step is done; `progress.json` has it at most `PROGRESS_EVERY` seconds later."""
        self.bar.update()
        if self.accelerator.is_main_process and time.monotonic() - self._told[1] >= PROGRESS_EVERY:
            (before, since), now = self._told, time.monotonic()
            rate = (done - before) / (now - since)  # steps per second
            left = (self.bar.total - done) * (now - self._began) / max(done - self.bar.initial, 1)
            figures = {"step": done, "pictures/s": rate * self._pace.batch_size, "seconds left": left}
            write_whole(self.out / PROGRESS, json.dumps(figures))
            self._told = done, now

    def log(self, done: int, losses: Losses, norm: Tensor, learning_rate: float) -> None:
        """Log the losses after a step, the norm of its gradient, and the speed; every process must call it."""
        flow_loss, token_loss, text_loss = self.accelerator.reduce(torch.stack(list(losses)), "mean").tolist()
        values = {
            "loss": flow_loss,
            "token loss": token_loss,
            "text loss": text_loss,
            "gradient norm": float(norm),
            "learning rate": learning_rate,
        }
        values |= self._pace.read(done)  # after the losses, which wait for the GPU to be done
        self.accelerator.log(values, step=done)
        self.bar.set_postfix_str(f"loss {values['loss']:.3f}, {brief(values)}")
        if self.accelerator.is_main_process:
            append_row(self.out / LOG, {"step": done} | values | {"seconds": self.seconds})

    def validation(self, done: int, report: dict[str, float]) -> None:
        """Log the figures of a validation, on the main process."""
        self.accelerator.log({f"validation/{name}": value for name, value in report.items()}, step=done)
        append_row(self.out / VALIDATION, {"step": done} | report)
        self.bar.write(f"step {done}: " + ", ".join(f"{name} {value:.4g}" for name, value in report.items()))

    def restart_pace(self, done: int) -> None:
        """Leave the time since the last step out of the speed, because it went into a validation."""
        self._pace.restart(done)

    def close(self) -> None:
        self.bar.close()
        if self.accelerator.is_main_process:
            (self.out / PROGRESS).unlink(missing_ok=True)
        self.accelerator.end_training()
