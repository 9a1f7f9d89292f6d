"""The processes of a run: which one this is, its device, and how they combine what each of them counts."""

import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor


def this_process() -> PartialState:
    """This process among those that `accelerate launch` started, on an accelerator if there is one, else on the CPU.

    Accelerate takes processes on CPUs for independent ones unless `cpu` is True.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def find_device(name: str | None = None) -> torch.device:
    """The device of a name such as "cpu" or "cuda:1"; by default the one that Accelerate chooses for this process.

    Raises:
        ValueError: this machine cannot use such a device.
    """
    if name is None:
        return this_process().device
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError):  # unknown, or no build of torch for it, or no such hardware
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        usable = " or ".join(["cpu", *([accelerator.type] if accelerator else [])])
        raise ValueError(f"device {name!r} cannot be used on this machine: choose {usable}") from None
    return device


def loader_workers(accelerator: Accelerator) -> int:
    """The number of processes that make batches for this one: on a CPU one, beside a GPU its share of the cores."""
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return 1 if accelerator.device.type == "cpu" else max(1, (os.cpu_count() or 1) // on_this_machine - 1)


def check_share(batch_size: int, processes: int) -> None:
    """Raise ValueError unless every process gets as many examples of a batch as every other."""
    if batch_size % processes:
        raise ValueError(
            f"a batch of {batch_size} cannot be shared among {processes} processes: "
            f"give a --batch-size that is a multiple of {processes}"
        )


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether `flag` is true in any process. All processes must ask: otherwise those that do wait for ever."""
    if accelerator.num_processes == 1:
        return flag
    if flag:
        accelerator.set_trigger()
    return accelerator.check_trigger()


def share(accelerator: Accelerator, real: Tensor) -> Tensor:
    """The weight of this process's mean over its `real` items (any shape, boolean) in the mean over all processes.

    Gradients are averaged over processes as if all had the same number of items. Times this weight, that average is the
    mean over all items. It is 1 if there is one process.
    """
    count = real.sum().float()
    return count / accelerator.reduce(count, "mean").clamp_min(1e-8)
