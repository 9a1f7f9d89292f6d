"""Rectified flow against diffusers' schedulers, which integrate it."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch.nn import functional as F

from unet_xattn import flow

CLEAN, NOISE = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
@pytest.mark.parametrize("steps", [2, 7])
def test_following_the_true_velocity_leads_from_noise_to_the_picture(scheduler: type, steps: int) -> None:
    stepper = scheduler()
    stepper.set_timesteps(steps)
    x = NOISE
    for timestep in stepper.timesteps:
        x = stepper.step(flow.velocity(CLEAN, NOISE), timestep, x).prev_sample
    torch.testing.assert_close(x, CLEAN, rtol=1e-4, atol=1e-5)


def test_one_step_of_euler_is_enough_with_the_true_velocity() -> None:
    stepper = FlowMatchEulerDiscreteScheduler()
    stepper.set_timesteps(1)
    x = stepper.step(flow.velocity(CLEAN, NOISE), stepper.timesteps[0], NOISE).prev_sample
    torch.testing.assert_close(x, CLEAN, rtol=1e-4, atol=1e-5)


def test_times_are_the_schedulers_timesteps() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    timesteps = scheduler.timesteps
    expected = scheduler.scale_noise(CLEAN, timesteps, NOISE)
    torch.testing.assert_close(flow.interpolate(CLEAN, NOISE, timesteps / flow.TRAIN_TIMESTEPS), expected)


def test_the_line_starts_at_the_picture_and_ends_at_noise() -> None:
    assert torch.equal(flow.interpolate(CLEAN, NOISE, torch.zeros(4)), CLEAN)
    assert torch.equal(flow.interpolate(CLEAN, NOISE, torch.ones(4)), NOISE)


def test_velocity_is_the_derivative_of_the_line() -> None:
    t, h = torch.full((4,), 0.25, dtype=torch.float64), 0.5
    clean, noise = CLEAN.double(), NOISE.double()
    slope = (flow.interpolate(clean, noise, t + h) - flow.interpolate(clean, noise, t)) / h
    torch.testing.assert_close(slope, flow.velocity(clean, noise))


def test_each_picture_of_a_batch_has_its_own_time() -> None:
    t = torch.tensor([0.1, 0.5, 0.7, 0.9])
    together = flow.interpolate(CLEAN, NOISE, t)
    for i in range(4):
        torch.testing.assert_close(
            together[i : i + 1], flow.interpolate(CLEAN[i : i + 1], NOISE[i : i + 1], t[i : i + 1])
        )


def test_times_are_logit_normal_as_diffusers_draws_them_and_shifted_as_its_scheduler_shifts() -> None:
    ours = flow.sample_times(1000, torch.Generator().manual_seed(3))
    theirs = compute_density_for_timestep_sampling(
        "logit_normal", 1000, logit_mean=0.0, logit_std=1.0, generator=torch.Generator().manual_seed(3)
    )
    assert flow.time_shift(64) == flow.TIME_SHIFT == 4 * flow.time_shift(16)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=flow.TIME_SHIFT)
    scheduler.set_timesteps(sigmas=theirs.sort(descending=True).values.tolist())
    torch.testing.assert_close(scheduler.sigmas[:-1].flip(0), ours.sort().values)
    assert ((ours > 0) & (ours < 1)).all()


def test_the_velocity_that_comes_from_the_picture_is_the_velocity() -> None:
    t = torch.tensor([0.001, 0.1, 0.5, 1.0], dtype=torch.float64)
    clean, noise = CLEAN.double(), NOISE.double()
    found = flow.velocity_from(clean, flow.interpolate(clean, noise, t), t)
    torch.testing.assert_close(found, flow.velocity(clean, noise))
    assert (flow.velocity_from(clean, clean, torch.zeros(4)) == 0).all()


def test_a_step_of_the_whole_time_ends_at_the_picture_the_velocity_comes_from() -> None:
    t = torch.full((4,), 0.3)
    noisy = flow.interpolate(CLEAN, NOISE, t)
    torch.testing.assert_close(noisy - 0.3 * flow.velocity_from(NOISE, noisy, t), NOISE)


def test_loss_is_the_mean_squared_error_of_each_picture() -> None:
    expected = [F.mse_loss(a, b) for a, b in zip(CLEAN, NOISE, strict=True)]
    torch.testing.assert_close(flow.loss(CLEAN, NOISE, torch.full((4,), 0.5)), torch.stack(expected))


def test_an_error_of_the_picture_weighs_no_more_in_the_last_of_the_noise() -> None:
    def of_picture_error(level: float) -> float:
        t = torch.full((4,), level)
        noisy = flow.interpolate(CLEAN, NOISE, t)
        prediction = flow.velocity_from(CLEAN + 0.1, noisy, t)
        return flow.loss(prediction, flow.velocity(CLEAN, NOISE), t).mean().item()

    assert of_picture_error(1.0) == pytest.approx(0.01, rel=1e-3)
    assert of_picture_error(0.5) == pytest.approx(0.04, rel=1e-3)
    most = pytest.approx(0.01 / flow.LEAST_TIME**2, rel=1e-2)
    assert of_picture_error(flow.LEAST_TIME) == of_picture_error(0.1) == of_picture_error(0.01) == most


def test_loss_is_summed_in_fp32_whatever_comes_in() -> None:
    far = torch.full((1, 3, 64, 64), 300.0, dtype=torch.float16)  # its square overflows fp16
    assert flow.loss(far, torch.zeros_like(far), torch.ones(1)).tolist() == [90000.0]
