"""How a run learns: its optimizer, learning rate, average of the weights, and number format."""

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipelines.runs.processes import find_device
from pipelines.training.muon import Muon
from pipelines.training.objective import TextToImageModel


def muon(model: TextToImageModel, learning_rate: float, weight_decay: float) -> Muon:
    """The optimizer of a run: Muon for the matrices between layers, AdamW for all other parameters.

    The learning rate of a group is the run's times the group's "lr_scale" (`TextToImageModel.lr_scale`).
    """
    ends = ("conv_in.weight", "conv_out.weight", "embedding.weight")
    groups: dict[tuple[bool, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            between = parameter.ndim >= 2 and not name.endswith(ends)
            groups[between, model.lr_scale(name)].append(parameter)
    dtype = torch.bfloat16 if bf16_is_fast() else torch.float32
    named = [
        {"params": parameters, "orthogonal": orthogonal, "lr_scale": lr_scale}
        for (orthogonal, lr_scale), parameters in groups.items()
    ]
    return Muon(named, learning_rate, weight_decay, dtype=dtype)


def bf16_is_fast() -> bool:
    """Whether this machine multiplies bf16 much faster than fp32: a GPU, or a CPU with AMX or with AVX-512's bf16."""
    kind = find_device().type
    if kind != "cpu":
        return kind != "mps"  # where both are about as fast
    capabilities: dict = getattr(torch.cpu, "get_capabilities", dict)()  # not in the oldest torch that we support
    return any(capabilities.get(unit) for unit in ("amx_bf16", "avx512_bf16"))


def attention_kernel(device: str) -> AbstractContextManager:
    """Plain matrix products on a CPU: in torch 2.13 the fused kernel's backward takes a third of a step in bf16."""
    return sdpa_kernel(SDPBackend.MATH) if device == "cpu" and bf16_is_fast() else nullcontext()


def schedule(step: int, steps: int, warmup: int) -> float:
    """The factor of the learning rate: it rises over the warm-up, stays, and falls to 0 over the last third."""
    return min(1.0, (step + 1) / max(warmup, 1), (steps - step) / steps * 3)


def power_function_ema(sigma: float) -> Callable[..., None]:
    """The update of an average of the weights over a growing window (EDM2, arXiv 2312.02696, section 3.1).

    `sigma` is the standard deviation of the window relative to the length of training.
    """
    gamma = np.roots([1, 7, 16 - sigma**-2, 12 - sigma**-2]).real.max()

    def update(averaged: list[Tensor], current: list[Tensor], updates: Tensor) -> None:
        beta = (1 - 1 / (int(updates) + 1)) ** (gamma + 1)
        torch._foreach_lerp_(averaged, current, 1 - beta)

    return update
