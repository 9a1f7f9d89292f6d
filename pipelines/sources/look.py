"""The bytes of one picture -> findings about it, and a fingerprint of its appearance.

The fingerprint's outline is a dHash: 64 bits that say where the picture grows brighter from left to right (N. Krawetz,
"Kind of Like That", 2013).
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipelines.picture_files import PictureError, open_picture, picture_errors
from pipelines.pictures import fit_mask
from pipelines.pixels import ORIENTATION, Handling, as_mask, displayed, opaque
from pipelines.sources.files import Reader
from pipelines.sources.findings import ERROR, NOTE, WARNING, Finding
from pipelines.sources.rows import Row

LEAST_SIDE = 8
"""Least pixels of a picture's shorter side. Smaller files are tracking pixels rather than pictures."""

MOST_ASPECT = 4
"""Longer by shorter side. Beyond this, much of a picture is lost."""

FLAT = 8
"""Levels of grey, out of 255. A picture that spans fewer has no outline to compare."""


class Look(NamedTuple):
    """What is known of a picture. `outline` (64 bits) and `tints` (4×4 RGB) are its fingerprint, unless it is flat."""

    findings: list[Finding]
    digest: str = ""
    width: int = 0
    height: int = 0
    outline: int | None = None
    tints: bytes = b""


def look_at(row: Row, size: int) -> Look:
    """Read and decode a row's picture and masks once, for training at size×size pixels. Raises nothing."""
    found = Look([])

    def find(severity: str, kind: str, what: str) -> None:
        found.findings.append(Finding(severity, kind, row.name, row.where, what))

    try:
        data = row.read()
    except OSError as error:
        find(ERROR, "unreadable", str(error.strerror or error))
        return found
    try:
        picture = open_picture(data)
        with picture_errors():
            handled, width, height, small = _decode(picture)
    except PictureError as error:
        find(ERROR, error.kind, str(error))
        return found
    for kind, what, doubtful in handled:
        find(WARNING if doubtful else NOTE, kind, what)
    long, short = max(width, height), min(width, height)
    if short < LEAST_SIDE:
        find(ERROR, "too small", f"{width}×{height} pixels")
    elif short < size:
        find(WARNING, "small", f"{width}×{height}, smaller than the {size} pixels of training: it is enlarged")
    if long > MOST_ASPECT * short:
        find(WARNING, "aspect", f"{width}×{height}, longer than {MOST_ASPECT}:1: much of it is lost")
    for phrase, read in row.masks.items():
        if wrong := _wrong_mask(read, (width, height), size):
            severity, kind, what = wrong
            find(severity, kind, f"the mask of {phrase[:40]!r} {what}")
    return Look(found.findings, hashlib.sha256(data).hexdigest(), width, height, *_appearance(small))


def look_at_all(rows: Sequence[Row], size: int) -> list[Look]:
    """`look_at` each of these rows, for a worker process."""
    return [look_at(row, size) for row in rows]


def _decode(picture: Image.Image) -> tuple[list[Handling], int, int, Image.Image]:
    """What is done to a picture, its width and height as displayed, and a small copy on white, (36, 32) RGB."""
    full = picture.size
    # A JPEG is read in full, but decoded at a reduced scale, down to an eighth.
    picture.draft(None, (36, 36))
    drafted = picture.size != full
    shown, handled = displayed(picture)
    if picture.format != "MPO" and getattr(picture, "is_animated", False):  # an MPO's pictures are not frames
        handled.append(Handling("animated", "the first frame is used"))
    width, height = full if drafted else shown.size
    if drafted and picture.getexif().get(ORIENTATION, 1) in range(5, 9):  # these swap the sides
        width, height = height, width
    return handled, width, height, opaque(shown.resize((36, 32), Image.Resampling.BOX), "white")


def _appearance(small: Image.Image) -> tuple[int | None, bytes]:
    """The dHash of a small picture, and its colours on a grid of 4×4."""
    grey = np.asarray(small.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    if np.ptp(grey) < FLAT:
        return None, b""
    rises = grey[:, 1:] > grey[:, :-1] + 1
    return int.from_bytes(np.packbits(rises).tobytes(), "big"), small.resize((4, 4), Image.Resampling.BOX).tobytes()


def _wrong_mask(read: Reader, picture_size: tuple[int, int], size: int) -> tuple[str, str, str] | None:
    """What is wrong with a mask: severity, kind and details.

    Args:
        picture_size: (width, height) of its picture.
        size: the shorter side of the picture in training, before it is cropped.
    """
    try:
        with picture_errors():
            mask = as_mask(open_picture(read()))
            scale = min(1.0, size / min(picture_size))
            width, height = (max(1, round(side * scale)) for side in picture_size)
            fitted = fit_mask(mask, picture_size, (height, width))
    except (PictureError, OSError) as error:
        return ERROR, "bad mask", f"cannot be used: {error}"
    if mask.getbbox() is None:
        return WARNING, "empty mask", "is empty: no part of it is white"
    if not fitted.any():
        return WARNING, "empty mask", f"is empty at {width}×{height} pixels: what is white in it is too small"
    if fitted.min() == 255:
        return WARNING, "full mask", "covers the whole picture"
    return None
