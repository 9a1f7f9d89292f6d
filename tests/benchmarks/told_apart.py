"""Does a network know which caption is which picture's? Asked without drawing anything, so that little training tells.

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
"""Shares of noise at which pictures are told apart: where the layout is made."""

Errors = Callable[[Tensor, Tensor, float, list[str]], Tensor]
"""Pictures (B, 3, h, w) in [-1, 1], noise alike, its share and captions -> how far a network errs in each, (B,)."""


@torch.no_grad()
def told_apart(errors: Errors, size: int, count: int) -> dict[str, Any]:
    """Minimal pairs, `count` of each kind and split: whether a picture's own caption fits it better than the other's.

    The better one is that with which the network errs less (a diffusion classifier, arXiv 2303.16203).

    Returns:
        {"seen": {swap: {"share": of the pictures, "gain": by how much of its error the other caption costs more}}, ...}
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
            mine, theirs = (sum(errors(pictures, noise, at, said) for at in LEVELS) for said in (own, others))
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
        said = pipe.unet(noisy, times.to(pipe.device) * flow.TRAIN_TIMESTEPS, memory, mask).sample
        return squared(said.cpu(), flow.velocity(pictures, noise))

    return errors


def squared(said: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each picture, (B, 3, h, w) twice -> (B,)."""
    return F.mse_loss(said.float(), target, reduction="none").flatten(1).mean(dim=1)


def share(found: dict[str, Any], swap: str) -> float:
    """What `told_apart` gave for a swap, both splits together."""
    return float(np.mean([found[split][swap]["share"] for split in SPLITS]))
