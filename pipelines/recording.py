"""Recording passes of our UNet: what its cross-attention layers hand to a trace.

Shapes: B rows of a batch, H heads, T tokens, D width of the memory, E width of a head.
"""

from collections.abc import Mapping

from torch import Tensor

from unet_xattn import AttentionTrace, CrossAttentionUNet
from unet_xattn.attention import RecordLayer


def recorder(
    unet: CrossAttentionUNet, attention: AttentionTrace | None, step: int, rows: Mapping[str, slice], memory: Tensor
) -> RecordLayer | None:
    """The `record` argument of one pass of a UNet that reads this memory (B, T, D); None if nothing is recorded.

    rows: the rows of its batch that each branch has, see `AttentionTrace.recorder`.
    """
    if attention is None:
        return None
    return attention.recorder(step, rows, layer_values(unet, memory) if attention.output else None)


def layer_values(unet: CrossAttentionUNet, memory: Tensor) -> dict[str, Tensor]:
    """What each layer makes of the memory's tokens, if it reads them: its values, (B, H, T, E)."""
    modules = {layer: unet.get_submodule(f"{layer}.attention.cross_attention") for layer in unet.attention_layers}
    return {layer: module.keys_values(memory)[1] for layer, module in modules.items()}
