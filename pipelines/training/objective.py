"""The model that is trained on pictures, and its losses.

Shapes: B batch, T tokens, S tokens of a translation, M width of the memory, V words of the vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.components import can_translate
from pipelines.data.batches import Batch
from unet_xattn import CrossAttentionUNet, Transformer, flow, grounding


class Losses(NamedTuple):
    """The losses of a batch, one scalar each: flow, cross-attention outside the masks, and translation.

    The first two are means over pictures, the last is a mean over real tokens.
    """

    flow: Tensor
    tokens: Tensor
    text: Tensor

    def weighed(self, shares: "Losses") -> "Losses":
        """Each loss times its share."""
        return Losses(*(loss * share for loss, share in zip(self, shares, strict=True)))


class TextToImageModel(nn.Module):
    """The networks that are trained: a text encoder, the UNet that reads its memory, and the text decoder, if any.

    Without a text encoder this is the UNet alone, and a frozen text encoder makes the memory (`frozen.Frozen`).
    """

    def __init__(self, text_encoder: Transformer | None, unet: CrossAttentionUNet):
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def lr_scale(self, name: str) -> float:
        """The factor of a parameter's learning rate, relative to the run's."""
        return 1.0

    def memory(self, batch: Batch) -> Tensor:
        """The text encoder's output for the captions, (B, T, M)."""
        assert self.text_encoder is not None
        return self.text_encoder.encode(batch.ids, batch.token_mask)

    def forward(self, batch: Batch, use_masks: bool = True, memory: Tensor | None = None) -> Losses:
        """The losses of a batch. Both the UNet and the text decoder read the memory.

        With `use_masks` every cross-attention layer of the UNet is compared with the masks, at all noise levels. In
        pure noise nothing is visible yet, so the position of a word's object has to come from the text.
        `memory` (B, T, M), if given, replaces the text encoder's.
        """
        memory = self.memory(batch) if memory is None else memory
        token_losses: list[Tensor] = []

        def record(layer: str, weights: Tensor, grid: tuple[int, int]) -> None:
            token_losses.append(grounding.token_loss(weights, batch.masks, grid))

        noisy = flow.interpolate(batch.pictures, batch.noise, batch.times)
        prediction = self.unet(
            noisy, batch.times * flow.TRAIN_TIMESTEPS, memory, batch.token_mask, record=record if use_masks else None
        ).sample
        flow_loss = flow.loss(prediction, flow.velocity(batch.pictures, batch.noise), batch.times).mean()
        zero = flow_loss.new_zeros(())
        tokens = torch.stack(token_losses).mean() if token_losses else zero
        text = zero
        if self.text_encoder is not None and can_translate(self.text_encoder):
            text = text_loss(self.text_encoder, memory, batch.token_mask, batch.target_ids, batch.target_mask)
        return Losses(flow_loss, tokens, text)


def microbatches(batch: Batch, count: int) -> list[tuple[Batch, Losses]]:
    """A batch in parts, each with the shares of its losses in those of the batch.

    Flow and masks count by pictures. The translation counts by tokens, because equal parts differ in their number.
    """
    chunks = [Batch(*values) for values in zip(*(value.chunk(count) for value in vars(batch).values()), strict=True)]
    pictures = [batch.times.new_tensor(len(chunk.times) / len(batch.times)) for chunk in chunks]
    tokens = [chunk.target_mask[:, 1:].sum() for chunk in chunks]
    total = torch.stack(tokens).sum().clamp_min(1)
    return [(chunk, Losses(p, p, t / total)) for chunk, p, t in zip(chunks, pictures, tokens, strict=True)]


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
