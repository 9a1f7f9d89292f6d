"""What a call of the text-to-image pipeline asks for, read from its arguments and checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pipelines.checks import check_guidance, check_prompt, check_steps, check_text, check_whole, listed
from pipelines.components import check_size, to_tensor
from pipelines.pictures import fit_picture
from pipelines.pixels import displayed
from unet_xattn import AttentionTrace
from unet_xattn.words import is_index, is_one_of, shown

Value = TypeVar("Value")

MAX_PICTURES, MAX_SIDE = 10_000, 65_536
"""More pictures of a prompt, or pixels of a side, are a mistake."""


@dataclass(frozen=True)
class Request:
    """B pictures to draw.

    prompts, negatives: a text for each picture. ignored: the positions of ignored tokens of each picture.
    size: height and width in pixels.
    pictures: those to edit, (B, h, w, 3) uint8, and `clean`, their latents; None where there are none.
    """

    prompts: list[str]
    negatives: list[str]
    ignored: list[list[int]]
    size: tuple[int, int]
    steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]
    generator: torch.Generator | list[torch.Generator] | None
    latents: Tensor | None
    pictures: Tensor | None = None
    clean: Tensor | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What made the pictures beside their texts, as JSON; "seeds" of each picture's generator, or of one."""
        seeds = None if self.generator is None else [generator.initial_seed() for generator in listed(self.generator)]
        return {
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "guidance_interval": list(self.guidance_interval),
            "seeds": seeds if self.latents is None else None,
        }


def read_request(
    pipe: DiffusionPipeline,
    prompt: Any,
    negative_prompt: Any,
    ignore: Any,
    size: tuple[Any, Any],
    steps: Any,
    scale: Any,
    interval: Any,
    each: Any,
    generator: Any,
    latents: Any,
    image: Any = None,
) -> Request:
    """The arguments of a call, with the model's own values for those that are None.

    Raises:
        ValueError: one of them cannot be used; the message says which.
    """
    if pipe.unet is None or pipe.scheduler is None:
        raise ValueError("this pipeline was loaded without its UNet or scheduler: it encodes prompts, but cannot draw")
    prompts = listed(prompt)
    if not prompts:
        raise ValueError("there must be at least one prompt, got an empty list")
    for text in prompts:
        check_prompt(text)
    negatives = _negatives(negative_prompt, len(prompts))
    given = None if image is None else _pictures(image, len(prompts))
    own = (pipe.picture_size,) * 2 if given is None else (given[0].height, given[0].width)
    height, width = (of_model if side is None else side for side, of_model in zip(size, own, strict=True))
    for side, name in ((height, "height"), (width, "width")):
        check_whole(side, name, -MAX_SIDE, MAX_SIDE)
    check_size(pipe.unet, pipe.vae, height, width)
    if given is not None and (height, width) != own:
        raise ValueError(f"the picture to edit has {own[1]}×{own[0]} pixels, asked for are {width}×{height}: resize it")
    steps = pipe.config.num_inference_steps if steps is None else steps
    check_steps(steps)
    scale = pipe.config.guidance_scale if scale is None else scale
    check_guidance(scale, negatives, pipe.config.guidable)
    if not is_index(each, MAX_PICTURES + 1) or each < 1:
        raise ValueError(f"num_images_per_prompt must be 1 or more, got {shown(each)}")
    ignored = _ignored(ignore, prompts, pipe.tokenizer)
    pictures = clean = None
    if given is not None:
        pictures = torch.from_numpy(np.stack(_repeat([fit_picture(picture, own) for picture in given], each)))
        clean = pipe.encode_pictures(to_tensor(pictures.numpy()))
    return Request(
        _repeat(prompts, each),
        _repeat(negatives, each),
        _repeat(ignored, each),
        (int(height), int(width)),
        int(steps),
        float(scale),
        _interval(interval),
        _generator(generator, len(prompts) * each),
        _latents(latents, (len(prompts) * each, *pipe.latent_shape(height, width))),
        pictures,
        clean,
    )


def _pictures(given: Any, count: int) -> list[Image.Image]:
    """The pictures to edit, one for each prompt, as they are displayed."""
    pictures = listed(given)
    if not all(isinstance(picture, Image.Image) for picture in pictures):
        raise ValueError(f"image is an open picture of Pillow, or a list with one for each prompt, not {shown(given)}")
    if len(pictures) != count:
        raise ValueError(f"{len(pictures)} pictures to edit for {count} prompts: give one for each")
    pictures = [displayed(picture)[0] for picture in pictures]
    if len(sizes := {picture.size for picture in pictures}) > 1:
        found = ", ".join(f"{width}×{height}" for width, height in sorted(sizes))
        raise ValueError(f"pictures to edit together have one size, not {found}: edit them one by one")
    return pictures


def _negatives(given: Any, count: int) -> list[str]:
    """A negative prompt for each prompt; the empty one by default."""
    negatives = listed(given) if isinstance(given, list | tuple) else ["" if given is None else given] * count
    if len(negatives) != count:
        raise ValueError(f"{len(negatives)} negative prompts for {count} prompts: give one for each")
    for text in negatives:
        check_text(text, "negative prompt")
    return negatives


def _interval(given: Any) -> tuple[float, float]:
    values = given.tolist() if isinstance(given, np.ndarray | Tensor) else given
    if isinstance(values, list | tuple) and len(values) == 2:
        low, high = values
        if all(isinstance(value, Real) for value in values) and 0 <= low < high <= 1:
            return float(low), float(high)
    raise ValueError(f"guidance_interval must be (low, high) with 0 ≤ low < high ≤ 1, got {shown(given)}")


def _generator(given: Any, count: int) -> torch.Generator | list[torch.Generator] | None:
    if given is None or isinstance(given, torch.Generator):
        return given
    generators = listed(given)
    if not all(isinstance(generator, torch.Generator) for generator in generators):
        raise ValueError(f"the generator is a torch.Generator or a list of them, not {shown(given)}")
    if len(generators) != count:
        raise ValueError(f"{len(generators)} generators for {count} pictures: give one for each")
    return generators


def _latents(given: Any, shape: tuple[int, ...]) -> Tensor | None:
    if given is None:
        return None
    latents = given
    if isinstance(given, np.ndarray) and given.dtype.kind == "f":
        kind = np.float32 if given.itemsize <= 4 else np.float64
        latents = torch.from_numpy(np.array(given, kind))  # a copy, because torch does not read every order of bytes
    if not isinstance(latents, Tensor) or not latents.is_floating_point():
        raise ValueError(f"latents are a tensor of floating-point numbers, not {type(given).__name__}")
    if tuple(latents.shape) != shape:
        raise ValueError(f"latents have shape {tuple(latents.shape)}, expected {shape}")
    if not latents.isfinite().all():
        raise ValueError("latents must be finite numbers")
    return latents


def _ignored(given: Any, prompts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """The positions of tokens to ignore, for each prompt."""
    lists = _as_lists([] if given is None else given)
    if not isinstance(lists, list) or not all(isinstance(tokens, list) for tokens in lists):
        raise ValueError(f"tokens to ignore are a list of positions for each prompt, not {shown(given)}")
    if len(lists) not in (0, len(prompts)):
        raise ValueError(f"tokens to ignore for {len(lists)} of {len(prompts)} prompts: give a list for each")
    for text, tokens in zip(prompts, lists, strict=False):
        count = len(tokenizer(text, verbose=False)["input_ids"])
        if not all(is_index(token, count) for token in tokens):
            raise ValueError(f"tokens to ignore are {shown(tokens, 80)}, the prompt has tokens 0 to {count - 1}")
    return [[int(token) for token in tokens] for tokens in lists] or [[] for _ in prompts]


def _as_lists(given: Any) -> Any:
    """Lists, tuples and arrays, also inside each other, as lists; other values unchanged."""
    values = given.tolist() if isinstance(given, np.ndarray) else given
    return [_as_lists(value) for value in values] if isinstance(values, list | tuple) else values


def check_results(output_type: Any, callback: Any, inputs: Any, known: Sequence[str], attention: Any) -> None:
    """Raise ValueError where the form of the pictures, the callback and its tensors, or the trace cannot be used."""
    if not is_one_of(output_type, ("pil", "np", "pt", "latent")):
        raise ValueError(f"output_type must be pil, np, pt or latent, got {shown(output_type)!r}")
    if callback is not None and not callable(callback):
        raise ValueError(f"callback_on_step_end must be a function, not {type(callback).__name__}")
    if not isinstance(inputs, list | tuple):
        raise ValueError(f"callback_on_step_end_tensor_inputs is a list of names, not {shown(inputs)!r}")
    if unknown := [shown(name) for name in inputs if not is_one_of(name, known)]:
        raise ValueError(f"callback_on_step_end_tensor_inputs can name {', '.join(known)}, not {', '.join(unknown)}")
    if not isinstance(attention, AttentionTrace | None):
        raise ValueError(f"attention is an AttentionTrace, not {type(attention).__name__}")


def _repeat(values: Sequence[Value], times: int) -> list[Value]:
    return [value for value in values for _ in range(times)]
