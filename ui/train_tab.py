"""Choose data, train on it in a process of its own, and watch: losses, what the words have learnt, pictures, maps."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import pandas as pd
from PIL import Image

from pipelines.runs.machine import in_words
from pipelines.training.train import TrainConfig
from pipelines.training.validate import LEVELS, SHEET_COLUMNS
from ui import runs
from ui.album import album
from ui.album import page as album_page
from ui.data import SHAPES, add_upload, check_data, data_names, preview
from ui.models import RUNS, Models
from ui.runs import Run, check_name, find_run, list_runs

PRESETS = {"Quick try: 200 steps": (200, 50), "The hour: 4,000 steps": (4000, 500)}
"""What a preset is called -> steps, and steps between validations."""

LIMITS = {
    "steps": (1, 100_000),
    "every": (1, 100_000),
    "batch_size": (2, 512),
    "size": (32, 128),
    "seed": (0, 2**31 - 1),
}
"""Least and most of what a page may ask for: larger runs are the command line's."""

SIZES = (32, 64, 96, 128)

LEVEL_COLOURS = dict(zip(map(str, LEVELS), ("#4477dd", "#1b9e9e", "#5a9e2f", "#d98a00", "#d6456a"), strict=True))
SHARE_COLOURS = {"agreement": "#4477dd", "pointing": "#d98a00"}


class TrainTab(NamedTuple):
    """What the page wires: the button that opens a run's model, and which run is chosen (see `model_of`)."""

    open: gr.Button
    run: gr.Dropdown


def begin(name: str, data: str, steps: int, batch_size: int, seed: int, size: int, every: int) -> Run:
    """Start a run under `RUNS`.

    Raises:
        ValueError: something typed is out of its range, there is such a run, or another is being trained.
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


def go_on(name: str) -> Run:
    """Resume a run under `RUNS`. Raises ValueError if it cannot be, or another is being trained."""
    run = find_run(RUNS, name)
    _check_alone()
    return runs.resume(run)


def end(name: str) -> Run:
    """Stop a run under `RUNS`. Raises ValueError if there is nothing to stop."""
    return runs.stop(find_run(RUNS, name))


def _check_alone() -> None:
    if active := [run.name for run in list_runs(RUNS) if run.active]:
        raise ValueError(f"the run {active[0]!r} is being trained: stop it first, two would slow each other down")


def model_of(models: Models, name: str | None) -> str:
    """The name that `models` has for what a run has trained so far.

    Raises:
        ValueError: no run is chosen, or it has not saved a model yet.
    """
    if not name:
        raise ValueError("choose a run first")
    model = str(find_run(RUNS, name).folder)
    if model not in models.names():
        raise ValueError(f"the run {name!r} has not saved a model yet")
    return model


def as_row(run: Run) -> dict[str, Any]:
    """A run as the API tells of it: its state, where it stands, and its last figures."""
    figures = {**(run.log[-1] if run.log else {}), **(run.validation[-1] if run.validation else {})}
    row = {key: getattr(run, key) for key in ("name", "state", "step", "steps", "data", "note")}
    return row | {"figures": figures}


def describe(run: Run) -> str:
    """Where a run stands, in one line."""
    if run.state == "starting":
        return f"{run.name} is starting: libraries and data are being loaded."
    line = f"{run.name} is {run.state}"
    if run.steps:
        line += f" at step {run.step:,} of {run.steps:,}" if run.state != "finished" else f" after {run.steps:,} steps"
    if run.log:
        last = run.log[-1]
        line += f", {in_words(last['seconds'])}, loss {last['loss']:.3f}"
        line += f", {last['pictures/s']:.0f} pictures a second" if run.state == "running" and last["pictures/s"] else ""
        line += f", {in_words(run.seconds_left)} left" if run.seconds_left is not None else ""
    if run.validation and "agreement" in run.validation[-1]:
        last = run.validation[-1]
        line += f", {round(last['agreement'] * last['judged'])} of {last['judged']} samples right"
    return f"{line}. {run.note}".rstrip()


def plots(run: Run) -> list[pd.DataFrame | None]:
    """What the four plots show: training loss, loss per level, what the right caption saves, agreement and pointing.

    Each has the columns step and value, the last three line too; None as long as there is nothing to show.
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
    """The step of the saved samples at a place from 1 on, its pictures with their prompts, and its words' maps."""
    step = run.samples[min(max(index, 1), len(run.samples)) - 1]
    sheet, words = (_picture(run.folder / "samples" / f"{kind}-{step:06d}.png") for kind in ("step", "words"))
    maps = [(words, "")] if words else []
    if sheet is None or not run.prompts:  # a run of before prompts were kept
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
    """Lay the tab out where the caller is, and wire it, but for the button that opens the model elsewhere.

    `page` is the whole page: when it opens, it finds the run that is being trained.
    """
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            data = gr.Dropdown(data_names(), value=SHAPES, label="Data")
            upload = gr.UploadButton("Upload pictures as a .zip", file_types=[".zip"], size="sm")
            examples = album("Examples", 88)
            findings = gr.Textbox(label="Findings", lines=1, max_lines=6, interactive=False)
            preset = gr.Radio(list(PRESETS), value=next(iter(PRESETS)), label="Length")
            with gr.Accordion("Options", open=False):
                with gr.Row():
                    steps = gr.Number(200, label="Steps", precision=0, min_width=100)
                    every = gr.Number(50, label="Validate every", precision=0, min_width=100)
                with gr.Row():
                    batch_size = gr.Number(64, label="Pictures a step", precision=0, min_width=100)
                    seed = gr.Number(0, label="Seed", precision=0, min_width=100)
                    size = gr.Dropdown(list(SIZES), value=64, label="Pixels", min_width=100)
            name = gr.Textbox("first", label="Name of the run", max_length=64)
            start = gr.Button("Start", variant="primary")
            refused = gr.Textbox(label="Not done", visible=False, interactive=False)
        with gr.Column(scale=3, min_width=320):
            run = gr.Dropdown([], label="Run")
            state = gr.Textbox(label="State", value="No run yet.", interactive=False, lines=1, max_lines=3)
            with gr.Row():
                stop = gr.Button("Stop", interactive=False, min_width=90)
                resume = gr.Button("Resume", interactive=False, min_width=90)
                open_model = gr.Button("Open in Generate", interactive=False, min_width=90)
            with gr.Row():
                training = _plot("Training loss")
                losses = _plot("Loss by noise level", LEVEL_COLOURS)
            with gr.Row():
                saved = _plot("Loss the right caption saves", LEVEL_COLOURS, "%")
                shares = _plot("Samples right, words that point", SHARE_COLOURS, "%", (0, 1))
    place = gr.Slider(1, 2, 1, step=1, precision=0, label="Saved samples", visible=False)
    with gr.Row():
        with gr.Column(min_width=320):
            maps = album("Where the words of the first sample landed", 320)
        with gr.Column(min_width=320):
            pictures = album("Samples", 80)
    timer = gr.Timer(2, active=False)
    # Of the chosen run: what the page shows already. No gr.State: with one on it, a page never comes to rest.
    seen = gr.JSON({}, visible=False)
    sheets = [place, maps, pictures]
    watched = [state, stop, resume, open_model, training, losses, saved, shares, *sheets, timer, seen]

    def look_over(name: str) -> tuple[Any, ...]:
        found = preview(name, 64)
        shown = album_page((Image.fromarray(e.picture), e.caption) for e in found.examples)
        return shown, "\n".join(found.findings), gr.Button(interactive=found.usable)

    def take(file: str) -> tuple[Any, ...]:
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
        """All there is to see of a run, unless the page shows it already; the newest samples, or those looked at."""
        seen = seen or {}
        try:
            chosen = find_run(RUNS, name or "")
        except ValueError as error:
            said = _line(error) if name else "No run yet: choose data and start one."
            return (said, *[gr.skip()] * (len(watched) - 3), gr.Timer(active=False), {})
        count, before = len(chosen.samples), seen.get("count", 0) if seen.get("name") == name else 0
        now = as_row(chosen) | {"rows": len(chosen.log), "count": count}
        if now == seen:
            return (gr.skip(),) * len(watched)
        index = count if index >= before else index
        *drawn, judged = plots(chosen)  # the last has something to show on scenes only
        return (
            describe(chosen),
            gr.Button(interactive=chosen.state in ("starting", "running")),
            gr.Button(interactive=chosen.state == "stopped"),
            gr.Button(interactive=str(chosen.folder) in models.names()),
            *drawn,
            gr.update(value=judged, visible=judged is not None or not chosen.validation),
            gr.Slider(1, max(count, 2), value=max(index, 1), visible=count > 1),
            *([gr.skip()] * 2 if count == before and before else show_samples(name, index)),
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
    one: dict[str, Any] = {"outputs": [run, refused], "concurrency_id": "runs", **private}
    page.load(find, outputs=[data, run], **private)
    page.load(look_over, data, [examples, findings, start], **private)
    data.change(look_over, data, [examples, findings, start], api_visibility="private", show_progress_on=examples)
    upload.upload(take, upload, [data, refused], api_visibility="private", show_progress_on=data)
    preset.change(set_length, preset, [steps, every], **private)
    chosen = [name, data, steps, batch_size, seed, size, every]
    start.click(partial(act, begin), chosen, **one | {"show_progress": "minimal", "show_progress_on": refused}).then(
        **shown
    )
    stop.click(partial(act, end), run, **one).then(**shown)
    resume.click(partial(act, go_on), run, **one).then(**shown)
    run.change(**shown)
    timer.tick(**shown)
    place.input(show_samples, [run, place], [maps, pictures], trigger_mode="always_last", **private)
    _offer()
    return TrainTab(open_model, run)


def _plot(
    title: str,
    colours: dict[str, str] | None = None,
    form: str | None = None,
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
        y_axis_format=form,
        y_lim=limits,
        title=title,  # in the drawing: above it, it would push the legend out of its frame
        show_label=False,
        height=260,
        min_width=260,
        buttons=[],
    )


def _names() -> list[str]:
    return [run.name for run in list_runs(RUNS)]


def _offer() -> None:
    """The tab's part of the page's API."""

    def told(action: Callable[..., Run], *typed: Any) -> dict[str, Any]:
        try:
            return as_row(action(*typed))
        except (ValueError, OSError) as error:
            raise gr.Error(_line(error), print_exception=False) from None

    def runs() -> list[dict[str, Any]]:
        """The training runs, those being trained first: state, step, and the last figures of each."""
        return [as_row(run) for run in list_runs(RUNS)]

    def train(
        name: str,
        data: str = SHAPES,
        steps: int = 200,
        batch_size: int = 64,
        seed: int = 0,
        size: int = 64,
        every: int = 50,
    ) -> dict[str, Any]:
        """Start training on shapes, emoji or a folder of the page's: how it stands, see /runs for how it goes on."""
        return told(begin, name, data, steps, batch_size, seed, size, every)

    def stop(name: str) -> dict[str, Any]:
        """Let a run finish its step, save and end; /runs says when it has."""
        return told(end, name)

    def resume(name: str) -> dict[str, Any]:
        """Go on with a run that was stopped, with the settings it began with."""
        return told(go_on, name)

    gr.api(runs, api_name="runs")
    gr.api(train, api_name="train", concurrency_id="runs")
    gr.api(stop, api_name="stop", concurrency_id="runs")
    gr.api(resume, api_name="resume", concurrency_id="runs")
