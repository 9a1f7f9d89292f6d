"""Publishing a run's model: the model card, and the upload to the hub.

Captions and names that people wrote are text in a card and never markup.
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
"""Files beside a model's `model_index.json`: the card, and the sheet of sample pictures that it shows."""


def publish(folder: Path, repo: str) -> str:
    """Upload the model of a run, with its card, to a repository on the hub. A missing repository is created.

    The upload has the pipeline, the card and its picture, but no log, no checkpoint and no training picture. A card in
    the folder is uploaded as it is; for a run without one, a card is written for the upload.

    Returns:
        The address of the repository.

    Raises:
        ValueError: the folder has no complete model, or neither a card nor a run to write one from.
        OSError: the upload failed.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the folder of a run, as `train` saves it")
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
        ValueError: `run` is not the folder of a run, or there is a card already, which somebody may have edited.
    """
    settings_file = run / SETTINGS
    if not settings_file.is_file():
        raise ValueError(f"{run} is not the folder of a run: it has no {SETTINGS} to write a card from")
    if (folder / CARD).exists():
        raise ValueError(f"{folder / CARD} exists already and is not overwritten: remove it to write a new card")
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
    """The paragraphs of a card."""
    side = settings["config"]["size"]
    sections = [
        f"# {plain(name)}",
        f"This model draws pictures of {side}×{side} pixels from sentences like those it was trained on. It needs "
        "unet-xattn, which also shows and measures which word drew which region:",
        "```python\nfrom pipelines import TextToImagePipeline\n\n"
        'pipe = TextToImagePipeline.from_pretrained("…")  # this folder, or its id on the hub\n'
        'pipe("…").images[0]\n```',
    ]
    if shown:
        captions = "\n".join(f"{i}. {plain(caption)}" for i, caption in enumerate(shown, 1))
        sections += [f"![Sample pictures]({PICTURE})", "The captions of held-out examples, row by row:", captions]
    sections += ["## How it was made", *_made(settings, log, validation)]
    sections += ["## Figures", *_figures(validation)] if validation else []
    sections += ["## Does it copy?", _memorised(memorised)] if memorised else []
    sections += [
        "## Limits",
        "The model knows only the words and the kind of pictures that it was trained on; other words do not help it. "
        "Its data was not checked for pictures of people or for works of others. No licence has been chosen yet: "
        "whoever publishes the model adds `license: …` to the head of this file.",
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
        f"{in_words(log.get('seconds', 0))}, on {plain(settings.get('machine', 'an unknown machine'))}, "
        f"by {plain(settings.get('code', 'an unknown version'))}. Its settings:",
        _indented(json.dumps(config | named, indent=1)),
    ]


def _figures(validation: dict[str, Any]) -> list[str]:
    levels = sorted(key for key in validation if re.fullmatch(r"loss [0-9.]+", key))
    rows = [f"| {level[5:]} | {validation[level]:.4f} | {validation[f'{level} shuffled']:.4f} |" for level in levels]
    shares = []
    if "agreement" in validation:
        right = round(validation["agreement"] * validation["judged"])
        shares.append(f"{right} of {validation['judged']} samples show everything in their caption, by exact rules.")
    if "pointing" in validation:
        shares.append(f"{100 * validation['pointing']:.1f} % of the words' maps peak on the word's object.")
    return [
        "The loss of the flow on held-out examples, by noise level. If it is no higher with shuffled captions than "
        "with the right ones, the model does not read its text.",
        "\n".join(["| noise | right captions | shuffled captions |", "|:--|--:|--:|", *rows]),
        *shares,
    ]


def _memorised(report: dict[str, Any]) -> str:
    lines = [
        f"The share of samples that are nearer to one of the {report['training_pictures']:,} training pictures than "
        f"95 % of {report['held_out_pictures']['n']} held-out pictures are. It is 5 % for a model that copies nothing:"
    ]
    for name in ("training_captions", "validation_captions"):
        e = report[name]
        interval = f"{100 * e['low']:.0f}–{100 * e['high']:.0f} %"
        lines.append(f"- {TITLES[name]}: {e['k']} of {e['n']} ({interval})")
    return "\n".join([lines[0], "", *lines[1:]])


def plain(text: object) -> str:
    """Text that somebody wrote, as one line of Markdown: all punctuation is escaped, and so are markup and HTML."""
    return re.sub(rf"([{re.escape(string.punctuation)}])", r"\\\1", " ".join(str(text).split()))


def _indented(text: str) -> str:
    """Text as an indented block of code, which no content can end."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _no_path(name: str) -> str:
    """A name without the folders of the machine that the run was on."""
    return Path(name).name if Path(name).is_absolute() else name
