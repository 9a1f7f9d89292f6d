"""The Inspect tab: follow one query through one head, with every number between its q and its output."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import gradio as gr
from gradio.events import Dependency

from pipelines import TextToImagePipeline
from pipelines.checks import check_prompt, check_text, parse_seed
from pipelines.tracing.follow import Query, Trajectory, decoder_layers, draw_states, follow_picture, follow_text
from ui.endpoint import Seed, offer
from ui.labels import I18N
from ui.models import MODEL, Models
from ui.notes import text_messages
from ui.query import picture_payload, query_diagram, text_payload
from ui.texts import lines
from ui.translate_tab import translator

PROMPT = "a red circle left of a blue square"
READERS = ("picture", "translation")
"""The readers of the memory: the UNet, which generates a picture, or the text decoder, which translates."""

MAX_STEPS = 100
"""The limit for API clients, because the UNet's input at each step is kept until the query is answered."""

KEPT_PICTURES = 4
"""The number of pictures for which the UNet's input at each step is kept."""


def record_inputs(
    pipe: TextToImagePipeline, prompt: str, seed: str | int, steps: int | None = None, guidance: float | None = None
) -> Trajectory:
    """Generate a picture and keep the input of the UNet at each step.

    Raises:
        ValueError: an argument is out of its range; the message is one line.
    """
    check_prompt(prompt)
    if steps is not None and steps > MAX_STEPS:
        raise ValueError(f"num_inference_steps must be at most {MAX_STEPS}, got {steps}")
    return draw_states(pipe, prompt, parse_seed(seed), steps, guidance)


def look_at_picture(pipe: TextToImagePipeline, drawing: Trajectory, step: int, layer: str) -> dict[str, Any]:
    """The diagram's value for a layer at a step, counted from 0. Raises as `follow_picture` does."""
    trust, notes = trusted(pipe, layer), text_messages(drawing.prompt, pipe.tokenizer)
    shown = picture_payload(drawing, follow_picture(pipe, drawing, step, layer))
    return shown | {"head": trust.index(max(trust)), "notes": notes, "note": lines(notes)}


def look_at_text(pipe: TextToImagePipeline, text: str, layer: str) -> dict[str, Any]:
    """The diagram's value for a decoder layer that translates a text.

    Raises:
        ValueError: the text is empty or too long, the layer does not exist, or the model has no text decoder.
    """
    check_text(text)
    shown = text_payload(follow_text(translator(pipe), text, layer))
    notes = text_messages(text, pipe.tokenizer)
    return shown | {"notes": notes, "note": lines(notes)}


def layers(pipe: TextToImagePipeline, reader: str) -> list[tuple[str, str]]:
    """The cross-attention layers of one of `READERS` in the order they run, as (label, name).

    Raises:
        ValueError: the reader is the text decoder, and the model has none.
    """
    if reader == "translation":
        return [(f"Decoder layer {i}", name) for i, name in enumerate(decoder_layers(translator(pipe)), 1)]
    size = pipe.unet.config.sample_size
    grids = pipe.unet.attention_grids(size, size)
    return [(f"{name} · {rows}×{columns}", name) for name, (rows, columns) in grids.items()]


def trusted(pipe: TextToImagePipeline, layer: str) -> list[float]:
    """The calibrated weight of each head of a UNet layer, zeros if the model has no calibration."""
    return (pipe.config.calibration or {}).get(layer) or [0.0] * pipe.unet.config.heads


def first_layer(pipe: TextToImagePipeline, reader: str) -> str:
    """The layer to show first: the one whose head has the largest calibrated weight, else the last.

    Raises:
        ValueError: the reader is the text decoder, and the model has none.
    """
    names = [name for _, name in layers(pipe, reader)]
    return names[-1] if reader == "translation" else max(reversed(names), key=lambda name: max(trusted(pipe, name)))


def numbers(query: Query, **about: Any) -> dict[str, Any]:
    """The JSON data of a query: the fields of `Query` as lists, and further values."""
    parts = {name: part.tolist() for name, part in vars(query).items() if name != "tokens"}
    return {"tokens": list(query.tokens)} | parts | about


class InspectTab(NamedTuple):
    """What the page needs of the tab: the controls that say what is followed, and a function that follows it after an
    event."""

    prompt: gr.Textbox
    reader: gr.Radio
    seed: gr.Textbox
    follow_after: Callable[[Dependency], Dependency]


def inspect_tab(models: Models, model: gr.components.Component) -> InspectTab:
    """Build the tab in the current Gradio context; the value of `model` is the name of the model to inspect."""

    # With the last pictures kept, another step or layer costs only one pass of the UNet. All users of the page share
    # them, because a gr.State would hold a connection open for each user.
    recorded = lru_cache(KEPT_PICTURES)(record_inputs)

    def answer(name: str, reader: str, prompt: str, seed: str, step: float, layer: str) -> dict[str, Any]:
        try:
            pipe = models.get(name)
            if reader == "translation":
                return look_at_text(pipe, prompt, layer)
            return look_at_picture(pipe, recorded(pipe, prompt, seed), int(step) - 1, layer)
        except ValueError as error:
            return {"error": str(error)}

    def change_reader(name: str, reader: str, step: float) -> tuple[gr.Dropdown, gr.Slider, gr.Textbox]:
        """The controls for a reader. If the model lacks it, there are no layers, and `answer` gives the error."""
        try:
            pipe = models.get(name)
            layer = gr.Dropdown(layers(pipe, reader), value=first_layer(pipe, reader))
            steps = pipe.config.num_inference_steps
        except ValueError:
            layer, steps = gr.Dropdown([], value=None), int(step)
        here = gr.Slider(maximum=steps, value=min(int(step), steps), visible=reader == "picture")
        return layer, here, gr.Textbox(visible=reader == "picture")

    def follow(
        prompt: str,
        x: int,
        y: int,
        seed: Seed = "0",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        step: int | None = None,
        layer: str = "",
        head: int = 0,
        model: str = "",
    ) -> dict[str, Any]:
        """Follow one query of a generated picture through one head, with every number between its q and its output.

        Args:
            prompt: what to draw.
            x: the column of the pixel whose query is followed.
            y: the row of the pixel.
            seed: whole number from 0 to 2**64 - 1, as a text because numbers of JSON are exact only up to 2**53.
            num_inference_steps: steps from noise to picture; by default the model's own number.
            guidance_scale: scale of classifier-free guidance, 1 is none; by default the model's own.
            step: the step that is followed, counted from 0; by default the middle one.
            layer: a cross-attention layer of the UNet; by default the one whose head locates words best.
            head: a head of the layer, counted from 0.
            model: one of /models, by default the page's first.

        Returns:
            query: "tokens", "q", "k", "products", "scaled", "mask", "weights", "v", "out", and where the query is.
        """
        pipe = models.get(model or models.first)
        drawing = record_inputs(pipe, prompt, seed, num_inference_steps, guidance_scale)
        step = len(drawing.states) // 2 if step is None else step
        reading = follow_picture(pipe, drawing, step, layer or first_layer(pipe, "picture"))
        position = reading.place(x, y)
        query = reading.query(position, head)
        row, column = divmod(position, reading.grid[1])
        about = {"layer": reading.layer, "grid": list(reading.grid), "row": row, "column": column}
        return numbers(query, **about, step=step, noise=reading.noise, head=head)

    def follow_translation(
        text: str, position: int, layer: str = "decoder.0", head: int = 0, model: str = ""
    ) -> dict[str, Any]:
        """Follow the query with which the text decoder predicts one token of a translation.

        Args:
            text: what to translate.
            position: the token of the translation, counted from 0.
            layer: a cross-attention layer of the text decoder.
            head: a head of the layer, counted from 0.
            model: one of /models, by default the page's first.

        Returns:
            query: the numbers of /follow, and "written", the tokens of the translation.
        """
        check_text(text)
        reading = follow_text(translator(models.get(model or models.first)), text, layer)
        query = reading.query(position, head)
        return numbers(query, layer=layer, head=head, position=position, written=list(reading.written))

    first = models.get(models.first)
    with gr.Row(equal_height=True):
        prompt = gr.Textbox(
            PROMPT, label=I18N("inspect.prompt"), show_label=False, container=False, scale=4, min_width=240
        )
        button = gr.Button(I18N("inspect.go"), variant="primary", scale=1, min_width=120)
    with gr.Row(equal_height=True):
        reader = gr.Radio(
            [(I18N("inspect.unet"), "picture"), (I18N("inspect.decoder"), "translation")],
            value="picture",
            label=I18N("inspect.reader"),
            min_width=310,
        )
        layer = gr.Dropdown(
            layers(first, "picture"), value=first_layer(first, "picture"), label=I18N("inspect.layer"), min_width=240
        )
        steps = first.config.num_inference_steps
        step = gr.Slider(1, steps, max(steps // 2, 1), step=1, precision=0, label=I18N("inspect.step"), min_width=160)
        seed = gr.Textbox("0", label=I18N("inspect.seed"), max_lines=1, min_width=120)
    diagram = query_diagram()

    # The last answer stays without fading until the next one arrives. A new picture takes longer than another step or
    # layer, so its progress is shown, on the prompt.
    looking: dict[str, Any] = {
        "fn": answer,
        "inputs": [model, reader, prompt, seed, step, layer],
        "outputs": diagram,
        **MODEL,
        "show_progress": "hidden",
        "trigger_mode": "always_last",
        "api_visibility": "private",
    }
    drawing = looking | {"show_progress": "minimal", "show_progress_on": prompt}
    diagram.opened(**drawing)  # an event of the diagram's script, which `gr.on` does not accept
    gr.on([button.click, prompt.submit, seed.submit], **drawing)
    gr.on([step.change, layer.input], **looking)
    gr.on(
        [reader.change, model.change],
        change_reader,
        [model, reader, step],
        [layer, step, seed],
        show_progress="hidden",
        api_visibility="private",
    ).then(**looking)
    offer(follow, "follow", **MODEL)
    offer(follow_translation, "follow_translation", **MODEL)

    def follow_after(event: Dependency) -> Dependency:
        return event.then(**drawing)

    return InspectTab(prompt, reader, seed, follow_after)
