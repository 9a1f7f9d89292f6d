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
from pipelines.pictures import Shape, fit_picture
from pipelines.pixels import displayed
from pipelines.text_to_image import TextToImagePipeline, active_traces
from unet_xattn import AttentionTrace, flow
from unet_xattn.trace_plan import TRACE_BYTES
from unet_xattn.words import unknown_words

LONGEST = 4
"""The longest picture that `attribute` reads as a whole: longer by shorter side."""


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

    The picture is resized to `reading_shape` and noised to several levels. The UNet's attention at each level is
    recorded. In this trace a "step" is the index of a level in `levels`. `recording.settings` of the trace has
    "cut_off", the share of the picture that did not fit that shape, and "unknown_words" of the caption.

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
    shown, _ = displayed(picture)
    shape = reading_shape(pipe, *shown.size)
    fitted = fit_picture(shown, shape)[None]  # (1, h, w, 3)
    clean = pipe.encode_pictures(to_tensor(fitted)).float().cpu().expand(draws, -1, -1, -1)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    memory, token_mask = pipe.encode_prompt([caption] * draws)
    attention = AttentionTrace(keep)
    settings = {"levels": list(levels), "draws": draws, "seeds": [seed]}
    told = {"cut_off": cut_off(*shown.size, shape), "unknown_words": unknown_words(caption, pipe.tokenizer)}
    attention.start(pipe.recording({"prompt": [caption]}, shape, len(levels), settings | told))
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


def reading_shape(pipe: TextToImagePipeline, width: int, height: int) -> Shape:
    """The shape, (height, width), at which `attribute` reads a picture of these sides.

    The shorter side has the size the model was trained on, so that things have the size it knows. The longer side is
    the multiple nearest to the picture's own ratio, at most `LONGEST` times as long.
    """
    size, multiple = pipe.picture_size, pipe.unet.size_multiple * pipe.vae_scale_factor
    ratio = min(max(width, height) / min(width, height), LONGEST)
    longer = max(size, round(size * ratio / multiple) * multiple)
    return (size, longer) if width >= height else (longer, size)


def cut_off(width: int, height: int, shape: Shape) -> float:
    """The share of a picture of these sides that is cut off where it is cropped to the ratio of a shape."""
    wanted, given = shape[1] / shape[0], width / height
    return round(1 - min(wanted, given) / max(wanted, given), 3)


@dataclass(frozen=True)
class Verification:
    """The largest deviations of a recording, over all layers.

    `rows`: of the sum of a position's weights from 1. `outputs`: of a layer's output computed from its recorded weights
    from its output without recording. `prediction`: of the UNet's prediction with recording from that without. Both are
    relative to the largest value. `picture`: of a pixel in [0, 1] with recording from one without. `threads`: of a
    weight recorded while another thread records from one recorded alone.
    """

    layers: int
    rows: float
    outputs: float
    prediction: float
    picture: float
    threads: float


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
def verify(pipe: DiffusionPipeline, prompt: str = "a red circle left of a blue square", steps: int = 4) -> Verification:
    """Check on this pipeline that `trace` records exactly what the model computes.

    Raises:
        RuntimeError: a layer was not recorded, or a deviation exceeds its tolerance (`tolerances`); the message names
            it.
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
    rows, outputs, prediction = _compare_layers(pipe, prompt)
    picture, threads = (plain - recorded).abs().max(), torch.stack(apart).max()
    found = Verification(len(layers), rows, outputs, prediction, float(picture), float(threads))
    allowed = tolerances(pipe.unet.dtype, alone.recording.tokens)
    wrong = [
        f"{name} by {value:.2g} (tolerance {allowed[name]:.2g})"
        for name, value in vars(found).items()
        if name != "layers" and not value <= allowed[name]
    ]
    if wrong:
        raise RuntimeError(f"recorded attention is not what the model does: {', '.join(wrong)}")
    return found


def _compare_layers(pipe: TextToImagePipeline, prompt: str) -> tuple[float, float, float]:
    """(rows, outputs, prediction) of a `Verification`, over all layers, on one noisy picture."""
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
        rows.append((weights[layer].float().sum(dim=-1) - 1).abs().max())
        outputs.append(_apart(again, out))
    return float(torch.stack(rows).max()), float(torch.stack(outputs).max()), float(_apart(recorded, plain))


def _apart(found: Tensor, expected: Tensor) -> Tensor:
    """The largest difference of two tensors, relative to the largest value expected."""
    return (found - expected).float().abs().max() / expected.float().abs().max().clamp_min(1e-12)


def _check_kind(pipe: DiffusionPipeline) -> None:
    if not isinstance(pipe, TextToImagePipeline):
        raise TypeError(f"only a TextToImagePipeline can be recorded, got a {type(pipe).__name__}")
