"""Training state on disk: what a run needs to go on, in safetensors and JSON.

A checkpoint is a folder `step-NNNNNNNN` with the weights, their average, the optimizer's moments, `state.json`, and a
`manifest.json` with the size and SHA-256 of each. It is written under another name and renamed when all of it is on the
disk; older ones go only after it has been read back. So whatever happens, whenever, a whole one is there.

No generator's state is among it, because none is needed: which example comes next, its noise, its time and whether its
caption is dropped are functions of the seed and the example's place, what dropout drops is one of the seed and the
step, and the learning rate is one of the step. The counters are in `state.json`.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.optim import Optimizer

FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")
MANIFEST = "manifest.json"
NAME = re.compile(r"step-\d{8,}")


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    ema: nn.Module,
    optimizer: Optimizer,
    state: dict,
    keep: int = 2,
    milestone: bool = False,
) -> Path:
    """Write weights, averaged weights, the optimizer's moments and `state` as the newest checkpoint in `folder`.

    Args:
        state: anything JSON holds, with the number of steps taken as "step".
        keep: how many to keep: this one and the ones before it; milestones stay beside them.
        milestone: keep this one for good.

    Raises:
        OSError: it could not be written or read back. The ones before it are untouched.
    """
    path = folder / f"step-{state['step']:08d}"
    new = path.with_suffix(".new")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for half in folder.glob("step-*.new"):  # what a run that was killed was writing
            if NAME.fullmatch(half.stem):
                _remove(half)
        new.mkdir()
        manifest: dict[str, Any] = {"milestone": milestone, "files": {}}
        for name in FILES:  # one at a time: only one is in memory twice
            manifest["files"][name] = _write(new / name, _content(name, model, ema, optimizer, state))
        _write(new / MANIFEST, json.dumps(manifest, indent=1).encode())
        _sync(new)
        if path.exists():  # the run has come past here before, and could not use what it left
            _remove(path)
        os.replace(new, path)
        _sync(folder)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)  # it may be the disk's last room
        raise
    if wrong := damage(path):
        raise OSError(f"{path} is not what was just written to it: {wrong}")
    _prune(folder, path, keep)
    return path


def load_checkpoint(path: Path, model: nn.Module, ema: nn.Module, optimizer: Optimizer) -> None:
    """Put back what `save_checkpoint` wrote into the folder `path`.

    Raises:
        ValueError: a tensor is missing or of another shape; the message names it.
    """
    for name, module in (("model", model), ("ema", ema)):
        try:
            module.load_state_dict(load_file(path / f"{name}.safetensors"))
        except RuntimeError as error:
            raise ValueError(f"{path} holds another network than this version trains: {error}") from error
    moments = load_file(path / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # it is not stepped
            continue
        for key in optimizer.state[parameter] or ("step", "exp_avg", "exp_avg_sq"):  # AdamW's come with its first step
            stored = moments.get(f"{name}|{key}")
            if stored is None or (key != "step" and stored.shape != parameter.shape):
                raise ValueError(f"{path}: the optimizer's {key} of {name} is missing or does not fit")
            # In the weights' own memory format: the fused optimizer walks both through memory side by side.
            moment = (
                stored.to(parameter.device) if key == "step" else torch.empty_like(parameter.detach()).copy_(stored)
            )
            optimizer.state[parameter][key] = moment


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder by their names, the newest first; whatever else lies there is passed over."""
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step, reverse=True)


def find_checkpoint(folder: Path) -> tuple[Path, list[str]]:
    """The newest checkpoint in a folder that is as it was written, and a line for each newer one that is not.

    Raises:
        ValueError: there is none.
    """
    damaged: list[str] = []
    for path in checkpoints(folder):
        if not (wrong := damage(path)):
            return path, [f"{line}: going on from {path.name}" for line in damaged]
        damaged.append(f"{path} is damaged, {wrong}")
    if damaged:
        raise ValueError(f"there is nothing whole to resume in {folder.parent}: {'; '.join(damaged)}")
    raise ValueError(f"there is nothing to resume in {folder.parent}: it has no checkpoint")


def damage(path: Path) -> str:
    """What is wrong with a checkpoint, in a few words; "" if all of it is as it was written."""
    name = MANIFEST
    try:
        files = json.loads((path / MANIFEST).read_bytes())["files"]
        if set(files) != set(FILES):
            return f"its {MANIFEST} does not list what a checkpoint has"
        for name in FILES:
            size, digest = _digest(path / name)
            if size != files[name]["size"]:
                return f"its {name} has {size:,} bytes instead of {files[name]['size']:,}"
            if digest != files[name]["sha256"]:
                return f"its {name} has other content than was written"
    except OSError as error:
        return f"its {name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST} is no manifest"
    return ""


def load_state(path: Path) -> dict:
    """The `state` of the checkpoint in the folder `path`."""
    return json.loads((path / "state.json").read_bytes())


def last_state(folder: Path) -> dict:
    """The `state` of the newest checkpoint in a folder that has one to be read, all else unseen; {} if none has."""
    for path in checkpoints(folder):
        try:
            return load_state(path)
        except (OSError, ValueError):
            continue
    return {}


def _content(name: str, model: nn.Module, ema: nn.Module, optimizer: Optimizer, state: dict) -> bytes:
    """One of `FILES`."""
    if name == "state.json":
        return json.dumps(state, indent=1).encode()
    tensors = {"model.safetensors": model.state_dict, "ema.safetensors": ema.state_dict}
    held = tensors[name]() if name in tensors else _moments(model, optimizer)
    return save({key: value.contiguous() for key, value in held.items()})


def _moments(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}|{key}": value if torch.is_tensor(value) else torch.tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def _write(path: Path, content: bytes) -> dict[str, int | str]:
    """A new file, on the disk when this returns, and what the manifest says of it."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sync(folder: Path) -> None:
    """Have the disk know the names in a folder; Windows opens none, and its file system sees to that."""
    if os.name == "posix":
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _digest(path: Path) -> tuple[int, str]:
    """A file's size and SHA-256."""
    size, digest = 0, hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            size += len(chunk)
            digest.update(chunk)
    return size, digest.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _prune(folder: Path, newest: Path, keep: int) -> None:
    """Remove the checkpoints a run has no more use for, now that its newest one has been read back.

    Those of later steps were damaged when the run was resumed, or it would have gone on from there.
    """
    found = checkpoints(folder)
    past = found[found.index(newest) :]
    for path in found:
        if path not in past[:keep] and not (path in past and _is_milestone(path)):
            shutil.rmtree(path)


def _is_milestone(path: Path) -> bool:
    try:
        return bool(json.loads((path / MANIFEST).read_bytes())["milestone"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
