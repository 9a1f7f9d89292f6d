"""Attend-and-Excite in pipelines of diffusers: what a pass would read more of moves the latents after its step.

A pass is run once more with gradients. The call's own `callback_on_step_end` then moves the latents, so nothing of the
pipeline is copied or replaced. As the gradient is that before the step, the move comes one step late.

Shapes: B rows of the batch, I images.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from unet_xattn.excite import ENOUGH, REACH, Excited, Peaks, of_size_one


def check_excitable(pipe: DiffusionPipeline, arguments: Mapping[str, Any]) -> None:
    """Raise ValueError unless the latents of a call with these arguments, by name, can be moved."""
    name = type(pipe).__name__
    if "callback_on_step_end" not in arguments:
        raise ValueError(f"{name} cannot excite words: it has no callback_on_step_end, which moves the latents")
    if arguments["callback_on_step_end"] is not None:
        raise ValueError("excite moves latents by callback_on_step_end: give no other callback")
    if torch.is_inference_mode_enabled():
        raise ValueError("excite needs gradients: draw outside of torch.inference_mode")


def find_moves(
    denoiser: nn.Module,
    args: tuple,
    kwargs: Mapping[str, Any],
    excited: Sequence[Sequence[Excited]],
    rows: Sequence[int],
    level: float,
    run: Callable[[dict[str, Any], Peaks], None],
) -> Tensor:
    """How far to move what a pass with these arguments was given, (I, ...), relative to its spread.

    Args:
        excited: for each image, `rows` of whose batch read the prompt.
        run: called with the arguments of a pass, by name, and what is to be called with the images' shares.

    Raises:
        ValueError: the pass is not given its latents as one tensor.
    """
    arguments = dict(inspect.signature(type(denoiser).forward).bind_partial(denoiser, *args, **kwargs).arguments)
    own, name, *_ = arguments
    del arguments[own]
    if not isinstance(arguments[name], Tensor):
        raise ValueError(f"{type(denoiser).__name__} cannot excite words: it is not given its latents as one tensor")
    with torch.enable_grad():
        x = arguments[name].detach().clone().requires_grad_()
        peaks = Peaks(excited)
        run(arguments | {name: x}, peaks)
        large = 1024 * peaks.least().clamp_max(ENOUGH).sum()  # fp16 would round small gradients to zero
        (slope,) = torch.autograd.grad(large, x)
    return REACH * level * of_size_one(slope[list(rows)])


def moved(latents: Tensor, moves: Tensor) -> Tensor:
    """Latents of a pipeline after these moves of what its denoiser was given, in which channels may follow the latents.

    Raises:
        ValueError: it was given something else.
    """
    if moves.ndim == 4:
        moves = moves[:, : latents.shape[1]]
    if moves.shape != latents.shape:
        shapes = f"{tuple(moves.shape)}, not {tuple(latents.shape)}"
        raise ValueError(f"this pipeline cannot excite words: its denoiser is given latents in another form, {shapes}")
    return latents + (moves * latents.float().std()).to(latents)
