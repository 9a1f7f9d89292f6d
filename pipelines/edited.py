"""Drawing a picture, and drawing it again with edits from the same noise.

Shapes: B pictures, C channels, h×w positions of a picture or of a VAE's latent.
"""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from dataclasses import replace as with_changes
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipelines.drawing import colour_map
from pipelines.edit_plan import Plan, plan
from pipelines.edits import Edit, check_known
from pipelines.request import Request
from unet_xattn import AttentionTrace
from unet_xattn.attention import RecordLayer
from unet_xattn.bias import bias_hook
from unet_xattn.words import phrase_spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class EditedPictures(ImagePipelineOutput):
    """Edited pictures, `images`, with the pictures `before`, of the same noise, and the trace of those.

    prompts: the edited prompt of each picture.
    """

    before: list[Image.Image] | np.ndarray | Tensor
    prompts: list[str]
    trace: AttentionTrace


Draw = Callable[..., Any]
"""`TextToImagePipeline._draw`."""

Change = Callable[[int, float, Mapping[str, slice]], RecordLayer | None]
"""Called before each pass with its step, its noise level, and the rows of its batch that are the "prompt" or the
"negative" of each picture; returns the `record` argument of the pass, which may change its attention."""

AfterStep = Callable[[int, Tensor], Tensor]
"""Called after each step with its number and the latents (B, C, h/f, w/f); returns those to continue with."""

active_edits: ContextVar[tuple[tuple[DiffusionPipeline, Sequence[Edit]], ...]] = ContextVar("active_edits", default=())
"""The open `tracing.edit.edit` blocks of this thread (or task), innermost last: each pipeline and its edits."""


def draw_changed(
    draw: Draw,
    asked: Request,
    edits: Sequence[Sequence[Edit]],
    painted: Sequence[Edit],
    change: Change | None,
    tokenizer: "PreTrainedTokenizerBase",
) -> ImagePipelineOutput:
    """Draw what is asked for: with the edits of each picture, with words painted in regions, or with a change.

    Raises:
        ValueError: there are edits or regions and a change, or they do not fit the prompt.
    """
    if change is not None and (painted or any(edits)):
        raise ValueError("edits change the attention already: give either edits and regions, or change")
    if any(edits):
        return draw_edited(draw, asked, edits, painted, tokenizer)
    if painted:
        change = changed_by([plan(painted, text, asked.size, tokenizer) for text in asked.prompts])
    return ImagePipelineOutput(draw(asked, change=change))


def draw_edited(
    draw: Draw,
    asked: Request,
    edits: Sequence[Sequence[Edit]],
    painted: Sequence[Edit],
    tokenizer: "PreTrainedTokenizerBase",
) -> EditedPictures:
    """Draw what is asked for, and then with the edits of each picture; only the latter is traced and called back.

    Both have the painted words in their regions, except for the words that an edit paints in another one.

    Raises:
        ValueError: an edit cannot be made of its prompt, mostly before anything is drawn.
    """
    laid_out = changed_by([plan(painted, text, asked.size, tokenizer) for text in asked.prompts]) if painted else None
    edits = [[*own, *_not_painted_anew(painted, own)] for own in edits]
    for own, text in zip(edits, asked.prompts, strict=True):
        plan(own, text, asked.size, tokenizer)
        check_known(text, own, tokenizer)
    if asked.generator is None and asked.latents is None:
        asked = with_changes(asked, generator=torch.Generator().manual_seed(torch.seed()))
    again = with_changes(asked, generator=_copied(asked.generator))
    first, path = AttentionTrace("head"), []

    def keep(step: int, latents: Tensor) -> Tensor:
        path.append(latents)
        return latents

    before = draw(asked, attention=first, callback=None, change=laid_out, after_step=keep)
    plans = [
        plan(own, text, asked.size, tokenizer, first, image)
        for image, (own, text) in enumerate(zip(edits, asked.prompts, strict=True))
    ]
    prompts = [own.prompt for own in plans]
    kept = torch.stack([own.kept for own in plans])
    images = draw(with_changes(again, prompts=prompts), change=changed_by(plans), after_step=following(path, kept))
    return EditedPictures(images, before, prompts, first)


def _not_painted_anew(painted: Sequence[Edit], own: Sequence[Edit]) -> list[Edit]:
    """The painted phrases without those that have a word that one of a picture's own edits paints."""
    anew = [edit.word for edit in own if edit.kind == "paint"]
    return [edit for edit in painted if not any(phrase_spans(word, edit.word) for word in anew)]


def changed_by(plans: Sequence[Plan]) -> Change:
    """The `change` argument of a call that biases the words of each picture by its plan."""
    biases = [own.biases for own in plans]
    return lambda step, sigma, rows: bias_hook(rows, biases, sigma)


def following(path: Sequence[Tensor], kept: Tensor) -> AfterStep:
    """After each step: the latents of another path where they are kept, (B, h, w) bool in pixels."""

    def follow(step: int, latents: Tensor) -> Tensor:
        height, width = latents.shape[-2:]
        share = F.adaptive_avg_pool2d(kept[:, None].float(), (height, width)).to(latents.device)
        return torch.where(share >= 0.5, path[step], latents)

    return follow


def _copied(generator: Any) -> Any:
    """Generators that give the same numbers as these from here on."""
    if isinstance(generator, list):
        return [_copied(one) for one in generator]
    if generator is None:
        return None
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    return copy


def picture_of_change(before: Image.Image, after: Image.Image) -> Image.Image:
    """What changed between two pictures: the largest difference of a channel at each pixel, by the colour map."""
    a, b = (np.asarray(picture.convert("RGB"), np.float32) / 255 for picture in (before, after))
    return Image.fromarray(colour_map(np.abs(a - b).max(axis=2)))
