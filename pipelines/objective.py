"""What is trained for pictures, and what one batch costs.

Shapes: B batch, T tokens, S tokens of a translation, M width of the memory, V words of the vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.dataset import Batch
from unet_xattn import CrossAttentionUNet, Transformer, flow, grounding


class Losses(NamedTuple):
    """What one batch costs, a scalar each: the flow, the cross-attention outside the masks, and the translation.

    The first two are means over pictures, the last over real tokens.
    """

    flow: Tensor
    tokens: Tensor
    text: Tensor


class TextToImageModel(nn.Module):
    """What is trained: the text encoder and the memory's readers, the UNet and, where it has one, its own decoder."""

    def __init__(self, text_encoder: Transformer, unet: CrossAttentionUNet):
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def forward(self, batch: Batch, use_masks: bool = True) -> Losses:
        """One memory, read twice: by image positions on the way to a picture, and to say the caption otherwise.

        With `use_masks` every cross-attention layer of the UNet is held against the masks, in pure noise too: where
        nothing is anywhere yet, a word's best map is where its thing will be, and that has to come from the text.
        """
        memory = self.text_encoder.encode(batch.ids, batch.token_mask)
        token_losses: list[Tensor] = []

        def record(layer: str, weights: Tensor, grid: tuple[int, int]) -> None:
            token_losses.append(grounding.token_loss(weights, batch.masks, grid))

        noisy = flow.interpolate(batch.pictures, batch.noise, batch.times)
        prediction = self.unet(
            noisy, batch.times * flow.TRAIN_TIMESTEPS, memory, batch.token_mask, record=record if use_masks else None
        ).sample
        flow_loss = flow.loss(prediction, flow.velocity(batch.pictures, batch.noise), batch.times).mean()
        nothing = flow_loss.new_zeros(())
        tokens = torch.stack(token_losses).mean() if token_losses else nothing
        text = nothing
        if len(self.text_encoder.decoder):
            text = text_loss(self.text_encoder, memory, batch.token_mask, batch.target_ids, batch.target_mask)
        return Losses(flow_loss, tokens, text)


def text_loss(
    model: Transformer, memory: Tensor, memory_mask: Tensor, target_ids: Tensor, target_mask: Tensor
) -> Tensor:
    """Cross-entropy of each next token, labels smoothed by 0.1 (arXiv 1706.03762, section 5.4), in nats.

    memory (B, T, M) and its mask (B, T), target_ids and target_mask (B, S) -> the mean over real tokens, ().
    """
    logits = model.decode(target_ids[:, :-1], memory, memory_mask)  # (B, S − 1, V)
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), target_ids[:, 1:].flatten(), reduction="none", label_smoothing=0.1
    )
    real = target_mask[:, 1:].flatten()
    return (losses * real).sum() / real.sum().clamp_min(1)
