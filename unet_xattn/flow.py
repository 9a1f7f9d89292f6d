"""Rectified flow (arXiv 2209.03003; Stable Diffusion 3, arXiv 2403.03206): straight lines from picture to noise.

Times run from 0 (the picture) to 1 (noise); they are the sigmas of diffusers' flow-matching schedulers.

Shapes: B batch, ... the rest of a picture's shape.
"""

import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000
"""Networks get time · 1000 as their timestep, as diffusers' schedulers provide it."""

TIME_SHIFT = 3.0
"""See `time_shift`."""

LEAST_TIME = 0.3
"""See `loss`."""


def time_shift(side: int) -> float:
    """The shift of the sampled times for pictures of this side in pixels (or a VAE's latents): `TIME_SHIFT` at 64.

    It is proportional to the side, because a larger picture needs more noise to hide the same content
    (arXiv 2403.03206, section 5.3.2).
    """
    return TIME_SHIFT * side / 64


def sample_times(count: int, generator: torch.Generator | None = None, shift: float = TIME_SHIFT) -> Tensor:
    """Logit-normal times (arXiv 2403.03206, section 3.1), (count,) in (0, 1).

    They are shifted towards noise, where the layout is decided: t' = s·t / (1 + (s − 1)·t) (eq. 23 there).
    """
    t = torch.randn(count, generator=generator).sigmoid()
    return shift * t / (1 + (shift - 1) * t)


def interpolate(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The point at time t (B,) on the line from picture to noise: (1 − t)·clean + t·noise, (B, ...)."""
    t = t.view(-1, *[1] * (clean.dim() - 1))
    return (1 - t) * clean + t * noise


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """The target of training: the direction of the line, d x_t / d t = noise − clean, (B, ...)."""
    return noise - clean


def velocity_from(clean: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    """The velocity at `noisy` (B, ...) of the line that starts at `clean` (B, ...): (noisy − clean) / t, t (B,)."""
    t = t.clamp_min(1 / TRAIN_TIMESTEPS).to(noisy.dtype)  # at 0 the two are equal and the line has no direction
    return (noisy - clean) / t.view(-1, *[1] * (noisy.dim() - 1))


def loss(prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
    """Mean squared error of each picture's velocity, (B, ...) twice and t (B,) -> (B,), in fp32.

    The error of a velocity is the error of the predicted picture divided by t (`velocity_from`). Below `LEAST_TIME` it
    is weighted as if divided by `LEAST_TIME`. Otherwise pictures with little noise would outweigh those for which the
    text is needed.
    """
    error = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
    return error * (t / LEAST_TIME).clamp_max(1).square()
