"""Rectified flow (arXiv 2209.03003; Stable Diffusion 3, arXiv 2403.03206): straight lines from picture to noise.

Times run from 0 (the picture) to 1 (noise), as in diffusers' flow-matching schedulers, whose sigma they are.

Shapes: B batch, ... the rest of a picture's shape.
"""

import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000
"""A network sees time · 1000, as diffusers' schedulers give it."""


def sample_times(count: int, generator: torch.Generator | None = None, shift: float = 1.0) -> Tensor:
    """Logit-normal times (arXiv 2403.03206, section 3.1), (count,) in (0, 1).

    `shift` > 1 moves them towards noise, t' = s·t / (1 + (s − 1)·t) (its eq. 23), where the layout is decided.
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


def loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each picture, (B, ...) -> (B,), in fp32."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
