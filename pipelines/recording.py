"""Recording passes of our UNet: what its layers hand to a trace, and concepts that stand beside a prompt.

Shapes: B rows of a batch, H heads, N positions, T tokens, S tokens of concepts, D width of the memory, E of a head.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from unet_xattn import AttentionTrace, CrossAttentionUNet
from unet_xattn.attention import RecordLayer
from unet_xattn.words import CONCEPTS, read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Concepts:
    """Names of what may be in a picture, as a model reads each of them for itself.

    spelled: each name, and its tokens as the tokenizer spells them.
    memory: of all these tokens, (S, D).
    """

    spelled: list[tuple[str, tuple[str, ...]]]
    memory: Tensor


def encode_concepts(
    names: Sequence[str], tokenizer: "PreTrainedTokenizerBase", encode: Callable[[str], tuple[Tensor, Tensor]]
) -> Concepts:
    """Each name read as a caption of its own, without start and end; `encode` gives a caption's memory (1, T, D)."""
    read = [read_text(name, tokenizer) for name in names]
    memories = [encode(text.text)[0][0, text.own] for text in read]
    spelled = [(text.text, tuple(text.tokens[i] for i in text.own)) for text in read]
    return Concepts(spelled, torch.cat(memories) if memories else torch.empty(0))


def recorder(
    unet: CrossAttentionUNet, attention: AttentionTrace | None, step: int, rows: Mapping[str, slice], memory: Tensor
) -> RecordLayer | None:
    """The `record` argument of one pass of a UNet that reads this memory (B, T, D); None if nothing is recorded.

    rows: the rows of its batch that each branch has, see `AttentionTrace.recorder`.
    """
    if attention is None:
        return None
    if not attention.output:
        return attention.recorder(step, rows)
    record_shares, values = attention.recorder(step, rows), layer_values(unet, memory)

    def record(layer: str, weights: Tensor, grid: tuple[int, int]) -> None:
        record_shares(layer, weights, grid)
        _record_output(attention, layer, step, rows, weights, values[layer])

    return record


def read_concepts(
    unet: CrossAttentionUNet,
    x: Tensor,
    timestep: Tensor | float,
    memory: Tensor,
    mask: Tensor,
    attention: AttentionTrace,
    step: int,
    concepts: Concepts,
) -> None:
    """Record what each position would read of concepts that stand beside the prompt, as the branch "concepts".

    The UNet computes the same pass again, with the concepts' keys beside those of the prompt. What it is to read of the
    concepts is recorded and then taken away, so each layer gets what it got without them.

    Args:
        x: what the pass is of, (B, C, height, width), with its timestep, memory (B, T, D) and mask (B, T).
    """
    count, more = memory.shape[1], len(concepts.memory)
    both = torch.cat([memory, concepts.memory.expand(len(memory), -1, -1)], dim=1)  # (B, T + S, D)
    rows = {CONCEPTS: slice(None)}
    record_shares, values = attention.recorder(step, rows), layer_values(unet, both) if attention.output else {}

    def record(layer: str, weights: Tensor, grid: tuple[int, int]) -> Tensor:
        record_shares(layer, weights, grid)
        written = weights[..., :count].float()  # (B, H, N, T)
        written = written / written.sum(dim=-1, keepdim=True).clamp_min(1e-12)
        written = F.pad(written, (0, more)).to(weights.dtype)
        if attention.output:
            _record_output(attention, layer, step, rows, written, values[layer])
        return written

    unet(x, timestep, both, F.pad(mask, (0, more), value=True), record=record)


def _record_output(
    attention: AttentionTrace, layer: str, step: int, rows: Mapping[str, slice], weights: Tensor, values: Tensor
) -> None:
    """Record the outputs of weights (B, H, N, T), and the values (B, H, T, E) for the outputs of tokens."""
    if attention.wants(layer):
        outputs, tokens = (x.transpose(1, 2).flatten(2) for x in (weights @ values, values))
        attention.record_output(layer, step, rows, outputs, tokens)


def layer_values(unet: CrossAttentionUNet, memory: Tensor) -> dict[str, Tensor]:
    """What each layer makes of the memory's tokens, if it reads them: its values, (B, H, T, E)."""
    modules = {layer: unet.get_submodule(f"{layer}.attention.cross_attention") for layer in unet.attention_layers}
    return {layer: module.keys_values(memory)[1] for layer, module in modules.items()}
