"""Scaled dot-product attention and the one multi-head module that every reader and writer of the memory uses.

Shapes: B batch, H heads, N queries, T keys, D model width, E width of one head, M width of the memory.
Masks are boolean and True means "may be attended"; they broadcast against (B, H, N, T).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Record = Callable[[Tensor], None]
"""Receives one layer's attention weights, (B, H, N, T). It is handed to the call, so no two calls can mix."""


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √E), eq. 1 of "Attention Is All You Need" (arXiv 1706.03762), without the product with V.

    q (B, H, N, E), k (B, H, T, E), mask broadcastable to (B, H, N, T) -> weights (B, H, N, T) in q's dtype.
    The softmax is taken in fp32 (or wider), so fp16 and bf16 weights sum to one within their rounding. A query
    that may attend to nothing gets a row of zeros, as `scaled_dot_product_attention` gives it, not NaN.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    # Queries last: a CPU takes the softmax over few keys several times faster across rows than along each.
    scores = k @ (q * q.shape[-1] ** -0.5).transpose(-2, -1)  # (B, H, T, N)
    if mask is None:
        return scores.to(wide).softmax(dim=-2).to(q.dtype).transpose(-2, -1)
    # One small table of 0 and "never" and one sum: no tensor is larger than the scores, and every pass over them costs.
    bias = torch.zeros(mask.shape, dtype=wide, device=mask.device).masked_fill_(~mask, torch.finfo(wide).min)
    weights = (scores + bias.transpose(-2, -1)).softmax(dim=-2).to(q.dtype).transpose(-2, -1)  # (B, H, N, T)
    return weights * mask.any(dim=-1, keepdim=True)


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> Tensor:
    """Each of the last `queries` positions may look at itself and back: (queries, keys), True = may be attended."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def padding_mask(token_mask: Tensor) -> Tensor:
    """Which tokens are real, (B, T) -> a mask over keys for every head and query, (B, 1, 1, T)."""
    return token_mask.bool()[:, None, None, :]


class MultiHeadAttention(nn.Module):
    """Multi-head attention (arXiv 1706.03762, section 3.2.2): queries from `x`, keys and values from `memory`.

    Self-attention and cross-attention differ only by where the memory comes from: without one, `x` reads itself.

    Args:
        width: D, width of the queries and of the output.
        heads: H; `width` must be divisible by it.
        memory_width: M, width of the memory when it is not `width`.
        bias: whether the four projections have a bias.
        zero_init: start with an output projection of zeros, so that a residual branch starts as the identity.
    """

    def __init__(
        self, width: int, heads: int, memory_width: int | None = None, bias: bool = True, zero_init: bool = False
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} cannot be split into {heads} heads: choose heads that divide it")
        memory_width = width if memory_width is None else memory_width
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(memory_width, width, bias=bias)
        self.to_v = nn.Linear(memory_width, width, bias=bias)
        self.to_out = nn.Linear(width, width, bias=bias)
        if zero_init:
            nn.init.zeros_(self.to_out.weight)
            if bias:
                nn.init.zeros_(self.to_out.bias)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        record: Record | None = None,
        values: Tensor | None = None,
    ) -> Tensor:
        """x (B, N, D), memory (B, T, M), mask broadcastable to (B, H, N, T) -> out (B, N, D).

        With `values` (B, T, M), where to look is asked of `memory` and what is read there comes from `values`.
        With `record`, the weights (B, H, N, T) are computed explicitly, used for the output and handed over, still
        attached to the graph; without it, torch's fused kernel does the same sum and never builds them.
        """
        k, v = self.keys_values(x if memory is None else memory, values)
        return self.attend(x, k, v, mask, record)

    def keys_values(self, memory: Tensor, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Memory (B, T, M) -> this layer's own keys and values, (B, H, T, E) each.

        Memory is not yet K, nor V. A decoder that asks the same memory at every step projects it once and keeps both.
        """
        k = self.split_heads(self.to_k(memory))
        v = self.split_heads(self.to_v(memory if values is None else values))
        return k, v

    def attend(
        self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, record: Record | None = None
    ) -> Tensor:
        """Queries from x (B, N, D) against keys and values (B, H, T, E) -> out (B, N, D)."""
        q = self.split_heads(self.to_q(x))  # (B, H, N, E)
        if record is None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, H, N, E)
        else:
            weights = attention_weights(q, k, mask)  # (B, H, N, T)
            record(weights)
            out = weights @ v  # (B, H, N, E)
        return self.to_out(self.combine_heads(out))

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, N, D) -> (B, H, N, E)

    def combine_heads(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)  # (B, H, N, E) -> (B, N, D)


RecordLayer = Callable[[str, Tensor, tuple[int, int]], None]
"""Receives a cross-attention layer's name, its weights (B, H, h·w, T) and its grid (h, w)."""
