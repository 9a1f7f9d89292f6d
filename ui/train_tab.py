"""The Train tab: choose data, train on it in a separate process, and watch losses, samples and the words' maps."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from gradio.i18n import I18nData
from PIL import Image

from pipelines.training.config import RUNS
from ui.album import album
from ui.album import page as album_page
from ui.data import DEFAULT_DATA, add_upload, data_names, preview
from ui.endpoint import offer
from ui.labels import I18N
from ui.message import message
from ui.models import Models
from ui.runs import Run, find_run, list_runs
from ui.texts import Message
from ui.training import (
    FRESH,
    LEVEL_COLOURS,
    PICTURE_SIZES,
    PRESETS,
    SHARE_COLOURS,
    as_row,
    delete_run,
    describe,
    expected,
    line_of,
    plots,
    rename_run,
    resume_run,
    samples_at,
    start_run,
    stop_run,
    strip,
    usual_size,
)

NO_RUNS: list[Message] = [("training.none", {})]


class TrainTab(NamedTuple):
    """What the page needs of the tab: the button that opens a run's model, and the chosen run (see `model_of`)."""

    open: gr.Button
    run: gr.Dropdown


def train_tab(page: gr.Blocks, models: Models) -> TrainTab:
    """Build the tab in the current Gradio context; when `page` opens, it shows the active or newest run.

    The caller adds the event of the button that opens a run's model.
    """
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            data = gr.Dropdown(data_names(), value=DEFAULT_DATA, label=I18N("train.data"))
            upload = gr.UploadButton(I18N("train.upload"), file_types=[".zip"], size="sm")
            upload_problem = message("problem.")
            examples = album("album.examples", 88)
            findings = message(
                "train.finding", label=I18N("train.check"), show_label=True, container=True, elem_classes="findings"
            )
            preset = gr.Radio(
                [(I18N(key), key) for key in PRESETS], value=next(iter(PRESETS)), label=I18N("train.length")
            )
            with gr.Accordion(I18N("train.more"), open=False):
                with gr.Row():
                    steps = gr.Number(200, label=I18N("train.steps"), precision=0, min_width=100)
                    every = gr.Number(50, label=I18N("train.every"), precision=0, min_width=100)
                with gr.Row():
                    batch_size = gr.Number(64, label=I18N("train.batch"), precision=0, min_width=100)
                    seed = gr.Number(0, label=I18N("train.seed"), precision=0, min_width=100)
                    size = gr.Dropdown(list(PICTURE_SIZES), value=64, label=I18N("train.size"), min_width=100)
            begin = gr.Dropdown(_beginnings(), value=FRESH, label=I18N("train.begin"), info=I18N("train.begin.info"))
            name = gr.Textbox("first", label=I18N("train.name"), max_length=64)
            duration = message("training.", expected(200, 64, 64))
            start = gr.Button(I18N("train.start"), variant="primary")
            problem = message("problem.")
        with gr.Column(scale=3, min_width=320):
            run = gr.Dropdown([], label=I18N("train.run"))
            state = message("training.", NO_RUNS)
            with gr.Row():
                stop = gr.Button(I18N("train.stop"), interactive=False, min_width=90)
                resume = gr.Button(I18N("train.resume"), interactive=False, min_width=90)
                open_model = gr.Button(I18N("train.open"), interactive=False, min_width=90)
            with gr.Accordion(I18N("train.manage"), open=False):
                with gr.Row():
                    new_name = gr.Textbox(
                        "", label=I18N("train.new name"), info=I18N("train.new name.info"), max_length=64
                    )
                    rename = gr.Button(I18N("train.rename"), min_width=90)
                    delete = gr.Button(I18N("train.delete"), min_width=90)
                manage_problem = message("problem.")
            with gr.Row():
                training = _plot(I18N("train.loss"))
                losses = _plot(I18N("train.validation"), LEVEL_COLOURS)
            with gr.Row():
                saved = _plot(I18N("train.reduction"), LEVEL_COLOURS, "%")
                shares = _plot(I18N("train.shares"), SHARE_COLOURS, "%", (0, 1))
    through_time = album("album.strip", 64)
    place = gr.Slider(1, 2, 1, step=1, precision=0, label=I18N("train.samples"), visible=False)
    with gr.Row():
        with gr.Column(min_width=320):
            maps = album("album.words", 320)
        with gr.Column(min_width=320):
            pictures = album("album.samples", 80)
    timer = gr.Timer(2, active=False)
    # What the page shows of the chosen run. Not a gr.State, because a page with one never becomes idle.
    seen = gr.JSON({}, visible=False)
    # Which samples the albums show. They change with it, because Gradio forgets the settings of one of our components
    # that is skipped while its tab is closed. The slider is no help: its value comes late if it was hidden.
    sheet = gr.JSON({}, visible=False)
    watched = [state, stop, resume, open_model, training, losses, saved, shares, place, sheet, timer, seen]

    def check(name: str) -> tuple[Any, ...]:
        found = preview(name, 64)
        shown = album_page((Image.fromarray(e.picture), e.caption) for e in found.examples)
        said: list[Message] = [("train.finding", {"line": line}) for line in found.findings]
        return shown, said, gr.Button(interactive=found.usable)

    def add(file: str) -> tuple[Any, ...]:
        try:
            chosen = add_upload(Path(file))
        except (ValueError, OSError) as error:
            return gr.skip(), [("problem.line", {"line": line_of(error)})]
        return gr.Dropdown(data_names(), value=chosen), []

    def manage(action: Callable[..., Run | None], chosen: str | None, typed: str) -> tuple[Any, ...]:
        try:
            left = action(chosen or "", typed)
        except (ValueError, OSError) as error:
            return gr.skip(), [("problem.line", {"line": line_of(error)})]
        names = _names()
        return gr.Dropdown(names, value=left.name if left else next(iter(names), None)), []

    def set_length(name: str) -> tuple[int, int]:
        return PRESETS[name]

    def act(action: Callable[..., Run], *typed: Any) -> tuple[Any, ...]:
        try:
            chosen = action(*typed)
        except (ValueError, OSError) as error:
            return gr.skip(), [("problem.line", {"line": line_of(error)})]
        return gr.Dropdown(_names(), value=chosen.name), []

    def show(name: str | None, index: int, seen: dict[str, Any] | None) -> tuple[Any, ...]:
        """All outputs for a run, or skips if nothing has changed; new samples are shown, else those at `index`."""
        seen = seen or {}
        try:
            chosen = find_run(RUNS, name or "")
        except ValueError as error:
            line: list[Message] = [("training.error", {"line": line_of(error)})] if name else NO_RUNS
            return (line, *[gr.skip()] * (len(watched) - 4), {}, gr.Timer(active=False), {})
        count, known = len(chosen.samples), seen.get("count", 0) if seen.get("name") == name else 0
        now: dict[str, Any] = as_row(chosen) | {"rows": len(chosen.log), "count": count}
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
            gr.skip() if count == known and known else {"run": name, "index": index, "count": count},
            gr.Timer(active=chosen.active),
            now,
        )

    def show_samples(name: str | None, index: int) -> tuple[Any, ...]:
        if not name or not (chosen := find_run(RUNS, name)).samples:
            return None, None, None
        step, drawn, words = samples_at(chosen, index)
        return album_page(strip(chosen)), album_page(words, step), album_page(drawn, step)

    def show_sheet(sheet: dict[str, Any]) -> tuple[Any, ...]:
        return show_samples(sheet.get("run"), sheet.get("index", 1))

    def find() -> tuple[Any, ...]:
        names = _names()
        return gr.Dropdown(data_names()), gr.Dropdown(names, value=names[0] if names else None)

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    shown: dict[str, Any] = {"fn": show, "inputs": [run, place, seen], "outputs": watched, **private}
    changes: dict[str, Any] = {"outputs": [run, problem], "concurrency_id": "runs", **private}
    page.load(find, outputs=[data, run], **private)
    page.load(check, data, [examples, findings, start], **private)
    data.change(check, data, [examples, findings, start], api_visibility="private", show_progress_on=examples)
    upload.upload(add, upload, [data, upload_problem], api_visibility="private", show_progress_on=data)
    data.input(usual_size, data, size, **private)
    preset.change(set_length, preset, [steps, every], **private)
    gr.on([steps.change, batch_size.change, size.change], expected, [steps, batch_size, size], duration, **private)
    begin.focus(begin_choices, outputs=begin, **private)
    chosen = [name, data, steps, batch_size, seed, size, every, begin]
    managed: dict[str, Any] = {"inputs": [run, new_name], "outputs": [run, manage_problem], **private}
    rename.click(partial(manage, rename_run), **managed).then(**shown)
    delete.click(partial(manage, delete_run), **managed).then(**shown)
    start.click(
        partial(act, start_run), chosen, **changes | {"show_progress": "minimal", "show_progress_on": problem}
    ).then(**shown)
    stop.click(partial(act, stop_run), run, **changes).then(**shown)
    resume.click(partial(act, resume_run), run, **changes).then(**shown)
    run.change(**shown)
    timer.tick(**shown)
    albums = {"outputs": [through_time, maps, pictures], "trigger_mode": "always_last", **private}
    place.input(show_samples, [run, place], **albums)
    sheet.change(show_sheet, sheet, **albums)
    _add_endpoints()
    return TrainTab(open_model, run)


def _plot(
    title: I18nData,
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


def begin_choices() -> gr.Dropdown:
    return gr.Dropdown(_beginnings())


def _beginnings() -> list[tuple[str | I18nData, str]]:
    return [(I18N("train.begin.fresh"), FRESH), *((name, name) for name in Models.saved())]


def _names() -> list[str]:
    return [run.name for run in list_runs(RUNS)]


def _add_endpoints() -> None:
    """Add the tab's endpoints to the API."""

    def runs() -> list[dict[str, Any]]:
        """List the training runs.

        Returns:
            runs: active ones first; of each its name, state, step of steps, data, note and last figures.
        """
        return [as_row(run) for run in list_runs(RUNS)]

    def train(
        name: str,
        data: str = DEFAULT_DATA,
        steps: int = 200,
        batch_size: int = 64,
        seed: int = 0,
        size: int = 64,
        every: int = 50,
        begin_from: str = FRESH,
    ) -> dict[str, Any]:
        """Start a training run; /runs has its progress.

        Args:
            name: the name of the new run: letters, digits, - and _.
            data: shapes, emoji, everyday or a folder that the page lists.
            steps: training steps.
            batch_size: pictures per step.
            seed: random seed of the run.
            size: side of the pictures in pixels.
            every: steps between validations.
            begin_from: a model that is trained further, one of /models; "" begins without any training.

        Returns:
            run: as /runs has it.
        """
        return as_row(start_run(name, data, steps, batch_size, seed, size, every, begin_from))

    def stop(name: str) -> dict[str, Any]:
        """Ask a run to finish its step, save and end; /runs says when it has.

        Args:
            name: the name of an active run.

        Returns:
            run: as /runs has it.
        """
        return as_row(stop_run(name))

    def resume(name: str) -> dict[str, Any]:
        """Resume a stopped run with the settings that it was started with.

        Args:
            name: the name of the run.

        Returns:
            run: as /runs has it.
        """
        return as_row(resume_run(name))

    offer(runs, "runs")
    offer(train, "train", concurrency_id="runs")
    offer(stop, "stop", concurrency_id="runs")
    offer(resume, "resume", concurrency_id="runs")
