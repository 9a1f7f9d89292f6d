"""What is trained for pictures, and what one batch costs.

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
    """What one batch costs, a scalar each: the flow, the cross-attention outside the masks, and the translation.

    The first two are means over pictures, the last over real tokens.
    """

    flow: Tensor
    tokens: Tensor
    text: Tensor

    def weighed(self, shares: "Losses") -> "Losses":
        """Each times its share."""
        return Losses(*(loss * share for loss, share in zip(self, shares, strict=True)))


class TextToImageModel(nn.Module):
    """What is trained: the text encoder and the memory's readers, the UNet and, where it has one, its own decoder.

    Without a text encoder it is the UNet alone, and the memory comes from one that is not trained (`frozen.Frozen`).
    """

    def __init__(self, text_encoder: Transformer | None, unet: CrossAttentionUNet):
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def pace(self, name: str) -> float:
        """How many times the run's learning rate a parameter has; here all have just that."""
        return 1.0

    def memory(self, batch: Batch) -> Tensor:
        """What the text encoder makes of the captions, (B, T, M)."""
        assert self.text_encoder is not None
        return self.text_encoder.encode(batch.ids, batch.token_mask)

    def forward(self, batch: Batch, use_masks: bool = True, memory: Tensor | None = None) -> Losses:
        """One memory, read twice: by image positions on the way to a picture, and to say the caption otherwise.

        With `use_masks` every cross-attention layer of the UNet is held against the masks, in pure noise too: where
        nothing is anywhere yet, a word's best map is where its thing will be, and that has to come from the text.
        `memory` (B, T, M) is read where it is given, and else the text encoder's.
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
        nothing = flow_loss.new_zeros(())
        tokens = torch.stack(token_losses).mean() if token_losses else nothing
        text = nothing
        if self.text_encoder is not None and can_translate(self.text_encoder):
            text = text_loss(self.text_encoder, memory, batch.token_mask, batch.target_ids, batch.target_mask)
        return Losses(flow_loss, tokens, text)


def split(batch: Batch, parts: int) -> list[tuple[Batch, Losses]]:
    """A batch in parts, with the share that each part's losses have in the whole batch's.

    The flow and the masks count by pictures, the translation by its tokens: parts of as many pictures have not as many.
    """
    chunks = [Batch(*values) for values in zip(*(value.chunk(parts) for value in vars(batch).values()), strict=True)]
    said = [chunk.target_mask[:, 1:].sum() for chunk in chunks]
    pictures = [batch.times.new_tensor(len(chunk.times) / len(batch.times)) for chunk in chunks]
    tokens = torch.stack(said).sum().clamp_min(1)
    return [(chunk, Losses(n, n, s / tokens)) for chunk, n, s in zip(chunks, pictures, said, strict=True)]


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
