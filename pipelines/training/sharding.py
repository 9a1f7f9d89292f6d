"""FSDP, for models too large for one process: each holds a shard of every weight, average and moment.

Shards are `DTensor`s, cut along the first dimension. `state.TrainState` decides between these and full tensors.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

Parts: TypeAlias = tuple[nn.Module, AveragedModel, Optimizer]
"""A model, the average of its weights, and its optimizer."""

BLOCKS = {"UNetBlock", "EncoderLayer", "DecoderLayer"}
"""Classes of modules whose weights are gathered together, just before they are needed."""


def fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """The settings of FSDP, if `accelerate launch --use_fsdp` asked for it.

    Weights and gradients travel in fp32 and only autocast uses bf16, so the results are those of training without FSDP.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        mixed_precision_policy=MixedPrecisionPolicy(),
        cpu_ram_efficient_loading=False,
    )


def full(tensor: Tensor) -> Tensor:
    """The full tensor of a shard, whose processes must all call this; a tensor that is not sharded as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a full tensor, cut as `like` is; the full tensor if `like` is not sharded."""
    if not isinstance(like, DTensor):
        return tensor
    mesh = like.device_mesh
    tensor = tensor.detach().to(mesh.device_type).contiguous()  # as shards are: fused steps walk both side by side
    return distribute_tensor(tensor, mesh, like.placements, src_data_rank=None)


def shard(accelerator: Accelerator, parts: Parts, new_optimizer: Callable[[Any], Optimizer]) -> Parts:
    """Shards of a full model, average and optimizer, to train.

    The full ones stay for `gather` to fill: the average on the main process's device, the model and the moments in its
    main memory. Other processes keep no memory for them. `new_optimizer` makes the optimizer of a model.
    """
    model, ema, optimizer = parts
    names = {type(module).__name__ for module in model.modules()}
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(names & BLOCKS)
    copy = deepcopy(model)
    for parameter in copy.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP takes no other memory format
    sharded_model, sharded_optimizer = accelerator.prepare(copy, new_optimizer(copy))
    sharded_optimizer.state.clear()  # it belongs to the full weights
    averages = []
    triples = zip(model.parameters(), ema.module.parameters(), sharded_model.parameters(), strict=True)
    for parameter, average, sharded in triples:
        averages.append(nn.Parameter(shard_like(average, sharded), requires_grad=False))
        for name, value in optimizer.state[parameter].items():
            sharded_optimizer.state[sharded][name] = value if name == "step" else shard_like(value, sharded)
    sharded_ema = AveragedModel(nn.ParameterList(averages), multi_avg_fn=ema.multi_avg_fn)
    sharded_ema.n_averaged.copy_(ema.n_averaged)
    optimizer.state.clear()
    model.to("cpu" if accelerator.is_main_process else "meta")
    if not accelerator.is_main_process:
        ema.to("meta")
    return sharded_model, sharded_ema, sharded_optimizer


@torch.no_grad()
def gather(accelerator: Accelerator, shards: Parts, parts: Parts) -> None:
    """Copy shards into the full model, average and optimizer of the main process; every process must call it."""
    (sharded_model, sharded_ema, sharded_optimizer), (model, ema, optimizer) = shards, parts
    for weight, sharded in zip(model.parameters(), sharded_model.parameters(), strict=True):
        moments = {name: full(value) for name, value in sharded_optimizer.state[sharded].items()}
        full_weight = full(sharded)
        if accelerator.is_main_process:
            weight.copy_(full_weight)
            optimizer.state[weight] = {name: value.to(weight.device, copy=True) for name, value in moments.items()}
    for average, sharded in zip(ema.module.parameters(), sharded_ema.module.parameters(), strict=True):
        full_average = full(sharded)
        if accelerator.is_main_process:
            average.copy_(full_average)
    ema.n_averaged.copy_(sharded_ema.n_averaged)
