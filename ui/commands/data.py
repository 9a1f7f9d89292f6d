"""Commands that make training data, and look at it."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pipelines.training.config import SOURCES, TrainConfig
from ui.commands.common import Json, refuse_existing, require_png, settings_as_options, write_json

app = typer.Typer(help="Make training data, and look at it.", no_args_is_help=True)


@app.command("check", epilog="Example: unet-xattn data check my-pictures --sheet sheet.png --json findings.json")
@settings_as_options(TrainConfig, "size", "on_bad", "streaming", "limit")
def data_check(
    config: TrainConfig,
    source: Annotated[str, typer.Argument(help=f"Captioned pictures: {SOURCES}.")],
    sheet: Annotated[Path | None, typer.Option(help="Draw up to 64 of them with their captions on one .png.")] = None,
    json_file: Json = None,
    workers: Annotated[int | None, typer.Option(help="Number of processes; by default one per core.")] = None,
) -> None:
    """Read every file of captioned pictures once and list all problems. Nothing is changed.

    A picture with an error cannot be trained on, a warning needs a look, and a note says how something is handled.
    """
    from pipelines.sources.check import examine
    from pipelines.sources.contact_sheet import contact_sheet

    refuse_existing([sheet, json_file], "name for --sheet or --json")
    require_png(sheet, "--sheet")
    report = examine(source, size=config.size, streaming=config.streaming, limit=config.limit, workers=workers)
    print(*filter(None, [report.table()]), *report.summary(), sep="\n")
    write_json(json_file, report.as_json())
    if sheet is not None and report.rows:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(report.rows).save(sheet)
        print(sheet)
    report.raise_if_unfit(config.on_bad)


@app.command("preview", epilog="Example: unet-xattn data preview shapes --out sheet.png")
@settings_as_options(TrainConfig, "seed", "size", "fit", "flip", "on_bad", "streaming", "limit")
def data_preview(
    config: TrainConfig,
    source: Annotated[str, typer.Argument(help=f"'shapes', 'emoji', 'everyday', or captioned pictures: {SOURCES}.")],
    out: Annotated[Path, typer.Option(help="The sheet to write, a .png.")] = Path("sheet.png"),
    count: Annotated[int, typer.Option(help="Number of pictures.", min=1)] = 64,
) -> None:
    """Draw the first pictures that training gets, with their captions, on one sheet."""
    from PIL import Image

    from pipelines.sources.contact_sheet import captioned_sheet
    from pipelines.training.parts import load_examples

    refuse_existing([out], "--out")
    require_png(out, "--out")
    examples = load_examples(replace(config, data=source))
    shown = [examples.example(place) for place in range(count)]
    out.parent.mkdir(parents=True, exist_ok=True)
    captioned_sheet([(Image.fromarray(example.picture), example.caption) for example in shown]).save(out)
    print(out)


@app.command("emoji", epilog="Example: unet-xattn data emoji emoji-data")
def data_emoji(
    folder: Annotated[Path, typer.Argument(help="A new folder to write to.")],
    count: Annotated[int, typer.Option(help="Number of pictures.")] = 600,
    scenes: Annotated[bool, typer.Option("--scenes", help="Draw one to three emoji per picture, with masks.")] = False,
) -> None:
    """Write a folder of captioned emoji on coloured grounds for `train --data FOLDER`.

    The scenes are those of `train --data emoji`, which needs no folder.
    """
    from pipelines.data.emoji_folder import write_emoji, write_scenes

    write = write_scenes if scenes else write_emoji
    print(f"{write(folder, count)} pictures and metadata.jsonl in {folder}")
