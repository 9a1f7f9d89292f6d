"""Commands that train, and those that look at a run or publish it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.training.config import RUNS, TextConfig, TrainConfig
from ui.commands.common import (
    MODEL_HELP,
    Device,
    Json,
    load,
    refuse_existing,
    require_png,
    settings_as_options,
    write_json,
)

app = typer.Typer()

Resume = Annotated[
    bool, typer.Option("--resume", help="Resume the run in --out with its settings; options given here replace them.")
]
AllowChanges = Annotated[
    bool, typer.Option("--allow-changes", help="Resume even if the data or the number of processes has changed.")
]


@app.command(epilog="Example: unet-xattn train --data shapes --out runs/first")
@settings_as_options(TrainConfig)
def train(
    config: TrainConfig, context: typer.Context, resume: Resume = False, allow_changes: AllowChanges = False
) -> None:
    """Train a model. On several GPUs: accelerate launch -m ui.cli train …"""
    from pipelines.training.train import train as train_model

    changes = _given(context, config) if resume else None
    print(f"the model is in {train_model(config, resume, changes, allow_changes)}")


@app.command("train-text", epilog="Example: unet-xattn train-text --pairs names.tsv --out runs/names")
@settings_as_options(TextConfig)
def train_text(
    config: TextConfig, context: typer.Context, resume: Resume = False, allow_changes: AllowChanges = False
) -> None:
    """Train the encoder and decoder alone, on pairs of sentences."""
    from pipelines.training.train_text import train_text as train_text_model

    changes = _given(context, config) if resume else None
    print(f"the model is in {train_text_model(config, resume, changes, allow_changes)}")


@app.command(epilog="Example: unet-xattn runs")
def runs(folder: Annotated[Path, typer.Argument(help="The folder that the runs are in.")] = RUNS) -> None:
    """List the training runs with their last figures.

    The loss is that at noise level 0.5.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from pipelines.runs.machine import in_words
    from ui.runs import list_runs

    names = ("state", "step", "data", "loss", "agreement", "pointing")
    listed = Table(Column("run", overflow="fold"), *names, box=box.SIMPLE_HEAD, pad_edge=False)
    found = list_runs(folder)
    for run in found:
        last = run.validation[-1] if run.validation else {}
        figures = [f"{last[name]:.3f}" if name in last else "" for name in ("loss 0.5", "agreement", "pointing")]
        cells = [run.name, run.state, f"{run.step}/{run.steps}", run.data, *figures]
        listed.add_row(*map(Text, cells))
    Console().print(listed if listed.row_count else Text(f"no runs in {folder}"))
    for run in found:
        if run.seconds_left is not None:
            last = (run.log[-1] if run.log else {}) | run.progress
            print(f"{run.name}: {last['pictures/s']:.0f} pictures/s, {in_words(run.seconds_left)} left")


@app.command("memorised", epilog="Example: unet-xattn memorised runs/emoji --data emoji-data --out memorised.png")
def memorised_pictures(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    data: Annotated[str, typer.Option(help="The captioned pictures that it was trained on.")],
    out: Annotated[Path, typer.Option(help="The sheet to write, a .png.")],
    json_file: Json = None,
    prompts: Annotated[int, typer.Option(help="Captions of each kind to draw.", min=1)] = 16,
    device: Device = None,
) -> None:
    """Look for copies of training pictures.

    The sheet shows generated pictures beside the nearest training pictures. A picture is counted if it is nearer than
    95 % of held-out pictures of the same data, which cannot be copies.
    """
    from pipelines.evaluation.memorise import memorised, memorised_sheet, memorised_text
    from pipelines.training.parts import load_examples

    refuse_existing([out, json_file], "--out or --json")
    require_png(out, "--out")
    pipe = load(model, device)
    report, shown = memorised(pipe, load_examples(TrainConfig(data=data, size=pipe.picture_size)), prompts)
    out.parent.mkdir(parents=True, exist_ok=True)
    memorised_sheet(report, shown).save(out)
    print(memorised_text(report))
    write_json(json_file, report)


@app.command("publish", epilog="Example: unet-xattn publish runs/first --to me/first")
def publish_model(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    to: Annotated[str, typer.Option(help="Repository on the hub, OWNER/NAME; a new one is public.")],
) -> None:
    """Upload a run's model and its card to the hub.

    Nothing else is uploaded. Edit the card, README.md, first. The account is that of `hf auth login`. An existing
    repository stays public or private.
    """
    from pipelines.training.card import publish

    print(publish(run, to))


def _given(context: typer.Context, config: TrainConfig | TextConfig) -> dict[str, Any]:
    """The settings whose options were typed, except --out, which only names the run."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    typed = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    return {name: value for name, value in vars(config).items() if name in typed - {"out"}}
