"""Training state on disk: what a run needs to go on, in safetensors and JSON.

A checkpoint is written beside the last one and takes its place by a rename, so there is always one whole.
"""

import json
import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

Settings = TypeVar("Settings")


def save_checkpoint(folder: Path, model: nn.Module, ema: nn.Module, optimizer: Optimizer, state: dict) -> None:
    """Write weights, averaged weights, the optimizer's moments and `state` (anything JSON holds) into `folder`."""
    new, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name, module in (("model", model), ("ema", ema)):
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, new / f"{name}.safetensors")
    save_file(_moments(model, optimizer), new / "optimizer.safetensors")
    (new / "state.json").write_text(json.dumps(state, indent=1))
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, model: nn.Module, ema: nn.Module, optimizer: Optimizer) -> None:
    """Put back what `save_checkpoint` wrote.

    Raises:
        ValueError: a tensor is missing or of another shape; the message names it.
    """
    for name, module in (("model", model), ("ema", ema)):
        try:
            module.load_state_dict(load_file(folder / f"{name}.safetensors"))
        except RuntimeError as error:
            raise ValueError(f"{folder} holds another network than this version trains: {error}") from error
    moments = load_file(folder / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        for key in optimizer.state[parameter] or ("step", "exp_avg", "exp_avg_sq"):  # AdamW's come with its first step
            stored = moments.get(f"{name}|{key}")
            if stored is None or (key != "step" and stored.shape != parameter.shape):
                raise ValueError(f"{folder}: the optimizer's {key} of {name} is missing or does not fit")
            # In the weights' own memory format: the fused optimizer walks both through memory side by side.
            moment = (
                stored.to(parameter.device) if key == "step" else torch.empty_like(parameter.detach()).copy_(stored)
            )
            optimizer.state[parameter][key] = moment


def load_state(folder: Path) -> dict:
    """The `state` of the checkpoint in `folder`, or of the one it was about to replace.

    Raises:
        ValueError: there is no checkpoint.
    """
    old = folder.with_suffix(".old")
    if not folder.exists() and old.exists():
        os.replace(old, folder)  # a run that was stopped between the two renames
    if not (folder / "state.json").is_file():
        raise ValueError(f"there is nothing to resume in {folder.parent}: it has no checkpoint")
    return json.loads((folder / "state.json").read_text())


def settings_of(kind: type[Settings], state: dict, folder: Path) -> Settings:
    """The settings a run was begun with, of the dataclass `kind`.

    Raises:
        ValueError: the run was begun by a version that had other settings.
    """
    there, known = set(state["config"]), {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if odd := sorted(there ^ known):
        raise ValueError(
            f"the run in {folder} was begun by another version, which differs in {', '.join(odd)}: "
            "resume it with that one, or begin anew in another --out"
        )
    return kind(**state["config"])


def _moments(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}|{key}": value.contiguous() if torch.is_tensor(value) else torch.tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }
