"""Muon: steps that turn every direction of a weight matrix alike, for less loss in as many pictures.

Shapes: a matrix is (rows, columns); a convolution's weights are its output channels by all that each of them reads.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW


class Muon(AdamW):
    """Muon for `matrices` (arXiv 2502.16982, algorithm 1, with Nesterov's momentum), AdamW for all `others`.

    Muon is meant for what lies between layers. A network's first and last layer, its embeddings, biases and norms
    are AdamW's. The same learning rate suits both: Muon's step is given the size that AdamW's has (its eq. 4).

    Args:
        momentum: share of the last step's momentum that is kept.
        dtype: of the matrix products that orthogonalise a step; bf16 suffices where it is fast.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ):
        groups = [{"params": list(matrices), "orthogonal": True}, {"params": list(others), "orthogonal": False}]
        super().__init__(groups, lr, betas=betas, weight_decay=weight_decay, fused=True)
        self.momentum, self.dtype = momentum, dtype
        for parameter in groups[0]["params"]:
            step = torch.zeros((), device=parameter.device)  # AdamW asks every state for one
            self.state[parameter] = {"step": step, "momentum": torch.zeros_like(parameter)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both; the matrices' gradients are used up."""
        assert closure is None, "a step is taken on gradients that are there"
        for group in self.param_groups:
            for weight in group["params"] if group["orthogonal"] else ():
                if weight.grad is None:
                    continue
                self.state[weight]["step"] += 1
                momentum = self.state[weight]["momentum"].lerp_(weight.grad, 1 - self.momentum)
                direction = orthogonal(weight.grad.lerp(momentum, self.momentum).flatten(1), self.dtype)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(direction.view_as(weight), alpha=-group["lr"] * 0.2 * max(direction.shape) ** 0.5)
                weight.grad = None  # AdamW passes over what has no gradient
        return super().step()


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """About the nearest matrix whose rows (or columns, the shorter side) are orthonormal, shaped like `matrix`.

    Five Newton–Schulz steps with the coefficients of Muon's reference, which bring every singular value to between
    0.7 and 1.2 rather than to 1: that is faster and makes no difference to training.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = (x / (x.norm() + 1e-7)).to(dtype)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.T).to(matrix.dtype)
