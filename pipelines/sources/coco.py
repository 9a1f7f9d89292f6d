"""The instances of COCO -> pictures with masks.

Shapes: h×w pixels of a picture, N classes in it.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pipelines.sources.files import leads_elsewhere
from pipelines.sources.findings import DataError, printable
from pipelines.sources.masked_files import Masked, MaskedFile, check_size, load_picture, named

FINE = 8
"""Samples per pixel side of a polygon. Where pixels are half covered, pycocotools' masks may differ."""


def annotation_files(folder: Path, first: str = "val") -> list[Path]:
    """The files of instances of a set, those of one split first."""
    found = [file for place in (folder / "annotations", folder) for file in sorted(place.glob("instances*.json"))]
    return sorted(found, key=lambda file: first not in file.name)


def read_coco(folder: Path, train: bool) -> list[MaskedFile]:
    """The pictures with instances of the split for training or for validation; of another one if it is missing.

    All instances of a class are one thing. Crowds are void.

    Raises:
        DataError: the file is no list of instances, or a picture is missing.
    """
    file = annotation_files(folder, "train" if train else "val")[0]
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        classes = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        pictures = {
            entry["id"]: (str(entry["file_name"]), entry["height"], entry["width"]) for entry in content["images"]
        }
        shown: dict[Any, list[tuple[str, Any, bool]]] = defaultdict(list)
        for entry in content["annotations"]:
            instance = classes[entry["category_id"]], entry["segmentation"], bool(entry.get("iscrowd"))
            shown[entry["image_id"]].append(instance)
        places = [folder / file.stem.removeprefix("instances_"), folder / "images", folder]
        places.insert(1, places[1] / places[0].name)
        found = []
        for number, instances in shown.items():
            name, height, width = pictures[number]
            path = next((place / name for place in places if (place / name).is_file()), None)
            if path is None or leads_elsewhere(name):
                raise DataError(f"{printable(name)} is missing: {file.name} has its instances")
            found.append(MaskedFile(name, _Loader(path, int(height), int(width), instances)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{file.name} is not a file of COCO's instances: {what[:150]}") from error
    return sorted(found, key=lambda one: one.name)


class _Loader:
    """Reads one picture and draws its masks."""

    def __init__(self, file: Path, height: int, width: int, instances: list[tuple[str, Any, bool]]):
        self.file, self.size, self.instances = file, (height, width), instances

    def __call__(self) -> Masked:
        picture = load_picture(self.file)
        check_size(self.file, picture, *self.size)
        names = sorted({name for name, _, crowd in self.instances if not crowd})
        masks, void = np.zeros((len(names), *self.size), bool), np.zeros(self.size, bool)
        for name, segmentation, crowd in self.instances:
            try:
                drawn = draw(segmentation, *self.size)
            except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
                raise DataError(f"a mask of {printable(self.file.name)} is wrong: {str(error)[:150]}") from error
            target = void if crowd else masks[names.index(name)]
            target |= drawn
        return named(picture, names, masks, void & ~masks.any(axis=0))


def draw(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A segmentation of COCO, polygons or run lengths, as a mask (h, w) bool.

    Raises:
        ValueError, TypeError, KeyError or IndexError: it is neither.
    """
    if isinstance(segmentation, dict):
        counts, size = segmentation["counts"], tuple(segmentation["size"])
        if size != (height, width):
            raise ValueError(f"its run lengths are of {size[1]}×{size[0]} pixels, not of {width}×{height}")
        return from_run_lengths(unpacked(counts) if isinstance(counts, str) else counts, height, width)
    mask = np.zeros((height, width), bool)
    for polygon in segmentation:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon has pairs of x and y, three or more, not {len(polygon)} numbers")
        points = np.array(polygon, dtype=float).reshape(-1, 2).clip(0, (width, height))
        if not np.isfinite(points).all():
            raise ValueError("a polygon has a corner that is no number")
        left, top = np.floor(points.min(axis=0)).astype(int).tolist()
        right, bottom = np.ceil(points.max(axis=0)).astype(int).tolist()
        canvas = Image.new("L", ((right - left + 1) * FINE, (bottom - top + 1) * FINE))
        # Pillow's polygon includes its border, so it is half a sample too large.
        outline = (points - (left, top)) * FINE - 0.5
        ImageDraw.Draw(canvas).polygon([tuple(point) for point in outline.tolist()], fill=255)
        covered = np.asarray(canvas.reduce(FINE)) >= 128
        mask[top : bottom + 1, left : right + 1] |= covered[: height - top, : width - left]
    return mask


def from_run_lengths(counts: list[int], height: int, width: int) -> np.ndarray:
    """Lengths of runs down the columns, the first one outside -> the mask (h, w) bool."""
    lengths = np.array(counts, dtype=np.int64)
    if lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != height * width:
        raise ValueError(f"its run lengths do not add up to {width}×{height} pixels")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape((height, width), order="F")


def unpacked(text: str) -> list[int]:
    """The run lengths in COCO's packed text.

    Five bits a character, the lowest first, and a sixth that says whether more follow; from the fourth number on, the
    difference from the number two places before.
    """
    counts: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"its run lengths have the character {character!r}, which means nothing")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        number -= (1 << shift) if bits & 16 else 0  # a negative number
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number = shift = 0
    if shift:
        raise ValueError("its run lengths end within a number")
    return counts
