"""Errors that end a run early, each in one line that says what to do. Earlier checkpoints stay intact."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils.memory import should_reduce_batch_size
from safetensors import SafetensorError
from torch import Tensor

from pipelines.runs.checkpoint import last_state
from pipelines.runs.folder import CHECKPOINTS


class DivergedError(ValueError):
    """A loss or a gradient is not finite; the step was not taken."""

    def __init__(self, step: int, norm: Tensor, losses: Mapping[str, Tensor], examples: str):
        values = ", ".join(f"{name} {loss.item():.4g}" for name, loss in losses.items())
        super().__init__(
            f"step {step:,} was not taken: its gradient norm is {float(norm)} (losses: {values}), on {examples}. "
            "Check these examples or lower --learning-rate; earlier checkpoints are intact"
        )


@contextmanager
def explained(out: Path, options: str) -> Iterator[None]:
    """Turn errors of a full memory or a failing disk, in a run in `out`, into one line that says what to do.

    Args:
        options: which options to lower if memory runs out, on a GPU or on the CPU.

    Raises:
        ValueError: memory ran out.
        OSError: something could not be read or written. Other errors pass unchanged.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not should_reduce_batch_size(error):
            raise
        raise ValueError(f"out of memory: {options}{_resumable(out)}") from error
    except (OSError, SafetensorError) as error:  # safetensors does not raise OSError
        raise OSError(f"{error}{_resumable(out)}") from error


def _resumable(out: Path) -> str:
    saved = last_state(out / CHECKPOINTS).get("step")
    return "" if saved is None else f"; the run in {out} has step {saved:,} saved: --resume continues from there"
