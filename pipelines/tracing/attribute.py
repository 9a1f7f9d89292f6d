"""Attribute the regions of an existing picture to the words of a caption."""

from collections.abc import Collection, Sequence

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from pipelines.components import to_tensor
from pipelines.pictures import Shape, fit_picture
from pipelines.pixels import displayed
from pipelines.text_to_image import TextToImagePipeline
from unet_xattn import AttentionTrace, flow
from unet_xattn.words import unknown_words

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
) -> AttentionTrace:
    """Attribute the regions of an existing picture to the words of a caption.

    The picture is resized to `reading_shape` and noised to several levels. The UNet's attention at each level is
    recorded. In this trace a "step" is the index of a level in `levels`. `recording.settings` of the trace has
    "cut_off", the share of the picture that did not fit that shape, and "unknown_words" of the caption.

    Args:
        levels: noise levels in (0, 1); at low levels outlines are sharp, at high levels the words matter more.
        draws: number of noise samples per level; the attention is averaged over them.

    Raises:
        ValueError: an empty or too long caption, or a level or number out of its range.
        TypeError: not a pipeline that can be recorded.
    """
    if not isinstance(pipe, TextToImagePipeline):
        raise TypeError(f"only a TextToImagePipeline can attribute, got a {type(pipe).__name__}")
    if not caption.strip():
        raise ValueError("the caption is empty: describe the picture")
    if not levels or not all(0 < level < 1 for level in levels):
        raise ValueError(f"noise levels must lie between 0 and 1, got {tuple(levels)}")
    if draws < 1:
        raise ValueError(f"draws must be 1 or more, got {draws}")
    shown, _ = displayed(picture)
    shape = reading_shape(pipe, *shown.size)
    fitted = fit_picture(shown, shape)[None]  # (1, h, w, 3)
    clean = pipe.encode_pictures(to_tensor(fitted)).float().cpu().expand(draws, -1, -1, -1)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    memory, token_mask = pipe.encode_prompt([caption] * draws)
    attention = AttentionTrace(keep)
    settings = {"levels": list(levels), "draws": draws, "seeds": [seed]}
    told = {"cut_off": cut_off(*shown.size, shape), "unknown_words": unknown_words(caption, pipe.tokenizer)}
    attention.start(pipe.recording({"prompt": [caption]}, shape, len(levels), settings | told))
    for step, level in enumerate(levels):
        noisy = flow.interpolate(clean, noise, torch.full((draws,), float(level))).to(memory.device, memory.dtype)
        record = attention.recorder(step, {"prompt": slice(0, 1)})
        pipe.unet(
            noisy,
            level * flow.TRAIN_TIMESTEPS,
            memory,
            token_mask,
            record=lambda layer, weights, grid, record=record: record(layer, weights.mean(dim=0, keepdim=True), grid),
        )
    attention.finish(torch.from_numpy(fitted))
    return attention


def reading_shape(pipe: TextToImagePipeline, width: int, height: int) -> Shape:
    """The shape, (height, width), at which `attribute` reads a picture of these sides.

    The shorter side has the size the model was trained on, so that things have the size it knows. The longer side is
    the multiple nearest to the picture's own ratio, at most `LONGEST` times as long.
    """
    size, multiple = pipe.picture_size, pipe.unet.size_multiple * pipe.vae_scale_factor
    ratio = min(max(width, height) / min(width, height), LONGEST)
    longer = max(size, round(size * ratio / multiple) * multiple)
    return (size, longer) if width >= height else (longer, size)


def cut_off(width: int, height: int, shape: Shape) -> float:
    """The share of a picture of these sides that is cut off where it is cropped to the ratio of a shape."""
    wanted, given = shape[1] / shape[0], width / height
    return round(1 - min(wanted, given) / max(wanted, given), 3)
