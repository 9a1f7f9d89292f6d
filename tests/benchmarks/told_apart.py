"""Does a network know which of two captions describes a picture? Measured without sampling: little training suffices.

Shapes: B pictures in a batch, h×w pixels.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines import TextToImagePipeline
from pipelines.components import to_tensor
from pipelines.evaluation.agreement import SPLITS, TEST_SEED
from pipelines.evaluation.pairs import minimal_pairs
from pipelines.scenes.shapes import SWAPS, render
from pipelines.text_to_image import read_prompts
from unet_xattn import flow

LEVELS = (0.8, 0.9)
"""Noise levels of the comparison: those at which the layout is decided."""

Errors = Callable[[Tensor, Tensor, float, list[str]], Tensor]
"""Pictures (B, 3, h, w) in [-1, 1], noise of the same shape, noise level and captions -> error of each picture (B,)."""


@torch.no_grad()
def told_apart(errors: Errors, size: int, count: int) -> dict[str, Any]:
    """How often the network's error is smaller with a picture's own caption than with that of its minimal pair.

    This is a diffusion classifier (arXiv 2303.16203) on `count` minimal pairs of each swap and split.

    Returns:
        {"seen": {swap: {"share": of the pictures, "gain": relative increase of the error with the other caption}}, ...}
    """
    found: dict[str, Any] = {}
    for split, held_out in SPLITS.items():
        found[split] = {}
        for swap in SWAPS:
            scenes = [scene for pair in minimal_pairs(count, swap, held_out) for scene in pair]
            pictures = to_tensor(np.stack([render(scene, size)[0] for scene in scenes]))
            noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(TEST_SEED))
            own = [scene.caption for scene in scenes]
            others = [own[i ^ 1] for i in range(len(own))]
            mine, theirs = (sum(errors(pictures, noise, level, texts) for level in LEVELS) for texts in (own, others))
            share, gain = (theirs > mine).float().mean(), theirs.mean() / mine.mean() - 1
            found[split][swap] = {"share": round(share.item(), 4), "gain": round(gain.item(), 4)}
    return found


def errors_of(pipe: TextToImagePipeline) -> Errors:
    """The mean squared errors of a pipeline's velocity."""

    def errors(pictures: Tensor, noise: Tensor, level: float, captions: list[str]) -> Tensor:
        ids, mask = (t.to(pipe.device) for t in read_prompts(pipe.tokenizer, captions))
        times = torch.full((len(pictures),), level)
        noisy = flow.interpolate(pictures, noise, times).to(pipe.device)
        memory = pipe.text_encoder.encode(ids, mask)  # type: ignore[union-attr]
        predicted = pipe.unet(noisy, times.to(pipe.device) * flow.TRAIN_TIMESTEPS, memory, mask).sample
        return squared(predicted.cpu(), flow.velocity(pictures, noise))

    return errors


def squared(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each picture, (B, 3, h, w) twice -> (B,)."""
    return F.mse_loss(predicted.float(), target, reduction="none").flatten(1).mean(dim=1)


def share(found: dict[str, Any], swap: str) -> float:
    """The share in a report of `told_apart` for one swap, over both splits."""
    return float(np.mean([found[split][swap]["share"] for split in SPLITS]))
