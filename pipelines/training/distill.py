"""Fewer steps: a student learns to draw in few what its teacher draws in many.

Shapes: B batch, T tokens, M width of the memory, h×w pixels.
"""

from copy import deepcopy

import torch
from torch import Tensor

from pipelines.data.batches import Batch
from pipelines.samplers import SAMPLERS, TRAINED_FOR
from pipelines.training.objective import Losses, TextToImageModel
from unet_xattn import CrossAttentionUNet, Transformer, flow

CRITIC_PACE = 4.0
"""How many times the student's learning rate the critic has."""


def check_parts(batch_size: int, accumulate: int, steps: int) -> None:
    """Raise ValueError unless every part of a process's batch has a picture for each of the student's steps."""
    fewest = len(torch.arange(batch_size).chunk(accumulate)[-1])
    if fewest < steps:
        raise ValueError(
            f"a process's batch of {batch_size}, worked on in {accumulate} parts, leaves {fewest} pictures for "
            f"a student of {steps} steps: each part needs as many as there are steps, by a greater --batch-size"
        )


class Distillation(TextToImageModel):
    """A student, its teacher, and a critic that knows how the student draws (DMD2, arXiv 2405.14867, without its GAN).

    All three begin alike and read one memory; student and critic learn. Of what the student draws, noised again,
    the teacher says which picture it is likely to come from, and so does the critic, who is trained on the student's
    pictures as the teacher was on real ones. Where the two disagree the student's pictures are not distributed as the
    teacher's: the student is pulled from where the critic sees them to where the teacher does (eq. 3 there).

    Args:
        text_encoder: which is not trained any further; None if the memory comes from one outside.
        unet: the teacher's, and after training the student's.
        steps: that the student shall take. It learns at the noise levels that the sampler of the models trained here
            then visits, from where its own steps lead.
    """

    def __init__(self, text_encoder: Transformer | None, unet: CrossAttentionUNet, steps: int):
        super().__init__(text_encoder, unet)
        if text_encoder is not None:
            text_encoder.requires_grad_(False)
        self.teacher = deepcopy(unet).requires_grad_(False)
        self.critic = deepcopy(unet)
        scheduler = SAMPLERS[TRAINED_FOR]()
        scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
        self.levels = scheduler.sigmas[:-1]  # (steps,), the first is 1: pure noise
        self.train()

    def pace(self, name: str) -> float:
        """A student that outran its critic would flee from where it was, not go where its teacher is."""
        return CRITIC_PACE if name.startswith("critic.") else 1.0

    def train(self, mode: bool = True) -> "Distillation":
        """As any module, but those who learn nothing drop nothing out."""
        super().train(mode)
        self.teacher.eval()
        if self.text_encoder is not None:
            self.text_encoder.eval()
        return self

    def forward(self, batch: Batch, use_masks: bool = True, memory: Tensor | None = None) -> Losses:
        """Of the batch the captions, the noise, and the times at which teacher and critic look; not its pictures.

        `Losses.flow` is the critic's: the student's is a pull, with a gradient and no value. There are no others, for
        nobody knows the masks of what the student draws.
        """
        mask, times = batch.token_mask, batch.times
        with torch.no_grad():
            memory = self.memory(batch) if memory is None else memory
            noisy, levels = self.underway(batch.noise, memory, mask)
        drawn = picture(self.unet, noisy, levels, memory, mask)
        made, noise = drawn.detach(), torch.randn_like(batch.noise)
        with torch.no_grad():
            seen = flow.interpolate(made, torch.randn_like(noise), times)
            true, usual = (picture(unet, seen, times, memory, mask) for unet in (self.teacher, self.critic))
            distance = (made - true).abs().mean(dim=(1, 2, 3), keepdim=True)
            pull = (true - usual) / distance.clamp_min(1e-3)  # (B, 3, h, w), alike at all times
        student = ((made - drawn) * pull).mean()
        again = flow.interpolate(made, noise, times)
        said = self.critic(again, times * flow.TRAIN_TIMESTEPS, memory, mask).sample
        critic = flow.loss(said, flow.velocity(made, noise), times).mean()
        nothing = critic.new_zeros(())
        return Losses(critic + student, nothing, nothing)

    def underway(self, noise: Tensor, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Where the student's own steps lead from noise (B, 3, h, w): pictures before each step in turn, as many each.

        memory (B, T, M), mask (B, T) -> (B, 3, h, w) and their noise levels (B,).
        """
        steps, count = len(self.levels), len(noise)
        assert count >= steps, "some step would have no picture"
        taken = (torch.randperm(count) % steps).to(noise.device)  # steps behind each picture
        levels = self.levels.to(noise.device)
        x = noise.clone()
        for i in range(steps - 1):
            rows = taken > i
            now = levels[i].expand(int(rows.sum()))
            clean = picture(self.unet, x[rows], now, memory[rows], mask[rows])
            x[rows] = flow.interpolate(clean, torch.randn_like(clean), levels[i + 1].expand_as(now))
        return x, levels[taken]


def picture(unet: CrossAttentionUNet, noisy: Tensor, times: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
    """The picture that a network sees in noisy ones (B, 3, h, w), at the end of the line it says."""
    velocity = unet(noisy, times * flow.TRAIN_TIMESTEPS, memory, mask).sample.float()
    return noisy - times.view(-1, 1, 1, 1) * velocity
