"""One of the processes that `test_distributed.py` starts: runs that are stopped, resumed, cut in pieces and compared.

Arguments: a folder to work in, and a tiny model to begin from.
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

import pipelines.training.recipe
import pipelines.training.train
import pipelines.training.train_text
from pipelines.data.scenes import SceneExamples
from pipelines.runs.processes import this_process
from pipelines.runs.signals import StoppedError
from pipelines.training.config import TextConfig
from pipelines.training.objective import Losses
from pipelines.training.sharding import whole
from pipelines.training.train import TrainConfig, train
from pipelines.training.train_text import train_text


def settings(out: Path, model: str) -> TrainConfig:
    """Four steps of six pictures; every third caption is dropped, and its translation, so that no two have as many."""
    small: dict = {"steps": 4, "batch_size": 6, "size": 32, "warmup": 1, "every": 4}
    return TrainConfig(out=str(out), begin_from=model, learning_rate=5e-4, caption_dropout=0.3, **small)


def text_settings(pairs: Path, out: Path) -> TextConfig:
    return TextConfig(
        pairs=str(pairs), out=str(out), steps=4, batch_size=6, every=4, width=32, layers=1, dropout=0.0, warmup=1
    )


def exact(patch: pytest.MonkeyPatch) -> None:
    """fp32 on this machine too, or no two ways to add up are as near as is asked here."""
    for module in (pipelines.training.recipe, pipelines.training.train, pipelines.training.train_text):
        patch.setattr(module, "bf16_is_fast", lambda: False)


def main(folder: Path, model: str) -> None:
    process = this_process()
    rank = process.process_index
    report: dict = {"rank": rank, "processes": process.num_processes, "averages": []}
    patch = pytest.MonkeyPatch()
    exact(patch)
    patch.setattr(accelerate.PartialState, "destroy_process_group", lambda *_: None)  # there are several runs to come

    # Which places its loader's worker, a process of its own, is asked for.
    asked, example = folder / f"places-{rank}.txt", SceneExamples.example

    def noted(self: SceneExamples, place: int) -> object:
        with open(asked, "a") as file:
            file.write(f"{place}\n")
        return example(self, place)

    patch.setattr(SceneExamples, "example", noted)
    gather = pipelines.training.train.gather

    def hashed(accelerator: accelerate.Accelerator, pieces: tuple, wholes: tuple) -> None:
        weights = [whole(weight).detach() for weight in pieces[1].module.parameters()]
        report["averages"].append(hashlib.sha256(b"".join(w.numpy().tobytes() for w in weights)).hexdigest())
        gather(accelerator, pieces, wholes)

    patch.setattr(pipelines.training.train, "gather", hashed)

    # The last of the processes is asked to stop while it trains its second step.
    step_losses, steps = pipelines.training.train.step_losses, iter(range(1, 9))

    def stop(*arguments: object) -> Losses:
        if next(steps) == 2 and rank == process.num_processes - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_losses(*arguments)  # type: ignore[arg-type]

    with pytest.raises(ValueError) as refused:
        train(replace(settings(folder / "refused", model), batch_size=5))
    report["refused"] = str(refused.value)

    config = settings(folder / "several", model)
    with patch.context() as until, pytest.raises(StoppedError) as stopped:
        until.setattr(pipelines.training.train, "step_losses", stop)
        train(config)
    report["stopped"] = str(stopped.value)
    if process.is_main_process:
        shutil.copytree(config.out, folder / "pieces")
    train(TrainConfig(out=config.out), resume=True)
    train_text(text_settings(folder / "pairs.tsv", folder / "several-text"))

    # FSDP, which Accelerate offers on GPUs only; that these processes compute on CPUs makes no difference to it.
    AcceleratorState._reset_state()
    process.distributed_type = accelerate.DistributedType.MULTI_GPU
    patch.setenv("ACCELERATE_USE_FSDP", "true")
    process.wait_for_everyone()
    trained, prepare = [], pipelines.training.train.prepare

    def prepared(*arguments: object) -> tuple:
        trained.append(prepare(*arguments))  # type: ignore[arg-type]
        return trained[-1]

    patch.setattr(pipelines.training.train, "prepare", prepared)
    train(TrainConfig(out=str(folder / "pieces")), resume=True)
    cut, average, optimizer = trained[0]
    report["held"] = sum(w.to_local().numel() for w in cut.parameters())
    report["all"] = sum(w.numel() for w in cut.parameters())
    report["moments cut"] = all(
        isinstance(value, torch.distributed.tensor.DTensor)
        for state in optimizer.state.values()
        for name, value in state.items()
        if name != "step"
    ) and all(isinstance(weight, torch.distributed.tensor.DTensor) for weight in average.module.parameters())

    (folder / f"report-{rank}.json").write_text(json.dumps(report))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
