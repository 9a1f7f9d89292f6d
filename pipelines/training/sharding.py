"""Models too large to be trained whole: under FSDP each process holds a piece of every weight, average and moment.

Pieces are `DTensor`s, cut along the first dimension. What is saved and what draws samples is whole, on the main
process.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

BLOCKS = {"UNetBlock", "EncoderLayer", "DecoderLayer"}
"""Classes of modules whose weights are gathered together, just before they are needed."""


def fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """FSDP as this package trains with it, if `accelerate launch --use_fsdp` asked for it.

    Weights and gradients travel in fp32, and bf16 is autocast's alone, as without FSDP: so both train alike.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        mixed_precision_policy=MixedPrecisionPolicy(),
        cpu_ram_efficient_loading=False,
    )


def whole(piece: Tensor) -> Tensor:
    """A tensor of which each process has a piece, on all of them, which must all ask for it; any other as it is."""
    return piece.full_tensor() if isinstance(piece, DTensor) else piece


def piece_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's piece of a tensor that all have, cut as `like` is; the tensor itself where that is whole."""
    if not isinstance(like, DTensor):
        return tensor
    mesh = like.device_mesh
    tensor = tensor.detach().to(mesh.device_type).contiguous()  # as pieces are: fused steps walk them side by side
    return distribute_tensor(tensor, mesh, like.placements, src_data_rank=None)


def prepare(
    accelerator: Accelerator,
    model: nn.Module,
    ema: AveragedModel,
    optimizer: Optimizer,
    new_optimizer: Callable[[Any], Optimizer],
) -> tuple[nn.Module, AveragedModel, Optimizer]:
    """What is to be trained, averaged and stepped in place of these: the same, or under FSDP pieces of them.

    Under FSDP the whole ones are left for `gather` to fill: the average on the main process's device, the model and the
    moments in its main memory, and nothing on other processes. `new_optimizer` makes one for a copy of the model.
    """
    if not accelerator.is_fsdp2:
        model, optimizer = accelerator.prepare(model, optimizer)
        return model, ema, optimizer
    names = {type(module).__name__ for module in model.modules()}
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(names & BLOCKS)
    copy = deepcopy(model)
    for parameter in copy.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP takes no other
    cut, stepping = accelerator.prepare(copy, new_optimizer(copy))
    stepping.state.clear()  # of weights that were whole
    averages = []
    for parameter, average, piece in zip(model.parameters(), ema.module.parameters(), cut.parameters(), strict=True):
        averages.append(nn.Parameter(piece_of(average, piece), requires_grad=False))
        for name, value in optimizer.state[parameter].items():
            stepping.state[piece][name] = value if name == "step" else piece_of(value, piece)
    moving = AveragedModel(nn.ParameterList(averages), multi_avg_fn=ema.multi_avg_fn)
    moving.n_averaged.copy_(ema.n_averaged)
    optimizer.state.clear()
    model.to("cpu" if accelerator.is_main_process else "meta")
    if not accelerator.is_main_process:
        ema.to("meta")
    return cut, moving, stepping


@torch.no_grad()
def gather(
    accelerator: Accelerator,
    pieces: tuple[nn.Module, AveragedModel, Optimizer],
    wholes: tuple[nn.Module, AveragedModel, Optimizer],
) -> None:
    """Bring the whole model, average and optimizer on the main process up to date; all processes must ask for it.

    `pieces` are what `prepare` made of `wholes`. Where those are the same there is nothing to do.
    """
    if not accelerator.is_fsdp2:
        return
    (cut, moving, stepping), (model, ema, optimizer) = pieces, wholes
    for weight, piece in zip(model.parameters(), cut.parameters(), strict=True):
        found = {name: whole(value) for name, value in stepping.state[piece].items()} | {"": whole(piece)}
        if accelerator.is_main_process:
            weight.copy_(found.pop(""))
            optimizer.state[weight] = {name: value.to(weight.device, copy=True) for name, value in found.items()}
    for average, piece in zip(ema.module.parameters(), moving.module.parameters(), strict=True):
        found_average = whole(piece)
        if accelerator.is_main_process:
            average.copy_(found_average)
    ema.n_averaged.copy_(moving.n_averaged)
