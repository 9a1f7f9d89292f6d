"""Shared by the commands: their options, and functions that load a model and write files."""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.runs.resume import flag_of
from pipelines.training.config import Saving

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image

    from pipelines import TextToImagePipeline

MODEL_HELP = "A bundled model, the folder of a run, or a hub id."
Model = Annotated[str, typer.Option(help=MODEL_HELP)]
AnyModel = Annotated[str, typer.Option(help="A bundled model, or the folder or hub id of one of ours or diffusers'.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps, …; by default an accelerator if there is one.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")]
Steps = Annotated[int | None, typer.Option(help="Sampling steps; by default the model's own.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; 1 is no guidance; by default the model's own.")]


def settings_as_options(kind: type[Saving], *names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that gives a command the options of the settings of `kind`, of all or of those named.

    The command takes the settings, an instance of `kind`, as its first argument.
    """
    settings = [setting for setting in fields(kind) if setting.metadata and (not names or setting.name in names)]
    settings.sort(key=lambda setting: setting.name in Saving.__dataclass_fields__)  # what is inherited comes last

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**values: Any) -> None:
            config = kind(**{setting.name: values.pop(setting.name) for setting in settings})
            command(config, **values)

        options = []
        for setting in settings:
            shown = {name: value for name, value in setting.metadata.items() if name != "flag"}
            option = typer.Option(... if setting.default is MISSING else setting.default, flag_of(setting), **shown)
            options.append(Parameter(setting.name, Parameter.KEYWORD_ONLY, default=option, annotation=setting.type))
        _, *others = signature(command).parameters.values()
        others = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in others]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = Signature([*options, *others])  # type: ignore[attr-defined]
        return run

    return decorate


def load(model: str, device: str | None = None) -> "TextToImagePipeline":
    """A pipeline on the device of a name, by default on the one that Accelerate chooses."""
    from pipelines import TextToImagePipeline
    from pipelines.runs.processes import find_device

    place = find_device(device)
    pipe = TextToImagePipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(place)


def load_any(model: str, device: str | None = None) -> "DiffusionPipeline":
    """The same for any pipeline of diffusers."""
    from pipelines.any_pipeline import open_pipeline
    from pipelines.runs.processes import find_device

    return open_pipeline(model, find_device(device))


def open_picture(file: Path) -> "Image.Image":
    """A picture file as it is displayed.

    Raises:
        OSError: it cannot be opened.
        ValueError: the file cannot be read as a picture.
    """
    from pipelines.picture_files import PictureError
    from pipelines.pixels import read_picture

    try:
        return read_picture(file.read_bytes())
    except PictureError as error:
        raise ValueError(f"{file} cannot be used: {error}") from error


def refuse_existing(files: Iterable[Path | None], instead: str) -> None:
    """Raise ValueError if one of the files exists."""
    if existing := [str(file) for file in files if file is not None and file.exists()]:
        raise ValueError(f"{', '.join(existing)} already exists: choose another {instead}")


def print_notes(notes: Iterable[str]) -> None:
    """Print what is worth knowing beside the result."""
    for note in filter(None, notes):
        print(f"note: {note}", file=sys.stderr)


def require_png(file: Path | None, option: str) -> None:
    """Raise ValueError unless the name of a file ends in .png."""
    if file is not None and file.suffix.lower() != ".png":
        raise ValueError(f"{option} must end in .png, got {file}")


def write_json(file: Path | None, report: dict) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"{file.name}.new")  # a model's own index is never left half written
        unfinished.write_text(json.dumps(report, indent=1) + "\n")
        unfinished.replace(file)
