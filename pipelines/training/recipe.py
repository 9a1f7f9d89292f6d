"""How a run learns: its optimizer, its learning rate, the average of its weights, and the arithmetic it takes."""

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipelines.training.muon import Muon
from pipelines.training.objective import TextToImageModel


def muon(model: TextToImageModel, learning_rate: float, weight_decay: float) -> Muon:
    """The optimizer of a run: Muon for the matrices between layers, AdamW for the ends and what is no matrix.

    Every group of it has a "pace": its learning rate is to be that many times the run's (`TextToImageModel.pace`).
    """
    ends = ("conv_in.weight", "conv_out.weight", "embedding.weight")
    groups: dict[tuple[bool, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            between = parameter.ndim >= 2 and not name.endswith(ends)
            groups[between, model.pace(name)].append(parameter)
    dtype = torch.bfloat16 if bf16_is_fast() else torch.float32
    named = [
        {"params": parameters, "orthogonal": orthogonal, "pace": pace}
        for (orthogonal, pace), parameters in groups.items()
    ]
    return Muon(named, learning_rate, weight_decay, dtype=dtype)


def bf16_is_fast() -> bool:
    """Whether this machine multiplies bf16 much faster than fp32: a GPU, a CPU with AMX or with AVX-512's bf16."""
    capabilities: dict = getattr(torch.cpu, "get_capabilities", dict)()  # not in the oldest torch we run with
    return torch.cuda.is_available() or any(capabilities.get(unit) for unit in ("amx_bf16", "avx512_bf16"))


def attention_kernel(device: str) -> AbstractContextManager:
    """On a CPU plain products: to go back through its fused kernel takes torch 2.13 a third of a whole step in bf16."""
    return sdpa_kernel(SDPBackend.MATH) if device == "cpu" and bf16_is_fast() else nullcontext()


def schedule(step: int, steps: int, warmup: int) -> float:
    """The learning rate's factor: up over the warm-up, level, then down to nothing over the last third."""
    return min(1.0, (step + 1) / max(warmup, 1), (steps - step) / steps * 3)


def power_function_ema(sigma: float) -> Callable[..., None]:
    """An average of the weights over a window that grows with the run (EDM2, arXiv 2312.02696, section 3.1).

    `sigma` is the window's standard deviation relative to the length of training.
    """
    gamma = np.roots([1, 7, 16 - sigma**-2, 12 - sigma**-2]).real.max()

    def update(averaged: list[Tensor], current: list[Tensor], updates: Tensor) -> None:
        beta = (1 - 1 / (int(updates) + 1)) ** (gamma + 1)
        torch._foreach_lerp_(averaged, current, 1 - beta)

    return update
