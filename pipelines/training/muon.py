"""Muon: orthogonalised momentum, which lowers the loss further than AdamW on as many pictures.

Shapes: n matrices of one shape, (n, rows, columns). The weights of a convolution are a matrix with a row for each
output channel and a column for each input that it reads.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from pipelines.training.sharding import full, shard_like


class Muon(AdamW):
    """Muon for matrices (arXiv 2502.16982, algorithm 1, with Nesterov's momentum), AdamW for all other parameters.

    Muon suits the matrices between layers. AdamW steps a network's first and last layer, its embeddings, biases and
    norms. Both use the same learning rate, because Muon's step is scaled to the size of AdamW's (eq. 4 there).

    Args:
        groups: parameter groups, as torch's; groups of matrices have `"orthogonal": True`.
        momentum: share of the last step's momentum that is kept.
        dtype: number format of the matrix products that orthogonalise a step; bf16 suffices where it is fast.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(groups, lr, betas=betas, weight_decay=weight_decay, fused=True)
        self.momentum, self.dtype = momentum, dtype
        for group in self.param_groups:
            for parameter in group["params"] if group.get("orthogonal") else ():
                step = torch.zeros((), device=parameter.device)  # AdamW expects one in every state
                self.state[parameter] = {"step": step, "momentum": torch.zeros_like(parameter)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step all parameters; the gradients of the matrices are cleared."""
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)  # one batched product costs less than many
            for weight in group["params"] if group.get("orthogonal") else ():
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for weights in by_shape.values():
                torch._foreach_add_([self.state[w]["step"] for w in weights], 1)
                gradients: list[Tensor] = [w.grad for w in weights]  # type: ignore[misc]
                momenta = [self.state[w]["momentum"] for w in weights]
                torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
                # Nesterov's. Under FSDP each process orthogonalises the full matrices and keeps its shards of them.
                ahead = torch.stack([full(t) for t in torch._foreach_lerp(gradients, momenta, self.momentum)])
                steps = orthogonal(ahead.flatten(2), self.dtype)
                size = group["lr"] * 0.2 * max(steps.shape[1:]) ** 0.5
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                shards = [shard_like(step, w) for step, w in zip(steps.view_as(ahead), weights, strict=True)]
                torch._foreach_add_(weights, shards, alpha=-size)
                for weight in weights:
                    weight.grad = None  # AdamW skips parameters without a gradient
        return super().step()


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Approximately the nearest matrices (n, rows, columns) with orthonormal rows, or columns where these are shorter.

    Five Newton–Schulz steps with the coefficients of Muon's reference implementation. They bring every singular value
    to between 0.7 and 1.2 instead of to 1, which is faster and makes no difference to training.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)
