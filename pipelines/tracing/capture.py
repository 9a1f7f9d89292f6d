"""Record a pipeline's cross-attention while it draws or on an existing picture, and verify the recording.

Shapes: B batch, H heads, N positions, T tokens, D width of a layer.
"""

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from pipelines.components import to_tensor
from pipelines.pictures import fit_picture
from pipelines.text_to_image import TextToImagePipeline, active_traces
from unet_xattn import AttentionTrace, flow
from unet_xattn.trace_plan import TRACE_BYTES


@contextmanager
def trace(
    pipe: DiffusionPipeline, keep: str | Collection[str] = "mean", budget: int = TRACE_BYTES
) -> Iterator[AttentionTrace]:
    """Record the next call of `pipe`; a later call inside the block replaces the recording.

        with trace(pipe) as attention:
            image = pipe("a red circle left of a blue square").images[0]
        attention.heatmap("circle")

    Other threads that use the same pipeline are not recorded. `keep` names the axes that are not averaged, and `budget`
    limits the bytes of the recording; see `AttentionTrace`.

    Raises:
        TypeError: not a pipeline that can be recorded.
    """
    _check_kind(pipe)
    attention = AttentionTrace(keep, budget)
    token = active_traces.set((*active_traces.get(), (pipe, attention)))
    try:
        yield attention
    finally:
        active_traces.reset(token)


@torch.no_grad()
def attribute(
    pipe: DiffusionPipeline,
    picture: Image.Image,
    caption: str,
    levels: Sequence[float] = (0.3, 0.5, 0.7),
    draws: int = 4,
    seed: int = 0,
    keep: str | Collection[str] = "mean",
) -> AttentionTrace:
    """Attribute the regions of an existing picture to the words of a caption.

    The picture is resized to the model's training size (`fit_picture`) and noised to several levels. The UNet's
    attention at each level is recorded. In this trace a "step" is the index of a level in `levels`.

    Args:
        levels: noise levels in (0, 1); at low levels outlines are sharp, at high levels the words matter more.
        draws: number of noise samples per level; the attention is averaged over them.

    Raises:
        ValueError: an empty or too long caption, or a level or number out of its range.
        TypeError: not a pipeline that can be recorded.
    """
    _check_kind(pipe)
    if not caption.strip():
        raise ValueError("the caption is empty: describe the picture")
    if not levels or not all(0 < level < 1 for level in levels):
        raise ValueError(f"noise levels must lie between 0 and 1, got {tuple(levels)}")
    if draws < 1:
        raise ValueError(f"draws must be 1 or more, got {draws}")
    size = pipe.picture_size
    fitted = fit_picture(picture, size)[None]  # (1, h, w, 3)
    clean = pipe.encode_pictures(to_tensor(fitted)).float().cpu().expand(draws, -1, -1, -1)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    memory, token_mask = pipe.encode_prompt([caption] * draws)
    attention = AttentionTrace(keep)
    settings = {"levels": list(levels), "draws": draws, "seeds": [seed]}
    attention.start(pipe.recording({"prompt": [caption]}, (size, size), len(levels), settings))
    for step, level in enumerate(levels):
        noisy = flow.interpolate(clean, noise, torch.full((draws,), float(level))).to(memory.device, memory.dtype)
        record = attention.recorder(step, {"prompt": slice(0, 1)})
        pipe.unet(
            noisy,
            level * flow.TRAIN_TIMESTEPS,
            memory,
            token_mask,
            record=lambda layer, weights, grid, record=record: record(layer, weights.mean(dim=0, keepdim=True), grid),
        )
    attention.finish(torch.from_numpy(fitted))
    return attention


@dataclass(frozen=True)
class Verification:
    """The largest deviations of a recording, over all layers.

    `rows`: of the sum of a position's weights from 1. `outputs`: of a layer's output computed from its recorded weights
    from its real output, relative to the largest value of that output. `picture`: of a pixel in [0, 1] with recording
    from one without. `threads`: of a weight recorded while another thread records from one recorded alone.
    """

    layers: int
    rows: float
    outputs: float
    picture: float
    threads: float


@torch.no_grad()
def verify(
    pipe: DiffusionPipeline, prompt: str = "a red circle left of a blue square", steps: int = 4, tolerance: float = 1e-3
) -> Verification:
    """Check on this pipeline that `trace` records exactly what the model computes.

    Raises:
        RuntimeError: a layer was not recorded, or a deviation exceeds `tolerance`; the message names it.
        TypeError: not a pipeline that can be recorded.
    """
    _check_kind(pipe)

    def draw(text: str, recorded: bool) -> tuple[Tensor, AttentionTrace]:
        generator = torch.Generator().manual_seed(0)
        attention = AttentionTrace()
        images = pipe(
            text,
            num_inference_steps=steps,
            generator=generator,
            output_type="pt",
            attention=attention if recorded else None,
        ).images
        return images, attention

    plain, _ = draw(prompt, recorded=False)
    recorded, alone = draw(prompt, recorded=True)
    with ThreadPoolExecutor(2) as pool:
        (_, together), _ = pool.map(draw, (prompt, prompt[::-1]), (True, True))
    layers = pipe.unet.attention_layers
    apart = [(alone.maps(layer) - together.maps(layer)).abs().max() for layer in layers]
    rows, outputs = _compare_layers(pipe, prompt)
    found = Verification(
        len(layers), rows, outputs, float((plain - recorded).abs().max()), float(torch.stack(apart).max())
    )
    wrong = {name: value for name, value in vars(found).items() if name != "layers" and not value <= tolerance}
    if wrong:
        differences = ", ".join(f"{name} by {value:.2g}" for name, value in wrong.items())
        raise RuntimeError(f"recorded attention is not what the model does: {differences} (tolerance {tolerance:g})")
    return found


def _compare_layers(pipe: TextToImagePipeline, prompt: str) -> tuple[float, float]:
    """(rows, outputs) of a `Verification`, over all layers, on one noisy picture."""
    memory, token_mask = pipe.encode_prompt([prompt])
    size, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    noise = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0)).to(memory)
    weights: dict[str, Tensor] = {}
    passed: dict[str, tuple[Tensor, Tensor]] = {}  # layer -> memory and output of its cross-attention
    pipe.unet(noise, 500, memory, token_mask, record=lambda layer, w, _: weights.update({layer: w}))
    modules = {layer: pipe.unet.get_submodule(f"{layer}.attention.cross_attention") for layer in weights}
    with ExitStack() as hooks:
        for layer, module in modules.items():
            handle = module.register_forward_hook(
                lambda module, inputs, out, layer=layer: passed.update({layer: (inputs[1], out)})
            )
            hooks.callback(handle.remove)
        pipe.unet(noise, 500, memory, token_mask)
    rows, outputs = [], []
    for layer, module in modules.items():
        layer_memory, out = passed[layer]
        _, v = module.keys_values(layer_memory)
        again = module.to_out(module.combine_heads(weights[layer] @ v))
        rows.append((weights[layer].float().sum(dim=-1) - 1).abs().max())
        outputs.append((again - out).abs().max() / out.abs().max().clamp_min(1e-12))
    return float(torch.stack(rows).max()), float(torch.stack(outputs).max())


def _check_kind(pipe: DiffusionPipeline) -> None:
    if not isinstance(pipe, TextToImagePipeline):
        raise TypeError(f"only a TextToImagePipeline can be recorded, got a {type(pipe).__name__}")
