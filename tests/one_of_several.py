"""One of the processes that `test_distributed.py` starts: runs that are stopped, resumed and sharded.

Arguments: a folder to work in, and a tiny model to initialise from.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils.data import get_worker_info

import pipelines.training.recipe
import pipelines.training.train
import pipelines.training.train_text
from pipelines.data.scenes import SceneExamples
from pipelines.runs.processes import this_process
from pipelines.runs.signals import StoppedError
from pipelines.training.config import TextConfig
from pipelines.training.objective import Losses
from pipelines.training.sharding import full
from pipelines.training.state import TrainState
from pipelines.training.train import TrainConfig, train
from pipelines.training.train_text import train_text


def settings(out: Path, model: str) -> TrainConfig:
    """Four steps of six pictures; caption dropout makes the numbers of translated tokens unequal."""
    small: dict = {"steps": 4, "batch_size": 6, "size": 32, "warmup": 1, "every": 4}
    return TrainConfig(out=str(out), begin_from=model, learning_rate=5e-4, caption_dropout=0.3, **small)


def text_settings(pairs: Path, out: Path) -> TextConfig:
    return TextConfig(
        pairs=str(pairs), out=str(out), steps=4, batch_size=6, every=4, width=32, layers=1, dropout=0.0, warmup=1
    )


def exact(patch: pytest.MonkeyPatch) -> None:
    """fp32 on every machine, because in bf16 the order of additions changes the results too much."""
    for module in (pipelines.training.recipe, pipelines.training.train, pipelines.training.train_text):
        patch.setattr(module, "bf16_is_fast", lambda: False)


def main(folder: Path, model: str) -> None:
    process = this_process()
    rank = process.process_index
    report: dict = {"rank": rank, "processes": process.num_processes, "averages": []}
    patch = pytest.MonkeyPatch()
    exact(patch)
    patch.setattr(accelerate.PartialState, "destroy_process_group", lambda *_: None)  # several runs follow

    # The places that its loader's worker, another process, is asked for.
    asked, example = folder / f"places-{rank}.txt", SceneExamples.example

    def noted(self: SceneExamples, place: int) -> object:
        if get_worker_info():
            with open(asked, "a") as file:
                file.write(f"{place}\n")
        return example(self, place)

    patch.setattr(SceneExamples, "example", noted)
    states, gather = [], TrainState.gather

    def hashed(state: TrainState) -> None:
        states.append(state)
        weights = [full(weight).detach() for weight in state.average.module.parameters()]
        report["averages"].append(hashlib.sha256(b"".join(w.numpy().tobytes() for w in weights)).hexdigest())
        gather(state)

    patch.setattr(TrainState, "gather", hashed)

    # The last of the processes is asked to stop while it trains its second step.
    forward_backward, steps = pipelines.training.train.forward_backward, iter(range(1, 9))

    def stop(*arguments: object) -> Losses:
        if next(steps) == 2 and rank == process.num_processes - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward_backward(*arguments)  # type: ignore[arg-type]

    with pytest.raises(ValueError) as refused:
        train(replace(settings(folder / "refused", model), batch_size=5))
    report["refused"] = str(refused.value)

    config = settings(folder / "several", model)
    with patch.context() as until, pytest.raises(StoppedError) as stopped:
        until.setattr(pipelines.training.train, "forward_backward", stop)
        train(config)
    report["stopped"] = str(stopped.value)
    if process.is_main_process:
        shutil.copytree(config.out, folder / "shards")
    train(TrainConfig(out=config.out), resume=True)
    train_text(text_settings(folder / "pairs.tsv", folder / "several-text"))

    # FSDP. Accelerate offers it on GPUs only, but it works on these CPUs too.
    AcceleratorState._reset_state()
    process.distributed_type = accelerate.DistributedType.MULTI_GPU
    patch.setenv("ACCELERATE_USE_FSDP", "true")
    process.wait_for_everyone()
    train(TrainConfig(out=str(folder / "shards")), resume=True)
    state = states[-1]
    report["held"] = sum(w.to_local().numel() for w in state.model.parameters())
    report["all"] = sum(w.numel() for w in state.model.parameters())
    report["moments sharded"] = all(
        isinstance(value, torch.distributed.tensor.DTensor)
        for moments in state.optimizer.state.values()
        for name, value in moments.items()
        if name != "step"
    ) and all(isinstance(weight, torch.distributed.tensor.DTensor) for weight in state.average.module.parameters())

    (folder / f"report-{rank}.json").write_text(json.dumps(report))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
