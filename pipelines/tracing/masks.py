"""Masks of words as files: PNG, label map, and JSON with the run lengths of COCO.

Shapes: h×w pixels.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unet_xattn import AttentionTrace
from unet_xattn.words import Word

NOTE = "A mask holds the edges of the picture as well as the attention."


def write_masks(attention: AttentionTrace, folder: Path, image: int = 0) -> list[Path]:
    """Write the masks of a recorded picture's words into a folder, and return the files.

    The files are `mask-NN-TEXT.png`, white where a word's mask is; `labels.png`, without overlap, the number of the
    word from 1, or 0; and `masks.json`, with each mask as run lengths in the format of COCO.

    Raises:
        ValueError: the trace holds no picture.
    """
    words, entries = attention.words_of(image), mask_entries(attention, image)
    files: list[Path] = []
    for number, word in enumerate(words, 1):
        name = re.sub(r"\W+", "-", word.text)[:40]
        files.append(folder / f"mask-{number:02}-{name}.png")
        mask_picture(attention, word, image).save(files[-1])
    files += [folder / "labels.png", folder / "masks.json"]
    label_map(attention, image).save(files[-2])
    content = {"prompt": attention.prompts[image], "note": NOTE, "masks": entries}
    files[-1].write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    return files


def mask_entries(attention: AttentionTrace, image: int = 0) -> list[dict[str, Any]]:
    """The mask of each word of a recorded picture: "id" from 1, "word", "area" and "segmentation", its run lengths."""
    masks = [(word, attention.mask(word, image=image).numpy()) for word in attention.words_of(image)]
    return [
        {"id": number, "word": word.text, "area": int(mask.sum()), "segmentation": run_lengths(mask)}
        for number, (word, mask) in enumerate(masks, 1)
    ]


def mask_picture(attention: AttentionTrace, word: Word, image: int = 0) -> Image.Image:
    """The mask of a word, white on black."""
    return Image.fromarray(attention.mask(word, image=image).numpy().astype(np.uint8) * 255)


def label_map(attention: AttentionTrace, image: int = 0) -> Image.Image:
    """The masks of all words without overlap: each pixel has the number of its word from 1, or 0."""
    kind = np.uint8 if len(attention.words_of(image)) < 256 else np.uint16
    return Image.fromarray((attention.masks(image=image).numpy() + 1).astype(kind))


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """A mask (h, w) in the format of COCO: its size, and lengths of runs down its columns, the first one outside."""
    flat = mask.flatten(order="F")
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *ends, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + counts}
