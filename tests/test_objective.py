"""One training step, taken apart: what is drawn, how losses add up, what is clipped, averaged and validated.

Shapes: B batch, h×w pixels.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedTokenizerFast

import pipelines.training.train
from pipelines.data.batches import Batch, Collator
from pipelines.data.stream import Example, seed_of
from pipelines.runs.checkpoint import checkpoints
from pipelines.training.config import TrainConfig
from pipelines.training.objective import Losses
from pipelines.training.parts import make_collator
from pipelines.training.recipe import bf16_is_fast, power_function_ema
from pipelines.training.state import TrainState
from pipelines.training.train import forward_backward, train
from pipelines.training.validate import validate
from unet_xattn import CrossAttentionUNet, flow


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(mixed_precision="bf16" if bf16_is_fast() else "no")  # as other tests do


# What is drawn for an example.


def example(side: int) -> Example:
    return Example(torch.zeros(side, side, 3, dtype=torch.uint8).numpy(), "a red circle")


def drawn(tokenizer: PreTrainedTokenizerFast, side: int = 16, shift: float = 1.0, seed: int = 0) -> Batch:
    return Collator(tokenizer, seed, 0.5, 4, shift)([(place, example(side)) for place in range(16)])


def test_times_and_dropped_captions_do_not_depend_on_the_size_of_the_pictures(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """So the noise, of which a larger picture takes more, is drawn last."""
    small, large = drawn(tokenizer, 16), drawn(tokenizer, 32)
    assert torch.equal(small.times, large.times) and torch.equal(small.ids, large.ids)
    assert 0 < small.token_mask.all(dim=1).sum() < 16  # some captions were dropped


def test_every_place_and_every_seed_has_draws_of_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    batches = [drawn(tokenizer, seed=seed) for seed in (0, 1)]
    noise = torch.cat([batch.noise for batch in batches]).flatten(1)
    assert len(noise.unique(dim=0)) == 32 and len(torch.cat([batch.times for batch in batches]).unique()) == 32
    correlation = torch.corrcoef(noise) - torch.eye(32)
    assert correlation.abs().max() < 0.25  # 768 numbers each


def test_a_shift_multiplies_the_odds_of_noise(tokenizer: PreTrainedTokenizerFast) -> None:
    def odds(times: Tensor) -> Tensor:
        return times / (1 - times)

    plain, shifted = (drawn(tokenizer, shift=shift).times for shift in (1.0, 4.0))
    torch.testing.assert_close(odds(shifted), 4 * odds(plain), rtol=1e-4, atol=0)


def test_the_shift_grows_with_the_side_of_what_the_unet_draws(
    tokenizer: PreTrainedTokenizerFast, make_unet: Callable[..., CrossAttentionUNet]
) -> None:
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    vae = AutoencoderKL(  # of factor two
        block_out_channels=(4, 4), norm_num_groups=1, down_block_types=down, up_block_types=up
    )
    shifts = {}
    for size in (64, 128, 256):
        for network in (None, vae):
            config = TrainConfig(data="shapes", size=size)
            shifts[size, network] = make_collator(config, tokenizer, make_unet(), network).shift
    assert shifts[128, None] == 2 * shifts[64, None] == shifts[256, vae]
    assert shifts[256, None] == 4 * shifts[64, None] == 2 * shifts[256, vae] and shifts[64, None] == flow.TIME_SHIFT
    asked = TrainConfig(data="shapes", size=128, time_shift=1.5)
    assert make_collator(asked, tokenizer, make_unet(), None).shift == 1.5


# The sum of the losses.


class Three(nn.Module):
    """A model whose losses are its three weights."""

    def __init__(self) -> None:
        super().__init__()
        self.flow, self.tokens, self.text = (nn.Parameter(torch.tensor(value)) for value in (1.0, 2.0, 3.0))

    def forward(self, batch: Batch, use_masks: bool, memory: Tensor | None) -> Losses:
        return Losses(self.flow * 1, self.tokens * 1, self.text * 1)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_loss_is_the_sum_of_three_each_with_its_own_weight(
    tokenizer: PreTrainedTokenizerFast, accelerator: Accelerator, parts: int
) -> None:
    model, batch = Three(), drawn(tokenizer)
    batch = replace(batch, target_mask=torch.ones_like(batch.target_mask))
    config = TrainConfig(mask_weight=5.0, text_weight=7.0, accumulate=parts)
    losses = forward_backward(model, batch, None, config, accelerator)  # type: ignore[arg-type]
    found = {name: weight.grad.item() for name, weight in model.named_parameters()}  # type: ignore[union-attr]
    assert found == pytest.approx({"flow": 1.0, "tokens": 5.0, "text": 7.0})
    assert torch.stack(losses).tolist() == pytest.approx([1.0, 2.0, 3.0])


@pytest.mark.parametrize(("weight", "known"), [(0.0, True), (0.3, False), (0.3, True)])
def test_masks_are_used_only_where_there_are_some_and_they_weigh_something(
    tokenizer: PreTrainedTokenizerFast, accelerator: Accelerator, weight: float, known: bool
) -> None:
    used: list[bool] = []

    class Noting(Three):
        def forward(self, batch: Batch, use_masks: bool, memory: Tensor | None) -> Losses:
            used.append(use_masks)
            return super().forward(batch, use_masks, memory)

    batch = drawn(tokenizer)
    batch.masks[3, 1, 0, 0] = float(known)
    forward_backward(Noting(), batch, None, TrainConfig(mask_weight=weight), accelerator)  # type: ignore[arg-type]
    assert used == [known and weight > 0]


# Clipping, the optimizer and the average.


def make_state(accelerator: Accelerator, sigma: float = 0.1) -> TrainState:
    """A single layer, SGD with a learning rate of 1, and the average of the weights."""
    state = TrainState(
        nn.Linear(3, 3, bias=False), lambda model: torch.optim.SGD(model.parameters(), 1.0), power_function_ema(sigma)
    )
    state.prepare(accelerator)
    return state


def weight(module: nn.Module) -> Tensor:
    (only,) = module.parameters()
    return only.detach().clone()


@pytest.mark.parametrize("norm", [0.25, 1.0, 80.0])
def test_clipping_shortens_long_gradients_and_leaves_short_ones(accelerator: Accelerator, norm: float) -> None:
    state = make_state(accelerator)
    (only,) = state.model.parameters()
    direction = torch.randn(3, 3)
    direction /= direction.norm()
    only.grad = norm * direction
    assert state.clip_gradients(1.0).item() == pytest.approx(norm)
    torch.testing.assert_close(only.grad, min(norm, 1.0) * direction, rtol=1e-4, atol=1e-6)


def test_a_step_averages_the_weights_that_it_has_just_made_and_leaves_no_gradient(accelerator: Accelerator) -> None:
    state = make_state(accelerator)
    (only,) = state.model.parameters()
    start, average = weight(state.model), torch.zeros(3, 3)
    for step in range(1, 5):
        only.grad = torch.full((3, 3), -1.0)
        state.step()
        torch.testing.assert_close(weight(state.model), start + step)
        assert only.grad is None or not only.grad.any()
        keep = 0.0 if step == 1 else kept_share(step, 0.1)
        average = keep * average + (1 - keep) * (start + step)
        torch.testing.assert_close(weight(state.averaged), average)


def kept_share(step: int, sigma: float) -> float:
    """β of EDM2 (arXiv 2312.02696), eq. 122: (1 − 1/t)^(γ + 1), where γ solves eq. 126, here by bisection."""
    low, high = 0.0, 10_000.0
    for _ in range(100):
        gamma = (low + high) / 2
        width = (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)
        low, high = (gamma, high) if width > sigma else (low, gamma)
    return (1 - 1 / step) ** (gamma + 1)


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.25])
def test_the_decay_of_the_average_is_that_of_its_paper(sigma: float) -> None:
    model = nn.Linear(1, 1, bias=False)
    average = AveragedModel(model, multi_avg_fn=power_function_ema(sigma))
    expected = 0.0
    for step in range(1, 40):
        model.weight.data.fill_(float(step))
        average.update_parameters(model)
        keep = kept_share(step, sigma) if step > 1 else 0.0
        expected = keep * expected + (1 - keep) * step
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-4)


# A run, watched.


@pytest.fixture(scope="module")
def watched(small_networks: None, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What happens in a run of three steps whose gradients are long."""
    seen = SimpleNamespace(seeds=[], norms=[], rates=[], validated=[], out=tmp_path_factory.mktemp("run"))
    step = TrainState.step

    def steep(model: nn.Module, *arguments: object) -> Losses:
        seen.seeds.append(torch.initial_seed())
        losses = forward_backward(model, *arguments)  # type: ignore[arg-type]
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad *= 1000
        return losses

    def noted_step(state: TrainState) -> None:
        grads = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
        seen.norms.append(float(torch.nn.utils.get_total_norm(grads)))
        seen.rates.append(state.optimizer.param_groups[0]["lr"])
        step(state)

    def noted_validation(model: nn.Module, *arguments: object) -> dict[str, float]:
        seen.validated.append({name: value.clone() for name, value in model.state_dict().items()})
        return validate(model, *arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines.training.train, "forward_backward", steep)
        patch.setattr(pipelines.training.train, "validate", noted_validation)
        patch.setattr(TrainState, "step", noted_step)
        data = tmp_path_factory.mktemp("pictures")
        for colour in ("red", "blue"):
            Image.new("RGB", (16, 16), colour).save(data / f"{colour}.png")
            (data / f"{colour}.txt").write_text(f"a {colour} wall")
        train(TrainConfig(data=str(data), out=str(seen.out), steps=3, batch_size=2, size=16, warmup=2, every=3))
    return seen


def test_each_step_has_random_numbers_of_its_own(watched: SimpleNamespace) -> None:
    """Dropout uses them, and so do the noise and the steps of a student; a resumed run repeats them."""
    assert watched.seeds == [seed_of(0, step, 0) for step in range(3)] and len(set(watched.seeds)) == 3


def test_no_step_is_longer_than_the_clipped_gradient(watched: SimpleNamespace) -> None:
    assert watched.norms == pytest.approx([1.0] * 3, rel=1e-3)
    (first, *_) = map(json.loads, (watched.out / "log.jsonl").read_text().splitlines())
    assert first["gradient norm"] > 10  # the log has what it was before


def test_a_step_learns_at_the_rate_of_its_schedule(watched: SimpleNamespace) -> None:
    assert watched.rates == pytest.approx([0.004 * factor for factor in (0.5, 1.0, 1.0)])


def test_the_averaged_weights_are_validated_and_no_others(watched: SimpleNamespace) -> None:
    (validated,) = watched.validated
    newest = checkpoints(watched.out / "checkpoints")[0]
    averaged, raw = (load_file(newest / f"{name}.safetensors") for name in ("ema", "model"))
    assert all(torch.equal(value, averaged[f"module.{name}"]) for name, value in validated.items())
    assert any(not torch.equal(value, raw[name]) for name, value in validated.items())
