"""Commands that draw pictures, find words in them, and translate."""

from pathlib import Path
from typing import Annotated

import typer

from ui import DEFAULT_MODEL
from ui.commands.common import (
    AnyModel,
    Device,
    Guidance,
    Model,
    Overwrite,
    Steps,
    load,
    load_any,
    open_picture,
    print_notes,
    refuse_existing,
)

app = typer.Typer()

OutputMaps = Annotated[
    bool, typer.Option("--output-maps", help="Record output-space maps too, for export --reading output.")
]
KEEP_HELP = "Save the attention too, separately by: mean (neither), step, head or full (both)."


@app.command(epilog='Example: unet-xattn generate "a big red heart above a cat" --seed 7 --out pictures')
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to draw.", show_default=False)] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Draw all prompts of this file instead, a .txt or .jsonl.")
    ] = None,
    model: AnyModel = DEFAULT_MODEL,
    seed: Annotated[str, typer.Option(help="Random seed of the picture, 0 to 2^64 - 1.")] = "0",
    steps: Steps = None,
    guidance: Guidance = None,
    out: Annotated[Path, typer.Option(help="Folder for the picture and the sheet of heat maps.")] = Path("out"),
    keep: Annotated[str | None, typer.Option(help=KEEP_HELP)] = None,
    output_maps: OutputMaps = False,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw a picture, and a sheet with the heat map of each word.

    With --prompts: draw the pictures of a file and write results.jsonl. If it is stopped, the same command resumes it.
    """
    import torch

    from pipelines import trace
    from pipelines.checks import check_prompt, parse_seed
    from pipelines.drawing import label
    from pipelines.tracing.overlay import word_sheet
    from ui.export import stem
    from ui.notes import notes, trace_messages

    number = parse_seed(seed)
    if (prompt is None) == (prompts is None) or (prompts and (keep or overwrite)):
        raise ValueError("give a PROMPT or --prompts FILE, the latter without --keep and --overwrite")
    if output_maps and not keep:
        raise ValueError("--output-maps are saved with the attention: give --keep, too")
    if prompts is not None:
        _generate_all(prompts, model, number, steps, guidance, out, device)
        return
    assert prompt is not None
    check_prompt(prompt)
    name = stem(prompt, number)
    files = [out / f"{name}.png", out / f"{name}-words.png"] + ([out / f"{name}.safetensors"] if keep else [])
    refuse_existing([] if overwrite else files, "--out, or --overwrite")
    label(prompt, 15)  # a missing font is found before the picture is drawn
    pipe = load_any(model, device)
    asked = {"num_inference_steps": steps, "guidance_scale": guidance}
    given = {name: value for name, value in asked.items() if value is not None}
    with trace(pipe, keep or "mean", output=output_maps) as attention:
        picture = pipe(prompt=prompt, **given, generator=torch.Generator().manual_seed(number)).images[0]
    print_notes(notes(trace_messages(attention)))
    out.mkdir(parents=True, exist_ok=True)
    picture.save(files[0])
    word_sheet(attention).save(files[1])
    if keep:
        attention.save(files[2])
    print(*files, sep="\n")


def _generate_all(
    prompts: Path, model: str, seed: int, steps: int | None, guidance: float | None, out: Path, device: str | None
) -> None:
    from pipelines.prompts import draw_prompts
    from pipelines.runs.processes import this_process

    process = this_process()  # several processes share the file, each on its own device
    if process.num_processes > 1 and device is not None:
        raise ValueError("several processes use a device each: leave out --device")
    results = draw_prompts(load(model, device), prompts, out, seed, steps, guidance, model)
    if process.is_main_process:
        print(results)
    process.destroy_process_group()


@app.command("attribute", epilog='Example: unet-xattn attribute photo.png "a red circle" --out read')
def attribute_words(
    picture: Annotated[Path, typer.Argument(help="A picture file.")],
    caption: Annotated[str, typer.Argument(help="What it shows.")],
    model: AnyModel = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option(help="Folder for the sheet of heat maps and the trace.")] = Path("out"),
    keep: Annotated[str, typer.Option(help=KEEP_HELP)] = "mean",
    concepts: Annotated[
        str | None, typer.Option(help='What else may be in it, with commas: "sky,grass". The caption may then be "".')
    ] = None,
    output_maps: OutputMaps = False,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Find the words of a caption in an existing picture.

    It writes a sheet of heat maps, and the trace. With --concepts it also writes which part of the picture each of them
    is, as a sheet and as a map of numbers from 1, with 0 for none; and it prints their areas.
    """
    import numpy as np
    from PIL import Image

    from pipelines import attribute
    from pipelines.checks import check_text
    from pipelines.drawing import label
    from pipelines.tracing.overlay import concept_areas, concept_sheet, word_sheet
    from ui.notes import notes, trace_messages

    check_text(caption, "caption")
    names = [name.strip() for name in (concepts or "").split(",") if name.strip()]
    if concepts is not None and not names:
        raise ValueError("--concepts names nothing: give names with commas, such as sky,grass")
    kinds = ["-words.png", ".safetensors"] + (["-concepts.png", "-labels.png"] if names else [])
    files = [out / f"{picture.stem}{kind}" for kind in kinds]
    refuse_existing([] if overwrite else files, "--out, or --overwrite")
    label(" ".join([caption, *names]), 15)
    shown = open_picture(picture)
    pipe = load_any(model, device)
    attention = attribute(pipe, shown, caption, keep=keep, output=output_maps, concepts=names)
    print_notes(notes(trace_messages(attention)))
    out.mkdir(parents=True, exist_ok=True)
    word_sheet(attention).save(files[0])
    attention.save(files[1])
    if names:
        concept_sheet(attention).save(files[2])
        labels = attention.masks(branch="concepts").numpy() + 1
        Image.fromarray(labels.astype(np.uint8 if len(names) < 256 else np.uint16)).save(files[3])
    print(*files, sep="\n")
    for number, (name, area) in enumerate(concept_areas(attention).items() if names else (), 1):
        print(f"{number} {name}: {area}")


@app.command("export", epilog="Example: unet-xattn export out/a-red-circle-seed0.safetensors --out red-circle")
def export_trace(
    file: Annotated[Path, typer.Argument(help="A trace that generate --keep or attribute saved.")],
    out: Annotated[Path, typer.Option(help="A new folder to write to.")],
    image: Annotated[int, typer.Option(help="Index of the picture in the trace, from 0.")] = 0,
    masks: Annotated[bool, typer.Option("--masks", help="Write the outlines of what each word drew, too.")] = False,
    reading: Annotated[
        str, typer.Option(help="Maps of words as: share, text, contrast, calibrated (with --keep head) or output.")
    ] = "share",
    overwrite: Overwrite = False,
) -> None:
    """Write pictures, a table and a page of a trace.

    The page is one file that opens in any browser. No model is needed.
    """
    from ui.export import export
    from ui.notes import notes, trace_messages
    from unet_xattn import AttentionTrace

    attention = AttentionTrace.load(file)
    print(*export(attention, out, image, overwrite, masks, reading), sep="\n")
    print_notes(notes(trace_messages(attention, image)))


@app.command(epilog='Example: unet-xattn translate "a red circle" --model runs/first --attention alignment.png')
def translate(
    text: Annotated[str, typer.Argument(help="What to translate.")],
    model: Model = DEFAULT_MODEL,
    attention: Annotated[
        Path | None, typer.Option(help="Draw what each translated token attends to, as a .png.")
    ] = None,
    beams: Annotated[int, typer.Option(help="Beam size; 1 is greedy decoding.")] = 4,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Translate a text into the other language.

    The decoder reads the same memory as the UNet does when it draws.
    """
    from pipelines import TranslationPipeline
    from pipelines.checks import check_text
    from pipelines.runs.processes import find_device
    from pipelines.tracing.overlay import alignment_sheet
    from ui.notes import notes, text_messages

    refuse_existing([] if overwrite else [attention], "--attention, or --overwrite")
    check_text(text)
    place = find_device(device)
    pipe = TranslationPipeline.from_pretrained(model).to(place)
    (translation,) = pipe(text, beams=beams)
    print_notes(notes(text_messages(text, pipe.tokenizer)))
    print(translation.text)
    if attention is not None:
        attention.parent.mkdir(parents=True, exist_ok=True)
        alignment_sheet(translation).save(attention)
