"""Follow one query: choose who asks, and see every number between its q and its answer."""

from functools import lru_cache
from typing import Any

import gradio as gr

from pipelines import TextToImagePipeline, TranslationPipeline
from pipelines.tracing.follow import Drawing, Query, decoder_layers, draw_states, follow_picture, follow_text
from ui.checks import check_prompt, parse_seed
from ui.models import MODEL, Models
from ui.query import picture_payload, query_diagram, text_payload

PROMPT = "a red circle left of a blue square"
READERS = ("picture", "translation")
"""Who reads the memory: the UNet that draws, or the decoder that translates."""

MAX_STEPS = 100
"""For clients: what the UNet saw at each step is kept until the query is answered."""

KEPT = 4
"""Pictures of which what the UNet saw is kept."""


def draw(
    pipe: TextToImagePipeline, prompt: str, seed: str | int, steps: int | None = None, guidance: float | None = None
) -> Drawing:
    """Draw a prompt and keep what the UNet saw at each step.

    Raises:
        ValueError: something typed is out of its range; the message says what, in one line.
    """
    check_prompt(prompt)
    if steps is not None and steps > MAX_STEPS:
        raise ValueError(f"a query is followed through {MAX_STEPS} steps at most, not {steps}")
    return draw_states(pipe, prompt, parse_seed(seed), steps, guidance)


def look_at_picture(pipe: TextToImagePipeline, drawing: Drawing, step: int, layer: str) -> dict[str, Any]:
    """What the diagram shows of a layer at a step, 0 the first. Raises as `follow_picture` does."""
    trust = trusted(pipe, layer)
    return picture_payload(drawing, follow_picture(pipe, drawing, step, layer)) | {"head": trust.index(max(trust))}


def look_at_text(pipe: TextToImagePipeline, text: str, layer: str) -> dict[str, Any]:
    """What the diagram shows of a decoder layer that translates a text.

    Raises:
        ValueError: the text or the layer is none, or the model has no decoder; the message says it in one line.
    """
    check_prompt(text)
    return text_payload(follow_text(translator(pipe), text, layer))


def translator(pipe: TextToImagePipeline) -> TranslationPipeline:
    """The text side of a model.

    Raises:
        ValueError: it has no decoder.
    """
    return TranslationPipeline(pipe.tokenizer, pipe.text_encoder)


def layers(pipe: TextToImagePipeline, reader: str) -> list[tuple[str, str]]:
    """The cross-attention layers of one of `READERS` in the order they run, as (what a person reads, name).

    Raises:
        ValueError: a translation is asked for, and the model has no decoder.
    """
    if reader == "translation":
        return [(f"decoder layer {i}", name) for i, name in enumerate(decoder_layers(translator(pipe)), 1)]
    size = pipe.unet.config.sample_size
    grids = pipe.unet.attention_grids(size, size)
    return [(f"{name} · {rows}×{columns}", name) for name, (rows, columns) in grids.items()]


def trusted(pipe: TextToImagePipeline, layer: str) -> list[float]:
    """How far each head of a UNet layer can be trusted to say where a word is; all alike where nobody has measured."""
    return (pipe.config.calibration or {}).get(layer) or [0.0] * pipe.unet.config.heads


def first_layer(pipe: TextToImagePipeline, reader: str) -> str:
    """The layer to open with: the one with the most trusted head, or the last, which is among the finest.

    Raises:
        ValueError: a translation is asked for, and the model has no decoder.
    """
    names = [name for _, name in layers(pipe, reader)]
    return names[-1] if reader == "translation" else max(reversed(names), key=lambda name: max(trusted(pipe, name)))


def numbers(query: Query, **about: Any) -> dict[str, Any]:
    """A query as JSON can carry it: the fields of `Query` as lists, and what else there is to say about it."""
    parts = {name: part.tolist() for name, part in vars(query).items() if name != "tokens"}
    return {"tokens": list(query.tokens)} | parts | about


def inspect_tab(models: Models, model: gr.components.Component) -> None:
    """Lay the tab out where the caller is, and wire it; `model` holds the name of the model that is looked into."""

    # The last pictures are kept, so that another step or layer of one costs a single pass; for all who use the page,
    # for a gr.State would hold a connection open for each.
    drawn = lru_cache(maxsize=KEPT)(draw)

    def answer(name: str, reader: str, prompt: str, seed: str, step: float, layer: str) -> dict[str, Any]:
        try:
            pipe = models.get(name)
            if reader == "translation":
                return look_at_text(pipe, prompt, layer)
            return look_at_picture(pipe, drawn(pipe, prompt, seed), int(step) - 1, layer)
        except ValueError as error:
            return {"error": str(error)}

    def change_reader(name: str, reader: str, step: float) -> tuple[gr.Dropdown, gr.Slider, gr.Textbox]:
        """The controls of a reader; one that the model does not have has no layers, and `answer` says why."""
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
        seed: str = "0",
        steps: int | None = None,
        guidance: float | None = None,
        step: int | None = None,
        layer: str = "",
        head: int = 0,
    ) -> dict[str, Any]:
        """Follow the query of the place where pixel (x, y) lies: q, k, products, scaled, mask, weights, v and out.

        step and head count from 0; by default the step is in the middle, the layer the most trusted one, and steps and
        guidance are the model's own.
        """
        try:
            pipe = models.get(models.first)
            drawing = draw(pipe, prompt, seed, steps, guidance)
            step = len(drawing.states) // 2 if step is None else step
            reading = follow_picture(pipe, drawing, step, layer or first_layer(pipe, "picture"))
            position = reading.place(x, y)
            query = reading.query(position, head)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None
        row, column = divmod(position, reading.grid[1])
        about = {"layer": reading.layer, "grid": list(reading.grid), "row": row, "column": column}
        return numbers(query, **about, step=step, noise=reading.noise, head=head)

    def follow_translation(text: str, position: int, layer: str = "decoder.0", head: int = 0) -> dict[str, Any]:
        """Follow the query that asks where to look when token `position` of a translation is written, the first 0.

        The same numbers as of a picture, and `written`, the tokens of the translation. head counts from 0.
        """
        try:
            check_prompt(text)
            reading = follow_text(translator(models.get(models.first)), text, layer)
            query = reading.query(position, head)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return numbers(query, layer=layer, head=head, position=position, written=list(reading.written))

    first = models.get(models.first)
    with gr.Row(equal_height=True):
        prompt = gr.Textbox(PROMPT, label="Prompt", show_label=False, container=False, scale=4, min_width=240)
        button = gr.Button("Follow", variant="primary", scale=1, min_width=120)
    with gr.Row(equal_height=True):
        reader = gr.Radio(
            [("the picture", "picture"), ("the translation", "translation")],
            value="picture",
            label="Who reads the memory",
            min_width=310,
        )
        layer = gr.Dropdown(layers(first, "picture"), value=first_layer(first, "picture"), label="Layer", min_width=240)
        steps = first.config.num_inference_steps
        step = gr.Slider(1, steps, max(steps // 2, 1), step=1, precision=0, label="Step", min_width=160)
        seed = gr.Textbox("0", label="Seed", max_lines=1, min_width=120)
    diagram = query_diagram()

    # Nothing fades while it is on its way: the last answer stays until the next is there. A new picture takes longer
    # than a step or a layer of the last one, so that is shown, on the prompt.
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
    diagram.opened(**drawing)  # an event of its own script, which `gr.on` does not take
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
    gr.api(follow, api_name="follow", **MODEL)
    gr.api(follow_translation, api_name="follow_translation", **MODEL)
