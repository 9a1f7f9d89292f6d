"""The command that draws a picture and edits it by its words."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ui import DEFAULT_MODEL
from ui.commands.common import (
    Device,
    Guidance,
    Model,
    Overwrite,
    Steps,
    load,
    open_picture,
    print_notes,
    refuse_existing,
)

if TYPE_CHECKING:
    from pipelines.edits import Edit

app = typer.Typer()

Edits = list[str]


@app.command(epilog='Example: unet-xattn edit "a big red heart above a cat" --replace cat=dog --out edited')
def edit(
    prompt: Annotated[str, typer.Argument(help="What the first picture shows.")],
    replace: Annotated[Edits, typer.Option(help="WORD=OTHER: another word in the place of one.")] = [],  # noqa: B006
    refine: Annotated[str | None, typer.Option(help="Another prompt: words of both stay where they are.")] = None,
    reweight: Annotated[Edits, typer.Option(help="WORD=2: louder, or softer below 1.")] = [],  # noqa: B006
    withhold: Annotated[Edits, typer.Option(help="A word that nothing may read.")] = [],  # noqa: B006
    paint: Annotated[Edits, typer.Option(help="WORD=X0,Y0,X1,Y1: a box to draw it in.")] = [],  # noqa: B006
    pin: Annotated[Edits, typer.Option(help="A word to hold where it is.")] = [],  # noqa: B006
    excite: Annotated[Edits, typer.Option(help="A word that the first picture neglects.")] = [],  # noqa: B006
    within: Annotated[Edits, typer.Option(help="Change only where this word is.")] = [],  # noqa: B006
    image: Annotated[
        Path | None, typer.Option(help="A picture file that the prompt describes: it is edited, and none drawn before.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    seed: Annotated[str, typer.Option(help="Random seed of both pictures, 0 to 2^64 - 1.")] = "0",
    steps: Steps = None,
    guidance: Guidance = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures, their heat maps and the change.")] = Path("out"),
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw a picture, and draw it again with edits.

    Things that no edit is about stay as they are. Each option but --refine can be given several times. It writes both
    pictures, their sheets of heat maps, and a picture of what changed.

    With --image the picture before is a file of yours, resized and cropped to what the model draws. Boxes are in pixels
    of that.
    """
    import torch
    from PIL import Image

    from pipelines import edits, trace
    from pipelines.checks import check_prompt, parse_seed
    from pipelines.drawing import label
    from pipelines.edited import picture_of_change
    from pipelines.pictures import fit_picture
    from pipelines.tracing.attribute import reading_shape
    from pipelines.tracing.overlay import word_sheet
    from ui.edit_text import read_box, read_weight
    from ui.export import stem
    from ui.notes import notes, trace_messages

    number = parse_seed(seed)
    check_prompt(prompt)
    asked: list[Edit] = [edits.refine(refine)] if refine is not None else []
    asked += [edits.replace(*_pair(text, "replace", "circle=star")) for text in replace]
    asked += [edits.reweight(word, read_weight(value)) for word, value in _pairs(reweight, "reweight", "red=2")]
    asked += [edits.withhold(word) for word in withhold]
    asked += [edits.paint(word, read_box(value)) for word, value in _pairs(paint, "paint", "circle=8,8,40,40")]
    asked += [edits.excite(word) for word in excite] + [edits.pin(word) for word in pin]
    asked += [edits.within(word) for word in within]
    if not asked:
        raise ValueError("nothing to edit: give --replace, --refine, --reweight, --withhold, --paint or --excite")
    name = stem(prompt, number)
    kinds = (".png", "-words.png", "-edited.png", "-edited-words.png", "-change.png")
    files = [out / f"{name}{kind}" for kind in kinds]
    refuse_existing([] if overwrite else files, "--out, or --overwrite")
    label(edits.edited_prompt(prompt, asked), 15)  # a missing font is found before the picture is drawn
    shown = None if image is None else open_picture(image)
    pipe = load(model, device)
    if shown is not None:
        shown = Image.fromarray(fit_picture(shown, reading_shape(pipe, *shown.size)))
    given: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance, "edits": asked, "image": shown}
    with trace(pipe, "head") as attention:
        edited = pipe(prompt, **given, generator=torch.Generator().manual_seed(number))
    exact = "" if edited.inexact is None else f"before any edit, the picture is kept to within {edited.inexact[0]:.2%}"
    print_notes([*notes(trace_messages(attention)), exact])
    out.mkdir(parents=True, exist_ok=True)
    pictures = [
        edited.before[0],
        word_sheet(edited.trace),
        edited.images[0],
        word_sheet(attention),
        picture_of_change(edited.before[0], edited.images[0]),
    ]
    for file, picture in zip(files, pictures, strict=True):
        picture.save(file)
    print(*files, sep="\n")


def _pair(text: str, option: str, example: str) -> tuple[str, str]:
    word, is_there, value = text.partition("=")
    if not is_there:
        raise ValueError(f"--{option} {text!r} has no '=': write it like {example}")
    return word.strip(), value.strip()


def _pairs(texts: list[str], option: str, example: str) -> list[tuple[str, str]]:
    return [_pair(text, option, example) for text in texts]
