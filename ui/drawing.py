"""Generating pictures for the page: the settings of a request, previews, the finished value, live mode, links."""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from pipelines import TextToImagePipeline, trace
from pipelines.edited import picture_of_change
from pipelines.edits import Edit
from pipelines.scenes.worlds import world_of
from pipelines.text_to_image import bundled_models, with_sampler
from ui.any_model import OneModel, abilities_of
from ui.edit_text import read_changes, read_regions
from ui.edit_verdict import edit_verdict
from ui.kept import Drawing, Kept
from ui.models import AT_ONCE, Models
from ui.notes import warnings
from ui.request import RENAMED, Request
from ui.texts import Message, lines
from ui.verdict import verdict
from ui.viewer import data_url, payload
from unet_xattn import AttentionTrace

LIVE: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": 1.0}
"""The live mode's settings for models that were not distilled, with their own sampler: tests/benchmarks/README.md,
"Samplers"."""

STUDENT = "-fast"
"""What the name of a bundled model has at its end if it was distilled from the model before."""

PAINTERS = ThreadPoolExecutor(AT_ONCE, "painter")
"""The threads that generate pictures."""

SLOW = 0.3
"""Seconds without a preview after which the page shows that a picture is being made. A preview is the better sign, and
each value takes Gradio up to 50 milliseconds to send."""

SHOWN_EVERY = 0.1
"""Seconds between two previews of a picture: longer than a browser needs to show one."""


@dataclass(frozen=True)
class Preview:
    """The first picture after a step, counted from 1, as a data URL; before the first step there is none."""

    step: int
    frame: str | None


class DrawingCancelledError(Exception):
    """Ends a generation whose result nobody waits for any more."""


def forming(
    pipe: TextToImagePipeline, request: Request, keep: str = "full", stopped: Event | None = None
) -> Iterator[Preview | Drawing]:
    """Generate pictures; yields previews of the first one, then the drawing.

    Setting `stopped` ends it after the current step: the drawing has the picture and the maps so far. Closing the
    generator stops the work within one step.

    Raises:
        ValueError: a setting is out of its range; the message is one line.
    """
    request.check()
    changes = read_changes(request.edits, request.prompt, world_of(pipe.tokenizer))
    pipe = with_sampler(pipe, request.sampler)
    frames: list[list[str]] = [[] for _ in request.seeds]
    updates: SimpleQueue[Preview | Drawing | Exception] = SimpleQueue()
    cancelled = Event()
    shown, clean = 0.0, torch.empty(0)

    def after_step(pipe: DiffusionPipeline, step: int, timestep: Tensor, values: dict[str, Tensor]) -> dict:
        nonlocal shown, clean
        if cancelled.is_set():
            raise DrawingCancelledError
        if stopped is not None and stopped.is_set():
            pipe._interrupt = True
        if keep == "full":
            clean = values["clean"].float()
            for image, picture in enumerate(pipe.image_processor.postprocess(clean)):
                frames[image].append(data_url(picture, "WEBP", lossless=True))
            if time.monotonic() - shown > SHOWN_EVERY:
                shown = time.monotonic()
                updates.put(Preview(step + 1, frames[0][-1]))
        return {}

    def draw(edits: Sequence[Edit], **how: Any) -> Any:
        return pipe(
            [request.prompt] * request.num_images_per_prompt,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            guidance_interval=(request.guidance_low, request.guidance_high),
            negative_prompt=request.negative_prompt,
            generator=[torch.Generator().manual_seed(seed) for seed in request.seeds],
            edits=edits,
            regions=read_regions(request.regions) or None,
            **how,
        )

    def run() -> None:
        try:
            before = None
            with torch.inference_mode():
                if changes.kept and changes.new:
                    kept = draw(changes.kept, output_type="np")
                    before = kept.prompts[0], torch.from_numpy((kept.images * 255).round().astype(np.uint8))
                with trace(pipe, keep) as attention:
                    drawn = draw(
                        changes.edits,
                        output_type="latent",
                        callback_on_step_end=after_step,
                        callback_on_step_end_tensor_inputs=("clean",) if keep == "full" else (),  # a VAE is slow
                    )
            if changes.new and not changes.kept:
                before = request.prompt, drawn.trace.pictures
            made = len(frames[0]) if keep == "full" else request.num_inference_steps
            cut: dict[str, Any] = {}
            if made < request.num_inference_steps:
                # It cannot be generated again from its settings alone. Its latents are noisy still: the picture is the
                # last one that was shown.
                cut = {"stopped": made}
                pictures = pipe.image_processor.postprocess(clean, "pt").permute(0, 2, 3, 1)  # (B, h, w, 3)
                attention.pictures = (pictures * 255).round().to("cpu", torch.uint8)
            settings: list[Mapping[str, Any]] = [
                request.settings(i) | cut for i in range(request.num_images_per_prompt)
            ]
            updates.put(Drawing(attention, frames, settings, before))
        except Exception as error:  # raised again in the thread that listens
            updates.put(error)

    PAINTERS.submit(run)
    try:
        while True:
            try:
                update = updates.get(timeout=SLOW if not shown else None)
            except Empty:
                yield Preview(0, None)
                update = updates.get()
            if isinstance(update, Exception):
                raise update
            yield update
            if isinstance(update, Drawing):
                return
    finally:
        cancelled.set()


def finish(pipe: TextToImagePipeline, request: Request, drawing: Drawing, notes: list[Message]) -> dict[str, Any]:
    """The viewer's value for a drawing, with what the pictures show of their prompt."""
    data = world_of(pipe.tokenizer)
    pictures = [
        payload(drawing.attention, i)
        | {"settings": settings, "verdict": _checked(drawing.attention, i, data)}
        | {"edit": edited(request, drawing, i, data)}
        for i, settings in enumerate(drawing.settings)
    ]
    warned = warnings(request, pipe.tokenizer)
    return {"pictures": pictures, "notes": notes, "warnings": warned, "note": lines([*notes, *warned])}


def _checked(attention: AttentionTrace, image: int, data: str) -> list[dict[str, Any]] | None:
    assert attention.pictures is not None
    found = verdict(attention.prompts[image], attention.pictures[image].numpy(), data)
    return None if found is None else [statement.as_json() for statement in found]


def edited(request: Request, drawing: Drawing, image: int, data: str) -> dict[str, Any] | None:
    """What the viewer shows of an edited picture; None for one without edits.

    Returns:
        listed: see `Changes`. before, change: the picture before the edits, and what changed, as data URLs; None if all
        edits are kept. divide: the middle of the change, in per cent of the width from the left, where a line between
        the two pictures shows both. checks: whether it is as asked for and the rest unchanged, or None.
    """
    changes = read_changes(request.edits, request.prompt, data)
    if not changes.edits:
        return None
    shown: dict[str, Any] = {"listed": changes.listed, "before": None, "change": None, "divide": 50, "checks": None}
    if drawing.before is None:
        return shown
    assert drawing.attention.pictures is not None
    prompt, pictures = drawing.before
    before, after = (batch[image].numpy() for batch in (pictures, drawing.attention.pictures))
    prompts = prompt, drawing.attention.prompts[image]
    checks = edit_verdict(prompts, (before, after), changes.new, data)
    first, last = Image.fromarray(before), Image.fromarray(after)
    columns = np.abs(before.astype(float) - after).sum(axis=(0, 2))
    middle = np.average(np.arange(len(columns)) + 0.5, weights=columns) / len(columns) if columns.any() else 0.5
    return shown | {
        "before": data_url(first),
        "change": data_url(picture_of_change(first, last)),
        "divide": round(100 * middle),
        "checks": None if checks is None else [check.as_json() for check in checks],
    }


def viewer_updates(models: Models, kept: Kept, request: Request) -> Iterator[dict[str, Any]]:
    """The viewer's values while a request is generated: its progress, then the pictures. Raises as `forming` does."""
    request = replace(request, model=request.model or models.first)
    request.check()
    pipe, start = models.get(request.model), time.perf_counter()
    with kept.running() as (ticket, stopped):
        known = {"ticket": ticket, "prompt": request.prompt, "steps": request.num_inference_steps}
        for update in forming(pipe, request, stopped=stopped):
            if isinstance(update, Preview):
                yield {"drawing": known | asdict(update)}
                continue
            notes = [_made(request, time.perf_counter() - start)]
            if steps := update.settings[0].get("stopped"):
                notes = [("viewer.stopped", {"step": steps, "steps": request.num_inference_steps})]
            answer, key = finish(pipe, request, update, notes), kept.add(update)
            yield answer | {"pictures": [picture | {"key": key} for picture in answer["pictures"]]}


def _made(request: Request, seconds: float, live: bool = False) -> Message:
    about = {"seed": request.seed, "steps": request.num_inference_steps, "guidance": f"{request.guidance_scale:g}"}
    how = "viewer.live.made" if live else "viewer.made"
    return how, about | {"seconds": f"{seconds:.1f}", "model": request.model}


def live_request(models: Models, prompt: str, seed: str, model: str) -> Request:
    """The request of the live mode, which the model's student draws if one is bundled.

    It has the model's own settings if these take no more steps than `LIVE`, else `LIVE`.
    """
    student = (model or models.first) + STUDENT
    model = student if student in bundled_models() else model
    own = own_settings(models.get(model or models.first))
    few = own["num_inference_steps"] <= LIVE["num_inference_steps"]
    return Request(prompt, seed, **(own if few else LIVE), model=model)


def draw_live(models: Models, request: Request) -> dict[str, Any]:
    """The viewer's value for a picture of the live mode, with maps averaged over steps. Raises as `forming` does."""
    pipe = models.get(request.model or models.first)
    start = time.perf_counter()
    *_, drawing = forming(pipe, request, keep="head")
    assert isinstance(drawing, Drawing)
    return finish(pipe, request, drawing, [_made(request, time.perf_counter() - start, live=True)]) | {"live": True}


def linked(query: Mapping[str, str], models: Models | OneModel) -> Request:
    """The request in a link (`Request.settings` as query parameters); what is missing gets the model's own value.

    Raises:
        ValueError: the link has a setting with a former name or a malformed value, or its model does not exist.
    """
    kinds: dict[str, type] = {field.name: field.type for field in fields(Request)}  # type: ignore[misc]
    found: dict[str, Any] = {"prompt": "", "model": models.first}
    for name, text in query.items():
        if name in RENAMED:
            raise ValueError(f"the link has {name!r}, which is now {RENAMED[name]!r}: change it in the address")
        try:
            found |= {name: kinds[name](text)} if name in kinds else {}
        except ValueError:
            raise ValueError(
                f"the link has {name}={text[:40]!r}, which is not a number: change it in the address"
            ) from None
    own = own_settings(models.get(found["model"]))
    return Request(**own | found)


def own_settings(pipe: DiffusionPipeline) -> dict[str, Any]:
    """The steps and the guidance scale that a model was saved with as its best, or that a pipeline of others has."""
    if not isinstance(pipe, TextToImagePipeline):
        return abilities_of(pipe).own
    return {"num_inference_steps": pipe.config.num_inference_steps, "guidance_scale": pipe.config.guidance_scale}


def new_seed() -> str:
    """A random seed, short enough to read out to someone."""
    return str(random.randrange(10**6))
