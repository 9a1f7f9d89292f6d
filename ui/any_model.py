"""The one model of a page that shows a pipeline of diffusers: what can be asked of it, and how much can be kept."""

from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from diffusers import DiffusionPipeline

from pipelines import trace
from pipelines.any_pipeline import open_pipeline
from pipelines.runs.processes import find_device
from pipelines.tracing.attribute_any import config_of, native_size
from pipelines.tracing.verify import PROMPT
from pipelines.tracing.watch import CannotRecordError
from ui.kept import KEPT_BYTES
from ui.models import Events
from unet_xattn.trace_plan import KEEP, Recording

PROBED = 2
"""Steps of the picture that is drawn before the page opens. With one step, some schedulers divide by zero."""


@dataclass(frozen=True)
class Abilities:
    """What a pipeline's call takes, beside a prompt, a seed and a number of steps.

    guidance: the name of the argument that scales its guidance; None if it has none.
    negative: whether a negative prompt can have an effect.
    callback: the name of the argument for what is called after each step; None if it has none.
    stops: whether it gives a picture when it is stopped. attributes: whether it can read a picture that exists.
    own: its own number of steps and guidance scale, as settings of `ui.request.Request`.
    """

    guidance: str | None
    negative: bool
    callback: str | None
    stops: bool
    attributes: bool
    own: dict[str, Any]


def abilities_of(pipe: DiffusionPipeline) -> Abilities:
    """What can be asked of a pipeline."""
    takes = {name: parameter.default for name, parameter in signature(type(pipe).__call__).parameters.items()}
    distilled = config_of(pipe).get("guidance_embeds")
    # A distilled model reads its guidance scale. One that could, and does not, has the true one only.
    names = ("true_cfg_scale", "guidance_scale") if distilled is False else ("guidance_scale",)
    guidance = next((name for name in names if isinstance(takes.get(name), int | float)), None)
    callback = next((name for name in ("callback_on_step_end", "callback") if name in takes), None)
    own = {
        "num_inference_steps": takes["num_inference_steps"],
        "guidance_scale": float(takes[guidance]) if guidance else 1.0,
    }
    return Abilities(
        guidance=guidance,
        negative="negative_prompt" in takes and not distilled,
        callback=callback,
        stops=callback == "callback_on_step_end" and hasattr(type(pipe), "interrupt"),
        attributes=_attributes(pipe),
        own=own,
    )


def _attributes(pipe: DiffusionPipeline) -> bool:
    try:
        native_size(pipe)
    except CannotRecordError:
        return False
    return True


class OneModel:
    """A pipeline of diffusers as the only model of a page, in place of `ui.models.Models`.

    Two steps are drawn with a trace at once, so that what cannot be drawn from a prompt, or not be recorded, is refused
    before the page opens.

    Args:
        first: a folder, a hub id or a pipeline.

    Raises:
        ValueError: it cannot be loaded, drawn from a prompt alone, or recorded; the message is one line.
    """

    def __init__(self, first: str | DiffusionPipeline, device: str | None = None):
        place = find_device(device)
        # One at a time: schedulers of diffusers count their steps, so two calls at once would confuse them.
        self.events: Events = {"concurrency_id": "model", "concurrency_limit": 1}
        self.first = first if isinstance(first, str) else "this pipeline"
        self.pipe = open_pipeline(first, place) if isinstance(first, str) else first.to(place)
        self.abilities = abilities_of(self.pipe)
        self.recording = self._probed()

    def names(self) -> list[str]:
        return [self.first]

    def get(self, name: str) -> DiffusionPipeline:
        """The pipeline; raises ValueError for another name."""
        if name != self.first:
            raise ValueError(f"model {name!r} not found: this page shows {self.first}")
        return self.pipe

    def keep_for(self, prompt: str, negative_prompt: str, steps: int) -> str:
        """What a trace of a picture can keep apart within the memory of the page, see `trace`."""
        text = max(self._tokens(prompt), self._tokens(negative_prompt)) - self._tokens(PROMPT)
        columns = 1 + max(0, text) / self.recording.tokens
        for keep in ("full", "step", "mean"):
            axes = KEEP if keep == "full" else (keep,)
            one = self.recording.bytes(heads="head" in axes, steps=False) * columns
            if one * (steps if "step" in axes else 1) <= KEPT_BYTES:
                return keep
        return "mean"

    def _tokens(self, text: str) -> int:
        tokenizers = [part for name, part in self.pipe.components.items() if name.startswith("tokenizer") and part]
        readers = [getattr(tokenizer, "tokenizer", tokenizer) for tokenizer in tokenizers]
        return sum(len(reader.tokenize(text)) for reader in readers)

    def _probed(self) -> Recording:
        try:
            with trace(self.pipe) as attention:
                self.pipe(prompt=PROMPT, num_inference_steps=PROBED, generator=torch.Generator().manual_seed(0))
            return attention.recording
        except Exception as error:  # those of others raise anything
            line = " ".join(str(error).split())[:300]
            raise ValueError(f"the page cannot show {self.first}, a {type(self.pipe).__name__}: {line}") from error
