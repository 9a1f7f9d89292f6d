"""Open any text-to-image pipeline: ours, or one of diffusers' in a folder or on the hub."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from pipelines.components import quiet
from pipelines.text_to_image import TextToImagePipeline, find_model


def open_pipeline(name: str | Path, device: torch.device) -> DiffusionPipeline:
    """The pipeline of a bundled model, a folder or a hub id, on a device and without a progress bar.

    Pipelines of diffusers are loaded in bf16 on accelerators and in fp32 on CPUs. Only safetensors are read, and no
    code that comes with a model.

    Raises:
        ValueError: there is none, or it cannot be loaded; the message says which.
    """
    path, ours = find_model(name), is_ours(name)
    pipe = TextToImagePipeline.from_pretrained(name) if ours else _open_any(path)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, None if ours or device.type == "cpu" else torch.bfloat16)


def is_ours(model: str | Path | DiffusionPipeline) -> bool:
    """Whether a pipeline, or the one of a name, is a `TextToImagePipeline`. Raises as `open_pipeline` does."""
    if isinstance(model, DiffusionPipeline):
        return isinstance(model, TextToImagePipeline)
    path = find_model(model)
    try:
        with quiet():
            return DiffusionPipeline.load_config(path).get("_class_name", "") == TextToImagePipeline.__name__
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} cannot be loaded: not a model here, and not found on the hub: {reason}") from error


def _open_any(path: str) -> DiffusionPipeline:
    try:
        with quiet():
            return DiffusionPipeline.from_pretrained(path, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError, AttributeError, ImportError) as error:
        raise ValueError(f"{path} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
