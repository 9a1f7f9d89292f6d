"""Muon: steps that turn every direction of a weight matrix alike, for less loss in as many pictures.

Shapes: n matrices of one shape, (n, rows, columns); a convolution's weights are a matrix of its output channels by all
that each of them reads.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from pipelines.training.sharding import piece_of, whole


class Muon(AdamW):
    """Muon for matrices (arXiv 2502.16982, algorithm 1, with Nesterov's momentum), AdamW for all else.

    Muon is meant for what lies between layers. A network's first and last layer, its embeddings, biases and norms
    are AdamW's. The same learning rate suits both: Muon's step is given the size that AdamW's has (its eq. 4).

    Args:
        groups: of parameters, as torch's; groups of matrices say `"orthogonal": True`.
        momentum: share of the last step's momentum that is kept.
        dtype: of the matrix products that orthogonalise a step; bf16 suffices where it is fast.
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
                step = torch.zeros((), device=parameter.device)  # AdamW asks every state for one
                self.state[parameter] = {"step": step, "momentum": torch.zeros_like(parameter)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both; the matrices' gradients are used up."""
        assert closure is None, "a step is taken on gradients that are there"
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)  # many small products at once cost less
            for weight in group["params"] if group.get("orthogonal") else ():
                if weight.grad is not None:
                    alike[weight.shape].append(weight)
            for weights in alike.values():
                torch._foreach_add_([self.state[w]["step"] for w in weights], 1)
                gradients: list[Tensor] = [w.grad for w in weights]  # type: ignore[misc]
                momenta = [self.state[w]["momentum"] for w in weights]
                torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
                # Nesterov's. Under FSDP every process turns the whole matrices and keeps its pieces of what comes out.
                ahead = torch.stack([whole(t) for t in torch._foreach_lerp(gradients, momenta, self.momentum)])
                steps = orthogonal(ahead.flatten(2), self.dtype)
                size = group["lr"] * 0.2 * max(steps.shape[1:]) ** 0.5
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                turned = [piece_of(step, w) for step, w in zip(steps.view_as(ahead), weights, strict=True)]
                torch._foreach_add_(weights, turned, alpha=-size)
                for weight in weights:
                    weight.grad = None  # AdamW passes over what has no gradient
        return super().step()


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """About the nearest matrices with orthonormal rows (or columns, the shorter side), (n, rows, columns) as they came.

    Five Newton–Schulz steps with the coefficients of Muon's reference, which bring every singular value to between
    0.7 and 1.2 rather than to 1: that is faster and makes no difference to training.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)
