"""The Transformer of "Attention Is All You Need" (arXiv 1706.03762) on the one `MultiHeadAttention`.

The encoder turns a sentence into memory. The decoder reads that memory, and the tokens it has written so far, to write
another sentence. The UNet is the memory's other reader.

Shapes: B batch, S source tokens, T target tokens, D model width, M width of the memory a decoder reads, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn import functional as F

from unet_xattn.attention import MultiHeadAttention, Record, causal_mask, padding_mask

RecordNamed = Callable[[str, Tensor], None]
"""Receives the name of an attention, such as "encoder.0", "decoder.0.self" or "decoder.0.cross", and its weights."""


def sinusoidal_positions(positions: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal encoding (section 3.5) of positions or diffusion times: (...) -> (..., width), sines, then cosines."""
    frequencies = torch.exp(-math.log(max_period) * torch.arange(width // 2, device=positions.device) / (width // 2))
    angles = positions[..., None].float() * frequencies  # (..., width / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class FeedForward(nn.Sequential):
    """Two linear maps with a GELU between them, applied to each position separately (section 3.3)."""

    def __init__(self, width: int, hidden: int):
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Layer(nn.Module):
    """A residual connection around each sublayer, with dropout and a norm; encoder and decoder layers share it.

    The norm comes before the sublayer (pre-norm, arXiv 2002.04745), or after the sum as in the paper (post-norm).
    """

    def __init__(self, dropout: float, norm_first: bool):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def residual(self, x: Tensor, norm: nn.LayerNorm, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            return x + self.dropout(sublayer(norm(x)))
        return norm(x + self.dropout(sublayer(x)))


class EncoderLayer(Layer):
    """Self-attention, then feed-forward (figure 1, left)."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, norm_first: bool):
        super().__init__(dropout, norm_first)
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = MultiHeadAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden)

    def forward(self, x: Tensor, mask: Tensor | None, record: Record | None = None) -> Tensor:
        x = self.residual(x, self.norm1, lambda y: self.self_attention(y, mask=mask, record=record))
        return self.residual(x, self.norm2, self.feed_forward)


@dataclass
class LayerCache:
    """Keys and values, (B, H, tokens, E) each, that one decoder layer does not compute again."""

    target: tuple[Tensor, Tensor] | None = None  # of the target tokens so far; grows with each step
    memory: tuple[Tensor, Tensor] | None = None  # of the memory; projected once

    def extend_target(self, attention: MultiHeadAttention, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all target tokens so far, with those of the new ones, x (B, T, D), at the end."""
        k, v = attention.keys_values(x)
        if self.target is not None:
            k, v = torch.cat([self.target[0], k], dim=2), torch.cat([self.target[1], v], dim=2)
        self.target = k, v
        return k, v

    def project_memory(self, attention: MultiHeadAttention, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the memory (B, S, M), computed at the first call."""
        if self.memory is None:
            self.memory = attention.keys_values(memory)
        return self.memory


class DecoderCache:
    """One `LayerCache` for each decoder layer, an argument of `Transformer.decode` at every step."""

    def __init__(self, layers: int):
        self.layers = [LayerCache() for _ in range(layers)]

    @property
    def length(self) -> int:
        """The number of target tokens so far."""
        target = self.layers[0].target
        return 0 if target is None else target[0].shape[2]

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, (rows,), in this order: the beams that a beam search continues."""
        for layer in self.layers:
            if layer.target is not None and layer.memory is not None:
                layer.target = layer.target[0][rows], layer.target[1][rows]
                layer.memory = layer.memory[0][rows], layer.memory[1][rows]


class DecoderLayer(Layer):
    """Masked self-attention, cross-attention over the memory, then feed-forward (figure 1, right)."""

    def __init__(self, width: int, heads: int, hidden: int, memory_width: int, dropout: float, norm_first: bool):
        super().__init__(dropout, norm_first)
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = MultiHeadAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.cross_attention = MultiHeadAttention(width, heads, memory_width)
        self.norm3 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        mask: Tensor | None,
        memory_mask: Tensor | None,
        cache: LayerCache | None = None,
        record_self: Record | None = None,
        record_cross: Record | None = None,
    ) -> Tensor:
        kept = cache or LayerCache()

        def self_attention(y: Tensor) -> Tensor:
            k, v = kept.extend_target(self.self_attention, y)
            return self.self_attention.attend(y, k, v, mask, record_self)

        def cross_attention(y: Tensor) -> Tensor:
            k, v = kept.project_memory(self.cross_attention, memory)
            return self.cross_attention.attend(y, k, v, memory_mask, record_cross)

        x = self.residual(x, self.norm1, self_attention)
        x = self.residual(x, self.norm2, cross_attention)
        return self.residual(x, self.norm3, self.feed_forward)


class Transformer(ModelMixin, ConfigMixin):
    """Encodes a sentence into memory and, with a decoder, writes another sentence from the memory.

    Source and target share one vocabulary and one embedding, which is also the output projection (section 3.4).

    Args:
        vocab_size: V, number of token ids.
        width: D, width of the embeddings and of every layer.
        heads: attention heads per layer.
        encoder_layers, decoder_layers: numbers of layers; a model without decoder layers only encodes.
        hidden: width inside the feed-forward, four times `width` by default.
        dropout: probability of dropping a unit during training.
        norm_first: whether norms come before the sublayers (pre-norm) or after them.
        max_positions: number of positions with a learned embedding; by default positions are sinusoids, without
            a limit.
        memory_width: M, width of the memory the decoder reads; by default that of this encoder.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        vocab_size: int,
        width: int = 128,
        heads: int = 4,
        encoder_layers: int = 3,
        decoder_layers: int = 0,
        hidden: int | None = None,
        dropout: float = 0.0,
        norm_first: bool = True,
        max_positions: int | None = None,
        memory_width: int | None = None,
    ):
        super().__init__()
        hidden = 4 * width if hidden is None else hidden
        self.embedding = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.position_embedding = None if max_positions is None else nn.Embedding(max_positions, width)
        self.embedding_dropout = nn.Dropout(dropout)
        self.encoder = nn.ModuleList(
            EncoderLayer(width, heads, hidden, dropout, norm_first) for _ in range(encoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(
            DecoderLayer(width, heads, hidden, memory_width or width, dropout, norm_first)
            for _ in range(decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(width) if decoder_layers else None

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        """Token ids (B, T), the first at position `start` -> (B, T, D).

        Raises:
            ValueError: there are more tokens than learned positions.
        """
        width, limit = self.config.width, self.config.max_positions
        places = torch.arange(start, start + ids.shape[1], device=ids.device)  # (T,)
        if self.position_embedding is None:
            positions = sinusoidal_positions(places, width)  # (T, D)
        elif start + ids.shape[1] > limit:
            raise ValueError(f"{start + ids.shape[1]} tokens, but this model has {limit} positions: shorten the text")
        else:
            positions = self.position_embedding(places)
        # The embedding is scaled (section 3.4), so that a word counts as much as its position.
        x = self.embedding(ids) * width**0.5  # (B, T, D)
        return self.embedding_dropout(x + positions.to(x.dtype))

    @apply_forward_hook
    def encode(self, ids: Tensor, token_mask: Tensor | None = None, record: RecordNamed | None = None) -> Tensor:
        """Token ids (B, S) and which of them are real (B, S) -> memory (B, S, D)."""
        mask = None if token_mask is None else padding_mask(token_mask)
        x = self.embed(ids)
        for i, layer in enumerate(self.encoder):
            x = layer(x, mask, _named(record, f"encoder.{i}"))
        return self.norm(x)

    @apply_forward_hook
    def decode(
        self,
        ids: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None = None,
        token_mask: Tensor | None = None,
        cache: DecoderCache | None = None,
        record: RecordNamed | None = None,
    ) -> Tensor:
        """Predict the token after each target token, given that token and all before it.

        Args:
            ids: target tokens so far, (B, T); with a cache only those that are not in it.
            memory, memory_mask: the memory (B, S, M), and which of its tokens are real (B, S).
            token_mask: which target tokens are real, (B, T); not needed if all padding comes after the last token.
            cache: a `DecoderCache(layers)` with the keys and values of earlier tokens; it grows in place.
            record: called for each attention of each layer with its name and weights (B, heads, T, T or S).

        Returns:
            logits (B, T, V).
        """
        if self.decoder_norm is None:
            raise ValueError("this Transformer has no decoder: it was created with decoder_layers=0")
        start = 0 if cache is None else cache.length
        mask = causal_mask(ids.shape[1], start + ids.shape[1], ids.device)  # (T, start + T)
        if token_mask is not None:
            mask = mask & padding_mask(token_mask)  # (B, 1, T, start + T)
        memory_mask = None if memory_mask is None else padding_mask(memory_mask)
        x = self.embed(ids, start)
        for i, layer in enumerate(self.decoder):
            names = _named(record, f"decoder.{i}.self"), _named(record, f"decoder.{i}.cross")
            x = layer(x, memory, mask, memory_mask, cache.layers[i] if cache else None, *names)
        return F.linear(self.decoder_norm(x), self.embedding.weight)

    def forward(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None = None, target_mask: Tensor | None = None
    ) -> Tensor:
        """Teacher forcing: source (B, S), target (B, T), and which of their tokens are real -> logits (B, T, V)."""
        return self.decode(target, self.encode(source, source_mask), source_mask, target_mask)


def _named(record: RecordNamed | None, name: str) -> Record | None:
    return None if record is None else lambda weights: record(name, weights)
