"""What several commands do: load a model, write a file, and never one over another."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer

from pipelines import TextToImagePipeline

Model = Annotated[str, typer.Option(help="A bundled model, a run's folder, or a hub id.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are already there.")]
Streaming = Annotated[bool, typer.Option("--streaming", help="Take a hub set's pictures as they come, up to --limit.")]
Limit = Annotated[int | None, typer.Option(help="Only the first so many pictures.")]
Steps = Annotated[int | None, typer.Option(help="Steps from noise to picture; by default the model's own.")]
Guidance = Annotated[
    float | None,
    typer.Option(help="How strictly to follow the prompt; 1 is no guidance; by default the model's own."),
]
SOURCES = "a folder, a .zip or .tar, shards of WebDataset, or a set of datasets by its name"
ON_BAD_HELP = "With pictures that cannot be used: fail, or skip them."


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
