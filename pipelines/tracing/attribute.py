"""Attribute the regions of an existing picture to the words of a caption."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from pipelines.components import to_tensor
from pipelines.pictures import Shape, fit_picture
from pipelines.pixels import displayed
from pipelines.recording import encode_concepts, read_concepts, recorder
from pipelines.text_to_image import TextToImagePipeline
from pipelines.tracing.attribute_any import attribute_any, native_size
from unet_xattn import AttentionTrace, flow

LONGEST = 4
"""The longest picture that `attribute` reads as a whole: longer by shorter side."""


@torch.no_grad()
def attribute(
    pipe: DiffusionPipeline,
    picture: Image.Image,
    caption: str,
    levels: Sequence[float] = (0.3, 0.5, 0.7),
    draws: int = 4,
    seed: int = 0,
    keep: str | Collection[str] = "mean",
    words: Sequence[str] | None = None,
    output: bool = False,
    concepts: Sequence[str] = (),
    fit: str = "crop",
) -> AttentionTrace:
    """Attribute the regions of an existing picture to the words of a caption.

    The picture is resized to `reading_shape` and noised to several levels. The attention at each level is recorded. In
    this trace a "step" is the index of a level in `levels`. `recording.settings` of the trace has "cut_off", the share
    of the picture that did not fit that shape, and "padded", the share of what was read that is white padding.

    Of diffusers' pipelines those can attribute whose latents can be made from a picture by their VAE alone, and given
    to their call: Stable Diffusion, SDXL, SD3, Flux, PixArt, Sana and their kin.

    Args:
        levels: noise levels in (0, 1); at low levels outlines are sharp, at high levels the words matter more.
        draws: number of noise samples per level; the attention is averaged over them.
        keep, words, output, concepts: as for `trace`. With concepts, the caption may be empty.
        fit: "crop" reads the middle of a picture that does not fit, "pad" all of it, with white beside it.

    Raises:
        ValueError: an empty or too long caption, or a level or number out of its range.
        TypeError: not a pipeline that can be recorded, or that can be given latents.
    """
    if not isinstance(pipe, DiffusionPipeline):
        raise TypeError(f"only a pipeline of diffusers can attribute, got a {type(pipe).__name__}")
    if not caption.strip() and not concepts:
        raise ValueError("the caption is empty: describe the picture, or name concepts")
    if not levels or not all(0 < level < 1 for level in levels):
        raise ValueError(f"noise levels must lie between 0 and 1, got {tuple(levels)}")
    if draws < 1:
        raise ValueError(f"draws must be 1 or more, got {draws}")
    if fit not in ("crop", "pad"):
        raise ValueError(f"fit is 'crop' or 'pad', got {fit!r}")
    shown, _ = displayed(picture)
    shape = reading_shape(pipe, *shown.size)
    fitted = fit_picture(shown, shape, fit)[None]  # (1, h, w, 3)
    attention = AttentionTrace(keep, words=words, output=output, concepts=concepts)
    misfit = cut_off(*shown.size, shape)
    settings = {"levels": list(levels), "draws": draws, "seeds": [seed]}
    settings |= {"cut_off": misfit if fit == "crop" else 0.0, "padded": misfit if fit == "pad" else 0.0}
    read = _attribute_ours if isinstance(pipe, TextToImagePipeline) else attribute_any
    read(pipe, fitted, caption, settings, attention)
    attention.pictures = torch.from_numpy(fitted)
    return attention


def _attribute_ours(
    pipe: TextToImagePipeline, fitted: np.ndarray, caption: str, settings: dict[str, Any], attention: AttentionTrace
) -> None:
    levels, draws, shape = settings["levels"], settings["draws"], fitted.shape[1:3]
    clean = pipe.encode_pictures(to_tensor(fitted)).float().cpu().expand(draws, -1, -1, -1)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(settings["seeds"][0]))
    memory, token_mask = pipe.encode_prompt([caption] * draws)
    concepts = encode_concepts(attention.concepts, pipe.tokenizer, pipe.encode_prompt)
    described = pipe.recording({"prompt": [caption] * draws}, shape, len(levels), settings, attention.concepts)
    attention.start(described, concepts.spelled)
    for step, (level, time) in enumerate((level, level * flow.TRAIN_TIMESTEPS) for level in levels):
        noisy = flow.interpolate(clean, noise, torch.full((draws,), float(level))).to(memory.device, memory.dtype)
        record = recorder(pipe.unet, attention, step, {"prompt": slice(0, draws)}, memory)
        pipe.unet(noisy, time, memory, token_mask, record=record)
        if attention.concepts:
            read_concepts(pipe.unet, noisy, time, memory, token_mask, attention, step, concepts)
    attention.finish(torch.from_numpy(fitted))
    attention.average_images(attention.recording)


def reading_shape(pipe: DiffusionPipeline, width: int, height: int) -> Shape:
    """The shape, (height, width), at which `attribute` reads a picture of these sides.

    The shorter side has the size the model was trained on, so that things have the size it knows. The longer side is
    the multiple nearest to the picture's own ratio, at most `LONGEST` times as long.
    """
    if isinstance(pipe, TextToImagePipeline):
        size, multiple = pipe.picture_size, pipe.unet.size_multiple * pipe.vae_scale_factor
    else:
        size, multiple = native_size(pipe)
    ratio = min(max(width, height) / min(width, height), LONGEST)
    longer = max(size, round(size * ratio / multiple) * multiple)
    return (size, longer) if width >= height else (longer, size)


def cut_off(width: int, height: int, shape: Shape) -> float:
    """The share of a picture of these sides that is cut off where it is cropped to the ratio of a shape.

    It is also the share of the shape that is padding where all of the picture is put into it.
    """
    wanted, given = shape[1] / shape[0], width / height
    return round(1 - min(wanted, given) / max(wanted, given), 3)
