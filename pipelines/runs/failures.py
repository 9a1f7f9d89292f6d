"""What ends a run before its time, each in one line that says what to do. What was saved before stays as it is."""

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
    """A loss or a gradient is no number any more; the step was not taken."""

    def __init__(self, step: int, norm: Tensor, losses: Mapping[str, Tensor], examples: str):
        said = ", ".join(f"{name} {loss.item():.4g}" for name, loss in losses.items())
        super().__init__(
            f"step {step:,} was not taken: its gradient's norm is {float(norm)} (losses: {said}), on {examples}. Look "
            "at these or lower --learning-rate; what was saved before is untouched"
        )


@contextmanager
def explained(out: Path, options: str) -> Iterator[None]:
    """Say in one line what to do about memory that runs out or a disk that refuses, while the run in `out` goes on.

    Args:
        options: which to lower where memory runs out, on a GPU or off it.

    Raises:
        ValueError: memory ran out.
        OSError: something could not be read or written. What else is raised passes through.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not should_reduce_batch_size(error):
            raise
        raise ValueError(f"out of memory: {options}{_then(out)}") from error
    except (OSError, SafetensorError) as error:  # safetensors has no OSError of its own
        raise OSError(f"{error}{_then(out)}") from error


def _then(out: Path) -> str:
    saved = last_state(out / CHECKPOINTS).get("step")
    return "" if saved is None else f"; the run in {out} has step {saved:,} saved, --resume goes on from there"
