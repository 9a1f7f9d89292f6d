"""`verify` on pipelines of diffusers, and the memory that a trace of a large model takes."""

import math
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from families_of_pipelines import all_of, expected, state_of
from tiny_pipelines import FAMILIES, pipeline
from torch import Tensor, nn

from pipelines import trace, verify
from pipelines.tracing.kernels import Fused
from pipelines.tracing.verify import MEANINGS, Verification
from unet_xattn.trace_plan import Recording
from unet_xattn.words import PADDING, PICTURE, Text, Word


def verified(name: str, **changes: Any) -> Verification:
    call = all_of(name).call | {"steps": 2} | changes
    call.pop("num_inference_steps", None)
    return verify(pipeline(name), **call)


@pytest.mark.parametrize(
    "name",
    ["sd", "sdxl", "sd_sliced", "sana", "deepfloyd", "prx", "sd3", "flux", "flux_kontext", "qwenimage", "z_image"],
)
def test_a_faithful_recording_is_verified(name: str) -> None:
    pipe = pipeline(name)
    all_of(name).draw(pipe, all_of(name).prompts[0])
    before = state_of(pipe)
    found = verified(name)
    assert state_of(pipe) == before
    assert found.layers == len(expected(name).layers) and found.wrong == []
    assert set(found.deviations) == set(found.tolerances)
    assert found.deviations["picture"] == found.deviations["threads"] == 0.0
    assert 0 < found.deviations["rows"] < 2e-5 and 0 <= found.deviations["shares"] < 2e-5
    about, _, head, _, *rows = str(found).splitlines()
    denoiser = type(pipe.transformer if "transformer" in pipe.components else pipe.unet).__name__
    assert about.startswith(f"{type(pipe).__name__}, {denoiser}, float32, diffusers ")
    assert about.endswith(f": {found.layers} layers") and head.count("|") == 4
    assert [row.split("|")[1].strip() for row in rows] == [MEANINGS[name] for name in found.deviations]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_half_precision_is_verified_within_half_of_what_is_allowed(name: str, dtype: torch.dtype) -> None:
    pipe = FAMILIES[name].build().to(dtype)
    found = verify(pipe, steps=1, height=64, width=96)
    assert f", {str(dtype).removeprefix('torch.')}, " in str(found)
    assert found.deviations["shares"] > 1e-5  # the rounding of this dtype is seen
    assert all(2 * value <= found.tolerances[name] for name, value in found.deviations.items())


true_shares = Fused.shares


def another_head(kernel: Fused, groups: Tensor) -> Tensor:
    return true_shares(kernel, groups).roll(1, dims=1)


def another_token(kernel: Fused, groups: Tensor) -> Tensor:
    return true_shares(kernel, groups).roll(1, dims=-1)


def another_place(kernel: Fused, groups: Tensor) -> Tensor:
    return true_shares(kernel, groups).roll(1, dims=-2)


def too_much(kernel: Fused, groups: Tensor) -> Tensor:
    return 1.001 * true_shares(kernel, groups)


def no_number(kernel: Fused, groups: Tensor) -> Tensor:
    return true_shares(kernel, groups) * torch.nan


@pytest.mark.parametrize("name", ["sd", "flux"])
@pytest.mark.parametrize("lie", [another_head, another_token, another_place, too_much, no_number])
def test_wrong_shares_are_found(name: str, lie: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    verified(name, steps=1)
    before = state_of(pipeline(name))
    monkeypatch.setattr(Fused, "shares", lie)
    with pytest.raises(
        RuntimeError, match=r"^recorded attention is not what the model does: .*shares by .* \(tolerance"
    ):
        verified(name, steps=1)
    assert state_of(pipeline(name)) == before


def test_weights_that_do_not_explain_a_layers_output_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fused, "output", lambda kernel, weights: weights @ kernel.v.float().roll(1, dims=1))
    with pytest.raises(RuntimeError, match=r"not what the model does: outputs by"):
        verified("sd", steps=1)


def test_recording_that_changes_the_picture_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(kernel: Fused, groups: Tensor) -> Tensor:
        found = true_shares(kernel, groups)
        kernel.out.mul_(1.01)
        return found

    monkeypatch.setattr(Fused, "shares", careless)
    with pytest.raises(RuntimeError, match="picture by"):
        verified("sd", steps=1)


def test_what_cannot_be_recorded_is_not_verified() -> None:
    with pytest.raises(TypeError, match="KandinskyV22Pipeline cannot be recorded: it takes no prompt"):
        verify(pipeline("kandinsky22"))


# Memory


def of_words(count: int, *named: str) -> Text:
    """A prompt of words with a token each, and a half of it more for those that are several, start, end, named."""
    words = tuple(Word("word", 5 * i, 5 * i + 4, (i + 1,)) for i in range(count))
    return Text("word " * count, words, ("token",) * (count + count // 2 + 2) + named)


def bytes_of(grids: dict[str, tuple[int, int]], texts: dict[str, Text]) -> int:
    """Bytes of the default recording of one picture of 1024² pixels."""
    each = {branch: [text] for branch, text in texts.items()}
    recording = Recording(each, (1024, 1024), grids, dict.fromkeys(grids, 24), steps=28)
    return recording.bytes(heads=False, steps=False)


def layers_of(denoiser: nn.Module, ends: tuple[str, ...]) -> list[str]:
    return [name for name, module in denoiser.named_modules() if hasattr(module, "processor") and name.endswith(ends)]


def test_flux_at_1024_pixels_takes_less_than_64_mib() -> None:
    with torch.device("meta"):
        denoiser = FluxTransformer2DModel()  # its defaults are those of FLUX.1
    layers = layers_of(denoiser, ("attn",))
    assert len(layers) == 19 + 38
    size = bytes_of(dict.fromkeys(layers, (64, 64)), {"prompt": of_words(20, PADDING, PICTURE)})
    assert size == 4 * 57 * 64 * 64 * 34 < 64 * 2**20


def test_sdxl_at_1024_pixels_takes_less_than_128_mib() -> None:
    with torch.device("meta"):
        denoiser = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
        )
    layers = layers_of(denoiser, ("attn2",))
    assert len(layers) == 70
    side = {"down_blocks.1": 64, "down_blocks.2": 32, "mid_block": 32, "up_blocks.0": 32, "up_blocks.1": 64}
    grids = {layer: (s, s) for layer in layers for block, s in side.items() if layer.startswith(block)}
    assert grids.keys() == set(layers)
    size = bytes_of(grids, {"prompt": of_words(20, PADDING), "negative": of_words(20, PADDING)})
    assert size == 4 * 2 * (10 * 64 * 64 + 60 * 32 * 32) * 33 < 128 * 2**20


@pytest.mark.parametrize("name", ["sdxl", "flux"])
@pytest.mark.parametrize(("keep", "heads", "steps"), [("mean", False, False), ("full", True, True)])
def test_a_recording_takes_what_is_computed(name: str, keep: str, heads: bool, steps: bool) -> None:
    """Also while it is recorded: heads are averaged as they come."""
    pipe, taken = pipeline(name), []

    def note(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        taken.append(sum(4 * total.numel() for total in attention._sums.values()))
        return {}

    with trace(pipe, keep) as attention:
        FAMILIES[name].draw(pipe, FAMILIES[name].prompts[0], callback_on_step_end=note)
    held = [total for total in attention._sums.values() if total.dtype == torch.float32]
    size = attention.recording.bytes(heads=heads, steps=steps)
    assert size == 4 * sum(total.numel() for total in held) and len(held) == len(attention._sums)
    assert all(before <= size for before in taken) and len(taken) == 2
    positions = sum(math.prod(grid) for grid in attention.recording.grids.values())
    branches = len(attention.recording.texts)
    if not heads:
        assert size == 4 * branches * positions * len(attention.tokens_of(0))
