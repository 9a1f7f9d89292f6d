"""Fewer steps: a student learns in one step what its teacher does in several.

Shapes: B batch, h×w pixels.
"""

from dataclasses import replace

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

    The time from noise to picture is cut into as many windows as the student is to have steps. In the window that its
    time falls into, the teacher takes each picture from the window's beginning to its end; the student is asked for
    the straight line between the two. The line is given by its own ends, at times 0 and 1, in place of picture and
    noise: so what is trained on it needs to know nothing of all this.
    """
    starts = (batch.times * steps).ceil().clamp_min(1) / steps  # (B,)
    width = 1 / (steps * SUBSTEPS)
    memory = teacher.memory(batch)
    start = x = flow.interpolate(batch.pictures, batch.noise, starts)  # (B, 3, h, w)
    for i in range(SUBSTEPS):
        times = (starts - i * width) * flow.TRAIN_TIMESTEPS
        x = x - width * teacher.unet(x, times, memory, batch.token_mask).sample
    line = (start - x) * steps  # (B, 3, h, w) a unit of time
    t = starts.view(-1, 1, 1, 1)
    return replace(batch, pictures=start - t * line, noise=start + (1 - t) * line, times=starts)
