"""Samplers: functions that integrate a rectified flow, given a denoiser and one of diffusers' schedulers.

Shapes: B pictures, C channels, h×w positions of a picture or of a VAE's latent.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from inspect import signature

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

SAMPLERS: dict[str, Callable[[], SchedulerMixin]] = {
    "Euler": FlowMatchEulerDiscreteScheduler,
    "Euler, stochastic": lambda: FlowMatchEulerDiscreteScheduler(shift=2.0, stochastic_sampling=True),
    "Heun": FlowMatchHeunDiscreteScheduler,
    "DPM-Solver++": lambda: DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    "UniPC": lambda: UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
}
"""Name -> a new scheduler. Heun evaluates the network twice per step.

A stochastic step goes to the predicted clean picture and back to a lower noise level with fresh noise, so that later
steps can correct the errors of earlier ones (arXiv 2303.01469, algorithm 1). Its steps are denser near noise, where
the layout is decided.
"""

OWN = "the model's own"

TRAINED_FOR = "Euler, stochastic"
"""The sampler that `train` saves with its models; `tests/benchmarks/samplers.py` compares them."""

Denoiser = Callable[[Tensor, Tensor, float, int], Tensor]
"""Called as f(x, timestep, sigma, step), it returns the velocity at x (B, C, h, w), of noise level sigma in (0, 1]."""


def integrate(
    denoise: Denoiser,
    latents: Tensor,
    scheduler: SchedulerMixin,
    steps: int,
    generator: torch.Generator | list[torch.Generator] | None = None,
    on_step: Callable[[int, Tensor, float, Tensor, Tensor], Tensor] | None = None,
    progress: Callable[[Tensor], Iterable[Tensor]] = iter,
    stop: Callable[[], bool] = lambda: False,
    move: Denoiser | None = None,
) -> Tensor:
    """Integrate a rectified flow from noise (B, C, h, w) to the end of the flow (B, C, h, w).

    Args:
        generator: source of the noise that a stochastic scheduler adds; a list has one for each picture.
        on_step: called as f(step, timestep, sigma, latents, clean) after each step. It returns the latents to continue
            with, which have noise level sigma now; `clean` (B, C, h, w) is the prediction of x0 that the step used.
        progress: wraps the timesteps as tqdm does.
        stop: asked after each step; where it is True, the latents so far are returned.
        move: called as `denoise` is, before each step; returns the latents to take it from.
    """
    scheduler = deepcopy(scheduler)  # it counts its steps, and another thread may be drawing with the same one
    sigmas = {}
    # By default these two spend a step on the last 0.001 of noise, where a velocity is mostly rounding error.
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        sigmas = {"sigmas": [1 - i / steps for i in range(steps)]}
    elif isinstance(scheduler, FlowMatchHeunDiscreteScheduler):
        scheduler.sigma_min = 1 / steps
    scheduler.set_timesteps(steps, device=latents.device, **sigmas)
    noise = {"generator": generator} if "generator" in signature(scheduler.step).parameters else {}
    levels = [*(scheduler.timesteps / scheduler.config.num_train_timesteps).tolist(), 0.0]
    for step, timestep in enumerate(progress(scheduler.timesteps)):
        sigma = levels[step]
        latents = latents if move is None else move(latents, timestep, sigma, step)
        velocity = denoise(latents, timestep, sigma, step)
        clean = latents - sigma * velocity
        latents = scheduler.step(velocity, timestep, latents, return_dict=False, **noise)[0]
        if on_step is not None:
            latents = on_step(step, timestep, levels[step + 1], latents, clean)
        if stop():
            break
    return latents
