"""What several commands do: load a model, write a file, and never one over another."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch

from pipelines import TextToImagePipeline


def load(model: str) -> TextToImagePipeline:
    """A pipeline on the GPU if there is one, else on the CPU."""
    pipe = TextToImagePipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


def refuse_existing(files: Iterable[Path | None], instead: str) -> None:
    if there := [str(file) for file in files if file is not None and file.exists()]:
        raise ValueError(f"{', '.join(there)} already exists: choose another {instead}")


def write_json(file: Path | None, report: dict) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"{file.name}.new")  # a model's own index is never left half written
        unfinished.write_text(json.dumps(report, indent=1) + "\n")
        unfinished.replace(file)
