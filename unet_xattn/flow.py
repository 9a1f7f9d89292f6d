"""Rectified flow (arXiv 2209.03003; Stable Diffusion 3, arXiv 2403.03206): straight lines from picture to noise.

Times run from 0 (the picture) to 1 (noise), as in diffusers' flow-matching schedulers, whose sigma they are.

Shapes: B batch, ... the rest of a picture's shape.
"""

import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000
"""A network sees time · 1000, as diffusers' schedulers give it."""

TIME_SHIFT = 3.0
"""See `time_shift`."""

LEAST_TIME = 0.3
"""See `loss`."""


def time_shift(side: int) -> float:
    """How far times are shifted for pictures of a side in pixels (of a VAE's latents): `TIME_SHIFT` at 64.

    In proportion to the side, for the more pixels say the same, the more noise it takes to hide it (arXiv 2403.03206,
    section 5.3.2).
    """
    return TIME_SHIFT * side / 64


def sample_times(count: int, generator: torch.Generator | None = None, shift: float = TIME_SHIFT) -> Tensor:
    """Logit-normal times (arXiv 2403.03206, section 3.1), (count,) in (0, 1).

    Shifted towards noise, where it is decided what will be where: t' = s·t / (1 + (s − 1)·t) (its eq. 23).
    """
    t = torch.randn(count, generator=generator).sigmoid()
    return shift * t / (1 + (shift - 1) * t)


def interpolate(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The point at time t (B,) on the line from picture to noise: (1 − t)·clean + t·noise, (B, ...)."""
    t = t.view(-1, *[1] * (clean.dim() - 1))
    return (1 - t) * clean + t * noise


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """What the network learns to predict: the line's direction, d x_t / d t = noise − clean, (B, ...)."""
    return noise - clean


def velocity_from(clean: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    """The velocity at `noisy` (B, ...) of the line that started at `clean` (B, ...): (noisy − clean) / t, t (B,)."""
    t = t.clamp_min(1 / TRAIN_TIMESTEPS).to(noisy.dtype)  # at 0 the two are the same and the line has no direction
    return (noisy - clean) / t.view(-1, *[1] * (noisy.dim() - 1))


def loss(prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
    """Mean squared error of each picture's velocity, (B, ...) twice and t (B,) -> (B,), in fp32.

    A velocity's error is that of the picture it comes from, divided by t (`velocity_from`). Below `LEAST_TIME` it is
    weighted as if divided by that, or pictures that hide nothing would outweigh those whose text must be read.
    """
    error = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
    return error * (t / LEAST_TIME).clamp_max(1).square()
