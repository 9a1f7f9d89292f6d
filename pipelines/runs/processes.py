"""Several processes that train as one: who they are, and what each counts."""

import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor


def this_process() -> PartialState:
    """This process among those it was launched with, on an accelerator where there is one, and on CPUs where not.

    Accelerate itself takes processes on CPUs for strangers unless it is told that they are on CPUs.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def loader_workers(accelerator: Accelerator) -> int:
    """Processes that make batches for this one: on a CPU one, which has the cores to train; beside a GPU all cores."""
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # that train on this machine
    return 1 if accelerator.device.type == "cpu" else max(1, (os.cpu_count() or 1) // beside - 1)


def check_share(batch_size: int, processes: int) -> None:
    """Raise ValueError unless every process gets as many examples of a batch as every other."""
    if batch_size % processes:
        raise ValueError(
            f"a batch of {batch_size} cannot be shared among {processes} processes: "
            f"give a --batch-size that is a multiple of {processes}"
        )


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether it is so in any process: what one does at the end of a step all must do, or one waits for ever."""
    if accelerator.num_processes == 1:
        return flag
    if flag:
        accelerator.set_trigger()
    return accelerator.check_trigger()


def share(accelerator: Accelerator, real: Tensor) -> Tensor:
    """How much this process's mean over its `real` items (any shape, boolean) counts in the mean over everybody's.

    Gradients are averaged over processes, as if all had as many items. Times this, the average is the mean over all
    of them, whoever has how many. 1 for a process alone.
    """
    count = real.sum().float()
    return count / accelerator.reduce(count, "mean").clamp_min(1e-8)
