"""The Generate tab: type a prompt, watch the picture form, and see which word drew what."""

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
from pipelines.checks import check_prompt, check_text, parse_seed
from pipelines.samplers import OWN, SAMPLERS
from pipelines.scenes.emoji_font import FontError
from pipelines.scenes.judge import judge
from pipelines.scenes.worlds import parse, world_of
from pipelines.text_to_image import with_sampler
from ui.endpoint import Seed, endpoint
from ui.kept import Drawing, Kept
from ui.models import AT_ONCE, MODEL, Models
from ui.notes import sentences, text_note
from ui.reading import read, reading
from ui.viewer import data_url, payload
from ui.viewer.component import attention_viewer
from unet_xattn import AttentionTrace

EXAMPLES = [
    "a red circle left of a blue square",
    "three small green triangles on a gray background",
    "a large purple star above a small orange heart",
    "一个红色的圆形在蓝色方块的左边",
]
MOST_STEPS = 100
MOST_PICTURES = 8
LIVE: dict[str, Any] = {"steps": 6, "guidance": 1.0, "sampler": "DPM-Solver++"}
"""The live mode's settings for models that were not distilled: the fewest passes through the UNet whose agreement with
prompts is within three points of 20 guided steps, by `tests/benchmarks/samplers.py`."""

PAINTERS = ThreadPoolExecutor(AT_ONCE, "painter")
"""The threads that generate pictures."""

SHOWN_EVERY = 0.1
"""Seconds between two previews of a picture: longer than a browser needs to show one."""


@dataclass(frozen=True)
class Request:
    """The settings of one generation. Guidance acts at noise levels in (low, high]."""

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
        """Raise ValueError for settings that the pipeline accepts, or refuses only after costly work."""
        check_prompt(self.prompt)
        check_text(self.negative, "negative prompt")
        parse_seed(self.seed)
        for name, value, most in (("steps", self.steps, MOST_STEPS), ("number of pictures", self.count, MOST_PICTURES)):
            if not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{name} must be a whole number from 1 to {most}, got {str(value)[:40]}")
        numbers = {"guidance scale": self.guidance, "lowest noise level": self.low, "highest noise level": self.high}
        for name, number in numbers.items():
            if not isinstance(number, int | float):
                raise ValueError(f"the {name} must be a number, got {str(number)[:40]}")

    @property
    def seeds(self) -> list[int]:
        """The seed of each picture: the one that was typed, then the numbers after it."""
        first = parse_seed(self.seed)
        return [(first + i) % 2**64 for i in range(self.count)]

    def settings(self, image: int) -> dict[str, Any]:
        """The settings that generate one of the pictures again, as a link can carry them."""
        return asdict(self) | {"seed": str(self.seeds[image]), "count": 1}


class DrawingCancelledError(Exception):
    """Ends a generation whose result nobody waits for any more."""


def forming(pipe: TextToImagePipeline, request: Request, keep: str = "full") -> Iterator[str | Drawing]:
    """Generate pictures; yields previews of the first one as data URLs, then the finished drawing.

    Closing the generator stops the work within one step.

    Raises:
        ValueError: a setting is out of its range; the message is one line.
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
            raise DrawingCancelledError
        if keep == "full":
            for image, picture in enumerate(pipe.image_processor.postprocess(values["clean"].float())):
                frames[image].append(data_url(picture, "WEBP", lossless=True))
            if time.monotonic() - shown > SHOWN_EVERY:
                shown = time.monotonic()
                updates.put(frames[0][-1])
        return {}

    def run() -> None:
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
                    callback_on_step_end_tensor_inputs=("clean",) if keep == "full" else (),  # a VAE is slow
                )
            updates.put(Drawing(attention, frames, [request.settings(i) for i in range(request.count)]))
        except Exception as error:  # raised again in the thread that listens
            updates.put(error)

    PAINTERS.submit(run)
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
    """The viewer's value for a finished drawing, with the judge's verdict if the prompt describes a scene."""
    attention = drawing.attention
    data = world_of(pipe.tokenizer)
    pictures = [
        payload(attention, i) | {"settings": drawing.settings[i], "verdict": verdict(attention, i, data)}
        for i in range(request.count)
    ]
    note = f"Seed {request.seed}, {request.steps} steps, guidance scale {request.guidance:g}: "
    note += f"generated in {seconds:.1f} s."
    unknown = sentences([text_note(request.prompt, pipe.tokenizer)])
    return {"pictures": pictures, "note": f"{note} {unknown}".strip()}


def verdict(attention: AttentionTrace, image: int = 0, data: str | None = None) -> list[tuple[str, bool]] | None:
    """Each statement of the prompt, and whether the picture shows it; None if the prompt does not describe a scene.

    Also None for a scene of emoji if the emoji font, which the judge needs, is not installed. `data` is the world of
    the scene, or None for the first that has such a scene.
    """
    scene = parse(attention.prompts[image], data)
    if scene is None or attention.pictures is None:
        return None
    try:
        return [(check.text, check.ok) for check in judge(scene, attention.pictures[image].numpy()).checks]
    except FontError:
        return None


def viewer_updates(models: Models, kept: Kept, request: Request) -> Iterator[dict[str, Any]]:
    """The viewer's values while a request is generated: previews, then the pictures. Raises as `forming` does."""
    pipe, start = models.get(request.model or models.first), time.perf_counter()
    for update in forming(pipe, request):
        if isinstance(update, Drawing):
            answer, key = finish(pipe, request, update, time.perf_counter() - start), kept.add(update)
            yield answer | {"pictures": [picture | {"key": key} for picture in answer["pictures"]]}
        else:
            yield {"frame": update, "note": "Drawing …"}


def live_request(models: Models, prompt: str, seed: str, model: str) -> Request:
    """The request of the live mode: the model's own settings if these take no more steps than `LIVE`, else `LIVE`."""
    best = own_settings(models.get(model or models.first))
    return Request(prompt, seed, **(best if best["steps"] <= LIVE["steps"] else LIVE), model=model)


def draw_live(models: Models, request: Request) -> dict[str, Any]:
    """The viewer's value for a picture of the live mode, with maps averaged over steps. Raises as `forming` does."""
    pipe = models.get(request.model or models.first)
    start = time.perf_counter()
    (drawing,) = forming(pipe, request, keep="head")
    assert isinstance(drawing, Drawing)
    return finish(pipe, request, drawing, time.perf_counter() - start) | {"live": True}


def linked(query: dict[str, str], models: Models) -> Request:
    """The request in a link (`Request.settings` as query parameters); missing and malformed values become defaults."""
    kinds: dict[str, type] = {field: type(value) for field, value in asdict(Request("")).items()}
    found: dict[str, Any] = {"prompt": EXAMPLES[0], "model": models.first}
    for name, text in query.items():
        try:
            found |= {name: kinds[name](text)} if name in kinds else {}
        except ValueError:
            continue
    try:
        return Request(**own_settings(models.get(found["model"])) | found)
    except ValueError:  # unknown model; "Generate" shows the error
        return Request(**found)


def own_settings(pipe: TextToImagePipeline) -> dict[str, Any]:
    """The steps and the guidance scale that a model was saved with as its best."""
    return {"steps": pipe.config.num_inference_steps, "guidance": pipe.config.guidance_scale}


def new_seed() -> str:
    """A random seed, short enough to read out to someone."""
    return str(random.randrange(10**6))


def generate_tab(
    page: gr.Blocks, models: Models, kept: Kept, model: gr.Dropdown
) -> tuple[gr.Textbox, Callable[..., Dependency]]:
    """Build the tab in the current Gradio context; when `page` opens, it generates a first picture.

    Returns:
        the prompt's textbox, and a function that generates its text after a given event (with `other_model=True`, it
        first takes over the new model's own settings).
    """

    def show(*values: Any) -> Iterator[dict[str, Any]]:
        try:
            yield from viewer_updates(models, kept, _request(*values))
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

    def take_settings(name: str) -> tuple[Any, Any]:
        try:
            own = own_settings(models.get(name))
            return own["steps"], own["guidance"]
        except ValueError:  # "Generate" shows the error
            return gr.skip(), gr.skip()

    def generate(
        prompt: str,
        seed: Seed = "0",
        steps: int | None = None,
        guidance: float | None = None,
        low: float = 0.0,
        high: float = 1.0,
        negative: str = "",
        sampler: str = OWN,
        count: int = 1,
        model: str = "",
    ) -> dict[str, Any]:
        """Generate pictures: {"pictures": `ui.viewer.payload` of each with settings and verdict, "note": a line}.

        negative is the negative prompt. guidance is the guidance scale; it acts at noise levels in (low, high] of
        [0, 1]. By default, steps, guidance and sampler are the model's own. sampler is one of
        `pipelines.samplers.SAMPLERS`. Picture i of `count` has the seed + i. model is one of /models, by default the
        page's first.
        """
        own = own_settings(models.get(model or models.first))
        steps = own["steps"] if steps is None else steps
        guidance = own["guidance"] if guidance is None else guidance
        request = Request(prompt, str(seed), steps, guidance, low, high, negative, sampler, count, model)
        *_, answer = viewer_updates(models, kept, request)
        return answer

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
            # A textbox, because numbers in a browser are exact only up to 2**53.
            seed = gr.Textbox("0", label="Random seed")
            own = own_settings(models.get(models.first))
            steps = gr.Slider(1, MOST_STEPS, own["steps"], step=1, precision=0, label="Steps")
            guidance = gr.Slider(0, 10, own["guidance"], step=0.1, label="Guidance scale", info="1 is no guidance")
            examples = gr.Examples(EXAMPLES, prompt)
            with gr.Accordion("More settings", open=False):
                negative = gr.Textbox(label="Negative prompt", max_lines=2)
                low = gr.Slider(0, 1, 0, step=0.05, label="Guidance interval: lowest noise level")
                high = gr.Slider(0, 1, 1, step=0.05, label="Guidance interval: highest noise level")
                sampler = gr.Dropdown([OWN, *SAMPLERS], value=OWN, label="Sampler")
                count = gr.Slider(1, MOST_PICTURES, 1, step=1, precision=0, label="Number of pictures")

    # Progress is shown on the prompt, because on the viewer it would fade the picture.
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
        queue=False,  # the queue polls 20 times a second, which is too slow while a person types
        api_visibility="private",
    )
    taken: dict[str, Any] = {
        "inputs": model,
        "outputs": [steps, guidance],
        "api_visibility": "private",
        "show_progress": "hidden",
    }
    model.input(take_settings, **taken)
    gr.api(endpoint(generate), api_name="generate", **MODEL)

    def draw_after(event: Dependency, other_model: bool = False) -> Dependency:
        return (event.then(take_settings, **taken) if other_model else event).then(show, **drawing)

    return prompt, draw_after


def _request(*values: Any) -> Request:
    prompt, seed, steps, guidance, low, high, negative, sampler, count, model = values
    return Request(prompt, seed, steps, guidance, low, high, negative, sampler, count, model)


def _values(request: Request) -> list[Any]:
    return [getattr(request, name) for name in asdict(request)]
