"""Checkpoints: the training state that a run resumes from, in safetensors and JSON.

A checkpoint is a folder `step-NNNNNNNN` with the weights, their average, the optimizer's moments, `state.json`, and a
`manifest.json` with the size and SHA-256 of each; the files of a tokenizer may lie beside them. It is written under
another name and renamed when all of it is on the disk; older ones are removed only after it has been read back. So at
any moment there is an intact one.

No state of a random generator is saved, because none is needed. The next example, its noise, its time and its caption
dropout are functions of the seed and of the example's place; what dropout drops is a function of the seed and the step;
the learning rate is a function of the step. The counters are in `state.json`.

torch is imported where there are tensors: listing the runs reads only `state.json`.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")
MANIFEST = "manifest.json"
NAME = re.compile(r"step-\d{8,}")


def save_checkpoint(
    folder: Path,
    model: "nn.Module",
    ema: "nn.Module",
    optimizer: "Optimizer",
    state: dict,
    keep: int = 2,
    milestone: bool = False,
    beside: Mapping[str, bytes] | None = None,
) -> Path:
    """Write weights, averaged weights, the optimizer's moments and `state` as the newest checkpoint in `folder`.

    Args:
        state: content for JSON, with the number of steps taken as "step".
        keep: the number of checkpoints to keep, this one included and milestones not.
        milestone: never remove this one.
        beside: further files, name -> content.

    Raises:
        OSError: the checkpoint could not be written or read back. Earlier ones are untouched.
    """
    path = folder / f"step-{state['step']:08d}"
    new = path.with_suffix(".new")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for half in folder.glob("step-*.new"):  # left by a run that was killed while it saved
            if NAME.fullmatch(half.stem):
                _remove(half)
        new.mkdir()
        manifest: dict[str, Any] = {"milestone": milestone, "files": {}}
        for name in FILES:  # one at a time, so that only one is in memory twice
            manifest["files"][name] = _write(new / name, _content(name, model, ema, optimizer, state))
        for name, content in (beside or {}).items():
            manifest["files"][name] = _write(new / name, content)
        _write(new / MANIFEST, json.dumps(manifest, indent=1).encode())
        _sync(new)
        if path.exists():  # a damaged one: the run resumed from an earlier step
            _remove(path)
        os.replace(new, path)
        _sync(folder)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)  # the disk may be full
        raise
    if wrong := damage(path):
        raise OSError(f"{path} was not written correctly: {wrong}")
    _prune(folder, path, keep)
    return path


def load_checkpoint(path: Path, model: "nn.Module", ema: "nn.Module", optimizer: "Optimizer") -> None:
    """Load what `save_checkpoint` wrote into the folder `path`.

    Raises:
        ValueError: a tensor is missing or has another shape; the message names it.
    """
    import torch
    from safetensors.torch import load_file

    for name, module in (("model", model), ("ema", ema)):
        try:
            module.load_state_dict(load_file(path / f"{name}.safetensors"))
        except RuntimeError as error:
            wrong = " ".join(str(error).split())[:300]  # torch gives a line to every tensor
            raise ValueError(f"{path} holds other networks than those of this run's settings: {wrong}") from error
    moments = load_file(path / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # the optimizer does not have it
            continue
        for key in optimizer.state[parameter] or ("step", "exp_avg", "exp_avg_sq"):  # AdamW's come with its first step
            stored = moments.get(f"{name}|{key}")
            if stored is None or (key != "step" and stored.shape != parameter.shape):
                raise ValueError(f"{path}: the optimizer's {key} of {name} is missing or does not fit")
            # The memory format must be that of the weights: the fused optimizer walks through both side by side.
            moment = (
                stored.to(parameter.device) if key == "step" else torch.empty_like(parameter.detach()).copy_(stored)
            )
            optimizer.state[parameter][key] = moment


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first. Other files and folders are ignored."""
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step, reverse=True)


def find_checkpoint(folder: Path) -> tuple[Path, list[str]]:
    """The newest intact checkpoint in a folder, and a message about each newer one that is damaged.

    Raises:
        ValueError: no intact checkpoint was found.
    """
    damaged: list[str] = []
    for path in checkpoints(folder):
        if not (wrong := damage(path)):
            return path, [f"{line}: resuming from {path.name}" for line in damaged]
        damaged.append(f"{path} is damaged, {wrong}")
    if damaged:
        raise ValueError(f"nothing intact to resume in {folder.parent}: {'; '.join(damaged)}")
    raise ValueError(f"nothing to resume in {folder.parent}: it has no checkpoint")


def damage(path: Path) -> str:
    """What is wrong with a checkpoint, in a few words; "" if it is intact."""
    name = MANIFEST
    try:
        files = json.loads((path / MANIFEST).read_bytes())["files"]
        if not set(files) >= set(FILES):
            return f"its {MANIFEST} does not list the files of a checkpoint"
        for name in files:
            size, digest = _digest(path / name)
            if size != files[name]["size"]:
                return f"its {name} has {size:,} bytes instead of {files[name]['size']:,}"
            if digest != files[name]["sha256"]:
                return f"the content of its {name} has changed"
    except OSError as error:
        return f"its {name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST} is not a manifest"
    return ""


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights in the checkpoint `path`, by their names; the weights are not read."""
    from safetensors import safe_open

    with safe_open(path / "model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def load_state(path: Path) -> dict:
    """The `state` of the checkpoint in the folder `path`."""
    return json.loads((path / "state.json").read_bytes())


def last_state(folder: Path) -> dict:
    """The newest readable `state` of the checkpoints in a folder, nothing else being checked; {} if there is none."""
    for path in checkpoints(folder):
        try:
            return load_state(path)
        except (OSError, ValueError):
            continue
    return {}


def _content(name: str, model: "nn.Module", ema: "nn.Module", optimizer: "Optimizer", state: dict) -> bytes:
    """The content of one of `FILES`."""
    from safetensors.torch import save

    if name == "state.json":
        return json.dumps(state, indent=1).encode()
    tensors = {"model.safetensors": model.state_dict, "ema.safetensors": ema.state_dict}
    held = tensors[name]() if name in tensors else _moments(model, optimizer)
    return save({key: value.contiguous() for key, value in held.items()})


def _moments(model: "nn.Module", optimizer: "Optimizer") -> "dict[str, Tensor]":
    import torch

    return {
        f"{name}|{key}": value if torch.is_tensor(value) else torch.tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def _write(path: Path, content: bytes) -> dict[str, int | str]:
    """Write a file and wait until it is on the disk; returns its entry in the manifest."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk. Windows cannot open folders, and its file system does this."""
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
    """Remove the checkpoints that a run no longer needs, now that its newest one has been read back.

    Those of later steps are damaged: otherwise the run would have resumed from them.
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
