"""Fewer steps: a student learns in one step what its teacher does in several.

Shapes: B batch, h×w pixels.
"""

from dataclasses import replace
from itertools import pairwise

import torch

from pipelines.dataset import Batch
from pipelines.objective import TextToImageModel
from pipelines.text_to_image import TextToImagePipeline
from unet_xattn import Transformer, flow

SUBSTEPS = 4
"""The teacher's steps, by Euler's rule, within one of the student's."""


def load_teacher(name: str) -> TextToImageModel:
    """A model to learn from, as it is.

    Raises:
        ValueError: there is none, or its text encoder is not one of ours, which it needs to be trained further.
    """
    pipe = TextToImagePipeline.from_pretrained(name)
    if not isinstance(pipe.text_encoder, Transformer):
        raise ValueError(
            f"{name} reads with a {type(pipe.text_encoder).__name__}: distil a model that has its own encoder"
        )
    return TextToImageModel(pipe.text_encoder, pipe.unet).requires_grad_(False).eval()


@torch.no_grad()
def straightened(batch: Batch, teacher: TextToImageModel, steps: int) -> Batch:
    """A batch whose straight lines lead where the teacher's bent paths do (PeRFlow, arXiv 2405.07510, algorithm 1).

    The time from noise to picture is cut into as many windows as the student is to have steps, equal but for
    `flow.shifted`: most is lost at the beginning, where it is decided how many things there are. In one of these
    windows, each as often as any other, the teacher takes each picture from the window's beginning to its end; the
    student is asked for the straight line between the two. The line is given by its own ends, at times 0 and 1, in
    place of picture and noise: so what is trained on it needs to know nothing of all this.
    """
    evenly = torch.special.ndtr(torch.logit(flow.unshifted(batch.times)))  # what `flow.sample_times` drew, made uniform
    window = (evenly * steps).ceil().clamp(1, steps)  # (B,)
    edges = [flow.shifted((window - i / SUBSTEPS) / steps) for i in range(SUBSTEPS + 1)]  # from the beginning on
    memory = teacher.memory(batch)
    start = x = flow.interpolate(batch.pictures, batch.noise, edges[0])  # (B, 3, h, w)
    for time, after in pairwise(edges):
        said = teacher.unet(x, time * flow.TRAIN_TIMESTEPS, memory, batch.token_mask).sample
        x = x + (after - time).view(-1, 1, 1, 1) * said
    t, end = (time.view(-1, 1, 1, 1) for time in (edges[0], edges[-1]))
    line = (start - x) / (t - end)  # (B, 3, h, w) a unit of time
    return replace(batch, pictures=start - t * line, noise=start + (1 - t) * line, times=edges[0])
