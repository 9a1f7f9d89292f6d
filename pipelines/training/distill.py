"""Distillation: a student learns to draw in a few steps what its teacher draws in many.

Shapes: B batch, T tokens, M width of the memory, h×w pixels.
"""

from copy import deepcopy

import torch
from torch import Tensor

from pipelines.data.batches import Batch
from pipelines.samplers import SAMPLERS, TRAINED_FOR
from pipelines.training.objective import Losses, TextToImageModel
from unet_xattn import CrossAttentionUNet, Transformer, flow

CRITIC_LR_SCALE = 4.0
"""The critic's learning rate, relative to the student's."""


def check_parts(batch_size: int, accumulate: int, steps: int) -> None:
    """Raise ValueError unless each part of a process's batch has a picture for each of the student's steps."""
    fewest = len(torch.arange(batch_size).chunk(accumulate)[-1])
    if fewest < steps:
        raise ValueError(
            f"a process's batch of {batch_size}, in {accumulate} parts, leaves {fewest} pictures for "
            f"a student of {steps} steps: each part needs one for each step, so raise --batch-size"
        )


class Distillation(TextToImageModel):
    """A student, its teacher, and a critic of the student's pictures (DMD2, arXiv 2405.14867, without its GAN).

    All three are initialised from the teacher and read one memory; student and critic are trained. Noise is added to
    the student's pictures, and teacher and critic denoise them. The teacher was trained on real pictures, the critic is
    trained on the student's. Where their predictions differ, the student's pictures are distributed differently from
    the teacher's, and the student is pulled from the critic's prediction to the teacher's (eq. 3 there).

    Args:
        text_encoder: frozen here; None if the memory comes from outside.
        unet: the teacher's, and after training the student's.
        steps: the number of steps that the student will take. It learns at the noise levels which the sampler of the
            models trained here then visits, on the pictures that its own steps lead to.
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

    def lr_scale(self, name: str) -> float:
        """A slow critic would model an earlier student, and push away from there instead of towards the teacher."""
        return CRITIC_LR_SCALE if name.startswith("critic.") else 1.0

    def train(self, mode: bool = True) -> "Distillation":
        """As `nn.Module.train`, except that the frozen networks use no dropout."""
        super().train(mode)
        self.teacher.eval()
        if self.text_encoder is not None:
            self.text_encoder.eval()
        return self

    def forward(self, batch: Batch, use_masks: bool = True, memory: Tensor | None = None) -> Losses:
        """The losses of a batch, from its captions, its noise and its times, those of teacher and critic.

        The batch's own pictures are not used. `Losses.flow` has the critic's loss and the student's, which is 0 but has
        a gradient. The other losses are 0, because the masks of the student's pictures are unknown.
        """
        mask, times = batch.token_mask, batch.times
        with torch.no_grad():
            memory = self.memory(batch) if memory is None else memory
            noisy, levels = self.underway(batch.noise, memory, mask)
        drawn = clean_picture(self.unet, noisy, levels, memory, mask)
        fixed, noise = drawn.detach(), torch.randn_like(batch.noise)
        noised = flow.interpolate(fixed, noise, times)
        velocity = self.critic(noised, times * flow.TRAIN_TIMESTEPS, memory, mask).sample
        critic = flow.loss(velocity, flow.velocity(fixed, noise), times).mean()
        with torch.no_grad():
            real = clean_picture(self.teacher, noised, times, memory, mask)
            fake = noised - times.view(-1, 1, 1, 1) * velocity.float()
            distance = (fixed - real).abs().mean(dim=(1, 2, 3), keepdim=True)
            pull = (real - fake) / distance.clamp_min(1e-3)  # (B, 3, h, w), of one size at all times
        student = ((fixed - drawn) * pull).mean()
        zero = critic.new_zeros(())
        return Losses(critic + student, zero, zero)

    def underway(self, noise: Tensor, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures on the student's own way from noise (B, 3, h, w): equally many before each of its steps.

        After the first step each one is left out for half of the pictures, so that fewer steps are learnt as well.
        memory (B, T, M), mask (B, T) -> (B, 3, h, w) and their noise levels (B,).
        """
        steps, count = len(self.levels), len(noise)
        assert count >= steps, "some step would have no picture"
        taken = (torch.randperm(count) % steps).to(noise.device)  # before which of the steps each picture is
        levels = self.levels.to(noise.device)
        x, clean = noise.clone(), torch.zeros_like(noise)
        for i in range(steps - 1):
            further = (taken > i).nonzero().squeeze(1)
            rows = further if i == 0 else further[torch.randperm(len(further))[::2].to(noise.device)]
            clean[rows] = clean_picture(self.unet, x[rows], levels[i].expand(len(rows)), memory[rows], mask[rows])
            there = levels[i + 1].expand(len(further))
            x[further] = flow.interpolate(clean[further], torch.randn_like(clean[further]), there)
        return x, levels[taken]


def clean_picture(unet: CrossAttentionUNet, noisy: Tensor, times: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
    """The clean pictures that a network predicts from noisy ones, (B, 3, h, w)."""
    velocity = unet(noisy, times * flow.TRAIN_TIMESTEPS, memory, mask).sample.float()
    return noisy - times.view(-1, 1, 1, 1) * velocity
