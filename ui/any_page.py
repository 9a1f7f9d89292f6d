"""The page of a pipeline of diffusers: Generate, and Your picture if the pipeline can read one."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.tracing.verify import PROMPT
from ui.any_drawing import viewer_updates
from ui.any_model import OneModel
from ui.drawing import linked, new_seed
from ui.endpoint import Seed, offer
from ui.generate_tab import prompt_row
from ui.kept import Kept
from ui.labels import I18N
from ui.language import CHANGE
from ui.message import message
from ui.picture_tab import picture_tab, taken_over
from ui.request import MOST_STEPS, Request, negative_problems, seed_problems
from ui.viewer.component import attention_viewer

PRIVATE: dict[str, Any] = {"api_visibility": "private"}
AT_ONCE: dict[str, Any] = {**PRIVATE, "queue": False, "show_progress": "hidden"}


def any_page(model: OneModel) -> gr.Blocks:
    """The page. What its model cannot do is not there: tabs, settings, samplers, the live mode, verdicts."""
    kept = Kept()

    def list_models() -> list[str]:
        """List the models that can be named in other calls.

        Returns:
            names: the only model of this page.
        """
        return model.names()

    with gr.Blocks(title="unet-xattn", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        with gr.Row(elem_classes="head", equal_height=True):
            gr.Markdown(I18N("page.title"), min_width=0)
            gr.Markdown(I18N("page.model"), elem_classes="of-model", min_width=0)
            name = Path(model.first).name.replace("`", "")
            gr.Markdown(f"`{name}`", elem_classes="only-model", min_width=0)
            other_language = gr.Button(I18N("page.language"), size="sm", scale=0, min_width=60)
        with gr.Tabs() as tabs:
            with gr.Tab(I18N("page.generate"), id="generate"):
                viewer = generate_tab(page, model, kept)
            if model.abilities.attributes:
                with gr.Tab(I18N("page.picture"), id="picture"):
                    attributing = picture_tab(model, kept, gr.Textbox(model.first, visible=False))
                reached = [attributing.picture, attributing.caption, tabs]
                attributing.read_after(viewer.attribute(taken_over(kept), outputs=reached, **PRIVATE))
        other_language.click(None, js=CHANGE, **PRIVATE)
        offer(list_models, "models")
    return page.queue(max_size=32)


def generate_tab(page: gr.Blocks, model: OneModel, kept: Kept) -> gr.HTML:
    """Build the tab in the current Gradio context. A link draws its picture when `page` opens; else nothing is drawn
    until somebody asks for it, because a large model takes long."""
    able, own = model.abilities, model.abilities.own

    def show(*values: Any) -> Iterator[dict[str, Any]]:
        try:
            yield from viewer_updates(model, kept, Request(**dict(zip(names, values, strict=True))))
        except ValueError as error:
            yield {"error": str(error)}

    def generate(
        prompt: str,
        negative_prompt: str = "",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: Seed = "0",
        model_name: str = "",
    ) -> dict[str, Any]:
        """Generate a picture, and find which word of the prompt drew which part of it.

        Args:
            prompt: what to draw.
            negative_prompt: what to steer away from, where the model has that.
            num_inference_steps: steps from noise to picture, 1 to 100; by default the model's own number.
            guidance_scale: scale of its guidance, where it has any; by default the model's own.
            seed: whole number from 0 to 2**64 - 1, as a text because numbers of JSON are exact only up to 2**53.
            model_name: the one of /models, or "".

        Returns:
            answer: {"pictures", "note": a line}. The picture has "picture" (a data URL), "prompt", "settings", "words"
                (the tokens of each), "tokens" and "views": maps, base64 of uint8 (frames, tokens, rows, columns) in
                255ths of their "peaks".
        """
        steps = own["num_inference_steps"] if num_inference_steps is None else num_inference_steps
        scale = own["guidance_scale"] if guidance_scale is None else guidance_scale
        if guidance_scale is not None and able.guidance is None:
            raise ValueError("this model has no guidance: leave out guidance_scale")
        if negative_prompt and not able.negative:
            raise ValueError("this model takes no negative prompt: leave it out")
        *_, answer = viewer_updates(
            model, kept, Request(prompt, str(seed), steps, scale, negative_prompt=negative_prompt, model=model_name)
        )
        return answer

    prompt, button, dice = prompt_row(PROMPT)
    message("other.", [("other.about", {"kind": type(model.pipe).__name__})])
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            reach = ["attribute"] if able.attributes else []
            viewer = attention_viewer(kept.functions(), past=True, reach=reach, edits=False)
        with gr.Column(scale=1, min_width=260):
            seed = gr.Textbox("0", label=I18N("generate.seed"), info=I18N("generate.seed.info"))
            seed_problem = message("problem.")
            steps = gr.Slider(
                1,
                MOST_STEPS,
                own["num_inference_steps"],
                step=1,
                precision=0,
                label=I18N("generate.steps"),
                info=I18N("generate.steps.info"),
            )
            controls: dict[str, Any] = {"prompt": prompt, "seed": seed, "num_inference_steps": steps}
            if able.guidance:
                controls["guidance_scale"] = gr.Slider(
                    0,
                    max(10, own["guidance_scale"]),
                    own["guidance_scale"],
                    step=0.1,
                    label=I18N("generate.guidance"),
                    info=I18N("other.guidance.info"),
                )
            if able.negative:
                info = I18N("generate.negative.info" if able.guidance else "other.negative.info")
                controls["negative_prompt"] = gr.Textbox("", label=I18N("generate.negative"), info=info, max_lines=2)
                negative_problem = message("problem.")
    names, asked = list(controls), list(controls.values())
    drawing: dict[str, Any] = {
        "inputs": asked,
        "outputs": viewer,
        "show_progress": "minimal",
        "show_progress_on": prompt,
        **model.events,
        **PRIVATE,
    }

    def take(query: Mapping[str, str]) -> list[Any]:
        """The controls for the settings of a link, the viewer's value, and whether to draw them."""
        if not query:
            return [*[gr.skip()] * len(asked), gr.skip(), False]
        try:
            settings = asdict(linked(query, model))
        except ValueError as error:
            return [*[gr.skip()] * len(asked), {"error": str(error)}, False]
        return [*(settings[name] or gr.skip() for name in names), gr.skip(), bool(settings["prompt"])]

    def restore(request: gr.Request) -> list[Any]:
        return take(dict(request.query_params))

    def revisit(event: gr.EventData) -> list[Any]:
        """The settings of an earlier picture."""
        return take({name: str(value) for name, value in event._data.items()})

    def if_ready(ready: bool, *values: Any) -> Iterator[Any]:
        yield from show(*values) if ready else iter([gr.skip()])

    ready = gr.Checkbox(visible=False)
    taken: dict[str, Any] = {"outputs": [*asked, viewer, ready], **AT_ONCE}
    for settings_came in (page.load(restore, **taken), viewer.redraw(revisit, **taken)):
        settings_came.then(if_ready, **drawing | {"inputs": [ready, *asked]})
    viewer.select(revisit, **taken)
    gr.on([button.click, prompt.submit, seed.submit], show, **drawing)
    viewer.go(show, **drawing)
    dice.click(new_seed, outputs=seed, **PRIVATE).then(show, **drawing)
    seed.change(seed_problems, seed, seed_problem, trigger_mode="always_last", **AT_ONCE)
    if able.negative:
        negative = controls["negative_prompt"]
        negative.change(negative_problems, negative, negative_problem, trigger_mode="always_last", **AT_ONCE)
    offer(generate, "generate", **model.events)
    return viewer
