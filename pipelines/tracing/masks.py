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

NOTE = "A mask holds the edges of the picture as well as the attention."


def write_masks(attention: AttentionTrace, folder: Path, image: int = 0) -> list[Path]:
    """Write the masks of a recorded picture's words into a folder, and return the files.

    The files are `mask-NN-TEXT.png`, white where a word's mask is; `labels.png`, without overlap, the number of the
    word from 1, or 0; and `masks.json`, with each mask as run lengths in the format of COCO.

    Raises:
        ValueError: the trace holds no picture.
    """
    words, labels = attention.words_of(image), attention.masks(image=image)
    entries: list[dict[str, Any]] = []
    files: list[Path] = []
    for number, word in enumerate(words, 1):
        mask = attention.mask(word, image=image).numpy()
        name = re.sub(r"\W+", "-", word.text)[:40]
        files.append(folder / f"mask-{number:02}-{name}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(files[-1])
        entries.append({"id": number, "word": word.text, "area": int(mask.sum()), "segmentation": run_lengths(mask)})
    files += [folder / "labels.png", folder / "masks.json"]
    numbers = (labels.numpy() + 1).astype(np.uint8 if len(words) < 256 else np.uint16)
    Image.fromarray(numbers).save(files[-2])
    content = {"prompt": attention.prompts[image], "note": NOTE, "masks": entries}
    files[-1].write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    return files


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """A mask (h, w) in the format of COCO: its size, and lengths of runs down its columns, the first one outside."""
    flat = mask.flatten(order="F")
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *ends, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + counts}
