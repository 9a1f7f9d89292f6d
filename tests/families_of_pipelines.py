"""What each family's layers are, how far a recording deviates from them, and what recording may leave behind.

Shapes: B rows of the batch, H heads, L queries, S keys, E width of a head, G columns of the text, h×w a layer's grid.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import FAMILIES, VARIANTS, Family, Variant, pipeline
from torch import Tensor, nn

from pipelines import TextToImagePipeline
from pipelines.tracing.kernels import Fused, Kernel


def all_of(name: str) -> Family:
    """A family or a variant."""
    return (FAMILIES | VARIANTS)[name]


# Layers and their grids


@dataclass(frozen=True)
class Expected:
    """A family's layers that read text, in the order they run, with their grids for the family's own call.

    negative: whether a pass reads a negative prompt, too.
    blurs: whether there are convolutions before the first layer, so that it sees a changed pixel in its neighbours.
    pools: whether a pooled text changes what the first layer gets of the picture.
    mixes: whether the keys of the text are no longer one token each, because tokens have read each other.
    """

    layers: dict[str, tuple[int, int]]
    negative: bool = True
    blurs: bool = False
    pools: bool = False
    mixes: bool = False


def unet(depths: tuple[int, int, int] = (1, 1, 1)) -> Expected:
    """Latents of 16×24 pixels and half as many a side in each block but the last: blocks 0 and 1 down, 1 and 2 up have
    attention, one module down and two up, of these depths.
    """
    modules = {
        "down_blocks.0.attentions.0": ((16, 24), depths[0]),
        "down_blocks.1.attentions.0": ((8, 12), depths[1]),
        "mid_block.attentions.0": ((4, 6), depths[2]),
        "up_blocks.1.attentions.0": ((8, 12), depths[1]),
        "up_blocks.1.attentions.1": ((8, 12), depths[1]),
        "up_blocks.2.attentions.0": ((16, 24), depths[0]),
        "up_blocks.2.attentions.1": ((16, 24), depths[0]),
    }
    layers = {
        f"{module}.transformer_blocks.{i}.attn2": grid
        for module, (grid, depth) in modules.items()
        for i in range(depth)
    }
    return Expected(layers, blurs=True)


def added(grid: tuple[int, int], **rest: bool) -> Expected:
    """Two blocks, of which the second has attention, with no smaller pixels after it."""
    names = ("down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.0")
    layers = {f"{x}.attentions.{i}": grid for x, i in zip(names, (0, 0, 0, 1), strict=True)}
    return Expected(layers, blurs=True, **rest)


def kandinsky3() -> Expected:
    """Two blocks of three layers: the second one down, on half as many pixels a side, and both up."""
    grids = {"down_blocks.1": (4, 8), "up_blocks.0": (4, 8), "up_blocks.1": (8, 16)}
    layers = {f"{x}.attentions.{i}.attention": grid for x, grid in grids.items() for i in (1, 2, 3)}
    return Expected(layers, blurs=True, pools=True)


def blocks(*names: str, count: int = 2, grid: tuple[int, int] = (8, 12), **rest: bool) -> Expected:
    """`count` layers of each name, on latents in patches: 8×12 positions unless said otherwise."""
    return Expected({name.format(i): grid for name in names for i in range(count)}, **rest)


FLUX = ("transformer_blocks.{}.attn", "single_transformer_blocks.{}.attn")

EXPECTED = {
    "sd": unet(),
    "sdxl": unet((1, 2, 1)),
    "kolors": unet((1, 2, 1)),
    "pixart_alpha": blocks("transformer_blocks.{}.attn2"),
    "pixart_sigma": blocks("transformer_blocks.{}.attn2"),
    "sana": blocks("transformer_blocks.{}.attn2", grid=(32, 48), blurs=True),
    "sana_sprint": blocks("transformer_blocks.{}.attn2", grid=(32, 48), blurs=True, negative=False),
    "hunyuandit": blocks("blocks.{}.attn2", count=4, pools=True),
    "lumina": blocks("layers.{}.attn2", pools=True),
    "kandinsky3": kandinsky3(),
    "kandinsky5": blocks("visual_transformer_blocks.{}.cross_attention", mixes=True),
    "deepfloyd": added((16, 24), mixes=True),
    "kandinsky21": added((8, 12)),
    "prx": blocks("blocks.{}.attention"),
    "sd3": blocks("transformer_blocks.{}.attn", count=3),
    "sd3_dual": blocks("transformer_blocks.{}.attn", count=3),
    "cogview3plus": blocks("transformer_blocks.{}.attn1"),
    "cogview4": blocks("transformer_blocks.{}.attn1"),
    "glm_image": blocks("transformer_blocks.{}.attn1"),
    "qwenimage": blocks("transformer_blocks.{}.attn"),
    "flux": blocks(*FLUX, negative=False),
    "flux_kontext": blocks(*FLUX, negative=False),
    "flux_fill": blocks(*FLUX, negative=False),
    "flux2_klein": blocks(*FLUX),
    "chroma": blocks(*FLUX),
    "ovis": blocks(*FLUX),
    "bria": blocks(*FLUX),
    "longcat": blocks(*FLUX),
    "auraflow": blocks("joint_transformer_blocks.{}.attn", "single_transformer_blocks.{}.attn"),
    "hunyuanimage": blocks(*FLUX, count=1, mixes=True),
    "lumina2": blocks("layers.{}.attn", mixes=True),
    "z_image": blocks("layers.{}.attention", mixes=True),
    "ernie": blocks("layers.{}.self_attention"),
    "krea2": blocks("transformer_blocks.{}.attn", mixes=True),
}
EXPECTED["flux_true_cfg"] = blocks(*FLUX)


def names(*kinds: str) -> list[str]:
    """The families of these kinds that can be recorded."""
    return [name for name, family in FAMILIES.items() if family.kind in kinds and name in EXPECTED]


def denoiser_of(name: str) -> nn.Module:
    pipe = pipeline(name)
    return pipe.transformer if "transformer" in pipe.components else pipe.unet


def expected(name: str) -> Expected:
    """What is expected of a family or a variant."""
    family = all_of(name)
    return EXPECTED[family.family if isinstance(family, Variant) and name not in EXPECTED else name]


# What a recording is compared with


@dataclass
class Deviations:
    """The largest deviations of the kernels of a call, in units of the dtype's eps.

    rows: of the sum of a position's shares, from 1. shares: of a share, from one by an explicit softmax in float64.
    outputs: of that softmax times the values, from what the layer's kernel gave, relative to its largest value.
    keys, heads: the largest number of keys, and each layer's number of heads.
    """

    rows: float = 0.0
    shares: float = 0.0
    outputs: float = 0.0
    keys: int = 0
    heads: dict[str, int] = field(default_factory=dict)

    def __call__(
        self, layer: str, kernel: Kernel, groups: Tensor, shares: Tensor, queries: Mapping[int, slice]
    ) -> None:
        self.heads[layer], self.keys = shares.shape[1], max(self.keys, kernel.shape[2])
        unit = torch.finfo(shares.dtype).eps
        self.rows = _worse(self.rows, _largest(shares.double().sum(dim=-1) - 1) / unit)
        if isinstance(kernel, Fused):
            weights = explicit_softmax(kernel.q, kernel.k, **kernel.how)
            self.shares = _worse(self.shares, _largest(shares - weights @ groups.double()) / unit)
            again = weights @ for_each_head(kernel.v.double(), kernel.q.shape[1])
            self.outputs = _worse(self.outputs, _largest(again - kernel.out) / _largest(kernel.out) / unit)


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


def _worse(one: float, other: float) -> float:
    """The larger number; NaN is worse than any."""
    return one if other <= one else other


def explicit_softmax(
    q: Tensor,
    k: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The attention weights by their definition, (B, H, L, S) float64, for q (B, H, L, E) and k (B, h, S, E)."""
    scores = q.double() @ for_each_head(k.double(), q.shape[1]).transpose(-2, -1)
    scores = scores * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if is_causal:
        scores = scores + torch.full(scores.shape[-2:], -torch.inf, dtype=torch.float64).triu(diagonal=1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = torch.where(attn_mask, scores, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask.double()
    return scores.softmax(dim=-1)


def for_each_head(x: Tensor, heads: int) -> Tensor:
    """(B, h, S, E) -> (B, H, S, E): neighbouring heads of the queries share one of the keys."""
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def outputs_of(pipe: TextToImagePipeline, draw: Callable[[], Any]) -> tuple[Any, dict[str, list[list[Tensor]]]]:
    """What a call gives, and of each pass of each layer the positions' outputs (B, N, D) and the tokens' values."""
    found: dict[str, list[list[Tensor]]] = defaultdict(list)
    hooks = []
    for layer in pipe.unet.attention_layers:
        module = pipe.unet.get_submodule(f"{layer}.attention.cross_attention")

        def values(module: nn.Module, args: tuple, out: Any, layer: str = layer) -> None:
            found[layer][-1].append(module.to_v(args[1]))

        def outputs(module: nn.Module, args: tuple, layer: str = layer) -> None:
            found[layer].append([args[0]])

        hooks += [module.to_out.register_forward_pre_hook(outputs), module.register_forward_hook(values)]
    try:
        given = draw()
    finally:
        for hook in hooks:
            hook.remove()
    return given, found


def state_of(pipe: DiffusionPipeline) -> tuple[Any, ...]:
    """All that recording might leave behind: the pipeline's class, hooks, torch's modes and stance."""
    networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    hooks = [
        (list(module._forward_hooks), list(module._forward_pre_hooks))
        for network in networks
        for module in network.modules()
    ]
    return type(pipe), hooks, torch._C._len_torch_function_stack(), torch._dynamo.eval_frame._stance.stance
