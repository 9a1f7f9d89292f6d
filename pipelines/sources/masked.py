"""Sets of pictures with masks, in the layouts of PASCAL VOC, COCO and ImageNet-S, and our own folders with masks.

Shapes: h×w pixels of a picture, N things in it.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipelines.picture_files import PictureError, open_picture, picture_errors
from pipelines.pictures import fit_mask
from pipelines.pixels import displayed, opaque
from pipelines.sources.coco import annotation_files, read_coco
from pipelines.sources.findings import ERROR, DataError, of_severity, printable
from pipelines.sources.masked_files import (
    Masked,
    MaskedFile,
    check_size,
    find_picture,
    load_numbers,
    load_picture,
    named,
    unreadable,
)
from pipelines.sources.read import read_source
from pipelines.sources.rows import Row
from unet_xattn.words import phrase_spans

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog"),
    *("horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"),
)
"""What the numbers from 1 mean."""

VOC_VOID, IMAGENET_VOID = 255, 1000
VOC_SPLITS = ("val", "trainval", "train")
IMAGENET_SPLITS = ("validation", "train-semi")
IMAGENET_NAMES = ("LOC_synset_mapping.txt", "words.txt")
"""Files of ImageNet with the names of its classes: "n01440764 tench, Tinca tinca"."""

LAYOUTS = (
    "JPEGImages and SegmentationClass (PASCAL VOC), annotations/instances_*.json (COCO), validation and "
    "validation-segmentation (ImageNet-S), or a metadata.jsonl with masks"
)


def read_masked(folder: str | os.PathLike, train: bool = False) -> list[MaskedFile]:
    """The pictures with masks of a folder in one of the `LAYOUTS`, sorted by name.

    Where there are no captions, they name the classes.

    Args:
        train: of several splits, read the one for training instead of that for validation.

    Raises:
        DataError: the folder has no such layout, or a file of it is missing or damaged.
    """
    path, shown = Path(folder), printable(str(folder))
    if not path.is_dir():
        raise DataError(f"{shown} is not a folder: expected one with {LAYOUTS}")
    readers: list[tuple[bool, Callable[[Path, bool], list[MaskedFile]]]] = [
        ((path / "SegmentationClass").is_dir(), _voc),
        (bool(annotation_files(path)), read_coco),
        (any((path / f"{split}-segmentation").is_dir() for split in IMAGENET_SPLITS), _imagenet),
        (any(path.glob("metadata.*")), _own),
    ]
    read = next((read for is_there, read in readers if is_there), None)
    if read is None:
        raise DataError(f"{shown} has masks in no layout that is read: expected {LAYOUTS}")
    try:
        files = read(path, train)
    except OSError as error:
        raise DataError(f"{shown} cannot be read: {error}") from error
    if not files:
        raise DataError(f"{shown} has no picture with masks")
    return files


def spread(files: Sequence[MaskedFile], count: int | None) -> list[MaskedFile]:
    """So many pictures, evenly spread over a set, which may be sorted by class; all if None."""
    count = len(files) if count is None else min(count, len(files))
    return [files[i * len(files) // count] for i in range(count)]


def _voc(folder: Path, train: bool) -> list[MaskedFile]:
    """PASCAL VOC: SegmentationClass/NAME.png has a number of each pixel, 255 where it is void."""
    lists = [folder / "ImageSets" / "Segmentation" / f"{split}.txt" for split in VOC_SPLITS[:: -1 if train else 1]]
    chosen = next((file for file in lists if file.is_file()), None)
    if chosen is None:
        stems = [file.stem for file in (folder / "SegmentationClass").glob("*.png")]
    else:
        stems = chosen.read_text(encoding="utf-8").split()
    classes = dict(enumerate(VOC_CLASSES, 1))
    return [
        MaskedFile(
            stem,
            partial(
                _load_labelled,
                find_picture(folder / "JPEGImages", stem),
                folder / "SegmentationClass" / f"{stem}.png",
                classes,
                VOC_VOID,
            ),
        )
        for stem in sorted(stems)
    ]


def _imagenet(folder: Path, train: bool) -> list[MaskedFile]:
    """ImageNet-S: validation-segmentation/CLASS/NAME.png has red + 256 · green of each pixel, 1000 where it is void.

    Classes are numbered from 1 in the order of their identifiers.
    """
    splits = IMAGENET_SPLITS[:: -1 if train else 1]
    split = next(split for split in splits if (folder / f"{split}-segmentation").is_dir())
    masks = sorted((folder / f"{split}-segmentation").glob("*/*.png"))
    names = _imagenet_names(folder)
    listed = sorted(folder.glob("ImageNetS_categories_*.txt"))
    if listed:
        identifiers = sorted(listed[0].read_text(encoding="utf-8").split())
    else:
        identifiers = sorted(place.name for place in (folder / f"{split}-segmentation").iterdir() if place.is_dir())
        if len(identifiers) not in (50, 300, 919):
            what = f"{len(identifiers)} classes, not 50, 300 or 919, so their numbers are not known"
            raise DataError(f"{split}-segmentation has {what}: put ImageNet-S's ImageNetS_categories_*.txt beside it")
    if unnamed := [identifier for identifier in identifiers if identifier not in names]:
        raise DataError(f"the names of the classes are not known, such as {unnamed[0]}: put {IMAGENET_NAMES[0]} beside")
    classes = {number: names[identifier] for number, identifier in enumerate(identifiers, 1)}
    return [
        MaskedFile(
            f"{mask.parent.name}/{mask.stem}",
            partial(
                _load_labelled, find_picture(folder / split / mask.parent.name, mask.stem), mask, classes, IMAGENET_VOID
            ),
        )
        for mask in masks
    ]


def _imagenet_names(folder: Path) -> dict[str, str]:
    """Identifier of a class -> the first of its names."""
    file = next((folder / name for name in IMAGENET_NAMES if (folder / name).is_file()), None)
    if file is None:
        return {}
    pairs = (line.split(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines())
    return {pair[0]: pair[1].partition(",")[0].strip() for pair in pairs if len(pair) == 2}


def _load_labelled(picture_file: Path, label_file: Path, classes: dict[int, str], void: int) -> Masked:
    """A picture with a label map: a number of each pixel, 0 for the background."""
    picture, numbers = load_picture(picture_file), load_numbers(label_file)
    if numbers.ndim == 3 and void == IMAGENET_VOID:
        numbers = numbers[..., 0] + 256 * numbers[..., 1].astype(np.int64)
    shown = printable(f"{label_file.parent.name}/{label_file.name}")
    if numbers.ndim != 2:
        raise DataError(f"{shown} has colours instead of one number of each pixel: it must be the original label map")
    check_size(label_file, picture, *numbers.shape)
    found = [int(number) for number in np.unique(numbers) if number not in (0, void)]
    if unknown := [number for number in found if number not in classes]:
        raise DataError(f"{shown} has the number {unknown[0]}, which is no class: there are {len(classes)}")
    masks = np.array([numbers == number for number in found]).reshape(-1, *numbers.shape)
    return named(picture, [classes[number] for number in found], masks, numbers == void)


def _own(folder: Path, train: bool) -> list[MaskedFile]:
    """A folder of captioned pictures of which some have masks of phrases of their captions."""
    source = read_source(folder)
    if wrong := of_severity(source.findings, ERROR):
        raise DataError(f"{printable(str(folder))} has errors, which `unet-xattn data check` lists: {wrong[0]}")
    rows = sorted((row for row in source.rows if row.masks), key=lambda row: row.name)
    return [MaskedFile(row.name, partial(_load_row, row)) for row in rows]


def _load_row(row: Row) -> Masked:
    try:
        file = open_picture(row.read())
        with picture_errors():
            picture = opaque(displayed(file)[0], "white")
            size = picture.height, picture.width
            masks = [fit_mask(open_picture(read()), picture.size, size) >= 128 for read in row.masks.values()]
    except (OSError, PictureError) as error:
        raise unreadable(Path(row.name), error) from error
    spans = [phrase_spans(phrase, row.caption) for phrase in row.masks]
    if strange := [phrase for phrase, places in zip(row.masks, spans, strict=True) if not places]:
        raise DataError(f"{printable(row.name)} has a mask of {strange[0]!r}, which is no word of its caption")
    first = tuple(places[0] for places in spans)
    return Masked(picture, row.caption, tuple(row.masks), first, np.array(masks), np.zeros(size, bool))
