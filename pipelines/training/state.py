"""What a run trains and its checkpoints hold: a model, the average of its weights, and its optimizer."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from pipelines.runs.checkpoint import load_checkpoint, save_checkpoint
from pipelines.training.sharding import full, gather, shard

Model = TypeVar("Model", bound=nn.Module)


class TrainState(Generic[Model]):
    """A model, the average of its weights and its optimizer, trained by one process or by many.

    `model`, `average` and `optimizer` are what a step works on: under FSDP shards, otherwise full tensors. `averaged`
    and checkpoints always hold full tensors, on the main process.

    Args:
        new_optimizer: makes the optimizer of a model.
        update_average: as the `multi_avg_fn` of torch's `AveragedModel`.
    """

    def __init__(self, model: Model, new_optimizer: Callable[[Model], Optimizer], update_average: Callable[..., None]):
        self._new_optimizer = new_optimizer
        self.model: nn.Module = model
        self.average = AveragedModel(model, multi_avg_fn=update_average)
        self.optimizer = new_optimizer(model)
        self._full = self.model, self.average, self.optimizer

    @property
    def averaged(self) -> Model:
        """The model with averaged weights; under FSDP on the main process only, and as of the last `gather`."""
        return self._full[1].module  # type: ignore[return-value]

    def load(self, checkpoint: Path) -> None:
        """Load a checkpoint, before `prepare`."""
        load_checkpoint(checkpoint, *self._full)

    def prepare(self, accelerator: Accelerator) -> None:
        """Hand everything to Accelerate, as `Accelerator.prepare` does."""
        self._accelerator = accelerator
        if accelerator.is_fsdp2:
            self.model, self.average, self.optimizer = shard(accelerator, self._full, self._new_optimizer)
        else:
            self.model, self.optimizer = accelerator.prepare(self.model, self.optimizer)

    def clip_gradients(self, max_norm: float) -> Tensor:
        """Scale the gradients down to a norm of at most `max_norm`; returns the norm they had, ()."""
        return full(self._accelerator.clip_grad_norm_(self.model.parameters(), max_norm))

    def step(self) -> None:
        """Step the optimizer, clear the gradients and update the average."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self._accelerator.unwrap_model(self.model))

    def gather(self) -> None:
        """Bring `averaged`, and what `save` writes, up to date; every process must call it."""
        if self._accelerator.is_fsdp2:
            gather(self._accelerator, (self.model, self.average, self.optimizer), self._full)

    def save(
        self, folder: Path, counters: dict[str, Any], keep: int, milestone: bool, beside: Mapping[str, bytes]
    ) -> None:
        """Save a checkpoint, after `gather` and on the main process; the arguments are those of `save_checkpoint`."""
        save_checkpoint(folder, *self._full, counters, keep, milestone, beside)
