"""The Train tab: choose data, train on it in a separate process, and watch losses, samples and the words' maps."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import pandas as pd
from PIL import Image

from pipelines.runs.machine import in_words
from pipelines.training.config import RUNS, TrainConfig
from pipelines.training.validate import LEVELS, SHEET_COLUMNS
from ui import runs
from ui.album import album
from ui.album import page as album_page
from ui.data import DEFAULT_DATA, add_upload, check_data, data_names, preview
from ui.endpoint import endpoint
from ui.models import Models
from ui.runs import Run, check_name, find_run, list_runs

PRESETS = {"Quick try: 200 steps": (200, 50), "About an hour: 4,000 steps": (4000, 500)}
"""The label of a preset -> steps, and steps between validations."""

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


class TrainTab(NamedTuple):
    """What the page needs of the tab: the button that opens a run's model, and the chosen run (see `model_of`)."""

    open: gr.Button
    run: gr.Dropdown


def start_run(name: str, data: str, steps: int, batch_size: int, seed: int, size: int, every: int) -> Run:
    """Start a run under `RUNS`.

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
    return runs.start(TrainConfig(data=check_data(data), out=str(RUNS / name), **chosen))


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


def describe(run: Run) -> str:
    """The state of a run in one line."""
    if run.state == "starting":
        return f"{run.name} is starting: it loads libraries and data."
    line = f"{run.name} has failed" if run.state == "broken" else f"{run.name} is {run.state}"
    if run.steps:
        line += f" at step {run.step:,} of {run.steps:,}" if run.state != "finished" else f" after {run.steps:,} steps"
    if run.log:
        last = run.log[-1]
        line += f", {in_words(last['seconds'])}, loss {last['loss']:.3f}"
    if run.state == "running" and (rate := run.progress.get("pictures/s")):
        line += f", {rate:.{0 if rate >= 10 else 1 if rate >= 1 else 2}f} pictures/s"
        line += f", {in_words(run.seconds_left)} left" if run.seconds_left is not None else ""
    if run.validation and "agreement" in run.validation[-1]:
        last = run.validation[-1]
        line += f", {round(last['agreement'] * last['judged'])} of {last['judged']} samples correct"
    return f"{line}. {run.note}".rstrip()


def plots(run: Run) -> list[pd.DataFrame | None]:
    """The data of the four plots: training loss, validation loss, loss reduction by the right caption, and shares.

    The columns are step, value and line; None if there are no rows yet.
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
        pd.DataFrame(rows, columns=["step", "value", "line"]) if rows else None
        for rows in (training, losses, saved, shares)
    ]


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


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def train_tab(page: gr.Blocks, models: Models) -> TrainTab:
    """Build the tab in the current Gradio context; when `page` opens, it shows the active or newest run.

    The caller adds the event of the button that opens a run's model.
    """
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            data = gr.Dropdown(data_names(), value=DEFAULT_DATA, label="Training data")
            upload = gr.UploadButton("Upload captioned pictures (.zip)", file_types=[".zip"], size="sm")
            examples = album("Examples", 88)
            findings = gr.Textbox(label="Data check", lines=1, max_lines=6, interactive=False)
            preset = gr.Radio(list(PRESETS), value=next(iter(PRESETS)), label="Length")
            with gr.Accordion("More settings", open=False):
                with gr.Row():
                    steps = gr.Number(200, label="Steps", precision=0, min_width=100)
                    every = gr.Number(50, label="Steps between validations", precision=0, min_width=100)
                with gr.Row():
                    batch_size = gr.Number(64, label="Batch size", precision=0, min_width=100)
                    seed = gr.Number(0, label="Random seed", precision=0, min_width=100)
                    size = gr.Dropdown(list(PICTURE_SIZES), value=64, label="Picture size", min_width=100)
            name = gr.Textbox("first", label="Run name", max_length=64)
            start = gr.Button("Start training", variant="primary")
            problem = gr.Textbox(label="Error", visible=False, interactive=False)
        with gr.Column(scale=3, min_width=320):
            run = gr.Dropdown([], label="Run")
            state = gr.Textbox(label="State", value="No runs yet.", interactive=False, lines=1, max_lines=3)
            with gr.Row():
                stop = gr.Button("Stop", interactive=False, min_width=90)
                resume = gr.Button("Resume", interactive=False, min_width=90)
                open_model = gr.Button("Open in Generate", interactive=False, min_width=90)
            with gr.Row():
                training = _plot("Training loss")
                losses = _plot("Validation loss by noise level", LEVEL_COLOURS)
            with gr.Row():
                saved = _plot("Loss reduction by caption", LEVEL_COLOURS, "%")
                shares = _plot("Correct samples, located words", SHARE_COLOURS, "%", (0, 1))
    place = gr.Slider(1, 2, 1, step=1, precision=0, label="Saved samples", visible=False)
    with gr.Row():
        with gr.Column(min_width=320):
            maps = album("Where the words of the first sample landed", 320)
        with gr.Column(min_width=320):
            pictures = album("Samples", 80)
    timer = gr.Timer(2, active=False)
    # What the page shows of the chosen run. Not a gr.State, because a page with one never becomes idle.
    seen = gr.JSON({}, visible=False)
    sheets = [place, maps, pictures]
    watched = [state, stop, resume, open_model, training, losses, saved, shares, *sheets, timer, seen]

    def check(name: str) -> tuple[Any, ...]:
        found = preview(name, 64)
        shown = album_page((Image.fromarray(e.picture), e.caption) for e in found.examples)
        return shown, "\n".join(found.findings), gr.Button(interactive=found.usable)

    def add(file: str) -> tuple[Any, ...]:
        try:
            chosen = add_upload(Path(file))
        except (ValueError, OSError) as error:
            return gr.skip(), gr.Textbox(_line(error), visible=True)
        return gr.Dropdown(data_names(), value=chosen), gr.Textbox(visible=False)

    def set_length(name: str) -> tuple[int, int]:
        return PRESETS[name]

    def act(action: Callable[..., Run], *typed: Any) -> tuple[Any, ...]:
        try:
            chosen = action(*typed)
        except (ValueError, OSError) as error:
            return gr.skip(), gr.Textbox(_line(error), visible=True)
        return gr.Dropdown(_names(), value=chosen.name), gr.Textbox(visible=False)

    def show(name: str | None, index: int, seen: dict[str, Any] | None) -> tuple[Any, ...]:
        """All outputs for a run, or skips if nothing has changed; new samples are shown, else those at `index`."""
        seen = seen or {}
        try:
            chosen = find_run(RUNS, name or "")
        except ValueError as error:
            line = _line(error) if name else "No runs yet: choose data and start one."
            return (line, *[gr.skip()] * (len(watched) - 3), gr.Timer(active=False), {})
        count, known = len(chosen.samples), seen.get("count", 0) if seen.get("name") == name else 0
        now = as_row(chosen) | {"rows": len(chosen.log), "count": count}
        if now == seen:
            return (gr.skip(),) * len(watched)
        index = count if index >= known else index
        return (
            describe(chosen),
            gr.Button(interactive=chosen.state in ("starting", "running")),
            gr.Button(interactive=chosen.state == "stopped"),
            gr.Button(interactive=str(chosen.folder) in models.names()),
            *(gr.update(value=rows, visible=rows is not None) for rows in plots(chosen)),
            gr.Slider(1, max(count, 2), value=max(index, 1), visible=count > 1),
            *([gr.skip()] * 2 if count == known and known else show_samples(name, index)),
            gr.Timer(active=chosen.active),
            now,
        )

    def show_samples(name: str | None, index: int) -> tuple[Any, ...]:
        chosen = find_run(RUNS, name or "")
        if not chosen.samples:
            return None, None
        step, drawn, words = samples_at(chosen, index)
        note = f"after step {step:,}"
        return album_page(words, note), album_page(drawn, note)

    def find() -> tuple[Any, ...]:
        names = _names()
        return gr.Dropdown(data_names()), gr.Dropdown(names, value=names[0] if names else None)

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    shown: dict[str, Any] = {"fn": show, "inputs": [run, place, seen], "outputs": watched, **private}
    changes: dict[str, Any] = {"outputs": [run, problem], "concurrency_id": "runs", **private}
    page.load(find, outputs=[data, run], **private)
    page.load(check, data, [examples, findings, start], **private)
    data.change(check, data, [examples, findings, start], api_visibility="private", show_progress_on=examples)
    upload.upload(add, upload, [data, problem], api_visibility="private", show_progress_on=data)
    preset.change(set_length, preset, [steps, every], **private)
    chosen = [name, data, steps, batch_size, seed, size, every]
    start.click(
        partial(act, start_run), chosen, **changes | {"show_progress": "minimal", "show_progress_on": problem}
    ).then(**shown)
    stop.click(partial(act, stop_run), run, **changes).then(**shown)
    resume.click(partial(act, resume_run), run, **changes).then(**shown)
    run.change(**shown)
    timer.tick(**shown)
    place.input(show_samples, [run, place], [maps, pictures], trigger_mode="always_last", **private)
    _add_endpoints()
    return TrainTab(open_model, run)


def _plot(
    title: str,
    colours: dict[str, str] | None = None,
    y_format: str | None = None,
    limits: tuple[float, float] | None = None,
) -> gr.LinePlot:
    return gr.LinePlot(
        None,
        x="step",
        y="value",
        color="line" if colours else None,
        color_map=colours,
        color_title="",
        x_title="step",
        y_title=" ",
        y_axis_format=y_format,
        y_lim=limits,
        title=title,  # inside the plot, because a label above it pushes the legend out of the frame
        show_label=False,
        height=260,
        min_width=260,
        buttons=[],
        visible=False,  # until there are figures
    )


def _names() -> list[str]:
    return [run.name for run in list_runs(RUNS)]


def _add_endpoints() -> None:
    """Add the tab's endpoints to the API."""

    def runs() -> list[dict[str, Any]]:
        """List the training runs, active ones first: state, step, and last figures of each."""
        return [as_row(run) for run in list_runs(RUNS)]

    def train(
        name: str,
        data: str = DEFAULT_DATA,
        steps: int = 200,
        batch_size: int = 64,
        seed: int = 0,
        size: int = 64,
        every: int = 50,
    ) -> dict[str, Any]:
        """Start a training run on shapes, emoji or a folder that the page lists; /runs tells its progress."""
        return as_row(start_run(name, data, steps, batch_size, seed, size, every))

    def stop(name: str) -> dict[str, Any]:
        """Ask a run to finish its step, save and end; /runs tells when it has."""
        return as_row(stop_run(name))

    def resume(name: str) -> dict[str, Any]:
        """Resume a stopped run with the settings that it was started with."""
        return as_row(resume_run(name))

    gr.api(runs, api_name="runs")
    gr.api(endpoint(train), api_name="train", concurrency_id="runs")
    gr.api(endpoint(stop), api_name="stop", concurrency_id="runs")
    gr.api(endpoint(resume), api_name="resume", concurrency_id="runs")
