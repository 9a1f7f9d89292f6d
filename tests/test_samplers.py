"""The sampler is a function of a denoiser: no text, page or file is needed to test it."""

import pytest
import torch
from torch import Tensor

from pipelines.samplers import SAMPLERS, integrate

TARGET = torch.linspace(-1, 1, 12).view(1, 3, 2, 2)


def towards_target(x: Tensor, timestep: Tensor, sigma: float, step: int) -> Tensor:
    """The velocity of a straight line from the target at sigma 0 through x."""
    assert sigma == pytest.approx(float(timestep) / 1000)
    return (x - TARGET) / sigma


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_straight_line_is_followed_to_its_end_by_every_sampler(name: str) -> None:
    noise = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    end = integrate(towards_target, noise, SAMPLERS[name](), 5, generator)
    torch.testing.assert_close(end, TARGET.expand(2, -1, -1, -1), rtol=0, atol=1e-2)


def test_the_scheduler_given_is_not_changed() -> None:
    scheduler = SAMPLERS["Heun"]()
    before = scheduler.timesteps.clone()
    integrate(towards_target, torch.randn(1, 3, 2, 2), scheduler, 3)
    assert scheduler.step_index is None and torch.equal(scheduler.timesteps, before)


def test_each_step_reports_its_prediction_of_x0_and_takes_the_latents_returned() -> None:
    steps: list[int] = []

    def on_step(step: int, timestep: Tensor, sigma: float, latents: Tensor, clean: Tensor) -> Tensor:
        steps.append(step)
        torch.testing.assert_close(clean, TARGET, rtol=0, atol=1e-5)
        return latents if step < 3 else torch.zeros_like(latents)

    end = integrate(towards_target, torch.randn(1, 3, 2, 2), SAMPLERS["Euler"](), 4, on_step=on_step)
    assert steps == [0, 1, 2, 3] and torch.equal(end, torch.zeros(1, 3, 2, 2))
