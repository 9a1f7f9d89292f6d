"""Commands that draw, read pictures, and translate."""

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image

from pipelines import TranslationPipeline, attribute, trace
from pipelines.drawing import label_font
from pipelines.prompts import draw_prompts
from pipelines.runs.processes import this_process
from pipelines.tracing.overlay import alignment_sheet, word_sheet
from ui.checks import check_prompt, parse_seed
from ui.commands.common import Guidance, Model, Overwrite, Steps, load, refuse_existing
from ui.export import export, stem
from unet_xattn import AttentionTrace
from unet_xattn.words import unknown_words

app = typer.Typer()

KEEP_HELP = "Keep the attention as a file, with this apart: mean (nothing), step, head or full (both)."


@app.command(epilog='Example: unet-xattn generate "a red circle left of a blue square" --seed 7 --out pictures')
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to draw.", show_default=False)] = None,
    prompts: Annotated[Path | None, typer.Option(help="Draw a file of prompts instead, a .txt or .jsonl.")] = None,
    model: Model = "shapes",
    seed: Annotated[str, typer.Option(help="Names the picture: 0 to 2^64 - 1.")] = "0",
    steps: Steps = None,
    guidance: Guidance = None,
    out: Annotated[Path, typer.Option(help="Folder for the picture and the sheet of heat maps.")] = Path("out"),
    keep: Annotated[str | None, typer.Option(help=KEEP_HELP)] = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw a picture, and a sheet with where each word landed.

    Or, with --prompts, the pictures of a file and a results.jsonl; stopped, the same command goes on where it was.
    """
    number = parse_seed(seed)
    if (prompt is None) == (prompts is None) or (prompts and (keep or overwrite)):
        raise ValueError("give a PROMPT or --prompts with a file of them, which goes without --keep and --overwrite")
    if prompts is not None:
        process = this_process()  # several of them share the file, each on a device of its own
        results = draw_prompts(load(model), prompts, out, number, steps, guidance, model)
        if process.is_main_process:
            print(results)
        process.destroy_process_group()
        return
    assert prompt is not None
    check_prompt(prompt)
    name = stem(prompt, number)
    files = [out / f"{name}.png", out / f"{name}-words.png"] + ([out / f"{name}.safetensors"] if keep else [])
    refuse_existing([] if overwrite else files, "--out, or --overwrite")
    label_font([prompt], 15)  # the sheet will need it
    pipe = load(model)
    if unknown := unknown_words(prompt, pipe.tokenizer):
        print(f"note: this model has never read: {', '.join(dict.fromkeys(unknown))}", file=sys.stderr)
    with trace(pipe, keep or "mean") as attention:
        generator = torch.Generator().manual_seed(number)
        picture = pipe(prompt, num_inference_steps=steps, guidance_scale=guidance, generator=generator).images[0]
    out.mkdir(parents=True, exist_ok=True)
    picture.save(files[0])
    word_sheet(attention).save(files[1])
    if keep:
        attention.save(files[2])
    print(*files, sep="\n")


@app.command("attribute", epilog='Example: unet-xattn attribute photo.png "a red circle" --out read')
def attribute_words(
    picture: Annotated[Path, typer.Argument(help="A picture.")],
    caption: Annotated[str, typer.Argument(help="What it shows.")],
    model: Model = "shapes",
    out: Annotated[Path, typer.Option(help="Folder for the sheet of heat maps and the trace.")] = Path("out"),
    keep: Annotated[str, typer.Option(help=KEEP_HELP)] = "mean",
    overwrite: Overwrite = False,
) -> None:
    """Read a picture that is already there: a sheet with where each word of its caption lies, and the trace."""
    check_prompt(caption)
    files = [out / f"{picture.stem}-words.png", out / f"{picture.stem}.safetensors"]
    refuse_existing([] if overwrite else files, "--out, or --overwrite")
    label_font([caption], 15)
    try:
        with Image.open(picture) as shown:
            shown.load()
            attention = attribute(load(model), shown, caption, keep=keep)
    except (SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{picture} cannot be read: {error}") from error
    out.mkdir(parents=True, exist_ok=True)
    word_sheet(attention).save(files[0])
    attention.save(files[1])
    print(*files, sep="\n")


@app.command("export", epilog="Example: unet-xattn export out/a-red-circle-seed0.safetensors --out red-circle")
def export_trace(
    file: Annotated[Path, typer.Argument(help="A trace, as generate --keep and attribute leave it.")],
    out: Annotated[Path, typer.Option(help="A new folder to write to.")],
    image: Annotated[int, typer.Option(help="Which of its pictures, from 0.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write everything a trace shows: pictures, a table, and a page that opens anywhere; no model is needed."""
    print(*export(AttentionTrace.load(file), out, image, overwrite), sep="\n")


@app.command(epilog='Example: unet-xattn translate "a red circle" --model runs/first --attention alignment.png')
def translate(
    text: Annotated[str, typer.Argument(help="What to translate.")],
    model: Model = "shapes",
    attention: Annotated[Path | None, typer.Option(help="Draw here where each word that was written looked.")] = None,
    beams: Annotated[int, typer.Option(help="Sentences followed at a time; 1 takes the likeliest word each time.")] = 4,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is already there.")] = False,
) -> None:
    """Say a text in the other language, from the same memory that pictures are drawn from."""
    refuse_existing([] if overwrite else [attention], "--attention, or --overwrite")
    check_prompt(text)
    (translation,) = TranslationPipeline.from_pretrained(model)(text, beams=beams)
    print(translation.text)
    if attention is not None:
        attention.parent.mkdir(parents=True, exist_ok=True)
        alignment_sheet(translation).save(attention)
