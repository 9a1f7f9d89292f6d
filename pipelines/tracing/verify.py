"""Check on a pipeline that its recorded attention is what its layers compute, and that recording changes nothing.

Shapes: B batch, H heads, L queries, N positions, T tokens, S keys, G groups of keys, D width of a layer.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Thread
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from pipelines.text_to_image import TextToImagePipeline
from pipelines.tracing.call import as_bytes
from pipelines.tracing.kernels import Fused, Kernel
from pipelines.tracing.watch import denoiser_of, watched
from unet_xattn import AttentionTrace

PROMPT = "a red circle left of a blue square"

MEANINGS = {
    "rows": "the sum of a position's shares, from 1",
    "outputs": "a layer's output computed from its weights, from its own output",
    "prediction": "the UNet's prediction with recording, from that without",
    "shares": "a recorded share, from one by explicit softmax",
    "picture": "a pixel in [0, 1] with recording, from one without",
    "threads": "what another thread gets while one records, from what it gets alone",
}
"""What each deviation is of, from what."""


@dataclass(frozen=True)
class Verification:
    """What `verify` found: the largest deviations of a recording over all layers, and what rounding explains of them.

    about: the pipeline, its denoiser, dtype and versions.
    deviations, tolerances: by the names of `MEANINGS`. Outputs and prediction are relative to the largest value.
    """

    about: str
    layers: int
    deviations: Mapping[str, float]
    tolerances: Mapping[str, float]

    @property
    def wrong(self) -> list[str]:
        """The deviations that exceed their tolerance."""
        return [
            f"{name} by {value:.2g} (tolerance {self.tolerances[name]:.2g})"
            for name, value in self.deviations.items()
            if not value <= self.tolerances[name]
        ]

    def __str__(self) -> str:
        """A table to paste."""
        lines = [f"{self.about}: {self.layers} layers", "", "| deviation of | largest | tolerance |", "|:--|--:|--:|"]
        for name, value in self.deviations.items():
            lines.append(f"| {MEANINGS[name]} | {value:.1e} | {self.tolerances[name]:.1e} |")
        return "\n".join(lines)


def tolerances(dtype: torch.dtype, tokens: int) -> dict[str, float]:
    """The largest deviation of each kind that rounding explains, for a model of this dtype.

    With eps, the distance from 1 to the next number: a weight is rounded by up to eps / 2 of itself, so a row's sum is
    too, and its T fp32 summands are. Recording rounds the scores, which the fused kernel does not: a score s moves its
    weight by |s|·eps / 2 of itself, and trained models' scores reach 16. Sampling amplifies this; 10 eps were the most
    in four steps. In fp32 the kernels of a GPU may compute with fewer bits (TF32), hence the floors.
    """
    eps = torch.finfo(dtype).eps
    once = max(8 * eps, 1e-4)
    rows = eps + tokens * torch.finfo(torch.float32).eps
    return {"rows": rows, "outputs": once, "prediction": once, "picture": max(32 * eps, 1e-3), "threads": once}


@torch.no_grad()
def verify(pipe: DiffusionPipeline, prompt: str = PROMPT, steps: int = 4, **call: Any) -> Verification:
    """Check on this pipeline that `trace` records exactly what the model computes.

    Args:
        call: further arguments of the pipeline's call, such as height and width.

    Raises:
        RuntimeError: a layer was not recorded, or a deviation exceeds its tolerance (`tolerances`); the message names
            it.
        TypeError: not a pipeline that can be recorded.
        ValueError: something is found that cannot be recorded rightly.
    """
    own = isinstance(pipe, TextToImagePipeline)
    found = _verify_own(pipe, prompt, steps, **call) if own else _verify_any(pipe, prompt, steps, **call)
    if found.wrong:
        raise RuntimeError(f"recorded attention is not what the model does: {', '.join(found.wrong)}")
    return found


def _about(pipe: DiffusionPipeline, dtype: torch.dtype) -> str:
    denoiser, versions = denoiser_of(pipe), f"diffusers {diffusers.__version__}, torch {torch.__version__}"
    return f"{type(pipe).__name__}, {type(denoiser).__name__}, {str(dtype).removeprefix('torch.')}, {versions}"


def _apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest value expected."""
    return float((found - expected).float().abs().max() / expected.float().abs().max().clamp_min(1e-12))


# Any pipeline of diffusers.


class _Checked:
    """The largest deviations of all kernels that a call recorded, and the dtype with the fewest digits among them."""

    def __init__(self) -> None:
        self.deviations = {"rows": 0.0, "outputs": 0.0, "shares": 0.0}
        self.dtype = torch.float64

    def __call__(
        self, layer: str, kernel: Kernel, groups: Tensor, shares: Tensor, queries: Mapping[int, slice]
    ) -> None:
        weights = kernel.weights()  # (B, H, L, S)
        explicit = weights @ groups.float()  # (B, H, L, G)
        for row, part in queries.items():
            self._note("rows", (shares[row, :, part].float().sum(dim=-1) - 1).abs().max())
            self._note("shares", (shares[row, :, part].float() - explicit[row, :, part]).abs().max())
        if isinstance(kernel, Fused):
            self._note("outputs", _apart(kernel.output(weights), kernel.out))
        self.dtype = max(self.dtype, shares.dtype, key=lambda dtype: torch.finfo(dtype).eps)

    def _note(self, name: str, value: Tensor | float) -> None:
        value = float(value)
        if not value <= self.deviations[name]:  # NaN is noted too
            self.deviations[name] = value


def _verify_any(pipe: DiffusionPipeline, prompt: str, steps: int, **call: Any) -> Verification:
    given: dict[str, Any] = {"num_inference_steps": steps, "output_type": "np"} | call

    def draw(text: str = prompt) -> Tensor:
        return as_bytes_or_floats(pipe(prompt=text, generator=torch.Generator().manual_seed(0), **given))

    attention, checked = AttentionTrace(), _Checked()
    with watched(pipe, attention, checked):
        recorded, beside = draw(), []
        recording = attention.recording
        other = Thread(target=lambda: beside.append(draw()))
        other.start()
        other.join()
        assert attention.recording is recording, "a call in another thread was recorded"
    plain = draw()
    deviations = checked.deviations | {
        "picture": float((plain - recorded).abs().max()),
        "threads": float((plain - beside[0]).abs().max()),
    }
    known = tolerances(checked.dtype, recording.tokens)
    allowed = {"rows": known["outputs"], "shares": known["outputs"], "outputs": known["outputs"]}
    allowed |= {"picture": 0.0, "threads": 0.0}  # the model's own computation is untouched
    return Verification(_about(pipe, checked.dtype), len(recording.grids), deviations, allowed)


def as_bytes_or_floats(out: Any) -> Tensor:
    """The pictures of a pipeline's output as numbers in [0, 1]."""
    images = out[0]
    return as_bytes(images).float() / 255 if isinstance(images, list) else torch.as_tensor(images).float()


# Our own pipeline, which hands its weights to a recorder.


def _verify_own(pipe: TextToImagePipeline, prompt: str, steps: int, **call: Any) -> Verification:
    def draw(text: str, recorded: bool) -> tuple[Tensor, AttentionTrace]:
        attention = AttentionTrace()
        given: dict[str, Any] = {"num_inference_steps": steps, "output_type": "pt"} | call
        given |= {"generator": torch.Generator().manual_seed(0), "attention": attention if recorded else None}
        return pipe(text, **given).images, attention

    plain, _ = draw(prompt, recorded=False)
    recorded, alone = draw(prompt, recorded=True)
    with ThreadPoolExecutor(2) as pool:
        (_, together), _ = pool.map(draw, (prompt, prompt[::-1]), (True, True))
    layers = pipe.unet.attention_layers
    apart = [(alone.maps(layer) - together.maps(layer)).abs().max() for layer in layers]
    deviations = _compare_layers(pipe, prompt) | {
        "picture": float((plain - recorded).abs().max()),
        "threads": float(torch.stack(apart).max()),
    }
    allowed = tolerances(pipe.unet.dtype, alone.recording.tokens)
    return Verification(_about(pipe, pipe.unet.dtype), len(layers), deviations, allowed)


def _compare_layers(pipe: TextToImagePipeline, prompt: str) -> dict[str, float]:
    """The deviations "rows", "outputs" and "prediction" over all layers, on one noisy picture."""
    memory, token_mask = pipe.encode_prompt([prompt])
    size, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    noise = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0)).to(memory)
    weights: dict[str, Tensor] = {}
    passed: dict[str, tuple[Tensor, Tensor]] = {}  # layer -> memory and output of its cross-attention
    recorded = pipe.unet(noise, 500, memory, token_mask, record=lambda layer, w, _: weights.update({layer: w})).sample
    modules = {layer: pipe.unet.get_submodule(f"{layer}.attention.cross_attention") for layer in weights}
    with ExitStack() as hooks:
        for layer, module in modules.items():
            handle = module.register_forward_hook(
                lambda module, inputs, out, layer=layer: passed.update({layer: (inputs[1], out)})
            )
            hooks.callback(handle.remove)
        plain = pipe.unet(noise, 500, memory, token_mask).sample
    rows, outputs = [], []
    for layer, module in modules.items():
        layer_memory, out = passed[layer]
        _, v = module.keys_values(layer_memory)
        again = module.to_out(module.combine_heads(weights[layer] @ v))
        rows.append(float((weights[layer].float().sum(dim=-1) - 1).abs().max()))
        outputs.append(_apart(again, out))
    return {"rows": max(rows), "outputs": max(outputs), "prediction": _apart(recorded, plain)}
