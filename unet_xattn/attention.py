"""Scaled dot-product attention, and the one multi-head module that every reader and writer of the memory uses.

Shapes: B batch, H heads, N queries, T keys, D model width, E width of one head, M width of the memory, h×w a grid.
Masks are boolean and True means "may be attended"; they broadcast against (B, H, N, T).
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Record = Callable[[Tensor], Tensor | None]
"""Receives one layer's attention weights, (B, H, N, T), and may return others, which the layer uses instead.

It is an argument of the call, so no two calls can mix.
"""

RecordLayer = Callable[[str, Tensor, tuple[int, int]], Tensor | None]
"""Receives a layer's name, its weights (B, H, h·w, T) and its grid (h, w); may return other weights, see `Record`."""


def is_named(layer: str, patterns: Sequence[str] | None) -> bool:
    """Whether a layer has one of these names, or names like "up.*"; None names all."""
    return patterns is None or any(fnmatchcase(layer, pattern) for pattern in patterns)


def in_turn(hooks: Sequence[RecordLayer | None]) -> RecordLayer | None:
    """Hooks as one: each receives the weights as those before it left them. None where there are none."""
    present = [hook for hook in hooks if hook is not None]

    def record(layer: str, weights: Tensor, grid: tuple[int, int]) -> Tensor:
        for hook in present:
            changed = hook(layer, weights, grid)
            weights = weights if changed is None else changed
        return weights

    return record if present else None


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √E): eq. 1 of "Attention Is All You Need" (arXiv 1706.03762) without the product with V.

    q (B, H, N, E), k (B, H, T, E), mask broadcastable to (B, H, N, T) -> weights (B, H, N, T) in q's dtype.
    The softmax is computed in fp32 or wider, so fp16 and bf16 weights sum to one within their rounding. A query
    that may attend to nothing gets a row of zeros, as in `scaled_dot_product_attention`, not NaN.
    """
    scores = products(q * q.shape[-1] ** -0.5, k)  # (B, H, N, T)
    if mask is None:
        return softmax_over_keys(scores).to(q.dtype)
    # Added once, as a small table: no tensor is larger than the scores, and each pass over those takes time.
    never = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    never = never.masked_fill_(~mask, torch.finfo(torch.float32).min)  # finite: a row of only -inf would become NaN
    return softmax_over_keys(scores + never).to(q.dtype) * mask.any(dim=-1, keepdim=True)


def products(q: Tensor, k: Tensor) -> Tensor:
    """q kᵀ: q (B, H, N, E), k (B, H, T, E) -> (B, H, N, T), a view of memory that has the queries last."""
    return (k @ q.transpose(-2, -1)).transpose(-2, -1)


def softmax_over_keys(scores: Tensor) -> Tensor:
    """Softmax of (B, H, N, T) over its last dimension, computed with the queries last in memory, as `products` gives.

    Over few keys, a CPU's softmax is several times faster across rows than along each row.
    """
    wide = torch.promote_types(scores.dtype, torch.float32)
    return scores.transpose(-2, -1).to(wide).softmax(dim=-2).transpose(-2, -1)


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> Tensor:
    """A mask (queries, keys) by which each of the last `queries` positions attends to itself and those before it."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def padding_mask(token_mask: Tensor) -> Tensor:
    """Which tokens are real, (B, T) -> a mask over keys for every head and query, (B, 1, 1, T)."""
    return token_mask.bool()[:, None, None, :]


class MultiHeadAttention(nn.Module):
    """Multi-head attention (arXiv 1706.03762, section 3.2.2): queries from `x`, keys and values from `memory`.

    Self-attention and cross-attention differ only in the memory: without one, `x` attends to itself.

    Args:
        width: D, width of the queries and of the output.
        heads: H; `width` must be divisible by it.
        memory_width: M, width of the memory; `width` by default.
        bias: whether the four projections have a bias.
        zero_init: initialise the output projection with zeros, so that a residual branch starts as the identity.
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
        self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None, record: Record | None = None
    ) -> Tensor:
        """x (B, N, D), memory (B, T, M), mask broadcastable to (B, H, N, T) -> out (B, N, D).

        With `record`, the weights (B, H, N, T) are computed explicitly and passed to `record` while still attached to
        the graph; they, or those that it returns, make the output. Without it, torch's fused kernel computes the same
        output and never builds the weights.
        """
        k, v = self.keys_values(x if memory is None else memory)
        return self.attend(x, k, v, mask, record)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Memory (B, T, M) -> this layer's own keys and values, (B, H, T, E) each.

        Memory is not yet K or V: each layer projects it with its own weights. A decoder that reads the same memory at
        every step projects it once and keeps both.
        """
        return self.split_heads(self.to_k(memory)), self.split_heads(self.to_v(memory))

    def attend(
        self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, record: Record | None = None
    ) -> Tensor:
        """Queries from x (B, N, D), keys and values (B, H, T, E) -> out (B, N, D)."""
        q = self.split_heads(self.to_q(x))  # (B, H, N, E)
        if record is None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, H, N, E)
        else:
            weights = attention_weights(q, k, mask)  # (B, H, N, T)
            changed = record(weights)
            out = (weights if changed is None else changed) @ v  # (B, H, N, E)
        return self.to_out(self.combine_heads(out))

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, N, D) -> (B, H, N, E)

    def combine_heads(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)  # (B, H, N, E) -> (B, N, D)
