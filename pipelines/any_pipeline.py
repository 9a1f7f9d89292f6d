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
    path = find_model(name)
    pipe = TextToImagePipeline.from_pretrained(name) if _is_ours(path) else _open_any(path)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, None if _is_ours(path) or device.type == "cpu" else torch.bfloat16)


def _is_ours(path: str) -> bool:
    try:
        with quiet():
            kind = DiffusionPipeline.load_config(path)["_class_name"]
    except (OSError, KeyError):
        return True  # whose errors say what is missing
    return kind == TextToImagePipeline.__name__


def _open_any(path: str) -> DiffusionPipeline:
    try:
        with quiet():
            return DiffusionPipeline.from_pretrained(path, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError, AttributeError, ImportError) as error:
        raise ValueError(f"{path} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
