"""Generating a picture with a pipeline of diffusers for the page: progress, the finished value, stopping."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from time import perf_counter
from typing import Any

import torch

from pipelines import trace
from ui.any_model import OneModel
from ui.drawing import DrawingCancelledError, Preview
from ui.kept import KEPT_BYTES, Drawing, Kept
from ui.notes import trace_messages
from ui.request import Request
from ui.texts import Message, lines
from ui.viewer import payload

PAINTER = ThreadPoolExecutor(1, "painter")
"""The thread that generates pictures: one, because a picture that nobody waits for still ends its step."""


def settings_of(model: OneModel, request: Request) -> dict[str, Any]:
    """The settings that generate a picture again, as a link can carry them: those that the model has."""
    has = {"prompt": True, "seed": True, "num_inference_steps": True, "model": True}
    has |= {"guidance_scale": model.abilities.guidance is not None, "negative_prompt": model.abilities.negative}
    return {name: value for name, value in asdict(request).items() if has.get(name)}


def forming(model: OneModel, request: Request, stopped: Event) -> Iterator[Preview | Drawing]:
    """Generate a picture; yields the steps that are done, without a picture, then the drawing.

    Setting `stopped` ends it after the current step, with the picture as it is then. Closing the generator stops the
    work within one step.

    Raises:
        ValueError: a setting is out of its range, or the pipeline refuses it; the message is one line.
    """
    able = model.abilities
    updates: SimpleQueue[Preview | Drawing | Exception] = SimpleQueue()
    cancelled, done = Event(), 0

    def after_step(step: int) -> dict[str, Any]:
        """Returns the tensors that the pipeline is to replace: none."""
        nonlocal done
        done = step + 1
        if cancelled.is_set():
            raise DrawingCancelledError
        if stopped.is_set():
            model.pipe._interrupt = True
        else:
            updates.put(Preview(done, None))
        return {}

    def run() -> None:
        given: dict[str, Any] = {"num_inference_steps": request.num_inference_steps}
        if able.guidance:
            given[able.guidance] = request.guidance_scale
        # Without a negative prompt some pipelines steer away from zeros instead; the true scale is nothing without one.
        if able.negative and (request.negative_prompt or able.guidance == "true_cfg_scale"):
            given["negative_prompt"] = request.negative_prompt
        if (
            "intermediate_timesteps" in signature(type(model.pipe).__call__).parameters
            and request.num_inference_steps != 2
        ):
            given["intermediate_timesteps"] = None  # the default of Sana Sprint is for two steps only
        if able.callback == "callback":
            given["callback"] = lambda step, *_: after_step(step)
        elif able.callback:
            given["callback_on_step_end"] = lambda pipe, step, *_: after_step(step)
        try:
            keep = model.keep_for(request.prompt, request.negative_prompt, request.num_inference_steps)
            with trace(model.pipe, keep, budget=2 * KEPT_BYTES) as attention:
                generator = torch.Generator().manual_seed(request.seeds[0])
                model.pipe(prompt=request.prompt, generator=generator, **given)
            cut = {"stopped": done} if stopped.is_set() and done < request.num_inference_steps else {}
            updates.put(Drawing(attention, [[]], [settings_of(model, request) | cut]))
        except Exception as error:  # raised again in the thread that listens
            updates.put(error)

    PAINTER.submit(run)
    try:
        yield Preview(0, None)
        while not isinstance(update := updates.get(), Drawing):
            if isinstance(update, Exception):
                raise ValueError(" ".join(str(update).split())[:300]) from update
            yield update
        yield update
    finally:
        cancelled.set()


def viewer_updates(model: OneModel, kept: Kept, request: Request) -> Iterator[dict[str, Any]]:
    """The viewer's values while a request is generated: its progress, then the picture. Raises as `forming` does."""
    request = replace(request, model=request.model or model.first)
    request.check()
    model.get(request.model)
    start, able = perf_counter(), model.abilities
    with kept.running() as (ticket, stopped):
        known: dict[str, Any] = {"ticket": ticket if able.stops else None, "prompt": request.prompt}
        known["steps"] = request.num_inference_steps
        for update in forming(model, request, stopped):
            if isinstance(update, Preview):
                yield {"drawing": known | asdict(update)}
                continue
            settings, seconds = update.settings[0], perf_counter() - start
            notes = [_made(settings, seconds)]
            if steps := settings.get("stopped"):
                notes = [("viewer.stopped", {"step": steps, "steps": request.num_inference_steps})]
            warned = trace_messages(update.attention)
            shown = payload(update.attention) | {"settings": settings, "verdict": None, "key": kept.add(update)}
            yield {"pictures": [shown], "notes": notes, "warnings": warned, "note": lines([*notes, *warned])}


def _made(settings: Mapping[str, Any], seconds: float) -> Message:
    about = {"model": Path(settings["model"]).name, "seed": settings["seed"], "steps": settings["num_inference_steps"]}
    about["seconds"] = f"{seconds:.1f}"
    if "guidance_scale" not in settings:
        return "viewer.made.plain", about
    return "viewer.made", about | {"guidance": f"{settings['guidance_scale']:g}"}
