"""Commands that make training data, and look at it."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.data.emoji_folder import write_emoji, write_scenes
from pipelines.data.names import write_names
from pipelines.sources.check import examine
from pipelines.sources.contact_sheet import contact_sheet
from pipelines.sources.findings import check_on_bad
from pipelines.training.train import TrainConfig
from ui.commands.common import ON_BAD_HELP, SOURCES, Limit, Streaming, refuse_existing, write_json

app = typer.Typer(help="Make and look at training data.", no_args_is_help=True)


@app.command("check", epilog="Example: unet-xattn data check my-pictures --sheet sheet.png --json findings.json")
def data_check(
    source: Annotated[str, typer.Argument(help=f"Captioned pictures: {SOURCES}.")],
    on_bad: Annotated[str, typer.Option(help=ON_BAD_HELP)] = "fail",
    size: Annotated[int, typer.Option(help="Side of the pictures to train on, in pixels.")] = TrainConfig.size,
    sheet: Annotated[Path | None, typer.Option(help="Draw up to 64 of them with their captions on one .png.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every finding and word here as well.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; as many as there are cores if not given.")] = None,
    streaming: Streaming = False,
    limit: Limit = None,
) -> None:
    """Read every file of captioned pictures once and list all that is wrong or odd with them; nothing is changed.

    An error keeps a picture from being trained on, a warning asks for a look, a note says how something is handled.
    """
    check_on_bad(on_bad)
    refuse_existing([sheet, json_file], "name for --sheet or --json")
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise ValueError(f"the sheet is a PNG: {sheet} should end in .png")
    report = examine(source, size=size, streaming=streaming, limit=limit, workers=workers)
    print(*filter(None, [report.table()]), *report.summary(), sep="\n")
    write_json(json_file, report.as_json())
    if sheet is not None and report.rows:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        with open(sheet, "xb") as file:
            contact_sheet(report.rows).save(file, "PNG")
        print(sheet)
    report.raise_if_unfit(on_bad)


@app.command("emoji", epilog="Example: unet-xattn data emoji emoji-data")
def data_emoji(
    folder: Annotated[Path, typer.Argument(help="A new folder to write to.")],
    count: Annotated[int, typer.Option(help="How many pictures.")] = 600,
    scenes: Annotated[bool, typer.Option("--scenes", help="One to three of them a picture, with masks.")] = False,
) -> None:
    """Write a folder of captioned emoji on coloured grounds, ready for --data.

    The scenes are those of `train --data emoji`, which needs no folder.
    """
    write = write_scenes if scenes else write_emoji
    print(f"{write(folder, count)} pictures and metadata.jsonl in {folder}")


@app.command("names", epilog="Example: unet-xattn data names names.tsv")
def data_names(file: Annotated[Path, typer.Argument(help="A new .tsv to write.")]) -> None:
    """Write English and Chinese names of countries, languages, scripts, currencies and emoji, for train-text."""
    print(f"{write_names(file)} pairs in {file}")
