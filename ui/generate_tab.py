"""The Generate tab: type a prompt, watch the picture form, and see which word drew what."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import gradio as gr
from gradio.events import Dependency

from pipelines.samplers import OWN, SAMPLERS
from ui.drawing import (
    draw_live,
    linked,
    live_request,
    new_seed,
    own_settings,
    viewer_updates,
)
from ui.edit_text import placed_prompt, read_regions, still_placed
from ui.endpoint import Seed, offer
from ui.kept import Kept
from ui.labels import I18N
from ui.message import message
from ui.models import MODEL, Models
from ui.reading import read, reading
from ui.request import (
    MOST_PICTURES,
    MOST_STEPS,
    Request,
    interval_problems,
    negative_problems,
    seed_problems,
)
from ui.viewer.component import attention_viewer
from ui.vocabulary import EXAMPLES, describe, surprise, vocabulary


class GenerateTab(NamedTuple):
    """What the page needs of the tab.

    `draw_after` generates the text of `prompt` after a given event; with `other_model=True`, it first takes over the
    new model's own settings. The viewer's events "follow", "translate" and "attribute" carry {"prompt", "seed", "key",
    "image"} of the shown picture.
    """

    prompt: gr.Textbox
    viewer: gr.HTML
    draw_after: Callable[..., Dependency]


def prompt_row(prompt: str) -> tuple[gr.Textbox, gr.Button, gr.Button]:
    """A row with the field of the prompt, and buttons that draw it with the same seed and with a new one."""
    with gr.Row(equal_height=True):
        field = gr.Textbox(
            prompt,
            label=I18N("generate.prompt"),
            show_label=False,
            container=False,
            max_lines=4,
            scale=4,
            min_width=240,
        )
        button = gr.Button(I18N("generate.go"), variant="primary", scale=1, min_width=110)
        dice = gr.Button(I18N("generate.new seed"), scale=1, min_width=100)
    return field, button, dice


def generate_tab(page: gr.Blocks, models: Models, kept: Kept, model: gr.Dropdown) -> GenerateTab:
    """Build the tab in the current Gradio context; when `page` opens, it generates a first picture."""

    def show(*values: Any) -> Iterator[tuple[dict[str, Any], str, str]]:
        """The viewer's values, and the edits and the regions of the picture."""
        request = Request(*values)
        try:
            for value in viewer_updates(models, kept, request):
                yield value, request.edits, request.regions
        except ValueError as error:
            yield {"error": str(error)}, gr.skip(), gr.skip()

    def again(*values: Any) -> Iterator[tuple[dict[str, Any], str, str]]:
        """Without its edits, and with those of its placed phrases that the prompt still has."""
        *settings, placed = values
        yield from show(*settings, "", still_placed(settings[0], placed))

    def typed(prompt: str, name: str, live: bool, seed: str) -> tuple[Any, Any]:
        try:
            line = read(prompt, models.get(name).tokenizer, models.tokenizers(but=name))
            if not live or not prompt.strip() or line["error"]:
                return line, gr.skip()
            return line, draw_live(models, live_request(models, prompt, seed, name))
        except ValueError as error:
            return {"prompt": "", "unknown": [], "error": str(error)}, gr.skip()

    def choose_model(name: str, prompt: str) -> tuple[Any, Any, Any]:
        """A model's own settings; an example of another model's becomes one of its own."""
        try:
            pipe = models.get(name)
        except ValueError:  # "Generate" shows the error
            return (gr.skip(),) * 3
        own, examples = own_settings(pipe), describe(pipe.tokenizer, models.prompts(name))["examples"]
        foreign = any(prompt in some for some in EXAMPLES.values()) and prompt not in examples and examples
        return own["num_inference_steps"], own["guidance_scale"], examples[0] if foreign else gr.skip()

    def describe_model(name: str) -> Any:
        try:
            return describe(models.get(name).tokenizer, models.prompts(name))
        except ValueError:
            return gr.skip()

    def check_words(asked: Any) -> dict[str, Any]:
        """The words of a text that a model does not know; the viewer asks for it while a person types one."""
        try:
            line = read(str(asked["text"]), models.get(str(asked["model"])).tokenizer)
        except (ValueError, KeyError, TypeError) as error:
            return {"error": str(error)}
        return {"error": line["error"]} if line["error"] else {"unknown": line["unknown"]}

    def generate(
        prompt: str,
        negative_prompt: str = "",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_low: float = 0.0,
        guidance_high: float = 1.0,
        num_images_per_prompt: int = 1,
        seed: Seed = "0",
        sampler: str = OWN,
        model: str = "",
        edits: str = "",
        regions: str = "",
    ) -> dict[str, Any]:
        """Generate pictures, and find which word of the prompt drew which part of them.

        Args:
            prompt: what to draw, in words that the model knows.
            negative_prompt: what to steer away from, if the guidance scale is not 1.
            num_inference_steps: steps from noise to picture, 1 to 100; by default the model's own number.
            guidance_scale: scale of classifier-free guidance, 1 is none; by default the model's own.
            guidance_low: guidance acts at noise levels above this one, from 0 to 1.
            guidance_high: guidance acts at noise levels up to this one, from 0 to 1.
            num_images_per_prompt: number of pictures, 1 to 8. Picture i has the seed + i.
            seed: whole number from 0 to 2**64 - 1, as a text because numbers of JSON are exact only up to 2**53.
            sampler: the model's own by default; or Euler, Heun, DPM-Solver++ and the others of the page's menu.
            model: one of /models, by default the page's first.
            edits: changes of the picture by its words, such as "replace circle=star; reweight red=2; withhold a; remove
                square; paint star=8,8,40,40" (left, top, right, bottom in pixels); the picture is drawn before and
                after them. "keep" makes the picture so far the one that later edits change.
            regions: where phrases of the prompt are drawn, such as "red circle=4,4,28,28; blue square=36,36,60,60".

        Returns:
            answer: {"pictures", "note": a line}. Each picture has "picture" (PNG as a data URL), "prompt", "settings",
                "verdict" (statements of the prompt, "ok" is true, false or null for unsure), "tokens", "words" (the
                tokens of each word), "views": maps, base64 of uint8 (frames, tokens, rows, columns) in 255ths of
                their "peaks", and "edit": null, or "before" and "change" (PNGs as data URLs) and "checks": asked for,
                elsewhere unchanged.
        """
        own = own_settings(models.get(model or models.first))
        steps = own["num_inference_steps"] if num_inference_steps is None else num_inference_steps
        guidance = own["guidance_scale"] if guidance_scale is None else guidance_scale
        interval, count = (guidance_low, guidance_high), num_images_per_prompt
        guided = (steps, guidance, *interval, negative_prompt, sampler)
        request = Request(prompt, str(seed), *guided, count, model, edits, regions)
        *_, answer = viewer_updates(models, kept, request)
        return answer

    known = describe(models.get(models.first).tokenizer)
    first_prompt = (known["examples"] or [""])[0]
    words = vocabulary(known)
    prompt, button, dice = prompt_row(first_prompt)
    line = reading()
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            viewer = attention_viewer([*kept.functions(), check_words], past=True)
        with gr.Column(scale=1, min_width=260):
            live = gr.Checkbox(label=I18N("generate.live"))
            # A textbox, because numbers in a browser are exact only up to 2**53.
            seed = gr.Textbox("0", label=I18N("generate.seed"), info=I18N("generate.seed.info"))
            seed_problem = message("problem.")
            own = own_settings(models.get(models.first))
            with gr.Group() as settings:
                steps = gr.Slider(
                    1,
                    MOST_STEPS,
                    own["num_inference_steps"],
                    step=1,
                    precision=0,
                    label=I18N("generate.steps"),
                    info=I18N("generate.steps.info"),
                )
                guidance = gr.Slider(
                    0,
                    10,
                    own["guidance_scale"],
                    step=0.1,
                    label=I18N("generate.guidance"),
                    info=I18N("generate.guidance.info"),
                )
            with gr.Group(visible=False) as while_live:
                live_settings = message("generate.live.")
            with gr.Accordion(I18N("generate.more"), open=False) as more:
                negative = gr.Textbox(
                    "", label=I18N("generate.negative"), info=I18N("generate.negative.info"), max_lines=2
                )
                negative_problem = message("problem.")
                low = gr.Slider(0, 1, 0, step=0.05, label=I18N("generate.low"), info=I18N("generate.interval.info"))
                high = gr.Slider(0, 1, 1, step=0.05, label=I18N("generate.high"))
                interval_problem = message("problem.")
                sampler = gr.Dropdown(
                    [OWN, *SAMPLERS], value=OWN, label=I18N("generate.sampler"), info=I18N("generate.sampler.info")
                )
                count = gr.Slider(1, MOST_PICTURES, 1, step=1, precision=0, label=I18N("generate.count"))

    edits, regions = (gr.Textbox("", visible=False) for _ in range(2))  # those of a link or of the shown picture

    # Progress is shown on the prompt, because on the viewer it would fade the picture.
    asked = [prompt, seed, steps, guidance, low, high, negative, sampler, count, model]
    drawing: dict[str, Any] = {
        "inputs": asked,
        "outputs": [viewer, edits, regions],
        **MODEL,
        "show_progress": "minimal",
        "show_progress_on": prompt,
        "api_visibility": "private",
    }

    def take(query: Mapping[str, str]) -> list[Any]:
        """The controls for the settings of a link, and whether to draw them; an error is the viewer's value."""
        try:
            request = linked(query, models)
        except ValueError as error:
            listed = gr.Dropdown(models.names())
            return [*[gr.skip()] * (len(asked) - 1), listed, *[gr.skip()] * 2, {"error": str(error)}, False]
        values = list(asdict(request).values())
        chosen = gr.Dropdown(models.names(), value=request.model)
        return [values[0] or first_prompt, *values[1:-3], chosen, *values[-2:], gr.skip(), True]

    def restore(request: gr.Request) -> list[Any]:
        return take(dict(request.query_params))

    def revisit(event: gr.EventData) -> list[Any]:
        """The settings of an earlier picture."""
        return take({name: str(value) for name, value in event._data.items()})

    def place(event: gr.EventData, prompt: str) -> tuple[Any, ...]:
        """The prompt, and the phrases and boxes that a person has placed in the picture that is to be drawn, if any."""
        asked = str(event._data.get("regions", ""))
        try:
            placed = read_regions(asked)
            return placed_prompt(prompt, placed) if placed else prompt, "", asked, gr.skip(), True
        except ValueError as error:
            return (gr.skip(),) * 3 + ({"error": str(error)}, False)

    def take_example(event: gr.EventData, name: str) -> str:
        if event._data.get("surprise"):
            return surprise(models.get(name).tokenizer, random.Random())
        return str(event._data.get("prompt", ""))

    def add_word(event: gr.EventData, prompt: str) -> str:
        return f"{prompt.rstrip()} {event._data.get('word', '')}".lstrip()

    def take_model(event: gr.EventData) -> str:
        return str(event._data.get("model", ""))

    def go_live(on: bool, name: str) -> tuple[Any, ...]:
        """The live mode has settings of its own: it shows them in place of the controls, which have no effect."""
        try:
            request = live_request(models, "", "0", name)
        except ValueError:  # unknown model; "Generate" shows the error
            return (gr.skip(),) * 3 + ([],)
        about: dict[str, Any] = {"model": request.model or models.first, "steps": request.num_inference_steps}
        about["guidance"] = f"{request.guidance_scale:g}"
        line = [("generate.live.settings", about)]
        return gr.Group(visible=not on), gr.Accordion(visible=not on), gr.Group(visible=on), line

    def if_ready(ready: bool, *values: Any) -> Iterator[Any]:
        yield from show(*values) if ready else iter([(gr.skip(),) * 3])

    at_once: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    own_taken: dict[str, Any] = {"outputs": [steps, guidance, prompt], **at_once}
    ready = gr.Checkbox(visible=False)
    taken = {"outputs": [*asked, edits, regions, viewer, ready], **at_once}
    to_place = {"inputs": prompt, "outputs": [prompt, edits, regions, viewer, ready], **at_once}
    for settings_came in (
        page.load(restore, **taken),
        viewer.redraw(revisit, **taken),
        viewer.place(place, **to_place),
    ):
        settings_came.then(if_ready, **drawing | {"inputs": [ready, *asked, edits, regions]})
    viewer.select(revisit, **taken)
    drawing_again = drawing | {"fn": again, "inputs": [*asked, regions]}
    gr.on([button.click, prompt.submit, seed.submit], **drawing_again)
    viewer.go(**drawing_again)
    for fields, check, problem in (
        ([seed], seed_problems, seed_problem),
        ([negative], negative_problems, negative_problem),
        ([low, high], interval_problems, interval_problem),
    ):
        gr.on([field.change for field in fields], check, fields, problem, trigger_mode="always_last", **at_once)
    dice.click(new_seed, outputs=seed, api_visibility="private").then(**drawing_again)
    words.select(take_example, model, prompt, **at_once).then(show, **drawing)
    words.word(add_word, prompt, prompt, **at_once)
    line.select(take_example, model, prompt, **at_once).then(show, **drawing)
    chosen = line.model(take_model, outputs=model, **at_once)
    for event in (chosen, model.input(None)):
        event.then(choose_model, [model, prompt], **own_taken).then(show, **drawing)
    model.change(describe_model, model, words, **at_once)
    gr.on(
        [prompt.change, seed.change, live.change, model.change],
        typed,
        [prompt, model, live, seed],
        [line, viewer],
        trigger_mode="always_last",
        show_progress="hidden",
        queue=False,  # the queue polls 20 times a second, which is too slow while a person types
        api_visibility="private",
    )
    gr.on(
        [live.change, model.change],
        go_live,
        [live, model],
        [settings, more, while_live, live_settings],
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )
    offer(generate, "generate", **MODEL)

    def draw_after(event: Dependency, other_model: bool = False) -> Dependency:
        chosen = event.then(choose_model, [model, prompt], **own_taken) if other_model else event
        return chosen.then(show, **drawing)

    return GenerateTab(prompt, viewer, draw_after)
