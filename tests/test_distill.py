"""Shapes: B batch, T tokens, h×w pixels."""

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines import TextToImagePipeline
from pipelines.data.batches import Batch, Collator
from pipelines.data.scenes import SceneExamples
from pipelines.runs.checkpoint import checkpoints
from pipelines.text_to_image import with_sampler
from pipelines.training.distill import Distillation, clean_picture
from pipelines.training.recipe import muon
from pipelines.training.train import TrainConfig, train
from unet_xattn import flow


@pytest.fixture
def distillation(tiny_pipe: TextToImagePipeline) -> Distillation:
    return Distillation(deepcopy(tiny_pipe.text_encoder), deepcopy(tiny_pipe.unet), 4)


@pytest.fixture
def batch(tiny_pipe: TextToImagePipeline) -> Batch:
    examples = SceneExamples(32, 0)
    return Collator(tiny_pipe.tokenizer, 0, 0.1, 8)([(i, examples.example(i)) for i in range(8)])


def test_the_student_learns_at_the_levels_its_sampler_visits(
    tiny_pipe: TextToImagePipeline, distillation: Distillation
) -> None:
    visited: list[float] = []

    def note(pipe: TextToImagePipeline, step: int, time: torch.Tensor, tensors: dict) -> dict:
        visited.append(float(time) / flow.TRAIN_TIMESTEPS)
        return {}

    with_sampler(tiny_pipe, "Euler, stochastic")("a red circle", None, None, 4, 1.0, callback_on_step_end=note)
    assert distillation.levels.tolist() == pytest.approx(visited, abs=1e-6)


def test_equally_many_pictures_are_before_each_of_the_steps(distillation: Distillation, batch: Batch) -> None:
    memory = distillation.memory(batch)
    torch.manual_seed(0)
    with torch.no_grad():
        x, levels = distillation.underway(batch.noise, memory, batch.token_mask)
        assert sorted(levels.tolist()) == sorted(2 * distillation.levels.tolist())
        first = levels == 1
        assert torch.equal(x[first], batch.noise[first])  # no step taken yet
        # One step further: the student's picture of the noise, and as much new noise as the next level has.
        second = levels == distillation.levels[1]
        ones = torch.ones(int(second.sum()))
        made = clean_picture(distillation.unet, batch.noise[second], ones, memory[second], batch.token_mask[second])
        level = distillation.levels[1]
        added = (x[second] - (1 - level) * made) / level
        assert added.std().item() == pytest.approx(1, abs=0.05)
        assert abs(float((added * batch.noise[second]).mean())) < 0.05  # all of it new


def test_every_step_but_the_first_is_left_out_by_half_of_the_pictures(
    distillation: Distillation, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a student of four steps has also learnt to take two."""
    predict, seen = distillation.unet.forward, []

    def note(noisy: torch.Tensor, times: torch.Tensor, *rest: torch.Tensor) -> object:
        seen.append((times.unique().item() / flow.TRAIN_TIMESTEPS, len(noisy)))
        return predict(noisy, times, *rest)

    monkeypatch.setattr(distillation.unet, "forward", note)
    torch.manual_seed(0)
    many = torch.randn(256, *batch.noise.shape[1:])
    memory, mask = (each.repeat_interleave(32, 0) for each in (distillation.memory(batch), batch.token_mask))
    with torch.no_grad():
        x, _ = distillation.underway(many, memory, mask)
    assert x.isfinite().all()
    assert [level for level, _ in seen] == pytest.approx(distillation.levels[:-1].tolist())
    assert [count for _, count in seen] == [3 * 64, 128 / 2, 64 / 2]


def test_where_teacher_and_critic_agree_only_the_critic_learns(distillation: Distillation, batch: Batch) -> None:
    losses = distillation(batch)
    losses.flow.backward()
    assert losses.flow > 0
    assert all(not p.grad.any() for p in distillation.unet.parameters() if p.grad is not None)
    assert any(p.grad is not None and p.grad.any() for p in distillation.critic.parameters())
    frozen = [*distillation.teacher.parameters(), *distillation.text_encoder.parameters()]  # type: ignore[union-attr]
    assert all(p.grad is None for p in frozen)


def test_the_two_losses_are_those_of_the_paper(distillation: Distillation, batch: Batch) -> None:
    """Eq. 3 of DMD2 with the scale of its eq. 8 in DMD (arXiv 2311.18828), written out for one picture at a time."""
    torch.manual_seed(3)
    for network in (distillation.unet, distillation.teacher, distillation.critic):  # three that differ
        for parameter in network.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    mask, times, students = batch.token_mask, batch.times, len(batch.noise)

    def clean(network: torch.nn.Module, noisy: torch.Tensor, t: torch.Tensor, i: int) -> torch.Tensor:
        row = slice(i, i + 1)
        return noisy - t * network(noisy[None], 1000 * t[None], memory[row], mask[row]).sample[0]

    def gradients(loss: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        found = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True, allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])

    torch.manual_seed(4)
    made = distillation(batch)
    torch.manual_seed(4)  # the same draws again: the way, then the noise that teacher and critic take away
    with torch.no_grad():
        memory = distillation.memory(batch)
        noisy, levels = distillation.underway(batch.noise, memory, mask)
    noise = torch.randn_like(noisy)
    student, critic = torch.zeros(()), torch.zeros(())
    for i in range(students):
        drawn, t = clean(distillation.unet, noisy[i], levels[i], i), times[i]
        fixed = drawn.detach()
        noised = (1 - t) * fixed + t * noise[i]
        real, fake = (clean(n, noised, t, i).detach() for n in (distillation.teacher, distillation.critic))
        wanted = fixed + (real - fake) / (fixed - real).abs().mean()
        student = student - (drawn * (wanted - fixed)).mean() / students
        told = clean(distillation.critic, noised, t, i)
        error = ((told - fixed) / t).square().mean()  # of the velocity
        critic = critic + error * min(1, float(t) / flow.LEAST_TIME) ** 2 / students
    torch.testing.assert_close(made.flow, critic, rtol=1e-4, atol=1e-6)  # the student's value is 0
    torch.testing.assert_close(
        gradients(made.flow, distillation.unet), gradients(student, distillation.unet), rtol=1e-3, atol=1e-6
    )
    torch.testing.assert_close(
        gradients(made.flow, distillation.critic), gradients(critic, distillation.critic), rtol=1e-3, atol=1e-6
    )


def test_the_frozen_networks_of_a_distillation_never_use_dropout(distillation: Distillation) -> None:
    frozen = (distillation.teacher, distillation.text_encoder)
    for mode in (True, False):
        assert distillation.train(mode) is distillation
        assert distillation.unet.training == distillation.critic.training == mode
        assert not any(network.training for network in frozen if network is not None)
    made = Distillation(distillation.text_encoder, distillation.unet, 2)
    assert made.unet.training and not made.teacher.training


def test_the_student_learns_to_draw_like_its_teacher(distillation: Distillation, batch: Batch) -> None:
    """With a teacher that predicts brighter pictures, the student's become brighter."""
    predict = distillation.teacher.forward

    def brighter(noisy: torch.Tensor, times: torch.Tensor, *rest: torch.Tensor) -> object:
        velocity = predict(noisy, times, *rest)
        t = (times / flow.TRAIN_TIMESTEPS).view(-1, 1, 1, 1)
        return replace(velocity, sample=flow.velocity_from(noisy - t * velocity.sample + 0.5, noisy, t.flatten()))

    distillation.teacher.forward = brighter  # type: ignore[method-assign,assignment]
    ones = torch.ones(len(batch.noise))

    @torch.no_grad()
    def brightness() -> float:
        memory = distillation.memory(batch)
        return clean_picture(distillation.unet, batch.noise, ones, memory, batch.token_mask).mean().item()

    torch.manual_seed(0)
    before = brightness()
    optimizer = muon(distillation, 2e-3, 0.0)
    for _ in range(30):
        distillation(batch).flow.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert brightness() > before + 0.2


def test_a_batch_too_small_for_the_steps_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    config = TrainConfig(distill="shapes", batch_size=6, accumulate=2, out=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="leaves 3 pictures for a student of 4 steps"):
        train(config)
    assert [file.name for file in (tmp_path / "run").glob("*") if file.name != "lock"] == []


def test_a_run_saves_a_student_of_few_steps_with_the_text_encoder_of_its_teacher(
    tiny_pipe: TextToImagePipeline, tmp_path: Path
) -> None:
    tiny_pipe.save_pretrained(tmp_path / "teacher")
    settings = {"distill": str(tmp_path / "teacher"), "few_steps": 2, "batch_size": 4, "size": 32, "warmup": 1}
    whole = TrainConfig(out=str(tmp_path / "run"), steps=4, every=2, **settings)  # type: ignore[arg-type]
    student = TextToImagePipeline.from_pretrained(train(whole))
    weights = load_file(checkpoints(tmp_path / "run" / "checkpoints")[0] / "model.safetensors")

    def moved(name: str) -> float:
        teacher = {key: weight for key, weight in weights.items() if key.startswith("teacher.")}
        return sum(float((weights[name + key[7:]] - weight).norm()) for key, weight in teacher.items())

    assert moved("critic") > 2.5 * moved("unet") > 0  # it learns faster
    assert (student.config.num_inference_steps, student.config.guidance_scale) == (2, 1.0)
    assert student.scheduler.config.stochastic_sampling
    for name, weight in student.text_encoder.state_dict().items():
        assert torch.equal(weight, tiny_pipe.text_encoder.state_dict()[name]), name
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").glob("step-*")))  # as if stopped after two steps
    again = TextToImagePipeline.from_pretrained(train(whole, resume=True))
    for name, weight in again.unet.state_dict().items():
        assert torch.equal(weight, student.unet.state_dict()[name]), name
    assert any(
        not torch.equal(weight, tiny_pipe.unet.state_dict()[name]) for name, weight in student.unet.state_dict().items()
    )
    with pytest.raises(ValueError, match="leave out --from"):
        TrainConfig(distill="shapes", begin_from="shapes")


@pytest.mark.parametrize("weight", ["mask_weight", "text_weight"])
def test_loss_weights_that_a_student_cannot_use_are_refused(weight: str) -> None:
    with pytest.raises(ValueError, match="leave --mask-weight and text_weight at their defaults"):
        TrainConfig(distill="shapes", **{weight: 0.5})
