"""Pictures whose regions are known, and the files they are read from.

Shapes: h×w pixels of a picture, N things in it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.picture_files import PictureError, open_picture, picture_errors
from pipelines.pixels import displayed, opaque
from pipelines.sources.findings import DataError, printable


@dataclass(frozen=True)
class Masked:
    """A picture, its caption, and the masks of things that the caption names.

    labels: the name of each thing. spans: its characters [start, end) in the caption. masks: (N, h, w) bool, which may
    overlap. void: (h, w) bool, where it is not known what is there.
    """

    picture: Image.Image
    caption: str
    labels: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    masks: np.ndarray
    void: np.ndarray


@dataclass(frozen=True)
class MaskedFile:
    """A picture of a set. It is not read before `load`, which raises DataError in one line."""

    name: str
    load: Callable[[], Masked]


def named(picture: Image.Image, names: Sequence[str], masks: np.ndarray, void: np.ndarray) -> Masked:
    """A picture without a caption gets one of its things' names: "a photo of a dog, a car and an apple"."""
    caption, spans = "a photo", []
    for i, name in enumerate(names):
        caption += " of " if i == 0 else " and " if i == len(names) - 1 else ", "
        caption += "an " if name[0].lower() in "aeiou" else "a "
        spans.append((len(caption), len(caption) + len(name)))
        caption += name
    return Masked(picture, caption, tuple(names), tuple(spans), masks, void)


def load_picture(file: Path) -> Image.Image:
    """A picture upright, in sRGB and opaque. Raises DataError."""
    try:
        data = file.read_bytes()
        picture = open_picture(data)
        with picture_errors():
            return opaque(displayed(picture)[0], "white")
    except (OSError, PictureError) as error:
        raise unreadable(file, error) from error


def load_numbers(file: Path) -> np.ndarray:
    """The numbers of a label map, (h, w) or (h, w, channels): of a palette the indices. Raises DataError."""
    try:
        picture = open_picture(file.read_bytes())
        with picture_errors():
            return np.asarray(picture)
    except (OSError, PictureError) as error:
        raise unreadable(file, error) from error


def unreadable(file: Path, error: Exception) -> DataError:
    """The error for a file that cannot be read, in one line."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DataError(f"{printable(f'{file.parent.name}/{file.name}')} cannot be read: {reason}")


def check_size(file: Path, picture: Image.Image, height: int, width: int) -> None:
    """Raise DataError unless a mask has the size of its picture."""
    if picture.size != (width, height):
        what = f"has {width}×{height} pixels, its picture {picture.width}×{picture.height}: they must be equal"
        raise DataError(f"the mask of {printable(file.name)} {what}")


def find_picture(folder: Path, stem: str) -> Path:
    """The picture of a name without its ending. Raises DataError."""
    for ending in (".jpg", ".jpeg", ".JPEG", ".JPG", ".png"):
        if (file := folder / f"{stem}{ending}").is_file():
            return file
    raise DataError(f"{printable(f'{folder.name}/{stem}')}.jpg is missing: there is a mask for it")
