"""The calibrations of diffusers' pipelines: beside a model in a local folder, or by its weights in the user's cache."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from pipelines.data.cache import cache_folder
from unet_xattn.trace_plan import Calibration

FILE, FOLDER = "calibration.json", "calibrations"
"""The file beside a model, and the folder in the cache."""

SAMPLED = 8
"""Numbers of each weight that a fingerprint looks at."""


def fingerprint(denoiser: nn.Module) -> str:
    """A hash of a network's weights: of their names, their shapes, and a few numbers of each in bf16."""
    digest = hashlib.sha256(type(denoiser).__name__.encode())
    for name, weight in denoiser.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        if weight.device.type != "meta" and weight.is_floating_point():
            flat = weight.detach().flatten()
            some = flat[torch.linspace(0, len(flat) - 1, SAMPLED).long().to(flat.device)]
            digest.update(str(some.to("cpu", torch.bfloat16).tolist()).encode())
    return digest.hexdigest()[:32]


def save_calibration(pipe: DiffusionPipeline, denoiser: nn.Module, calibration: Calibration) -> Path:
    """Write a calibration beside the pipeline's model, or into the user's cache, and return the file.

    Raises:
        ValueError: it cannot be written.
    """
    beside, cached = _places(pipe, fingerprint(denoiser))
    file = cached if beside is None or not os.access(beside.parent, os.W_OK) else beside
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"{file.name}.new")
        content = {"weights": fingerprint(denoiser), "calibration": calibration}
        unfinished.write_text(json.dumps(content, indent=1) + "\n")
        unfinished.replace(file)
    except OSError as error:
        raise ValueError(f"{file} cannot be written: {error.strerror or error}") from error
    return file


def saved_calibration(pipe: DiffusionPipeline, denoiser: nn.Module) -> Calibration | None:
    """The calibration that was saved for a pipeline with these weights, or None.

    Raises:
        ValueError: a file is damaged.
    """
    beside, _ = _places(pipe, "")
    if not (beside is not None and beside.is_file()) and not (cache_folder() / FOLDER).is_dir():
        return None  # the usual case, in which no weights are looked at
    weights = fingerprint(denoiser)
    for file in _places(pipe, weights):
        if file is not None and file.is_file():
            content = _read(file)
            if content["weights"] == weights:  # a model trained further is another one
                return content["calibration"]
    return None


def _places(pipe: DiffusionPipeline, weights: str) -> tuple[Path | None, Path]:
    """The file beside a local model, or None, and the file in the cache."""
    folder = pipe.name_or_path
    local = folder is not None and Path(folder).is_dir()
    return Path(folder) / FILE if local else None, cache_folder() / FOLDER / f"{weights}.json"


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
        weights, calibration = content["weights"], content["calibration"]
        right = all(
            isinstance(layer, str) and all(isinstance(weight, float | int) and 0 <= weight <= 1 for weight in heads)
            for layer, heads in calibration.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read as a calibration: {error}") from error
    if not right or not isinstance(weights, str):
        raise ValueError(f"{file} is no calibration: it must hold layers with a weight in [0, 1] for each head")
    return content
