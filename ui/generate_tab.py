"""Type a prompt, watch the picture form, and see which word drew what."""

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from threading import Event
from typing import Any

import gradio as gr
import torch
from diffusers import DiffusionPipeline
from gradio.events import Dependency
from torch import Tensor

from pipelines import TextToImagePipeline, trace
from pipelines.samplers import OWN, SAMPLERS, with_sampler
from pipelines.scenes.emoji_font import FontError
from pipelines.scenes.judge import judge
from pipelines.scenes.worlds import parse
from ui.checks import check_prompt, parse_seed
from ui.kept import Drawing, Kept
from ui.models import AT_ONCE, MODEL, Models
from ui.reading import read, reading
from ui.viewer import data_url, payload
from ui.viewer.component import attention_viewer
from unet_xattn import AttentionTrace
from unet_xattn.words import unknown_words

EXAMPLES = [
    "a red circle left of a blue square",
    "three small green triangles on a gray background",
    "a large purple star above a small orange heart",
    "一个红色的圆形在蓝色方块的左边",
]
MOST_STEPS = 100
MOST_PICTURES = 8
LIVE: dict[str, Any] = {"steps": 6, "guidance": 1.0, "sampler": "DPM-Solver++"}
"""How a model that was not distilled draws while one types: the fewest passes through the UNet that agree with prompts
within three points of what 20 guided steps do, by `tests/benchmarks/samplers.py`."""

PAINTERS = ThreadPoolExecutor(AT_ONCE, "painter")
"""The threads that draw."""

SHOWN_EVERY = 0.1
"""Seconds between two pictures of one that is forming: more than a browser needs to show the last."""


@dataclass(frozen=True)
class Request:
    """What to draw. `low` and `high` are the noise levels between which it is guided."""

    prompt: str
    seed: str = "0"
    steps: int = 20
    guidance: float = 1.0
    low: float = 0.0
    high: float = 1.0
    negative: str = ""
    sampler: str = OWN
    count: int = 1
    model: str = ""

    def check(self) -> None:
        """Raise ValueError, in one line, for what the pipeline would not refuse itself or only at some cost."""
        check_prompt(self.prompt)
        check_prompt(self.negative)
        parse_seed(self.seed)
        for name, value, most in (("steps", self.steps, MOST_STEPS), ("pictures", self.count, MOST_PICTURES)):
            if not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{name} is a whole number from 1 to {most}, not {value}")

    @property
    def seeds(self) -> list[int]:
        """Of each picture: the one that was typed, and those that follow it."""
        first = parse_seed(self.seed)
        return [(first + i) % 2**64 for i in range(self.count)]

    def settings(self, image: int) -> dict[str, Any]:
        """What draws one of the pictures again, as a link can carry it."""
        return asdict(self) | {"seed": str(self.seeds[image]), "count": 1}


class StoppedError(Exception):
    """Nobody waits for the picture any more."""


def forming(pipe: TextToImagePipeline, request: Request, keep: str = "full") -> Iterator[str | Drawing]:
    """Draw, and say how the (first) picture looks meanwhile: data URLs, and the finished drawing at last.

    Whoever stops listening stops the drawing, within a step.

    Raises:
        ValueError: something typed is out of its range; the message says what, in one line.
    """
    request.check()
    pipe = with_sampler(pipe, request.sampler)
    frames: list[list[str]] = [[] for _ in range(request.count)]
    updates: SimpleQueue[str | Drawing | Exception] = SimpleQueue()
    stop = Event()
    shown = 0.0

    def after_step(pipe: DiffusionPipeline, step: int, timestep: Tensor, values: dict[str, Tensor]) -> dict:
        nonlocal shown
        if stop.is_set():
            raise StoppedError
        if keep == "full":
            for image, picture in enumerate(pipe.image_processor.postprocess(values["clean"].float())):
                frames[image].append(data_url(picture, "WEBP", lossless=True))
            if time.monotonic() - shown > SHOWN_EVERY:
                shown = time.monotonic()
                updates.put(frames[0][-1])
        return {}

    def draw() -> None:
        try:
            with torch.inference_mode(), trace(pipe, keep) as attention:
                pipe(
                    [request.prompt] * request.count,
                    num_inference_steps=request.steps,
                    guidance_scale=request.guidance,
                    guidance_interval=(request.low, request.high),
                    negative_prompt=request.negative,
                    generator=[torch.Generator().manual_seed(seed) for seed in request.seeds],
                    output_type="latent",
                    callback_on_step_end=after_step,
                    callback_on_step_end_tensor_inputs=("clean",) if keep == "full" else (),  # a VAE takes its time
                )
            updates.put(Drawing(attention, frames, [request.settings(i) for i in range(request.count)]))
        except Exception as error:  # it belongs to whoever listens
            updates.put(error)

    PAINTERS.submit(draw)
    try:
        while True:
            update = updates.get()
            if isinstance(update, Exception):
                raise update
            yield update
            if isinstance(update, Drawing):
                return
    finally:
        stop.set()


def finish(pipe: TextToImagePipeline, request: Request, drawing: Drawing, seconds: float) -> dict[str, Any]:
    """What the viewer is sent of a finished drawing, with the judge's verdict where the prompt describes a scene."""
    attention = drawing.attention
    pictures = [
        payload(attention, i) | {"settings": drawing.settings[i], "verdict": verdict(attention, i)}
        for i in range(request.count)
    ]
    note = f"Seed {request.seed}, {request.steps} steps, guidance {request.guidance:g}: drawn in {seconds:.1f} s."
    if unknown := dict.fromkeys(unknown_words(request.prompt, pipe.tokenizer)):
        note += " The model has never read: " + ", ".join(f'"{word}"' for word in unknown) + "."
    return {"pictures": pictures, "note": note}


def verdict(attention: AttentionTrace, image: int = 0) -> list[tuple[str, bool]] | None:
    """What a prompt says, item by item, and whether the picture shows it; None where the prompt describes no scene.

    None as well for a scene of emoji where there is no font to know them by.
    """
    scene = parse(attention.prompts[image])
    if scene is None or attention.pictures is None:
        return None
    try:
        return [(check.text, check.ok) for check in judge(scene, attention.pictures[image].numpy()).checks]
    except FontError:
        return None


def draw(models: Models, kept: Kept, request: Request) -> Iterator[dict[str, Any]]:
    """What the viewer is sent while a request is drawn. Raises as `forming` does."""
    pipe, start = models.get(request.model or models.first), time.perf_counter()
    for update in forming(pipe, request):
        if isinstance(update, Drawing):
            answer, key = finish(pipe, request, update, time.perf_counter() - start), kept.add(update)
            yield answer | {"pictures": [picture | {"key": key} for picture in answer["pictures"]]}
        else:
            yield {"frame": update, "note": "Drawing …"}


def live_request(models: Models, prompt: str, seed: str, model: str) -> Request:
    """How a picture is drawn while one types: by `LIVE`, or as the model draws best if that takes no more steps."""
    best = drawn_best(models.get(model or models.first))
    return Request(prompt, seed, **(best if best["steps"] <= LIVE["steps"] else LIVE), model=model)


def draw_live(models: Models, request: Request) -> dict[str, Any]:
    """A picture in a moment, with maps of all its steps together. Raises as `forming` does."""
    pipe = models.get(request.model or models.first)
    start = time.perf_counter()
    (drawing,) = forming(pipe, request, keep="head")
    assert isinstance(drawing, Drawing)
    return finish(pipe, request, drawing, time.perf_counter() - start) | {"live": True}


def linked(query: dict[str, str], models: Models) -> Request:
    """The request in a link, `Request.settings` as a browser writes them; what is missing or wrong is left out."""
    kinds: dict[str, type] = {field: type(value) for field, value in asdict(Request("")).items()}
    found: dict[str, Any] = {"prompt": EXAMPLES[0], "model": models.first}
    for name, text in query.items():
        try:
            found |= {name: kinds[name](text)} if name in kinds else {}
        except ValueError:
            continue
    try:
        return Request(**drawn_best(models.get(found["model"])) | found)
    except ValueError:  # there is no such model; whoever presses Generate is told so
        return Request(**found)


def drawn_best(pipe: TextToImagePipeline) -> dict[str, Any]:
    """The steps and the guidance a model draws best with."""
    return {"steps": pipe.config.num_inference_steps, "guidance": pipe.config.guidance_scale}


def new_seed() -> str:
    """A seed nobody chose, short enough to be read out to someone."""
    return str(random.randrange(10**6))


def generate_tab(
    page: gr.Blocks, models: Models, kept: Kept, model: gr.Dropdown
) -> tuple[gr.Textbox, Callable[..., Dependency]]:
    """Lay the tab out where the caller is, and wire it; `page` is the whole page, which draws once when it opens.

    Returns:
        the box with the prompt, and what has it drawn after an event that put something there: as the model draws
        best, where that is another one (`other_model=True`).
    """

    def show(*values: Any) -> Iterator[dict[str, Any]]:
        try:
            yield from draw(models, kept, _request(*values))
        except ValueError as error:
            yield {"error": str(error)}

    def typed(prompt: str, name: str, live: bool, seed: str) -> tuple[Any, Any]:
        try:
            line = read(prompt, models.get(name).tokenizer)
            if not live or not prompt.strip() or line["error"]:
                return line, gr.skip()
            return line, draw_live(models, live_request(models, prompt, seed, name))
        except ValueError as error:
            return {"pieces": [], "error": str(error)}, gr.skip()

    def own_settings(name: str) -> tuple[Any, Any]:
        try:
            best = drawn_best(models.get(name))
            return best["steps"], best["guidance"]
        except ValueError:  # drawing with it will say why
            return gr.skip(), gr.skip()

    def generate(
        prompt: str,
        seed: str = "0",
        steps: int | None = None,
        guidance: float | None = None,
        low: float = 0.0,
        high: float = 1.0,
        negative: str = "",
        sampler: str = OWN,
        count: int = 1,
        model: str = "",
    ) -> dict[str, Any]:
        """Draw a prompt: {"pictures": what `ui.viewer.payload` says of each, "note": a line}.

        guidance steers at noise levels within (low, high] of [0, 1] away from `negative`; steps, guidance and sampler
        are the model's own where they are not given; sampler is one of `pipelines.samplers.SAMPLERS`; picture i of
        `count` has the seed + i; model is one of /models, by default the page's.
        """
        try:
            own = drawn_best(models.get(model or models.first))
            steps = own["steps"] if steps is None else steps
            guidance = own["guidance"] if guidance is None else guidance
            request = Request(prompt, seed, steps, guidance, low, high, negative, sampler, count, model)
            *_, answer = draw(models, kept, request)
            return answer
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

    with gr.Row(equal_height=True):
        prompt = gr.Textbox(
            EXAMPLES[0], label="Prompt", show_label=False, container=False, max_lines=4, scale=4, min_width=240
        )
        button = gr.Button("Generate", variant="primary", scale=1, min_width=110)
        stop = gr.Button("Stop", scale=1, min_width=80)
        dice = gr.Button("New seed", scale=1, min_width=100)
    words = reading()
    with gr.Row():
        with gr.Column(scale=2):
            viewer = attention_viewer(kept.functions())
        with gr.Column(scale=1):
            live = gr.Checkbox(label="Live: draw while I type")
            # Not a number field: a browser's numbers end at 2**53.
            seed = gr.Textbox("0", label="Seed")
            best = drawn_best(models.get(models.first))
            steps = gr.Slider(1, MOST_STEPS, best["steps"], step=1, precision=0, label="Steps")
            guidance = gr.Slider(0, 10, best["guidance"], step=0.1, label="Guidance")
            examples = gr.Examples(EXAMPLES, prompt)
            with gr.Accordion("More", open=False):
                negative = gr.Textbox(label="Away from", max_lines=2)
                low = gr.Slider(0, 1, 0, step=0.05, label="Guide above noise")
                high = gr.Slider(0, 1, 1, step=0.05, label="Guide up to noise")
                sampler = gr.Dropdown([OWN, *SAMPLERS], value=OWN, label="Sampler")
                count = gr.Slider(1, MOST_PICTURES, 1, step=1, precision=0, label="Pictures")

    # Progress is shown on the prompt: on the viewer it would fade the picture.
    asked = [prompt, seed, steps, guidance, low, high, negative, sampler, count, model]
    drawing: dict[str, Any] = {
        "inputs": asked,
        "outputs": viewer,
        **MODEL,
        "show_progress": "minimal",
        "show_progress_on": prompt,
        "api_visibility": "private",
    }

    def restore(request: gr.Request) -> list[Any]:
        return _values(linked(dict(request.query_params), models))

    def revisit(event: gr.EventData) -> list[Any]:
        return _values(linked({name: str(value) for name, value in event._data.items()}, models))

    events = [
        page.load(restore, outputs=asked, api_visibility="private", queue=False).then(show, **drawing),
        gr.on([button.click, prompt.submit, seed.submit], show, **drawing),
        dice.click(new_seed, outputs=seed, api_visibility="private").then(show, **drawing),
        examples.load_input_event.then(show, **drawing),
    ]
    stop.click(None, cancels=events, api_visibility="private")
    viewer.select(revisit, outputs=asked, api_visibility="private", queue=False)
    gr.on(
        [prompt.change, seed.change, live.change, model.change],
        typed,
        [prompt, model, live, seed],
        [words, viewer],
        trigger_mode="always_last",
        show_progress="hidden",
        queue=False,  # which looks for work twenty times a second: too seldom for who types
        api_visibility="private",
    )
    settled: dict[str, Any] = {
        "inputs": model,
        "outputs": [steps, guidance],
        "api_visibility": "private",
        "show_progress": "hidden",
    }
    model.input(own_settings, **settled)
    gr.api(generate, api_name="generate", **MODEL)

    def draw_after(event: Dependency, other_model: bool = False) -> Dependency:
        return (event.then(own_settings, **settled) if other_model else event).then(show, **drawing)

    return prompt, draw_after


def _request(*values: Any) -> Request:
    prompt, seed, steps, guidance, low, high, negative, sampler, count, model = values
    return Request(prompt, seed, int(steps), guidance, low, high, negative, sampler, int(count), model)


def _values(request: Request) -> list[Any]:
    return [getattr(request, name) for name in asdict(request)]
