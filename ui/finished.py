"""Commands for a run that is done: whether it copies its training pictures, and how others get its model."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.card import publish as publish_run
from pipelines.memorise import memorised as look_up
from pipelines.memorise import memorised_sheet, memorised_text
from pipelines.train import TrainConfig, load_examples
from ui.command import load, refuse_existing, write_json


def memorised(
    model: Annotated[str, typer.Argument(help="A bundled model, a run's folder, or a hub id.")],
    data: Annotated[str, typer.Option(help="The folder of captioned pictures it was trained on.")],
    out: Annotated[Path, typer.Option(help="The sheet to write, a .png.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here as well.")] = None,
    prompts: Annotated[int, typer.Option(help="Captions of each kind to draw.", min=1)] = 16,
) -> None:
    """Look for copies: samples of a model beside the training pictures that are nearest to them.

    Held-out pictures of the same data are the yardstick: 5 % of them are as near as what is counted.
    """
    refuse_existing([out, json_file], "--out or --json")
    if out.suffix.lower() != ".png":
        raise ValueError(f"the sheet is a .png, not {out}")
    pipe = load(model)
    report, shown = look_up(pipe, load_examples(TrainConfig(data=data, size=pipe.unet.config.sample_size)), prompts)
    out.parent.mkdir(parents=True, exist_ok=True)
    memorised_sheet(report, shown).save(out)
    print(memorised_text(report))
    write_json(json_file, report)


def publish(
    run: Annotated[Path, typer.Argument(help="A run's folder, as train leaves it.")],
    to: Annotated[str, typer.Option(help="The repository on the hub, OWNER/NAME; it is made, public, if need be.")],
) -> None:
    """Upload a run's model and its card, README.md, to the hub; nothing else of the run. Edit the card first.

    It takes the account that `hf auth login` left. A repository that is there already stays as private as it is.
    """
    print(publish_run(run, to))
