"""What the Train tab does with runs: start and stop them, describe them, and read their figures and samples."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from pipelines.runs.machine import in_words
from pipelines.training.config import RUNS, TrainConfig
from pipelines.training.validate import LEVELS, SHEET_COLUMNS
from ui import runs
from ui.data import check_data
from ui.models import Models
from ui.runs import Run, check_name, find_run, list_runs
from ui.texts import Message

PRESETS = {"train.quick": (200, 50), "train.hour": (4000, 500)}
"""The key of a preset -> steps, and steps between validations."""

LIMITS = {
    "steps": (1, 100_000),
    "every": (1, 100_000),
    "batch_size": (2, 512),
    "size": (32, 128),
    "seed": (0, 2**31 - 1),
}
"""The smallest and largest values that the page accepts; larger runs are started at the command line."""

PICTURE_SIZES = (32, 64, 96, 128)

LEVEL_COLOURS = dict(zip(map(str, LEVELS), ("#4477dd", "#1b9e9e", "#5a9e2f", "#d98a00", "#d6456a"), strict=True))
SHARE_COLOURS = {"agreement": "#4477dd", "pointing": "#d98a00"}


FRESH = ""
"""What a run begins from if it is not another model: a network without any training."""

USUAL_SPEED = 70.0
"""Pictures of 64×64 pixels per second of training on two cores of a CPU, for the time that the first run will take."""


def usual_size(data: str) -> int:
    """The side of pictures in pixels that suits data: everyday things need more pixels to be told apart."""
    return 128 if data == "everyday" else 64


def start_run(
    name: str,
    data: str,
    steps: int,
    batch_size: int,
    seed: int,
    size: int,
    every: int,
    begin_from: str = FRESH,
) -> Run:
    """Start a run under `RUNS`.

    Args:
        begin_from: the model to begin with: a bundled one, the folder of a run, or `FRESH`.

    Raises:
        ValueError: a setting is out of its range, the name is taken, or another run is active.
    """
    check_name(name)
    numbers = {"steps": steps, "batch_size": batch_size, "seed": seed, "size": size, "every": every}
    for what, value in numbers.items():
        low, high = LIMITS[what]
        if not isinstance(value, int | float) or value != int(value) or not low <= value <= high:
            shown = what.replace("_", " ")
            raise ValueError(f"{shown} must be a whole number from {low:,} to {high:,}, got {str(value)[:40]}")
    _check_alone()
    chosen: dict[str, Any] = {what: int(value) for what, value in numbers.items()}
    if begin_from not in [FRESH, *Models.saved()]:
        raise ValueError(f"model {begin_from[:40]!r} not found: begin from one of {', '.join(Models.saved())}, or none")
    return runs.start(TrainConfig(data=check_data(data), out=str(RUNS / name), begin_from=begin_from, **chosen))


def rename_run(name: str, new: str) -> Run:
    """Rename a run under `RUNS`. Raises ValueError if it is active, or the name is malformed or taken."""
    run = _at_rest(name)
    if (RUNS / check_name(new)).exists():
        raise ValueError(f"run {new!r} already exists: choose another name")
    run.folder.rename(RUNS / new)
    return find_run(RUNS, new)


def delete_run(name: str, again: str) -> None:
    """Delete a run under `RUNS` with its model.

    Args:
        again: the name once more, because a run cannot be brought back.

    Raises:
        ValueError: the run is active, or `again` is another name.
    """
    run = _at_rest(name)
    if again != name:
        raise ValueError(f"to delete the run with its model, type its name: {name}")
    shutil.rmtree(run.folder)


def _at_rest(name: str) -> Run:
    run = find_run(RUNS, name)
    if run.active:
        raise ValueError(f"run {name!r} is {run.state}: stop it first")
    return run


def expected(steps: int | None, batch_size: int | None, size: int) -> list[Message]:
    """How long a run will take, by the speed of the latest run with pictures of this size, or the usual one."""
    if not steps or not batch_size:  # a field that is being filled in
        return []
    pictures = steps * batch_size
    for run in list_runs(RUNS):
        rates = [row["pictures/s"] for row in run.log[1:] if row.get("pictures/s")]
        if rates and run.size == size:
            time = _duration(pictures / sorted(rates)[len(rates) // 2])
            return [("training.expected.run", {"time": time, "run": run.name})]
    return [("training.expected", {"time": _duration(pictures / USUAL_SPEED * (size / 64) ** 2)})]


def resume_run(name: str) -> Run:
    """Resume a run under `RUNS`. Raises ValueError if it is not a stopped run, or another is active."""
    run = find_run(RUNS, name)
    _check_alone()
    return runs.resume(run)


def stop_run(name: str) -> Run:
    """Stop a run under `RUNS`. Raises ValueError if it is not active."""
    return runs.stop(find_run(RUNS, name))


def _check_alone() -> None:
    if active := [run.name for run in list_runs(RUNS) if run.active]:
        raise ValueError(f"run {active[0]!r} is being trained: stop it first, because two runs slow each other down")


def model_of(models: Models, name: str | None) -> str:
    """The name in `models` of the model that a run has saved so far.

    Raises:
        ValueError: no run is chosen, or the run has not saved a model yet.
    """
    if not name:
        raise ValueError("choose a run first")
    model = str(find_run(RUNS, name).folder)
    if model not in models.names():
        raise ValueError(f"run {name!r} has not saved a model yet")
    return model


def as_row(run: Run) -> dict[str, Any]:
    """A run in the API: its state, its step, and its last figures."""
    figures = {**(run.log[-1] if run.log else {}), **(run.validation[-1] if run.validation else {})}
    row = {key: getattr(run, key) for key in ("name", "state", "step", "steps", "data", "note")}
    return row | {"figures": figures}


def describe(run: Run) -> list[Message]:
    """The state of a run: parts of one line."""
    if run.state == "starting":
        return [("training.starting", {"name": run.name})]
    said: list[Message] = [(f"training.{run.state}", {"name": run.name})]
    if run.steps and run.state == "finished":
        said.append(("training.after", {"steps": f"{run.steps:,}"}))
    elif run.steps:
        said.append(("training.at", {"step": f"{run.step:,}", "steps": f"{run.steps:,}"}))
    if run.data:
        said.append(("training.data", {"data": run.data}))
    if run.log:
        last = run.log[-1]
        said.append(("training.log", {"time": _duration(last["seconds"]), "loss": f"{last['loss']:.3f}"}))
    if run.state == "running" and (rate := run.progress.get("pictures/s")):
        said.append(("training.rate", {"rate": f"{rate:.{0 if rate >= 10 else 1 if rate >= 1 else 2}f}"}))
        if run.seconds_left is not None:
            said.append(("training.left", {"time": _duration(run.seconds_left)}))
    if run.validation and "agreement" in run.validation[-1]:
        last = run.validation[-1]
        correct = round(last["agreement"] * last["judged"])
        said.append(("training.correct", {"correct": correct, "judged": last["judged"]}))
    return [*said, ("training.end", {"line": run.note.removeprefix("error: ")})]


def _duration(seconds: float) -> dict[str, str]:
    """A duration in each language."""
    english = in_words(seconds)
    chinese = english
    for unit, name in (("h", "小时"), ("min", "分"), ("s", "秒")):
        chinese = chinese.replace(f" {unit}", f" {name}")
    return {"en": english, "zh": chinese}


def plots(run: Run) -> list[pd.DataFrame | None]:
    """The data of the four plots: training loss, validation loss, loss reduction by the right caption, and shares.

    The columns are step, value and line; None as long as there are figures of one step only, which are no curve.
    """
    losses = [(row["step"], row[f"loss {level}"], str(level)) for row in run.validation for level in LEVELS]
    saved = [
        (row["step"], 1 - row[f"loss {level}"] / row[f"loss {level} shuffled"], str(level))
        for row in run.validation
        for level in LEVELS
    ]
    shares = [(row["step"], row[name], name) for row in run.validation for name in SHARE_COLOURS if name in row]
    training = [(row["step"], row["loss"], "") for row in run.log]
    return [
        pd.DataFrame(rows, columns=["step", "value", "line"]) if len({row[0] for row in rows}) > 1 else None
        for rows in (training, losses, saved, shares)
    ]


MOST_IN_STRIP = 24
"""The most pictures in the strip of one sample through time."""


def strip(run: Run) -> list[tuple[Image.Image, str]]:
    """The first sample of a run at its validations, evenly chosen if there are many, with their steps."""
    count = len(run.samples)
    if count < 2:
        return []
    places = sorted({round(1 + i * (count - 1) / (MOST_IN_STRIP - 1)) for i in range(MOST_IN_STRIP)})
    found = [samples_at(run, place) for place in places]
    return [(drawn[0][0], f"{step:,}") for step, drawn, _ in found if drawn]


def samples_at(run: Run, index: int) -> tuple[int, list[tuple[Image.Image, str]], list[tuple[Image.Image, str]]]:
    """The step of the saved samples with an index, from 1; its pictures with their prompts; and its maps of words."""
    step = run.samples[min(max(index, 1), len(run.samples)) - 1]
    sheet, words = (_picture(run.folder / "samples" / f"{kind}-{step:06d}.png") for kind in ("step", "words"))
    maps = [(words, "")] if words else []
    if sheet is None or not run.prompts:  # a run of a version that did not save prompts
        return step, [(sheet, "")] if sheet else [], maps
    columns = min(SHEET_COLUMNS, len(run.prompts))
    side = sheet.width // columns
    places = [(i % columns * side, i // columns * side) for i in range(len(run.prompts))]
    tiles = [sheet.crop((x, y, x + side, y + side)) for x, y in places]
    return step, list(zip(tiles, run.prompts, strict=True)), maps


def _picture(path: Path) -> Image.Image | None:
    if not path.is_file():
        return None
    with Image.open(path) as file:
        return file.convert("RGB")


def line_of(error: Exception) -> str:
    return " ".join(str(error).split())
