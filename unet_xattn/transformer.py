"""The Transformer of "Attention Is All You Need" (arXiv 1706.03762) on the one `MultiHeadAttention`.

Today it holds the encoder, which turns a prompt into the memory; whatever reads that memory is elsewhere.

Shapes: B batch, T tokens, D model width.
"""

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from unet_xattn.attention import MultiHeadAttention, padding_mask


def sinusoidal_positions(positions: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Section 3.5's code of a position, or of a diffusion time: (...) -> (..., width), sines first, then cosines."""
    frequencies = torch.exp(-math.log(max_period) * torch.arange(width // 2, device=positions.device) / (width // 2))
    angles = positions[..., None].float() * frequencies  # (..., width / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class FeedForward(nn.Sequential):
    """Two linear maps with a GELU between them, applied to each position alone (section 3.3)."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width), nn.Dropout(dropout))


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward, each a residual around a normalised input (pre-norm)."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = MultiHeadAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, 4 * width, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.self_attention(self.norm1(x), mask=mask))
        return x + self.feed_forward(self.norm2(x))


class Transformer(ModelMixin, ConfigMixin):
    """A sentence in, its memory out.

    Args:
        vocab_size: number of token ids.
        width: D, width of the embeddings, of every layer and of the memory.
        heads: attention heads per layer.
        encoder_layers: number of encoder layers.
        dropout: probability of dropping a unit while training.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self, vocab_size: int, width: int = 128, heads: int = 4, encoder_layers: int = 3, dropout: float = 0.0
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.embedding_dropout = nn.Dropout(dropout)
        self.encoder = nn.ModuleList(EncoderLayer(width, heads, dropout) for _ in range(encoder_layers))
        self.norm = nn.LayerNorm(width)

    def embed(self, ids: Tensor) -> Tensor:
        width = self.config.width
        positions = sinusoidal_positions(torch.arange(ids.shape[1], device=ids.device), width)  # (T, D)
        # Section 3.4 scales the embedding, so that a word weighs as much as its place in the sentence.
        x = self.embedding(ids) * width**0.5  # (B, T, D)
        return self.embedding_dropout(x + positions.to(x.dtype))

    def encode(self, ids: Tensor, token_mask: Tensor) -> Tensor:
        """Token ids (B, T) and which of them are real (B, T) -> memory (B, T, D)."""
        x = self.embed(ids)
        mask = padding_mask(token_mask)
        for layer in self.encoder:
            x = layer(x, mask)
        return self.norm(x)

    forward = encode
