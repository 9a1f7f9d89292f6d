"""Drawing a picture, and drawing it again with edits from the same noise.

Shapes: B pictures, C channels, h×w positions of a picture or of a VAE's latent.
"""

from collections.abc import Callable, Sequence
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

from pipelines.draw_request import AfterStep, BeforeStep, Change, Read
from pipelines.drawing import colour_map
from pipelines.edit_plan import Moved, Plan, grown, plan
from pipelines.edits import LAYOUT, Edit, check_known
from pipelines.request import Request
from unet_xattn import AttentionTrace, flow
from unet_xattn.bias import bias_hook
from unet_xattn.excite import excite
from unet_xattn.words import phrase_spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class EditedPictures(ImagePipelineOutput):
    """Edited pictures, `images`, with the pictures `before`, and the trace of those.

    prompts: the edited prompt of each picture.
    inexact: of pictures that were given, the mean difference to `before`, in [0, 1]: what a VAE loses before any edit.
    """

    before: list[Image.Image] | np.ndarray | Tensor
    prompts: list[str]
    trace: AttentionTrace
    inexact: list[float] | None = None


Draw = Callable[..., Any]
"""`draw_request` for a pipeline, with what a call gives it."""

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
    if asked.clean is not None and not any(edits):
        raise ValueError("a picture is given, but no edits of it: give edits, such as replace('circle', 'star')")
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

    A picture that exists is not drawn but read: the first path is that of the picture as it is noised, from noise to
    itself. Both have the painted words in their regions, except for the words that an edit paints in another one.

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
    again = with_changes(asked, generator=copied(asked.generator))
    first, path, noise = AttentionTrace("head"), list[Tensor](), list[Tensor]()

    def begin(sigma: float, latents: Tensor, read: Read) -> Tensor:
        noise.append(latents)
        return latents

    def keep(step: int, sigma: float, latents: Tensor) -> Tensor:
        if asked.clean is not None:
            latents = flow.interpolate(asked.clean, noise[0], latents.new_tensor([sigma]))
        path.append(latents)
        return latents

    before = draw(asked, attention=first, callback=None, change=laid_out, before_step=begin, after_step=keep)
    plans = [
        plan(own, text, asked.size, tokenizer, first, image)
        for image, (own, text) in enumerate(zip(edits, asked.prompts, strict=True))
    ]
    prompts = [own.prompt for own in plans]
    kept = torch.stack([own.kept for own in plans])
    images = draw(
        with_changes(again, prompts=prompts),
        change=changed_by(plans),
        before_step=excited_by(plans),
        after_step=in_places(following(path, kept), plans, path[-1], noise[0]),
    )
    return EditedPictures(images, before, prompts, first, None if asked.pictures is None else _inexact(asked, first))


def _inexact(asked: Request, first: AttentionTrace) -> list[float]:
    assert asked.pictures is not None and first.pictures is not None
    return ((asked.pictures.float() - first.pictures.float()).abs().mean(dim=(1, 2, 3)) / 255).tolist()


def _not_painted_anew(painted: Sequence[Edit], own: Sequence[Edit]) -> list[Edit]:
    """The painted phrases without those that have a word that one of a picture's own edits paints."""
    anew = [edit.word for edit in own if edit.kind == "paint"]
    return [edit for edit in painted if not any(phrase_spans(word, edit.word) for word in anew)]


def changed_by(plans: Sequence[Plan]) -> Change:
    """The `change` argument of a call that biases the words of each picture by its plan."""
    biases = [own.biases for own in plans]
    return lambda step, sigma, rows: bias_hook(rows, biases, sigma)


def excited_by(plans: Sequence[Plan]) -> BeforeStep:
    """Before each step: the latents moved by the words that the plan of their picture excites."""
    excited = [own.excited for own in plans]
    return lambda sigma, latents, read: excite(latents, excited, sigma, read)


def following(path: Sequence[Tensor], kept: Tensor) -> AfterStep:
    """After each step: the latents of another path where they are kept, (B, h, w) bool in pixels."""

    def follow(step: int, sigma: float, latents: Tensor) -> Tensor:
        height, width = latents.shape[-2:]
        share = F.adaptive_avg_pool2d(kept[:, None].float(), (height, width)).to(latents.device)
        return torch.where(share >= 0.5, path[step], latents)

    return follow


def in_places(then: AfterStep, plans: Sequence[Plan], clean: Tensor, noise: Tensor) -> AfterStep:
    """After each step, behind `then`: the things that move, noised to its level, in their new places.

    clean: the latents of the first picture (B, C, h, w), of the pictures' size or a VAE's.
    """
    placed = [[put_elsewhere(picture, own) for own in one.moved] for one, picture in zip(plans, clean, strict=True)]

    def put(step: int, sigma: float, latents: Tensor) -> Tensor:
        latents = then(step, sigma, latents)
        for image, things in enumerate(placed if sigma >= LAYOUT[0] else ()):
            for picture, there in things:
                noisy = flow.interpolate(picture[None], noise[image : image + 1], latents.new_tensor([sigma]))[0]
                latents[image] = torch.where(there, noisy, latents[image])
        return latents

    return put


def put_elsewhere(picture: Tensor, moved: Moved) -> tuple[Tensor, Tensor]:
    """A thing of a picture (C, h, w) at its new place: that picture, and (h, w) bool, where the thing is in it.

    It keeps its proportions, and is as large as the box of the region allows.
    """
    height, width = picture.shape[-2:]
    masks = torch.stack([grown(moved.place), grown(moved.region)]).to(picture)
    shares = F.adaptive_avg_pool2d(masks, (height, width))
    place, region = shares >= shares.amax(dim=(1, 2), keepdim=True) / 2  # some positions even of a coarse latent
    (x0, y0, x1, y1), (u0, v0, u1, v1) = _box(place), _box(region)
    scale = min((u1 - u0) / (x1 - x0), (v1 - v0) / (y1 - y0))
    h, w = max(round(scale * (y1 - y0)), 1), max(round(scale * (x1 - x0)), 1)
    top, left = (v0 + v1 - h) // 2, (u0 + u1 - w) // 2
    cut = torch.cat([picture, place[None].to(picture)])[:, y0:y1, x0:x1]
    if cut.shape[-2:] != (h, w):
        cut = F.interpolate(cut[None], (h, w), mode="bilinear", antialias=True)[0]
    there, at = torch.zeros_like(place), torch.zeros_like(picture)
    there[top : top + h, left : left + w] = cut[-1] >= 0.5
    at[:, top : top + h, left : left + w] = cut[:-1]
    return at, there


def _box(mask: Tensor) -> tuple[int, int, int, int]:
    rows, columns = (mask.any(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def copied(generator: Any) -> Any:
    """Generators that give the same numbers as these from here on."""
    if isinstance(generator, list):
        return [copied(one) for one in generator]
    if generator is None:
        return None
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    return copy


def picture_of_change(before: Image.Image, after: Image.Image) -> Image.Image:
    """What changed between two pictures: the largest difference of a channel at each pixel, by the colour map."""
    a, b = (np.asarray(picture.convert("RGB"), np.float32) / 255 for picture in (before, after))
    return Image.fromarray(colour_map(np.abs(a - b).max(axis=2)))
