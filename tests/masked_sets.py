"""Writers of small sets of pictures with masks in the layouts of published ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.scenes.shapes import scene
from pipelines.scenes.worlds import render

Picture = tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]
"""(h, w, 3) uint8; name of each class -> its mask (h, w) bool; where it is void (h, w) bool."""


def put(folder: Path, name: str, array: np.ndarray, **how: Any) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file, **how)


def numbers_of(picture: Picture, numbers: dict[str, int], void: int) -> np.ndarray:
    pixels, masks, unknown = picture
    labels = np.zeros(pixels.shape[:2], np.uint16)
    for name, mask in masks.items():
        labels[mask] = numbers[name]
    labels[unknown] = void
    return labels


def write_voc(folder: Path, pictures: dict[str, Picture], numbers: dict[str, int], split: str | None = "val") -> Path:
    for name, picture in pictures.items():
        put(folder, f"JPEGImages/{name}.jpg", picture[0], quality=95)
        indexed = Image.fromarray(numbers_of(picture, numbers, 255).astype(np.uint8), "L")
        indexed = Image.frombytes("P", indexed.size, indexed.tobytes())
        indexed.putpalette([(i * step) % 256 for i in range(256) for step in (37, 91, 151)])
        (folder / "SegmentationClass").mkdir(exist_ok=True)
        indexed.save(folder / "SegmentationClass" / f"{name}.png")
    if split:
        (folder / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(pictures) + "\n")
    return folder


def write_imagenet(
    folder: Path, pictures: dict[str, Picture], names: dict[str, str], split: str = "validation", deep: bool = False
) -> Path:
    """`names`: identifier of each class -> its name; a picture's name begins with the identifier of its class."""
    numbers = {names[identifier]: number for number, identifier in enumerate(sorted(names), 1)}
    for name, picture in pictures.items():
        labels = numbers_of(picture, numbers, 1000)
        channels = np.stack([labels % 256, labels // 256, np.zeros_like(labels)], axis=-1).astype(np.uint8)
        place = f"{name.partition('_')[0]}/{name}"
        put(folder, f"{split}/{place}.JPEG", picture[0], quality=95)
        put(folder, f"{split}-segmentation/{place}.png", labels if deep else channels)
    listed = "\n".join(sorted(names, reverse=True))
    (folder / "ImageNetS_categories_im50.txt").write_text(listed)
    lines = [f"{identifier} {name}, another name" for identifier, name in names.items()]
    (folder / "LOC_synset_mapping.txt").write_text("\n".join(lines))
    return folder


def write_coco(folder: Path, pictures: dict[str, Picture], split: str = "val2017", crowd: bool = True) -> Path:
    """Masks as run lengths; what is void as a crowd."""
    categories = sorted({name for _, masks, _ in pictures.values() for name in masks})
    annotations, images = [], []
    for number, (name, (pixels, masks, unknown)) in enumerate(pictures.items(), 7):
        put(folder, f"{split}/{name}.jpg", pixels, quality=95)
        height, width = pixels.shape[:2]
        images.append({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width})
        regions = [(label, mask, 0) for label, mask in masks.items()]
        regions += [(categories[0], unknown, 1)] if crowd and unknown.any() else []
        for label, mask, is_crowd in regions:
            ids = {"image_id": number, "category_id": 3 + 2 * categories.index(label), "iscrowd": is_crowd}
            annotations.append({**ids, "segmentation": run_lengths(mask)})
    content = {"categories": [{"id": 3 + 2 * i, "name": name} for i, name in enumerate(categories)]}
    content |= {"images": images, "annotations": annotations}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """As pycocotools defines them, not yet packed."""
    counts, inside = [0], False
    for value in mask.flatten(order="F").tolist():
        if value != inside:
            counts.append(0)
            inside = value
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def write_own(folder: Path, pictures: dict[str, Picture], captions: dict[str, str]) -> Path:
    rows = []
    for name, (pixels, masks, _) in pictures.items():
        put(folder, f"{name}.png", pixels)
        paths = {phrase: f"masks/{name}-{phrase.replace(' ', '-')}.png" for phrase in masks}
        for phrase, path in paths.items():
            put(folder, path, masks[phrase].astype(np.uint8) * 255)
        rows.append(json.dumps({"file_name": f"{name}.png", "text": captions[name], "masks": paths}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def pictures_of_scenes(count: int, kind: str = "two") -> dict[str, tuple[Picture, str]]:
    """Renders of scenes with the masks of their nouns, and their captions."""
    found = {}
    for index in range(count):
        described = scene(5, index, kind=kind)
        picture, masks = render(described, 64)
        words = [w for w in described.words if w.kind == "shape"]
        regions = {described.caption[w.start : w.end]: masks[list(w.objects)].max(axis=0) >= 0.5 for w in words}
        if len(regions) == len(words):
            found[f"{index:02}"] = (picture, regions, np.zeros(picture.shape[:2], bool)), described.caption
    return found


def own_folder(folder: Path, count: int = 6, kind: str = "two") -> Path:
    scenes = pictures_of_scenes(count, kind)
    folder.mkdir()
    pictures, captions = ({name: one[i] for name, one in scenes.items()} for i in (0, 1))
    return write_own(folder, pictures, captions)  # type: ignore[arg-type]


def boxes(seed: int, names: list[str], size: tuple[int, int] = (48, 64)) -> Picture:
    rng = np.random.default_rng(seed)
    masks = {}
    for i, name in enumerate(names):
        masks[name] = np.zeros(size, bool)
        masks[name][8:40, 4 + 30 * i : 28 + 30 * i] = True
    pixels = (100 + 40 * np.sum([(i + 1) * mask for i, mask in enumerate(masks.values())], axis=0)).astype(np.uint8)
    pixels = np.repeat(pixels[..., None], 3, axis=2) + rng.integers(0, 9, (*size, 3)).astype(np.uint8)
    unknown = np.zeros(size, bool)
    unknown[:4] = True
    return pixels, masks, unknown
