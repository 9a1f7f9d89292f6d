"""Attention kernels as a model calls them, seen from outside: what each query reads of each group of keys.

Shapes: B rows of the batch, H heads, h heads of the keys, L queries, S keys, E width of a head, G groups of keys.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

FUSED = F.scaled_dot_product_attention
SOFTMAX = (torch.Tensor.softmax, torch.softmax, F.softmax)


@dataclass(frozen=True)
class Fused:
    """A call of `scaled_dot_product_attention`: q (B, H, L, E), k (B, h, S, E), v (B, h, S, any), out (B, H, L, any).

    `how` holds its other arguments: mask, scale, causality, grouped queries.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    how: dict[str, Any]
    out: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, L and S."""
        return self.q.shape[0], self.q.shape[-2], self.k.shape[-2]

    @property
    def device(self) -> torch.device:
        return self.q.device

    def shares(self, groups: Tensor) -> Tensor:
        """Each group's share of the attention, (B, H, L, G), for groups (B, 1, S, G) of zeros and ones.

        The kernel itself computes it, from the same queries, keys and mask, with values that are one-hot over the
        groups. So no matrix of queries by keys exists, and masks mean what they mean to the kernel.
        """
        width, found = self.k.shape[-1], []
        for part in groups.to(self.q.dtype).split(width, dim=-1):  # kernels are fast where values are as wide as keys
            values = F.pad(part, (0, width - part.shape[-1])).expand(-1, self.k.shape[1], -1, -1)
            found.append(FUSED(self.q, self.k, values, **self.how)[..., : part.shape[-1]])
        return torch.cat(found, dim=-1)

    def weights(self) -> Tensor:
        """softmax(q kᵀ · scale + mask), (B, H, L, S) in fp32: the definition of the kernel, to compare it with."""
        scale, mask = self.how.get("scale"), self.how.get("attn_mask")
        scores = self.q.float() @ self._for_each_head(self.k).float().transpose(-2, -1)
        scores = scores * (self.q.shape[-1] ** -0.5 if scale is None else scale)
        if self.how.get("is_causal"):
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).tril().logical_not(), -torch.inf)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
        return scores.softmax(dim=-1).nan_to_num(0.0)  # a query that may read nothing gets zeros

    def output(self, weights: Tensor) -> Tensor:
        """weights (B, H, L, S) times the values, (B, H, L, any) in fp32."""
        return weights @ self._for_each_head(self.v).float()

    def given_only(self, queries: slice, keys: Tensor) -> Tensor:
        """What the kernel gives these queries if there are only these keys, (S,) bool: (B, H, queries, any)."""
        mask = self.how.get("attn_mask")
        if mask is not None:
            mask = mask[..., queries, :] if mask.shape[-2] > 1 else mask
            mask = mask[..., keys] if mask.shape[-1] > 1 else mask
        k, v = self.k[:, :, keys], self.v[:, :, keys]
        return FUSED(self.q[:, :, queries], k, v, **self.how | {"attn_mask": mask})

    def outputs_at(self, row: int, queries: Tensor | slice) -> Tensor:
        """What the kernel gave for queries of a row of the batch, (queries, H · any), with all heads side by side."""
        return self.out[row, :, queries].transpose(0, 1).flatten(1)

    def values_at(self, row: int, keys: Tensor) -> Tensor:
        """The values of keys of a row, (keys, H · any): what a query would be given that reads that key alone."""
        return self._for_each_head(self.v[row : row + 1, :, keys])[0].transpose(0, 1).flatten(1)

    def _for_each_head(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.q.shape[1] // x.shape[1], dim=1)


@dataclass(frozen=True)
class Explicit:
    """Weights (B, H, L, S) that a model computed by a softmax of its own."""

    computed: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, L and S."""
        return self.computed.shape[0], self.computed.shape[-2], self.computed.shape[-1]

    @property
    def device(self) -> torch.device:
        return self.computed.device

    def shares(self, groups: Tensor) -> Tensor:
        """As `Fused.shares`."""
        return self.computed @ groups.to(self.computed.dtype)

    def weights(self) -> Tensor:
        return self.computed.float()


Kernel = Fused | Explicit


def in_slices(slices: Iterable[Tensor], rows: int) -> Explicit:
    """Weights that were computed in slices, each (part of B·H, L, S)."""
    return Explicit(torch.cat(list(slices)).unflatten(0, (rows, -1)))


class Watch(TorchFunctionMode):
    """A block in which calls of attention kernels in this thread are reported after they have run.

    Args:
        fused: called with each call of `scaled_dot_product_attention`; may return what the model gets instead.
        softmax: called with what each softmax gave.
    """

    def __init__(self, fused: Callable[[Fused], Tensor | None], softmax: Callable[[Tensor], None]):
        super().__init__()
        self._fused, self._softmax = fused, softmax

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is FUSED:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            q, k, v = (given.pop(name) for name in names[:3])
            given.pop("dropout_p", None)
            changed = self._fused(Fused(q, k, v, given, out))
            return out if changed is None else changed
        if func in SOFTMAX and isinstance(out, Tensor):
            self._softmax(out)
        return out
