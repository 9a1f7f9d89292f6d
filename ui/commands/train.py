"""Commands that train, and what becomes of a run."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pipelines.evaluation.memorise import memorised as look_up
from pipelines.evaluation.memorise import memorised_sheet, memorised_text
from pipelines.runs.machine import in_words
from pipelines.training.card import publish as publish_run
from pipelines.training.config import TextConfig
from pipelines.training.parts import load_examples
from pipelines.training.train import TrainConfig
from pipelines.training.train import train as train_model
from pipelines.training.train_text import train_text as train_text_model
from ui.commands.common import ON_BAD_HELP, SOURCES, Limit, Streaming, load, refuse_existing, write_json
from ui.models import RUNS
from ui.runs import list_runs

app = typer.Typer()

Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with the run in --out, as it began but for the options given beside this."),
]
AllowChanges = Annotated[
    bool, typer.Option("--allow-changes", help="Resume though the data or the number of processes has changed.")
]
SaveEvery = Annotated[int, typer.Option(help="Steps between checkpoints beside those of --every; 0: none.")]
SaveMinutes = Annotated[float, typer.Option(help="Save when the last checkpoint is so many minutes old; 0: never.")]
Keep = Annotated[int, typer.Option(help="How many of the last checkpoints to keep.")]
Milestone = Annotated[int, typer.Option(help="Keep a checkpoint for good every so many steps; 0: none.")]


@app.command(epilog="Example: unet-xattn train --data shapes --out runs/first")
def train(
    context: typer.Context,
    data: Annotated[str, typer.Option(help=f"'shapes', 'emoji', or captioned pictures: {SOURCES}.")] = TrainConfig.data,
    out: Annotated[Path, typer.Option(help="Folder of the run: the model, checkpoints, samples, logs.")] = Path(
        TrainConfig.out
    ),
    begin_from: Annotated[
        str, typer.Option("--from", help="Begin with the weights and vocabulary of this model, not from nothing.")
    ] = TrainConfig.begin_from,
    distill: Annotated[
        str, typer.Option(help="Learn to draw in few steps what this model draws in many, without guidance.")
    ] = TrainConfig.distill,
    few_steps: Annotated[int, typer.Option(help="How many, for --distill.")] = TrainConfig.few_steps,
    steps: Annotated[int, typer.Option(help="Training steps.")] = TrainConfig.steps,
    learning_rate: Annotated[
        float,
        typer.Option(
            help="Its highest; it rises first, and falls at the end.",
            show_default="0.004, with --from 0.001, with --distill 0.0005",
        ),
    ] = TrainConfig.learning_rate,
    batch_size: Annotated[int, typer.Option(help="Pictures a step, over all processes.")] = TrainConfig.batch_size,
    seed: Annotated[int, typer.Option(help="Decides everything random in the run.")] = TrainConfig.seed,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = TrainConfig.size,
    text_encoder: Annotated[
        str, typer.Option(help="Read with this CLIP or T5, left as it is: a folder or a hub id.")
    ] = TrainConfig.text_encoder,
    vae: Annotated[
        str, typer.Option(help="Draw the latents of this VAE of diffusers, left as it is: a folder or a hub id.")
    ] = TrainConfig.vae,
    buckets: Annotated[
        bool, typer.Option("--buckets", help="Leave wide and upright pictures so, at about size² pixels.")
    ] = False,
    fit: Annotated[
        str, typer.Option(help="Bring pictures to shape: crop (keep the middle) or pad (with white).")
    ] = TrainConfig.fit,
    flip: Annotated[bool, typer.Option("--flip", help="Show half of the pictures as in a mirror.")] = False,
    on_bad: Annotated[str, typer.Option(help=ON_BAD_HELP)] = TrainConfig.on_bad,
    streaming: Streaming = TrainConfig.streaming,
    limit: Limit = TrainConfig.limit,
    caption_dropout: Annotated[
        float,
        typer.Option(
            help="Share of captions left out: a model has to know what to be guided away from.",
            show_default="0.1, for scenes and with --distill 0",
        ),
    ] = TrainConfig.caption_dropout,
    mask_weight: Annotated[
        float, typer.Option(help="Weight of mask supervision, where the data has masks.")
    ] = TrainConfig.mask_weight,
    every: Annotated[int, typer.Option(help="Steps between validations, samples and checkpoints.")] = TrainConfig.every,
    accumulate: Annotated[
        int, typer.Option(help="Work on each batch in so many parts: the same step in less memory.")
    ] = TrainConfig.accumulate,
    save_every: SaveEvery = TrainConfig.save_every,
    save_minutes: SaveMinutes = TrainConfig.save_minutes,
    keep: Keep = TrainConfig.keep,
    milestone: Milestone = TrainConfig.milestone,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
) -> None:
    """Train a model. Several GPUs: accelerate launch -m ui.cli train …"""
    config = TrainConfig(
        data=data,
        out=str(out),
        begin_from=begin_from,
        distill=distill,
        few_steps=few_steps,
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        seed=seed,
        size=size,
        text_encoder=text_encoder,
        vae=vae,
        buckets=buckets,
        fit=fit,
        flip=flip,
        on_bad=on_bad,
        streaming=streaming,
        limit=limit,
        caption_dropout=caption_dropout,
        mask_weight=mask_weight,
        every=every,
        accumulate=accumulate,
        save_every=save_every,
        save_minutes=save_minutes,
        keep=keep,
        milestone=milestone,
    )
    changes = _given(context, config) if resume else None
    print(f"the model is in {train_model(config, resume, changes, allow_changes)}")


@app.command(epilog="Example: unet-xattn runs")
def runs(folder: Annotated[Path, typer.Argument(help="The folder the runs are in.")] = RUNS) -> None:
    """List the training runs: which go on, how far each is, and its last figures; the loss is that at noise 0.5."""
    names = ("state", "step", "data", "loss", "agreement", "pointing")
    listed = Table(Column("run", overflow="fold"), *names, box=box.SIMPLE_HEAD, pad_edge=False)
    found = list_runs(folder)
    for run in found:
        last = run.validation[-1] if run.validation else {}
        figures = [f"{last[name]:.3f}" if name in last else "" for name in ("loss 0.5", "agreement", "pointing")]
        cells = [run.name, run.state, f"{run.step}/{run.steps}", run.data, *figures]
        listed.add_row(*map(Text, cells))
    Console().print(listed if listed.row_count else Text(f"there are no runs in {folder}"))
    for run in found:
        if run.seconds_left is not None:
            print(f"{run.name}: {run.log[-1]['pictures/s']:.0f} pictures/s, {in_words(run.seconds_left)} left")


@app.command("train-text", epilog="Example: unet-xattn train-text --pairs names.tsv --out runs/names")
def train_text(
    context: typer.Context,
    pairs: Annotated[Path, typer.Option(help="A .tsv with two columns, or a .jsonl of source and target; UTF-8.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: the model and its checkpoints.")] = Path(TextConfig.out),
    steps: Annotated[int, typer.Option(help="Training steps, at most.")] = TextConfig.steps,
    batch_size: Annotated[int, typer.Option(help="Pairs a step, over all processes.")] = TextConfig.batch_size,
    seed: Annotated[int, typer.Option(help="Decides everything random in the run.")] = TextConfig.seed,
    every: Annotated[int, typer.Option(help="Steps between validations.")] = TextConfig.every,
    patience: Annotated[int, typer.Option(help="Stop after so many without a better loss.")] = TextConfig.patience,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out lines that cannot be used.")] = False,
    save_every: SaveEvery = TextConfig.save_every,
    save_minutes: SaveMinutes = TextConfig.save_minutes,
    keep: Keep = TextConfig.keep,
    milestone: Milestone = TextConfig.milestone,
    resume: Resume = False,
    allow_changes: AllowChanges = False,
) -> None:
    """Train the encoder-decoder alone, on pairs of sentences."""
    config = TextConfig(
        pairs=str(pairs),
        out=str(out),
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        every=every,
        patience=patience,
        skip_bad=skip_bad,
        save_every=save_every,
        save_minutes=save_minutes,
        keep=keep,
        milestone=milestone,
    )
    changes = _given(context, config) if resume else None
    print(f"the model is in {train_text_model(config, resume, changes, allow_changes)}")


@app.command("memorised", epilog="Example: unet-xattn memorised runs/emoji --data emoji-data --out memorised.png")
def memorised_pictures(
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
    report, shown = look_up(pipe, load_examples(TrainConfig(data=data, size=pipe.picture_size)), prompts)
    out.parent.mkdir(parents=True, exist_ok=True)
    memorised_sheet(report, shown).save(out)
    print(memorised_text(report))
    write_json(json_file, report)


@app.command("publish", epilog="Example: unet-xattn publish runs/first --to me/first")
def publish_model(
    run: Annotated[Path, typer.Argument(help="A run's folder, as train leaves it.")],
    to: Annotated[str, typer.Option(help="The repository on the hub, OWNER/NAME; it is made, public, if need be.")],
) -> None:
    """Upload a run's model and its card, README.md, to the hub; nothing else of the run. Edit the card first.

    It takes the account that `hf auth login` left. A repository that is there already stays as private as it is.
    """
    print(publish_run(run, to))


def _given(context: typer.Context, config: TrainConfig | TextConfig) -> dict[str, Any]:
    """The settings somebody typed an option for, but --out, which only says where the run is."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    typed = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    return {name: value for name, value in vars(config).items() if name in typed and name != "out"}
