"""A run's model as others get it: a card that says what it is, and its folder on the hub.

What people wrote, captions and names, is text in a card and never markup.
"""

import json
import re
import shutil
import string
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, create_repo, upload_folder

from pipelines.evaluation.memorise import TITLES
from pipelines.runs.folder import LOG, SETTINGS, VALIDATION
from pipelines.runs.machine import in_words
from pipelines.runs.rows import read_rows
from pipelines.text_to_image import TextToImagePipeline

CARD, PICTURE = "README.md", "sample.png"
"""The card, and the sheet of sample pictures it shows: files beside a model's `model_index.json`."""


def publish(folder: Path, repo: str) -> str:
    """Upload the model of a run, with its card, to a repository of the hub, which is made if it is not there.

    What goes up is the pipeline, the card and its picture: no log, no checkpoint, no training picture. A card in the
    folder goes up as it is; a run that has none yet gets one for the upload.

    Returns:
        The address of the repository.

    Raises:
        ValueError: the folder holds no whole model, or no card nor a run to write one of.
        OSError: the hub did not take it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give that of a run, as `train` leaves it")
    pipe = TextToImagePipeline.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as name:
        upload = Path(name)
        pipe.save_pretrained(upload)
        if (folder / CARD).is_file():
            for file in (CARD, PICTURE):
                if (folder / file).is_file():
                    shutil.copyfile(folder / file, upload / file)
        else:
            write_card(folder, upload)
        address = create_repo(repo, exist_ok=True)
        upload_folder(repo_id=address.repo_id, folder_path=upload, commit_message=f"Model and card of {folder.name}")
    return str(address)


def write_card(run: Path, folder: Path) -> None:
    """Write the card of a run, and the sheet of its last sample pictures, into a folder.

    Raises:
        ValueError: it is no run; or there is a card already, which may be somebody's own.
    """
    settings_file = run / SETTINGS
    if not settings_file.is_file():
        raise ValueError(f"{run} is no run that a card could be written of: it has no {SETTINGS}")
    if (folder / CARD).exists():
        raise ValueError(f"{folder / CARD} is there already: it is left as it is")
    settings = json.loads(settings_file.read_text())
    log, validation = read_rows(run / LOG), read_rows(run / VALIDATION)
    last = validation[-1] if validation else {}
    sheet = run / "samples" / f"step-{last.get('step', 0):06d}.png"
    shown = settings["prompts"] if sheet.is_file() else []
    if shown:
        shutil.copyfile(sheet, folder / PICTURE)
    memorised_file = run / "samples" / "memorised.json"
    memorised = json.loads(memorised_file.read_text()) if memorised_file.is_file() else {}
    head = ModelCardData(library_name="diffusers", pipeline_tag="text-to-image", tags=["unet-xattn", "cross-attention"])
    text = "\n\n".join(_sections(run.resolve().name, settings, log[-1] if log else {}, last, memorised, shown))
    ModelCard(f"---\n{head.to_yaml()}\n---\n\n{text}\n").save(folder / CARD)


def _sections(
    name: str,
    settings: dict[str, Any],
    log: dict[str, Any],
    validation: dict[str, Any],
    memorised: dict[str, Any],
    shown: list[str],
) -> list[str]:
    """The card, paragraph by paragraph."""
    side = settings["config"]["size"]
    sections = [
        f"# {plain(name)}",
        f"Draws pictures of {side}×{side} pixels from sentences like those it was trained on. It needs unet-xattn, "
        "with which one can also see and measure which word drew which region:",
        "```python\nfrom pipelines import TextToImagePipeline\n\n"
        'pipe = TextToImagePipeline.from_pretrained("…")  # this folder, or its id on the hub\n'
        'pipe("…").images[0]\n```',
    ]
    if shown:
        captions = "\n".join(f"{i}. {plain(caption)}" for i, caption in enumerate(shown, 1))
        sections += [f"![Sample pictures]({PICTURE})", "Row by row, from captions of held-out examples:", captions]
    sections += ["## How it was made", *_made(settings, log, validation)]
    sections += ["## Figures", *_figures(validation)] if validation else []
    sections += ["## Does it copy?", _memorised(memorised)] if memorised else []
    sections += [
        "## Limits",
        "It knows the words and the kind of pictures it was trained on and nothing else; words it has never read do "
        "not help it. It was not checked for what its data may hold of people or of others' works. Nobody has chosen a "
        "licence for it yet: whoever publishes it adds `license: …` to the head of this file.",
    ]
    return sections


def _made(settings: dict[str, Any], log: dict[str, Any], validation: dict[str, Any]) -> list[str]:
    config = settings["config"]
    data = {"source": _no_path(config["data"])} | settings.get("data", {})
    step = max(log.get("step", 0), validation.get("step", 0))
    named = {key: _no_path(config[key]) for key in ("data", "out", "begin_from") if key in config}
    return [
        "\n".join(f"- {plain(key)} of the data: {plain(value)}" for key, value in data.items()),
        f"{step:,} of {config['steps']:,} steps of {config['batch_size']} pictures in "
        f"{in_words(log.get('seconds', 0))}, on {plain(settings.get('machine', 'a machine nobody noted'))}, "
        f"by {plain(settings.get('code', 'a version nobody noted'))}. Its settings:",
        _indented(json.dumps(config | named, indent=1)),
    ]


def _figures(validation: dict[str, Any]) -> list[str]:
    levels = sorted(key for key in validation if re.fullmatch(r"loss [0-9.]+", key))
    rows = [f"| {level[5:]} | {validation[level]:.4f} | {validation[f'{level} shuffled']:.4f} |" for level in levels]
    shares = []
    if "agreement" in validation:
        right = round(validation["agreement"] * validation["judged"])
        shares.append(f"{right} of {validation['judged']} samples show all their caption says, by exact rules.")
    if "pointing" in validation:
        shares.append(f"{100 * validation['pointing']:.1f} % of the words' maps peak where the word's thing is.")
    return [
        "Loss of the flow on held-out examples, by noise level. Where shuffled captions cost no more than the right "
        "ones, the model does not read its text.",
        "\n".join(["| noise | right captions | shuffled captions |", "|:--|--:|--:|", *rows]),
        *shares,
    ]


def _memorised(report: dict[str, Any]) -> str:
    lines = [
        f"Samples nearer to one of the {report['training_pictures']:,} training pictures than 95 % of "
        f"{report['held_out_pictures']['n']} held-out pictures are, 5 % if it copies nothing:"
    ]
    for name in ("training_captions", "validation_captions"):
        e = report[name]
        interval = f"{100 * e['low']:.0f}–{100 * e['high']:.0f} %"
        lines.append(f"- {TITLES[name]}: {e['k']} of {e['n']} ({interval})")
    return "\n".join([lines[0], "", *lines[1:]])


def plain(text: object) -> str:
    """Somebody's text as one line of Markdown that says just that: all punctuation is escaped, markup and HTML too."""
    return re.sub(rf"([{re.escape(string.punctuation)}])", r"\\\1", " ".join(str(text).split()))


def _indented(text: str) -> str:
    """Text as a block of code, which nothing in it can end."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _no_path(name: str) -> str:
    """A name without the folders of the machine it was used on."""
    return Path(name).name if Path(name).is_absolute() else name
